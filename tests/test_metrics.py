"""Figures against scikit-learn, slow loops and closed forms."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor

from lit_sft.evaluation.metrics import ClassificationMetrics, LanguageModelMetrics
from lit_sft.evaluation.text_losses import TextLosses

NAMES = ["a", "b", "c", "d"]


def documents(count: int = 300, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities that know a little of the labels, and unbalanced labels."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05][:classes])
    labels = torch.multinomial(shares, count, replacement=True, generator=generator)
    logits = torch.randn(count, classes, generator=generator) + 1.0 * torch.eye(classes)[labels]
    return logits.softmax(-1), labels


def measured(probabilities: Tensor, labels: Tensor, sizes: list[int] | None = None) -> dict[str, float]:
    """The figures over ragged batches; any warning is an error."""
    figures = ClassificationMetrics(NAMES[: probabilities.shape[1]])
    loss = -probabilities.gather(1, labels[:, None]).squeeze(1).log()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in torch.arange(len(labels)).split(sizes or [len(labels)]):
            figures.update(probabilities[batch], labels[batch], loss[batch])
        return figures.compute()


def slow_ece(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Guo et al. 2017, eq. 3: the mean over bins of |accuracy - confidence|, weighted by the bin's documents."""
    total = 0.0
    confidence, predicted = (t.tolist() for t in probabilities.max(-1))
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins]
        if inside:
            accuracy = sum(predicted[i] == int(labels[i]) for i in inside) / len(inside)
            total += abs(accuracy - sum(confidence[i] for i in inside) / len(inside)) * len(inside) / len(labels)
    return total


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_classification_figure_equals_scikit_learn(classes: int, seed: int) -> None:
    probabilities, labels = documents(classes=classes, seed=seed)
    figures = measured(probabilities, labels, [64, 1, 100, 135])
    p, y = probabilities.double().numpy(), labels.numpy()
    p /= p.sum(1, keepdims=True)  # scikit-learn insists on float64's precision
    predicted = p.argmax(1)
    precision, recall, _, _ = reference.precision_recall_fscore_support(y, predicted, zero_division=0)
    against_rest = [reference.roc_auc_score(y == c, p[:, c]) for c in range(classes)]
    expected = {
        "loss": reference.log_loss(y, p),
        "accuracy": reference.accuracy_score(y, predicted),
        "macro_f1": reference.f1_score(y, predicted, average="macro"),
        "auroc": np.mean(against_rest),
        "mcc": reference.matthews_corrcoef(y, predicted),
        "ece": slow_ece(probabilities, labels),
        **{f"precision/{NAMES[c]}": precision[c] for c in range(classes)},
        **{f"recall/{NAMES[c]}": recall[c] for c in range(classes)},
    }
    assert figures == pytest.approx(expected, abs=1e-5)
    if classes > 2:
        assert figures["auroc"] == pytest.approx(reference.roc_auc_score(y, p, multi_class="ovr"), abs=1e-5)


def test_reset_forgets_what_was_before() -> None:
    figures = ClassificationMetrics(NAMES)
    for seed in (3, 4):
        figures.reset()
        probabilities, labels = documents(seed=seed)
        figures.update(probabilities, labels, -probabilities.gather(1, labels[:, None]).squeeze(1).log())
    assert figures.compute() == pytest.approx(measured(*documents(seed=4)))


@pytest.mark.parametrize("missing", [0, 3])
@pytest.mark.parametrize("classes", [3, 4])
def test_a_class_that_never_occurs_is_left_out_without_a_warning(missing: int, classes: int) -> None:
    probabilities, labels = documents(classes=classes)
    kept = labels != min(missing, classes - 1)
    probabilities, labels = probabilities[kept], labels[kept]
    figures = measured(probabilities, labels)
    p, y = probabilities.numpy(), labels.numpy()
    present = sorted(set(y.tolist()))
    assert figures["auroc"] == pytest.approx(np.mean([reference.roc_auc_score(y == c, p[:, c]) for c in present]))
    assert figures["macro_f1"] == pytest.approx(reference.f1_score(y, p.argmax(1), average="macro", zero_division=0))
    assert figures["mcc"] == pytest.approx(reference.matthews_corrcoef(y, p.argmax(1)))
    assert figures[f"recall/{NAMES[min(missing, classes - 1)]}"] == 0.0


@pytest.mark.parametrize("classes", [2, 3])
def test_a_constant_prediction_has_no_correlation_and_no_precision_elsewhere(classes: int) -> None:
    labels = torch.tensor([0] * 9 + [1])
    probabilities = torch.full((10, classes), 0.1)
    probabilities[:, 0] = 1 - 0.1 * (classes - 1)
    figures = measured(probabilities, labels)
    assert figures["mcc"] == 0.0
    assert figures["accuracy"] == pytest.approx(0.9)
    assert figures["precision/b"] == figures["recall/b"] == 0.0
    assert figures["auroc"] == pytest.approx(0.5)
    y, predicted = labels.numpy(), np.zeros(10)
    assert figures["macro_f1"] == pytest.approx(reference.f1_score(y, predicted, average="macro", zero_division=0))


