"""Which files a source stands for: one, those of a folder, or those of a folder for each class.

Nothing of the user's is skipped silently: notes name the files that are not read and the classes that are left out.
Hidden files are as if they weren't there, since desktops and notebooks leave them in any folder that is looked into.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from lit_sft.data.label_fields import label_of
from lit_sft.data.rows import Label, RowOptions
from lit_sft.data.sources import SUFFIXES, Source, bare_path, check_file, file_format, format_of
from lit_sft.data.textfiles import BYTE_ORDER_MARKS
from lit_sft.errors import UserError

UNLABELED = "unsup"  # aclImdb's folder of reviews without a label
SPLITS = "(train|test|val|valid|validation|dev)"
# test-0.csv, x_test.csv, x.test.csv, x-test-00000-of-00001.parquet; not x_test_of_y.csv, which may be about one
SPLIT_NAME = re.compile(rf"^{SPLITS}(?![a-z])|(?<=[-_. ]){SPLITS}(?=$|\.|[-_]\d)", re.IGNORECASE)
ABOUT = re.compile(
    r"(readme|license|licence|copying|notice|changelog|citation|authors)(\.(txt|md|rst))?", re.IGNORECASE
)
# Hidden, or Explorer's; not the file that may say how a folder in the hub's layout is read.
HIDDEN = re.compile(r"\.(?!huggingface\.yaml$).*|thumbs\.db|desktop\.ini", re.IGNORECASE | re.DOTALL)
SHOWN = 8  # names in a note


@dataclass(frozen=True)
class Part:
    """A file to read: ``name`` is for error messages; ``label`` is that of its documents, if the folder gives it."""

    path: Path
    name: str
    kind: str
    label: Label | None = None


@dataclass(frozen=True)
class Parts:
    """The files of a source in the order of reading, and notes about the others.

    A note names the folder at its start and nowhere else: without it, a note is the same for each spelling of the path.
    """

    files: list[Part]
    notes: list[str] = field(default_factory=list)


def parts_of(source: Source, options: RowOptions, classes: Sequence[str] | None) -> Parts:
    """The files that a source stands for.

    Args:
        source: a path, a folder too.
        options: with ``labels`` True, folders of text files are classes.
        classes: labels to read of class folders; None reads all of them but ``unsup``.

    Raises:
        UserError: the source is missing or has no readable file, or the contents of a folder are ambiguous.
    """
    path = source.path
    check_file(path, source.place)
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{source.place}: is no file but a pipe or a device, and data are read more than once")
        return Parts([Part(path, source.place, file_format(source))])
    if source.kind not in (None, "file", *SUFFIXES.values()):
        raise UserError(f"{source.name}: {source.place} is a folder; give its files, a list of them if need be")
    found = list(files_below(path, source.place))
    if options.labels and options.response_column is None and (by_class := _class_folders(found, source)):
        return _class_parts(source, found, by_class, options, classes)
    return _plain_parts(source, found)


def files_below(folder: Path, name: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[PurePath]:
    """The paths of the files below a folder that aren't hidden, relative to it, sorted by parts; links are followed."""
    try:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in above:
            raise UserError(f"{name}: a link that leads back to a folder above it; remove it")
        entries = [entry for entry in os.scandir(folder) if not HIDDEN.fullmatch(entry.name)]
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.is_dir():
                if not entry.is_file() and entry.is_symlink():
                    raise UserError(f"{name}/{entry.name}: a link to a file that is not there")
                yield PurePath(entry.name)
                continue
            below = (*above, (here.st_dev, here.st_ino))
            for path in files_below(folder / entry.name, f"{name}/{entry.name}", below):
                yield PurePath(entry.name, path)
    except OSError as error:
        raise UserError(f"{name}: can't be read ({error.strerror})") from error


def _is_about(path: PurePath) -> bool:
    """Whether a file describes the data and is not part of them, such as a README."""
    return ABOUT.fullmatch(path.name) is not None


def _is_document(path: PurePath) -> bool:
    """Whether a file may be a document: text, or without a suffix, as in 20 Newsgroups."""
    return not _is_about(path) and bare_path(path).suffix.lower() in (".txt", "")


