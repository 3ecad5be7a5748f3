"""The rows of one file or stream: plain text, CSV, TSV, JSON lines, Parquet.

Each format is a generator that holds one block at a time, so memory does not grow with the file. Columns are
read as raw bytes and decoded row by row: that is what lets an error name the row.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from lit_sft.data.rows import Row, RowOptions, choose_columns, decode, encodable, label_name
from lit_sft.errors import UserError

BLOCK_BYTES = 8 << 20  # of CSV text parsed at a time
MAX_CSV_COLUMNS = 4096
SLICE_ROWS = 1024  # turned into Python objects at a time
UNDECODABLE = "\udcff"  # half a surrogate pair: no valid text holds it, so decoding its row fails
codecs.register_error("lit_sft_mark", lambda error: (UNDECODABLE, getattr(error, "end", 0)))


class _Utf8Reader(io.RawIOBase):
    """A stream in any encoding as UTF-8.

    It marks what it can't decode (the row's decoder then fails), and never closes the stream below, which may
    be standard input.
    """

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream = stream
        utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
        self.decoder = None if utf8 else codecs.getincrementaldecoder(encoding)(errors="lit_sft_mark")
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            chunk = self._stream.read(1 << 16)
            if self.decoder is None:
                self._left = chunk
            else:
                self._left = self.decoder.decode(chunk, final=not chunk).encode("utf-8", "surrogatepass")
            if not chunk:
                break
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def utf8_stream(stream: BinaryIO, options: RowOptions) -> io.BufferedReader[_Utf8Reader]:
    """``stream`` as UTF-8 without a byte-order mark. Raises UserError for an empty one."""
    utf8 = io.BufferedReader(_Utf8Reader(stream, options.encoding), 1 << 16)
    head = utf8.peek(3)[:3]
    if head == codecs.BOM_UTF8:
        utf8.read(3)
    if not utf8.peek(1):
        raise UserError(f"{options.name} is empty")
    return utf8


def text_rows(stream: BinaryIO, options: RowOptions) -> Iterator[Row]:
    """A document a line: an empty line is a row, the final newline does not make one. No labels."""
    if options.labels:
        raise UserError(f"{options.name}: plain text has no labels; give CSV, TSV, JSONL or Parquet")
    for number, line in enumerate(utf8_stream(stream, options), start=1):
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        yield Row(number, decode(line, number, options), None)


def json_rows(stream: BinaryIO, options: RowOptions) -> Iterator[Row]:
    """A JSON object a line; the first one names the columns. A blank line is a row without text."""
    columns: tuple[str, str | None] | None = None
    for number, line in enumerate(utf8_stream(stream, options), start=1):
        if not line.strip():
            yield Row(number, None, None)
            continue
        record = _json_object(decode(line.strip(), number, options), number, options)
        if columns is None:
            strings = {key for key, value in record.items() if isinstance(value, str)}
            columns = choose_columns(list(record), strings.__contains__, options)
        text_column, label_column = columns
        if text_column not in record:
            raise options.error(number, f"no {text_column!r}; there: {', '.join(record) or 'nothing'}")
        text = record[text_column]
        if not (text is None or isinstance(text, str)):
            raise options.error(number, f"{text_column!r} is {json.dumps(text)[:40]}, not text")
        label = None if label_column is None else label_name(record.get(label_column), number, options)
        yield Row(number, None if text is None else encodable(text, number, options), label)


def csv_rows(stream: BinaryIO, options: RowOptions, *, tabs: bool) -> Iterator[Row]:
    """CSV: commas, fields may be quoted and then hold commas, newlines and doubled quotes.

    TSV (``tabs``): nothing is quoted; a quote character is a character, as in most published TSV files, and a
    text holds no tab and no newline. An empty line is a row whose fields are all empty, in both.
    """
    bad: list[pa.csv.InvalidRow] = []

    def refuse(row: pa.csv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    parse = pa.csv.ParseOptions(
        delimiter="\t" if tabs else ",",
        quote_char=False if tabs else '"',
        newlines_in_values=not tabs,
        ignore_empty_lines=False,
        invalid_row_handler=refuse,
    )
    # The header is read as the first row: so one pass is enough (standard input has no second), and every
    # column is bytes, where inference would turn the label "01" into 1.
    every_column = {f"f{i}": pa.binary() for i in range(MAX_CSV_COLUMNS)}
    try:
        with pa.csv.open_csv(
            utf8_stream(stream, options),
            read_options=pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, autogenerate_column_names=True),
            parse_options=parse,
            convert_options=pa.csv.ConvertOptions(column_types=every_column),
        ) as batches:
            yield from _csv_batches(batches, options)
    except pa.ArrowInvalid as error:
        if "straddling" in str(error):
            what = f"a row of more than {BLOCK_BYTES >> 20} MiB (a quote that is never closed?)"
            raise UserError(f"{options.name}: {what}") from error
        if not bad:
            raise UserError(f"{options.name}: {_first_line(error)}") from error
        row = bad[0]
        hint = "a tab in a text?" if tabs else 'a text with commas stands in "quotes"'
        what = f"{row.actual_columns} columns where the first row has {row.expected_columns} ({hint})"
        raise options.error(row.number, f"{what}: {row.text[:60]!r}") from error


def _csv_batches(batches: Any, options: RowOptions) -> Iterator[Row]:
    text_at: int | None = None
    label_at: int | None = None
    number = 0
    for batch in batches:
        if text_at is None:
            names = [str(i) for i in range(batch.num_columns)]
            if options.header:
                number = 1
                names = [decode(column[0].as_py(), 1, options).strip() for column in batch.columns]
                batch = batch.slice(1)
            is_text = _csv_text_columns(batch.slice(0, SLICE_ROWS), names)
            text, label = choose_columns(names, is_text, options)
            text_at, label_at = names.index(text), None if label is None else names.index(label)
        for start in range(0, batch.num_rows, SLICE_ROWS):
            part = batch.slice(start, SLICE_ROWS)
            texts = part.column(text_at).to_pylist()
            labels = itertools.repeat(None) if label_at is None else part.column(label_at).to_pylist()
            for raw, raw_label in zip(texts, labels, strict=False):
                number += 1
                yield Row(number, decode(raw, number, options), label_name(raw_label, number, options))


def _csv_text_columns(batch: pa.RecordBatch, names: Sequence[str]) -> Callable[[str], bool]:
    """Whether a column holds anything but numbers, by the first rows."""

    def is_text(name: str) -> bool:
        return any(not _is_number(value) for value in batch.column(names.index(name)).to_pylist())

    return is_text


def _is_number(value: bytes) -> bool:
    try:
        float(value or b"0")
    except ValueError:
        return False
    return True


def parquet_rows(path: Path, options: RowOptions) -> Iterator[Row]:
    """Parquet: its text is UTF-8 by definition, so ``encoding`` is for the other formats."""
    try:
        with pa.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            text, label = choose_columns(schema.names, lambda name: _is_string(schema.field(name).type), options)
            kind = schema.field(text).type
            if not (_is_string(kind) or pa.types.is_null(kind) or _is_bytes(kind)):
                raise UserError(f"{options.name}: column {text!r} holds {kind}, not text")
            number = 0
            columns = [text] if label is None else [text, label]
            for batch in file.iter_batches(batch_size=SLICE_ROWS, columns=columns):
                labels = itertools.repeat(None) if label is None else _values(batch.column(label))
                for raw, raw_label in zip(_values(batch.column(text)), labels, strict=False):
                    number += 1
                    decoded = None if raw is None else decode(raw, number, options)
                    yield Row(number, decoded, label_name(raw_label, number, options))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{options.name}: not a readable Parquet file ({_first_line(error)})") from error


def _is_string(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _values(column: pa.Array) -> list[Any]:
    """Python values; strings as bytes, since ``to_pylist`` would not say which row it failed to decode."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return list((column.cast(pa.large_binary()) if _is_string(column.type) else column).to_pylist())


def _json_object(line: str, number: int, options: RowOptions) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        hint = " (a JSON array? Write one object a line)" if number == 1 and line.startswith("[") else ""
        raise options.error(number, f"not JSON: {error.msg} at column {error.colno}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise options.error(number, f"not JSON we can read: {error}") from None
    if not isinstance(record, dict):
        raise options.error(number, "not a JSON object; write one object a line, with the text in it")
    return record


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
