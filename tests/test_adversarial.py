"""Adversarial terms against autograd written out, the Hessian of the KL, finite differences and sums by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy_network import Batch, batch, build

from lit_sft.models import ClassifierHead, Network, TwoWayEncoder
from lit_sft.models.heads import num_outputs
from lit_sft.objectives import AT, VAT, EntMin, Mixed, Supervised, Term
from lit_sft.objectives import vat as vat_module
from lit_sft.objectives.divergence import entropy, kl_divergence
from lit_sft.objectives.gradients import is_float16
from lit_sft.objectives.mixed import share_of_gradient
from lit_sft.objectives.reading import Reading, random_unit, unit
from lit_sft.objectives.term import Step

DROPOUTS = {
    "encoder": {
        "embedding_dropout": 0.3,
        "hidden_dropout": 0.3,
        "output_dropout": 0.3,
        "weight_dropout": 0.3,
        "type_dropout": 0.2,
        "word_dropout": 0.2,
    },
    "classifier": {"dropout": 0.4},
}
CLASSES = [2, 3]


def sharp(classes: int = 3, **options: Any) -> Network:
    """A toy network whose predictions move with its input: a fresh one's hardly do."""
    network = build(classes, **options)
    with torch.no_grad():
        network.encoder.embedding.weight.mul_(10)
        for parameter in network.classifier.parameters():  # type: ignore[union-attr]
            parameter.mul_(4)
    return network


def step_of(network: Network, documents: Batch, other: Batch | None = None, diagnose: bool = False) -> Step:
    given = {"labeled": documents, "unlabeled_documents": other or documents}
    return Step(network, given, None, lambda logits: Supervised().loss(logits, documents.labels), diagnose)


def value(term: Term, step: Step) -> Tensor:
    """A term's mean, without what it is a mean over."""
    found = term(step)
    return found[0] if isinstance(found, tuple) else found


def alone(documents: Batch, row: int) -> Batch:
    """One document without any padding."""
    length = int(documents.attention_mask[row].sum())
    cut = [t[row : row + 1, :length] for t in (documents.input_ids, documents.attention_mask, documents.targets)]
    return Batch(cut[0], cut[1], cut[2], documents.labels[row : row + 1])


def logits_at(network: Network, document: Batch, vectors: Tensor) -> Tensor:
    """Logits (1, num_outputs) of one document without masks, its token vectors given: plain modules in a row."""
    x = vectors
    for layer in network.encoder.layers:  # type: ignore[union-attr]
        x, _ = layer(x)
    assert network.classifier is not None
    pooled = torch.cat([x[:, -1], x.amax(1), x.mean(1)], -1)
    logits: Tensor = network.classifier.linear(pooled)
    return logits


