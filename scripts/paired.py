"""Two runs, or two methods of several seeds each, that were tested on the same documents: which one is better?

    python scripts/paired.py logs/a/version_0 logs/b/version_0
    python scripts/paired.py 'logs/a/version_*' 'logs/b/version_*'      # seeds of two methods; quote the patterns

A run is given as its folder, a recipe's folder, or a predictions file; both sides must have been tested on the same
documents with the same labels. Prints each side's accuracy, macro-F1 and loss, and the difference, with two 95%
intervals and a p-value:

- over documents: the documents are drawn anew, the same ones for both sides (paired bootstrap, Efron & Tibshirani
  1993): would the difference hold on another test set from the same source? Several seeds count by their mean.
- over documents and seeds: the seeds of each side are drawn anew, too: would it hold for other seeds? Few seeds make
  this interval too narrow: with 3, 5 or 10 a side, and differences due to seeds alone, it holds the true one in about
  80, 87 or 92% of cases. (Seeds are drawn independently for the two sides, although they may share labeled subsets.)
- p: of accuracy between two single runs, McNemar's exact test (1947) on the documents that one of them alone has right;
  else approximate randomisation (Yeh 2000): how often the difference is as large when, document by document, a coin
  tosses which side's predictions are whose. Between several seeds a side it needs as many on both, paired in order,
  and is over documents alone.
"""

from __future__ import annotations

import argparse
import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from one_line import in_one_line
from report import ROUNDED, intervals_file, read_lines, rows_tested, write_figures
from scipy import stats

from lit_sft.errors import UserError
from lit_sft.evaluation.intervals import AT_ONCE, RESAMPLES, Interval, mean_interval, percentiles, resamples
from lit_sft.evaluation.predictions import Predictions, read_predictions
from lit_sft.evaluation.weighted import Figures, weighted_figures
from lit_sft.evaluation.weighted_multilabel import weighted_multilabel_figures
from lit_sft.runs import read_record
from lit_sft.written_results import predictions_file

FIGURES = ("accuracy", "macro_f1", "loss")
TOSSES = 10_000
INTERVAL_FIELDS = (
    *("labels", "val", "method", "seeds", "documents"),
    *("error", "error_std", "error_low", "error_high", "minus", "minus_low", "minus_high"),  # in percent
)
Runs = Sequence[Predictions]


def paths_named(pattern: str) -> list[str]:
    """The paths that a path or a pattern names, in order; a path that exists is no pattern, though it has brackets."""
    found = glob.glob(glob.escape(pattern)) or glob.glob(pattern)  # noqa: PTH207 - absolute ones, too
    return sorted(found, key=lambda path: (len(path), path))


def side(pattern: str) -> list[Predictions]:
    """The runs that a path or a pattern names, in the order of their names.

    Raises:
        UserError: if there are no runs, none was tested, two have the same seed, or their test documents differ.
    """
    paths = paths_named(pattern)
    if not paths:
        raise UserError(f"{pattern}: no such run or predictions file")
    files = [predictions_file(Path(path)) for path in paths]
    tested = [file for file in files if file.is_file()] or files
    if len(tested) < len(files):
        print(f"{pattern}: {len(files) - len(tested)} of {len(files)} runs were not tested, and are left out")
    check_seeds(pattern, tested)
    runs = [read_predictions(file) for file in tested]
    for run in runs[1:]:
        check_same(runs[0], run)
    return runs


def check_seeds(pattern: str, files: Sequence[Path]) -> None:
    """Raise a UserError where two of the runs have one seed: a search that chose anew leaves those of both choices."""
    seen: dict[int, Path] = {}
    for run in [file.parent for file in files]:
        seed = read_record(run).get("seed")
        if seed is not None and seen.setdefault(seed, run) != run:
            raise UserError(
                f"{pattern}: seed {seed} was tested twice, in {seen[seed]} and {run}: name the runs of one set of "
                "options, as the CSV of baselines.py lists them"
            )


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


def wrong(runs: Runs) -> np.ndarray:
    """Whether each run is wrong about each document, float (runs, documents); multi-label: about any of its labels."""
    missed = [run.predicted != run.labels for run in runs]
    return np.array([m.any(1) if m.ndim == 2 else m for m in missed], dtype=np.float64)


