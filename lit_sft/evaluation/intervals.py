"""How precise a test figure is, given the number of its documents: percentile intervals of the bootstrap.

The documents of the test set are drawn with replacement, as many as there are, and every figure is recomputed; the
interval is the middle 95% of 2,000 such draws (Efron 1979; Efron & Tibshirani 1993, ch. 13). It covers the chance of
which documents happen to be in the test set, but not the variation between trainings, which takes several seeds.

A language model's tokens depend on those before them, and so do the stretches of text in its batches, mostly within a
document: for its figures documents are drawn, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lit_sft.evaluation.weighted import Figures

RESAMPLES = 2000
LEVEL = 0.95
MIN_DEFINED = 0.5  # share of the resamples: a figure that is defined in fewer has no interval
AT_ONCE = 2_500_000  # weights in memory at once
MOST_AT_ONCE = 100  # resamples in memory at once: more are no faster
BIASED = ("ece",)  # a mean of absolute values: resamples are biased upwards, and the percentile interval is not valid
Interval = list[float] | None


def resamples(count: int, seed: int = 0, number: int = RESAMPLES) -> Iterator[np.ndarray]:
    """Yield how often each of ``count`` documents is in each resample: float64 (count, chunk), ``number`` in all."""
    random = np.random.default_rng(seed)
    at_once = max(1, min(MOST_AT_ONCE, AT_ONCE // max(count, 1)))
    for first in range(0, number, at_once):
        weights = np.empty((count, min(at_once, number - first)))
        for column in weights.T:
            column[:] = np.bincount(random.integers(count, size=count), minlength=count)
        yield weights


def percentiles(values: np.ndarray) -> Interval:
    """The middle 95% of ``values`` (resamples,), leaving out NaN; None if more than half of them are NaN."""
    defined = values[~np.isnan(values)]
    if len(defined) < MIN_DEFINED * len(values):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def bootstrap(figures: Callable[[np.ndarray], Figures], count: int) -> dict[str, Interval]:
    """The interval of every figure; None for a figure that is mostly undefined, and for the calibration error.

    Args:
        figures: a function from weights (documents, weightings) to figures (weightings,).
        count: number of documents.
    """
    chunks = [figures(weights) for weights in resamples(count)]
    found = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return {name: None if name in BIASED else percentiles(values) for name, values in found.items()}


def figures_once(figures: Callable[[np.ndarray], Figures], count: int) -> dict[str, float]:
    """Every figure of the ``count`` documents as they are, each counted once; ``figures`` as for :func:`bootstrap`."""
    return {name: float(value[0]) for name, value in figures(np.ones((count, 1))).items()}


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """The interval of the mean of ``values`` (documents,), none of them NaN."""
    found = bootstrap(lambda weights: {"mean": values @ weights / len(values)}, len(values))["mean"]
    assert found is not None
    return found[0], found[1]
