"""Readers against the csv and json modules, and what they refuse."""

import csv
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import traced_memory

from lit_sft.data import columnar, csvfiles
from lit_sft.data.readers import iter_rows, read_documents
from lit_sft.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_csv(path: Path, rows: list[list[str]], **options: str) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows(rows)  # type: ignore[arg-type]
    return path


def values(rows: object) -> list[tuple[int, str | None, str | None]]:
    return [tuple(row) for row in rows]  # type: ignore[attr-defined]


@pytest.fixture(params=["\n", "\r\n"])
def newline(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---------------------------------------------------------------- the same documents from every format


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_are_the_same_over_the_bounds_of_pieces(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[f"{i} " + "x\n" * (i % 7), str(i)] for i in range(300)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        write_csv(path, [["text", "label"], *rows])
    else:
        pq.write_table(pa.table({"text": [text for text, _ in rows], "label": [name for _, name in rows]}), path)
    monkeypatch.setattr(csvfiles, "PEEKED_ROWS", 3)
    monkeypatch.setattr(columnar, "BATCH_ROWS", 7)
    first = 2 if suffix == ".csv" else 1
    assert values(iter_rows(path)) == [(i + first, text, label) for i, (text, label) in enumerate(rows)]


def test_tsv_takes_quotes_literally(tmp_path: Path, newline: str) -> None:
    lines = ['a "b', '"c d" e', "it 's , fine"]
    path = write(tmp_path / "a.tsv", "".join(f"{line}\t{i}{newline}" for i, line in enumerate(lines)))
    rows = iter_rows(path, header=False, text_column="0", label_column="1")
    assert values(rows) == [(1, lines[0], "0"), (2, lines[1], "1"), (3, lines[2], "2")]


def test_without_a_header_columns_are_numbers_and_the_text_column_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "good film\t1\nbad film\t0")  # the last line ends without a newline
    assert values(iter_rows(path, header=False)) == [(1, "good film", None), (2, "bad film", None)]
    documents, _ = read_documents(path, labeled=True, header=False, label_column="1")
    assert (documents.texts, documents.labels) == (["good film", "bad film"], ["1", "0"])


# ---------------------------------------------------------------- no row is dropped


def test_plain_text_is_a_document_a_line_and_an_empty_line_is_a_row(tmp_path: Path, newline: str) -> None:
    path = write(tmp_path / "a.txt", newline.join(["one", "", "  ", "two", "", ""]))
    assert values(iter_rows(path)) == [
        (1, "one", None),
        (2, "", None),
        (3, "  ", None),
        (4, "two", None),
        (5, "", None),
    ]
    documents, report = read_documents(path, labeled=False)
    assert (documents.texts, report.rows, report.blank) == (["one", "two"], 5, 3)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "text\nx\n\ny\n", [(2, "x", None), (3, "", None), (4, "y", None)]),
        (
            "a.csv",
            "text,label\nx,1\n\n,2\ny,\n",
            [(2, "x", "1"), (3, "", None), (4, "", "2"), (5, "y", None)],
        ),
        ("a.tsv", "text\tlabel\nx\t1\n\ny\t2\n", [(2, "x", "1"), (3, "", None), (4, "y", "2")]),
        ("a.jsonl", '{"text": "x"}\n\n{"text": null}\n', [(1, "x", None), (2, None, None), (3, None, None)]),
    ],
)
def test_blank_rows_are_yielded_with_their_number(
    tmp_path: Path, name: str, content: str, expected: list[tuple[int, str | None, str | None]]
) -> None:
    assert values(iter_rows(write(tmp_path / name, content))) == expected


def test_parquet_nulls_are_blank_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, " ", "b"], "label": [1, 0, None, 0]}), tmp_path / "a.parquet")
    documents, report = read_documents(tmp_path / "a.parquet", labeled=True)  # a blank row needs no label
    assert (documents.texts, documents.labels) == (["a", "b"], ["1", "0"])
    assert (report.rows, report.blank) == (4, 2)


# ---------------------------------------------------------------- streams and encodings


