"""From a source to documents: what is read, what is counted, and what is refused with the row named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Unpack

from lit_sft.data.columnar import parquet_rows
from lit_sft.data.csvfiles import csv_rows, tsv_rows
from lit_sft.data.documents import Documents
from lit_sft.data.jsonfiles import json_rows
from lit_sft.data.label_fields import check_label_options
from lit_sft.data.lines import fasttext_rows, file_rows, label_text_rows, text_rows, wikitext_rows
from lit_sft.data.rows import Label, ReadOptions, Row, RowOptions
from lit_sft.data.sources import FORMATS, WITHOUT_LABELS, check_file, file_format, parse_source
from lit_sft.data.textfiles import open_bytes
from lit_sft.data.texts import TextFile
from lit_sft.errors import UserError

__all__ = ["FORMATS", "ReadReport", "Row", "iter_rows", "read_documents"]

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


@dataclass(frozen=True)
class ReadReport:
    """What reading met: the source as given, its rows (header not counted), and the blank ones left out."""

    source: str
    rows: int
    blank: int


def iter_rows(
    source: str | Path | BinaryIO,
    *,
    labels: bool | None = None,
    format: str | None = None,
    **options: Unpack[ReadOptions],
) -> Iterator[Row]:
    """The rows of a file or of an open binary stream, in order, none dropped; memory flat with its size.

    Formats, by suffix, before a colon (``csv:data.dat``) or by ``format``: txt (a document a line), csv (quoted fields
    may hold newlines), tsv (quote characters are literal), jsonl (an object a line), parquet (files only), file (a
    document), label_text (``LABEL<separator>text`` lines), fasttext (``__label__NAME text`` lines), wikitext (articles
    of ``wiki.*.tokens``). A file whose name ends in ``.gz`` is unzipped. A stream is txt unless ``format`` says
    otherwise. A blank row has the text "" or None. A byte-order mark is skipped.

    Args:
        labels: True - there must be labels; None - they are read if there; False - they are not looked at.
        text_column: by default "text" if there is one, else the only column that holds text. Ignored without columns.
        label_column: by default "label". Labels come as strings: 1 and 1.0 as "1", true as "true", missing as None;
            those of text files as they are written.
        encoding: of everything but Parquet; given, not guessed.
        header: False - the first row of a CSV or TSV is data and columns are named "0", "1", ...
        separator: what stands between label and text in label_text, a tab by default.
        label_pattern: a regular expression, searched in each label as it stands: its first group, or its whole match
            where it has none, is the label.
        label_separator: splits labels of multi-label data, which come as tuples; so do lists in JSON and Parquet.

    Raises:
        UserError: a missing file, a folder, an unknown suffix, format or encoding (at once); an empty source,
            a missing column, a malformed or undecodable row (as it is met; the message names file and row).
    """
    is_path = isinstance(source, (str, Path))
    name = str(source) if is_path else _stream_name(source)
    row_options = _checked_options(RowOptions(name, labels=labels, **options))
    if not is_path:
        return _rows(source, _stream_format(format, name), row_options)  # type: ignore[arg-type]
    parsed = parse_source(source)  # type: ignore[arg-type]
    path = parsed.path
    check_file(path, parsed.place)
    if path.is_dir():
        raise UserError(f"{parsed.place} is a folder; give a file")
    return _rows(path, file_format(parsed, format), replace(row_options, name=parsed.place))


def _checked_options(options: RowOptions) -> RowOptions:
    try:
        "a".encode(options.encoding)  # text encodings only: looking "hex" up would succeed
    except (LookupError, UnicodeError):
        known = "try utf-8, utf-16, latin-1 or cp1252"
        raise UserError(f"{options.name}: unknown encoding {options.encoding!r}; {known}") from None
    check_label_options(options.separator, options.label_pattern, options.label_separator)
    return options


def _stream_name(stream: object) -> str:
    name = getattr(stream, "name", None)
    return name if isinstance(name, str) and name != "<stdin>" else "standard input"


def _stream_format(format: str | None, name: str) -> str:
    if format == "parquet":
        raise UserError(f"{name}: Parquet can't be read from a stream; give its file")
    if format is not None and format not in FORMATS:
        raise UserError(f"{name}: unknown format {format!r}; known: {', '.join(sorted(FORMATS))}")
    return format or "txt"


def _rows(source: Path | BinaryIO, kind: str, options: RowOptions) -> Iterator[Row]:
    """Checks as much as can be known at once, then the rows one by one."""
    if options.labels and kind in WITHOUT_LABELS:
        raise UserError(
            f"{options.name}: plain text has no labels; give a file with a label column, lines of LABEL and text "
            "(label_text:FILE), or a folder for each class"
        )
    return _not_empty(source, kind, options)


def _not_empty(source: Path | BinaryIO, kind: str, options: RowOptions) -> Iterator[Row]:
    any_row = False
    for row in _format_rows(source, kind, options):
        any_row = True
        yield row
    if not any_row:
        raise UserError(f"{options.name} is empty: it has no rows")


def _format_rows(source: Path | BinaryIO, kind: str, options: RowOptions) -> Iterator[Row]:
    if not isinstance(source, Path):
        yield from STREAM_ROWS[kind](source, options)
    elif kind == "parquet":
        yield from parquet_rows(source, options)
    else:
        with open_bytes(source, options.name) as stream:
            yield from STREAM_ROWS[kind](stream, options)


def read_documents(
    source: str | Path,
    *,
    labeled: bool,
    label_names: dict[str, str] | None = None,
    file: TextFile | None = None,
    **options: Unpack[ReadOptions],
) -> tuple[Documents, ReadReport]:
    """The documents of a source, blank texts counted and left out.

    Args:
        labeled: True - every document needs a label; False - labels are not looked at, whatever they are.
        label_names: display name of each raw label, ``{"0": "negative", "1": "positive"}``.
        file: where the texts go; None keeps them in memory.
        options: as for :func:`iter_rows`.

    Raises:
        UserError: as :func:`iter_rows`; also a row without a label, a label that ``label_names`` lacks, and a
            file whose texts are all blank.
    """
    texts: list[str] | TextFile = [] if file is None else file
    before = len(texts)
    labels: list[Any] = []  # all names, or all tuples of names
    names: dict[Label, Label] = {}  # each label once: a million documents share a few strings
    rows = 0
    for row in iter_rows(source, labels=labeled, **options):
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


def _named(row: Row, label_names: dict[str, str] | None, source: str | Path) -> Label:
    if row.label is None:
        raise UserError(f"{source}, row {row.number}: no label")
    if label_names is None:
        return row.label
    parts = (row.label,) if isinstance(row.label, str) else row.label
    for part in parts:
        if part not in label_names:
            known = ", ".join(label_names)
            raise UserError(f"{source}, row {row.number}: label {part!r} is not in label_names ({known})")
    names = tuple(dict.fromkeys(label_names[part] for part in parts))
    return names[0] if isinstance(row.label, str) else names
