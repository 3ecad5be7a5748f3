"""Thresholds, figures, loss and class weights of multi-label data, against slow loops and scikit-learn."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from lit_sft.evaluation.multilabel import MultilabelMetrics
from lit_sft.evaluation.thresholds import applying, best_thresholds
from lit_sft.models.heads import class_probabilities, num_outputs
from lit_sft.objectives import Supervised
from lit_sft.objectives.supervised import weights_by_counts

NAMES = ["a", "b", "c", "d"]


def documents(count: int = 300, seed: int = 0, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Probabilities that know a little of the labels, many of them tied; labels of different frequency."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.5, 0.3, 0.1, 0.02][:classes])
    labels = (torch.rand(count, classes, generator=generator) < shares).to(torch.int8)
    logits = torch.randn(count, classes, generator=generator) + 1.5 * labels - 1.0
    probabilities = logits.sigmoid()
    probabilities[::3] = (probabilities[::3] * 17).round() / 17  # none at a border of 15 bins
    return probabilities, labels


# ---- thresholds


def slow_threshold(scores: list[float], labels: list[int]) -> float:
    """By the definition: F1 of every threshold that tells documents apart, the nearest to 0.5 of the best."""
    if not any(labels):
        return 0.5
    ladder = sorted({*scores, 0.0}, reverse=True)
    candidates = [(high + low) / 2 for high, low in pairwise(ladder)]
    if min(scores) == 0.0:
        candidates.append(0.0)
    best: tuple[float, float] | None = None
    for t in candidates:
        f1 = reference.f1_score(labels, [int(s >= t) for s in scores], zero_division=0)
        if best is None or f1 > best[0] + 1e-12 or (abs(f1 - best[0]) <= 1e-12 and abs(t - 0.5) < abs(best[1] - 0.5)):
            best = (f1, t)
    assert best is not None
    return best[1]


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_equal_a_search_over_all_of_them(seed: int) -> None:
    probabilities, labels = documents(40, seed)
    p = probabilities.double()
    expected = [slow_threshold(p[:, i].tolist(), labels[:, i].tolist()) for i in range(4)]
    assert best_thresholds(probabilities, labels) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0], 0.55),
        ([0.9, 0.8, 0.3, 0.1], [1, 1, 1, 1], 0.05),  # below the lowest: half of it
        ([0.9, 0.8, 0.3, 0.1], [0, 0, 0, 0], 0.5),  # no document to learn from
        ([0.9, 0.7, 0.7, 0.1], [1, 1, 0, 0], 0.4),  # no threshold lies between equal scores
        ([0.95, 0.9, 0.5, 0.4], [1, 0, 0, 1], 0.2),
        ([0.9, 0.6, 0.4], [1, 0, 1], 0.2),
        ([0.9, 0.6, 0.2, 0.15, 0.1], [1, 0, 1, 0, 0], 0.175),
        ([0.3, 0.2], [1, 0], 0.25),
        ([0.8, 0.6, 0.4, 0.2], [1, 0, 0, 1], 0.7),  # as good as 0.1, which is farther from 0.5
        ([0.0, 0.0], [1, 0], 0.0),
        ([1.0, 1.0], [0, 1], 0.5),
    ],
)
def test_thresholds_by_hand(scores: list[float], labels: list[int], expected: float) -> None:
    got = best_thresholds(torch.tensor([scores]).T.double(), torch.tensor([labels]).T)
    assert got == [pytest.approx(expected)]


def test_a_threshold_between_neighbours_of_float32_tells_them_apart() -> None:
    low = torch.tensor(0.3)
    high = torch.nextafter(low, torch.tensor(1.0))
    probabilities, labels = torch.stack([high, low]).unsqueeze(1), torch.tensor([[1], [0]])
    chosen = best_thresholds(probabilities, labels)
    assert applying(probabilities, chosen).tolist() == [[True], [False]]
    with torch.device("meta"):  # the default device of a program that uses another one
        assert applying(probabilities, best_thresholds(probabilities, labels)).tolist() == [[True], [False]]


def test_no_documents_and_no_numbers_leave_the_thresholds_at_a_half() -> None:
    assert best_thresholds(torch.zeros(0, 3), torch.zeros(0, 3)) == [0.5] * 3
    assert best_thresholds(torch.full((4, 1), math.nan), torch.ones(4, 1)) == [0.5]


# ---- figures


def measured(probabilities: Tensor, labels: Tensor, thresholds: list[float] | None = None) -> dict[str, float]:
    """The figures over ragged batches; any warning is an error."""
    figures = MultilabelMetrics(NAMES[: labels.shape[1]])
    if thresholds is not None:
        figures.thresholds = thresholds
    loss = torch.nn.functional.binary_cross_entropy(probabilities, labels.float(), reduction="none").mean(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in torch.arange(len(labels)).split(77):
            figures.update(probabilities[batch], labels[batch], loss[batch])
        return figures.compute()


def slow_ece(p: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    """The mean over bins of |share of pairs that apply - mean probability|, weighted by the bin's pairs."""
    total = 0.0
    for b in range(bins):
        inside = (p > b / bins) & (p <= (b + 1) / bins) if b else p <= 1 / bins
        if inside.any():
            total += abs(y[inside].mean() - p[inside].mean()) * inside.sum() / p.size
    return total


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("thresholds", [[0.5, 0.5, 0.5, 0.5], [0.61, 0.33, 0.2, 0.17]])
def test_every_figure_equals_scikit_learn(classes: int, thresholds: list[float]) -> None:
    probabilities, labels = documents(seed=3, classes=classes)
    figures = measured(probabilities, labels, thresholds[:classes])
    p, y = probabilities.double().numpy(), labels.numpy()
    predicted = (p >= np.array(thresholds[:classes])).astype(int)
    columns = list(zip(y.T, predicted.T, strict=True))
    precision = [reference.precision_score(t, guess, zero_division=0) for t, guess in columns]
    recall = [reference.recall_score(t, guess, zero_division=0) for t, guess in columns]
    expected = {
        "loss": np.mean([reference.log_loss(y[:, i], p[:, i], labels=[0, 1]) for i in range(classes)]),
        "accuracy": reference.accuracy_score(y, predicted),
        "micro_f1": reference.f1_score(y.ravel(), predicted.ravel()),
        "macro_f1": np.mean([reference.f1_score(t, guess, zero_division=0) for t, guess in columns]),
        "auroc": np.mean([reference.roc_auc_score(y[:, i], p[:, i]) for i in range(classes)]),
        "average_precision": np.mean([reference.average_precision_score(y[:, i], p[:, i]) for i in range(classes)]),
        "ece": slow_ece(p.ravel(), y.ravel()),
        **{f"precision/{NAMES[i]}": value for i, value in enumerate(precision)},
        **{f"recall/{NAMES[i]}": value for i, value in enumerate(recall)},
    }
    assert figures == pytest.approx(expected, abs=1e-5)
    if classes > 1:
        assert figures["macro_f1"] == pytest.approx(reference.f1_score(y, predicted, average="macro"))
        assert figures["micro_f1"] == pytest.approx(reference.f1_score(y, predicted, average="micro"))
        assert figures["average_precision"] == pytest.approx(reference.average_precision_score(y, p), abs=1e-5)


