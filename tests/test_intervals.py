"""Figures of weighted documents against those of repeated ones, and bootstrap intervals against scipy's."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference

from lit_sft.evaluation import tested
from lit_sft.evaluation.intervals import RESAMPLES, Interval, bootstrap, mean_interval, percentiles, resamples
from lit_sft.evaluation.metrics import ClassificationMetrics, LanguageModelMetrics
from lit_sft.evaluation.multilabel import MultilabelMetrics
from lit_sft.evaluation.predictions import Predictions
from lit_sft.evaluation.text_losses import TextLosses, document_sums, response_sums, text_losses
from lit_sft.evaluation.thresholds import chosen
from lit_sft.evaluation.weighted import auroc, weighted_figures
from lit_sft.evaluation.weighted_multilabel import weighted_multilabel_figures


def predictions(count: int, classes: int, seed: int = 0, decimals: int | None = None, missing: int = -1) -> Predictions:
    """Predictions that know a little of unbalanced labels; ``decimals`` rounds the probabilities, so that many tie."""
    random = np.random.default_rng(seed)
    shares = np.arange(1, classes + 1) * (np.arange(classes) != missing)
    labels = random.choice(classes, size=count, p=shares / shares.sum())
    scores = np.exp(random.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels])
    probabilities = (scores / scores.sum(1, keepdims=True)).astype(np.float32)
    if decimals is not None:
        probabilities = probabilities.round(decimals)
    losses = -np.log(probabilities[np.arange(count), labels].clip(1e-12))
    names = [f"c{i}" for i in range(classes)]
    keys = np.arange(count, dtype=np.uint64)
    return Predictions(names, np.arange(count), keys, labels, probabilities.argmax(1), losses, probabilities)


def classifier_intervals(p: Predictions) -> dict[str, Interval]:
    return bootstrap(lambda weights: weighted_figures(p, weights), len(p))


def repeated(p: Predictions, times: np.ndarray) -> dict[str, float]:
    """The figures of the documents, each as many times as ``times`` (documents,) says."""
    chosen = np.repeat(np.arange(len(p)), times)
    metrics = ClassificationMetrics(p.label_names)
    metrics.update(*(torch.from_numpy(column[chosen]) for column in (p.probabilities, p.labels, p.losses)))
    return metrics.compute()


@pytest.mark.parametrize(
    ("count", "classes", "decimals", "missing"),
    [(200, 2, None, -1), (200, 2, 1, -1), (200, 5, 1, 0), (60, 50, None, -1), (12, 4, 1, 3), (3, 2, None, -1)],
)
def test_a_document_of_weight_n_counts_as_n_documents(count: int, classes: int, decimals: int, missing: int) -> None:
    p = predictions(count, classes, decimals=decimals, missing=missing)
    drawn = np.random.default_rng(1).multinomial(count, np.full(count, 1 / count), size=4)
    times = np.concatenate([np.ones((1, count), dtype=int), drawn, np.eye(1, count, dtype=int)])  # the last: one alone
    found = weighted_figures(p, times.T.astype(float))
    for i, row in enumerate(times):
        expected = repeated(p, row)
        assert {name: values[i] for name, values in found.items()} == pytest.approx(expected, abs=2e-6, nan_ok=True)
    assert math.isnan(found["auroc"][-1])


@pytest.mark.parametrize(("count", "decimals", "missing"), [(200, None, -1), (200, 1, -1), (60, 1, 2), (3, None, -1)])
def test_a_document_of_any_labels_counts_as_often_as_it_weighs(count: int, decimals: int | None, missing: int) -> None:
    random = np.random.default_rng(count)
    labels = (random.random((count, 4)) < 0.3).astype(np.uint8) * (np.arange(4) != missing).astype(np.uint8)
    probabilities = (1 / (1 + np.exp(-random.normal(size=(count, 4)) - 2.0 * labels + 1))).astype(np.float32)
    if decimals is not None:
        probabilities = probabilities.round(decimals)
    metrics = MultilabelMetrics(["a", "b", "c", "d"])
    metrics.thresholds = [0.5, 0.4, 0.3, 0.2]
    predicted = chosen(torch.from_numpy(probabilities), metrics.thresholds).numpy()
    losses = random.random(count, dtype=np.float32)
    keys = np.arange(count, dtype=np.uint64)
    p = Predictions(metrics.label_names, np.arange(count), keys, labels, predicted, losses, probabilities)
    times = np.concatenate([np.ones((1, count), dtype=int), random.integers(3, size=(4, count)) + np.eye(1, count, 1)])
    found = weighted_multilabel_figures(p, times.T)
    for i, row in enumerate(times):
        drawn = np.repeat(np.arange(count), row.astype(int))
        metrics.reset()
        metrics.update(*(torch.from_numpy(column[drawn]) for column in (probabilities, labels, losses)))
        expected = metrics.compute()
        assert {name: values[i] for name, values in found.items()} == pytest.approx(expected, abs=2e-6, nan_ok=True)


def test_auroc_of_ties_equals_scikit_learns_on_weights() -> None:
    random = np.random.default_rng(2)
    scores, positive = random.integers(6, size=80), random.random(80) < 0.3
    weights = random.integers(4, size=(80, 3)).astype(float)
    expected = [reference.roc_auc_score(positive, scores, sample_weight=w) for w in weights.T]
    assert auroc(scores, positive, weights) == pytest.approx(expected)


def test_resamples_are_drawn_documents_and_seeded() -> None:
    weights = np.concatenate(list(resamples(30, seed=4)), axis=1)
    assert weights.shape == (30, RESAMPLES)
    assert (weights.sum(0) == 30).all()
    assert np.array_equal(np.concatenate(list(resamples(30, seed=4, number=250)), axis=1), weights[:, :250])
    # each count is binomial, with a mean of 1 and a variance of 29/30
    assert weights.mean(1) == pytest.approx(np.ones(30), abs=0.1)
    assert weights.var() == pytest.approx(29 / 30, abs=0.03)


def assert_near(found: list[float] | None, expected: stats._result_classes.BootstrapResult) -> None:
    """Each border within 0.35 standard errors of the figure.

    The border of 2,000 resamples moves by about 0.06 standard errors with the seed, the difference of two by 0.085.
    """
    assert found is not None
    low, high = expected.confidence_interval
    assert found == pytest.approx([low, high], abs=0.35 * expected.standard_error)


def slow_macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    hits, sums = (np.array([((labels == c) * 1 + (predicted == c)).tolist() for c in range(3)]) == k for k in (2, 1))
    return float(np.mean(2 * hits.sum(1) / (2 * hits.sum(1) + sums.sum(1))))


def slow_auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """From the sum of ranks (Mann & Whitney 1947)."""
    above = stats.rankdata(scores)[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(above / (positive.sum() * (~positive).sum()))


def test_intervals_equal_scipys_percentile_bootstrap() -> None:
    p = predictions(150, 3)
    found = classifier_intervals(p)
    assert set(found) == set(repeated(p, np.ones(150, dtype=int)))
    y, guess = p.labels, p.predicted
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "accuracy": lambda i: float((y[i] == guess[i]).mean()),
        "loss": lambda i: float(p.losses[i].mean()),
        "recall/c2": lambda i: float((guess[i][y[i] == 2] == 2).mean()),
        "macro_f1": lambda i: slow_macro_f1(y[i], guess[i]),
        "auroc": lambda i: float(np.mean([slow_auroc(p.probabilities[i, c], y[i] == c) for c in range(3)])),
    }
    everything = np.arange(150)
    assert statistics["macro_f1"](everything) == pytest.approx(reference.f1_score(y, guess, average="macro"))
    assert statistics["auroc"](everything) == pytest.approx(repeated(p, np.ones(150, dtype=int))["auroc"], abs=1e-6)
    for name, statistic in statistics.items():
        options = {"method": "percentile", "n_resamples": 2000, "vectorized": False, "rng": 0}
        assert_near(found[name], stats.bootstrap((everything,), statistic, **options))
    assert mean_interval(p.losses) == pytest.approx(found["loss"])


def test_a_figure_that_few_resamples_define_has_no_interval() -> None:
    assert percentiles(np.array([math.nan] * 6 + [1.0] * 5)) is None
    assert percentiles(np.array([math.nan] * 5 + [1.0] * 5)) == [1.0, 1.0]
    p = predictions(40, 2)
    one_of_a_class = Predictions(**{**p.__dict__, "labels": np.eye(1, 40, dtype=np.int64)[0]})
    assert classifier_intervals(one_of_a_class)["auroc"] is not None  # in 64% of the resamples
    nothing = Predictions(**{**p.__dict__, "labels": np.zeros(40, dtype=np.int64)})
    found = classifier_intervals(nothing)
    assert [name for name, interval in found.items() if interval is None] == ["auroc", "ece"]


def test_a_rare_class_that_is_always_right_has_no_interval_down_to_zero() -> None:
    p = predictions(300, 2)
    labels = np.zeros(300, dtype=np.int64)
    labels[:3] = 1  # not drawn in 5% of the resamples
    right = Predictions(**{**p.__dict__, "labels": labels, "predicted": labels})
    found = tested.tested_by({}, right, None).record()["test_interval"]
    assert found["recall/c1"] == found["precision/c1"] == found["mcc"] == found["macro_f1"] == [1.0, 1.0]


def test_a_language_models_documents_are_what_is_drawn() -> None:
    random = torch.Generator().manual_seed(3)
    targets = torch.randint(0, 9, (40, 6), generator=random)
    targets[30:, 3:] = -100
    nll = torch.rand(40, 6, generator=random) * 4 * (targets != -100)
    metrics = LanguageModelMetrics()
    metrics.update(nll, targets)
    sums = response_sums(nll, targets)
    losses = TextLosses(sums["nll"].numpy(), sums["targets"].numpy(), 4.5)
    found = {name: float(v[0]) for name, v in losses.figures(np.ones((40, 1))).items()}
    assert found == pytest.approx(metrics.compute(4.5), rel=1e-6)
    found_intervals = bootstrap(losses.figures, len(losses))
    statistic: Callable[..., float] = lambda nll, targets, axis: nll.sum(axis) / targets.sum(axis)  # noqa: E731
    columns = (losses.nll, losses.targets)
    assert_near(found_intervals["loss"], stats.bootstrap(columns, statistic, method="percentile", paired=True, rng=0))
    loss = found_intervals["loss"]
    assert loss is not None
    assert found_intervals["perplexity"] == pytest.approx(np.exp(loss))


def test_a_documents_losses_are_added_up_over_the_batches_that_it_runs_through() -> None:
    random = torch.Generator().manual_seed(4)
    documents = torch.randint(-1, 7, (3, 2, 5), generator=random)  # of three batches; -1: no target
    targets = torch.randint(0, 9, (3, 2, 5), generator=random)
    targets[documents < 0] = -100
    nll = torch.rand(3, 2, 5, generator=random) * (documents >= 0)
    batches = [document_sums(*batch) for batch in zip(nll, targets, documents.numpy(), strict=True)]
    rows = {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]}
    found = text_losses(rows, None, 1.0)
    assert found.nll == pytest.approx([float(nll[documents == d].sum()) for d in range(7)])
    assert found.targets.tolist() == [int((documents == d).sum()) for d in range(7)]
    some = text_losses(rows, np.arange(9) % 2 == 0, 1.0)  # the split has two documents more, without targets
    assert np.array_equal(some.nll, found.nll[::2])
