"""The stream against a slow iterator that writes the epoch's whole text down."""

from __future__ import annotations

import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch

from lit_sft.data.streams import StreamBatch, StreamDataset, random_lengths
from lit_sft.data.tokens import TokenArray
from lit_sft.errors import UserError

PAD, EOS = 0, 2


def corpus(count: int = 41, seed: int = 0) -> list[list[int]]:
    """Documents of 0 to 24 tokens, every token of the corpus a different id."""
    lengths = np.random.default_rng(seed).integers(0, 25, count)
    ids = iter(range(10, 10_000))
    return [[next(ids) for _ in range(length)] for length in lengths]


def dataset(documents: list[list[int]], batch_size: int = 4, bptt: int = 7, **options: object) -> StreamDataset:
    defaults: dict[str, object] = {"seed": 3, "shuffle": True}
    return StreamDataset(TokenArray.from_ids(documents), EOS, PAD, batch_size, bptt, **(defaults | options))  # type: ignore[arg-type]


def order_of(stream: StreamDataset, documents: list[list[int]]) -> list[int]:
    """Document order as the batches show it: by the first token of each document that is not empty."""
    first = {ids[0]: number for number, ids in enumerate(documents) if ids}
    lanes = torch.cat([stream[i].targets for i in range(len(stream))], dim=1)
    return [first[t] for t in lanes.flatten().tolist() if t in first]


def slow_batches(text: list[int], batch_size: int, bptt: int) -> list[tuple[list[list[int]], list[list[int]]]]:
    """(inputs, targets) of each batch: cut the text into lanes, walk along them one position at a time."""
    num_targets = len(text) - 1
    lane_length = (num_targets + batch_size - 1) // batch_size
    lanes = []
    for lane in range(batch_size):
        pairs = []
        for position in range(lane * lane_length, (lane + 1) * lane_length):
            inside = position < num_targets
            pairs.append((text[position], text[position + 1]) if inside else (PAD, -100))
        lanes.append(pairs)
    batches = []
    for start in range(0, lane_length, bptt):
        chunk = [lane[start : start + bptt] for lane in lanes]
        batches.append(([[x for x, _ in row] for row in chunk], [[y for _, y in row] for row in chunk]))
    return batches


@pytest.mark.parametrize(("batch_size", "bptt"), [(1, 1), (1, 1000), (4, 7), (5, 3), (64, 2), (1000, 5)])
@pytest.mark.parametrize("epoch", [0, 2])
def test_batches_equal_those_of_a_slow_iterator(batch_size: int, bptt: int, epoch: int) -> None:
    documents = [ids or [9] for ids in corpus()]
    stream = dataset(documents, batch_size, bptt)
    stream.set_epoch(epoch)
    text = [EOS]
    for number in order_of(stream, documents):
        text += [*documents[number], EOS]
    expected = slow_batches(text, batch_size, bptt)
    assert len(stream) == len(expected)
    for index, (inputs, targets) in enumerate(expected):
        batch = stream[index]
        assert batch.input_ids.tolist() == inputs
        assert batch.targets.tolist() == targets
        assert batch.attention_mask.tolist() == [[y != -100 for y in row] for row in targets]
        assert batch.num_tokens == sum(y != -100 for row in targets for y in row)
        assert batch.first is (index == 0)


def test_without_shuffle_the_text_is_the_documents_in_order_with_empty_ones() -> None:
    documents = [[], [5, 6], [], [], [7]]
    stream = dataset(documents, batch_size=1, bptt=100, shuffle=False)
    assert stream[0].input_ids.tolist() == [[EOS, EOS, 5, 6, EOS, EOS, EOS, 7]]
    assert stream[0].targets.tolist() == [[EOS, 5, 6, EOS, EOS, EOS, 7, EOS]]


def test_every_token_is_a_target_exactly_once_an_epoch() -> None:
    documents = corpus()
    stream = dataset(documents)
    for epoch in range(3):
        stream.set_epoch(epoch)
        seen = Counter(
            t for batch in map(stream.__getitem__, range(len(stream))) for t in batch.targets.flatten().tolist()
        )
        del seen[-100]
        assert seen == Counter([t for ids in documents for t in [*ids, EOS]])


