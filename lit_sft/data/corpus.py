"""From what the user names to documents: sources read, splits made, labels checked."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lit_sft.data import pydocs
from lit_sft.data.contamination import Gate, through_gate
from lit_sft.data.corpus_config import HUB_SPLITS, PYDOCS, CorpusConfig
from lit_sft.data.documents import Documents
from lit_sft.data.label_fields import alike_labels
from lit_sft.data.labels import count_labels
from lit_sft.data.readers import read_documents
from lit_sft.data.repeats import KeyTable, count_repeats, without_copies
from lit_sft.data.splits import hold_out
from lit_sft.data.texts import TextFile
from lit_sft.errors import NOT_ALLOWED, UserError

MANY_LABELS = 20  # a small corpus may have this many labels, even if it has few documents of each


@dataclass(frozen=True)
class Corpus:
    """The documents of every split.

    ``train``, ``val`` and ``test`` have labels, unless the corpus has none (language modelling alone). ``extra`` is
    text without labels: a language model trains on ``train`` and ``extra``. With ``pairs``, the texts are prompts and
    the labels are responses, not classes. ``gate`` reports copies of test documents in the text read for training and
    in given validation data; None if there are no test data, or nothing else was read.
    ``repeats``: see :func:`lit_sft.data.repeats.count_repeats`.
    """

    train: Documents
    val: Documents
    test: Documents
    extra: Documents
    label_names: list[str]
    notes: list[str]
    gate: Gate | None = None
    repeats: dict[str, int] = field(default_factory=dict)
    pairs: bool = False

    @property
    def multilabel(self) -> bool:
        """Whether a document may have several labels, or none, in place of exactly one."""
        return any(documents.multilabel for documents in (self.train, self.val, self.test))

    @property
    def label_index(self) -> dict[str, int]:
        """The number of each class by its name."""
        return {name: i for i, name in enumerate(self.label_names)}


def load_corpus(config: CorpusConfig, cache_dir: Path, gated: bool = True) -> Corpus:
    """Read every source and make the splits. The texts stay on disk, in a temporary file in ``cache_dir``.

    Without ``val``, a seeded part of the training documents is held out: labels keep their shares, equal texts stay
    on one side. Copies of validation documents are left out of the unlabeled text. Copies of test documents are
    counted, in ``val`` too, and with ``remove_test_copies`` left out everywhere, before validation data are held out.

    Args:
        config: what to read.
        cache_dir: where the texts go, and ``pydocs`` is kept.
        gated: False skips the gate and the search for copies, to look at labels and sizes when nothing is trained. A
            complete cache may be read-only then: the texts go to the system's folder of temporary files.

    Raises:
        UserError: a source that can't be read, a label in val or test that train doesn't have, one class only.
    """
    file = _text_file(cache_dir, gated)
    if config.only:
        return _measured_corpus(config, config.only, file)
    if not config.labeled and not config.unlabeled:
        raise UserError("no training text: give --data.labeled or --data.unlabeled a file, or 'pydocs'")
    if config.pairs and not config.labeled:
        raise UserError("data.response_column: give --data.labeled a file of prompts and responses")
    if config.labeled and not config.pairs:
        return _labeled_corpus(config, cache_dir, file, gated)
    notes: list[str] = []  # no document has a class: text for language modelling alone, or prompts with responses
    options = ("labeled", "val", "test", "unlabeled")
    train, val, test, extra = (_read(config, option, notes, file, labeled=config.pairs) for option in options)
    return _made(config, train, val, test, extra, [], notes, gated)


def _text_file(cache_dir: Path, gated: bool) -> TextFile:
    try:
        return TextFile(cache_dir)
    except UserError as error:
        if gated or getattr(error.__cause__, "errno", None) not in NOT_ALLOWED:
            raise
        return TextFile(Path(tempfile.gettempdir()))


def _labeled_corpus(config: CorpusConfig, cache_dir: Path, file: TextFile, gated: bool) -> Corpus:
    """``pydocs`` has validation and test documents of its own; sources that the user gives replace them."""
    notes: list[str] = []
    docs = None
    if PYDOCS in config.labeled:
        if len(config.labeled) > 1:
            raise UserError("data.labeled: 'pydocs' can't be mixed with other labeled sources")
        docs = pydocs.load_pydocs(cache_dir)
    train = docs.train if docs else _read(config, "labeled", notes, file)
    if config.label_names is None:
        notes += alike_labels(count_labels(train))
    names = _label_names(config, train)
    known = config.label_names or {name: name for name in names}  # in val and test, too
    val, test = (_read(config, option, notes, file, known) for option in ("val", "test"))
    if docs:
        val, test = val or docs.val, test or docs.test
    _check_kind(f"data.val {', '.join(config.val)}", val, train)
    _check_kind(f"data.test {', '.join(config.test)}", test, train)
    others = [source for source in config.unlabeled if docs is None or source != PYDOCS]
    extra = _read(replace(config, unlabeled=others), "unlabeled", notes, file)
    if docs and PYDOCS in config.unlabeled:
        extra = docs.comments + extra
    return _made(config, train, val, test, extra, names, notes, gated)


def _made(
    config: CorpusConfig,
    train: Documents,
    val: Documents,
    test: Documents,
    extra: Documents,
    names: list[str],
    notes: list[str],
    gated: bool,
) -> Corpus:
    """Make the corpus: pass the gate, hold out validation data, then leave their copies out of the unlabeled text.

    Of prompts with responses, the prompts alone decide on splits and copies.
    """
    table, gate, supervised = KeyTable(), None, bool(names) or config.pairs
    if gated and len(test):
        train, extra, val, gate = through_gate(
            train, extra, val, test, table, remove=config.remove_test_copies, labeled=not config.pairs
        )
    if not val and supervised:
        train, val = hold_out(train, config.val_fraction, config.split_seed, by_label=not config.pairs)
    elif not val:
        extra, val = hold_out(extra, config.val_fraction, config.split_seed)
    if gated:
        extra = without_copies(extra, val, notes, table)
        if not len(train) + len(extra):
            raise UserError("no text is left to train on: all of data.unlabeled stands in the validation data, too")
    if not supervised:  # the unlabeled text is what is trained on
        train, extra = extra, Documents([])
    repeats = count_repeats(train, val, test, extra, table) if gated else {}
    return Corpus(train, val, test, extra, names, notes, gate, repeats, config.pairs)


def _measured_corpus(config: CorpusConfig, split: Literal["val", "test"], file: TextFile) -> Corpus:
    notes: list[str] = []
    names = list(dict.fromkeys((config.label_names or {}).values()))
    labeled = bool(names) or config.pairs
    nothing = Documents([], [] if labeled else None)
    documents = _read(config, split, notes, file, labeled=labeled)
    val, test = (documents, nothing) if split == "val" else (nothing, documents)
    return Corpus(nothing, val, test, Documents([]), names, notes, pairs=config.pairs)


def _check_kind(name: str, documents: Documents, before: Documents) -> None:
    """Raise a UserError if only one of two sources has any number of labels per document, and the other one label."""
    if before.labels and documents.labels and before.multilabel != documents.multilabel:
        has, others = ("any number of labels", "one") if documents.multilabel else ("one label", "any number")
        raise UserError(
            f"{name}: {has} a document, but the labeled documents before have {others}: see label_separator"
        )


def _read(
    config: CorpusConfig,
    option: str,
    notes: list[str],
    file: TextFile,
    known: dict[str, str] | None = None,
    labeled: bool = True,
) -> Documents:
    """The documents of all sources given to one option, if any; what was left out is noted."""
    total = Documents([], [])
    for source in getattr(config, option):
        if source == PYDOCS:
            raise UserError(_misplaced_pydocs(config, option))
        documents, report = read_documents(
            source,
            labeled=labeled and option != "unlabeled",
            label_names=config.label_names if known is None else known,
            classes=config.classes,
            split=HUB_SPLITS[option],
            file=file,
            **config.read_options,
        )
        notes += report.notes
        if report.blank:
            notes.append(f"{source}: {report.blank} of {report.rows} texts are blank and were left out")
        _check_kind(source, documents, total)
        total = total + documents
    return total


def _misplaced_pydocs(config: CorpusConfig, option: str) -> str:
    if PYDOCS in config.labeled:
        return f"data.{option}: pydocs brings its own {option} documents; leave the option out"
    return f"data.{option}: 'pydocs' goes with data.labeled pydocs only"


def _label_names(config: CorpusConfig, train: Documents) -> list[str]:
    """The labels in their order: as ``label_names`` lists them, else sorted (numbers by value)."""
    counts = count_labels(train)
    if len(counts) < (1 if train.multilabel else 2):
        only = f"only {next(iter(counts))!r}" if counts else "none"
        needed = "a label" if train.multilabel else "two labels or more"
        raise UserError(f"{', '.join(config.labeled)}: a classifier needs {needed}, found {only}")
    if train.multilabel and len(counts) > 1 and min(counts.values()) == len(train):
        found = f"every document has all of the labels {', '.join(counts)[:60]}"
        what = "a list names the labels that apply; is it one-hot? Write the names of the classes that are 1 instead"
        raise UserError(f"{', '.join(config.labeled)}: {found}; {what}")
    if config.label_names is None and not train.multilabel and len(counts) > max(MANY_LABELS, len(train) // 2):
        found = f"{len(counts)} different labels in {len(train)} documents, such as {next(iter(counts))[:60]!r}"
        raise UserError(
            f"{', '.join(config.labeled)}: {found}: is data.label_column the right one? "
            "If it is, list them in data.label_names"
        )
    if config.label_names is not None:
        names = list(dict.fromkeys(config.label_names.values()))
        missing = [name for name in names if name not in counts]
        if missing:
            raise UserError(f"{', '.join(config.labeled)}: no document has the label(s) {missing} of data.label_names")
        return names
    numbers = all(re.fullmatch(r"-?[0-9]+", name) for name in counts)
    return sorted(counts, key=(lambda name: (int(name), name)) if numbers else None)
