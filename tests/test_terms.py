"""The terms' values, and how `Mixed` adds them, against loops over single documents."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_adversarial import alone, logits_at, plain_loss, sharp, step_of, value
from torch import Tensor
from toy_network import Batch, batch, build

from lit_sft.models import ClassifierHead, Network, TwoWayEncoder
from lit_sft.objectives import AT, VAT, AuxiliaryLM, EntMin, Mixed, Supervised, Term
from lit_sft.objectives import vat as vat_module
from lit_sft.objectives.reading import Reading, random_unit, unit
from lit_sft.objectives.term import Step


def others(classes: int = 3) -> Batch:
    """Unlabeled documents, unlike those of `batch`; the last row stands for none."""
    documents = batch(classes)
    documents.input_ids = torch.where(documents.attention_mask, 12 - documents.input_ids, 0)
    documents.indices = torch.tensor([5, 6, 7, -1])
    return documents


def probabilities(logits: Tensor) -> Tensor:
    """(1, num_outputs) -> (classes,), by a softmax, or for one output by a sigmoid."""
    if logits.shape[-1] > 1:
        return logits.softmax(-1)[0]
    positive = logits.sigmoid()[0, 0]
    return torch.stack([1 - positive, positive])


def predicted(network: Network, documents: Batch, vectors: Tensor | None = None) -> list[Tensor]:
    """Probabilities of each document that is one, read alone."""
    found = []
    for row in range(4):
        if documents.indices[row] >= 0:
            document = alone(documents, row)
            embeds = network.encoder.embedding(document.input_ids)
            if vectors is not None:
                embeds = vectors[row : row + 1, : embeds.shape[1]]
            found.append(probabilities(logits_at(network, document, embeds)))
    return found


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("unlabeled", [True, False])
def test_entropy_minimisation_is_the_mean_entropy_of_documents(classes: int, unlabeled: bool) -> None:
    network, labeled, other = sharp(classes).eval(), batch(classes), others(classes)
    rows = predicted(network, labeled) + (predicted(network, other) if unlabeled else [])
    expected = torch.stack([-(p * p.log()).sum() for p in rows]).mean()
    torch.testing.assert_close(value(EntMin(unlabeled), step_of(network, labeled, other)), expected)


def test_vat_is_a_mean_over_labeled_and_unlabeled_documents() -> None:
    network, labeled, other = sharp().eval(), batch(), others()
    step = step_of(network, labeled, other)
    torch.manual_seed(3)
    found = value(VAT(norm=0.8), step)
    torch.manual_seed(3)
    values = []
    for documents, reading in ((labeled, step.reading("labeled")), (other, step.reading("unlabeled_documents"))):
        moved = reading.embeds + 0.8 * VAT(norm=0.8).towards(reading)
        for p, q in zip(predicted(network, documents), predicted(network, documents, moved), strict=True):
            values.append((p * (p.log() - q.log())).sum())
    assert len(values) == 7
    torch.testing.assert_close(found, torch.stack(values).mean())


def kl_at(network: Network, document: Batch, move: Tensor) -> Tensor:
    """KL(p(s) || p(s + move)) of one document, a scalar."""
    vectors = network.encoder.embedding(document.input_ids).detach()
    p = probabilities(logits_at(network, document, vectors)).detach()
    q = probabilities(logits_at(network, document, vectors + move))
    return (p * (p.log() - q.log())).sum()


@pytest.mark.parametrize("classes", [2, 3])
def test_the_ratio_that_vat_logs_is_that_of_two_sums_over_documents(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both random draws, the iteration's start and the move to compare with, are given; two classes need no xi."""
    xi = 1e-5 if classes == 2 else 0.1
    network, labeled, other = sharp(classes).eval(), batch(classes), others(classes)
    step = step_of(network, labeled, other, diagnose=True)
    readings = [step.reading("labeled"), step.reading("unlabeled_documents")]
    starts, moves = ([random_unit(r.reach, r.embeds) for r in readings] for _ in range(2))
    draws = iter([*starts, *moves])
    monkeypatch.setattr(vat_module, "random_unit", lambda *_: next(draws))
    VAT(norm=0.8, xi=0.1)(step)
    ours, by_chance, counted = 0.0, 0.0, 0
    for documents, start, move in zip((labeled, other), starts, moves, strict=True):
        for row in range(4):
            if documents.indices[row] < 0:
                continue
            document = alone(documents, row)
            length = document.input_ids.shape[1]
            near = (xi * start[row : row + 1, :length]).requires_grad_()
            (direction,) = torch.autograd.grad(kl_at(network, document, near), near)
            direction[:, -1] = 0.0  # the document's end stays
            ours += kl_at(network, document, 0.8 * direction / direction.norm()).item()
            by_chance += kl_at(network, document, 0.8 * move[row : row + 1, :length]).item()
            counted += 1
    assert counted == 7
    assert step.measured["vat_kl_ratio"].item() == pytest.approx(ours / by_chance, rel=1e-4 if classes == 2 else 1e-9)
    assert ours > 2 * by_chance


