"""Malformed files by the seed: each kind is a function from (folder, random numbers) to a source, how to read it, and
what is known to be in it."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import written
from written import Rows, Style

WORDS = ["the", "owl", "naïve", "日本", "🙂", 'a "quoted" word', "x, y", "déjà", "rain;", "end."]
TABLES = (written.csv_with_header, written.csv_without_header, written.tsv, written.jsonl)
TEXT_FORMATS = (*TABLES, written.label_text, written.fasttext)


@dataclass(frozen=True)
class Case:
    """``rows``: what must come out if it is read, None where it must be refused; ``refusable``: it may be refused
    too; ``row``: the number that the refusal names; ``noted``: words that the notes must have."""

    source: str
    rows: Rows | None
    options: dict[str, Any] = field(default_factory=dict)
    refusable: bool = False
    row: int | None = None
    labeled: bool = True
    noted: tuple[str, ...] = ()


Kind = Callable[[Path, random.Random], Case]
KINDS: dict[str, Kind] = {}


def kind(function: Kind) -> Kind:
    KINDS[function.__name__] = function
    return function


def some_rows(draw: random.Random, least: int = 3) -> Rows:
    """Rows that can be told apart, some with characters outside ASCII; none is blank."""
    count = draw.randint(least, 12)
    return [(f"row {i} {' '.join(draw.choices(WORDS, k=draw.randint(1, 6)))}", draw.choice("ab")) for i in range(count)]


def some_style(draw: random.Random, members: int = 0) -> Style:
    return Style("utf-8", draw.choice(["\n", "\r\n"]), draw.random() < 0.5, members)


def path_of(source: str) -> Path:
    return Path(source.partition(":")[2] if source.split(":")[0] in ("csv", "label_text", "fasttext") else source)


def some_file(folder: Path, draw: random.Random, formats: Any = TEXT_FORMATS, members: int = 0) -> Case:
    rows = some_rows(draw)
    source, options = draw.choice(formats)(folder, rows, some_style(draw, members))
    return Case(source, rows, options)


def changed(case: Case, data: bytes, **changes: Any) -> Case:
    path_of(case.source).write_bytes(data)
    return Case(**{**vars(case), **changes})


def flipped(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


# ---------------------------------------------------------------- gzip


@kind
def truncated_gzip(folder: Path, draw: random.Random) -> Case:
    case = some_file(folder, draw, members=1)
    data = path_of(case.source).read_bytes()
    return changed(case, data[: draw.randrange(len(data))], rows=None)


@kind
def flipped_gzip(folder: Path, draw: random.Random) -> Case:
    case = some_file(folder, draw, members=draw.choice([1, 2]))
    return changed(case, flipped(path_of(case.source).read_bytes(), draw), refusable=True)


@kind
def no_gzip(folder: Path, draw: random.Random) -> Case:
    case = some_file(folder, draw, members=1)
    path = path_of(case.source)
    return changed(case, gzip.decompress(path.read_bytes()), rows=None)


@kind
def gzip_under_another_name(folder: Path, draw: random.Random) -> Case:
    case = some_file(folder, draw)
    return changed(case, gzip.compress(path_of(case.source).read_bytes()), rows=None)


@kind
def several_gzip_members(folder: Path, draw: random.Random) -> Case:
    case = some_file(folder, draw, members=1)
    data = gzip.decompress(path_of(case.source).read_bytes())
    cuts = [0, *sorted(draw.randrange(len(data)) for _ in range(3)), len(data)]
    return changed(case, b"".join(gzip.compress(data[a:b]) for a, b in itertools.pairwise(cuts)))


@kind
def something_behind_gzip(folder: Path, draw: random.Random) -> Case:
    case = some_file(folder, draw, members=1)
    rest = draw.choice([bytes(draw.randint(1, 600)), draw.randbytes(20), b"more text\n"])
    return changed(case, path_of(case.source).read_bytes() + rest, refusable=any(rest))


# ---------------------------------------------------------------- Parquet


def some_parquet(folder: Path, draw: random.Random) -> Case:
    rows = some_rows(draw)
    columns = {"n": range(len(rows)), "text": [t for t, _ in rows], "label": [y for _, y in rows]}
    codec = draw.choice(["none", "zstd", "snappy"])
    pq.write_table(pa.table(columns), folder / "a.parquet", 4, compression=codec, write_page_checksum=True)
    return Case(str(folder / "a.parquet"), rows)


@kind
def truncated_parquet(folder: Path, draw: random.Random) -> Case:
    case = some_parquet(folder, draw)
    data = path_of(case.source).read_bytes()
    return changed(case, data[: draw.randrange(len(data))], rows=None)


@kind
def flipped_parquet(folder: Path, draw: random.Random) -> Case:
    case = some_parquet(folder, draw)
    return changed(case, flipped(path_of(case.source).read_bytes(), draw), refusable=True)


@kind
def parquet_with_a_hole(folder: Path, draw: random.Random) -> Case:
    case = some_parquet(folder, draw)
    data = path_of(case.source).read_bytes()
    start, size = draw.randrange(4, len(data) - 4), draw.randint(1, 200)
    hole = data[:start] + draw.randbytes(size) + data[start + size :]
    return changed(case, hole, refusable=True)


@kind
def parquet_of_other_types(folder: Path, draw: random.Random) -> Case:
    texts: Any = draw.choice([[1, 2], [1.5, None], [["a"], ["b"]], [{"a": "b"}, None], [True, False]])
    pq.write_table(pa.table({"text": texts, "label": ["a", "b"]}), folder / "a.parquet")
    return Case(str(folder / "a.parquet"), None)


@kind
def parquet_of_bytes_that_are_no_text(folder: Path, draw: random.Random) -> Case:
    rows = [text.encode() for text, _ in some_rows(draw)]
    at = draw.randrange(len(rows))
    rows[at] = draw.choice([b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"ok \xf0\x9f"])
    column = pa.array(rows, pa.binary())
    column = column.view(pa.string()) if draw.random() < 0.5 else column
    pq.write_table(pa.table({"text": column, "label": ["a"] * len(rows)}), folder / "a.parquet")
    return Case(str(folder / "a.parquet"), None, row=at + 1)


# ---------------------------------------------------------------- encodings


@kind
def another_encoding(folder: Path, draw: random.Random) -> Case:
    rows = [(f"déjà {i}", label) for i, (_, label) in enumerate(some_rows(draw))]
    encoding = draw.choice(["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "mac-roman", "cp500"])
    formats = [write for write in TEXT_FORMATS if write is not written.jsonl or encoding.startswith("utf")]
    source, options = draw.choice(formats)(folder, rows, Style(encoding))
    return Case(source, rows if encoding in ("utf-16", "utf-32") else None, options)  # these write a mark


@kind
def the_mark_of_another_encoding(folder: Path, draw: random.Random) -> Case:
    rows = some_rows(draw)
    written_as, read_as = draw.choice(
        [
            *(("utf-8-sig", other) for other in ("latin-1", "cp1252", "utf-16")),
            *(("utf-16", other) for other in ("utf-16-be", "latin-1", "utf-8")),
            *(("utf-32", other) for other in ("utf-16", "cp1252", "utf-8")),
        ]
    )
    source, options = draw.choice(TEXT_FORMATS)(folder, rows, Style(written_as))
    return Case(source, rows, options | {"encoding": read_as})


@kind
def a_byte_that_is_no_text(folder: Path, draw: random.Random) -> Case:
    return _one_row_spoiled(folder, draw, 2000, b"row %d \xff")


@kind
def a_nul_byte(folder: Path, draw: random.Random) -> Case:
    return _one_row_spoiled(folder, draw, 60, b"row %d\0here")


def _one_row_spoiled(folder: Path, draw: random.Random, most: int, spoiled: bytes) -> Case:
    """Up to ``most`` rows of ``row i here``, one of which is ``spoiled``, with its number, in place of that."""
    rows = [(f"row {i} here", "a") for i in range(draw.randint(3, most))]
    write = draw.choice(TEXT_FORMATS)
    source, options = write(folder, rows, Style())
    at = draw.randrange(len(rows))
    data = path_of(source).read_bytes().replace(b"row %d here" % at, spoiled % at)
    header = write in (written.csv_with_header, written.tsv)
    return changed(Case(source, None, options, row=at + 1 + header), data)


@kind
def any_bytes(folder: Path, draw: random.Random) -> Case:
    suffix = draw.choice([".txt", ".csv", ".tsv", ".jsonl", ".parquet", ".txt.gz", ".parquet.gz", ".json"])
    path = folder / f"a{suffix}"
    path.write_bytes(draw.randbytes(draw.choice([64, 1000, 200_000])))
    return Case(str(path), None, labeled=suffix != ".txt")


@kind
def the_suffix_of_another_format(folder: Path, draw: random.Random) -> Case:
    parquet, table = some_parquet(folder, draw), some_file(folder, draw, (written.csv_with_header, written.jsonl))
    name, data = draw.choice(
        [(n, path_of(parquet.source).read_bytes()) for n in ("b.csv", "b.tsv", "b.jsonl", "b.csv.gz")]
        + [(n, path_of(table.source).read_bytes()) for n in ("b.parquet", "b.tsv", "b.jsonl.gz", "b.parquet.gz")]
        + [(n, b"PK\x03\x04\x14\0\6\0\x08\0") for n in ("b.csv", "b.tsv", "b.parquet")]
    )
    (folder / name).write_bytes(data)
    return Case(str(folder / name), None)


# ---------------------------------------------------------------- CSV and TSV


@kind
def a_ragged_table(folder: Path, draw: random.Random) -> Case:
    separator, suffix = draw.choice([(",", ".csv"), ("\t", ".tsv")])
    lines = [f"text {i}{separator}a" for i in range(draw.randint(2, 3000))]
    at = draw.randrange(len(lines))
    lines[at] = draw.choice([f"{lines[at]}{separator}b", f"{lines[at]}{separator}", "only a text"])
    path = some_style(draw).write(folder / f"a{suffix}", [f"text{separator}label", *lines])
    return Case(str(path), None, row=at + 2)


@kind
def a_column_twice(folder: Path, draw: random.Random) -> Case:
    names = draw.choice(["text,text,label", "label,text,label", "text,n,n,label", "n,label,text,n"]).split(",")
    lines = [",".join({"text": f"text {i}", "label": "a", "n": "1"}[name] for name in names) for i in range(5)]
    path = some_style(draw).write(folder / "a.csv", [",".join(names), *lines])
    needed = names.count("text") == names.count("label") == 1
    return Case(str(path), [(f"text {i}", "a") for i in range(5)] if needed else None)


@kind
def a_quote_never_closed(folder: Path, draw: random.Random) -> Case:
    lines = [f"text {i},a" for i in range(draw.randint(2, 500))]
    at = draw.randrange(len(lines))
    lines[at] = '"' + lines[at]
    path = some_style(draw).write(folder / "a.csv", ["text,label", *lines])
    return Case(str(path), None, row=at + 2)


@kind
def a_quote_closed_in_another_row(folder: Path, draw: random.Random) -> Case:
    lines = [f"text {i},a" for i in range(draw.randint(3, 500))]
    first, second = sorted(draw.sample(range(len(lines)), 2))
    lines[first], lines[second] = '"' + lines[first], '"' + lines[second]
    path = some_style(draw).write(folder / "a.csv", ["text,label", *lines])
    return Case(str(path), None, row=first + 2)


@kind
def a_semicolon_table(folder: Path, draw: random.Random) -> Case:
    path = some_style(draw).write(folder / "a.csv", ["text;label", *(f"text {i};a" for i in range(4))])
    return Case(str(path), None)


@kind
def mixed_line_ends(folder: Path, draw: random.Random) -> Case:
    case = some_file(folder, draw)
    lines = path_of(case.source).read_bytes().replace(b"\r\n", b"\n").split(b"\n")
    return changed(case, b"".join(line + draw.choice([b"\n", b"\r\n"]) for line in lines if line))


@kind
def carriage_returns_alone(folder: Path, draw: random.Random) -> Case:
    case = some_file(folder, draw)
    data = path_of(case.source).read_bytes().replace(b"\r\n", b"\n")
    return changed(case, data.replace(b"\n", b"\r"), rows=None)


@kind
def nothing_but(folder: Path, draw: random.Random) -> Case:
    content = draw.choice(
        [b"", b"\n", b" \n\r\n\t\n", b"\xef\xbb\xbf", b"text,label\n", b"text\tlabel", b"\xef\xbb\xbf\n"]
    )
    suffix = draw.choice([".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
    if b"text" in content:
        suffix = ".csv" if b"," in content else ".tsv"
    path = folder / f"a{suffix}"
    path.write_bytes(content)
    return Case(str(path), None, labeled=b"text" in content)


# ---------------------------------------------------------------- JSON

OTHER_SHAPES = """
["text", "a"]
"text"
17
null
true
{}
{"label": "a"}
{"text": "x"}
{"text": 5, "label": "a"}
{"text": {"a": 1}, "label": "a"}
{"text": ["a"], "label": "a"}
{'text': 'x', 'label': 'a'}
{"text": "x", "label": "a",}
{"text": "x"
{"text": "x", "label": "a"} {"text": "y", "label": "a"}
{"text": "\ta raw tab", "label": "a"}
{"text": "\\ud83d", "label": "a"}
{"text": "x", "text": "y", "label": "a"}
{"text": "x", "label": {"a": 1}}
{"text": "x", "label": ["a", ["b"]]}
{"text": "x", "label": ["a"]}
{"text": "x", "label": null}
{"text": "x", "label": ""}
// a comment
{"text": NULL}
""".strip().split("\n")
OTHER_SHAPES += [f'{{"n": {n}, "text": "x", "label": "a"}}' for n in ("[" * 100_000 + "]" * 100_000, "9" * 5000)]


@kind
def json_of_another_shape(folder: Path, draw: random.Random) -> Case:
    lines = [json.dumps({"text": f"text {i}", "label": "a"}) for i in range(draw.randint(1, 50))]
    at = draw.randint(0, len(lines))
    lines.insert(at, draw.choice(OTHER_SHAPES))
    path = some_style(draw).write(folder / "a.jsonl", lines)
    # Where the first line says what a text is, or how labels come, the second one is what doesn't fit.
    return Case(str(path), None, row=at + 1 if at else None)


@kind
def one_json_array(folder: Path, draw: random.Random) -> Case:
    records = [{"text": text, "label": label} for text, label in some_rows(draw)]
    (folder / "a.json").write_text(json.dumps(records, indent=draw.choice([None, 0, 2])))
    return Case(str(folder / "a.json"), None, row=1)


@kind
def json_that_is_strange_but_right(folder: Path, draw: random.Random) -> Case:
    odd = ['{"text": "a\\u0000b", "label": "a", "x": NaN}', '{"label": 1.0, "text": "x", "more": [[[]]]}', " \t", "{}"]
    lines = ['{"text": "first", "label": "a"}', *draw.choices(odd[:2], k=3), '  {"text":null,"label":null}  ', odd[2]]
    path = some_style(draw).write(folder / "a.jsonl", lines)
    known = {odd[0]: ("a\0b", "a"), odd[1]: ("x", "1")}
    return Case(str(path), [("first", "a"), *(known[line] for line in lines[1:4]), ("", "a"), ("", "a")])


# ---------------------------------------------------------------- labels and lines


@kind
def a_row_without_a_label(folder: Path, draw: random.Random) -> Case:
    rows = [(f"text {i}", "a") for i in range(draw.randint(2, 2000))]
    at = draw.randrange(len(rows))
    rows[at] = (rows[at][0], draw.choice(["", " ", "\u00a0"]))
    write = draw.choice([written.csv_with_header, written.tsv, written.jsonl, written.label_text, written.parquet])
    source, options = write(folder, rows, some_style(draw))
    return Case(source, None, options, row=at + 1 + (write in (written.csv_with_header, written.tsv)))


@kind
def labels_that_look_alike(folder: Path, draw: random.Random) -> Case:
    rows = [(f"text {i}", draw.choice(["Pos", "pos", "p os", "neg"])) for i in range(9)]
    padded = [(text, draw.choice(["", " ", "  "]) + label + draw.choice(["", " "])) for text, label in rows]
    write = draw.choice([written.csv_with_header, written.tsv, written.jsonl, written.label_text, written.parquet])
    source, options = write(folder, padded, some_style(draw))
    return Case(source, rows, options)


@kind
def a_line_without_its_label(folder: Path, draw: random.Random) -> Case:
    lines = [f"a text {i}" for i in range(draw.randint(2, 200))]
    at = draw.randrange(len(lines))
    prefix, options, bad = draw.choice(
        [
            ("label_text", {"separator": " "}, "word"),
            ("label_text", {}, "a text"),
            ("fasttext", {}, "a text"),
            ("fasttext", {}, "__label__a __label__b two"),
        ]
    )
    first = {"fasttext": "__label__", "label_text": ""}[prefix]
    lines = [f"{first}{line}" if options or prefix == "fasttext" else line.replace(" ", "\t", 1) for line in lines]
    lines[at] = bad
    path = some_style(draw).write(folder / "a.train", lines)
    return Case(f"{prefix}:{path}", None, options, row=at + 1)


@kind
def a_line_of_a_million_characters(folder: Path, draw: random.Random) -> Case:
    long = draw.choice("xé🙂") * draw.choice([1_000_000, 1_000_003]) + draw.choice(["", ' "end"'])
    rows = [("short", "a"), (long, "b"), ("last", "a")]
    source, options = draw.choice((*TEXT_FORMATS, written.parquet))(folder, rows, some_style(draw, draw.choice([0, 1])))
    return Case(source, rows, options)


@kind
def a_flipped_bit_in_plain_text(folder: Path, draw: random.Random) -> Case:
    source, _ = written.txt(folder, some_rows(draw), Style())
    data = flipped(path_of(source).read_bytes(), draw)
    path_of(source).write_bytes(data)
    try:
        lines = data.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        return Case(source, None, labeled=False)
    lines = [line.removesuffix("\r") for line in lines]
    return Case(source, None if "\0" in data.decode() else [(line, "a") for line in lines], labeled=False)


# ---------------------------------------------------------------- folders


def class_folder(folder: Path, draw: random.Random) -> Case:
    rows = sorted([*some_rows(draw), ("the last but one", "a"), ("the last", "b")], key=lambda row: row[1])
    source, _ = written.class_folders(folder, rows, Style())
    return Case(source, rows)


@kind
def a_class_folder_with_other_files(folder: Path, draw: random.Random) -> Case:
    case = class_folder(folder, draw)
    root = Path(case.source)
    count = draw.randint(1, 9)
    Style().write(root / "unsup/deep/1.txt", ["no label"])
    for i in range(count):
        Style().write(root / f"unsup/{i}_0.txt", ["no label"])
    for name in ("labeledBow.feat", "urls_pos.txt", ".DS_Store", "a/x.png", "a/.hidden.txt", "a/README"):
        Style().write(root / name, ["no document"])
    noted = (f"unsup: {count + 1} files", "4 files", "urls_pos.txt")
    return Case(case.source, case.rows, noted=noted)


@kind
def a_class_folder_with_a_bad_file(folder: Path, draw: random.Random) -> Case:
    case = class_folder(folder, draw)
    bad = Path(case.source) / "a" / draw.choice(["000.txt", "z.txt", "b.txt"])
    Style().write_bytes(bad, draw.choice([b"caf\xe9", b"a\0b", b"\x1f\x8b\x08\0\0"]))
    return Case(str(case.source), None)


@kind
def a_folder_of_odd_files(folder: Path, draw: random.Random) -> Case:
    rows = some_rows(draw)
    source, _ = written.mixed_folder(folder, rows, some_style(draw))
    for name in draw.sample(["x.pdf", "b/y", "LICENSE", "b/README.md"], 3):
        Style().write(Path(source) / name, ["no row"])
    (Path(source) / "part-7.csv").write_bytes(b"")
    return Case(source, rows, noted=("3 files are not read", "1 empty files: part-7.csv"))


@kind
def a_folder_that_is_not_clear(folder: Path, draw: random.Random) -> Case:
    rows = some_rows(draw)
    root = folder / "all"
    names = draw.choice(
        [
            ["train.csv", "test.csv"],
            ["sub/dev-0.csv", "train/0.csv"],
            ["train/0.txt", "test/0.txt"],
            ["a.csv", "pos/0.txt"],
            ["a.csv", "b.txt"],
            ["a.pdf"],
        ]
    )
    for name in names:
        written.csv_with_header(root / Path(name).parent, rows, Style(), Path(name).name)
    return Case(str(root), None)


@kind
def links(folder: Path, draw: random.Random) -> Case:
    case = class_folder(folder, draw)
    root = Path(case.source)
    if draw.random() < 0.5:
        (root / "a" / "loop").symlink_to(draw.choice([root, root / "a"]))
        return Case(case.source, None, labeled=draw.random() < 0.5)
    (root / "a" / "gone.txt").symlink_to(root / "nowhere.txt")
    return Case(case.source, None, labeled=draw.random() < 0.5)