@pytest.mark.parametrize("classes", [2, 3])
def test_only_one_class_leaves_the_ranking_undefined_and_the_rest_numbers(classes: int) -> None:
    probabilities, _ = documents(20, classes)
    figures = measured(probabilities, torch.zeros(20, dtype=torch.int64))
    assert math.isnan(figures.pop("auroc"))
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["mcc"] == 0.0


@pytest.mark.parametrize(
    ("matrix", "expected"),  # documents of each label (a row) by prediction
    [
        ([[0, 1, 0], [0, 1, 0], [0, 1, 0]], "b"),
        ([[0, 1, 0], [0, 1, 0], [0, 0, 1]], None),
        ([[0, 0, 0], [0, 3, 0], [0, 0, 0]], None),  # the labels are one, too
        ([[0, 0, 0], [0, 0, 2], [0, 0, 0]], None),  # and the same where it is another one
        ([[100, 0], [96, 4]], "a"),  # 4 of 200 are taken for b, which 100 are
        ([[98, 2], [98, 2]], "a"),  # right or wrong
        ([[100, 0], [95, 5]], None),  # a twentieth, and no fewer
        ([[0, 100], [1, 99]], "b"),
        ([[980, 0], [20, 0]], "a"),  # a rare class: not one document is taken for it
        ([[960, 0], [39, 1]], "a"),
        ([[980, 0], [19, 1]], None),
        ([[50, 0, 0], [48, 2, 0], [48, 0, 2]], "a"),  # 4 of 150, others than a are 100
        ([[50, 0, 0], [47, 3, 0], [48, 0, 2]], None),
    ],
)
def test_a_collapse_is_to_the_label_beside_which_the_others_are_hardly_given(
    matrix: list[list[int]], expected: str | None
) -> None:
    classes = len(matrix)
    metrics = ClassificationMetrics(NAMES[:classes])
    for label, row in enumerate(matrix):
        if predicted := [place for place, count in enumerate(row) for _ in range(count)]:  # a batch each
            probabilities = torch.eye(classes)[predicted] * 0.4 + 0.6 / classes
            metrics.update(probabilities, torch.full((len(predicted),), label), torch.zeros(len(predicted)))
    metrics.compute()
    assert metrics.collapsed_to() == expected


def lm_batches(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of unequal numbers of kept targets, one of them without any."""
    generator = torch.Generator().manual_seed(seed)
    batches: list[tuple[Tensor, Tensor]] = []
    for size, share in (((4, 7), 1.0), ((4, 3), 0.4), ((2, 5), 0.0), ((1, 1), 1.0)):
        targets = torch.randint(0, 50, size, generator=generator)
        targets[torch.rand(size, generator=generator) >= share] = -100
        nll = torch.rand(size, generator=generator) * 9
        batches.append((nll * (targets != -100), targets))
    return batches


def test_loss_is_the_flat_mean_over_tokens_of_ragged_batches() -> None:
    figures = LanguageModelMetrics()
    kept: list[float] = []
    for nll, targets in lm_batches():
        figures.update(nll, targets)
        kept += nll[targets != -100].tolist()
    mean = sum(kept) / len(kept)
    expected = {"loss": mean, "perplexity": math.exp(mean), "bits_per_byte": sum(kept) / math.log(2) / 500}
    assert figures.compute(500 / len(kept)) == pytest.approx(expected, rel=1e-5)
    figures.reset()
    nll, targets = lm_batches()[3]
    figures.update(nll, targets)
    assert figures.compute(0.0) == pytest.approx({"loss": nll.item(), "perplexity": math.exp(nll.item())})


def test_a_uniform_model_has_the_perplexity_of_the_vocabulary_and_its_bits() -> None:
    figures = LanguageModelMetrics()
    targets = torch.randint(0, 256, (3, 40))
    figures.update(torch.full((3, 40), math.log(256)), targets)
    # one byte a token: 256 equally likely bytes cost 8 bits
    expected = {"loss": math.log(256), "perplexity": 256.0, "bits_per_byte": 8.0}
    assert figures.compute(1.0) == pytest.approx(expected, rel=1e-6)


def test_a_perplexity_that_is_no_number_of_float64_is_a_large_one() -> None:
    figures = LanguageModelMetrics()
    figures.update(torch.full((1, 2), 1000.0), torch.zeros(1, 2, dtype=torch.int64))
    assert figures.compute(0.0) == {"loss": 1000.0, "perplexity": math.exp(700)}
    drawn = TextLosses(np.array([2000.0]), np.array([2]), 0.0).figures(np.ones((1, 1)))
    assert drawn["perplexity"] == pytest.approx([math.exp(700)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_shown_and_not_dropped(value: float) -> None:
    language, classes = LanguageModelMetrics(), ClassificationMetrics(["a", "b"])
    for nll in (1.0, value, 1.0):
        language.update(torch.full((2, 2), nll), torch.zeros(2, 2, dtype=torch.int64))
        loss = torch.full((2,), nll)
        classes.update(torch.full((2, 2), 0.5), torch.tensor([0, 1]), loss)
    found: dict[str, Any] = {"lm": language.compute(1.0)["loss"], "classes": classes.compute()["loss"]}
    assert not any(math.isfinite(loss) for loss in found.values())
