"""Runs that were tested on the same documents, compared document by document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lit_sft.checkpoints import stage_folders
from lit_sft.errors import UserError
from lit_sft.intervals import mean_interval
from lit_sft.predictions import FILE, Predictions, read_predictions


def predictions_of(run: Path) -> Predictions:
    """The predictions of a run's own test: ``run`` is its folder, a recipe's folder, or the file itself."""
    if not run.is_dir():
        return read_predictions(run)
    stages = stage_folders(run)
    return read_predictions((stages[-1] if stages and not (run / FILE).is_file() else run) / FILE)


def errors(runs: Sequence[Predictions]) -> np.ndarray:
    """Whether each run is wrong about each document, float (runs, documents).

    Raises:
        UserError: the runs were tested on different documents, or on other labels.
    """
    first = runs[0]
    for other in runs[1:]:
        check_same(first, other)
    wrong = [run.predicted != run.labels for run in runs]
    return np.array([w.any(1) if w.ndim == 2 else w for w in wrong], dtype=np.float64)


def check_same(one: Predictions, other: Predictions) -> None:
    """Raise a UserError unless both hold the same documents, in the same places, with the same labels."""
    if len(one) != len(other):
        raise UserError(f"the runs were tested on {len(one)} and {len(other)} documents: compare runs of one test set")
    differ = (one.documents != other.documents) | (one.keys != other.keys)
    if differ.any():
        raise UserError(f"the runs were tested on different documents ({int(differ.sum())} of {len(one)} differ)")
    if one.label_names != other.label_names:
        raise UserError(f"the runs have the labels {one.label_names} and {other.label_names}")
    if (one.labels != other.labels).any():
        raise UserError(f"the labels of {int((one.labels != other.labels).sum())} documents differ between the runs")


def error_intervals(methods: Mapping[str, Sequence[Predictions]], reference: str) -> dict[str, dict[str, float]]:
    """Mean error of each method over its seeds, and how far the ``reference`` is from it, in percent.

    A document's error is its mean over the seeds; the intervals are over documents, drawn anew (bootstrap): how far the
    figure would move on another test set. How far it moves with the seed is ``error_std``.

    Args:
        methods: the predictions of each seed, by method; all on one test set.
        reference: the method that the others are subtracted from.
    """
    by_method = {method: errors(runs) for method, runs in methods.items()}  # each (seeds, documents)
    found: dict[str, dict[str, float]] = {}
    for method, wrong in by_method.items():
        check_same(methods[method][0], next(iter(methods.values()))[0])
        mean = 100 * wrong.mean(0)  # (documents,)
        low, high = mean_interval(mean)
        spread = 100 * wrong.mean(1).std(ddof=1) if len(wrong) > 1 else np.nan
        found[method] = {"error": mean.mean(), "error_std": spread, "error_low": low, "error_high": high}
        if method != reference and reference in by_method:
            difference = 100 * by_method[reference].mean(0) - mean
            low, high = mean_interval(difference)
            found[method] |= {"minus": difference.mean(), "minus_low": low, "minus_high": high}
    return found