def of_runs(runs: Runs, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Each figure of each run under each weighting of the documents, (runs, weightings)."""
    figures = weighted_multilabel_figures if runs[0].multilabel else weighted_figures
    found = [figures(run, weights, counts_only=True) for run in runs]
    return {name: np.array([figure[name] for figure in found]) for name in FIGURES}


def intervals(a: Runs, b: Runs, number: int = RESAMPLES) -> dict[str, tuple[Interval, Interval]]:
    """The intervals of each figure's difference, a minus b: over documents, and over documents and seeds."""
    random = np.random.default_rng(1)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in FIGURES}
    for weights in resamples(len(a[0]), number=number):
        counts = [_seeds_drawn(len(runs), weights.shape[1], random) for runs in (a, b)]
        of_a, of_b = of_runs(a, weights), of_runs(b, weights)
        for name in FIGURES:
            over_documents = of_a[name].mean(0) - of_b[name].mean(0)
            over_both = (of_a[name] * counts[0]).sum(0) - (of_b[name] * counts[1]).sum(0)
            drawn[name].append(np.array([over_documents, over_both]))
    found = {name: np.concatenate(chunks, axis=1) for name, chunks in drawn.items()}
    return {name: (percentiles(values[0]), percentiles(values[1])) for name, values in found.items()}


def _seeds_drawn(count: int, number: int, random: np.random.Generator) -> np.ndarray:
    """The share of each run in ``number`` draws of ``count`` runs from as many, (count, number)."""
    return random.multinomial(count, np.full(count, 1 / count), number).T / count


def mcnemar(a: Predictions, b: Predictions) -> tuple[float, int, int]:
    """McNemar's exact p, and how many documents only ``a``, and only ``b``, has right."""
    of_a, of_b = wrong([a])[0], wrong([b])[0]
    only_a, only_b = int((of_a < of_b).sum()), int((of_b < of_a).sum())
    p = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return float(p), only_a, only_b


def randomisation(a: Runs, b: Runs, number: int = TOSSES, seed: int = 0) -> dict[str, float]:
    """Approximate randomisation's two-sided p of each figure; ``a`` and ``b`` are paired in order."""
    both = [_stacked(one, other) for one, other in zip(a, b, strict=True)]
    size = len(a[0])
    kept = np.r_[np.ones((size, 1)), np.zeros((size, 1))]  # of both sides' predictions one after the other, a's
    seen = _difference(both, kept)
    above = dict.fromkeys(FIGURES, 0)
    for tossed in _tosses(size, number, seed):
        found = _difference(both, np.r_[tossed, 1 - tossed])
        for name in FIGURES:
            above[name] += int((np.abs(found[name]) >= np.abs(seen[name]) - 1e-12).sum())
    return {name: (1 + count) / (1 + number) for name, count in above.items()}


def _stacked(a: Predictions, b: Predictions) -> Predictions:
    """The predictions of both, one side after the other: a toss is a weighting of these."""
    names = ("documents", "keys", "labels", "predicted", "losses", "probabilities")
    joined: dict[str, Any] = {name: np.concatenate([getattr(a, name), getattr(b, name)]) for name in names}
    return replace(a, clean=None, **joined)


def _difference(both: Runs, weights: np.ndarray) -> Figures:
    one, other = of_runs(both, weights), of_runs(both, 1 - weights)
    return {name: (one[name] - other[name]).mean(0) for name in FIGURES}


