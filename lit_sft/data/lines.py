"""The rows of formats without columns: a document is a line (with or without a label), a file, or an article."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import BinaryIO

from lit_sft.data.csvfiles import csv_records
from lit_sft.data.label_fields import label_of, labels_of
from lit_sft.data.rows import Label, Row, RowOptions, checked
from lit_sft.data.textfiles import numbered_lines, text_lines

BLANKS = " \t\v\f"  # what fastText takes for the end of a word
FASTTEXT_LABEL = re.compile(rf"[{BLANKS}]*__label__([^{BLANKS}]+)")
ARTICLE_HEADING = re.compile(r"= (?!= ).*(?<! =) =")  # `= = Section = =` is of the next level


def text_rows(stream: BinaryIO, options: RowOptions) -> Iterator[Row]:
    """txt: a document a line. An empty line is a row, the final newline does not make one."""
    for number, line in numbered_lines(stream, options):
        yield Row(number, checked(line, number, options), None)


def label_text_rows(stream: BinaryIO, options: RowOptions) -> Iterator[Row]:
    """label_text: the label, ``separator`` (a tab by default; the line is split at the first one), the text."""
    separator = "\t" if options.separator is None else options.separator
    for number, line in numbered_lines(stream, options):
        line = checked(line, number, options)
        if not line.strip():
            yield Row(number, "", None)
            continue
        label, found, text = line.partition(separator)
        if not found:
            raise options.error(number, f"no {separator!r} between label and text; set `separator`")
        yield Row(number, text, label_of(label, number, options))


def fasttext_rows(stream: BinaryIO, options: RowOptions) -> Iterator[Row]:
    """fasttext: words ``__label__NAME`` at the start of a line, then the text.

    Several labels on a line require ``label_separator``: any value declares the data multi-label.
    """
    for number, line in numbered_lines(stream, options):
        line, start, labels = checked(line, number, options), 0, []
        while match := FASTTEXT_LABEL.match(line, start):
            labels.append(match[1])
            start = match.end()
        yield Row(number, line[start:].lstrip(BLANKS), _fasttext_label(labels, number, options))


def _fasttext_label(labels: list[str], number: int, options: RowOptions) -> Label | None:
    if options.labels is False:
        return None
    if options.label_separator is not None:
        return labels_of(labels, number, options)
    if len(labels) > 1:
        what = f"{len(labels)} labels ({', '.join(labels)[:60]}); for multi-label data set label_separator"
        raise options.error(number, what)
    return label_of(labels[0], number, options) if labels else None


def file_rows(stream: BinaryIO, options: RowOptions) -> Iterator[Row]:
    """file: the whole file, without its final newline, is one document."""
    text = "".join(text_lines(stream, options, may_be_empty=True)).removesuffix("\n").removesuffix("\r")
    yield Row(1, checked(text, 0, options), None)


def wikitext_rows(stream: BinaryIO, options: RowOptions) -> Iterator[Row]:
    """wikitext: an article is a document, its lines stripped and joined by newlines.

    An article begins with a heading of the first level between two empty lines. Lines of tables and formulas that look
    like a heading are not between empty lines.
    """
    article: list[str] = []
    start, after_blank = 1, True
    lines = itertools.chain(_wikitext_lines(stream, options), [(0, "")])
    for (number, line), (_, following) in itertools.pairwise(lines):
        line = checked(line, number, options).strip()
        if after_blank and not following.strip() and ARTICLE_HEADING.fullmatch(line):
            if any(article):
                yield Row(start, "\n".join(article).strip(), None)
            article, start = [], number
        article.append(line)
        after_blank = not line
    yield Row(start, "\n".join(article).strip(), None)


def _wikitext_lines(stream: BinaryIO, options: RowOptions) -> Iterator[tuple[int, str]]:
    """The numbered lines of a ``wiki.*.tokens`` file; those of fast.ai's mirror are unquoted.

    The mirror stores the same lines in quoted CSV fields, several in each: its first line begins with a quote.
    """
    lines = numbered_lines(stream, options)
    number, first = next(lines)
    lines = itertools.chain([(number, first)], lines)
    if not first.startswith('"'):
        yield from lines
        return
    rows = csv_records((line + "\n" for _, line in lines), options)
    for last, fields in rows:
        inner = ",".join(fields).removesuffix("\n").split("\n")
        yield from enumerate(inner, start=max(1, last - len(inner)))