def test_labels_that_all_or_no_documents_have_are_left_out_where_undefined() -> None:
    probabilities, labels = documents(60, seed=5)
    labels[:, 0], labels[:, 3] = 1, 0
    figures = measured(probabilities, labels, [0.2, 0.5, 0.5, 1.0])
    p, y = probabilities.double().numpy(), labels.numpy()
    predicted = (p >= np.array([0.2, 0.5, 0.5, 1.0])).astype(int)
    assert predicted[:, 3].sum() == 0
    f1 = reference.f1_score(y, predicted, average="macro", zero_division=np.nan)
    assert figures["macro_f1"] == pytest.approx(f1), "d neither occurs nor is predicted"
    assert figures["auroc"] == pytest.approx(np.mean([reference.roc_auc_score(y[:, i], p[:, i]) for i in (1, 2)]))
    precisions = [reference.average_precision_score(y[:, i], p[:, i]) for i in range(3)]
    assert figures["average_precision"] == pytest.approx(np.mean(precisions), abs=1e-5)
    assert figures["precision/d"] == figures["recall/d"] == 0.0
    none = measured(probabilities, torch.zeros_like(labels), [1.0] * 4)
    assert math.isnan(none.pop("auroc"))
    assert math.isnan(none.pop("average_precision"))
    assert (none["macro_f1"], none["micro_f1"], none["accuracy"]) == (0.0, 0.0, 1.0)


