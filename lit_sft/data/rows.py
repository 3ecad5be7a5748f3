"""A row, the options it is read with, and its fields: which columns they are, decoded, as text and label."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from lit_sft.errors import UserError


class Row(NamedTuple):
    """A row of a file; ``number`` counts from 1 and includes the header, as an editor shows it.

    With quoted newlines in CSV, ``number`` counts records, not lines. Parquet rows count from 1 (no header).
    """

    number: int
    text: str | None
    label: str | None


@dataclass(frozen=True)
class RowOptions:
    """What to read, and ``name``: what an error calls the source.

    ``labels``: True - there must be a label column; None - read it if there is one; False - don't look at it.
    """

    name: str
    text_column: str | None = None
    label_column: str | None = None
    labels: bool | None = None
    header: bool = True
    encoding: str = "utf-8"

    def error(self, row: int, what: str) -> UserError:
        """The user's mistake in a row of this source, to be raised."""
        return UserError(f"{self.name}, row {row}: {what}")


def choose_columns(names: list[str], is_text: Callable[[str], bool], options: RowOptions) -> tuple[str, str | None]:
    """The names of the text and the label column. UserError lists the columns if the choice is not clear."""
    not_text = options.label_column or "label"
    label = None
    if options.labels or (options.labels is None and (options.label_column or "label" in names)):
        label = _existing(not_text, names, "label_column", options)
    text = options.text_column or ("text" if "text" in names and not_text != "text" else None)
    if text is None:
        others = [name for name in names if name != not_text]
        candidates = others if len(others) == 1 else [name for name in others if is_text(name)]
        if len(candidates) != 1:
            what = "which column is the text? Set text_column"
            raise UserError(f"{options.name}: {what}; {_listed(names)}")
        text = candidates[0]
    if text == label:
        raise UserError(f"{options.name}: column {text!r} can't be both the text and the label")
    return _existing(text, names, "text_column", options), label


def _existing(name: str, names: list[str], option: str, options: RowOptions) -> str:
    if name in names:
        if names.count(name) > 1:
            raise UserError(f"{options.name}: {names.count(name)} columns are named {name!r}")
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; set {option}"
    raise UserError(f"{options.name}: no column {name!r}; {_listed(names)}{hint}")


def _listed(names: list[str]) -> str:
    """The columns in a line. A name as long as a sentence is a first document taken for the header."""
    shown = ", ".join(name if len(name) <= 40 else name[:37] + "..." for name in names[:20])
    hint = " (no header? set header: false)" if any(len(name) > 40 for name in names) else ""
    return f"columns: {shown}{', ...' if len(names) > 20 else ''}{hint}"


def decode(raw: bytes, number: int, options: RowOptions) -> str:
    """The text of bytes in UTF-8 (readers recode other encodings before); else an error that names the row."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        what = f"bytes that are not {options.encoding}; set `encoding` or repair the file"
        raise options.error(number, what) from None


def encodable(text: str, number: int, options: RowOptions) -> str:
    """JSON can spell half a surrogate pair, which is no text: every tokenizer fails on it later."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise options.error(number, "half a surrogate pair (\\ud800 .. \\udfff) in the text") from None
    return text


def label_name(value: Any, number: int, options: RowOptions) -> str | None:
    """Labels are names: 1 and 1.0 are "1", true is "true"; empty, null and NaN are no label."""
    if isinstance(value, bytes):
        value = decode(value, number, options)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        return encodable(value, number, options).strip() or None
    raise options.error(number, f"the label is a {type(value).__name__}, not a name or a number")
