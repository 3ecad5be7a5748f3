"""Names of sources, and the formats that no suffix tells."""

from __future__ import annotations

import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command, Fit, Trained, labeled_rows, traced_memory
from refusals import refused

from lit_sft.data.corpus import load_corpus
from lit_sft.data.corpus_config import CorpusConfig
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.readers import iter_rows, read_documents
from lit_sft.data.sources import FORMATS, SUFFIXES, parse_source
from lit_sft.data.tokenization import Tokenizer
from lit_sft.errors import UserError


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(source: str | Path, labeled: bool = True, **options: Any) -> list[tuple[str, Any]]:
    documents, _ = read_documents(source, labeled=labeled, **options)
    return list(zip(documents.texts, documents.labels or [None] * len(documents), strict=True))


# ---------------------------------------------------------------- names


def test_a_name_is_a_path_a_format_and_a_path_or_a_data_set_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_source("label_text:x/TREC.train").kind == "label_text"
    assert parse_source("hf:stanfordnlp/imdb:train").place == "stanfordnlp/imdb:train"
    assert parse_source("x:y.csv").kind is None
    write(tmp_path / "csv:a.txt", "a text\n")
    assert read("csv:a.txt", labeled=False) == [("a text", None)]
    assert parse_source(Path("csv:b.txt")).place == "csv:b.txt"
    with pytest.raises(UserError, match="csv:: nothing stands behind the colon"):
        parse_source("csv:")


def test_a_tilde_without_such_a_user_is_a_name_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "~old.txt", "a text\n")
    for name in ("~old.txt", "txt:~old.txt"):
        assert read(name, labeled=False) == [("a text", None)]
    with pytest.raises(UserError, match=r"~older\.txt: no such file; did you mean '~old\.txt'"):
        read("~older.txt", labeled=False)
    with pytest.raises(UserError, match=r"tokenizer file ~own\.json does not exist"):
        Tokenizer.from_file("~own.json")
    data = TextDataModule(labeled="~old.txt", cache_dir="~kept")
    assert data.preparation.cache_dir == Path("~kept")


def test_a_format_before_the_colon_beats_the_suffix(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text,label\nx,1\n")
    assert read(f"csv:{path}") == [("x", "1")]
    assert read(f"txt:{write(tmp_path / 'b.csv', 'x,y')}", labeled=False) == [("x,y", None)]
    with pytest.raises(UserError, match="is csv by its name and txt by option"):
        iter_rows(f"csv:{path}", format="txt")


@pytest.mark.parametrize("name", ["TREC.train", "wiki.train.tokens", "data", "a.dat.gz"])
def test_an_unknown_suffix_is_told_how_to_name_the_format(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, "x")
    with pytest.raises(UserError, match=f"write FORMAT:{re.escape(path)}, a FORMAT of") as caught:
        iter_rows(path)
    assert all(format in str(caught.value) for format in FORMATS)


def test_a_format_that_is_misspelt_is_told_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a file of the user's may have a nearer name
    with pytest.raises(UserError, match=r"nothing:a\.csv: no such file \(formats before a colon: .*, hf\)$"):
        list(iter_rows("nothing:a.csv"))
    with pytest.raises(UserError, match=r"cvs:a\.csv: no such file .*did you mean csv\?"):
        iter_rows("cvs:a.csv")


# ---------------------------------------------------------------- gzip


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".CSV"])
def test_every_suffix_may_have_gz_behind_it(suffix: str, tmp_path: Path) -> None:
    rows = [("a text", "x"), ("another", "y")]
    table = io.BytesIO()
    pq.write_table(pa.table({"text": [t for t, _ in rows], "label": [y for _, y in rows]}), table)
    content = {
        "txt": b"a text\nanother\n",
        "csv": b"text,label\na text,x\nanother,y\n",
        "tsv": b"text\tlabel\na text\tx\nanother\ty\n",
        "jsonl": "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows).encode(),
        "parquet": table.getvalue(),
    }[SUFFIXES[suffix.lower()]]
    labeled = suffix != ".txt"
    path = write(tmp_path / f"a{suffix}.gz", gzip.compress(content))
    assert read(path, labeled) == (rows if labeled else [(text, None) for text, _ in rows])


