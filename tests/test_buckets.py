"""Bucketed batches: every document once, within the budget, little padding, right truncation."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from toy_network import build

from lit_sft.data.buckets import DocumentBatch, DocumentDataset, Truncation, collate, truncate
from lit_sft.data.tokens import TokenArray
from lit_sft.errors import UserError
from lit_sft.evaluation.passes import Evaluation

PAD, EOS = 0, 2


def imdb_like_lengths(count: int) -> np.ndarray:
    """Log-normal, mean 238 and 95th percentile 610: IMDb's reviews in words."""
    sigma = 0.744
    return np.random.default_rng(0).lognormal(np.log(238) - sigma**2 / 2, sigma, count).astype(int)


def corpus(count: int = 300) -> TokenArray:
    random = np.random.default_rng(1)
    lengths = random.integers(0, 60, count)
    return TokenArray.from_ids(
        [random.integers(3, 99, n) for n in lengths], labels=random.integers(0, 5, count).tolist()
    )


def dataset(tokens: TokenArray, **options: object) -> DocumentDataset:
    defaults: dict[str, object] = {
        "max_length": 40,
        "truncation": "tail",
        "max_tokens": 200,
        "max_documents": 16,
        "seed": 5,
        "shuffle": True,
    }
    return DocumentDataset(tokens, EOS, PAD, **(defaults | options))  # type: ignore[arg-type]


def batches(data: DocumentDataset, epoch: int = 0) -> list[DocumentBatch]:
    data.set_epoch(epoch)
    return [data[i] for i in range(len(data))]


