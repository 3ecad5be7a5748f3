"""From a file's bytes to lines of text: gzip, encodings, byte-order marks, line ends.

A stream is decoded in pieces, with a mark in place of undecodable bytes; the row that contains the mark is refused. In
this way, the error can name the row in every encoding.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from lit_sft.data.rows import RowOptions
from lit_sft.data.sources import is_gzip
from lit_sft.errors import UserError

CHUNK_BYTES = 1 << 16
GZIP_MAGIC = b"\x1f\x8b"
UNDECODABLE = "\udcff"  # half a surrogate pair: no valid text holds it
codecs.register_error("lit_sft_mark", lambda error: (UNDECODABLE, getattr(error, "end", 0)))

# Longest first: the mark of UTF-32 begins with that of UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def open_bytes(path: Path, name: str) -> BinaryIO:
    """A file's bytes, unzipped as they are read where its name ends in ``.gz``."""
    try:
        return cast(BinaryIO, gzip.open(path)) if is_gzip(path) else path.open("rb")
    except OSError as error:
        raise UserError(f"{name}: can't be opened ({error.strerror})") from error


def read_piece(stream: BinaryIO, size: int, name: str) -> bytes:
    """Up to ``size`` bytes, as soon as there are any; none at the end. UserError for a damaged file."""
    try:
        return getattr(stream, "read1", stream.read)(size) or b""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name}: damaged or no gzip data ({str(error).rstrip('.')})") from error
    except OSError as error:
        raise UserError(f"{name}: can't be read ({error.strerror or error})") from error


class _Bytes(io.RawIOBase):
    """The bytes of a stream; it never closes the stream below, which may be standard input."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self.head = b""
        while _may_be_mark(self.head) and (piece := read_piece(stream, CHUNK_BYTES, name)):
            self.head += piece

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self.head or read_piece(self._stream, len(buffer), self._name)
        count = min(len(buffer), len(chunk))
        buffer[:count] = chunk[:count]
        self.head = chunk[count:]
        return count


def _may_be_mark(head: bytes) -> bool:
    """Whether more bytes could complete a mark; if not, nothing more is read, so a short first line comes at once."""
    marks = (GZIP_MAGIC, *(mark for mark, _ in BYTE_ORDER_MARKS))
    return any(len(head) < len(mark) and mark.startswith(head) for mark in marks)


def text_lines(stream: BinaryIO, options: RowOptions, may_be_empty: bool = False) -> Iterator[str]:
    """Lines with their ends, without a byte-order mark; UNDECODABLE replaces bytes that the encoding doesn't allow.

    The encoding is ``options.encoding``, unless a byte-order mark gives another one.

    Raises:
        UserError: an empty stream, or gzip data in a file whose name doesn't end in ``.gz``.
    """
    data = _Bytes(stream, options.name)
    if data.head.startswith(GZIP_MAGIC):
        raise UserError(f"{options.name}: gzip data; a file's name must end in .gz, a stream must be unzipped before")
    marked = (family for mark, family in BYTE_ORDER_MARKS if data.head.startswith(mark))
    encoding = next(marked, options.encoding)  # a file's own mark overrides the option for all files
    buffered = io.BufferedReader(data, CHUNK_BYTES)
    text = io.TextIOWrapper(buffered, encoding=encoding, errors="lit_sft_mark", newline="\n")
    try:
        first = text.readline().removeprefix("\ufeff")
        if not first and not may_be_empty:
            raise UserError(f"{options.name} is empty")
        yield first
        yield from text
    except UnicodeError as error:  # of the few codecs that can't mark an error
        raise UserError(f"{options.name}: can't be decoded as {encoding} ({error})") from error


def numbered_lines(stream: BinaryIO, options: RowOptions) -> Iterator[tuple[int, str]]:
    """Lines from 1 on, without their ends. A line ends in LF or CRLF; a lone carriage return is a character."""
    for number, line in enumerate(text_lines(stream, options), start=1):
        if number == 1 and line[-1] != "\n" and "\r" in line.strip("\r"):
            raise UserError(f"{options.name}: lines that end in a carriage return alone; convert them to line feeds")
        yield number, line.removesuffix("\n").removesuffix("\r")