def test_gzip_is_not_unpacked_into_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"a line of text\n" * 1_000_000, 1))  # 15 MB
    with traced_memory() as peak:
        assert sum(1 for _ in zip(iter_rows(path), range(60_000), strict=False)) == 60_000
        assert peak() < 3_000_000


# ---------------------------------------------------------------- labels before the text


def test_label_text_splits_at_the_first_separator(tmp_path: Path) -> None:
    path = write(tmp_path / "TREC.train", "DESC:manner How did it go ?\nNUM:date When\xe9 ?\n".encode("latin-1"))
    source = f"label_text:{path}"
    options = {"separator": " ", "encoding": "iso-8859-1"}
    assert read(source, **options) == [("How did it go ?", "DESC:manner"), ("Whené ?", "NUM:date")]
    assert [y for _, y in read(source, label_pattern="^[^:]+", **options)] == ["DESC", "NUM"]
    assert [y for _, y in read(source, label_pattern=":(.)", **options)] == ["m", "d"]
    assert read(source, labeled=False, **options) == [("How did it go ?", None), ("Whené ?", None)]
    with pytest.raises(UserError, match=r"train, row 1: no '\\t' between label and text; set `separator`"):
        read(source, encoding="latin-1")
    with pytest.raises(UserError, match=r"row 2: label_pattern '\^D.' finds nothing in the label 'NUM:date'"):
        read(source, label_pattern="^D.", **options)


def test_a_tab_is_the_separator_by_default_and_an_empty_line_is_a_blank_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "pos\ta\tb\n\nneg\tc")
    documents, report = read_documents(f"label_text:{path}", labeled=True)
    assert list(zip(documents.texts, documents.labels or [], strict=True)) == [("a\tb", "pos"), ("c", "neg")]
    assert (report.rows, report.blank) == (3, 1)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_label_pattern_and_separator_are_for_every_format(name: str, tmp_path: Path) -> None:
    labels = ["topic=a; topic=b;topic=a", ";", "topic=c"]
    path = tmp_path / name
    if name == "a.csv":
        write(path, "text,label\n" + "".join(f"t{i},{label}\n" for i, label in enumerate(labels)))
    elif name == "a.jsonl":
        write(path, "".join(json.dumps({"text": f"t{i}", "label": y}) + "\n" for i, y in enumerate(labels)))
    else:
        pq.write_table(pa.table({"text": ["t0", "t1", "t2"], "label": labels}), path)
    options = {"label_separator": ";", "label_pattern": "=(.*)"}
    assert [y for _, y in read(path, **options)] == [("a", "b"), (), ("c",)]
    names = {"a": "A", "b": "A", "c": "C"}
    assert [y for _, y in read(path, label_names=names, **options)] == [("A",), (), ("C",)]
    with pytest.raises(UserError, match=r"row \d: label 'b' is not among a, c"):
        read(path, label_names={"a": "a", "c": "c"}, **options)


def test_fasttext_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ft", "__label__pos good , __label__x\n__label__a\t__label__b  both\nnone\n")
    with pytest.raises(UserError, match=r"row 2: 2 labels \(a, b\); for multi-label data set label_separator"):
        read(f"fasttext:{path}")
    several = [("good , __label__x", ("pos",)), ("both", ("a", "b")), ("none", ())]
    assert read(f"fasttext:{path}", label_separator=" ") == several
    assert read(f"fasttext:{path}", labeled=False) == [(text, None) for text, _ in several]
    with pytest.raises(UserError, match=r"row 1: no label"):
        read(f"fasttext:{write(tmp_path / 'b', 'no label here')}")


def test_lists_and_names_as_labels_are_not_mixed(tmp_path: Path) -> None:
    lists = '{"text": "x", "label": ["a", null, " ", 1]}\n{"text": "y", "label": []}\n'
    path = write(tmp_path / "a.jsonl", lists)
    assert read(path) == [("x", ("a", "1")), ("y", ())]
    with pytest.raises(UserError, match=r"row 1: the label is a list already; leave label_separator out"):
        read(path, label_separator=",")
    with pytest.raises(UserError, match=r"row 3: a list as label in some rows and a name in others"):
        read(write(tmp_path / "b.jsonl", lists + '{"text": "z", "label": "a"}'))


