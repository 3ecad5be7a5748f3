"""Texts on disk: a corpus larger than memory as a sequence of strings.

Texts are written once, one after another, to a temporary file without a name, and read back as they are needed. A list
of strings would take two to five times the text's size; here a document costs 24 bytes of memory, its content key
included, so that the text is not read again for hashing. The file is read, not mapped: the pages of a mapping count as
memory of the process. The file's space is freed however the process ends, even by SIGKILL.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from lit_sft.errors import UserError

BLOCK_BYTES = 1 << 20  # written, and read in passing, at a time
BLOCK_TEXTS = 1024


def text_key(encoded: bytes) -> bytes:
    """The 64-bit key of a text in UTF-8, as 8 bytes: equal texts, equal keys, on every machine."""
    return hashlib.blake2b(encoded, digest_size=8).digest()


def _seek_and_read(file: int, size: int, start: int) -> bytes:
    """Read as ``os.pread`` does, and leave the position at the end, where the next text is appended."""
    os.lseek(file, start, os.SEEK_SET)
    block = os.read(file, size)
    os.lseek(file, 0, os.SEEK_END)
    return block


_pread = getattr(os, "pread", _seek_and_read)  # Windows has none


class TextFile:
    """A temporary file that texts are appended to, in UTF-8; :meth:`view` reads them.

    It has no name and no header: it lives as long as this object or a view of it.

    Args:
        folder: created if it doesn't exist; the file takes its space on that folder's file system.

    Raises:
        UserError: the folder can't be written, or the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 - closed by the finalizer
        except OSError as error:
            raise self._unwritable(error) from error
        weakref.finalize(self, self._file.close)
        self._unwritten = bytearray()
        self._bounds = array("q", [0])
        self._keys = bytearray()

    def __len__(self) -> int:
        """The number of texts."""
        return len(self._bounds) - 1

    def append(self, text: str) -> None:
        """Put one more text behind the others.

        Raises:
            UserError: the disk is full.
        """
        encoded = text.encode("utf-8", "surrogatepass")
        self._unwritten += encoded
        self._bounds.append(self._bounds[-1] + len(encoded))
        self._keys += text_key(encoded)
        if len(self._unwritten) >= BLOCK_BYTES:
            self._write()

    def view(self, first: int = 0) -> Texts:
        """The texts from number ``first`` on, as they are now."""
        bounds = np.frombuffer(self._bounds, dtype=np.int64)[first:].copy()  # a copy: the array can grow on
        keys = np.frombuffer(self._keys, dtype="<u8")[first:].astype(np.uint64)
        return Texts(self, bounds[:-1], np.diff(bounds), keys)

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes from byte ``start`` on."""
        self._write()
        blocks = []
        while size and (block := _pread(self._file.fileno(), size, start)):  # Linux reads 2 GB at once, at most
            blocks.append(block)
            start, size = start + len(block), size - len(block)
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def _write(self) -> None:
        left = memoryview(bytes(self._unwritten))
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise self._unwritable(error) from error
        self._unwritten.clear()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"--data.cache_dir: {self.folder} can't be written: {error.strerror or error}")


class Texts(Sequence[str]):
    """Some texts of a :class:`TextFile`, in any order: a view that copies no text.

    Attributes:
        file: the file that this is a view of.
        keys: uint64 (documents,), the content key of each text.
        num_bytes: int64 (documents,), its length in UTF-8.
    """

    def __init__(self, file: TextFile, starts: np.ndarray, num_bytes: np.ndarray, keys: np.ndarray) -> None:
        self.file, self._starts, self.num_bytes, self.keys = file, starts, num_bytes, keys

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Texts: ...

    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return self._part(index)
        return _decode(self.file.read(int(self._starts[index]), int(self.num_bytes[index])))

    def select(self, indices: np.ndarray) -> Texts:
        """The texts at ``indices``, int (texts,), in that order."""
        return self._part(np.asarray(indices, dtype=np.int64))

    def _part(self, index: slice | np.ndarray) -> Texts:
        return Texts(self.file, self._starts[index], self.num_bytes[index], self.keys[index])

    def __iter__(self) -> Iterator[str]:
        """One after another; neighbours in the file are read together."""
        for first in range(0, len(self), BLOCK_TEXTS):
            starts = self._starts[first : first + BLOCK_TEXTS]
            ends = starts + self.num_bytes[first : first + BLOCK_TEXTS]
            yield from self._read_blocks(starts.tolist(), ends.tolist())

    def _read_blocks(self, starts: list[int], ends: list[int]) -> Iterator[str]:
        first = 0
        while first < len(starts):
            last, begin = first + 1, starts[first]
            while last < len(starts) and starts[last] >= begin and ends[last] - begin <= BLOCK_BYTES:
                last += 1
            block = memoryview(self.file.read(begin, max(ends[first:last]) - begin))
            for i in range(first, last):
                yield _decode(block[starts[i] - begin : ends[i] - begin])
            first = last

    def __eq__(self, other: object) -> bool:
        """Equal to any sequence of the same texts, as a list is to a list."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{len(self)} texts on disk, {int(self.num_bytes.sum())} bytes>"

    def followed_by(self, other: Texts) -> Texts:
        """Concatenate two views of the same file."""
        mine, theirs = ((part._starts, part.num_bytes, part.keys) for part in (self, other))
        return Texts(self.file, *(np.concatenate(pair) for pair in zip(mine, theirs, strict=True)))


def joined(one: Sequence[str], other: Sequence[str]) -> Sequence[str]:
    """Concatenate the texts of both; if one is on disk, the other is appended to its file unless it is in it."""
    file = one.file if isinstance(one, Texts) else other.file if isinstance(other, Texts) else None
    if file is None:
        return [*one, *other]
    return _in_file(one, file).followed_by(_in_file(other, file))


def selected(texts: Sequence[str], indices: np.ndarray) -> Sequence[str]:
    """The texts at ``indices``, int (texts,), in that order."""
    return texts.select(indices) if isinstance(texts, Texts) else [texts[i] for i in indices.tolist()]


def _in_file(texts: Sequence[str], file: TextFile) -> Texts:
    """The texts as a view of ``file``; they are appended to it unless they are such a view already."""
    if isinstance(texts, Texts) and texts.file is file:
        return texts
    first = len(file)
    for text in texts:
        file.append(text)
    return file.view(first)


def _decode(encoded: bytes | memoryview) -> str:
    return str(encoded, "utf-8", "surrogatepass")
