"""The contamination gate: before training, it counts the test documents that the run would see ahead of its test.

It checks all documents of ``labeled`` and ``unlabeled`` as they were read: before validation data are held out (they
choose the checkpoint), before copies are removed, and regardless of the low-shot subset (a language model reads all of
them). Validation data that are given instead of held out are checked as well, since they choose the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_sft.data.copies import Copies, CopyFinder
from lit_sft.data.documents import Documents
from lit_sft.data.labels import count_labels
from lit_sft.data.repeats import KeyTable
from lit_sft.errors import UserError

TRANSDUCTIVE_SHARE = 0.5  # of the test documents; this many in other data are no accident
SIDES = {"train": "labeled text", "unlabeled": "unlabeled text", "val": "validation data"}


@dataclass(frozen=True)
class Gate:
    """What the gate found.

    Attributes:
        train, unlabeled, val: the copies found in each of them; ``val`` is empty if it was held out.
        exactly: bool (test documents,), True if only exact copies are found (:class:`lit_sft.data.copies.CopyFinder`).
        removed: whether copies are to be removed.
    """

    train: Copies
    unlabeled: Copies
    val: Copies
    exactly: np.ndarray
    removed: bool

    @property
    def clean(self) -> np.ndarray:
        """bool (test documents,): True if training and validation data hold no copy, exact or near."""
        exact, near = self._found
        return np.ones_like(exact) if self.removed else ~(exact | near)

    @property
    def _found(self) -> tuple[np.ndarray, np.ndarray]:
        """Two bool (test documents,): those with an exact copy on any side, and those with only a near copy."""
        sides = (self.train, self.unlabeled, self.val)
        exact = np.logical_or.reduce([side.exact for side in sides])
        return exact, np.logical_or.reduce([side.near for side in sides]) & ~exact

    def passed(
        self, train: Documents, unlabeled: Documents, val: Documents, labeled: bool
    ) -> tuple[Documents, Documents, Documents]:
        """The documents that pass the gate: all of them or, if copies are to be removed, those that are not copies.

        ``labeled``: whether the labels of ``train`` are classes and not responses.

        Raises:
            UserError: all documents of a label are copies, or all training or validation documents.
        """
        if not self.removed:
            return train, unlabeled, val
        kept = _without(train, self.train.others), _without(unlabeled, self.unlabeled.others)
        if not len(kept[0]) + len(kept[1]):
            raise UserError("data.remove_test_copies: every training document is a copy of a test document")
        if len(val) and self.val.others.all():
            raise UserError("data.remove_test_copies: every validation document is a copy of a test document")
        lost = count_labels(train).keys() - count_labels(kept[0]).keys() if labeled else set()
        if names := ", ".join(map(repr, sorted(lost))):
            raise UserError(
                f"data.remove_test_copies: every document of the label {names} is a copy of a test document"
            )
        return *kept, _without(val, self.val.others)

    def report(self) -> dict[str, Any]:
        """The counts as plain values.

        They count test documents, except ``documents`` and ``removed``, which count documents of a side (``train``,
        ``unlabeled``, ``val``). No document is counted in both ``exact`` and ``near``. ``why`` lists the reasons for
        ``transductive`` that were found in the texts.
        """
        exact, near = self._found
        sides = {"training text": self.train.found | self.unlabeled.found, "validation data": self.val.found}
        why = [
            f"{int(copied.sum())} of {len(copied)} test documents stand in the {side}, word for word or nearly"
            for side, copied in sides.items()
            if not self.removed and len(copied) > 0 and copied.mean() >= TRANSDUCTIVE_SHARE
        ]
        return {
            "test_documents": len(exact),
            "clean_documents": int(self.clean.sum()),
            "exact": int(exact.sum()),
            "near": int(near.sum()),
            "compared_exactly": int(self.exactly.sum()),
            "train": self._counts(self.train),
            "unlabeled": self._counts(self.unlabeled),
            "val": self._counts(self.val),
            "transductive": bool(why),
            "why": why,
        }

    def _counts(self, copies: Copies) -> dict[str, int]:
        return {
            "documents": len(copies.others),
            "exact": int(copies.exact.sum()),
            "near": int(copies.near.sum()),
            "removed": int(copies.others.sum()) if self.removed else 0,
        }


def told(report: dict[str, Any]) -> str:
    """The counts of :meth:`Gate.report` as one line of text."""
    sides = [
        f"{report[name]['exact']:,} exactly and {report[name]['near']:,} nearly in {where}"
        for name, where in SIDES.items()
        if report[name]["documents"]
    ]
    removed = sum(report[name]["removed"] for name in SIDES)
    copied = report["exact"] + report["near"]
    end = f"{removed:,} such documents removed" if removed else "left there (see --data.remove_test_copies)"
    of = f"contamination: of {report['test_documents']:,} test documents {copied:,}"
    where = f" ({', '.join(sides)}), {end}" if copied else ""
    short = f"; {report['compared_exactly']:,} compared exactly only, too short or a form"
    return f"{of} have a copy in what is trained or chosen on{where}{short if report['compared_exactly'] else ''}"


def through_gate(
    train: Documents,
    unlabeled: Documents,
    val: Documents,
    test: Documents,
    table: KeyTable,
    *,
    remove: bool,
    labeled: bool = True,
) -> tuple[Documents, Documents, Documents, Gate]:
    """Return the labeled, unlabeled and validation documents that pass the gate, and what it found in those given.

    ``val``: empty if it has yet to be held out. The keys of all documents are added to ``table``. ``remove``: whether
    copies are removed; ``labeled``: see :meth:`Gate.passed`.

    Raises:
        UserError: see :meth:`Gate.passed`.
    """
    finder = CopyFinder(test.texts)
    found = [finder.find(documents.texts) for documents in (train, unlabeled, val)]
    gate = Gate(found[0], found[1], found[2], finder.exactly, remove)
    table.add(test.texts, finder.keys)
    for documents, copies in zip((train, unlabeled, val), found, strict=True):
        table.add(documents.texts, copies.keys)
    return *gate.passed(train, unlabeled, val, labeled), gate


def _without(documents: Documents, left_out: np.ndarray) -> Documents:
    return documents.select(np.flatnonzero(~left_out)) if left_out.any() else documents
