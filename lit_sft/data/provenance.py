"""Provenance: digests of all text that weights and tokenizer have seen, or were chosen on.

A run is transductive if its test split was part of that text.

The figures of such a run show how well it does on text that it has seen (with or without labels), not on new text. A
run is marked as transductive if at least half of the test documents have copies in the training text, or in the
validation data that choose the weights (the gate counts them); if a source given as ``test`` is also given as training
text; or if a test source was training or validation text of the run that this one starts from, or that run is
transductive itself. For this, a checkpoint carries the digests of the sources that its weights and tokenizer have seen,
and of those that its weights were chosen on; if copies were removed, also those of its test sources.

By these digests, a test also detects whether the run's sources have changed.

Not covered: a test file that an earlier run read in another format, in a folder, or as a part of another file; a
tokenizer given as a file; a checkpoint whose record of the text that it has seen is missing or false.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

NOTHING: dict[str, Any] = {"digests": [], "transductive": False}


def together(fed: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the records of several checkpoints into one."""
    parts = list(fed)
    digests = sorted({digest for part in parts for digest in part["digests"]})
    return {"digests": digests, "transductive": any(part["transductive"] for part in parts)}


def is_fed(value: Any) -> bool:
    """Whether a value of unknown origin has the form of what :meth:`Provenance.plain` returns."""
    if not isinstance(value, dict) or not isinstance(value.get("transductive"), bool):
        return False
    lists = value.get("digests"), value.get("test", [])
    return all(isinstance(digests, list) and all(isinstance(d, str) for d in digests) for digests in lists)


@dataclass(frozen=True)
class Provenance:
    """The sources of a run, and the record of what its weights have seen before.

    Attributes:
        sources: for each option that names sources, the digest of each of them.
        removed: whether copies of test documents are removed from the training text.
        before: the record of the checkpoint that the weights come from, or :data:`NOTHING`.
        only_measured: whether a model is evaluated on test data other than its run's own, and nothing is trained.
    """

    sources: Mapping[str, Mapping[str, str]]
    removed: bool
    before: Mapping[str, Any]
    only_measured: bool

    @property
    def training(self) -> dict[str, str]:
        """The training sources by their digests, without those of test sources whose documents were removed."""
        removed = set(self.sources["test"].values()) if self.removed else set()
        given = [*self.sources["labeled"].items(), *self.sources["unlabeled"].items()]  # one name may have two digests
        return {digest: source for source, digest in given if digest not in removed}

    def reasons(self) -> list[str]:
        """The reasons why the run is transductive according to its sources; empty if there are none.

        Whether the earlier run was transductive is relevant only for that run's own test data.
        """
        names = self.training
        seen = set(self.before["digests"]) - names.keys()
        test = self.sources["test"].items()
        found = [f"{s} is test and training text ({names[d]})" for s, d in test if d in names]
        found += [
            f"{s} was training or validation text of the run that the weights come from" for s, d in test if d in seen
        ]
        if self.before["transductive"] and not self.only_measured:
            found.append("the run that the weights come from is transductive")
        return found

    def is_as_before(self, split: Literal["train", "val", "test"]) -> bool:
        """Whether the sources that this split depends on (a test: what was trained and chosen on) are unchanged.

        True if the checkpoint recorded no digests. With ``remove_test_copies`` the test sources count too: other test
        data would have removed other training documents.
        """
        digests = set() if split == "train" else set(self.sources["val"].values())
        if split != "val" or not digests:
            digests.update(self.training)
        removed = set(self.before.get("test", ())) if self.removed and split != "val" else set()
        known = not removed or removed == set(self.sources["test"].values())
        return not self.before["digests"] or (known and digests <= set(self.before["digests"]))

    def plain(self, transductive: bool) -> dict[str, Any]:
        """The record for a checkpoint, as plain values; ``transductive``: whether the run is transductive."""
        chosen_on = self.sources["val"].values()  # the best checkpoint and the thresholds
        digests = {*self.training, *chosen_on, *self.before["digests"]}
        found = {"digests": sorted(digests), "transductive": transductive or self.before["transductive"]}
        return found | ({"test": sorted(self.sources["test"].values())} if self.removed else {})
