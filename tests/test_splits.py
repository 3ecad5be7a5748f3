"""Splits against a slow loop over documents, and what has to hold for any data."""

import random
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest

from lit_sft.data.documents import Documents, content_keys
from lit_sft.data.splits import hold_out, low_shot, sample, seeded_hash
from lit_sft.errors import UserError

MASK = (1 << 64) - 1


def slow_mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def slow_hash(key: int, seed: int) -> int:
    return slow_mix(slow_mix(key) ^ slow_mix(((seed + 1) * 0x9E3779B97F4A7C15) & MASK))


def random_documents(seed: int, size: int, *, labels: int = 5, texts: int = 10**6) -> Documents:
    draw = random.Random(seed)
    return Documents(
        [f"text {draw.randrange(texts)}" for _ in range(size)],
        [f"label {draw.randrange(labels)}" for _ in range(size)] if labels else None,
    )


def slow_repair(held: np.ndarray, present: np.ndarray, order: np.ndarray) -> None:
    """Move sources by a table of booleans, (labels, sources), searched whole for each move."""

    def all_remain(side: np.ndarray, source: int) -> bool:
        others = side.copy()
        others[source] = False
        return bool((present[present[:, source]] & others).any(axis=1).all())

    for label in range(len(present)):
        if not (present[label] & ~held).any():
            mine = [s for s in order[::-1] if present[label, s]]
            held[next((s for s in mine if all_remain(held, s)), mine[0])] = False
    for label in range(len(present)):
        mine = [s for s in order if present[label, s] and all_remain(~held, s)]
        if mine and not (present[label] & held).any():
            held[mine[0]] = True


# ---------------------------------------------------------------- the hash


def test_hash_equals_python_integers() -> None:
    draw = random.Random(0)
    keys = [0, 1, MASK] + [draw.getrandbits(64) for _ in range(100)]
    for seed in (0, 1, 12345, -7, 2**70):
        expected = [slow_hash(key, seed) for key in keys]
        assert seeded_hash(np.array(keys, dtype=np.uint64), seed).tolist() == expected