def test_targets_are_the_next_inputs_of_the_lane_across_batches() -> None:
    stream = dataset(corpus())
    inputs = torch.cat([stream[i].input_ids for i in range(len(stream))], dim=1)
    targets = torch.cat([stream[i].targets for i in range(len(stream))], dim=1)
    real = targets[:, :-1] != -100
    real[-1, :] &= inputs[-1, 1:] != PAD  # the last token of the text has a target and no next input
    assert torch.equal(inputs[:, 1:][real], targets[:, :-1][real])
    assert torch.equal(inputs[1:, 0], targets[:-1, -1])  # a lane starts where the one above ends


def test_order_is_a_function_of_seed_and_epoch() -> None:
    documents = corpus()
    orders = {}
    for seed in (3, 4):
        for epoch in (0, 1, 2):
            stream, again = dataset(documents, seed=seed), dataset(documents, seed=seed)
            for other in (2, 0, 1):
                again.set_epoch(other)  # a different past, the same epoch
            stream.set_epoch(epoch)
            again.set_epoch(epoch)
            orders[seed, epoch] = order_of(stream, documents)
            assert order_of(again, documents) == orders[seed, epoch]
    assert len({tuple(order) for order in orders.values()}) == 6
    fixed = dataset(documents, shuffle=False)
    fixed.set_epoch(5)
    assert order_of(fixed, documents) == [i for i, ids in enumerate(documents) if ids]


def test_number_of_batches_is_the_same_every_epoch() -> None:
    stream = dataset(corpus())
    lengths = set()
    for epoch in range(4):
        stream.set_epoch(epoch)
        lengths.add((len(stream), sum(stream[i].num_tokens for i in range(len(stream)))))
    assert len(lengths) == 1


@pytest.mark.parametrize(("batch_size", "bptt"), [(4, 7), (1, 3), (9, 50), (64, 2)])
def test_the_documents_of_a_batch_are_those_that_its_targets_come_from(batch_size: int, bptt: int) -> None:
    stream = dataset(corpus(), batch_size, bptt)
    stream.set_epoch(2)
    owner = [n for n in stream._order.tolist() for _ in range(int(stream.tokens.lengths[n]) + 1)]
    for batch in range(len(stream)):
        begin, end = batch * bptt, min((batch + 1) * bptt, stream.lane_length)
        lanes = [
            range(lane * stream.lane_length + begin, lane * stream.lane_length + end) for lane in range(batch_size)
        ]
        expected = {owner[position] for lane in lanes for position in lane if position < len(owner)}
        assert stream.documents(batch).tolist() == sorted(expected)
    with pytest.raises(IndexError):
        stream.documents(len(stream))


def test_a_selection_streams_only_the_selected_documents() -> None:
    documents = corpus()
    chosen = [3, 30, 8]
    tokens = TokenArray.from_ids(documents).select(chosen)
    stream = StreamDataset(tokens, EOS, PAD, batch_size=2, bptt=5, seed=0, shuffle=True)
    seen = {t for i in range(len(stream)) for t in stream[i].targets.flatten().tolist()}
    assert seen - {-100, EOS} == {t for i in chosen for t in documents[i]}


def test_batches_and_data_set_pickle_and_move() -> None:
    stream = dataset(corpus())
    stream.set_epoch(1)
    copy = pickle.loads(pickle.dumps(stream))
    batch: StreamBatch = pickle.loads(pickle.dumps(copy[2]))
    assert torch.equal(batch.input_ids, stream[2].input_ids)
    moved = batch.to("meta", non_blocking=True)
    assert isinstance(moved, StreamBatch)
    assert moved.input_ids.device.type == moved.attention_mask.device.type == "meta"
    assert (moved.first, moved.num_tokens) == (batch.first, batch.num_tokens)


def test_rejects_no_documents() -> None:
    with pytest.raises(UserError, match="no documents"):
        dataset([])
    with pytest.raises(IndexError):
        dataset([[5]])[1]


@pytest.mark.parametrize(("batch_size", "bptt", "rank"), [(1, 1000, 0), (4, 7, 0), (5, 3, 1)])
def test_every_target_is_of_the_document_it_stands_in(batch_size: int, bptt: int, rank: int) -> None:
    documents = corpus()
    stream = dataset(documents, batch_size, bptt)
    ends = [number for number in order_of(stream, documents) for _ in range(len(documents[number]) + 1)]
    empty = [number for number, ids in enumerate(documents) if not ids]
    stream.shard(rank, rank + 1)
    lanes = np.concatenate([stream.target_documents(i) for i in range(len(stream))], axis=1)
    targets = torch.cat([stream[i].targets for i in range(len(stream))], dim=1).numpy()
    assert lanes.shape == targets.shape
    assert ((lanes == -1) == (targets == -100)).all()
    if rank == 0:
        assert [number for number in lanes.flatten().tolist() if number >= 0 and number not in empty] == ends
    for number, target in zip(lanes.flatten(), targets.flatten(), strict=True):
        assert target in (-100, EOS) or target in documents[number]


