"""One backward pass for the perturbation and the step: the same gradients as two, from as many passes as it says."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor
from toy_network import Batch, batch, build

from lit_sft.models import Network
from lit_sft.models.encoder import EncoderOutput
from lit_sft.objectives import AT, VAT, AdversarialMLE, EntMin, Mixed, Objective, Supervised, Term
from lit_sft.objectives.divergence import entropy
from lit_sft.objectives.gradients import differentiated
from lit_sft.objectives.mle import mean_nll
from lit_sft.objectives.penalties import Penalties
from lit_sft.objectives.reading import Reading, unit

DROPOUTS = {"encoder": {"embedding_dropout": 0.3, "hidden_dropout": 0.3, "weight_dropout": 0.3, "word_dropout": 0.2}}


def gradients(loss: Tensor, network: Network) -> list[Tensor | None]:
    network.zero_grad(set_to_none=True)
    loss.backward()
    return [None if p.grad is None else p.grad.clone() for p in network.parameters()]


def found(objective: Objective, network: Network, documents: Batch) -> tuple[Tensor, list[Tensor | None]]:
    """The loss of one step, and its gradients."""
    torch.manual_seed(3)
    total = objective(network, {"labeled": documents, "unlabeled": documents}, None).total
    return total.detach(), gradients(total, network)


@pytest.mark.parametrize("factor", [1.0, -0.25])
def test_a_loss_that_knows_its_gradients_has_the_value_and_the_gradients_of_the_loss(factor: float) -> None:
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    frozen, unused = torch.ones(3, dtype=torch.float64), torch.ones(1, requires_grad=True)

    def loss() -> Tensor:
        return (weights[0] * x).sin().sum() + (weights[1] * frozen).exp().sum() * weights[2].prod()

    known, at_x = differentiated(loss(), x, [*weights, frozen, unused])
    assert torch.equal(known, loss())
    expected = torch.autograd.grad(loss(), [x, *weights])
    assert torch.equal(at_x, expected[0])
    (factor * known).backward()
    for weight, gradient in zip(weights, expected[1:], strict=True):
        torch.testing.assert_close(weight.grad, factor * gradient)
    assert x.grad is frozen.grad is unused.grad is None


def test_a_loss_of_other_things_has_no_gradient_there() -> None:
    x, weight = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    assert torch.equal(differentiated(weight.sum(), x, [weight])[1], torch.zeros(2))


@pytest.mark.parametrize(("penalty", "tail"), [(0.0, None), (0.5, None), (0.0, 2)])
def test_a_step_of_at_has_the_gradients_of_two_backward_passes(penalty: float, tail: int | None) -> None:
    """And terms that read the clean pass beside it still go back through it, as its penalties do."""
    network, documents = build(**DROPOUTS).train(), batch()
    network.backprop_tokens = tail
    terms = [AT(norm=0.7, weight=0.4), EntMin(weight=0.3, unlabeled=False)]
    objective = Mixed(terms, activation_penalty=penalty)
    total, ours = found(objective, network, documents)

    torch.manual_seed(3)
    reading, loss = Reading.of(network, documents), Supervised().loss
    clean = loss(reading.logits, documents.labels)
    (gradient,) = torch.autograd.grad(clean, reading.embeds, retain_graph=True)
    moved = loss(reading.perturbed(0.7 * unit(gradient, reading.reach)), documents.labels)
    expected = clean + 0.4 * moved + 0.3 * entropy(reading.logits).mean()
    expected = Penalties(penalty, 0.0).add(expected, {}, reading.encoded, documents.attention_mask)
    torch.testing.assert_close(total, expected.detach())
    for a, b in zip(ours, gradients(expected, network), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("head", [{}, {"loss_chunk": 7}, {"tie_weights_up_to": 0, "adaptive_cutoffs": [4, 8]}])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_of_the_adversarial_lm_has_the_gradients_of_two_backward_passes(
    head: dict[str, Any], frozen: bool
) -> None:
    network, stream = build(lm=head, **DROPOUTS).train(), batch()
    network.encoder.embedding.weight.requires_grad_(not frozen)
    total, ours = found(AdversarialMLE(norm=0.7, weight=0.4, temporal_penalty=0.5), network, stream)

    torch.manual_seed(3)
    state = network.encoder.initial_state(4)
    masks = network.draw_masks(*stream.input_ids.shape)
    embeds = network.encoder.embed(stream.input_ids, masks.encoder)
    if frozen:
        embeds.requires_grad_()
    clean, _ = mean_nll(network, network.encode(stream, state, masks, embeds).hidden, stream.targets)
    (gradient,) = torch.autograd.grad(clean, embeds, retain_graph=True)
    reach = stream.attention_mask.unsqueeze(-1)
    encoded = network.encode(stream, state, masks, embeds + 0.7 * unit(gradient, reach))
    expected = clean + 0.4 * mean_nll(network, encoded.hidden, stream.targets)[0]
    expected = Penalties(0.0, 0.5).add(expected, {}, encoded, stream.attention_mask)
    torch.testing.assert_close(total, expected.detach())
    for a, b in zip(ours, gradients(expected, network), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("objective", "classes", "autocast", "expected"),
    [
        (Mixed([AT()], diagnose_every=0), 3, False, [1, 1]),
        (AdversarialMLE(activation_penalty=1.0, temporal_penalty=1.0), 3, False, [1, 1]),
        (Mixed([VAT(unlabeled=False)], diagnose_every=0), 3, False, [1, 1, 1]),
        (Mixed([VAT(unlabeled=False)], diagnose_every=0), 3, True, [1, 0, 1, 1]),  # one pass more, in float32
        (Mixed([VAT(unlabeled=False)], diagnose_every=0), 2, True, [1, 1, 1]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else str(value),
)
def test_a_step_takes_as_many_passes_as_the_readme_says_and_each_goes_back_once(
    objective: Objective, classes: int, autocast: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, back, encode = build(classes).float().train(), [], Network.encode

    def counted(self: Network, *given: Any) -> EncoderOutput:
        encoded, number = encode(self, *given), len(back)
        back.append(0)

        def count(gradient: Tensor) -> None:
            back[number] += 1

        if encoded.hidden.requires_grad:
            encoded.hidden.register_hook(count)
        return encoded

    monkeypatch.setattr(Network, "encode", counted)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found(objective, network, batch(classes))
    assert back == expected


class Kept:
    """A tensor that a pass has saved for its backward pass."""

    def __init__(self, tensor: Tensor, number: int) -> None:
        self.tensor, self.number = tensor.detach(), number  # else it would keep the graph that keeps it


@pytest.mark.parametrize(
    ("terms", "penalty", "expected"),
    [
        ([AT()], 0.0, {1}),
        ([AT(direction="random")], 0.0, {0, 1}),  # the supervised loss still goes back through the clean pass
        ([VAT()], 0.0, {0, 4, 5}),  # 1 is the clean pass over unlabeled documents, 2 and 3 find the directions
        ([AT(), VAT()], 0.0, {1, 5, 6}),
        ([VAT(), AT()], 0.0, {4, 5, 6}),
        ([AT(), VAT()], 0.1, {0, 1, 2, 5, 6}),
        ([AT(), VAT(), EntMin()], 0.0, {0, 1, 2, 5, 6}),
    ],
)
def test_passes_that_no_gradient_goes_through_are_freed_and_the_gradients_are_the_same_bits(
    terms: list[Term], penalty: float, expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`expected`: the passes, by number, whose activations are in memory at the end of the last pass."""
    network, encode, saved, held = build(**DROPOUTS).train(), Network.encode, WeakSet[Kept](), list[set[int]]()
    objective = Mixed(terms, diagnose_every=0, activation_penalty=penalty)
    given = {"labeled": batch(), "unlabeled_documents": batch()}

    def watched(self: Network, *given: Any) -> EncoderOutput:
        def keep(tensor: Tensor) -> Kept:
            saved.add(one := Kept(tensor, len(held)))
            return one

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one.tensor):
            encoded = encode(self, *given)
        held.append({one.number for one in saved})
        return encoded

    def step() -> list[Tensor | None]:
        torch.manual_seed(3)
        return gradients(objective(network, given, None).total, network)

    with monkeypatch.context() as patched:
        patched.setattr(Network, "encode", watched)
        step()
    assert held[-1] == expected
    objective.diagnose_every = 1
    freed = step()
    for term in terms:
        term.through_clean = True
    for a, b in zip(freed, step(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.0)
