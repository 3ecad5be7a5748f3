"""What a run was fed with, and whether the test split was among it: such a run is transductive.

Its figures say how well it does on text that it has seen (without labels, or with them), and not on new text. The mark
is set where half of the test documents stand in the training text (the gate counts them), where a source given as
``test`` is also given as training text, and where either is so for the run that this one starts from: a checkpoint
carries the digests of the sources that its weights and its tokenizer have seen.

Not covered: a test file that an earlier run was fed with in another format, or as a part of another file; a tokenizer
given as a file; a checkpoint that says nothing of what it was fed with, or the untruth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NOTHING: dict[str, Any] = {"digests": [], "transductive": False}


def is_fed(value: Any) -> bool:
    """Whether a value, which may come from anywhere, is what :func:`fed_with` returns."""
    if not isinstance(value, dict) or not isinstance(value.get("transductive"), bool):
        return False
    digests = value.get("digests")
    return isinstance(digests, list) and all(isinstance(digest, str) for digest in digests)


def fed_with(training: Iterable[str], before: Mapping[str, Any], transductive: bool) -> dict[str, Any]:
    """What a checkpoint says of it, as plain values.

    Args:
        training: digests of the run's own training sources.
        before: the same of the checkpoint that it starts from or goes on with.
        transductive: whether the run is.
    """
    return {"digests": sorted({*training, *before["digests"]}), "transductive": transductive}


def reasons(
    test: Mapping[str, str], training: Mapping[str, str], before: Mapping[str, Any], only_measured: bool
) -> list[str]:
    """Why the run is transductive, by its sources; nothing where it isn't.

    Args:
        test: digest of each source of test documents.
        training: digest of each source that is trained on.
        before: what the checkpoint that it starts from was fed with.
        only_measured: other test data than the run's own: that it is transductive for those says nothing of these.
    """
    names = {digest: source for source, digest in training.items()}
    found = [f"{s} is test and training text ({names[d]})" for s, d in test.items() if d in names]
    seen = set(before["digests"]) - names.keys()
    found += [f"{s} was training text of the run that the weights come from" for s, d in test.items() if d in seen]
    if before["transductive"] and not only_measured:
        found.append("the run that the weights come from is transductive")
    return found