# stretches of random length


@pytest.mark.parametrize(("batch_size", "bptt"), [(1, 1), (1, 1000), (4, 7), (5, 3), (2, 20), (64, 2), (1000, 5)])
@pytest.mark.parametrize("epoch", [0, 2])
def test_random_stretches_are_those_of_a_slow_walk_along_the_lanes(batch_size: int, bptt: int, epoch: int) -> None:
    documents = [ids or [9] for ids in corpus()]
    stream = dataset(documents, batch_size, bptt, random_bptt=True)
    plain = dataset(documents, batch_size, bptt)
    stream.set_epoch(epoch)
    plain.set_epoch(epoch)
    assert len(stream) == len(plain)  # every epoch: schedules and resume rest on it
    text = [EOS]
    for number in order_of(plain, documents):
        text += [*documents[number], EOS]
    whole = slow_batches(text, batch_size, 10**6)[0]
    position = 0
    for index in range(len(stream)):
        batch = stream[index]
        time = batch.input_ids.shape[1]
        assert time >= 1
        assert batch.input_ids.tolist() == [row[position : position + time] for row in whole[0]]
        assert batch.targets.tolist() == [row[position : position + time] for row in whole[1]]
        assert batch.rate == time / bptt
        position += time
    assert position == len(whole[0][0])


def test_random_stretches_are_drawn_from_seed_and_epoch() -> None:
    documents = corpus(400)
    seen = {}
    for seed in (3, 4):
        for epoch in (0, 1, 2):
            stream, again = (dataset(documents, bptt=20, seed=seed, random_bptt=True) for _ in range(2))
            for other in (2, 0, 1):
                again.set_epoch(other)
            stream.set_epoch(epoch)
            again.set_epoch(epoch)
            seen[seed, epoch] = [stream[i].input_ids.shape[1] for i in range(len(stream))]
            assert [again[i].input_ids.shape[1] for i in range(len(stream))] == seen[seed, epoch]
    assert len({tuple(lengths) for lengths in seen.values()}) == 6


def test_every_token_is_a_target_exactly_once_an_epoch_with_random_stretches() -> None:
    documents = corpus()
    stream = dataset(documents, random_bptt=True)
    for epoch in range(3):
        stream.set_epoch(epoch)
        stretches = map(stream.__getitem__, range(len(stream)))
        seen = Counter(t for batch in stretches for t in batch.targets.flatten().tolist())
        del seen[-100]
        assert seen == Counter([t for ids in documents for t in [*ids, EOS]])


def test_random_stretches_have_the_lengths_that_were_drawn() -> None:
    stream = dataset(corpus(800), batch_size=1, bptt=70, random_bptt=True)
    drawn = random_lengths(len(stream), 70, _after_permutation(stream))
    served = np.diff(stream._borders)
    expected = drawn * stream.lane_length / drawn.sum()
    assert np.abs(served - expected).max() < 2  # rounded at both ends
    assert (served >= 1).all()


def _after_permutation(stream: StreamDataset) -> np.random.Generator:
    generator = np.random.default_rng((stream.seed, stream.epoch))
    generator.permutation(len(stream.tokens))
    return generator


def test_lengths_are_distributed_as_in_the_slow_reference() -> None:
    slow, python = [], random.Random(1)
    for _ in range(100_000):
        base = 70 if python.random() < 0.95 else 35
        slow.append(max(5, int(python.gauss(base, 5))))
    fast = random_lengths(100_000, 70, np.random.default_rng(1))
    assert fast.mean() == pytest.approx(np.mean(slow), abs=0.2)
    assert fast.std() == pytest.approx(np.std(slow), abs=0.2)
    assert (fast < 50).mean() == pytest.approx(0.05, abs=0.005)
    assert random_lengths(1000, 4, np.random.default_rng(1)).min() == 5


def test_without_random_stretches_nothing_scales_the_rate() -> None:
    stream = dataset(corpus())
    assert {stream[i].rate for i in range(len(stream))} == {1.0}