@pytest.mark.parametrize(
    ("format", "content"),
    [
        (None, "x y\nGrüße\n"),
        ("txt", "x y\nGrüße"),
        ("csv", "text\nx y\nGrüße\n"),
        ("tsv", "label\ttext\n1\tx y\n2\tGrüße\n"),
        ("jsonl", '{"text": "x y"}\n{"text": "Gr\\u00fc\\u00dfe"}\n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_streams_in_any_encoding(format: str | None, content: str, encoding: str) -> None:
    stream = io.BytesIO(content.encode(encoding))
    assert [row.text for row in iter_rows(stream, format=format, encoding=encoding)] == ["x y", "Grüße"]
    assert not stream.closed


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    path = write(tmp_path / "excel.csv", "\ufefftext,label\nx,1\n")
    assert values(iter_rows(path)) == [(2, "x", "1")]
    assert values(iter_rows(write(tmp_path / "a.txt", "\ufeffx\n"))) == [(1, "x", None)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("given", ["utf-8", "utf-16", "utf-16-be", "latin-1"])
def test_a_byte_order_mark_comes_before_the_encoding_that_is_given_for_all_files(encoding: str, given: str) -> None:
    stream = io.BytesIO("x y\nGr\u00fc\u00dfe\n".encode(encoding))
    assert [row.text for row in iter_rows(stream, encoding=given)] == ["x y", "Gr\u00fc\u00dfe"]


def test_a_character_across_chunk_bounds_is_one_character() -> None:
    text = "é" * 200_001  # two bytes each, chunks of 64 KiB
    assert [row.text for row in iter_rows(io.BytesIO(text.encode("utf-16-le")), encoding="utf-16-le")] == [text]


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
def test_memory_is_flat_with_the_number_of_rows(kind: str) -> None:
    line = {"txt": "x" * 399, "csv": "x" * 399, "jsonl": json.dumps({"text": "x" * 399})}[kind]

    def peak(rows: int) -> int:
        stream = io.BytesIO(("text\n" * (kind == "csv") + f"{line}\n" * rows).encode())
        arrow = pa.total_allocated_bytes()
        with traced_memory() as used:
            assert sum(1 for _ in iter_rows(stream, format=kind)) == rows
            return used() + int(pa.total_allocated_bytes() - arrow)

    peak(100)
    assert peak(30_000) < peak(10_000) + 2_000_000  # the rows themselves are 8 MB more


@pytest.mark.parametrize("groups", [1, 40])
def test_memory_is_flat_with_the_size_of_a_parquet_file(groups: int, tmp_path: Path) -> None:
    """Of a single row group too: pyarrow reads all of one at once unless it is told not to."""
    draw = random.Random(0)
    rows = [draw.randbytes(2000).hex() for _ in range(5_000)]  # 20 MB that do not compress away
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", len(rows) // groups, use_dictionary=False)
    del rows
    arrow = pa.total_allocated_bytes()
    with traced_memory() as used:
        most = max(pa.total_allocated_bytes() for _ in iter_rows(tmp_path / "a.parquet"))
        assert used() + most - arrow < 13_000_000


# ---------------------------------------------------------------- columns and labels


def test_labels_become_strings(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["a", "b", "c"],
            "int": [1, -1, None],
            "float": [1.0, 0.5, float("nan")],
            "bool": [True, False, None],
            "name": pa.array(["x", " y ", ""]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    expected = {"int": ["1", "-1"], "float": ["1", "0.5"], "bool": ["true", "false"], "name": ["x", "y"]}
    lines = "\n".join(json.dumps(row).replace("NaN", "null") for row in table.to_pylist())
    for path in (tmp_path / "a.parquet", write(tmp_path / "a.jsonl", lines)):
        for column, labels in expected.items():
            rows = list(iter_rows(path, text_column="text", label_column=column))
            assert [row.label for row in rows] == [*labels, None], (path, column)


def test_a_number_that_is_none_is_no_label_where_labels_are_split_too(tmp_path: Path) -> None:
    lines = "".join(f'{{"text": "t", "label": {label}}}\n' for label in ('"x;y"', '""', "null", "NaN"))
    rows = iter_rows(write(tmp_path / "a.jsonl", lines), label_separator=";")
    assert [row.label for row in rows] == [("x", "y"), (), None, None]


def test_csv_labels_are_kept_as_they_are_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,01\nb,1.0\nc,true\n")
    assert [row.label for row in iter_rows(path)] == ["01", "1.0", "true"]


def test_label_names_map_raw_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1, 0]}), tmp_path / "a.parquet")
    names = {"0": "negative", "1": "positive"}
    documents, _ = read_documents(tmp_path / "a.parquet", labeled=True, label_names=names)
    assert documents.labels == ["positive", "negative"]
    with pytest.raises(UserError, match=r"a\.parquet, row 2: label '0' is not among 1, 2 "):
        read_documents(tmp_path / "a.parquet", labeled=True, label_names={"1": "x", "2": "y"})


def test_labels_are_not_looked_at_when_unlabeled(tmp_path: Path) -> None:
    pq.write_table(pa.table({"review": ["a", "b"], "label": [-1, -1]}), tmp_path / "a.parquet")
    for column in (None, "label", "not there"):
        documents, _ = read_documents(tmp_path / "a.parquet", labeled=False, label_column=column, label_names={})
        assert (documents.texts, documents.labels) == (["a", "b"], None)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_only_text_column_is_found(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": 7, "review": "good", "label": "pos"}, {"id": 8, "review": "3", "label": "neg"}]
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        write_csv(path, [list(rows[0]), *[[str(v) for v in row.values()] for row in rows]])
    elif suffix == ".jsonl":
        write(path, "\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert [(row.text, row.label) for row in iter_rows(path)] == [("good", "pos"), ("3", "neg")]


UNCLEAR_FIRST = {
    "null": ([{"title": "t", "body": None}, {"title": "t", "body": "b"}], None),
    "nothing but its number": ([{"id": 1}, {"id": 2, "body": "b"}], r"row 1: no 'body'; there: id$"),
    "another string": ([{"title": "t"}, {"title": "t", "body": "b"}], r"which column is the text\? .* title, body$"),
    "text in the second": ([{"title": "t"}, {"title": "t", "text": "b"}], r"row 1: no 'text'; there: title$"),
    "mostly blank": ([{"n": 1, "body": "a"}, *[{"n": 2, "body": None, "label": "x"}] * 3], ["a", None, None, None]),
    "one row's remark": ([{"body": "a"}, {"body": "b"}, {"body": "c", "remark": "d"}], ["a", "b", "c"]),
    "a title that some lack": ([{"n": 0, "body": "a"}, {"n": 1, "title": "t", "body": "b"}], r"which column"),
}


@pytest.mark.parametrize("case", UNCLEAR_FIRST)
def test_the_text_of_json_lines_is_not_chosen_by_the_first_row_alone(case: str, tmp_path: Path) -> None:
    rows, expected = UNCLEAR_FIRST[case]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    if isinstance(expected, list):
        assert [row.text for row in iter_rows(path, labels=False)] == expected
        return
    with pytest.raises(
        UserError, match=expected or r"which column is the text\? Set text_column; columns: title, body"
    ):
        list(iter_rows(path, labels=False))
