"""The sequence autoencoder against a slow loop over documents."""

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_network import build, encoded, squares_of

from lit_sft.data.buckets import DocumentBatch, collate
from lit_sft.models import Network
from lit_sft.objectives import SequenceAutoencoder
from lit_sft.objectives.sequence_autoencoder import read_twice

EOS, PAD = 11, 0
LENGTHS = (3, 6, 1, 0)


def documents() -> DocumentBatch:
    random = torch.Generator().manual_seed(3)
    return collate([torch.randint(1, 11, (length,), generator=random).numpy() for length in LENGTHS], EOS, PAD)


def slow(network: Network, batch: DocumentBatch) -> tuple[list[Tensor], list[Tensor]]:
    """The losses of the copies' tokens, and the hidden vectors of each document (tokens, units), each read alone."""
    assert network.lm_head is not None
    encoder, losses, rows = network.encoder, [], []
    for row, length in zip(batch.input_ids, LENGTHS, strict=True):
        once = row[1 : length + 2].tolist()
        ids = torch.tensor([[EOS, *once, *once[:-1]]])
        masks = encoder.draw_masks(*ids.shape)
        hidden = encoded(encoder, ids, torch.ones_like(ids), encoder.initial_state(1), masks).hidden[0]
        log_prob = network.lm_head.log_prob(hidden)  # (tokens, vocab)
        begin = len(once)  # the place of the second <eos>, which the first token of the copy follows
        losses += [-log_prob[begin + step, token] for step, token in enumerate(once)]
        rows.append(hidden)
    return losses, rows


def test_a_document_is_read_and_then_written_once_more() -> None:
    twice = read_twice(collate([np.array(ids, dtype=np.int64) for ids in ([1, 2], [3, 4, 5], [])], EOS, PAD))
    read = [row[mask].tolist() for row, mask in zip(twice.input_ids, twice.attention_mask, strict=True)]
    assert read == [[EOS, 1, 2, EOS, 1, 2], [EOS, 3, 4, 5, EOS, 3, 4, 5], [EOS, EOS]]
    assert twice.targets.tolist() == [[1, 2, EOS, -100], [3, 4, 5, EOS], [EOS, -100, -100, -100]]


def test_the_loss_is_that_of_the_second_reading_by_a_slow_loop() -> None:
    network, batch = build().eval(), documents()
    losses, _ = slow(network, batch)
    loss = SequenceAutoencoder()(network, {"unlabeled_documents": batch}, None)
    torch.testing.assert_close(loss.total, sum(losses) / len(losses))
    assert loss.weight == len(losses) == 14
    assert loss.state is None
    # a row that stands for no document, where several processes share few, says nothing
    batch.indices[1] = -1
    rest = [loss for number, loss in enumerate(losses) if not 4 <= number < 11]
    loss = SequenceAutoencoder()(network, {"unlabeled_documents": batch}, None)
    torch.testing.assert_close(loss.total, sum(rest) / len(rest))
    assert loss.weight == len(rest)


def test_gradients_go_through_both_readings_as_those_of_the_slow_loop_do() -> None:
    network, batch = build().eval(), documents()
    losses, _ = slow(network, batch)
    loss = SequenceAutoencoder()(network, {"unlabeled_documents": batch}, None).total
    parameters = [*network.encoder.parameters(), *network.lm_head.parameters()]  # type: ignore[union-attr]
    expected = torch.autograd.grad(torch.stack(losses).mean(), parameters)
    for found, gradient in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(found, gradient)


def test_penalties_are_those_of_both_readings() -> None:
    network, batch = build().eval(), documents()
    squares, changes = squares_of(slow(network, batch)[1])
    loss = SequenceAutoencoder(activation_penalty=2.0, temporal_penalty=0.5)
    found = loss(network, {"unlabeled_documents": batch}, None)
    torch.testing.assert_close(found.parts["activation_penalty"], 2.0 * squares)
    torch.testing.assert_close(found.parts["temporal_penalty"], 0.5 * changes)
    torch.testing.assert_close(found.total, found.parts["lm"] + 2.0 * squares + 0.5 * changes)


def test_an_option_that_would_leave_the_first_reading_without_a_gradient_is_refused() -> None:
    network = build()
    network.backprop_tokens = 2
    with pytest.raises(ValueError, match="backprop_tokens is for classifiers"):
        SequenceAutoencoder().prepare(network)
