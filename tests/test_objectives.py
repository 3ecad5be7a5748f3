"""Objectives against formulas and slow loops."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_network import batch, build, encoded, loss_of

from lit_sft.models import Network
from lit_sft.models.heads import class_probabilities, num_outputs
from lit_sft.objectives import MLE, AdversarialMLE, Objective, Supervised

# maximum likelihood


def test_mle_is_the_mean_nll_of_kept_targets_by_a_slow_loop() -> None:
    network, stream = build().eval(), batch()
    assert network.lm_head is not None
    losses = []
    for row in range(4):
        length = int(stream.attention_mask[row].sum())
        ids, ones = stream.input_ids[row : row + 1, :length], torch.ones(1, length)
        encoder = network.encoder
        hidden = encoded(encoder, ids, ones, encoder.initial_state(1), encoder.draw_masks(1, length)).hidden
        log_prob = network.lm_head.log_prob(hidden[0])  # (length, vocab)
        losses += [-log_prob[step, stream.targets[row, step]] for step in range(length)]
    loss = MLE()(network, {"unlabeled": stream}, None)
    torch.testing.assert_close(loss.total, sum(losses) / len(losses))
    assert len(losses) == 20
    assert loss.parts.keys() == {"lm"}
    assert torch.equal(loss.parts["lm"], loss.total)
    assert not loss.parts["lm"].requires_grad


@pytest.mark.parametrize("lm", [{}, {"tie_weights_up_to": 0, "adaptive_cutoffs": [4, 8]}])
def test_a_stream_batch_without_targets_gives_zero_and_gradients_of_zero(lm: dict[str, Any]) -> None:
    network, stream = build(lm=lm), batch()
    stream.targets = torch.full((4, 6), -100)
    loss = MLE()(network, {"unlabeled": stream}, None)
    loss.total.backward()
    assert loss.total.item() == 0.0
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert len(gradients) > 5
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("make", "passes"),
    [(MLE, 1), (partial(AdversarialMLE, norm=0.0), 2)],  # both its passes begin alike
    ids=["MLE", "AdversarialMLE"],
)
def test_lanes_are_set_back_at_random_in_training_alone(make: Callable[..., MLE], passes: int) -> None:
    network = build(encoder={"embedding_dropout": 0.0, "hidden_dropout": 0.0, "output_dropout": 0.0})
    stream = batch()
    stream.first = False
    initial = network.encoder.initial_state(4)
    carried = tuple(tuple(torch.randn_like(t) for t in layer) for layer in initial)

    def losses(state: Any) -> Tensor:  # (lanes,)
        encoded = network.encode(stream, state, network.eval().draw_masks(4, 6))
        return network.nll(encoded.hidden, stream.targets).sum(1)

    kept, fresh = losses(carried), losses(initial)
    count = (stream.targets != -100).sum()
    network.train()
    found = set()
    for seed in range(40):
        torch.manual_seed(seed)
        drawn = torch.rand(4, 1).squeeze(1) < 0.5  # what is drawn first
        found.add(tuple(drawn.tolist()))
        torch.manual_seed(seed)
        total = make(reset_probability=0.5)(network, {"unlabeled": stream}, carried).total
        torch.testing.assert_close(total, passes * torch.where(drawn, fresh, kept).sum() / count)
    assert len(found) > 8
    evaluated = make(reset_probability=1.0)(network.eval(), {"unlabeled": stream}, carried).total
    torch.testing.assert_close(evaluated, passes * kept.sum() / count)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_reset_probability_out_of_range_is_told(p: float) -> None:
    with pytest.raises(ValueError, match="reset_probability"):
        MLE(reset_probability=p)


def test_mle_carries_a_detached_state_and_starts_anew_with_an_epoch() -> None:
    network, stream = build().eval(), batch()
    stream.attention_mask, stream.targets = torch.ones(4, 6), torch.randint(12, (4, 6))
    whole = loss_of(MLE(), network, stream)
    half = MLE()(network, {"unlabeled": stream.steps(0, 3)}, None)
    assert half.state is not None
    assert not any(tensor.requires_grad for layer in half.state for tensor in layer)
    rest = stream.steps(3, 6)
    torch.testing.assert_close((half.total + loss_of(MLE(), network, rest, half.state)) / 2, whole)
    carried = loss_of(MLE(), network, rest, half.state)
    rest.first = True
    anew = loss_of(MLE(), network, rest, half.state)
    assert torch.equal(anew, loss_of(MLE(), network, rest))
    assert not torch.equal(anew, carried)


# supervised

LOGITS, BINARY = torch.tensor([-2.0, 0.5, 3.0, 0.0, 40.0]).double(), torch.tensor([0, 1, 0, 1, 1])


def test_the_binary_loss_is_the_formula() -> None:
    total = 0.0
    for z, y in zip(LOGITS.tolist()[:4], BINARY.tolist()[:4], strict=True):
        p = 1 / (1 + math.exp(-z))
        total += -(y * math.log(p) + (1 - y) * math.log(1 - p))
    assert Supervised().loss(LOGITS[:4, None], BINARY[:4]).item() == pytest.approx(total / 4, abs=1e-12)


def slow_loss(logits: Tensor, labels: Tensor, smoothing: float, weights: list[float] | None) -> float:
    """By the definition: targets smoothed over classes, each document weighted as its label's class."""
    total = weight = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label == -1:
            continue
        row = [0.0, row[0]] if len(row) == 1 else row
        norm = sum(math.exp(z) for z in row)
        loss = 0.0
        for number, z in enumerate(row):
            target = (1 - smoothing) * (number == label) + smoothing / len(row)
            loss -= target * math.log(math.exp(z) / norm)
        w = 1.0 if weights is None else weights[label]
        total, weight = total + w * loss, weight + w
    return total / weight


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_loss_equals_a_slow_loop(classes: int, weighted: bool, smoothing: float) -> None:
    weights = [0.5, 2.0, 0.0, 1.5, 0.25][:classes] if weighted else None
    logits = torch.randn(9, num_outputs(classes)).double()
    labels = torch.tensor([0, 1, 1, 0, -1, 1, 0, 0, 1]) + torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 3]) * (classes == 5)
    got = Supervised(smoothing, weights).loss(logits, labels)
    assert got.item() == pytest.approx(slow_loss(logits, labels, smoothing, weights), abs=1e-12)


