"""Documents read from their end: what a batch holds, what a language model sees, and who goes on reading so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, Configs, Files, read
from refusals import one_line
from test_streams import EOS, PAD, corpus, order_of, slow_batches
from torch import Tensor
from training import data_of

import lit_sft
from lit_sft.checkpoints import read_checkpoint, resolve
from lit_sft.data.buckets import DocumentDataset, Truncation
from lit_sft.data.readers import iter_rows
from lit_sft.data.streams import StreamDataset
from lit_sft.data.tokens import TokenArray
from lit_sft.evaluation.predictions import read_predictions
from lit_sft.models import LMHead, LSTMEncoder, Network

BOTH: list[Any] = ["forward", "backward"]


def stream(documents: list[list[int]], direction: Any, batch_size: int = 4, bptt: int = 7) -> StreamDataset:
    tokens = TokenArray.from_ids(documents)
    return StreamDataset(tokens, EOS, PAD, batch_size, bptt, seed=3, shuffle=True, direction=direction)


@pytest.mark.parametrize(("batch_size", "bptt"), [(1, 1000), (4, 7), (5, 3)])
@pytest.mark.parametrize("epoch", [0, 2])
def test_the_stream_is_that_of_reversed_documents_in_the_same_order(batch_size: int, bptt: int, epoch: int) -> None:
    documents = [ids or [9] for ids in corpus()]
    forward, backward = (stream(documents, direction, batch_size, bptt) for direction in BOTH)
    for data in (forward, backward):
        data.set_epoch(epoch)
    text = [EOS]
    for number in order_of(forward, documents):
        text += [*reversed(documents[number]), EOS]
    expected = slow_batches(text, batch_size, bptt)
    assert len(backward) == len(forward) == len(expected)
    for index, (inputs, targets) in enumerate(expected):
        assert backward[index].input_ids.tolist() == inputs
        assert backward[index].targets.tolist() == targets
        assert np.array_equal(backward.target_documents(index), forward.target_documents(index))


def test_every_token_is_a_target_exactly_once_an_epoch() -> None:
    documents, data = corpus(), stream(corpus(), "backward")
    for epoch in range(3):
        data.set_epoch(epoch)
        seen = Counter(t for i in range(len(data)) for t in data[i].targets.flatten().tolist() if t != -100)
        assert seen == Counter(t for ids in documents for t in [*ids, EOS])


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_a_document_is_cut_first_and_then_reversed(truncation: Truncation) -> None:
    documents = corpus()
    tokens = TokenArray.from_ids(documents, labels=list(range(len(documents))))
    data = DocumentDataset(tokens, EOS, PAD, 9, truncation, 60, 8, seed=1, shuffle=True, direction="backward")
    kept = {"head": lambda x: x[:9], "tail": lambda x: x[-9:], "head_tail": lambda x: [*x[:5], *x[-4:]]}[truncation]
    seen = []
    for batch in map(data.__getitem__, range(len(data))):
        for row, length, index, label in zip(batch.input_ids, batch.lengths, batch.indices, batch.labels, strict=True):
            ids = documents[index]
            shown = list(reversed(kept(ids) if len(ids) > 9 else ids))
            assert row.tolist() == [EOS, *shown, EOS] + [PAD] * (len(row) - int(length))
            assert label == index
            seen.append(int(index))
        assert torch.equal(batch.attention_mask, batch.input_ids != PAD)
    assert sorted(seen) == list(range(len(documents)))


def nll_by_token(documents: list[list[int]], direction: Any, bptt: int, network: Network) -> dict[int, Tensor]:
    """Each token's negative log-likelihood as training computes it: batch after batch, the state carried along."""
    data, found = stream(documents, direction, batch_size=1, bptt=bptt), {}
    state = network.encoder.initial_state(1)
    for index in range(len(data)):
        batch = data[index]
        nll, state = network.lm_nll(batch, state, network.draw_masks(*batch.input_ids.shape))
        found |= dict(zip(batch.targets.flatten().tolist(), nll.flatten(), strict=True))
    return found


