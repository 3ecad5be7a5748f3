"""The rows of JSON lines."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from lit_sft.data.label_fields import label_of
from lit_sft.data.rows import PEEKED_ROWS, Row, RowOptions, checked, choose_columns, encodable
from lit_sft.data.textfiles import numbered_lines

Record = dict[str, Any]


def json_rows(stream: BinaryIO, options: RowOptions) -> Iterator[Row]:
    """jsonl: one JSON object per line; the first rows name the columns. A blank line is a row without text."""
    columns: tuple[str, str | None] | None = None
    records = _records(stream, options)
    peeked = _peeked(records, options)
    for number, record in itertools.chain(peeked, records):
        if record is None:
            yield Row(number, None, None)
            continue
        columns = columns or _columns([one for _, one in peeked if one is not None], options)
        text_column, label_column = columns
        if text_column not in record:
            raise options.error(number, f"no {text_column!r}; there: {', '.join(record)[:200] or 'nothing'}")
        text = record[text_column]
        if not (text is None or isinstance(text, str)):
            raise options.error(number, f"{text_column!r} is {json.dumps(text)[:40]}, not text")
        label = None if label_column is None else label_of(record.get(label_column), number, options)
        yield Row(number, None if text is None else encodable(text, number, options), label)


def _peeked(records: Iterator[tuple[int, Record | None]], options: RowOptions) -> list[tuple[int, Record | None]]:
    """The rows to find the columns in: up to the first object, and more if that doesn't have all of them."""
    peeked = []
    for number, record in records:
        peeked.append((number, record))
        if record is not None:
            break
    needed = {options.text_column or "text"}
    if options.response_column or options.labels:
        needed.add(options.response_column or options.label_column or "label")
    if peeked and not needed <= (peeked[-1][1] or {}).keys():  # its text may be null, its label missing
        peeked += itertools.islice(records, PEEKED_ROWS)
    return peeked


def _columns(records: list[Record], options: RowOptions) -> tuple[str, str | None]:
    """Choose the columns; unasked, only one can be the text that half of the rows with any string have one in."""
    names = list(dict.fromkeys(key for record in records for key in record))
    label = options.response_column or options.label_column or "label"
    found = [{key for key, value in one.items() if isinstance(value, str) and key != label} for one in records]
    strings, rows = Counter(key for keys in found for key in keys), sum(map(bool, found))
    return choose_columns(names, lambda name: strings[name] > 0 and 2 * strings[name] >= rows, options)


def _records(stream: BinaryIO, options: RowOptions) -> Iterator[tuple[int, Record | None]]:
    """Each line's number and object; None of a blank one."""
    for number, line in numbered_lines(stream, options):
        line = checked(line, number, options).strip()
        yield number, _json_object(line, number, options) if line else None


def _json_object(line: str, number: int, options: RowOptions) -> Record:
    try:
        record = json.loads(line, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        hint = " (a JSON array? Write one object a line)" if number == 1 and line.startswith("[") else ""
        raise options.error(number, f"not JSON: {error.msg} at column {error.colno}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise options.error(number, f"not JSON we can read: {error}") from None
    if not isinstance(record, dict):
        raise options.error(number, "not a JSON object; write one object a line, with the text in it")
    return record


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    """Make the object, refusing a repeated key, which would silently lose a value."""
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)[:40]!r} twice in one object")
    return record
