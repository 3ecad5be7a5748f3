"""Which reader reads which format, and what is checked before the first row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar, Unpack

from lit_sft.data.columnar import parquet_rows
from lit_sft.data.csvfiles import csv_rows, tsv_rows
from lit_sft.data.jsonfiles import json_rows
from lit_sft.data.label_fields import check_label_options
from lit_sft.data.lines import fasttext_rows, file_rows, label_text_rows, text_rows, wikitext_rows
from lit_sft.data.rows import ReadOptions, Row, RowOptions
from lit_sft.data.sources import WITHOUT_LABELS
from lit_sft.data.textfiles import open_bytes
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
T = TypeVar("T")


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


def check_labels(kind: str, options: RowOptions) -> None:
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


def format_rows(source: Path | BinaryIO, kind: str, options: RowOptions) -> Iterator[Row]:
    """The rows of a file, or of an open stream, in a format of :data:`lit_sft.data.sources.FORMATS`."""
    if not isinstance(source, Path):
        yield from STREAM_ROWS[kind](source, options)
    elif kind == "parquet":
        yield from parquet_rows(source, options)
    else:
        with open_bytes(source, options.name) as stream:
            yield from STREAM_ROWS[kind](stream, options)


def not_empty(rows: Iterator[T], name: str) -> Iterator[T]:
    """Pass the rows on; raise a UserError if there are none."""
    first = next(rows, None)
    if first is None:
        raise UserError(f"{name} is empty: it has no rows")
    yield first
    yield from rows