def _class_folders(found: list[PurePath], source: Source) -> dict[str, list[PurePath]]:
    """The documents below each subfolder; empty if the subfolders are not classes."""
    by_class: dict[str, list[PurePath]] = {}
    if source.kind in (None, "file"):
        for path in found:
            if len(path.parts) > 1 and _is_document(path):
                by_class.setdefault(path.parts[0], []).append(path)
    if not by_class:
        return {}
    tables = [path for path in found if format_of(path) not in (None, "txt") and not _is_about(path)]
    if tables and source.kind is None:
        if not any(format_of(path) for paths in by_class.values() for path in paths):
            return {}
        raise UserError(
            f"{source.place}: holds both folders of text files ({_names(by_class)}) and {_names(tables)}: "
            f"give the files, or file:{source.place} for a class in each folder"
        )
    if all(SPLIT_NAME.fullmatch(name) for name in by_class):
        first = max(by_class, key=lambda name: name.lower() == "train")
        raise UserError(f"{source.place}: {_names(by_class)} are splits, not classes; give {source.place}/{first}")
    return by_class


def _class_parts(
    source: Source,
    found: list[PurePath],
    by_class: dict[str, list[PurePath]],
    options: RowOptions,
    classes: Sequence[str] | None,
) -> Parts:
    files: list[Part] = []
    notes: list[str] = []
    for name, paths in by_class.items():
        folder = f"{source.place}/{name}"
        label = label_of(name, 0, replace(options, name=folder))
        if name == UNLABELED if classes is None else isinstance(label, str) and label not in classes:
            why = "data.label_names lacks it" if classes is not None else "documents without a label"
            notes.append(f"{folder}: {len(paths)} files are left out ({why})")
            continue
        files += [Part(source.path / path, f"{source.place}/{path}", "file", label) for path in paths]
    if not files:
        raise UserError(f"{source.place}: none of the folders {_names(by_class)} is a class of data.label_names")
    notes += _unread(source, set(found).difference(*by_class.values()))
    return Parts(files, notes)


def _plain_parts(source: Source, found: list[PurePath]) -> Parts:
    """All files of a known suffix; with ``FORMAT:`` before the folder, only those of that format."""
    wanted = [path for path in found if not _is_about(path)]
    beside: list[PurePath] = []
    if source.kind == "file":
        wanted = [path for path in wanted if _is_document(path)]
        beside = [path for path in wanted if len(path.parts) == 1]
        _check_not_splits([path.parent for path in wanted], source)  # a document may be called test_1.txt
    else:
        wanted = [p for p in wanted if (kind := format_of(p)) is not None and source.kind in (None, kind)]
        _check_not_splits(wanted, source)
    notes = _unread(source, set(found) - set(wanted))
    if 0 < len(beside) < len(wanted):
        notes.append(f"{source.place}: {len(beside)} files beside the subfolders are read too: {_names(beside)}")
    if source.kind != "file" and (empty := [path for path in wanted if _is_empty(source.path / path)]):
        notes.append(f"{source.place}: {len(empty)} empty files: {_names(empty)}")
        wanted = sorted(set(wanted) - set(empty))
    if not wanted:
        known = f"known: {', '.join(SUFFIXES)}, and .gz behind them"
        raise UserError(f"{source.place}: no file in it that can be read; {known}")
    kinds = [source.kind or format_of(path) or "" for path in wanted]
    if source.kind is None and (lines := kinds.count("txt")):
        how = "a document a line; with file: before the folder each is a document"
        notes.append(f"{source.place}: {lines} text files are read as {how}")
    named = zip(wanted, kinds, strict=True)
    return Parts([Part(source.path / path, f"{source.place}/{path}", kind) for path, kind in named], notes)


def _is_empty(path: Path) -> bool:
    """Whether a file holds nothing, or a byte-order mark alone."""
    size = path.stat().st_size
    return not size or (size <= 4 and path.read_bytes() in [mark for mark, _ in BYTE_ORDER_MARKS])


def _check_not_splits(paths: list[PurePath], source: Source) -> None:
    """Raise a UserError if a folder holds several splits: test documents would be trained on."""
    found = ((SPLIT_NAME.search(part), path) for path in paths for part in path.parts)
    splits = {(match[1] or match[2]).lower(): str(path) for match, path in found if match}
    if len(splits) > 1:
        shown = _names(list(splits.values()))
        if source.kind == "file":
            how = f"a folder of one split, or all by name, as in [file:{source.place}/A, file:{source.place}/B]"
        else:
            how = f"the files, or hf:{source.place} for one split"
        raise UserError(f"{source.place}: holds several splits ({shown}); give {how}")


def _unread(source: Source, paths: set[PurePath]) -> list[str]:
    if not paths:
        return []
    return [f"{source.place}: {len(paths)} files are not read: {_names(sorted(paths))}"]


def _names(names: Collection[object]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")