def slow_truncate(ids: list[int], max_length: int, how: str) -> list[int]:
    """Drop tokens one at a time: the last, the first, or one of the middle."""
    kept = list(ids)
    while len(kept) > max_length:
        # head_tail: (max_length + 1) // 2 stay in front, whatever comes right after them goes
        del kept[{"head": -1, "tail": 0, "head_tail": (max_length + 1) // 2}[how]]
    return kept


@pytest.mark.parametrize("how", ["head", "tail", "head_tail"])
@pytest.mark.parametrize("max_length", [1, 2, 5, 8])
def test_truncation_equals_dropping_tokens_one_by_one(how: Truncation, max_length: int) -> None:
    for length in range(12):
        ids = list(range(100, 100 + length))
        assert truncate(np.array(ids, dtype=np.int64), max_length, how).tolist() == slow_truncate(ids, max_length, how)


@pytest.mark.parametrize("how", ["head", "tail", "head_tail"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_are_the_truncated_documents_between_boundaries(how: Truncation, shuffle: bool) -> None:
    tokens = corpus()
    for batch in batches(dataset(tokens, truncation=how, shuffle=shuffle), epoch=1):
        for row, mask, length, label, index in zip(
            batch.input_ids, batch.attention_mask, batch.lengths, batch.labels, batch.indices, strict=True
        ):
            expected = [EOS, *slow_truncate(tokens.document(int(index)).tolist(), 40, how), EOS]
            time = batch.input_ids.shape[1]
            assert row.tolist() == expected + [PAD] * (time - len(expected))
            assert mask.tolist() == [True] * len(expected) + [False] * (time - len(expected))
            assert length == len(expected)
            assert label == tokens.labels[int(index)]
        assert batch.num_tokens == batch.attention_mask.sum()
        assert batch.input_ids.shape[1] == batch.lengths.max()


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_document_comes_exactly_once_an_epoch(shuffle: bool) -> None:
    data = dataset(corpus(), shuffle=shuffle)
    for epoch in range(3):
        seen = torch.cat([batch.indices for batch in batches(data, epoch)])
        assert sorted(seen.tolist()) == list(range(300))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("max_tokens", "max_documents"), [(200, 16), (100, 1000), (100_000, 7), (60, 60)])
def test_budget_and_cap_hold(shuffle: bool, max_tokens: int, max_documents: int) -> None:
    data = dataset(corpus(), shuffle=shuffle, max_tokens=max_tokens, max_documents=max_documents)
    for epoch in range(3):
        for batch in batches(data, epoch):
            assert batch.input_ids.numel() <= max_tokens
            assert len(batch.input_ids) <= max_documents


def test_number_and_sizes_of_batches_are_the_same_every_epoch() -> None:
    data = dataset(corpus())
    sizes = {tuple(sorted(len(batch.indices) for batch in batches(data, epoch))) for epoch in range(4)}
    assert len(sizes) == 1


def test_a_document_over_the_budget_is_a_batch_of_its_own() -> None:
    tokens = TokenArray.from_ids([[7] * 30, [7] * 3, [7] * 30, [7] * 4])
    shapes = sorted(tuple(batch.input_ids.shape) for batch in batches(dataset(tokens, max_tokens=16)))
    assert shapes == [(1, 32), (1, 32), (2, 6)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_padding_stays_below_a_tenth_on_lengths_like_imdb(shuffle: bool) -> None:
    lengths = imdb_like_lengths(4_000)
    assert lengths.mean() == pytest.approx(238, rel=0.05)
    assert np.percentile(lengths, 95) == pytest.approx(610, rel=0.05)
    tokens = TokenArray.from_ids([np.full(n, 7) for n in lengths])
    data = dataset(tokens, max_length=400, max_tokens=12_000, max_documents=64, shuffle=shuffle)
    made = batches(data)
    share = 1 - sum(batch.num_tokens for batch in made) / sum(batch.input_ids.numel() for batch in made)
    assert data.padding_share() == pytest.approx(share, abs=1e-12)
    assert share < (0.06 if shuffle else 0.02)


def test_arrangement_is_a_function_of_seed_and_epoch() -> None:
    tokens = corpus()

    def arrangement(seed: int, epoch: int, *past: int) -> tuple[tuple[int, ...], ...]:
        data = dataset(tokens, seed=seed)
        for other in past:
            data.set_epoch(other)
        return tuple(tuple(batch.indices.tolist()) for batch in batches(data, epoch))

    drawn = {(seed, epoch): arrangement(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert all(arrangement(seed, epoch, 7, 2) == drawn[seed, epoch] for seed, epoch in drawn)
    assert len(set(drawn.values())) == 6
    # not only the batches change places: who stands in which batch does too
    assert set(map(frozenset, drawn[0, 0])) != set(map(frozenset, drawn[0, 1]))


def test_without_shuffle_the_longest_batch_is_first_and_the_next_ones_stand_for_all() -> None:
    data = dataset(corpus(), shuffle=False)
    first, second = ([batch.indices.tolist() for batch in batches(data, epoch)] for epoch in (0, 3))
    assert first == second
    served = list(batches(data))
    assert served[0].lengths.max() == max(int(batch.lengths.max()) for batch in served)
    means = [
        float(torch.cat([b.lengths for b in some]).double().mean()) for some in (served[1 : len(served) // 2], served)
    ]
    assert means[0] == pytest.approx(means[1], rel=0.2)


def test_the_documents_of_a_batch_are_those_of_its_rows() -> None:
    data = dataset(corpus())
    data.set_epoch(3)
    for batch in range(len(data)):
        assert data.documents(batch).tolist() == sorted(data[batch].indices.tolist())


def test_a_selection_numbers_its_documents_from_zero() -> None:
    tokens = corpus().select([9, 200, 41])
    seen = {
        int(i): row[1 : n - 1].tolist()
        for b in batches(dataset(tokens))
        for i, row, n in zip(b.indices, b.input_ids, b.lengths, strict=True)
    }
    assert seen == {i: tokens.document(i).tolist()[-40:] for i in range(3)}


def test_collate_without_labels_numbers_the_documents() -> None:
    batch = collate([np.array([5, 6, 7]), np.array([], dtype=np.int64)], EOS, PAD)
    assert batch.input_ids.tolist() == [[EOS, 5, 6, 7, EOS], [EOS, EOS, PAD, PAD, PAD]]
    assert batch.labels.tolist() == [-1, -1]
    assert batch.indices.tolist() == [0, 1]
    assert {t.dtype for t in (batch.input_ids, batch.lengths, batch.labels, batch.indices)} == {torch.int64}
    assert batch.attention_mask.dtype == torch.bool


def test_batches_and_data_set_pickle_and_move() -> None:
    data = dataset(corpus())
    data.set_epoch(2)
    batch: DocumentBatch = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(data))[3]))
    assert torch.equal(batch.input_ids, data[3].input_ids)
    moved = batch.to("meta")
    assert {getattr(moved, name).device.type for name in ("input_ids", "attention_mask", "labels")} == {"meta"}
    assert moved.num_tokens == batch.num_tokens


def test_rejects_no_documents_and_impossible_options() -> None:
    tokens = corpus(5)
    with pytest.raises(UserError, match="no documents"):
        dataset(tokens.select([]))
    with pytest.raises(UserError, match="'middle'"):
        dataset(tokens, truncation="middle")
    with pytest.raises(IndexError):
        dataset(tokens)[10_000]


def test_a_process_without_a_document_of_a_batch_measures_nothing_of_it() -> None:
    tokens = TokenArray.from_ids([[3] * number for number in range(7)], labels=[0, 1, 2, 3, 4, 0, 1])
    data = dataset(tokens, max_documents=2)  # an odd number of documents: the last batch has one
    network = build(5).float()
    evaluation = Evaluation(network, list("abcde"))
    seen: list[int] = []
    for rank in (0, 1):
        data.shard(rank, 2)
        for batch in batches(data):
            assert batch.empty is bool((batch.indices < 0).any())
            assert batch.to("cpu").empty is batch.empty
            evaluation.add(network, batch)
            seen += [] if batch.empty else batch.indices.tolist()
    assert sorted(seen) == list(range(7))
    assert torch.tensor(evaluation.confusion()["matrix"]).sum() == 7  # type: ignore[index]