def test_hash_is_splitmix64() -> None:
    # the first outputs of the public generator for state 0: mix(golden), mix(2 * golden)
    golden = 0x9E3779B97F4A7C15
    assert [slow_mix(golden), slow_mix(2 * golden & MASK)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_hash_is_uniform_and_seeds_are_unrelated() -> None:
    keys = np.arange(20_000, dtype=np.uint64)  # neighbours: the hardest keys
    unit = [seeded_hash(keys, seed) / 2.0**64 for seed in range(3)]
    for values in unit:
        counts = np.histogram(values, bins=20, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-square, 19 degrees of freedom: p < 0.001
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(unit[0], unit[1])[0, 1]) < 0.03


def test_which_documents_stand_where_is_the_same_for_ever() -> None:
    """Another result would change every published split, whatever holds between the parts."""
    blake2b = ["40f89e395b66422f", "cb1abf8beff3192f"]  # printf a | b2sum -l 64
    keys = [3405396810240292928, 3394012004367669963]
    assert content_keys(["a", "é"]).tolist() == keys
    assert [int.from_bytes(bytes.fromhex(digest), "little") for digest in blake2b] == keys
    texts = [f"text {i}" for i in range(20)]
    for seed, held, chosen in (
        (0, [4, 6, 8, 9, 12, 16], [4, 6, 8, 9, 15, 19]),
        (7, [1, 12, 13, 17], [1, 6, 8, 12, 13, 17]),
    ):
        _, part = hold_out(Documents(texts, ["x", "y"] * 10), 0.25, seed)
        assert part.texts == [texts[i] for i in held]
        assert low_shot(np.arange(20) % 2, content_keys(texts), 3, seed, ["x", "y"]).tolist() == chosen


# ---------------------------------------------------------------- held-out documents


def slow_hold_out(documents: Documents, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Membership by the threshold alone: what ``hold_out`` does where no label is missing on a side."""
    rest: list[int] = []
    held: list[int] = []
    for i, text in enumerate(documents.texts):
        side = held if slow_hash(int(content_keys([text])[0]), seed) < fraction * 2**64 else rest
        side.append(i)
    return rest, held


@pytest.mark.parametrize("labels", [0, 3])
def test_hold_out_equals_a_loop_over_documents(labels: int) -> None:
    documents = random_documents(1, 400, labels=labels, texts=10**9)
    rest, held = slow_hold_out(documents, 0.2, seed=3)
    assert hold_out(documents, 0.2, 3) == (documents.select(rest), documents.select(held))


def torn_or_missing(documents: Documents, rest: Documents, held: Documents) -> Iterator[str]:
    """What is wrong with two parts of documents."""
    if sorted([*rest.texts, *held.texts]) != sorted(documents.texts):
        yield "texts"
    if torn := set(rest.texts) & set(held.texts):
        yield f"on both sides: {torn}"
    if missing := set(documents.labels or []) - set(rest.labels or []):
        yield f"not in the rest: {missing}"
    sources = defaultdict(set)
    labels_of = defaultdict(set)
    for text, label in zip(documents.texts, documents.labels or [], strict=True):
        sources[label].add(text)
        labels_of[text].add(label)
    for label, texts in sources.items():
        pure = [text for text in texts if labels_of[text] == {label}]
        if len(texts) >= 2 and pure and label not in (held.labels or []):
            yield f"not held out: {label}"  # but a text with two labels may be the last of the other one


def test_equal_texts_stay_together_and_labels_stand_on_both_sides() -> None:
    wrong = []
    for seed in range(30):
        documents = random_documents(seed, random.Random(seed).randrange(24, 60), labels=6, texts=40)
        rest, held = hold_out(documents, 0.15, seed)
        wrong += [(seed, what) for what in torn_or_missing(documents, rest, held)]
    assert wrong == []


def test_a_split_holds_when_data_grow_and_when_they_are_reordered() -> None:
    small = random_documents(4, 300, labels=3, texts=10**9)
    more = random_documents(5, 700, labels=3, texts=10**9)
    grown = Documents(more.texts + small.texts, (more.labels or []) + (small.labels or []))
    for documents in (grown, small.select(reversed(range(300)))):
        rest, held = hold_out(documents, 0.1, 0)
        before_rest, before_held = hold_out(small, 0.1, 0)
        assert set(before_rest.texts) <= set(rest.texts)
        assert set(before_held.texts) <= set(held.texts)


def test_the_fraction_holds_for_every_label_and_seeds_differ() -> None:
    documents = random_documents(6, 8000, labels=4, texts=10**9)
    held = [hold_out(documents, 0.1, seed)[1] for seed in range(2)]
    for label in range(4):
        share = (held[0].labels or []).count(f"label {label}") / (documents.labels or []).count(f"label {label}")
        assert 0.07 < share < 0.13
    assert 0.05 < len(set(held[0].texts) & set(held[1].texts)) / len(held[0]) < 0.16  # chance is the fraction


def test_a_rare_label_is_on_both_sides_and_a_single_one_in_the_rest() -> None:
    texts = [f"t{i}" for i in range(103)]
    documents = Documents(texts, ["common"] * 100 + ["rare"] * 2 + ["single"])
    for seed in range(50):
        for fraction in (0.01, 0.1, 0.9, 0.999):
            rest, held = hold_out(documents, fraction, seed)
            assert set(rest.labels or []) == {"common", "rare", "single"}
            assert set(held.labels or []) == {"common", "rare"}


@pytest.mark.parametrize("seed", range(30))
def test_several_labels_a_document_are_repaired_as_by_a_table_of_all_of_them(seed: int) -> None:
    draw = random.Random(seed)
    size, known = draw.randrange(2, 40), draw.randrange(1, 25)
    texts = [f"text {draw.randrange(size)}" for _ in range(size)]
    labels = [tuple({f"label {draw.randrange(known)}" for _ in range(draw.randrange(5))}) for _ in texts]
    fraction = draw.choice([0.05, 0.3, 0.9])
    keys, sources = np.unique(content_keys(texts), return_inverse=True)
    names = sorted({name for each in labels for name in each})
    present = np.zeros((len(names), len(keys)), dtype=bool)
    for source, each in zip(sources, labels, strict=True):
        for name in each:
            present[names.index(name), source] = True
    hashes = seeded_hash(keys, seed)
    held = hashes < np.uint64(int(fraction * 2.0**64))
    slow_repair(held, present, np.argsort(hashes, kind="stable"))
    if not held.any():
        with pytest.raises(UserError, match="a label needs two texts"):
            hold_out(Documents(texts, labels), fraction, seed)
        return
    documents, inside = Documents(texts, labels), held[sources]
    expected = documents.select(np.flatnonzero(~inside)), documents.select(np.flatnonzero(inside))
    assert hold_out(documents, fraction, seed) == expected


def test_too_little_to_hold_out_is_refused() -> None:
    for documents in (
        Documents([]),
        Documents(["x"]),
        Documents(["x", "x"]),
        Documents(["x", "y"], ["1", "2"]),
    ):
        with pytest.raises(UserError, match="hold some out"):
            hold_out(documents, 0.5, 0)


# ---------------------------------------------------------------- a sample of some size


def test_a_sample_equals_a_loop_and_has_about_the_size_asked_for() -> None:
    texts = [text * 3 for text in random_documents(8, 5000, texts=10**9).texts]
    size = sum(len(text) for text in texts)
    for share in (0.01, 0.2, 0.9):
        chosen = sample(texts, int(share * size))
        expected, missing = set(), int(share * size)
        for text in sorted(texts, key=lambda t: slow_hash(int(content_keys([t])[0]), -1)):
            if missing > 0:
                expected.add(text)
                missing -= len(text)
        assert chosen == [text for text in texts if text in expected]
        assert 0 <= sum(len(text) for text in chosen) - int(share * size) < 100
    assert sample(texts, size) == texts
    assert sample([], 0) == []


def test_a_sample_of_few_large_texts_has_the_size_too() -> None:
    """Merges are learned from it, and neither nothing nor a small text alone will do, where large ones are above it."""
    for start in range(20):
        texts = [f"{start + i} " * 1000 for i in range(3)] + ["small"]
        for size in (1, 1500, 4000):
            assert sum(map(len, sample(texts, size))) >= size
            assert len(sample(texts, size)) < 4


def test_a_sample_is_unrelated_to_a_split() -> None:
    documents = random_documents(9, 5000, texts=10**9)
    rest, held = hold_out(documents, 0.5, 0)
    size = sum(len(text) for text in documents.texts)
    chosen = set(sample(documents.texts, size // 2))
    for part in (rest, held):
        assert 0.45 < len(chosen & set(part.texts)) / len(part) < 0.55


# ---------------------------------------------------------------- low-shot subsets


def test_low_shot_equals_a_loop_and_is_nested_and_balanced() -> None:
    draw = random.Random(7)
    labels = np.array([draw.randrange(-1, 4) for _ in range(600)])
    keys = content_keys([f"text {i}" for i in range(600)])
    previous: set[int] = set()
    for per_class in (1, 5, 20, 80):
        chosen = low_shot(labels, keys, per_class, 2, ["a", "b", "c", "d"])
        expected = []
        for label in range(4):
            members = [i for i in range(600) if labels[i] == label]
            expected += sorted(members, key=lambda i: slow_hash(int(keys[i]), 2))[:per_class]
        assert chosen.tolist() == sorted(expected)
        assert np.bincount(labels[chosen]).tolist() == [per_class] * 4
        assert previous < set(chosen.tolist())
        previous = set(chosen.tolist())


def test_a_text_is_drawn_twice_only_when_there_is_no_other() -> None:
    keys = np.array([7] * 20 + list(range(100, 110)), dtype=np.uint64)
    for seed in range(30):
        chosen = [low_shot(np.zeros(30, dtype=int), keys, count, seed, ["a"]) for count in (5, 11, 12)]
        assert [len(set(keys[found].tolist())) for found in chosen] == [5, 11, 11]
        assert set(chosen[0]) < set(chosen[1]) < set(chosen[2])


def test_low_shot_follows_the_documents_and_not_their_order() -> None:
    labels = np.arange(200) % 2
    keys = content_keys([f"text {i}" for i in range(200)])
    chosen = set(keys[low_shot(labels, keys, 10, 0, ["a", "b"])].tolist())
    order = np.random.default_rng(0).permutation(200)
    assert set(keys[order][low_shot(labels[order], keys[order], 10, 0, ["a", "b"])].tolist()) == chosen
    assert set(keys[low_shot(labels, keys, 10, 1, ["a", "b"])].tolist()) != chosen


def test_a_class_with_too_few_documents_is_named() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    keys = content_keys(list("abcde"))
    with pytest.raises(UserError, match="class 'bad' has 2 documents, fewer than the 3"):
        low_shot(labels, keys, 3, 0, ["good", "bad"])
    with pytest.raises(UserError, match="class 'none' has 0 documents"):
        low_shot(labels, keys, 1, 0, ["good", "bad", "none"])
    with pytest.raises(UserError, match="give at least 1"):
        low_shot(labels, keys, 0, 0, ["good", "bad"])
