"""The contamination gate: which test documents a run would see in its training text, counted before it sees any.

The counts are of all documents of ``labeled`` and ``unlabeled`` as they were read: before validation is held out (it
chooses the checkpoint), whatever low-shot subset is trained on (a language model reads all of them), and before copies
are removed. A validation file of the user's own is not training text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_sft.data.copies import Copies, CopyFinder
from lit_sft.data.documents import Documents
from lit_sft.data.labels import label_names_of
from lit_sft.data.repeats import KeyTable
from lit_sft.errors import UserError

TRANSDUCTIVE_SHARE = 0.5  # of the test documents: so many of them in the training text are no accident


@dataclass(frozen=True)
class Gate:
    """What the gate found.

    Attributes:
        train, unlabeled: the copies among these documents.
        exactly: bool (test documents,), those compared exactly only (:class:`lit_sft.data.copies.CopyFinder`).
        removed: whether copies are to be removed.
    """

    train: Copies
    unlabeled: Copies
    exactly: np.ndarray
    removed: bool

    @property
    def clean(self) -> np.ndarray:
        """bool (test documents,): no copy of it, exact or near, is in what is trained on."""
        copied = self.train.exact | self.train.near | self.unlabeled.exact | self.unlabeled.near
        return np.ones_like(copied) if self.removed else ~copied

    def passed(self, train: Documents, unlabeled: Documents) -> tuple[Documents, Documents]:
        """The documents that are trained on: all of them, or those that are no copies where these are to be removed.

        Raises:
            UserError: every document of a label is one, or every document.
        """
        if not self.removed:
            return train, unlabeled
        kept = _without(train, self.train.others), _without(unlabeled, self.unlabeled.others)
        if not len(kept[0]) + len(kept[1]):
            raise UserError("data.remove_test_copies: every training document is a copy of a test document")
        if lost := ", ".join(map(repr, label_names_of(train).keys() - label_names_of(kept[0]).keys())):
            raise UserError(f"data.remove_test_copies: every document of the label {lost} is a copy of a test document")
        return kept

    def report(self) -> dict[str, Any]:
        """The counts as plain values: of test documents, except for ``documents`` and ``removed``, of the others.

        ``exact`` and ``near`` exclude each other. ``why``: reasons of ``transductive``, as far as the texts tell.
        """
        exact = self.train.exact | self.unlabeled.exact
        near = (self.train.near | self.unlabeled.near) & ~exact
        transductive = not self.removed and len(exact) > 0 and exact.mean() >= TRANSDUCTIVE_SHARE
        why = [f"{int(exact.sum())} of {len(exact)} test documents stand in the training text"] if transductive else []
        return {
            "test_documents": len(exact),
            "clean_documents": int(self.clean.sum()),
            "exact": int(exact.sum()),
            "near": int(near.sum()),
            "compared_exactly": int(self.exactly.sum()),
            "train": self._counts(self.train),
            "unlabeled": self._counts(self.unlabeled),
            "transductive": bool(transductive),
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
    """The counts of :meth:`Gate.report` in a line."""
    sides = [
        f"{report[name]['exact']:,} exactly and {report[name]['near']:,} nearly in {where}"
        for name, where in (("train", "labeled text"), ("unlabeled", "unlabeled text"))
        if report[name]["documents"]
    ]
    removed = report["train"]["removed"] + report["unlabeled"]["removed"]
    copied = report["exact"] + report["near"]
    end = f"{removed:,} such documents removed" if removed else "left there (see --data.remove_test_copies)"
    return (
        f"contamination: of {report['test_documents']:,} test documents {copied:,} have a copy in the training text"
        + (f" ({', '.join(sides)}), {end}" if copied else "")
    )


def through_gate(
    train: Documents, unlabeled: Documents, test: Documents, remove: bool, table: KeyTable
) -> tuple[Documents, Documents, Gate]:
    """The labeled and the unlabeled documents that are trained on, and what the gate found among those given.

    The keys of what was read go to ``table``.

    Raises:
        UserError: see :meth:`Gate.passed`.
    """
    finder = CopyFinder(test.texts)
    gate = Gate(finder.find(train.texts), finder.find(unlabeled.texts), finder.exactly, remove)
    table.add(test.texts, finder.keys)
    for documents, found in ((train, gate.train), (unlabeled, gate.unlabeled)):
        table.add(documents.texts, found.keys)
    return *gate.passed(train, unlabeled), gate


def _without(documents: Documents, left_out: np.ndarray) -> Documents:
    return documents.select(np.flatnonzero(~left_out)) if left_out.any() else documents