def test_tuned_thresholds_are_the_best_for_macro_f1_and_leave_the_rankings_alone() -> None:
    probabilities, labels = documents(seed=7)
    figures = MultilabelMetrics(NAMES)
    figures.update(probabilities, labels, torch.zeros(len(labels)))
    before = figures.compute()
    figures.tune()
    after = figures.compute()
    assert figures.thresholds == best_thresholds(probabilities, labels)
    assert after["macro_f1"] > before["macro_f1"]
    for name in ("loss", "auroc", "average_precision", "ece"):
        assert after[name] == before[name]
    chosen = figures.thresholds
    figures.reset()
    assert figures.thresholds == chosen, "a pass over other data doesn't change them"


def test_the_confusion_of_each_label_equals_scikit_learn() -> None:
    probabilities, labels = documents(seed=8)
    figures = MultilabelMetrics(NAMES)
    figures.thresholds = [0.6, 0.4, 0.3, 0.2]
    figures.update(probabilities, labels, torch.zeros(len(labels)))
    predicted = applying(probabilities, figures.thresholds).numpy()
    expected = reference.multilabel_confusion_matrix(labels.numpy(), predicted)
    assert figures.confusion() == {
        "labels": NAMES,
        "columns": ["tn", "fp", "fn", "tp"],
        "matrix": expected.reshape(4, 4).tolist(),
    }


@pytest.mark.parametrize(
    ("probabilities", "labels", "expected"),
    [
        ([[0.9, 0.9], [0.8, 0.7]], [[1, 0], [0, 1]], "a, b"),
        ([[0.1, 0.9], [0.2, 0.7]], [[1, 0], [0, 1]], "b"),
        ([[0.1, 0.1], [0.2, 0.2]], [[1, 0], [0, 0]], "no label"),
        ([[0.1, 0.1], [0.2, 0.9]], [[1, 0], [0, 0]], None),
        ([[0.1, 0.1], [0.2, 0.2]], [[0, 0], [0, 0]], None),  # the labels don't differ
    ],
)
def test_the_only_prediction_is_one_where_the_labels_differ(
    probabilities: list[list[float]], labels: list[list[int]], expected: str | None
) -> None:
    figures = MultilabelMetrics(["a", "b"])
    for p, y in zip(probabilities, labels, strict=True):
        figures.update(torch.tensor([p]), torch.tensor([y], dtype=torch.int8), torch.zeros(1))
    assert figures.collapsed_to() == expected


# ---- loss and weights


