"""Provenance: digests of all text that weights and tokenizer have seen, or were chosen on.

If the test split was among it, a run is transductive.

Its figures say how well it does on text that it has seen (without labels, or with them), and not on new text. The mark
is set where half of the test documents stand in the training text, or in the validation data that choose the weights
(the gate counts them), where a source given as ``test`` is also given as training text, and where either is so for the
run that this one starts from: a checkpoint carries the digests of the sources that its weights and its tokenizer have
seen, and of those that its weights were chosen on; with copies removed also those of its test.

By these a test tells, too, whether the run's sources are what they were.

Not covered: a test file that an earlier run was fed with in another format, in a folder, or as a part of another file;
a tokenizer given as a file; a checkpoint that says nothing of what it was fed with, or the untruth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

NOTHING: dict[str, Any] = {"digests": [], "transductive": False}


def together(fed: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What several checkpoints were fed with, as that of one."""
    parts = list(fed)
    digests = sorted({digest for part in parts for digest in part["digests"]})
    return {"digests": digests, "transductive": any(part["transductive"] for part in parts)}


def is_fed(value: Any) -> bool:
    """Whether a value, which may come from anywhere, is what :meth:`Provenance.plain` returns."""
    if not isinstance(value, dict) or not isinstance(value.get("transductive"), bool):
        return False
    lists = value.get("digests"), value.get("test", [])
    return all(isinstance(digests, list) and all(isinstance(d, str) for d in digests) for digests in lists)


@dataclass(frozen=True)
class Provenance:
    """What a run is fed with.

    Attributes:
        sources: for each option that names sources, the digest of each of them.
        removed: whether documents of the test are removed from training text.
        before: what the checkpoint was fed with that the weights come from, or :data:`NOTHING`.
        only_measured: other test data than the run's own are tested, and nothing is trained.
    """

    sources: Mapping[str, Mapping[str, str]]
    removed: bool
    before: Mapping[str, Any]
    only_measured: bool

    @property
    def training(self) -> dict[str, str]:
        """Digest of each source that is trained on; not of a test source whose documents were removed."""
        removed = set(self.sources["test"].values()) if self.removed else set()
        given = {**self.sources["labeled"], **self.sources["unlabeled"]}
        return {source: digest for source, digest in given.items() if digest not in removed}

    def reasons(self) -> list[str]:
        """Why the run is transductive, by its sources; nothing where it isn't.

        That the run before was transductive says nothing of other test data than its own.
        """
        names = {digest: source for source, digest in self.training.items()}
        seen = set(self.before["digests"]) - names.keys()
        test = self.sources["test"].items()
        found = [f"{s} is test and training text ({names[d]})" for s, d in test if d in names]
        found += [
            f"{s} was training or validation text of the run that the weights come from" for s, d in test if d in seen
        ]
        if self.before["transductive"] and not self.only_measured:
            found.append("the run that the weights come from is transductive")
        return found

    def is_as_before(self, split: Literal["val", "test"]) -> bool:
        """Whether the sources that this split depends on hold what they held in the training.

        True if the checkpoint recorded no digests. With ``remove_test_copies`` the test sources count too: other test
        data would have removed other training documents.
        """
        digests = set(self.sources["val"].values())
        if split == "test" or not digests:
            digests |= set(self.training.values())
        removed = set(self.before.get("test", ())) if self.removed and split == "test" else set()
        known = not removed or removed == set(self.sources["test"].values())
        return not self.before["digests"] or (known and digests <= set(self.before["digests"]))

    def plain(self, transductive: bool) -> dict[str, Any]:
        """What a checkpoint says of it, as plain values; ``transductive``: whether the run is."""
        chosen_on = self.sources["val"].values()  # its best checkpoint, its thresholds
        digests = {*self.training.values(), *chosen_on, *self.before["digests"]}
        found = {"digests": sorted(digests), "transductive": transductive or self.before["transductive"]}
        return found | ({"test": sorted(self.sources["test"].values())} if self.removed else {})
