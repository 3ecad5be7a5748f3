"""The gradient through the ends of documents alone, against a loop over single tokens that detaches the state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_network import GRUEncoder, compare_gradients
from torch import Tensor
from toy_network import Batch

from lit_sft.models import ClassifierHead, Encoder, LSTMEncoder, Masks, Network
from lit_sft.models.encoder import detach_state
from lit_sft.objectives import Supervised

LENGTHS = (13, 11, 5, 1, 8)
RATES = ("embedding_dropout", "hidden_dropout", "output_dropout", "weight_dropout", "type_dropout", "word_dropout")


def documents(time: int = 13) -> Batch:
    mask = torch.arange(time) < torch.tensor(LENGTHS).unsqueeze(1)
    ids = torch.randint(1, 12, mask.shape)
    return Batch(ids.where(mask, 0), mask, ids, torch.tensor([0, 2, 1, 2, 1]))


def network_of(tail: int | None, encoder: Encoder | None = None, pooling: Any = "concat") -> Network:
    torch.manual_seed(1)
    encoder = encoder or LSTMEncoder(12, 4, 6, 2, **dict.fromkeys(RATES, 0.4))
    return Network(encoder, None, ClassifierHead(encoder.output_size, 3, pooling), tail).double()


def starts(tail: int) -> list[int]:
    """Where the gradient of each document begins: at a multiple of a quarter of the tail, `tail` before its end."""
    chunk = {1: 1, 2: 1, 3: 1, 4: 1, 5: 2, 6: 2, 8: 2, 11: 3, 12: 3, 13: 4, 40: 10}[tail]
    return [max(0, length - tail) // chunk * chunk for length in LENGTHS]


def one_by_one(network: Network, batch: Batch, masks: Masks, begin: list[int]) -> Tensor:
    """Logits from single tokens, one after another, of single documents; the state is cut off where `begin` says."""
    encoder = network.encoder
    logits = []
    for row, length in enumerate(LENGTHS):
        alone = torch.arange(row, row + 1)
        embeds = encoder.embed(batch.input_ids, masks.encoder)[alone]
        state, hidden = encoder.initial_state(1), []
        for place in range(length):
            if place == begin[row]:
                state, hidden = detach_state(state), [vector.detach() for vector in hidden]
            token, real = embeds[:, place : place + 1], torch.ones(1, 1, dtype=torch.bool)
            out = encoder(token, real, state, row_of(masks.encoder, alone))
            state = out.state
            hidden.append(out.hidden)
        vectors = torch.cat(hidden, 1)  # (1, length, units)
        pooled = torch.cat([vectors[:, -1], vectors.amax(1), vectors.mean(1)], -1)
        if masks.classifier is not None:
            pooled = pooled * masks.classifier[alone]
        logits.append(network.classifier.linear(pooled))  # type: ignore[union-attr]
    return torch.cat(logits)


def row_of(masks: Any, alone: Tensor) -> Any:
    """The masks of one document; those of weights serve all."""
    if isinstance(masks, dict):
        return {name: None if mask is None else mask[alone] for name, mask in masks.items()}
    if not hasattr(masks, "output"):
        return masks
    chosen = [None if mask is None else mask[alone] for mask in (masks.embedding, *masks.hidden, masks.output)]
    return type(masks)(chosen[0], tuple(chosen[1:-1]), chosen[-1], masks.recurrent)


@pytest.mark.parametrize("tail", [1, 5, 12])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_are_those_of_the_loop(tail: int, kind: str, training: bool) -> None:
    network = network_of(tail, GRUEncoder(12, 6) if kind == "gru" else None).train(training)
    batch = documents()
    masks = network.draw_masks(*batch.input_ids.shape)
    logits = network.classify(batch, masks)
    expected = one_by_one(network, batch, masks, starts(tail))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    compare_gradients(network, logits, expected)
    network.backprop_tokens = None
    torch.testing.assert_close(network.classify(batch, masks), logits, rtol=0, atol=1e-12)


def gradients(network: Network, batch: Batch) -> Iterator[tuple[Tensor, list[Tensor]]]:
    for pooling in ("last", "mean", "max", "concat", "attention"):
        head = ClassifierHead(network.encoder.output_size, 3, pooling)  # type: ignore[arg-type]
        network.classifier = head.double()
        torch.manual_seed(3)
        masks = network.draw_masks(*batch.input_ids.shape)
        logits = network.classify(batch, masks)
        found = torch.autograd.grad(logits.square().sum(), list(network.parameters()))
        yield logits, list(found)


@pytest.mark.parametrize("tail", [13, 40])
def test_a_batch_within_the_tail_is_bit_equal_to_one_without_the_option(tail: int) -> None:
    batch, results = documents(), []
    for option in (tail, None):
        torch.manual_seed(2)
        results.append(list(gradients(network_of(option), batch)))
    for (logits, found), (expected_logits, expected) in zip(*results, strict=True):
        assert torch.equal(logits, expected_logits)
        assert all(map(torch.equal, found, expected))


def test_a_document_within_the_tail_gets_its_full_gradient_beside_longer_ones() -> None:
    """The rows of 5 and 1 tokens, with a tail of 6 in a batch of 13; and what has no label or token gives nothing."""
    batch, whole, cut = documents(), network_of(None), network_of(6)
    masks = whole.draw_masks(*batch.input_ids.shape)
    for rows, same in (([2, 3], True), ([0], False), ([1], False)):
        found = [
            torch.autograd.grad(network.classify(batch, masks)[rows].square().sum(), list(network.parameters()))
            for network in (whole, cut)
        ]
        near = all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*found, strict=True))
        assert near is same


def test_perturbed_embeds_get_their_gradient_at_the_ends() -> None:
    network, batch = network_of(4), documents()
    masks = network.draw_masks(*batch.input_ids.shape)
    embeds = network.encoder.embed(batch.input_ids, masks.encoder).detach().requires_grad_()
    logits = network.classify(batch, masks, embeds)
    assert torch.equal(logits, network.classify(batch, masks))
    (found,) = torch.autograd.grad(logits.square().sum(), embeds)
    places = torch.arange(13)
    ends = batch.attention_mask & (places >= torch.tensor(starts(4)).unsqueeze(1))
    assert ((found != 0).any(-1) == ends).all()


def test_raw_output_is_put_together_as_the_output_is() -> None:
    """Without output dropout both are the same at tokens."""
    network, batch = network_of(3, LSTMEncoder(12, 4, 6, 2, output_dropout=0.0)), documents()
    masks = network.draw_masks(*batch.input_ids.shape)
    out = network.encode(batch, None, masks)
    assert out.raw is not None
    assert torch.equal(out.raw * batch.attention_mask.unsqueeze(-1), out.hidden)
    (wanted,) = torch.autograd.grad(
        out.hidden.square().sum(), network.encoder.layers[0].weight_hh_l0, retain_graph=True
    )
    kept = out.raw * batch.attention_mask.unsqueeze(-1)
    (found,) = torch.autograd.grad(kept.square().sum(), network.encoder.layers[0].weight_hh_l0)
    torch.testing.assert_close(found, wanted)


class Counting(LSTMEncoder):
    """Remembers how many positions it has read with a gradient, and how many without."""

    def forward(self, input_ids: Any, attention_mask: Tensor, *rest: Any, **more: Any) -> Any:
        self.read = getattr(self, "read", {True: 0, False: 0})
        self.read[torch.is_grad_enabled()] += attention_mask.shape[1]
        return super().forward(input_ids, attention_mask, *rest, **more)


def test_only_the_tail_is_read_with_a_gradient_and_evaluation_reads_once() -> None:
    encoder = Counting(12, 4, 6)
    network = network_of(40, encoder)
    mask = torch.ones(3, 400, dtype=torch.bool)
    batch = Batch(torch.randint(1, 12, mask.shape), mask, mask.long(), torch.tensor([0, 1, 2]))
    Supervised()(network, {"labeled": batch}, None).total.backward()
    assert encoder.read == {True: 49, False: 360}
    encoder.read = {True: 0, False: 0}
    with torch.no_grad():
        network.classify(batch, network.draw_masks(3, 400))
    assert encoder.read == {True: 0, False: 400}


def test_half_precision_stays_near_full_precision() -> None:
    network, batch = network_of(5, LSTMEncoder(12, 4, 6, 2)).float(), documents()
    masks = network.draw_masks(*batch.input_ids.shape)
    full = network.classify(batch, masks)
    with torch.autocast("cpu", torch.bfloat16):
        half = network.classify(batch, masks)
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.02)
    half.float().square().sum().backward()
    assert all(isinstance(p.grad, Tensor) and p.grad.isfinite().all() for p in network.parameters())


def test_a_tail_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="backprop_tokens=0 must be at least 1"):
        Network(LSTMEncoder(12), None, ClassifierHead(384, 3), 0)
