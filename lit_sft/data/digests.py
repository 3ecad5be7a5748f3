"""A hash of what a source would be read as: equal digests, equal documents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from lit_sft.data.folders import files_below, parts_of
from lit_sft.data.hub import open_hub
from lit_sft.data.rows import RowOptions
from lit_sft.data.sources import HUB, parse_source
from lit_sft.errors import UserError


def source_digest(name: str, options: RowOptions, classes: Sequence[str] | None, split: str) -> str:
    """The hash of a file's bytes; of a folder, the names and bytes of the files read; of a hub data set, its commit.

    Raises:
        UserError: a source that isn't there, or that no reader knows.
    """
    source = parse_source(name)
    if source.kind != HUB:
        parts = parts_of(source, options, classes)
        if not source.path.is_dir():
            return _file_digest(parts.files[0].path, parts.files[0].name)
        # relative to the folder, so that another spelling of its path gives the same digest
        files = [(str(part.path.relative_to(source.path)), part.path) for part in parts.files]
        return _total(files, [note.removeprefix(source.place) for note in parts.notes])
    data = open_hub(source, split)
    if data.folder is None:
        return data.version
    files = [(str(path), data.folder / path) for path in files_below(data.folder, data.name)]
    return _total(files, [data.version])


def _total(files: list[tuple[str, Path]], words: list[str]) -> str:
    total = hashlib.blake2b()
    for line in (*words, *(f"{name} {_file_digest(path, name)}" for name, path in files)):
        total.update(line.encode("utf-8", "surrogateescape") + b"\0")
    return total.hexdigest()


def _file_digest(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise UserError(f"{name}: can't be read: {error.strerror}") from error
