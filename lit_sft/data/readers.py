"""From a file to documents: what is read, what is counted, and what is refused with the row named."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lit_sft.data.documents import Documents
from lit_sft.data.formats import csv_rows, json_rows, parquet_rows, text_rows
from lit_sft.data.rows import Row, RowOptions
from lit_sft.data.texts import TextFile
from lit_sft.errors import UserError

__all__ = ["FORMATS", "ReadReport", "Row", "iter_rows", "read_documents"]

FORMATS = {
    ".txt": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class ReadReport:
    """What reading met: the source as given, its rows (header not counted), and the blank ones left out."""

    source: str
    rows: int
    blank: int


def iter_rows(
    source: str | Path | BinaryIO,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    encoding: str = "utf-8",
    header: bool = True,
    labels: bool | None = None,
    format: str | None = None,
) -> Iterator[Row]:
    """The rows of a file or of an open binary stream, in order, none dropped; memory flat with its size.

    Formats, by suffix or by ``format``: txt (a document a line), csv (quoted fields may hold newlines), tsv
    (quote characters are literal), jsonl (an object a line), parquet (files only). A stream is txt unless
    ``format`` says otherwise. A blank row has the text "" or None. A byte-order mark is skipped.

    Args:
        text_column: by default "text" if there is one, else the only column that holds text. Ignored for txt.
        label_column: by default "label". Labels come as strings: 1 and 1.0 as "1", true as "true", missing as
            None; those of CSV and TSV as they are written. Ignored for txt.
        encoding: of everything but Parquet; given, not guessed.
        header: False - the first row of a CSV or TSV is data and columns are named "0", "1", ...
        labels: True - a label column must be there; None - it is read if there; False - it is not looked at.

    Raises:
        UserError: a missing file, a folder, an unknown suffix, format or encoding (at once); an empty source,
            a missing column, a malformed or undecodable row (as it is met; the message names file and row).
    """
    path = Path(source).expanduser() if isinstance(source, (str, Path)) else None
    name = str(source) if path is not None else _stream_name(source)
    try:
        "a".encode(encoding)  # text encodings only: looking "hex" up would succeed
    except LookupError:
        raise UserError(f"{name}: unknown encoding {encoding!r}; try utf-8, utf-16, latin-1 or cp1252") from None
    options = RowOptions(name, text_column, label_column, labels, header, encoding)
    kind = _format(path, format, name)
    if path is not None:
        _check_file(path, name)
    elif kind == "parquet":
        raise UserError(f"{name}: Parquet can't be read from a stream; give its file")
    return _rows(path if path is not None else source, kind, options)  # type: ignore[arg-type]


def _rows(source: Path | BinaryIO, kind: str, options: RowOptions) -> Iterator[Row]:
    any_row = False
    for row in _format_rows(source, kind, options):
        any_row = True
        yield row
    if not any_row:
        raise UserError(f"{options.name} is empty: it has no rows")


def _format_rows(source: Path | BinaryIO, kind: str, options: RowOptions) -> Iterator[Row]:
    if isinstance(source, Path):
        if kind == "parquet":
            yield from parquet_rows(source, options)
            return
        try:
            stream = source.open("rb")
        except OSError as error:
            raise UserError(f"{options.name}: can't be opened ({error.strerror})") from error
        with stream:
            yield from _format_rows(stream, kind, options)
    elif kind == "txt":
        yield from text_rows(source, options)
    elif kind == "jsonl":
        yield from json_rows(source, options)
    else:
        yield from csv_rows(source, options, tabs=kind == "tsv")


def _stream_name(stream: object) -> str:
    name = getattr(stream, "name", None)
    return name if isinstance(name, str) and name != "<stdin>" else "standard input"


def _format(path: Path | None, format: str | None, name: str) -> str:
    known = sorted(set(FORMATS.values()))
    if format is not None:
        if format not in known:
            raise UserError(f"{name}: unknown format {format!r}; known: {', '.join(known)}")
        return format
    if path is None:
        return "txt"
    kind = FORMATS.get(path.suffix.lower())
    if kind is None and path.is_file():
        what = f"unknown suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise UserError(f"{name}: {what}; known: {', '.join(FORMATS)}")
    return kind or "txt"  # a missing file or a folder: refused next, which says more than its suffix


def _check_file(path: Path, name: str) -> None:
    if path.is_dir():
        raise UserError(f"{name} is a folder; give a file ({', '.join(FORMATS)})")
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        raise UserError(f"{name}: no such file" + (f"; did you mean {near[0]!r}?" if near else ""))
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{name} is empty")


def read_documents(
    source: str | Path,
    *,
    labeled: bool,
    label_names: dict[str, str] | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    encoding: str = "utf-8",
    header: bool = True,
    file: TextFile | None = None,
) -> tuple[Documents, ReadReport]:
    """The documents of a file, blank texts counted and left out.

    Args:
        labeled: True - every document needs a label; False - labels are not looked at, whatever they are.
        label_names: display name of each raw label, ``{"0": "negative", "1": "positive"}``.
        text_column, label_column, encoding, header: as for :func:`iter_rows`.
        file: where the texts go; None keeps them in memory.

    Raises:
        UserError: as :func:`iter_rows`; also a row without a label, a label that ``label_names`` lacks, and a
            file whose texts are all blank.
    """
    texts: list[str] | TextFile = [] if file is None else file
    before = len(texts)
    labels: list[str] = []
    names: dict[str, str] = {}  # each label once: a million documents share a few strings
    rows = 0
    for row in iter_rows(
        source,
        text_column=text_column,
        label_column=label_column,
        encoding=encoding,
        header=header,
        labels=labeled,
    ):
        rows += 1
        if row.text is None or not row.text.strip():
            continue
        texts.append(row.text)
        if labeled:
            name = _named(row, label_names, source)
            labels.append(names.setdefault(name, name))
    count = len(texts) - before
    if not count:
        raise UserError(f"{source}: all {rows} rows are blank, there is no text")
    read = texts.view(before) if isinstance(texts, TextFile) else texts
    return Documents(read, labels if labeled else None), ReadReport(str(source), rows, rows - count)


def _named(row: Row, label_names: dict[str, str] | None, source: str | Path) -> str:
    if row.label is None:
        raise UserError(f"{source}, row {row.number}: no label")
    if label_names is None:
        return row.label
    if row.label not in label_names:
        known = ", ".join(label_names)
        raise UserError(f"{source}, row {row.number}: label {row.label!r} is not in label_names ({known})")
    return label_names[row.label]
