"""What a source's name means: a file, a file in a format that its suffix doesn't tell, a data set of the hub."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from lit_sft.errors import UserError, nearest

SUFFIXES = {
    ".txt": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
# These formats have no suffix of their own.
PREFIXED = ("file", "label_text", "fasttext", "wikitext")
FORMATS = (*dict.fromkeys(SUFFIXES.values()), *PREFIXED)
WITHOUT_LABELS = ("txt", "wikitext", "file")
HUB = "hf"
MANY_WORDS = 8  # more in a name without a known suffix: probably a text
P = TypeVar("P", bound=PurePath)


@dataclass(frozen=True)
class Source:
    """A source's name, taken apart: ``kind`` is a format, ``hf``, or None where the suffix tells it."""

    name: str
    kind: str | None
    place: str

    @property
    def path(self) -> Path:
        """The file or folder."""
        return expanded(self.place)


def parse_source(source: str | Path) -> Source:
    """Parse ``PATH``, ``FORMAT:PATH`` or ``hf:NAME``; the name of an existing file is a path even with colons."""
    name = str(source)
    prefix, colon, place = name.partition(":")
    if isinstance(source, Path) or not colon or _exists(name) or prefix not in (*FORMATS, HUB):
        return Source(name, None, name)
    if not place:
        raise UserError(
            f"{name}: nothing stands behind the colon; write {prefix}:{'NAME' if prefix == HUB else 'PATH'}"
        )
    return Source(name, prefix, place)


def _exists(name: str) -> bool:
    try:
        return expanded(name).exists()
    except (OSError, ValueError):  # the name is too long, or has a NUL
        return False


def expanded(path: str | Path) -> Path:
    """Expand ``~`` or ``~NAME`` to the home folder; the path is returned unchanged if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_gzip(path: PurePath) -> bool:
    """Whether a file's name says that it is gzipped."""
    return path.suffix.lower() == ".gz"


def bare_path(path: P) -> P:
    """The name without ``.gz``."""
    return path.with_suffix("") if is_gzip(path) else path


def format_of(path: PurePath) -> str | None:
    """The format that a file's suffix tells, below ``.gz`` too."""
    return SUFFIXES.get(bare_path(path).suffix.lower())


def file_format(source: Source, format: str | None = None) -> str:
    """The format of a single file.

    Raises:
        UserError: an unknown format, two formats that differ, or neither a format nor a known suffix.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"{source.name}: unknown format {format!r}; known: {', '.join(sorted(FORMATS))}")
    if format is not None and source.kind not in (None, format):
        raise UserError(f"{source.name}: is {source.kind} by its name and {format} by option; leave one out")
    kind = format or source.kind or format_of(source.path)
    if kind is None:
        suffix = bare_path(source.path).suffix
        what = f"unknown suffix {suffix!r}" if suffix else "no suffix"
        known = f"known: {', '.join(SUFFIXES)}, and .gz behind them"
        raise UserError(
            f"{source.name}: {what}; {known}; else write FORMAT:{source.name}, a FORMAT of {', '.join(FORMATS)}"
        )
    return kind


def check_file(path: Path, name: str) -> None:
    """Raise a UserError if the file or folder does not exist, or the file is empty."""
    words = name.split()
    if len(words) > MANY_WORDS and format_of(path) is None and not _exists(str(path)):
        raise UserError(f"{' '.join(words[:MANY_WORDS])[:80]} …: no such file; a source is a file, not a text: save it")
    try:
        if not path.exists():
            raise UserError(f"{name}: no such file{_near(path, name)}")
        if path.is_file() and path.stat().st_size == 0:
            raise UserError(f"{name} is empty")
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: no such file ({what})") from error


def _near(path: Path, name: str) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    prefix, colon, _ = name.partition(":")
    hint = nearest(prefix, (*FORMATS, HUB)).strip()
    return f" (formats before a colon: {', '.join((*FORMATS, HUB))}{hint and f'; {hint}'})" if colon else ""
