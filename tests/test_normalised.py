"""Normalised token vectors against a slow loop, and what becomes of weights that were trained without them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Files
from toy_network import batch, encoded
from training import data_of, module_of, trainer_of

from lit_sft.checkpoints import Checkpoint
from lit_sft.data.extension import extended
from lit_sft.data.tokenization import Tokenizer
from lit_sft.models import LSTMEncoder, Network, TwoWayEncoder
from lit_sft.models.normalised import NormalisedEmbedding, folded
from lit_sft.transfer import load_pretrained

COUNTS = torch.tensor([0.0, 5, 3, 3, 2, 1, 1, 4, 1, 2, 1, 1])


def normalised() -> NormalisedEmbedding:
    torch.manual_seed(0)
    embedding = NormalisedEmbedding(12, 4).double()
    embedding.see_counts(COUNTS)
    return embedding


def test_vectors_are_those_of_a_slow_loop_and_the_gradient_goes_through_mean_and_variance() -> None:
    embedding = normalised()
    ids = torch.tensor([[1, 4, 0], [7, 7, 11]])

    def slow(weight: torch.Tensor) -> torch.Tensor:
        units = []
        for unit in range(4):
            column = weight[:, unit]
            mean = sum(float(n) * column[k] for k, n in enumerate(COUNTS)) / float(COUNTS.sum())
            variance = sum(float(n) * (column[k] - mean) ** 2 for k, n in enumerate(COUNTS)) / float(COUNTS.sum())
            units.append((column[ids] - mean) / (1e-6 + variance) ** 0.5)
        return torch.stack(units, -1)

    weight = embedding.weight.detach().clone().requires_grad_()
    factor = torch.randn(2, 3, 4).double()
    (slow(weight) * factor).sum().backward()
    (embedding(ids) * factor).sum().backward()
    torch.testing.assert_close(embedding(ids), slow(weight))
    torch.testing.assert_close(embedding.weight.grad, weight.grad)


def test_vectors_have_mean_0_and_variance_1_over_the_tokens_of_the_text_whatever_the_weights_scale() -> None:
    embedding = normalised()
    text = torch.repeat_interleave(torch.arange(12), COUNTS.long())
    for scale in (1.0, 100.0):
        with torch.no_grad():
            embedding.weight.mul_(scale).add_(scale)
        vectors = embedding(text)
        torch.testing.assert_close(vectors.mean(0), torch.zeros(4).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(vectors.var(0, correction=0), torch.ones(4).double(), atol=1e-4, rtol=0)


def test_under_bfloat16_mean_and_variance_stay_in_float32() -> None:
    embedding = normalised().float()
    with torch.autocast("cpu", torch.bfloat16):
        lower = embedding(torch.arange(12))
    torch.testing.assert_close(lower, embedding(torch.arange(12)))


@pytest.mark.parametrize("kind", [LSTMEncoder, TwoWayEncoder])
def test_folded_weights_compute_what_they_did_before(kind: Any) -> None:
    torch.manual_seed(0)
    make = partial(kind, 12, embedding_size=4, hidden_size=5, num_layers=2)
    plain, network = make().double().eval(), make(normalize_embedding=True).double().eval()
    for part in network.modules():
        if isinstance(part, NormalisedEmbedding):
            part.see_counts(COUNTS)
    network.load_state_dict(folded(plain.state_dict(), network))
    hidden = []
    for encoder in (plain, network):
        documents = batch()
        masks, state = encoder.draw_masks(4, 6), encoder.initial_state(4)
        state = tuple(tuple(t.double() for t in layer) for layer in state)
        hidden.append(encoded(encoder, documents.input_ids, documents.attention_mask, state, masks).hidden)
    torch.testing.assert_close(*hidden)
    again = folded(network.state_dict(), network)  # its own weights stay as they are
    assert all(torch.equal(again[name], value) for name, value in network.state_dict().items())


def test_a_training_counts_its_own_text(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    module, data = module_of("pretrain", encoder={"normalize_embedding": True}), data_of(files, shared_cache)
    trainer_of(tmp_path, max_steps=1).fit(module, datamodule=data)
    text = data.prepared.unlabeled
    counts = np.zeros(data.tokenizer.vocab_size)
    for place in range(len(text)):
        for token in text.document(place):
            counts[token] += 1
        counts[data.tokenizer.eos_id] += 1
    embedding = module.net.encoder.embedding
    assert isinstance(embedding, NormalisedEmbedding)
    torch.testing.assert_close(embedding.frequencies, torch.from_numpy(counts / counts.sum()).float())


GENERAL = ["The cat sat.", "The dog sat, the cat ran!", "A cat and a dog and a cow ran."] * 2


def network_of(tokenizer: Tokenizer, counts: torch.Tensor | None) -> Network:
    torch.manual_seed(0)
    network = Network(LSTMEncoder(tokenizer.vocab_size, 4, 6, normalize_embedding=counts is not None))
    if counts is not None:
        network.encoder.embedding.see_counts(counts)  # type: ignore[operator]
    return network.double().eval()


@pytest.mark.parametrize("normalised_before", [False, True])
def test_weights_of_either_kind_start_a_normalised_network(normalised_before: bool) -> None:
    """Those of a plain one are folded; those of a normalised one keep the frequencies of its own text."""
    tokenizer = Tokenizer.train(GENERAL, "word", 0, min_frequency=1)
    counts, others = (torch.arange(tokenizer.vocab_size) + n for n in (1, 5))
    before = network_of(tokenizer, others if normalised_before else None)
    for parameter in before.parameters():
        torch.nn.init.normal_(parameter)
    after = network_of(tokenizer, counts)
    weights = {f"network.{name}": value for name, value in before.state_dict().items()}
    source = Checkpoint(Path("old.ckpt"), "pretrain", [], {}, tokenizer.to_json(), weights, 0)
    load_pretrained(after, [source], tokenizer)
    documents = batch()
    vectors = [n.pooled(documents, n.draw_masks(4, 6)) for n in (before, after)]
    torch.testing.assert_close(*vectors)
    seen = others if normalised_before else counts
    frequencies = after.encoder.embedding.frequencies
    torch.testing.assert_close(frequencies, seen / seen.sum(), check_dtype=False)  # type: ignore[arg-type]


def test_tokens_that_a_normalised_vocabulary_did_not_have_change_no_mean_or_variance() -> None:
    base = Tokenizer.train(GENERAL, "word", 0, min_frequency=1)
    grown = extended(base, ["the emu and an owl"], 0, 1)
    before = network_of(base, torch.arange(base.vocab_size) + 1)
    after = network_of(grown, torch.ones(grown.vocab_size))
    weights = {f"network.{name}": value for name, value in before.state_dict().items()}
    source = Checkpoint(Path("old.ckpt"), "pretrain", [], {}, base.to_json(), weights, 0)
    load_pretrained(after, [source], grown, remap=True)
    ids = torch.arange(base.vocab_size)  # known words keep their ids
    torch.testing.assert_close(after.encoder.embedding(ids), before.encoder.embedding(ids))
    assert (after.encoder.embedding.frequencies[base.vocab_size :] == 0).all()  # type: ignore[index]
