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
    pairs = _label_pairs(documents.labels if by_label else None, sources, len(keys))
    _Sides(held, *pairs, np.argsort(hashes, kind="stable")).repair()
    if not held.any():
        need = "a label needs two texts" if by_label and documents.labels is not None else "two are needed"
        raise UserError(
            f"{len(documents)} documents with {len(keys)} different texts are too few to hold some out: "
            f"{need}; give validation data of their own"
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


def _label_pairs(labels: Labels | None, sources: np.ndarray, num_sources: int) -> tuple[np.ndarray, np.ndarray]:
    """Each label of each source once: two int (pairs,), labels and sources; without labels all sources have label 0."""
    if labels is None:
        return np.zeros(num_sources, dtype=np.int64), np.arange(num_sources)
    each = [names_of(label) for label in labels]
    _, numbers = np.unique([name for names in each for name in names], return_inverse=True)
    pairs = np.unique(numbers * num_sources + np.repeat(sources, [len(names) for names in each]))
    return np.divmod(pairs.astype(np.int64), num_sources)


class _Sides:
    """Which sources are held out, and how many sources of each label each side has.

    Args:
        held: bool (sources,), changed in place.
        labels, sources: int (pairs,), as :func:`_label_pairs` returns them.
        order: the sources from the lowest hash to the highest; those nearest to the threshold are moved.
    """

    def __init__(self, held: np.ndarray, labels: np.ndarray, sources: np.ndarray, order: np.ndarray) -> None:
        self.held = held
        self.counts = np.zeros((2, labels.max(initial=-1) + 1), dtype=np.int64)  # of the rest, of the held-out part
        np.add.at(self.counts, (held[sources].astype(np.int64), labels), 1)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        by_label, by_source = np.lexsort((rank[sources], labels)), np.argsort(sources, kind="stable")
        self._sources, self._labels = sources[by_label], labels[by_source]
        self._first_source = np.searchsorted(labels[by_label], np.arange(self.counts.shape[1] + 1))
        self._first_label = np.searchsorted(sources[by_source], np.arange(len(held) + 1))

    def repair(self) -> None:
        """Move sources so that every label is on both sides if possible."""
        rest, out = self.counts
        for label in np.flatnonzero(rest == 0).tolist():
            if rest[label] == 0:  # else a source moved for an earlier label has it
                mine = self._sources_of(label)[::-1].tolist()
                # preferably a source whose other labels remain in the held-out part; but the rest has priority
                self._move(next(filter(self._is_spare, mine), mine[0]))
        for label in np.flatnonzero(out == 0).tolist():
            spare = next(filter(self._is_spare, self._sources_of(label).tolist()), None) if out[label] == 0 else None
            if spare is not None:
                self._move(spare)

    def _sources_of(self, label: int) -> np.ndarray:
        return self._sources[self._first_source[label] : self._first_source[label + 1]]

    def _labels_of(self, source: int) -> np.ndarray:
        return self._labels[self._first_label[source] : self._first_label[source + 1]]

    def _is_spare(self, source: int) -> bool:
        """Whether its side has another source of each of its labels."""
        return bool((self.counts[int(self.held[source]), self._labels_of(source)] > 1).all())

    def _move(self, source: int) -> None:
        self.held[source] = not self.held[source]
        to = int(self.held[source])
        self.counts[1 - to, self._labels_of(source)] -= 1
        self.counts[to, self._labels_of(source)] += 1


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
