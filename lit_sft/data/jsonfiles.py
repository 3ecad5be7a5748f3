"""The rows of JSON lines."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from lit_sft.data.label_fields import label_of
from lit_sft.data.rows import PEEKED_ROWS, Row, RowOptions, checked, choose_columns, encodable
from lit_sft.data.textfiles import numbered_lines


def json_rows(stream: BinaryIO, options: RowOptions) -> Iterator[Row]:
    """jsonl: one JSON object per line; the first one names the columns. A blank line is a row without text.

    Even the first row may lack its label or response, so where these are required more rows are searched for them.
    """
    columns: tuple[str, str | None] | None = None
    records = _records(stream, options)
    wanted = options.response_column or (options.labels and (options.label_column or "label"))
    peeked = list(itertools.islice(records, PEEKED_ROWS)) if wanted else []
    for number, record in itertools.chain(peeked, records):
        if record is None:
            yield Row(number, None, None)
            continue
        if columns is None:
            strings = {key for key, value in record.items() if isinstance(value, str)}
            later = [key for _, one in peeked for key in one or () if key == wanted]
            columns = choose_columns(list(dict.fromkeys([*record, *later])), strings.__contains__, options)
        text_column, label_column = columns
        if text_column not in record:
            raise options.error(number, f"no {text_column!r}; there: {', '.join(record)[:200] or 'nothing'}")
        text = record[text_column]
        if not (text is None or isinstance(text, str)):
            raise options.error(number, f"{text_column!r} is {json.dumps(text)[:40]}, not text")
        label = None if label_column is None else label_of(record.get(label_column), number, options)
        yield Row(number, None if text is None else encodable(text, number, options), label)


def _records(stream: BinaryIO, options: RowOptions) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Each line's number and object; None of a blank one."""
    for number, line in numbered_lines(stream, options):
        line = checked(line, number, options).strip()
        yield number, _json_object(line, number, options) if line else None


def _json_object(line: str, number: int, options: RowOptions) -> dict[str, Any]:
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the object, refusing a repeated key, which would silently lose a value."""
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)[:40]!r} twice in one object")
    return record