@pytest.mark.parametrize("objective", [Supervised(), Supervised(0.2, [0.3, 1.7])])
def test_one_logit_equals_two_by_softmax_in_value_and_gradient(objective: Supervised) -> None:
    one = LOGITS[:, None].clone().requires_grad_()
    two = torch.cat([torch.zeros_like(one), one], 1)
    losses = [objective.loss(one, BINARY), objective.loss(two, BINARY)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, one, retain_graph=True) for loss in losses))
    torch.testing.assert_close(class_probabilities(one), class_probabilities(two))


def test_what_a_loss_is_a_mean_over_is_counted_in_float32_under_autocast() -> None:
    network, documents = build(3).float().eval(), batch(3)
    objective = Supervised(class_weights=[100.25, 201.5, 50.125])  # in bfloat16 100, 202 and 50.25
    with torch.autocast("cpu", torch.bfloat16):
        weight = objective(network, {"labeled": documents}, None).weight
    assert weight is not None
    assert weight.item() == torch.tensor([100.25, 201.5, 50.125])[documents.labels].sum().item()


@pytest.mark.parametrize("classes", [2, 3])
def test_the_objective_is_the_loss_of_the_networks_logits(classes: int) -> None:
    network, documents = build(classes).eval(), batch(classes)
    loss = Supervised()(network, {"labeled": documents}, None)
    logits = network.classify(documents, network.draw_masks(4, 6))
    assert logits.shape == (4, num_outputs(classes))
    assert loss.total.item() == pytest.approx(slow_loss(logits, documents.labels, 0.0, None))
    assert loss.parts.keys() == {"supervised"}
    assert torch.equal(loss.parts["supervised"], loss.total)
    assert loss.state is None


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_without_labels_gives_zero_and_gradients_of_zero(classes: int, weighted: bool) -> None:
    network, documents = build(classes), batch(classes)
    documents.labels = torch.full((4,), -1)
    total = loss_of(Supervised(class_weights=[1.0] * classes if weighted else None), network, documents)
    (65_536 * total).backward()  # as float16 scales it
    assert total.item() == 0.0
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert len(gradients) > 5
    assert all((gradient == 0).all() for gradient in gradients)


def test_class_probabilities_sum_to_one() -> None:
    for logits in (torch.randn(6, 1), torch.randn(6, 4), torch.randn(6, 1).bfloat16()):
        probabilities = class_probabilities(logits)
        assert probabilities.shape == (6, max(2, logits.shape[1]))
        assert probabilities.dtype == torch.float32
        torch.testing.assert_close(probabilities.sum(1), torch.ones(6))
    assert class_probabilities(torch.tensor([[100.0]])).tolist() == [[pytest.approx(0.0, abs=1e-30), 1.0]]


def test_half_precision_logits_give_a_float32_loss_that_stays_near() -> None:
    for classes in (2, 3):
        network, documents = build(classes).float().eval(), batch(classes)
        full = loss_of(Supervised(0.1), network, documents)
        with torch.autocast("cpu", torch.bfloat16):
            half = loss_of(Supervised(0.1), network, documents)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full, rtol=0.02, atol=0.01)


def test_class_weights_must_fit_the_classes() -> None:
    with pytest.raises(ValueError, match="class_weights has 3 values, but there are 2 classes"):
        Supervised(class_weights=[1.0, 2.0, 3.0]).see_counts([5, 4], 9, False)


@pytest.mark.parametrize("weights", [[], [1.0, -1.0], [0.0, 0.0]])
def test_class_weights_that_weigh_nothing_are_rejected(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="class_weights="):
        Supervised(class_weights=weights)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_label_smoothing_out_of_range_is_rejected(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing="):
        Supervised(label_smoothing=smoothing)


def test_two_classes_have_one_logit() -> None:
    assert [num_outputs(classes) for classes in (2, 3, 7)] == [1, 3, 7]


# both


@pytest.mark.parametrize("objective", [MLE(), Supervised()])
def test_an_objective_declares_what_it_reads(objective: Objective) -> None:
    full = build()
    network = Network(
        full.encoder,
        full.lm_head if "lm" in objective.heads else None,
        full.classifier if "classifier" in objective.heads else None,
    )
    kinds = {"unlabeled": batch(), "labeled": batch()}
    objective(network, {kind: kinds[kind] for kind in objective.batches}, None).total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
