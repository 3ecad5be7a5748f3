"""How sure a test figure is, given the number of its documents: percentile intervals of the bootstrap.

The documents of the test set are drawn with replacement, as many as there are, and every figure is computed anew; the
middle 95% of what 2,000 such draws give is the interval (Efron 1979; Efron & Tibshirani 1993, ch. 13). It tells the
chance in which documents the test set happens to hold, and not that of another training, for which seeds are run.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

RESAMPLES = 2000
AT_ONCE = 100  # resamples held together: the largest array is (documents, AT_ONCE)
LEVEL = 0.95


def resamples(count: int, seed: int = 0, number: int = RESAMPLES) -> Iterator[np.ndarray]:
    """How often each of ``count`` documents is in a resample: float32 (count, at most AT_ONCE), ``number`` in all."""
    random = np.random.default_rng(seed)
    for first in range(0, number, AT_ONCE):
        drawn = [
            np.bincount(random.integers(count, size=count), minlength=count) for _ in range(first, number)[:AT_ONCE]
        ]
        yield np.array(drawn, dtype=np.float32).T.copy()


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The middle 95% of ``values`` (resamples,)."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_interval(values: np.ndarray, seed: int = 0, number: int = RESAMPLES) -> tuple[float, float]:
    """The interval of the mean of ``values`` (documents,), documents resampled."""
    drawn = [values @ weights / len(values) for weights in resamples(len(values), seed, number)]
    return percentiles(np.concatenate(drawn))