@pytest.mark.parametrize("label", [[0, 1, 0], [1, 1], [True, False, False], [0.2, 0.8], [0.5], ["a", "b", " a"]])
def test_a_list_that_holds_a_number_for_every_class_is_refused(label: list[Any], tmp_path: Path) -> None:
    rows = [{"text": "x", "label": []}, {"text": "y", "label": label}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for source in (path, tmp_path / "a.parquet"):
        with pytest.raises(UserError, match=r"a\.\w+, row 2: the label is \[.*; is it one-hot\?"):
            read(source)


def test_labels_that_all_apply_to_every_document_are_refused(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"text {i}", "label": [i % 2, 1 - i % 2]}) for i in range(20)]
    path = write(tmp_path / "a.jsonl", "\n".join(rows))
    with pytest.raises(UserError, match=r"a\.jsonl: every document has all of the labels 0, 1; .* is it one-hot\?"):
        load_corpus(CorpusConfig(labeled=[path]), tmp_path)
    path = write(tmp_path / "b.jsonl", "\n".join([*rows, '{"text": "x", "label": [1]}', '{"text": "y", "label": []}']))
    assert load_corpus(CorpusConfig(labeled=[path]), tmp_path).label_names == ["0", "1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_pattern": "("}, r"--data.label_pattern '\(' is no regular expression"),
        ({"label_separator": ""}, "--data.label_separator must not be empty"),
        ({"separator": ""}, "--data.separator must not be empty"),
    ],
)
def test_label_options_that_can_not_be_meant(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CorpusConfig.of("pydocs", None, None, None, None, **options)


def test_labels_that_look_alike_are_noted_with_their_counts(tmp_path: Path) -> None:
    rows = "".join(f"t{i} is text,{label}\n" for i, label in enumerate(["Pos", "pos", "neg", "p os", "pos"] * 3))
    path = write(tmp_path / "a.csv", "text,label\n" + rows)
    corpus = load_corpus(CorpusConfig(labeled=[path]), tmp_path)
    assert corpus.label_names == ["Pos", "neg", "p os", "pos"]
    [note] = [note for note in corpus.notes if "differ only in case" in note]
    for part in ("'Pos' (", "'pos' (", "'p os' (", "data.label_names: {'Pos': 'Pos', 'pos': 'Pos'"):
        assert part in note
    merged = {"Pos": "pos", "pos": "pos", "p os": "pos", "neg": "neg"}
    assert load_corpus(CorpusConfig(labeled=[path], label_names=merged), tmp_path).notes == []


def test_numbers_written_with_a_fraction_of_0_are_noted_beside_those_without(tmp_path: Path) -> None:
    csv = write(tmp_path / "a.csv", "text,label\n" + "".join(f"t{i} is text,{i % 3}.0\n" for i in range(30)))
    rows = [json.dumps({"text": f"u{i} is text", "label": i % 3 + 0.0}) for i in range(30)]
    corpus = load_corpus(CorpusConfig(labeled=[csv, write(tmp_path / "b.jsonl", "\n".join(rows))]), tmp_path)
    assert corpus.label_names == ["0", "0.0", "1", "1.0", "2", "2.0"]
    for number, note in enumerate(corpus.notes):
        assert note.startswith(f"the labels '{number}.0' (10) and '{number}' (10) differ only in")
        assert f"data.label_names: {{'{number}.0': '{number}.0', '{number}': '{number}.0', ...}}" in note
    assert len(corpus.notes) == 3


# ---------------------------------------------------------------- documents in memory


@pytest.mark.parametrize("option", ["labeled", "unlabeled", "val", "test"])
@pytest.mark.parametrize(
    ("documents", "kind"),
    [
        (pa.table({"text": ["the owl"], "label": ["wood"]}), "a Table: "),
        ({"text": ["the owl"], "label": ["wood"]}, "a dict: "),
        ([{"text": "the owl", "label": "wood"}], "a list with a dict: "),
        ([("the owl", "wood")], "a list with a tuple: "),
        (["a.csv", None], "a list with a NoneType: "),
        (iter(["a.csv"]), "a list_iterator: "),
    ],
)
def test_documents_in_memory_are_no_source(option: str, documents: Any, kind: str) -> None:
    message = rf"data\.{option}: sources are files, .* and this is {kind}save it, e\.g\. df\.to_parquet"
    with pytest.raises(UserError, match=message):
        TextDataModule(**{"labeled": None, option: documents})


@pytest.mark.parametrize("words", [9, 1000])
def test_a_text_in_place_of_a_file_is_told_as_such_and_shortened(words: int) -> None:
    data = TextDataModule(labeled=None, unlabeled=["the owl\n" + "and " * (words - 2), "another"])
    with pytest.raises(UserError, match=r"^the owl( and){6} …: no such file; a source is a file, not a text") as told:
        data.prepare_data()
    assert len(str(told.value)) < 120


# ---------------------------------------------------------------- articles and files


ARTICLES = [
    " = First = \n \n It has = signs = , and \n = like a heading = \n = = Section = = \n \n Text . \n \n",
    ' = <unk> = \n \n A " quote " . \n \n',
]


def test_wikitext_articles_also_those_of_the_quoted_mirror(tmp_path: Path) -> None:
    expected = [
        "= First =\n\nIt has = signs = , and\n= like a heading =\n= = Section = =\n\nText .",
        '= <unk> =\n\nA " quote " .',
    ]
    plain = write(tmp_path / "wiki.train.tokens", " \n" + "".join(ARTICLES))
    quoted = "".join('" \n' + article.replace('"', '""') + '"\n' for article in ARTICLES)
    for path in (plain, write(tmp_path / "quoted.tokens", quoted)):
        rows = list(iter_rows(f"wikitext:{path}"))
        assert [row.text for row in rows] == expected
    with pytest.raises(UserError, match="plain text has no labels"):
        read(f"wikitext:{plain}")


def test_file_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.md", "# Title\r\n\r\nBody\n\n")
    assert read(f"file:{path}", labeled=False) == [("# Title\r\n\r\nBody\n", None)]
    with pytest.raises(UserError, match=r"a\.md: plain text has no labels"):
        read(f"file:{path}")


# ---------------------------------------------------------------- the command line


def test_a_damaged_file_on_the_command_line(fit: Fit) -> None:
    data = gzip.compress("".join(f"{label}\t{text}\n" for text, label in labeled_rows(200, 3)).encode())
    Path("half.gz").write_bytes(data[: len(data) // 2])
    refused(fit("--data.labeled", "label_text:half.gz"), "half.gz: damaged or no gzip data")
    refused(fit("--data.test", "label_text:half.gz"), "half.gz: damaged or no gzip data")


@pytest.mark.parametrize(
    ("name", "content", "flags"),
    [
        ("a.csv.gz", gzip.compress(b"text\nthe owl\nthe sail\n"), []),
        ("label_text:TREC.test", b"A:b the owl\nA:c the sail\n", ["--separator", " "]),
        ("fasttext:a.ft", b"__label__x the owl\n__label__y the sail\n", []),
    ],
    ids=["csv.gz", "label_text", "fasttext"],
)
def test_predict_reads_every_format_of_one_file(
    name: str, content: bytes, flags: list[str], cli: Command, trained: Trained
) -> None:
    Path(name.split(":")[-1]).write_bytes(content)
    result = cli("predict", "--ckpt_path", trained.finetune, "--input", name, "--output", "out.jsonl", *flags)
    assert result.code == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 2


def test_predict_names_the_row_that_can_not_be_read(cli: Command, trained: Trained) -> None:
    broken = write(Path("broken.csv"), 'text\nthe owl\n"the sail\n')
    result = cli("predict", "--ckpt_path", trained.finetune, "--input", broken, "--output", "broken.jsonl")
    refused(result, "broken.csv, row 3: a quote that is never closed")
    assert not Path("broken.jsonl").exists()
