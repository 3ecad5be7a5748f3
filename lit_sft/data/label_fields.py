"""Labels: from what stands in a file to names, one or several."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_sft.data.rows import Label, RowOptions, encodable
from lit_sft.errors import UserError


def check_label_options(separator: str | None, label_pattern: str | None, label_separator: str | None) -> None:
    """Raise a UserError for an empty separator or an invalid ``label_pattern``."""
    for option, value in (("separator", separator), ("label_separator", label_separator)):
        if value == "":
            raise UserError(f"--data.{option} must not be empty")
    try:
        re.compile(label_pattern or "")
    except re.error as error:
        raise UserError(f"--data.label_pattern {label_pattern!r} is no regular expression: {error}") from error


def label_of(value: Any, number: int, options: RowOptions) -> Label | None:
    """The label that a field holds; a tuple for a list, and for a string where ``label_separator`` splits it.

    Labels are names: the numbers 1 and 1.0 are "1", true is "true", text (all of a CSV is) stays as it is. Empty, null
    and NaN mean that there is no label; but with ``label_separator``, an empty field means that no label applies.
    """
    if options.labels is False:
        return None
    if options.response_column is not None:
        return _response(value, number, options)
    if isinstance(value, (list, tuple)):
        if options.label_separator is not None:
            raise options.error(number, "the label is a list already; leave label_separator out")
        return labels_of(_listed(value, number, options), number, options)
    name = _name(value, number, options)
    if options.label_separator is not None and (name is not None or isinstance(value, str)):
        return labels_of((name or "").split(options.label_separator), number, options)
    return None if name is None else _matched(name, number, options)


def _response(value: Any, number: int, options: RowOptions) -> str | None:
    """The response to a prompt: text, or a number as text; None if there is no response."""
    if not (value is None or isinstance(value, (str, int, float))):
        raise options.error(number, f"the response is a {type(value).__name__}, not text")
    return _name(value, number, options)


def _listed(value: Sequence[Any], number: int, options: RowOptions) -> list[str]:
    """The names in a list.

    Raises:
        UserError: a name that repeats, or a number that isn't whole: a column of 0 and 1, or shares, of all classes.
    """
    names = [name for part in value if (name := _name(part, number, options)) is not None]
    fraction = any(isinstance(part, float) and not (part.is_integer() or math.isnan(part)) for part in value)
    if fraction or len(set(names)) < len(names):
        what = f"the label is [{', '.join(names)[:60]}], but a list names the labels that apply, each once"
        raise options.error(number, f"{what}; is it one-hot? Write the names of the classes that are 1 instead")
    return names


def labels_of(parts: Iterable[str], number: int, options: RowOptions) -> tuple[str, ...]:
    """A tuple of names: stripped, the empty ones dropped, each once."""
    names = filter(None, map(str.strip, parts))
    return tuple(dict.fromkeys(_matched(name, number, options) for name in names))


def _name(value: Any, number: int, options: RowOptions) -> str | None:
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


def _matched(name: str, number: int, options: RowOptions) -> str:
    """The part of a raw label that ``label_pattern`` finds: its first group, if it has one, else its whole match."""
    if options.label_pattern is None:
        return name
    match = re.search(options.label_pattern, name)
    found = "" if match is None else (match[1] if match.re.groups else match[0]) or ""
    if not found.strip():
        raise options.error(number, f"label_pattern {options.label_pattern!r} finds nothing in the label {name[:40]!r}")
    return found.strip()


def alike_labels(counts: Mapping[str, int]) -> list[str]:
    """A note for labels that differ only in case, blanks, how their characters are composed or a number is written.

    They are not merged: ``US`` and ``us``, or ``A+`` and ``a+``, may be meant; but nobody should train on ``Pos``
    beside ``pos``, or on the "1.0" of a CSV beside the "1" of a JSONL file, without being told.
    """
    groups: dict[str, list[str]] = {}
    for name in counts:
        plain = "".join(unicodedata.normalize("NFKC", name).casefold().split())
        plain = re.sub(r"^([+-]?\d+)\.0*$", r"\1", plain)
        groups.setdefault(plain, []).append(name)
    notes = []
    for names in groups.values():
        if len(names) > 1:
            counted = " and ".join(f"{name!r} ({counts[name]})" for name in names)
            merged = ", ".join(f"{name!r}: {names[0]!r}" for name in names)
            notes.append(
                f"the labels {counted} differ only in case, blanks or a number's form and are classes of their own; "
                f"if they are one, say so with data.label_names: {{{merged}, ...}}"
            )
    return notes