def slow_loss(logits: Tensor, labels: Tensor, smoothing: float, weights: list[float] | None) -> float:
    """By the definition, document by document and label by label."""
    total, count = 0.0, 0
    for row, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        if targets[0] == -1:
            continue
        count += 1
        for number, (z, y) in enumerate(zip(row, targets, strict=True)):
            p, target = 1 / (1 + math.exp(-z)), (1 - smoothing) * y + smoothing / 2
            w = weights[number] if weights is not None and y == 1 else 1.0
            total -= w * (target * math.log(p) + (1 - target) * math.log(1 - p)) / len(row)
    return total / count


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_the_loss_equals_a_slow_loop(classes: int, weighted: bool, smoothing: float) -> None:
    torch.manual_seed(0)
    weights = [0.5, 3.0, 0.0][:classes] if weighted else None
    logits = torch.randn(8, classes).double()
    labels = torch.randint(2, (8, classes)).to(torch.int8)
    labels[3] = -1
    got = Supervised(smoothing, weights).loss(logits, labels)
    assert got.item() == pytest.approx(slow_loss(logits, labels, smoothing, weights), abs=1e-12)


def test_documents_without_labels_count_nothing_and_give_gradients_of_zero() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    loss = Supervised().loss(logits, torch.full((3, 2), -1, dtype=torch.int8))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_each_label_has_a_logit_and_a_sigmoid_of_its_own() -> None:
    assert [num_outputs(classes, multilabel=True) for classes in (1, 2, 5)] == [1, 2, 5]
    logits = torch.tensor([[0.0, 2.0]])
    probabilities = class_probabilities(logits, multilabel=True)
    torch.testing.assert_close(probabilities, torch.tensor([[0.5, 1 / (1 + math.exp(-2.0))]]))


@pytest.mark.parametrize("seed", range(3))
def test_balanced_weights_are_scikit_learns_and_sqrt_their_root(seed: int) -> None:
    y = np.concatenate([np.arange(4), np.random.default_rng(seed).choice(4, 60, p=[0.6, 0.2, 0.15, 0.05])])
    counts = np.bincount(y).tolist()
    expected = compute_class_weight("balanced", classes=np.arange(4), y=y)
    assert weights_by_counts(counts, len(y), False, "balanced") == pytest.approx(expected.tolist())
    assert weights_by_counts(counts, len(y), False, "sqrt") == pytest.approx(np.sqrt(expected).tolist())


def test_multilabel_weights_by_hand() -> None:
    # of 10 documents 5, 1, 8 and all have the label
    assert weights_by_counts([5, 1, 8, 10], 10, True, "balanced") == pytest.approx([1.0, 9.0, 0.25, 1.0])
    assert weights_by_counts([5, 1, 8, 10], 10, True, "sqrt") == pytest.approx([1.0, 3.0, 0.5, 1.0])


@pytest.mark.parametrize("how", ["balanced", "sqrt"])
@pytest.mark.parametrize("multilabel", [False, True])
def test_weights_of_counts_are_those_of_the_list(how: str, multilabel: bool) -> None:
    torch.manual_seed(1)
    counts, total = [6, 3, 1], 10
    objective = Supervised(class_weights=how)  # type: ignore[arg-type]
    logits = torch.randn(10, 3).double()
    labels = torch.randint(2, (10, 3)).to(torch.int8) if multilabel else torch.randint(3, (10,))
    with pytest.raises(ValueError, match="see_counts"):
        objective.loss(logits, labels)
    objective.see_counts(counts, total, multilabel)
    listed = Supervised(class_weights=weights_by_counts(counts, total, multilabel, how))  # type: ignore[arg-type]
    assert objective.loss(logits, labels).item() == listed.loss(logits, labels).item()
    objective.see_counts([1, 1, 8], total, multilabel)
    assert objective.loss(logits, labels).item() != listed.loss(logits, labels).item()


def test_rejects_weights_that_no_counts_give() -> None:
    with pytest.raises(ValueError, match="no training document has the label of class 1"):
        Supervised(class_weights="balanced").see_counts([3, 0], 3, False)
    with pytest.raises(ValueError, match="neither balanced nor sqrt"):
        Supervised(class_weights="equal")  # type: ignore[arg-type]
    Supervised().see_counts([3, 0], 3, False)  # nothing to take from them
