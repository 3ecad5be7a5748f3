"""From a source to documents: what is read, what is counted, and what is refused with the row named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, Unpack

from lit_sft.data.columnar import parquet_rows
from lit_sft.data.csvfiles import csv_rows, tsv_rows
from lit_sft.data.documents import Documents
from lit_sft.data.folders import Parts, parts_of
from lit_sft.data.hub import hub_rows, open_hub
from lit_sft.data.jsonfiles import json_rows
from lit_sft.data.label_fields import check_label_options
from lit_sft.data.labels import names_of
from lit_sft.data.lines import fasttext_rows, file_rows, label_text_rows, text_rows, wikitext_rows
from lit_sft.data.rows import Label, ReadOptions, Row, RowOptions
from lit_sft.data.sources import FORMATS, HUB, WITHOUT_LABELS, check_file, file_format, parse_source
from lit_sft.data.textfiles import open_bytes
from lit_sft.data.texts import TextFile
from lit_sft.errors import UserError

STREAM_ROWS = {
    "txt": text_rows,
    "csv": csv_rows,
    "tsv": tsv_rows,
    "jsonl": json_rows,
    "file": file_rows,
    "label_text": label_text_rows,
    "fasttext": fasttext_rows,
    "wikitext": wikitext_rows,
}
WITH_COLUMNS = ("csv", "jsonl", "parquet", "tsv")
SHOWN = 8  # labels in a message
T = TypeVar("T")


def iter_rows(
    source: str | Path | BinaryIO,
    *,
    labels: bool | None = None,
    format: str | None = None,
    **options: Unpack[ReadOptions],
) -> Iterator[Row]:
    """Iterate over all rows of a file or an open binary stream, in order; memory does not grow with its size.

    Formats, by suffix, before a colon (``csv:data.dat``) or by ``format``: txt (a document a line), csv (quoted fields
    may hold newlines), tsv (quote characters are literal), jsonl (an object a line), parquet (files only), file (a
    document), label_text (``LABEL<separator>text`` lines), fasttext (``__label__NAME text`` lines), wikitext (articles
    of ``wiki.*.tokens``). A file whose name ends in ``.gz`` is unzipped. A stream is txt unless ``format`` says
    otherwise. A blank row has the text "" or None. A byte-order mark is skipped.

    Args:
        labels: True - labels are required; None - they are read if present; False - they are ignored.
        text_column: by default "text" if there is one, else the only column that holds text. Ignored without columns.
        label_column: by default "label". Labels are returned as strings: 1 and 1.0 as "1", true as "true"; a missing
            one as None, those of text files, CSV and TSV among them, as they are written.
        encoding: of all files except Parquet and files that begin with a byte-order mark; it is never guessed.
        header: False - the first row of a CSV or TSV is data and columns are named "0", "1", ...
        separator: the string between label and text in label_text, a tab by default.
        label_pattern: a regular expression that is searched in each raw label: its first group, or its whole match if
            it has no group, becomes the label.
        label_separator: splits the labels of multi-label data, which are returned as tuples, like lists in JSON and
            Parquet.
        response_column: the response to a text, which is returned in place of the label: text, stripped.

    Raises:
        UserError: a missing file, a folder, an unknown suffix, format or encoding (immediately); an empty source,
            a missing column, a malformed or undecodable row (when it is reached; the message names file and row).
    """
    if not isinstance(source, (str, Path)):
        return _rows(source, _stream_format(format, source), row_options(_stream_name(source), labels, **options))
    parsed = parse_source(source)
    if parsed.kind == HUB:
        return hub_rows(open_hub(parsed, "train"), row_options(parsed.name, labels, **options))
    check_file(parsed.path, parsed.place)
    if parsed.path.is_dir():
        raise UserError(f"{parsed.place} is a folder; give a file")
    return _rows(parsed.path, file_format(parsed, format), row_options(parsed.place, labels, **options))


def _rows(source: Path | BinaryIO, kind: str, options: RowOptions) -> Iterator[Row]:
    _check_labels(kind, options)
    return _not_empty(_format_rows(source, kind, options), options.name)


def _stream_name(stream: object) -> str:
    name = getattr(stream, "name", None)
    return name if isinstance(name, str) and name != "<stdin>" else "standard input"


def _stream_format(format: str | None, stream: object) -> str:
    if format == "parquet":
        raise UserError(f"{_stream_name(stream)}: Parquet can't be read from a stream; give its file")
    if format is not None and format not in FORMATS:
        raise UserError(f"{_stream_name(stream)}: unknown format {format!r}; known: {', '.join(sorted(FORMATS))}")
    return format or "txt"


class ReadReport(NamedTuple):
    """The number of rows read (without a header), of blank ones among them, which are left out, and notes."""

    rows: int
    blank: int
    notes: list[str]


def read_documents(
    source: str | Path,
    *,
    labeled: bool,
    label_names: dict[str, str] | None = None,
    classes: Sequence[str] | None = None,
    split: str = "train",
    file: TextFile | None = None,
    **options: Unpack[ReadOptions],
) -> tuple[Documents, ReadReport]:
    """Read the documents of a source; blank texts and prompts without a response are counted and left out.

    A folder stands for all its files of a known suffix, in sorted order. If labels are required and the folder has
    subfolders of text files, each subfolder is a class and each file a document.

    Args:
        labeled: True - every document needs a label; False - labels are ignored, whatever they are.
        label_names: display name of each raw label, ``{"0": "negative", "1": "positive"}``.
        classes: the labels of class folders that are read; None reads all but ``unsup``. What is left out is counted.
        split: the split of a ``hf:`` source that names none.
        file: the file that the texts are appended to; None keeps them in memory.
        options: as for :func:`iter_rows`.

    Raises:
        UserError: as :func:`iter_rows`; also a row without a label, a label that ``label_names`` lacks, lists as
            labels in some rows and names in others, and a source whose texts are all blank.
    """
    texts: list[str] | TextFile = [] if file is None else file
    before = len(texts)
    labels: list[Any] = []  # all names, or all tuples of names
    names: dict[Label, Label] = {}  # each label once: a million documents share a few strings
    opened, notes = open_source(source, row_options(str(source), labeled, **options), classes, split)
    answers = options.get("response_column") is not None  # which stand in place of labels
    rows, blank, unanswered = 0, 0, 0
    for row, its_options in opened:
        rows += 1
        if row.text is None or not row.text.strip():
            blank += 1
            continue
        if labeled and row.label is None and answers:
            unanswered += 1
            continue
        texts.append(row.text)
        if labeled:
            name = _named(row, label_names, its_options)
            if labels and isinstance(labels[0], str) != isinstance(name, str):
                raise its_options.error(row.number, "a list as label in some rows and a name in others")
            labels.append(name if answers else names.setdefault(name, name))  # which seldom repeat
    count = len(texts) - before
    if not count:
        raise UserError(f"{source}: all {rows} rows are blank, there is no {'response' if unanswered else 'text'}")
    if unanswered:
        notes.append(f"{source}: {unanswered} of {rows} prompts have no response and were left out")
    read = texts.view(before) if isinstance(texts, TextFile) else texts
    return Documents(read, labels if labeled else None), ReadReport(rows, blank, notes)


def open_source(
    source: str | Path, options: RowOptions, classes: Sequence[str] | None, split: str
) -> tuple[Iterator[tuple[Row, RowOptions]], list[str]]:
    """The rows of a source, each with the options it was read with (which include the file's name); and notes.

    Args:
        source, classes, split: as for :func:`read_documents`.
        options: with ``labels`` as that function's ``labeled``.
    """
    parsed = parse_source(source)
    if parsed.kind == HUB:
        rows = hub_rows(open_hub(parsed, split), options)
        return _not_empty(((row, options) for row in rows), parsed.name), []
    parts = parts_of(parsed, options, classes)
    return _not_empty(_part_rows(parts, options), parsed.place), parts.notes


def _part_rows(parts: Parts, options: RowOptions) -> Iterator[tuple[Row, RowOptions]]:
    for part in parts.files:
        own = replace(options, name=part.name)
        if part.label is None:
            _check_labels(part.kind, own)
        for row in _format_rows(part.path, part.kind, own):
            yield (row if part.label is None else row._replace(label=part.label)), own


def _named(row: Row, label_names: dict[str, str] | None, options: RowOptions) -> Label:
    """The label's display name.

    Raises:
        UserError: there is no label, or ``label_names`` lacks it.
    """
    if row.label is None:
        raise options.error(row.number, "no label; rows without a label belong in data.unlabeled")
    if label_names is None:
        return row.label
    parts = names_of(row.label)
    for part in parts:
        if part not in label_names:
            known = [*label_names][:SHOWN] + ["…"] * (len(label_names) > SHOWN)
            where = "data.label_names, or without it the labels of data.labeled"
            raise options.error(row.number, f"label {part!r} is not among {', '.join(known)} ({where})")
    found = tuple(dict.fromkeys(label_names[part] for part in parts))
    return found[0] if isinstance(row.label, str) else found


def row_options(name: str, labels: bool | None, **options: Unpack[ReadOptions]) -> RowOptions:
    """Checked options for the rows of the source ``name``.

    Raises:
        UserError: an unknown encoding, an invalid regular expression, or an empty separator.
    """
    encoding = options.get("encoding", "utf-8")
    try:
        "a".encode(encoding)  # text encodings only: looking "hex" up would succeed
    except (LookupError, UnicodeError):
        raise UserError(f"{name}: unknown encoding {encoding!r}; try utf-8, utf-16, latin-1 or cp1252") from None
    checked = RowOptions(name, labels=labels, **options)
    check_label_options(checked.separator, checked.label_pattern, checked.label_separator)
    return checked


def _check_labels(kind: str, options: RowOptions) -> None:
    """Raise a UserError if labels or responses are required, but the format has none."""
    if options.labels and options.response_column is not None and kind not in WITH_COLUMNS:
        known = ", ".join(sorted(WITH_COLUMNS))
        raise UserError(
            f"{options.name}: response_column is for files with columns ({known}), and this is {kind}: for a language "
            "model to read plain text, --data.response_column null"
        )
    if options.labels and kind in WITHOUT_LABELS:
        raise UserError(
            f"{options.name}: plain text has no labels; give a file with a label column, lines of LABEL and text "
            "(label_text:FILE), or a folder for each class"
        )


def _format_rows(source: Path | BinaryIO, kind: str, options: RowOptions) -> Iterator[Row]:
    """The rows of a file, or of an open stream, in a format of :data:`lit_sft.data.sources.FORMATS`."""
    if not isinstance(source, Path):
        yield from STREAM_ROWS[kind](source, options)
    elif kind == "parquet":
        yield from parquet_rows(source, options)
    else:
        with open_bytes(source, options.name) as stream:
            yield from STREAM_ROWS[kind](stream, options)


def _not_empty(rows: Iterator[T], name: str) -> Iterator[T]:
    """Pass the rows on; raise a UserError if there are none."""
    first = next(rows, None)
    if first is None:
        raise UserError(f"{name} is empty: it has no rows")
    yield first
    yield from rows