@pytest.mark.parametrize("term", [EntMin(unlabeled=False), VAT(norm=0.5, unlabeled=False)])
def test_multi_label_terms_are_means_over_documents_and_labels(term: Term) -> None:
    network, documents = sharp().eval(), batch()
    network.classifier = ClassifierHead(network.encoder.output_size, 3, multilabel=True).double()
    documents.labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    step = step_of(network, documents)
    reading = step.reading("labeled")
    torch.manual_seed(3)
    found = value(term, step)
    torch.manual_seed(3)
    p = torch.distributions.Bernoulli(logits=reading.logits)
    if isinstance(term, VAT):
        q = torch.distributions.Bernoulli(logits=reading.perturbed(0.5 * term.towards(reading)))
        torch.testing.assert_close(found, torch.distributions.kl_divergence(p, q).mean())
    else:
        torch.testing.assert_close(found, p.entropy().mean())


@pytest.mark.parametrize("number", [0, 1, 3, 4, 50])
def test_mixed_is_the_weighted_sum_with_its_ramps(number: int) -> None:
    network, labeled, other = sharp().eval(), batch(), others()
    terms: list[Term] = [AT(norm=0.5, weight=0.7), EntMin(weight=2.0, ramp_steps=4)]
    mixed = Mixed(terms, diagnose_every=0)
    mixed.step = number
    found = mixed(network, {"labeled": labeled, "unlabeled_documents": other}, None)
    ramp = min(1.0, (number + 1) / 4)
    parts = [value(term, step_of(network, labeled, other)) for term in terms]
    rows = zip(predicted(network, labeled), labeled.labels, strict=True)
    supervised = torch.stack([-p[label].log() for p, label in rows]).mean()
    torch.testing.assert_close(found.total, supervised + 0.7 * parts[0] + 2.0 * ramp * parts[1])
    torch.testing.assert_close(found.parts["supervised"], supervised)
    torch.testing.assert_close(found.parts["at"], parts[0])  # as they are, without weight and ramp
    torch.testing.assert_close(found.parts["entmin"], parts[1])
    assert set(found.parts) == {"supervised", "at", "entmin"}
    assert math.isclose(sum(share.item() for share, _ in found.shares), found.total.item())


def share(whole: Batch, rank: int) -> Batch:
    """Every other row: what one of two processes reads of a batch."""
    names = ("input_ids", "attention_mask", "targets", "labels", "indices")
    return Batch(**{name: getattr(whole, name)[rank::2] for name in names})


