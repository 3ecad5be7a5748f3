"""What to read for each split, and how: as the user writes it, and as a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from lit_sft.data import pydocs
from lit_sft.data.folders import files_below, parts_of
from lit_sft.data.hub import open_hub
from lit_sft.data.label_fields import check_label_options
from lit_sft.data.readers import row_options
from lit_sft.data.rows import ReadOptions, RowOptions
from lit_sft.data.sources import HUB, parse_source
from lit_sft.errors import UserError

PYDOCS = "pydocs"
HUB_SPLITS = {"labeled": "train", "unlabeled": "train", "val": "validation", "test": "test"}  # read by each option
Sources = str | list[str] | None
FORMAT = 6  # of what is prepared from a corpus: raise it when the same sources would give another result


@dataclass(frozen=True)
class CorpusConfig:
    """What to read and how to split it: every field influences which document is in which split."""

    labeled: list[str] = field(default_factory=list)
    unlabeled: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    text_column: str | None = None
    label_column: str | None = None
    header: bool = True
    encoding: str = "utf-8"
    separator: str | None = None
    label_pattern: str | None = None
    label_separator: str | None = None
    label_names: dict[str, str] | None = None
    val_fraction: float = 0.1
    split_seed: int = 0
    remove_test_copies: bool = False
    response_column: str | None = None
    only: Literal["val", "test"] | None = None
    names_derived: bool = False  # label_names are those of a trained model, and not the user's choice

    @classmethod
    def of(
        cls, labeled: Sources, unlabeled: Sources, val: Sources, test: Sources, label_names: Any, **options: Any
    ) -> CorpusConfig:
        """Convert options as a user writes them: one source, several, or none; label names with numbers as keys.

        Raises:
            UserError: a ``val_fraction`` that is not between 0 and 1, sources that are no names or paths, or options
                that are invalid or contradict others.
        """
        check_label_options(*(options.get(name) for name in ("separator", "label_pattern", "label_separator")))
        if options.get("response_column") is not None:
            _check_pairs(_listed("labeled", labeled), {**options, "label_names": label_names})
        if not 0 < options.get("val_fraction", cls.val_fraction) < 1:
            raise UserError(f"--data.val_fraction {options['val_fraction']} must lie between 0 and 1")
        if any(isinstance(key, bool) for key in label_names or ()):
            raise UserError("data.label_names: quote its labels: YAML takes true, false, yes, no, on, off otherwise")
        names = None if label_names is None else {str(key): str(name) for key, name in label_names.items()}
        given = {"labeled": labeled, "unlabeled": unlabeled, "val": val, "test": test}
        sources: dict[str, Any] = {option: _listed(option, value) for option, value in given.items()}
        return cls(**sources, label_names=names, **options)

    def measuring(self, split: Literal["val", "test"], label_names: list[str]) -> CorpusConfig:
        """The same config with the sources of one split only, and with the labels of a trained model."""
        names: dict[str, str] | None = None if self.pairs else {}
        if label_names:
            names = self.label_names or {name: name for name in label_names}
            if set(names.values()) == set(label_names):  # the order of the classes is the model's
                names = dict(sorted(names.items(), key=lambda item: label_names.index(item[1])))
        sources: dict[str, Any] = {"labeled": [], "unlabeled": [], "val": [], "test": []}
        sources[split] = getattr(self, split)
        derived = self.names_derived or self.label_names is None
        return replace(self, **sources, label_names=names, names_derived=derived, only=split)

    def digests(self) -> dict[str, dict[str, str]]:
        """For each option that names sources, a hash of each source's content.

        Raises:
            UserError: a source that isn't there, or that no reader knows.
        """
        return {option: {s: self._digest(s, option) for s in getattr(self, option)} for option in HUB_SPLITS}

    def fingerprint(self, digests: dict[str, dict[str, str]] | None = None) -> str:
        """A hash of the options and of every source's content: equal fingerprints, equal splits.

        Args:
            digests: the result of :meth:`digests`, if it was called before.

        Raises:
            UserError: see :meth:`digests`.
        """
        digests = self.digests() if digests is None else digests
        label_order = list(self.label_names or {})  # the order of the classes, which sort_keys hides
        options = asdict(self)
        if not self.pairs:
            del options["response_column"]  # data prepared before this option existed stay valid
        plain = json.dumps([FORMAT, options, label_order, digests], sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()[:24]

    def _digest(self, source: str, option: str) -> str:
        if source == PYDOCS:
            return pydocs.fingerprint()
        labeled = option != "unlabeled" and bool(self.label_names or self.pairs if self.only else self.labeled)
        return source_digest(
            source, row_options(source, labeled, **self.read_options), self.classes, HUB_SPLITS[option]
        )

    @property
    def pairs(self) -> bool:
        """Whether the labeled documents are prompts with their responses."""
        return self.response_column is not None

    @property
    def read_options(self) -> ReadOptions:
        """How rows are read, as keywords."""
        return cast(ReadOptions, {name: getattr(self, name) for name in ReadOptions.__annotations__})

    @property
    def classes(self) -> list[str] | None:
        """The class folders to read, if the user has named them; others are left out."""
        return None if self.label_names is None or self.names_derived else list(self.label_names)


def _check_pairs(labeled: list[str], options: dict[str, Any]) -> None:
    """Raise a UserError for options that can't be combined with prompts and responses."""
    if PYDOCS in labeled:
        raise UserError("--data.response_column needs --data.labeled FILE: pydocs has labels and no responses")
    beside = ("label_column", "label_names", "label_pattern", "label_separator")
    if given := ", ".join(f"data.{name}" for name in beside if options.get(name) is not None):
        raise UserError(f"data.response_column is for prompts with responses, which have no labels: leave out {given}")


def _listed(option: str, sources: Any) -> list[str]:
    """The names in an option that names sources; from Python they may be paths.

    Raises:
        UserError: anything else, such as documents in memory.
    """
    listed = [] if sources is None else [sources] if isinstance(sources, (str, Path)) else sources
    many = isinstance(listed, (list, tuple))
    if wrong := [one for one in listed if not isinstance(one, (str, Path))] if many else [listed]:
        kind = f"{'a list with ' if many else ''}a {type(wrong[0]).__name__}"
        what = f"sources are files, named by their paths, and this is {kind}"
        raise UserError(f"data.{option}: {what}: save it, e.g. df.to_parquet('train.parquet'), and give the path")
    if any(not str(source).strip() for source in listed):  # as of an unset variable of the shell
        raise UserError(f"data.{option}: an empty name: give a file, or leave the option out")
    return [str(source) for source in listed]


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