def plain_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Of one document; of several labels, (1, labels), the mean over them."""
    if label.ndim == 2:
        p = logits.sigmoid()
        return -torch.where(label.bool(), p, 1 - p).log().mean()
    return F.cross_entropy(
        torch.cat([torch.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits, label
    )


# directions


@pytest.mark.parametrize(("classes", "multilabel"), [(2, False), (3, False), (3, True)])
def test_ats_direction_and_loss_are_autograd_written_out(classes: int, multilabel: bool) -> None:
    network, documents = sharp(classes, classifier={"multilabel": multilabel}).eval(), batch(classes)
    if multilabel:
        documents.labels = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
    losses = []
    step = step_of(network, documents)
    towards = AT(norm=0.7).towards(step.reading("labeled"), step)
    for row in range(4):
        document = alone(documents, row)
        vectors = network.encoder.embedding(document.input_ids).detach().requires_grad_()
        loss = plain_loss(logits_at(network, document, vectors), document.labels)
        (gradient,) = torch.autograd.grad(loss, vectors)
        gradient[:, -1] = 0.0  # the document's end stays
        direction = gradient / gradient.norm()
        length = vectors.shape[1]
        torch.testing.assert_close(towards[row : row + 1, :length], direction)
        assert (towards[row, length - 1 :] == 0).all()
        losses.append(plain_loss(logits_at(network, document, vectors + 0.7 * direction), document.labels))
    torch.testing.assert_close(AT(norm=0.7)(step), torch.stack(losses).mean())


def test_above_frozen_token_vectors_ats_direction_and_loss_are_the_same() -> None:
    network, documents = sharp().eval(), batch()
    found = []
    for trained in (True, False):
        network.encoder.embedding.weight.requires_grad_(trained)
        step = step_of(network, documents)
        reading = step.reading("labeled")
        assert reading.embeds.requires_grad is trained
        found.append((AT(norm=0.7).towards(reading, step), AT(norm=0.7)(step)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def hessian(network: Network, document: Batch) -> tuple[Tensor, Tensor]:
    """Of KL(p(s) || p(s + r)) at r = 0, over the tokens that may move: (size, size); and the token vectors s."""
    vectors = network.encoder.embedding(document.input_ids).detach()
    clean = logits_at(network, document, vectors).detach()

    def kl(flat: Tensor) -> Tensor:
        moved = vectors.clone()
        moved[:, :-1] = vectors[:, :-1] + flat.view(1, -1, vectors.shape[-1])
        return kl_divergence(clean, logits_at(network, document, moved)).sum()

    zeros = torch.zeros(vectors[:, :-1].numel(), dtype=vectors.dtype)
    return torch.autograd.functional.hessian(kl, zeros), vectors  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("classes", CLASSES)
def test_vats_direction_is_the_dominant_eigenvector_of_the_hessian(classes: int) -> None:
    network, documents = sharp(classes).eval(), batch(classes)
    reading = step_of(network, documents).reading("labeled")
    towards = VAT(xi=1e-4, power_steps=300).towards(reading)
    for row in range(4):
        document = alone(documents, row)
        matrix, _ = hessian(network, document)
        dominant = torch.linalg.eigh(matrix).eigenvectors[:, -1]
        length = int(documents.attention_mask[row].sum())
        found = towards[row, : length - 1].flatten()
        assert abs(F.cosine_similarity(found, dominant, dim=0)).item() > 0.999
        assert (towards[row, length - 1 :] == 0).all()


@pytest.mark.parametrize(("classes", "tolerance"), [(2, 1e-9), (3, 2e-3)])  # of two classes it is exact
def test_one_power_step_is_the_hessian_times_the_start(
    classes: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, documents = sharp(classes).eval(), batch(classes)
    reading = step_of(network, documents).reading("labeled")
    start = random_unit(reading.reach, reading.embeds)
    monkeypatch.setattr(vat_module, "random_unit", lambda reach, like: start)
    towards = VAT(xi=1e-4).towards(reading)
    for row in range(4):
        matrix, _ = hessian(network, alone(documents, row))
        length = int(documents.attention_mask[row].sum())
        by_hand = matrix @ start[row, : length - 1].flatten()
        expected = by_hand / by_hand.norm()
        torch.testing.assert_close(towards[row, : length - 1].flatten(), expected, atol=tolerance, rtol=tolerance)


def test_vats_loss_is_half_the_quadratic_form_for_a_small_norm() -> None:
    network, documents = sharp().eval(), batch()
    norm, values = 1e-3, []
    step = step_of(network, documents)
    torch.manual_seed(3)
    loss = value(VAT(norm=norm, unlabeled=False), step)
    torch.manual_seed(3)
    towards = VAT(norm=norm).towards(step.reading("labeled"))
    for row in range(4):
        matrix, _ = hessian(network, alone(documents, row))
        direction = towards[row, : int(documents.attention_mask[row].sum()) - 1].flatten()
        values.append(0.5 * norm**2 * direction @ matrix @ direction)
    torch.testing.assert_close(loss, torch.stack(values).mean(), rtol=2e-3, atol=0.0)


def test_no_gradient_goes_into_the_clean_prediction_nor_into_the_direction() -> None:
    """The gradient of the parameters by central differences, with direction and clean prediction held."""
    network, documents = sharp().eval(), batch()
    step = step_of(network, documents)
    weight = network.classifier.linear.weight  # type: ignore[union-attr]
    torch.manual_seed(3)
    loss = value(VAT(norm=1.0, unlabeled=False), step)
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.manual_seed(3)
    reading = step.reading("labeled")
    towards, clean = VAT(norm=1.0).towards(reading), reading.logits.detach()
    for place in ((0, 0), (1, 7), (2, 40)):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * 1e-5
                sides.append(kl_divergence(clean, reading.perturbed(towards)).mean())
                weight[place] -= sign * 1e-5
        torch.testing.assert_close(gradient[place], (sides[0] - sides[1]) / 2e-5, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("term", [AT(norm=0.5, direction="random"), VAT(norm=0.5, direction="random")])
def test_the_control_moves_as_far_to_anywhere(term: AT | VAT) -> None:
    network, documents = sharp(), batch()
    step = step_of(network, documents)
    reading = step.reading("labeled")
    directions = [term.towards(reading, step) if isinstance(term, AT) else term.towards(reading) for _ in range(200)]
    for direction in directions:
        torch.testing.assert_close(direction.square().sum((1, 2)), torch.ones(4).double())
    # nothing that a loss could have chosen: their mean goes to zero
    assert torch.stack(directions).mean(0).abs().max() < 0.2


def test_a_unit_direction_survives_the_smallest_gradients_and_zero() -> None:
    reach = torch.ones(3, 2, 1, dtype=torch.bool)
    directions = torch.ones(3, 2, 4) * torch.tensor([1e-36, 0.0, 3.0])[:, None, None]
    torch.testing.assert_close(unit(directions, reach).square().sum((1, 2)), torch.tensor([1.0, 0.0, 1.0]))


# masks


@pytest.mark.parametrize("kind", ["two classes", "three classes", "two ways", "backprop_tokens", "bfloat16"])
def test_without_a_perturbation_clean_and_perturbed_logits_are_bit_equal_in_training(kind: str) -> None:
    classes = 2 if kind == "two classes" else 3
    network, documents = sharp(classes, **DROPOUTS).train(), batch(classes)
    if kind == "two ways":
        encoder = TwoWayEncoder(12, embedding_size=4, hidden_size=5, **DROPOUTS["encoder"])
        head = ClassifierHead(encoder.output_size, classes, **DROPOUTS["classifier"])  # type: ignore[arg-type]
        network = Network(encoder, classifier=head).double().train()
    elif kind == "backprop_tokens":
        network.backprop_tokens = 2
    elif kind == "bfloat16":
        network = network.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
        reading = Reading.of(network, documents)
        assert (reading.encoded.hidden.dtype == torch.bfloat16) == (kind == "bfloat16")
        assert torch.equal(reading.perturbed(torch.zeros_like(reading.embeds)), reading.logits)
        assert not torch.equal(Reading.of(network, documents).logits, reading.logits)  # they are random, though


def test_terms_share_one_clean_pass_a_batch_and_its_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    network, documents, other = sharp(**DROPOUTS).train(), batch(), batch()
    drawn = []
    draw = network.draw_masks
    monkeypatch.setattr(network, "draw_masks", lambda *size: drawn.append(size) or draw(*size))
    given = {"labeled": documents, "unlabeled_documents": other}
    Mixed([AT(), VAT(), EntMin()])(network, given, None).total.backward()
    assert len(drawn) == 2


# what is measured


@pytest.mark.parametrize("classes", CLASSES)
def test_divergence_and_entropy_are_those_of_torchs_distributions(classes: int) -> None:
    logits, other = torch.randn(2, 5, num_outputs(classes)).double() * 3

    def distribution(z: Tensor) -> Any:
        if classes == 2:
            return torch.distributions.Bernoulli(logits=z.squeeze(-1))
        return torch.distributions.Categorical(logits=z)

    expected = torch.distributions.kl_divergence(distribution(logits), distribution(other))
    torch.testing.assert_close(kl_divergence(logits, other), expected)
    torch.testing.assert_close(entropy(logits), distribution(logits).entropy())


def test_of_multi_label_predictions_they_are_the_means_over_labels() -> None:
    logits, other = torch.randn(2, 5, 3).double() * 3
    p, q = (torch.distributions.Bernoulli(logits=z) for z in (logits, other))
    expected = torch.distributions.kl_divergence(p, q).mean(1)
    torch.testing.assert_close(kl_divergence(logits, other, multilabel=True), expected)
    torch.testing.assert_close(entropy(logits, multilabel=True), p.entropy().mean(1))


def test_float16_alone_is_too_narrow_for_gradients() -> None:
    network, documents = sharp().float().eval(), batch()
    reading = Reading.of(network, documents)
    found = []
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype):
            found.append(is_float16(reading.embeds))
    assert found == [True, False]
    assert not is_float16(reading.embeds)


@pytest.mark.parametrize("classes", CLASSES)
def test_directions_are_those_of_float32_under_bfloat16(classes: int) -> None:
    network, documents = sharp(classes).float(), batch(classes)
    documents.input_ids = torch.randint(1, 12, (4, 60))
    documents.attention_mask = torch.ones(4, 60)
    exact = sharp(classes)
    exact.load_state_dict({k: v.double() for k, v in network.state_dict().items()})

    def directions(net: Network, autocast: bool) -> list[Tensor]:
        torch.manual_seed(9)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            step = step_of(net, documents)
            reading = step.reading("labeled")
            assert (reading.encoded.hidden.dtype == torch.bfloat16) == autocast
            return [AT().towards(reading, step), VAT(xi=0.01).towards(reading)]

    # a gradient of the pass in bfloat16 itself, except VAT's of three classes, which is a small difference
    bounds = (0.97, 0.97 if classes == 2 else 0.999)
    for lower, reference, bound in zip(directions(network, True), directions(network, False), bounds, strict=True):
        assert F.cosine_similarity(lower.flatten(1), reference.flatten(1)).min() > bound
    for single, double in zip(directions(network, False)[:1], directions(exact, False)[:1], strict=True):
        assert F.cosine_similarity(single.double().flatten(1), double.flatten(1)).min() > 0.9999


@pytest.mark.parametrize("classes", CLASSES)
def test_under_float16_gradients_of_a_sure_prediction_are_those_of_float32(classes: int) -> None:
    """The passes are exact there; cast to float16, most of the backward pass of a loss of 6e-7 would be zeros."""
    network, documents = sharp(classes).float().eval(), batch(classes)
    with torch.no_grad():
        network.classifier.linear.bias[0] += -15.0 if classes == 2 else 15.0  # type: ignore[union-attr]
    documents.labels = torch.zeros(4, dtype=torch.int64)
    reading = Reading.of(network, documents)
    found: dict[bool, list[Tensor]] = {}
    for autocast in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            step = step_of(network, documents)
            step._readings["labeled"] = reading
            torch.manual_seed(3)
            found[autocast] = [AT().towards(reading, step), VAT().towards(reading)]
            losses = 1e-4 * entropy(reading.logits).mean(), 1e-4 * step.loss(reading.logits)
            found[autocast] += [share_of_gradient(*losses, network.parameters())]
    *lower, share = found[True]
    *reference, expected = found[False]
    for ours, theirs in zip(lower, reference, strict=True):
        assert F.cosine_similarity(ours.flatten(1), theirs.flatten(1)).min() > 0.9999
    torch.testing.assert_close(share, expected, rtol=1e-5, atol=0.0)


def own_term(name: str) -> Term:
    term = EntMin()
    term.name = name
    return term


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AT(norm=-1.0), "norm=-1.0"),
        (lambda: AT(weight=-1.0), "weight=-1.0"),
        (lambda: EntMin(ramp_steps=-1), "ramp_steps=-1"),
        (lambda: VAT(xi=0.0), "xi=0.0"),
        (lambda: VAT(power_steps=0), "power_steps=0"),
        (lambda: Mixed([VAT(), VAT()]), "vat, vat: give each of them once"),
        (lambda: Mixed([own_term("loss")]), "a term is named loss, under which another figure"),
        (lambda: Mixed([own_term("predicted_0")]), "a term is named predicted_0"),
    ],
)
def test_values_out_of_range_are_told(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("term", [AT(), VAT(), VAT(direction="random")])
def test_what_moves_token_vectors_refuses_two_ways_of_which_only_the_ends_learn(term: Term) -> None:
    encoder = TwoWayEncoder(12, embedding_size=4, hidden_size=3)
    head = ClassifierHead(encoder.output_size, 2)
    Mixed([term]).prepare(Network(encoder, classifier=head))
    with pytest.raises(ValueError, match="leave out backprop_tokens"):
        Mixed([term]).prepare(Network(encoder, classifier=head, backprop_tokens=2))
