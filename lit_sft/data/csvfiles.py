"""The rows of CSV and TSV.

CSV is parsed by the standard library's strict parser, not by a faster one: those read a quote that is never closed, or
one closed in another row, as one long text, and rows are gone without a word. It takes 5 seconds a gigabyte.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from lit_sft.data.label_fields import label_of
from lit_sft.data.rows import PEEKED_ROWS, Row, RowOptions, checked, choose_columns
from lit_sft.data.textfiles import numbered_lines, text_lines

MAX_FIELD = 64 << 20  # characters: a quote that is never closed must not fill the memory


def csv_rows(stream: BinaryIO, options: RowOptions) -> Iterator[Row]:
    """CSV: commas, fields may be quoted and then hold commas, newlines and doubled quotes.

    An empty line is a row whose fields are all empty.
    """
    records = (fields for _, fields in csv_records(text_lines(stream, options), options))
    yield from _rows(records, 'a text with commas stands in "quotes"', options)


def tsv_rows(stream: BinaryIO, options: RowOptions) -> Iterator[Row]:
    """TSV: nothing is quoted; a quote character is a character, as in most published TSV files, and a text holds no
    tab and no newline."""
    records = (line.split("\t") if line else [] for _, line in numbered_lines(stream, options))
    yield from _rows(records, "a tab in a text?", options)


def csv_records(lines: Iterable[str], options: RowOptions) -> Iterator[tuple[int, list[str]]]:
    """The fields of each record, and the number of its last line; none for an empty line.

    Raises:
        UserError: a quote that is never closed, or one that something follows.
    """
    # The limit is the process's own and can only be made wider here.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))
    reader = csv.reader(lines, strict=True)
    number = 0
    while True:
        number += 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise options.error(number, _quoting(str(error))) from None
        yield reader.line_num, fields


def _quoting(error: str) -> str:
    """What the parser means."""
    if "unexpected end" in error:
        return "a quote that is never closed"
    if "expected after" in error:
        return 'text behind a closing quote; a quote inside a text is doubled: ""'
    if "new-line character" in error:
        return "a carriage return alone ends a line: convert it to line feeds (or set `encoding`, if it is UTF-16)"
    return (
        f"a field of more than {MAX_FIELD:,} characters (a quote that is never closed?)" if "limit" in error else error
    )


def _rows(records: Iterator[list[str]], hint: str, options: RowOptions) -> Iterator[Row]:
    """Rows from the fields of each record, the header among them."""
    first = next(records)
    if options.header:
        names = [checked(name, 1, options).strip() for name in first]
        number = 1
    else:
        names = [str(i) for i in range(len(first))]
        records, number = itertools.chain([first], records), 0
    peeked: list[list[str]] = []
    text, label = choose_columns(names, _text_columns(records, peeked, names), options)
    text_at, label_at = names.index(text), None if label is None else names.index(label)
    for fields in itertools.chain(peeked, records):
        number += 1
        if len(fields) != len(names) and not "".join(fields).strip():  # a line of blanks, or of nothing
            yield Row(number, "", None)
            continue
        if len(fields) != len(names):
            what = f"{len(fields)} columns where the first row has {len(names)} ({hint})"
            raise options.error(number, f"{what}: {' '.join(fields)[:60]!r}")
        name = None if label_at is None else label_of(checked(fields[label_at], number, options), number, options)
        yield Row(number, checked(fields[text_at], number, options), name)


def _text_columns(records: Iterator[list[str]], peeked: list[list[str]], names: Sequence[str]) -> Callable[[str], bool]:
    """Whether a column holds anything but numbers, by the first rows; only then are they taken, and go to ``peeked``.

    A stream whose columns tell their meaning is read row by row.
    """

    def is_text(name: str) -> bool:
        if not peeked:
            peeked.extend(itertools.islice(records, PEEKED_ROWS))
        at = names.index(name)
        return any(not _is_number(fields[at]) for fields in peeked if len(fields) > at)

    return is_text


def _is_number(value: str) -> bool:
    try:
        float(value or "0")
    except ValueError:
        return False
    return True
