"""The rows of Parquet."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet

from lit_sft.data.label_fields import label_of
from lit_sft.data.rows import Row, RowOptions, choose_columns
from lit_sft.data.sources import is_gzip
from lit_sft.data.textfiles import CHUNK_BYTES, open_bytes, read_piece
from lit_sft.errors import UserError, first_line

READ_BYTES = 1 << 20  # of a column at a time
BATCH_BYTES = 1 << 20  # in a batch of rows, at most, by the sizes that the file states
BATCH_ROWS = 1024  # turned into Python objects at a time
T = TypeVar("T")


def parquet_rows(path: Path, options: RowOptions) -> Iterator[Row]:
    """The rows of a Parquet file. Its text is UTF-8 by definition: ``encoding`` does not apply."""
    with open_bytes(path, options.name) as stream:
        if not is_gzip(path):
            yield from _parquet_rows(stream, options)
            return
        with tempfile.TemporaryFile(prefix="lit_sft-") as file:  # Parquet is read from its end
            while piece := read_piece(stream, CHUNK_BYTES, options.name):
                file.write(piece)
            file.seek(0)
            yield from _parquet_rows(file, options)


def _parquet_rows(stream: BinaryIO, options: RowOptions) -> Iterator[Row]:
    def tried(call: Callable[[], T]) -> T:
        """Turn the many kinds of exceptions that pyarrow raises for a damaged file into a UserError."""
        try:
            return call()
        except (pa.ArrowException, OSError, ValueError, ArithmeticError, MemoryError, LookupError, TypeError) as error:
            raise UserError(f"{options.name}: not a readable Parquet file ({first_line(error)[:200]})") from error

    # Buffered column by column: otherwise pyarrow holds whole row groups, and a file may be a single one.
    buffered = {"pre_buffer": False, "buffer_size": READ_BYTES, "page_checksum_verification": True}
    file = tried(lambda: pa.parquet.ParquetFile(stream, **buffered))
    text, label_column = tried(lambda: columns_in(file.schema_arrow, options))
    batches = _batches(file, [text, *filter(None, [label_column])])
    number = 0
    while (batch := tried(lambda: next(batches, None))) is not None:
        texts, labels = tried(lambda: column_values(batch, text)), tried(lambda: column_values(batch, label_column))
        for raw, value in zip(texts, labels, strict=True):
            number += 1
            label = label_of(decoded(value, number, options), number, options)
            yield Row(number, decoded(raw, number, options), label)
    if number != (expected := file.metadata.num_rows):
        raise UserError(f"{options.name}: not a readable Parquet file ({number} rows where it says {expected})")


def _batches(file: Any, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Read one row group per call: pyarrow keeps all groups that it has read until a call is finished."""
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group)
        rows = BATCH_BYTES * max(size.num_rows, 1) // max(size.total_byte_size, 1)  # fewer of long documents
        rows = min(max(rows, 1), BATCH_ROWS)
        yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=columns)


def decoded(value: Any, number: int, options: RowOptions) -> Any:
    """Decode the strings in a value from bytes; done here, so that the error for an undecodable one names the row."""
    if isinstance(value, list):
        return [decoded(part, number, options) for part in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise options.error(number, "bytes that are not utf-8; repair the file") from None


def columns_in(schema: pa.Schema, options: RowOptions) -> tuple[str, str | None]:
    """The names of the text and the label column; raise a UserError if they aren't clear, or the text is no text."""
    kinds = dict(zip(schema.names, schema.types, strict=True))  # schema.field(name) fails if two have the name
    text, label = choose_columns(schema.names, lambda name: _is_string(kinds[name]), options)
    if not (_is_string(kinds[text]) or pa.types.is_null(kinds[text]) or _is_bytes(kinds[text])):
        raise UserError(f"{options.name}: column {text!r} holds {str(kinds[text])[:60]}, not text")
    return text, label


def _is_string(kind: pa.DataType) -> bool:
    """Whether a column's type is one of Arrow's for strings."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def column_values(batch: pa.RecordBatch | pa.Table, name: str | None) -> list[Any]:
    """The Python values of a column, strings as bytes; if ``name`` is None, a None for each row."""
    if name is None:
        return [None] * int(batch.num_rows)
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode() if isinstance(column, pa.Array) else column.cast(column.type.value_type)
    if _is_string(column.type):
        column = column.cast(pa.large_binary())
    elif _is_list(column.type) and _is_string(column.type.value_type):
        column = column.cast(pa.large_list(pa.large_binary()))
    return list(column.to_pylist())