def _tosses(size: int, number: int, seed: int) -> Iterator[np.ndarray]:
    """0 or 1 for each document, float64 (size, some tosses), ``number`` tosses in all."""
    random, at_once = np.random.default_rng(seed), max(1, AT_ONCE // (2 * size))
    for first in range(0, number, at_once):
        yield random.integers(2, size=(size, min(at_once, number - first))).astype(np.float64)


def error_intervals(methods: Mapping[str, Runs], reference: str) -> dict[str, dict[str, float]]:
    """Mean error of each method over its seeds, and how far the ``reference`` is from it, in percent.

    A document's error is its mean over the seeds; the intervals are over documents, drawn anew (bootstrap): how far the
    figure would move on another test set. How far it moves with the seed is ``error_std``.

    Args:
        methods: the predictions of each seed, by method; all on one test set.
        reference: the method that the others are subtracted from.
    """
    everything = [run for runs in methods.values() for run in runs]
    for run in everything[1:]:
        check_same(everything[0], run)
    by_method = {method: wrong(runs) for method, runs in methods.items()}  # each (seeds, documents)
    found: dict[str, dict[str, float]] = {}
    for method, missed in by_method.items():
        mean = 100 * missed.mean(0)  # (documents,)
        low, high = mean_interval(mean)
        spread = 100 * missed.mean(1).std(ddof=1) if len(missed) > 1 else np.nan
        found[method] = {"error": mean.mean(), "error_std": spread, "error_low": low, "error_high": high}
        if method != reference and reference in by_method:
            difference = 100 * by_method[reference].mean(0) - mean
            low, high = mean_interval(difference)
            found[method] |= {"minus": difference.mean(), "minus_low": low, "minus_high": high}
    return found


def write_intervals(out: Path) -> None:
    """``OUT.intervals.csv``: errors with their intervals over documents, made of the predictions of the CSV's runs.

    Writes a line for each label count, validation set and method whose runs all still exist. Other lines are kept; so
    is a line of the same runs with a difference from ``pretrained`` that can no longer be computed.
    """
    runs: dict[tuple[str, str], dict[str, list[Predictions]]] = {}
    lost: set[tuple[str, str, str]] = set()
    for row in rows_tested(out):
        predictions = _predictions(row)
        if predictions is None:
            lost.add((row["labels"], row["val"], row["method"]))
        else:
            runs.setdefault((row["labels"], row["val"]), {}).setdefault(row["method"], []).append(predictions)
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for (labels, val), methods in runs.items():
        there = {method: read for method, read in methods.items() if (labels, val, method) not in lost}
        for method, figures in error_intervals(there, "pretrained").items():
            count = {"seeds": len(there[method]), "documents": len(there[method][0])}
            found[labels, val, method] = {"labels": labels, "val": val, "method": method, **count, **figures}
    # read when they are written: another call for this CSV may have written while the intervals were computed
    lines: dict[tuple[str, str, str], dict[str, Any]] = {
        (line["labels"], line["val"], line["method"]): line for line in read_lines(intervals_file(out))
    }
    for cell, line in found.items():
        old = lines.get(cell)
        same = old is not None and abs(float(old["error"]) - line["error"]) < ROUNDED
        if "minus" in line or old is None or not (same and old["minus"]):
            lines[cell] = line
    if lines:
        write_figures(intervals_file(out), INTERVAL_FIELDS, lines.values())


def _predictions(row: dict[str, str]) -> Predictions | None:
    """The predictions of a row's run; None if its folder lacks them or, as one from another machine may, has others."""
    file = predictions_file(Path(row["run"])) if row.get("run") else None
    if file is None or not file.is_file():
        return None
    predictions = read_predictions(file)
    found = of_runs([predictions], np.ones((len(predictions), 1)))
    same = all(abs(float(found[name].item()) - float(row[f"test_{name}"])) < 1e-4 for name in ("accuracy", "macro_f1"))
    return predictions if same else None


def clean_parts(a: Runs, b: Runs) -> tuple[Runs, Runs]:
    """Both sides' predictions of the documents of which no run has a copy in its training text.

    Raises:
        UserError: if this is unknown for a run, or there is no such document.
    """
    flags = [run.clean for run in (*a, *b) if run.clean is not None]
    if len(flags) < len(a) + len(b):
        raise UserError("--clean: of some run it isn't known which test documents it has seen in its training text")
    kept = np.all(flags, axis=0)
    if not kept.any():
        raise UserError("--clean: of every test document some run has seen a copy in its training text")
    return [run.select(kept) for run in a], [run.select(kept) for run in b]


def compared(a: Runs, b: Runs) -> str:
    """The table of the comparison."""
    check_same(a[0], b[0])
    once = np.ones((len(a[0]), 1))
    of_a, of_b, around = of_runs(a, once), of_runs(b, once), intervals(a, b)
    p: dict[str, float] = randomisation(a, b) if len(a) == len(b) else {}
    only = ""
    if len(a) == len(b) == 1:
        p["accuracy"], only_a, only_b = mcnemar(a[0], b[0])
        only = f"; right in one run alone: {only_a} in A, {only_b} in B"
    several = len(a) > 1 or len(b) > 1
    lines = [f"{len(a[0])} documents; runs: {len(a)} of A, {len(b)} of B{only}"]
    head = f"{'':<10}{'A':>9}{'B':>9}{'A - B':>10}  {'[95% over documents]':<22}"
    lines.append(f"{head}{'[and over seeds]':<22}{'p':>8}" if several else f"{head}{'p':>8}")
    for name in FIGURES:
        means = [float(side_figures[name].mean()) for side_figures in (of_a, of_b)]
        line = f"{name:<10}{means[0]:>9.4f}{means[1]:>9.4f}{means[0] - means[1]:>+10.4f}"
        for interval in around[name][: 1 + several]:
            line += f"  {'-' if interval is None else '[{:+.4f}, {:+.4f}]'.format(*interval):<20}"
        lines.append(line + f"{_p_value(p.get(name)):>8}")
    return "\n".join(lines)


def _p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.4f}" if p >= 1e-4 else "<0.0001"


def parser() -> argparse.ArgumentParser:
    """What it is called with."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("a", help="a run, or a pattern of several")
    options.add_argument("b", help="the same to compare it with")
    options.add_argument("--clean", action="store_true", help="only documents that no run saw a copy of")
    return options


def main() -> None:
    """Print the table."""
    arguments = parser().parse_args()
    both: tuple[Runs, Runs] = side(arguments.a), side(arguments.b)
    check_same(both[0][0], both[1][0])
    print(compared(*(clean_parts(*both) if arguments.clean else both)))


if __name__ == "__main__":
    in_one_line(main)
