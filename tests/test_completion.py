"""The loss of responses against a slow loop over their tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_pairs import EOS, array_of
from torch import Tensor
from toy_network import build, encoded, squares_of

from lit_sft.data.pairs import PairBatch, PairDataset
from lit_sft.models import LMHead, LSTMEncoder, Network
from lit_sft.objectives import Completion
from lit_sft.objectives.base import Loss

PAIRS = [([3, 4, 5], [6, 7]), ([8], [9, 10, 11, 3]), ([4, 4, 4, 4, 4], [5]), ([6, 7], [8, 9, 10])]


def batch_of(pairs: list[tuple[list[int], list[int]]], longest: int = 100) -> PairBatch:
    data = PairDataset(array_of(pairs), EOS, 0, 100, "head", 10_000, 100, 0, False, max_response_length=longest)
    assert len(data) == 1
    return data[0]


def slow(network: Network, pairs: list[tuple[list[int], list[int]]]) -> tuple[list[Tensor], list[Tensor]]:
    """The losses of the prompts' tokens and of the responses', each pair read alone."""
    assert network.lm_head is not None
    of_prompts, of_responses = [], []
    for prompt, response in pairs:
        ids = torch.tensor([[EOS, *prompt, EOS, *response, EOS]])
        masks = network.encoder.draw_masks(*ids.shape)
        hidden = encoded(network.encoder, ids, torch.ones_like(ids), network.encoder.initial_state(1), masks).hidden
        log_prob = network.lm_head.log_prob(hidden[0])  # (tokens, vocab)
        losses = [-log_prob[place, token] for place, token in enumerate(ids[0, 1:].tolist())]
        of_prompts += losses[: len(prompt) + 1]
        of_responses += losses[len(prompt) + 1 :]
    return of_prompts, of_responses


def loss_of(objective: Completion, network: Network, batch: PairBatch) -> Loss:
    return objective(network, {"pairs": batch}, None)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_loss_is_the_mean_over_the_responses_tokens(adaptive: bool) -> None:
    torch.manual_seed(0)
    encoder = LSTMEncoder(12, 4, 6)
    head = LMHead(encoder.embedding, 6, tie_weights_up_to=0 if adaptive else 100)
    network = Network(encoder, head).double().eval()
    of_prompts, of_responses = slow(network, PAIRS)
    loss = loss_of(Completion(), network, batch_of(PAIRS))
    torch.testing.assert_close(loss.total, sum(of_responses) / len(of_responses))
    assert loss.weight == len(of_responses) == 14
    assert loss.state is None
    assert loss.parts["completion"] == loss.total
    everything = loss_of(Completion(completion_only=False), network, batch_of(PAIRS))
    torch.testing.assert_close(everything.total, sum(of_prompts + of_responses) / len(of_prompts + of_responses))
    assert everything.weight == len(of_prompts + of_responses)


def test_gradients_are_those_of_the_slow_loop() -> None:
    network = build().eval()
    torch.stack(slow(network, PAIRS)[1]).mean().backward()
    expected = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    loss_of(Completion(), network, batch_of(PAIRS)).total.backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(network.named_parameters())[name].grad, gradient)


def test_a_pair_has_the_same_loss_alone_and_in_a_padded_batch() -> None:
    network = build().eval()
    alone = [loss_of(Completion(), network, batch_of([pair])) for pair in PAIRS]
    tokens = torch.stack([loss.weight for loss in alone])
    together = loss_of(Completion(), network, batch_of(PAIRS))
    torch.testing.assert_close(
        together.total, (torch.stack([loss.total for loss in alone]) * tokens).sum() / tokens.sum()
    )


def test_what_a_prompt_says_counts_and_what_is_left_of_a_response_is_all_that_does() -> None:
    network = build().eval()
    plain = loss_of(Completion(), network, batch_of([([3, 4], [5, 6, 7])])).total
    assert loss_of(Completion(), network, batch_of([([3, 8], [5, 6, 7])])).total != plain
    cut = loss_of(Completion(), network, batch_of([([3, 4], [5, 6, 7])], longest=2))
    torch.testing.assert_close(cut.total, sum(slow(network, [([3, 4], [5, 6, 7])])[1][:2]) / 2)
    assert cut.weight == 2


def test_penalties_are_those_of_prompts_and_responses() -> None:
    network, rows = build().eval(), []
    for prompt, response in PAIRS:
        ids = torch.tensor([[EOS, *prompt, EOS, *response, EOS]])
        masks, state = network.encoder.draw_masks(*ids.shape), network.encoder.initial_state(1)
        rows.append(encoded(network.encoder, ids, torch.ones_like(ids), state, masks).hidden[0])
    squares, changes = squares_of(rows)
    loss = loss_of(Completion(activation_penalty=2.0, temporal_penalty=0.5), network, batch_of(PAIRS))
    torch.testing.assert_close(loss.parts["activation_penalty"], 2.0 * squares)
    torch.testing.assert_close(loss.parts["temporal_penalty"], 0.5 * changes)
    torch.testing.assert_close(loss.total, loss.parts["completion"] + 2.0 * squares + 0.5 * changes)


def test_an_empty_share_is_zero_with_gradients_of_zero() -> None:
    network = build()
    data = PairDataset(array_of(PAIRS[:1]), EOS, 0, 100, "head", 10_000, 100, 0, False, max_response_length=100)
    data.shard(1, 2)
    loss = loss_of(Completion(), network, data[0])
    loss.total.backward()
    assert loss.total == 0
    assert loss.weight == 0
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


def test_bfloat16_has_the_loss_of_float32() -> None:
    network = build().float().eval()
    exact = loss_of(Completion(), network, batch_of(PAIRS)).total
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss_of(Completion(), network, batch_of(PAIRS)).total
    assert rounded.dtype == torch.float32
    np.testing.assert_allclose(rounded.detach(), exact.detach(), rtol=0.01)
