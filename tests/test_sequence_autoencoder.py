"""The sequence autoencoder against a slow loop over documents."""

import numpy as np
import pytest
import torch
from toy_network import build, encoded

from lit_sft.data.buckets import collate
from lit_sft.objectives import SequenceAutoencoder
from lit_sft.objectives.sequence_autoencoder import read_twice

EOS, PAD = 11, 0


def test_a_document_is_read_and_then_written_once_more() -> None:
    twice = read_twice(collate([np.array(ids, dtype=np.int64) for ids in ([1, 2], [3, 4, 5], [])], EOS, PAD))
    read = [row[mask].tolist() for row, mask in zip(twice.input_ids, twice.attention_mask, strict=True)]
    assert read == [[EOS, 1, 2, EOS, 1, 2], [EOS, 3, 4, 5, EOS, 3, 4, 5], [EOS, EOS]]
    assert twice.targets.tolist() == [[1, 2, EOS, -100], [3, 4, 5, EOS], [EOS, -100, -100, -100]]


def test_the_loss_is_that_of_the_second_reading_by_a_slow_loop() -> None:
    network = build().eval()
    assert network.lm_head is not None
    random = torch.Generator().manual_seed(3)
    documents = [torch.randint(1, 11, (length,), generator=random).numpy() for length in (3, 6, 1, 0)]
    encoder, losses = network.encoder, []
    for document in documents:
        once = [*document.tolist(), EOS]
        ids = torch.tensor([[EOS, *once, *once]])
        masks = encoder.draw_masks(*ids.shape)
        hidden = encoded(encoder, ids, torch.ones_like(ids), encoder.initial_state(1), masks).hidden
        log_prob = network.lm_head.log_prob(hidden[0])  # (tokens, vocab)
        begin = len(once)  # the place of the second <eos>, which the first token of the copy follows
        losses += [-log_prob[begin + step, token] for step, token in enumerate(once)]
    batch = collate(documents, EOS, PAD)
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


def test_gradients_go_through_both_readings() -> None:
    network = build()
    network.backprop_tokens = 2
    with pytest.raises(ValueError, match="backprop_tokens is for classifiers"):
        SequenceAutoencoder().prepare(network)