@pytest.mark.parametrize("multilabel", [False, True])
def test_uneven_shares_weighted_by_what_they_are_means_over_make_up_the_whole(
    multilabel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What several processes rest on. Some rows have no label, stand for no document, or have no target."""
    monkeypatch.setattr(vat_module, "random_unit", lambda reach, like: unit(like.detach().cos(), reach))
    network, labeled, stream = sharp(classifier={"multilabel": multilabel}).eval(), batch(), batch()
    labeled.labels = torch.tensor([0, 1, -1, 2])
    if multilabel:
        labeled.labels = torch.tensor([[1, 0, 1], [0, 0, 0], [-1, -1, -1], [0, 1, 0]])
    stream.targets[1] = -100
    given = {"labeled": labeled, "unlabeled_documents": others(), "unlabeled": stream}
    terms: list[Term] = [AT(norm=0.5), VAT(norm=0.8), EntMin(weight=2.0), AuxiliaryLM()]
    mixed = Mixed(terms, diagnose_every=0, class_weights=[0.5, 2.0, 1.0])
    ranks = [{kind: share(documents, rank) for kind, documents in given.items()} for rank in (0, 1)]
    whole, one, two = (mixed(network, read, None).shares for read in (given, *ranks))
    assert len(whole) == 5
    for (loss, count), (loss_1, count_1), (loss_2, count_2) in zip(whole, one, two, strict=True):
        assert count is not None
        assert count_1 is not None
        assert count_2 is not None
        torch.testing.assert_close(count_1 + count_2, count)
        torch.testing.assert_close((loss_1 * count_1 + loss_2 * count_2) / count, loss)
        assert count_1 != count_2


@pytest.mark.parametrize("classes", [2, 3])
def test_the_diagnostics_are_shares_of_gradient_and_of_documents(classes: int) -> None:
    network, labeled, other = sharp(classes).eval(), batch(classes), others(classes)
    mixed = Mixed([AT(norm=0.5), EntMin(weight=3.0)], diagnose_every=2)
    mixed.step = 5
    given = {"labeled": labeled, "unlabeled_documents": other}
    measured = mixed(network, given, None).measured
    step = step_of(network, labeled, other)
    losses = (3.0 * value(EntMin(), step), Supervised()(network, given, None).total + value(AT(norm=0.5), step))
    parameters = [p for p in network.parameters() if p.requires_grad]
    norms = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        norms.append(math.sqrt(sum(g.square().sum().item() for g in gradients if g is not None)))
    assert measured["unlabeled_share"].item() == pytest.approx(norms[0] / sum(norms), rel=1e-5)
    choices = [p.argmax().item() for p in predicted(network, other)]
    for number in range(classes):
        assert measured[f"predicted_{number}"].item() == pytest.approx(choices.count(number) / 3)
    mixed.step = 6
    assert mixed(network, given, None).measured == {}


@pytest.mark.parametrize("tail", [1, 2, 4, 9])
def test_a_perturbation_stays_within_the_tail_that_has_a_gradient(tail: int) -> None:
    network, documents = sharp(), batch()
    network.backprop_tokens = tail
    reach = Reading.of(network, documents).reach.squeeze(-1)
    for row, length in enumerate(documents.attention_mask.sum(1).tolist()):
        expected = [length - tail <= place < length - 1 for place in range(6)]  # all of the tail but the end
        assert reach[row].tolist() == expected


def test_adversarial_training_in_two_ways_is_autograd_written_out() -> None:
    encoder = TwoWayEncoder(12, embedding_size=4, hidden_size=5)
    network = Network(encoder, classifier=ClassifierHead(encoder.output_size, 3)).double().eval()
    documents = batch()
    step: Step = step_of(network, documents)
    reading = step.reading("labeled")
    found = AT().towards(reading, step)
    embeds = reading.embeds.detach().requires_grad_()
    logits = network.classify(documents, network.draw_masks(4, 6), embeds)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, documents.labels), embeds)
    for row, length in enumerate(documents.attention_mask.sum(1).tolist()):
        own = gradient[row].clone()
        own[length - 1 :] = 0.0
        own[0] = 0.0  # where the backward half ends
        torch.testing.assert_close(found[row], own / own.norm())


def test_a_plain_loss_by_hand_is_that_of_supervised() -> None:
    """What the loops here are built on."""
    for classes in (2, 3):
        network, documents = build(classes).eval(), batch(classes)
        rows: list[Any] = [alone(documents, row) for row in range(4)]
        values = [plain_loss(logits_at(network, r, network.encoder.embedding(r.input_ids)), r.labels) for r in rows]
        found = Supervised()(network, {"labeled": documents}, None).total
        torch.testing.assert_close(found, torch.stack(values).mean())
