"""A row, the options it is read with, and its columns."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from lit_sft.errors import UserError

Label = str | tuple[str, ...]
PEEKED_ROWS = 1024  # inspected to find the columns if the first row is not enough


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
    """What to read, and ``name``, by which error messages call the source.

    ``labels``: True - labels are required; None - they are read if present; False - they are ignored. With
    ``response_column``, a row's response takes the place of the label.
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
        """Make the error for a user's mistake in a row of this source; row 0 stands for the whole file."""
        where = f"{self.name}, row {row}" if row else self.name
        return UserError(f"{where}: {' '.join(what.split())}")


def choose_columns(names: list[str], is_text: Callable[[str], bool], options: RowOptions) -> tuple[str, str | None]:
    """The names of the text and the label column. UserError lists the columns if the choice is not clear."""
    kind = "label" if options.response_column is None else "response"
    named = options.response_column or options.label_column
    not_text = named or "label"
    label = None
    if options.labels or (options.labels is None and (named or "label" in names)):
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
    """The columns in one line. A name as long as a sentence suggests that a document was taken for the header."""
    shown = ", ".join(" ".join((name if len(name) <= 40 else name[:37] + "...").split()) for name in names[:20])
    hint = " (no header? set header: false)" if any(len(name) > 40 for name in names) else ""
    return f"columns: {shown}{', ...' if len(names) > 20 else ''}{hint}"


def checked(text: str, number: int, options: RowOptions) -> str:
    """Return ``text`` if it was decoded from a file without errors; else raise an error that names the row.

    A NUL character is refused too: UTF-16 read as an 8-bit encoding is full of them, and so are binary files.
    """
    try:
        text.encode("utf-8")  # fails if it contains the mark of undecodable bytes
    except UnicodeEncodeError:
        what = f"bytes that are not {options.encoding}; set `encoding` or repair the file"
        raise options.error(number, what) from None
    if "\0" in text:
        raise options.error(number, "a NUL character; is it UTF-16? Set `encoding`, else remove it")
    return text


def encodable(text: str, number: int, options: RowOptions) -> str:
    """Return ``text``, but refuse half a surrogate pair: JSON can contain one, and every tokenizer fails on it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise options.error(number, "half a surrogate pair (\\ud800 .. \\udfff) in the text") from None
    return text