@pytest.mark.parametrize("bptt", [4, 1000])
@pytest.mark.parametrize("direction", BOTH)
def test_a_target_sees_only_the_tokens_on_its_own_side(direction: Any, bptt: int) -> None:
    """One token changes: of its document, backward, the targets after it keep their likelihood to the bit, and those
    before it lose it; forward, the other way round. The documents read before stay, those read later don't."""
    torch.manual_seed(0)
    encoder = LSTMEncoder(60, embedding_size=5, hidden_size=7, num_layers=2)
    network = Network(encoder, LMHead(encoder.embedding, 7)).double().eval()
    documents = [list(range(10, 20)), list(range(20, 31)), list(range(31, 40))]  # every token is another one
    read_in = order_of(stream(documents, "forward"), documents)
    before = nll_by_token(documents, direction, bptt, network)
    for place in range(11):
        changed = [list(ids) for ids in documents]
        changed[1][place] = 59
        after = nll_by_token(changed, direction, bptt, network)
        for number, ids in enumerate(documents):
            for position, token in enumerate(ids):
                if (number, position) == (1, place):
                    continue
                if number == 1:
                    blind = position > place if direction == "backward" else position < place
                else:
                    blind = read_in.index(number) < read_in.index(1)
                assert torch.equal(before[token], after[token]) is blind, (place, number, position)


@pytest.fixture
def backward(cli: Command, configs: Configs) -> Path:
    """A finished pretraining that reads backward."""
    run = Path("backward").absolute()
    result = cli("fit", "--config", configs.pretrain, "--data.direction", "backward", "--run_dir", run)
    assert result.code == 0, result.err
    return run


def test_runs_go_on_reading_as_their_checkpoint_does(
    backward: Path, cli: Command, configs: Configs, files: Files
) -> None:
    assert read(backward / "config.yaml")["data"]["direction"] == "backward"
    cut = ("--data.max_length", "5", "--data.truncation", "tail")
    finetune = ("fit", "--config", configs.finetune, "--model.init_from", backward, *cut)
    assert cli(*finetune, "--run_dir", "fine", "--trainer.max_epochs", "2").code == 0
    checkpoint = read_checkpoint(resolve("fine", "ckpt_path"))
    assert checkpoint.direction == checkpoint.config["data"]["direction"] == "backward"

    assert cli("test", "--ckpt_path", "fine").code == 0
    tested = read_predictions(Path("fine/predictions.parquet"))
    texts = [row.text for row in iter_rows(str(files.test), labels=False)]
    found = lit_sft.load("fine", device="cpu").predict(texts)
    probabilities = np.array([list(row["probabilities"].values()) for row in found if row])
    assert np.abs(probabilities - tested.probabilities).max() < 1e-6
    model = lit_sft.load("fine", device="cpu")
    model.direction = "forward"  # what would be lost
    assert np.abs(model.encode(texts) - lit_sft.load("fine", device="cpu").encode(texts)).max() > 1e-3

    for command in (
        (*finetune, "--data.direction", "forward"),
        (
            "fit",
            "--config",
            configs.finetune,
            "--ckpt_path",
            "fine/checkpoints/last.ckpt",
            "--data.direction",
            "forward",
        ),
        ("test", "--ckpt_path", "fine", "--data.direction", "forward"),
        ("validate", "--ckpt_path", "fine", "--data.direction", "forward"),
    ):
        result = cli(*command)
        one_line(result, "--data.direction forward contradicts", "which reads backward", "leave out --data.direction")
    assert cli(*finetune, "--data.direction", "backward", "--run_dir", "same").code == 0


def test_a_backward_pretraining_is_resumed_without_being_told_to(
    cli: Command, configs: Configs, begun: list[int]
) -> None:
    def fit(name: str, *more: object) -> dict[str, Tensor]:
        result = cli("fit", "--config", configs.pretrain, "--run_dir", name, *more)
        assert result.code == 0, result.err
        return read_checkpoint(Path(name, "checkpoints/last.ckpt")).network_weights()

    first = ("--data.direction", "backward", "--model.schedule", "lit_sft.optim.Constant", "--trainer.max_epochs", "2")
    whole = fit("whole", *first)
    fit("cut", *first[:-1], "1")
    Path("cut/metrics.json").unlink()
    step = read_checkpoint(Path("cut/checkpoints/last.ckpt")).global_step
    rest = fit("cut", "--ckpt_path", "last", *first[2:])
    assert begun == [0, 0, step]
    assert read_checkpoint(Path("cut/checkpoints/last.ckpt")).direction == "backward"
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


def test_without_a_checkpoint_documents_are_read_forward(files: Files, shared_cache: Path) -> None:
    assert data_of(files, shared_cache).direction == "forward"
