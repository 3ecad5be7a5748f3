"""The rows of CSV and TSV.

CSV is parsed by the standard library's strict parser. Faster ones read a quote that is never closed, or that is closed
in a later row, as one long text, and rows are lost silently. The strict parser takes 5 seconds per gigabyte.
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
    """The fields of each record, with the number of its last line; an empty line has no fields.

    Raises:
        UserError: a quote that is never closed, or text after a closing quote.
    """
    # The limit holds for the whole process, so it is only ever raised.
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
    """Explain the parser's error message."""
    if "unexpected end" in error:
        return "a quote that is never closed"
    if "expected after" in error:
        return 'text behind a closing quote; a quote inside a text is doubled: ""'
    if "new-line character" in error:
        return "a carriage return alone ends a line: convert it to line feeds (or set `encoding`, if it is UTF-16)"
    if "limit" in error:
        return f"a field of more than {MAX_FIELD:,} characters (a quote that is never closed?)"
    return error


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
    """Make a function that tells by the first rows whether a column holds anything but numbers.

    Only when it is called does it read these rows, and put them into ``peeked``: a stream whose column names are clear
    is read row by row.
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
