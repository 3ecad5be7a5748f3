"""Whatever a data set holds, every format that can hold it gives the same documents, labels and order back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import written
from hypothesis import given, settings
from hypothesis import strategies as st
from written import Rows, Style

from lit_sft.data.readers import read_documents

# Quotes, commas, blanks and line ends of every kind (some of them to Python's splitlines alone), a combining accent,
# characters of two, three and four bytes.
ALPHABET = "ab \"',;|\t\n\r\\{}[]:=#_%é\u0301\u00a0\u0085\u2028\x0b\x0c\x1c世🙂𝔘"
SPELLED = "\0\ufeff"  # only where a format has a way to spell them
LABELS = ["pos", "neg", "a b", "Größe", "1", "none", "日本"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"]

styles = st.builds(
    Style,
    st.sampled_from(ENCODINGS),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from([0, 0, 1, 2]),
)


def data_sets(alphabet: str, labels: st.SearchStrategy[Any]) -> st.SearchStrategy[Rows]:
    return st.lists(st.tuples(st.text(alphabet=alphabet, max_size=12), labels), min_size=1, max_size=8)


def held(text: str, style: Style, without: str) -> str:
    """The text as the encoding, and a format without some characters, can hold it."""
    for character in without:
        text = text.replace(character, " ")
    codec = "utf-8" if style.encoding.startswith("utf") else style.encoding
    return text.encode(codec, "replace").decode(codec)


def read_back(write: Callable[..., written.Written], rows: Rows, style: Style, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, how = write(Path(folder), rows, style)
        encoding = "utf-8" if style.encoding == "utf-8-sig" else style.encoding
        labeled = write is not written.txt
        documents, report = read_documents(source, labeled=labeled, encoding=encoding, **how, **options)
        kept = [(text, label) for text, label in rows if text.strip()]
        assert list(documents.texts) == [text for text, _ in kept]
        assert documents.labels == ([label for _, label in kept] if labeled else None)
        assert (report.rows, report.blank) == (len(rows), len(rows) - len(kept))
        assert [note for note in report.notes if ".hidden" not in note] == []


# The writer, and what its format can't hold.
FORMATS: list[tuple[Callable[..., written.Written], str]] = [
    (written.txt, "\n\r"),
    (written.csv_with_header, "\r"),  # older versions of Python's writer leave it without quotes
    (written.csv_without_header, ""),
    (written.tsv, "\n\r\t"),
    (written.jsonl, ""),
    (written.label_text, "\n\r"),
    (written.fasttext, "\n\r"),
    (written.parquet, ""),
    (written.mixed_folder, "\r"),
    (written.class_folders, ""),
    (written.hub_folder, ""),
]


@pytest.mark.parametrize(("write", "without"), FORMATS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_format_gives_back_what_was_written(write: Callable[..., written.Written], without: str) -> None:
    if write is written.hub_folder:
        pytest.importorskip("datasets")
    spelled = SPELLED if write in (written.jsonl, written.parquet, written.hub_folder) else ""

    @settings(max_examples=8 if write is written.hub_folder else 40, deadline=None, derandomize=True, database=None)
    @given(data_sets(ALPHABET + spelled, st.sampled_from(LABELS)), styles)
    def check(rows: Rows, style: Style) -> None:
        rows = [(held(text, style, without), held(label, style, "")) for text, label in rows]
        rows.append(("the last", "pos"))
        if write is written.fasttext:  # a label is a word there, and the text begins with the next one
            rows = [(text.lstrip(" \t\v\f"), label.replace(" ", "")) for text, label in rows]
        elif write is written.class_folders:  # a final newline is not of the document
            rows = sorted(((text.rstrip("\r\n"), label) for text, label in rows), key=lambda row: row[1])
        read_back(write, rows, style)

    check()


def joined(rows: Rows, separator: str) -> Rows:
    return [(text, separator.join(label)) for text, label in rows]


def write_separated(write: Callable[..., written.Written]) -> Callable[..., written.Written]:
    return lambda folder, rows, style: write(folder, joined(rows, " / "), style)


# The writer, what its format can't hold, and the option that makes its labels several.
MULTILABEL: list[tuple[Callable[..., written.Written], str, str | None]] = [
    (written.jsonl, "", None),
    (written.parquet, "", None),
    (written.hub_folder, "", None),
    (write_separated(written.csv_without_header), "", "/"),
    (write_separated(written.tsv), "\n\r\t", "/"),
    (write_separated(written.jsonl), "", " / "),
    (write_separated(written.label_text), "\n\r", "/"),
    (written.fasttext, "\n\r", " "),
]


@pytest.mark.parametrize(("write", "without", "separator"), MULTILABEL)
def test_any_number_of_labels_comes_back_too(
    write: Callable[..., written.Written], without: str, separator: str | None
) -> None:
    if write is written.hub_folder:
        pytest.importorskip("datasets")
    several = st.lists(st.sampled_from(LABELS), max_size=3, unique=True)

    @settings(max_examples=5 if write is written.hub_folder else 20, deadline=None, derandomize=True, database=None)
    @given(data_sets(ALPHABET, several), styles)
    def check(rows: Rows, style: Style) -> None:
        rows = [(held(text, style, without), [held(name, style, "") for name in label]) for text, label in rows]
        rows = [(text, tuple(dict.fromkeys(label))) for text, label in [("", ["neg"]), *rows, ("the last", [])]]
        if write is written.fasttext:
            rows = [(text.lstrip(" \t\v\f"), tuple(name.replace(" ", "") for name in label)) for text, label in rows]
        read_back(write, rows, style, label_separator=separator)

    check()


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(st.text(alphabet='ab ="é世', max_size=8), min_size=1, max_size=5), min_size=1), styles)
def test_articles_come_back(articles: list[list[str]], style: Style) -> None:
    """Body lines may look like headings: those of an article stand between empty lines, theirs don't."""
    bodies = [[held(line, style, "").strip() or "." for line in body] for body in articles]
    lines = [""]
    for number, body in enumerate(bodies):
        lines += [f" = Title {number} = ", "", *(f" {line} " for line in [*body, "= a =", "= = b = ="]), ""]
    with tempfile.TemporaryDirectory() as folder:
        path = style.write(Path(folder, "wiki.train.tokens"), lines)
        encoding = "utf-8" if style.encoding == "utf-8-sig" else style.encoding
        documents, report = read_documents(f"wikitext:{path}", labeled=False, encoding=encoding)
    wanted = ["\n".join([f"= Title {n} =", "", *body, "= a =", "= = b = ="]) for n, body in enumerate(bodies)]
    assert list(documents.texts) == wanted
    assert report.rows == len(articles)
