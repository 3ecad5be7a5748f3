"""What the readers refuse: one line that names the file, the row or column, and what to do."""

import csv
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_sft.data import csvfiles
from lit_sft.data.readers import iter_rows, read_documents
from lit_sft.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "labeled", "message"),
    [
        ("a.txt", "", False, r"a\.txt is empty"),
        ("a.csv", "", False, r"a\.csv is empty"),
        ("a.jsonl", "", False, r"a\.jsonl is empty"),
        ("a.csv", "text,label\n", True, r"a\.csv is empty: it has no rows"),
        ("a.txt", "\n \n", False, r"a\.txt: all 2 rows are blank"),
        ("a.txt", "x\n", True, r"a\.txt: plain text has no labels"),
        ("a.doc", "x\n", False, r"unknown suffix '\.doc'; known: \.txt, \.csv, .*; else write FORMAT:.*label_text"),
        (
            "a.csv",
            "text,lable\nx,1\n",
            True,
            r"no column 'label'; columns: text, lable; did you mean 'lable'\?",
        ),
        ("a.jsonl", '{"text": "x"}', True, r"no column 'label'; columns: text; set label_column"),
        ("a.csv", "text;label\nx;1\n", True, r"no column 'label', but one column alone; is it separated by ';'\?"),
        ("a.csv", "text,label\rx,1\ry,2\r", True, r"a\.csv, row 1: a carriage return alone ends a line"),
        (
            "a.csv",
            "a,b,label\nx,y,1\n",
            True,
            r"which column is the text\? Set text_column; columns: a, b, label",
        ),
        ("a.csv", "text,text,label\nx,y,1\n", True, r"2 columns are named 'text'"),
        ("a.csv", "text,label\nx,1\ny,\n", True, r"a\.csv, row 3: no label; rows without .* in data\.unlabeled"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y"}', True, r"a\.jsonl, row 2: no label"),
        ("a.jsonl", '{"text": "x"}\n{"text": "y", "label": 1}', True, r"a\.jsonl, row 1: no label"),
        (
            "a.csv",
            'text,label\n"x\ny",1\na,b,c\n',
            True,
            r"a\.csv, row 3: 3 columns where the first row has 2",
        ),
        ("a.tsv", "text\tlabel\nx\n", True, r"a\.tsv, row 2: 1 columns where the first row has 2"),
        ("a.jsonl", '{"text": "x"}\n{"text": \n', False, r"a\.jsonl, row 2: not JSON: .* at column 9"),
        ("a.json", '[{"text": "x"}]', False, r"a\.json, row 1: not a JSON object; write one object a line"),
        ("a.json", '[\n{"text": "x"}]', False, r"a\.json, row 1: not JSON.*a JSON array\?"),
        ("a.jsonl", '{"text": "x"}\n"y"', False, r"a\.jsonl, row 2: not a JSON object"),
        ("a.jsonl", '{"text": "x"}\n{"txt": "y"}', False, r"a\.jsonl, row 2: no 'text'; there: txt"),
        ("a.jsonl", '{"text": 5}', False, r"a\.jsonl, row 1: 'text' is 5, not text"),
        ("a.jsonl", '{"text": "\\ud83d"}', False, r"a\.jsonl, row 1: half a surrogate pair"),
        ("a.jsonl", '{"text": "x", "label": {"a": 1}}', True, r"a\.jsonl, row 1: the label is a dict"),
        ("a.txt", b"fine\n\xff\xfe\n", False, r"a\.txt, row 2: bytes that are not utf-8"),
        ("a.csv", b'text\n"a\nb"\nc\nd\xe9\n', False, r"a\.csv, row 4: bytes that are not utf-8"),
        ("a.csv", b"te\xe9xt\nx\n", False, r"a\.csv, row 1: bytes that are not utf-8"),
        ("a.tsv", b"text\tlabel\nx\t\xe9\n", True, r"a\.tsv, row 2: bytes that are not utf-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}', False, r"a\.jsonl, row 2: bytes that are not utf-8"),
        ("a.parquet", b"PAR1 not really PAR1", False, r"a\.parquet: not a readable Parquet file"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, labeled: bool, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        read_documents(path, labeled=labeled)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_undecodable_parquet_bytes_name_the_row(tmp_path: Path) -> None:
    strings = pa.array([b"x"] * 2000 + [b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 2001: bytes that are not utf-8"):
        read_documents(tmp_path / "a.parquet", labeled=False)


def test_undecodable_bytes_of_another_encoding_name_the_row() -> None:
    stream = io.BytesIO("one\ntwo\n".encode("utf-16-le") + b"\x00\xdc\n\x00")  # half a surrogate pair
    with pytest.raises(UserError, match=r"standard input, row 3: bytes that are not utf-16-le"):
        list(iter_rows(stream, encoding="utf-16-le"))


@pytest.mark.parametrize("columns", [1, 2])
def test_a_quote_never_closed_is_refused(tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = ",1" * (columns - 1)
    head = "text" + ",label" * (columns - 1) + "\n"
    path = write(tmp_path / "a.csv", f'{head}x{rest}\n"y{rest}\n' + f"z{rest}\n" * 1000)
    with pytest.raises(UserError, match=r"a\.csv, row 3: a quote that is never closed"):
        list(iter_rows(path))
    monkeypatch.setattr(csvfiles, "MAX_FIELD", 1000)
    csv.field_size_limit(1000)
    with pytest.raises(UserError, match=r"a\.csv, row 3: a field of more than 1,000 characters"):
        list(iter_rows(path))


def test_a_quote_closed_by_that_of_another_row_is_refused(tmp_path: Path) -> None:
    """A lenient parser reads one row here, and 'bad' is gone."""
    path = write(tmp_path / "a.csv", 'text,label\n"good,1\n"bad,2\n')
    with pytest.raises(UserError, match=r"a\.csv, row 2: text behind a closing quote"):
        list(iter_rows(path))


def test_parquet_columns_of_one_name_are_no_clear_choice(tmp_path: Path) -> None:
    columns = [pa.array([text]) for text in ("x", "y", "z")]
    pq.write_table(pa.table(columns, names=["a", "a", "b"]), tmp_path / "a.parquet")
    for options, message in (({}, "which column is the text.* columns: a, a, b$"), ({"text_column": "a"}, "2 columns")):
        with pytest.raises(UserError, match=message):
            read_documents(tmp_path / "a.parquet", labeled=False, **options)
    assert read_documents(tmp_path / "a.parquet", labeled=False, text_column="b")[0].texts == ["z"]


def test_parquet_text_of_numbers_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'text' holds int64, not text"):
        read_documents(tmp_path / "a.parquet", labeled=False)


def test_what_can_be_known_at_once_is_refused_before_the_first_row(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", "text\nx\n")
    with pytest.raises(UserError, match=r"no such file; did you mean 'train\.csv'\?"):
        iter_rows(tmp_path / "trian.csv")
    with pytest.raises(UserError, match="is a folder"):
        iter_rows(tmp_path)
    with pytest.raises(UserError, match="unknown encoding 'utf-9'"):
        iter_rows(path, encoding="utf-9")
    with pytest.raises(UserError, match="unknown format 'xml'; known: csv, fasttext, file"):
        iter_rows(path, format="xml")
    with pytest.raises(UserError, match="Parquet can't be read from a stream"):
        iter_rows(io.BytesIO(b"x"), format="parquet")
    with pytest.raises(UserError, match="standard input is empty"):
        list(iter_rows(io.BytesIO(b"")))


def test_a_document_taken_for_the_header_is_hinted_at_and_shortened(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a long document " * 500 + "\t1\nshort one\t0\n")
    with pytest.raises(UserError, match=re.escape("(no header? set header: false)")) as caught:
        read_documents(path, labeled=True)
    assert len(str(caught.value)) < 400
