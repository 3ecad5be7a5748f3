"""A row, the options it is read with, and its columns."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from lit_sft.errors import UserError

Label = str | tuple[str, ...]
PEEKED_ROWS = 1024  # by which columns are found where the first row doesn't tell


class Row(NamedTuple):
    """A row of a file; ``number`` counts from 1 and includes the header, as an editor shows it.

    With quoted newlines in CSV, ``number`` counts records, not lines; of WikiText it is the article's first line.
    Parquet rows count from 1 (no header). A ``label`` of multi-label data is a tuple, which may be empty (none
    applies); None is no label.
    """

    number: int
    text: str | None
    label: Label | None


class ReadOptions(TypedDict, total=False):
    """How rows are read, by keyword: see :func:`lit_sft.data.readers.iter_rows`."""

    text_column: str | None
    label_column: str | None
    header: bool
    encoding: str
    separator: str | None
    label_pattern: str | None
    label_separator: str | None
    response_column: str | None


@dataclass(frozen=True)
class RowOptions:
    """What to read, and ``name``: what an error calls the source.

    ``labels``: True - there must be labels; None - read them if there are any; False - don't look at them. With
    ``response_column`` a row's response stands where the label does.
    """

    name: str
    text_column: str | None = None
    label_column: str | None = None
    labels: bool | None = None
    header: bool = True
    encoding: str = "utf-8"
    separator: str | None = None
    label_pattern: str | None = None
    label_separator: str | None = None
    response_column: str | None = None

    def error(self, row: int, what: str) -> UserError:
        """The user's mistake in a row of this source, to be raised; row 0 is the file as a whole."""
        where = f"{self.name}, row {row}" if row else self.name
        return UserError(f"{where}: {' '.join(what.split())}")


def choose_columns(names: list[str], is_text: Callable[[str], bool], options: RowOptions) -> tuple[str, str | None]:
    """The names of the text and the label column. UserError lists the columns if the choice is not clear."""
    kind = "label" if options.response_column is None else "response"
    not_text = options.response_column or options.label_column or "label"
    label = None
    if options.labels or (options.labels is None and (options.label_column or "label" in names)):
        label = _existing(not_text, names, f"{kind}_column", options)
    text = options.text_column or ("text" if "text" in names and not_text != "text" else None)
    if text is None:
        others = [name for name in names if name != not_text]
        candidates = others if len(others) == 1 else [name for name in others if is_text(name)]
        if len(candidates) != 1:
            what = "which column is the text? Set text_column"
            raise UserError(f"{options.name}: {what}; {_listed(names)}")
        text = candidates[0]
    if text == label:
        raise UserError(f"{options.name}: column {text!r} can't be both the text and the {kind}")
    return _existing(text, names, "text_column", options), label


def _existing(name: str, names: list[str], option: str, options: RowOptions) -> str:
    if name in names:
        if names.count(name) > 1:
            raise UserError(f"{options.name}: {names.count(name)} columns are named {name!r}")
        return name
    one = names[0] if len(names) == 1 else ""
    if separators := [f"{mark!r}" for mark in (";", "\t", "|") if mark in one]:
        what = f"one column alone; is it separated by {' or '.join(separators)}? A CSV is by commas, a TSV by tabs"
        raise UserError(f"{options.name}: no column {name!r}, but {what}")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; set {option}"
    raise UserError(f"{options.name}: no column {name!r}; {_listed(names)}{hint}")


def _listed(names: list[str]) -> str:
    """The columns in a line. A name as long as a sentence is a first document taken for the header."""
    shown = ", ".join(" ".join((name if len(name) <= 40 else name[:37] + "...").split()) for name in names[:20])
    hint = " (no header? set header: false)" if any(len(name) > 40 for name in names) else ""
    return f"columns: {shown}{', ...' if len(names) > 20 else ''}{hint}"


def checked(text: str, number: int, options: RowOptions) -> str:
    """``text`` as it was decoded from a file, where that worked; else an error that names the row.

    A NUL character is refused too: UTF-16 read as an 8-bit encoding is full of them, and so are binary files.
    """
    try:
        text.encode("utf-8")  # the mark of what couldn't be decoded can't be encoded
    except UnicodeEncodeError:
        what = f"bytes that are not {options.encoding}; set `encoding` or repair the file"
        raise options.error(number, what) from None
    if "\0" in text:
        raise options.error(number, "a NUL character; is it UTF-16? Set `encoding`, else remove it")
    return text


def encodable(text: str, number: int, options: RowOptions) -> str:
    """JSON can spell half a surrogate pair, which is no text: every tokenizer fails on it later."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise options.error(number, "half a surrogate pair (\\ud800 .. \\udfff) in the text") from None
    return text
