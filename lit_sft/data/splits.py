"""Splits by hash: which side a document is on depends on the document and the seed, not on its neighbours.

A split therefore stays the same when data are added or reordered, and on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_sft.data.documents import Documents, Labels, bytes_of, content_keys
from lit_sft.data.labels import names_of
from lit_sft.data.texts import selected
from lit_sft.errors import UserError

SAMPLE_SEED = -1  # not the seed of any split, so that samples are unrelated to splits
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
    generators", with Stafford's constants "Mix13"): a bijection of uint64, shape kept.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def seeded_hash(keys: np.ndarray, seed: int) -> np.ndarray:
    """A hash of each 64-bit key under ``seed``: uint64, the shape of ``keys``, the same on every machine.

    Integer arithmetic modulo 2**64 only. For one seed it is a bijection, so different keys never tie.
    """
    start = np.full(1, ((seed + 1) * _GOLDEN) & _MASK, dtype=np.uint64)  # an array wraps around without a warning
    return _mix(_mix(np.asarray(keys, dtype=np.uint64)) ^ _mix(start))


def hold_out(documents: Documents, fraction: float, seed: int, by_label: bool = True) -> tuple[Documents, Documents]:
    """(the rest, the held-out part): about ``fraction`` of the sources held out, both parts in reading order.

    All documents with the same text form a source, which stays together. A source is held out if its seeded hash is
    below the fraction, so it keeps its side as data grow. A few sources are then moved so that every label has a
    document in the rest, and one in the held-out part if it has two sources that allow it (a label with a single source
    stays in the rest: a model can't be tested on a class it never saw). Without labels, or if ``by_label`` is False,
    both parts get at least one source.

    Raises:
        UserError: the sources are too few to hold one out.
    """
    if not len(documents):
        raise UserError("there are no documents to hold some out of")
    keys, sources = np.unique(content_keys(documents.texts), return_inverse=True)
    hashes = seeded_hash(keys, seed)
    held = hashes < np.uint64(min(int(fraction * 2.0**64), _MASK))
    present = _label_table(documents.labels if by_label else None, sources, len(keys))
    _repair(held, present, np.argsort(hashes, kind="stable"))
    if not held.any():
        raise UserError(
            f"{len(documents)} documents with {len(keys)} different texts are too few to hold some out: "
            "a label needs two texts; give validation data of their own"
        )
    inside = held[sources]
    return documents.select(np.flatnonzero(~inside)), documents.select(np.flatnonzero(inside))


def sample(texts: Sequence[str], num_bytes: int) -> Sequence[str]:
    """The texts with the lowest hashes, in their order, as many as reach ``num_bytes``; all texts if they have less."""
    lengths = bytes_of(texts)
    if lengths.sum() <= num_bytes:
        return texts
    order = np.argsort(seeded_hash(content_keys(texts), SAMPLE_SEED), kind="stable")
    last = int(np.searchsorted(np.cumsum(lengths[order]), num_bytes))
    return selected(texts, np.sort(order[: last + 1]))


def _label_table(labels: Labels | None, sources: np.ndarray, num_sources: int) -> np.ndarray:
    """bool (labels, sources): whether the source has a document of the label; without labels, one row of True."""
    if labels is None:
        return np.ones((1, num_sources), dtype=bool)
    each = [names_of(label) for label in labels]
    names, numbers = np.unique([name for names in each for name in names], return_inverse=True)
    present = np.zeros((len(names), num_sources), dtype=bool)
    present[numbers, np.repeat(sources, [len(names) for names in each])] = True
    return present


def _repair(held: np.ndarray, present: np.ndarray, order: np.ndarray) -> None:
    """Move sources, in place, so that every label is on both sides if possible.

    Args:
        held: bool (sources,), changed in place.
        present: bool (labels, sources).
        order: the sources from the lowest hash to the highest; those nearest to the threshold are moved.
    """
    for label in np.flatnonzero(~(present & ~held).any(axis=1)):
        if (present[label] & ~held).any():  # a source moved for an earlier label has it
            continue
        mine = order[::-1][present[label, order[::-1]]]
        # preferably a source whose other labels remain in the held-out part; but the rest has priority
        held[next((s for s in mine if _all_remain(present, held, s)), mine[0])] = False
    for label in np.flatnonzero(~(present & held).any(axis=1)):
        if (present[label] & held).any():
            continue
        spare = next((s for s in order[present[label, order]] if _all_remain(present, ~held, s)), None)
        if spare is not None:
            held[spare] = True


def _all_remain(present: np.ndarray, side: np.ndarray, source: int) -> bool:
    """Whether ``side``, bool (sources,), still has a document of every label of ``source`` without that source."""
    others = side.copy()
    others[source] = False
    return bool((present[present[:, source]] & others).any(axis=1).all())


def low_shot(labels: np.ndarray, keys: np.ndarray, per_class: int, seed: int, names: Sequence[str]) -> np.ndarray:
    """A balanced subset: of each class the ``per_class`` documents whose seeded hash is lowest.

    For the same seed, the subset of 20 per class is therefore part of that of 100. Multi-label: the union of what is
    chosen for each label; a label may then have more than ``per_class``, and documents without labels are not chosen.

    Args:
        labels: int (documents,), class of each document; negative: no label, never chosen. Multi-label: (documents,
            classes), 1 where the label applies.
        keys: uint64 (documents,), the documents' content keys.
        names: names of the classes.

    Returns:
        int64 (classes * per_class,), or fewer where documents have several labels: the chosen positions, sorted.

    Raises:
        UserError: a class has fewer documents than ``per_class``, or ``per_class`` is below 1.
    """
    if per_class < 1:
        raise UserError(f"{per_class} labels a class: give at least 1")
    hashes = seeded_hash(keys, seed)
    chosen = []
    for number, name in enumerate(names):
        members = np.flatnonzero(labels[:, number] if labels.ndim == 2 else labels == number)
        if len(members) < per_class:
            few = f"class {name!r} has {len(members)} documents"
            raise UserError(f"{few}, fewer than the {per_class} labels a class asked for")
        ordered = members[np.argsort(hashes[members], kind="stable")]
        again = np.append(False, keys[ordered][1:] == keys[ordered][:-1])  # equal texts are adjacent: all but the first
        chosen.append(ordered[np.argsort(again, kind="stable")][:per_class])  # of them come last
    return np.unique(np.concatenate(chosen))
