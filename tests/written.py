"""Data sets in every format, by writers that know nothing of this package: the standard library's csv, json and gzip,
pyarrow, and plain writes. Each takes a folder, rows of (text, label) and a style, and returns the source's name and the
options to read it with."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[tuple[str, Any]]
Written = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Style:
    """How text files are written; ``members`` of gzip, 0 for none."""

    encoding: str = "utf-8"
    newline: str = "\n"
    final: bool = True
    members: int = 0

    def write(self, path: Path, lines: list[str]) -> Path:
        content = self.newline.join(lines) + self.newline * self.final
        return self.write_bytes(path, content.encode(self.encoding))

    def write_bytes(self, path: Path, data: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.members:
            path = path.with_name(path.name + ".gz")
            cut = len(data) // self.members
            parts = [data] if self.members == 1 else [data[:cut], data[cut:]]
            data = b"".join(gzip.compress(part) for part in parts)
        path.write_bytes(data)
        return path


def txt(folder: Path, rows: Rows, style: Style) -> Written:
    return str(style.write(folder / "rows.txt", [text for text, _ in rows])), {}


def csv_with_header(folder: Path, rows: Rows, style: Style, name: str = "rows.csv") -> Written:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=style.newline)
    writer.writerows([("id", "label", "text"), *((i, label, text) for i, (text, label) in enumerate(rows))])
    return str(style.write(folder / name, [buffer.getvalue().removesuffix(style.newline)])), {}


def csv_without_header(folder: Path, rows: Rows, style: Style) -> Written:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=style.newline, quoting=csv.QUOTE_ALL).writerows(rows)
    path = style.write(folder / "rows.data", [buffer.getvalue().removesuffix(style.newline)])
    return f"csv:{path}", {"header": False, "text_column": "0", "label_column": "1"}


def tsv(folder: Path, rows: Rows, style: Style) -> Written:
    return str(style.write(folder / "rows.tsv", ["label\ttext", *(f"{label}\t{text}" for text, label in rows)])), {}


def jsonl(folder: Path, rows: Rows, style: Style, name: str = "rows.jsonl") -> Written:
    escaped = not style.encoding.startswith("utf")
    lines = [json.dumps({"n": None, "text": text, "label": label}, ensure_ascii=escaped) for text, label in rows]
    return str(style.write(folder / name, lines)), {}


def label_text(folder: Path, rows: Rows, style: Style) -> Written:
    path = style.write(folder / "rows.train", [f"{label} ||| {text}" for text, label in rows])
    return f"label_text:{path}", {"separator": " ||| "}


def fasttext(folder: Path, rows: Rows, style: Style) -> Written:
    words = [
        " ".join(f"__label__{name}" for name in ([label] if isinstance(label, str) else label)) for _, label in rows
    ]
    lines = [f"{word} {text}" for word, (text, _) in zip(words, rows, strict=True)]
    return f"fasttext:{style.write(folder / 'rows.ft', lines)}", {}


def parquet(folder: Path, rows: Rows, style: Style) -> Written:
    table = pa.table({"n": range(len(rows)), "text": [t for t, _ in rows], "label": [label for _, label in rows]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=3, compression="zstd" if style.final else "none")
    return str(style.write_bytes(folder / "rows.parquet", buffer.getvalue())), {}


def class_folders(folder: Path, rows: Rows, style: Style) -> Written:
    """Read class by class: the rows must be sorted by label."""
    for number, (text, label) in enumerate(rows):
        style.write(folder / "classes" / label / f"{number:03}.txt", [text])
    return str(folder / "classes"), {}


def mixed_folder(folder: Path, rows: Rows, style: Style) -> Written:
    csv_with_header(folder / "all", rows[:2], style, "a.csv")
    if rows[2:]:
        jsonl(folder / "all/b", rows[2:], style, "rows.jsonl")
    (folder / "all/.hidden").write_text("not read")
    return str(folder / "all"), {}


def hub_folder(folder: Path, rows: Rows, style: Style) -> Written:
    """The hub's layout: labels are numbers whose names stand in the README's front matter."""
    several = not isinstance(rows[0][1], str)
    names = sorted({name for _, label in rows for name in (label if several else [label])}) or ["x"]
    feature = f"class_label: {{names: {json.dumps(dict(enumerate(names)), ensure_ascii=False)}}}"
    feature = f"{{name: label, {f'list: {{{feature}}}' if several else f'dtype: {{{feature}}}'}}}"
    (folder / "hub/data").mkdir(parents=True)
    (folder / "hub/README.md").write_text(
        f"---\ndataset_info:\n  features:\n  - {{name: text, dtype: string}}\n  - {feature}\n"
        "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/train-*}\n---\n# Rows\n",
        encoding="utf-8",
    )
    kind = pa.list_(pa.int64()) if several else pa.int64()
    for shard, part in enumerate(filter(None, (rows[:3], rows[3:]))):
        numbers = [[names.index(name) for name in y] if several else names.index(y) for _, y in part]
        table = pa.table({"text": pa.array([text for text, _ in part], pa.string()), "label": pa.array(numbers, kind)})
        pq.write_table(table, folder / f"hub/data/train-{shard:05}-of-00002.parquet")
    return f"hf:{folder / 'hub'}", {}
