"""Any number of labels a document: their numbers, their splits and their batches, against loops over documents."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_sft.data.adopted import Adopted
from lit_sft.data.buckets import DocumentDataset
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.documents import Documents, content_keys
from lit_sft.data.labels import count_labels, from_plain, label_array, label_counts, to_plain
from lit_sft.data.splits import hold_out, low_shot, seeded_hash
from lit_sft.data.tokenization import Tokenizer
from lit_sft.data.tokens import read_tokens, write_tokens
from lit_sft.errors import UserError

NAMES = ["calm", "loud", "odd", "rare"]
INDEX = {name: i for i, name in enumerate(NAMES)}


def documents_of(seed: int, size: int) -> Documents:
    draw = random.Random(seed)
    shares = {"calm": 0.5, "loud": 0.3, "odd": 0.2, "rare": 0.05}
    labels = [tuple(name for name, share in shares.items() if draw.random() < share) for _ in range(size)]
    return Documents([f"text {i} of {seed}" for i in range(size)], labels)


def table_of(documents: Documents) -> np.ndarray:
    return np.array([[name in labels for name in NAMES] for labels in documents.labels or []])


def test_documents_know_whether_they_have_tuples_of_labels() -> None:
    documents = documents_of(0, 30)
    assert documents.multilabel
    assert documents.select([3, 4]).multilabel
    assert (documents + documents).multilabel
    assert Documents(["a"], [()]).multilabel, "an empty tuple: no label applies"
    assert not Documents(["a"], ["x"]).multilabel
    assert not Documents([], []).multilabel


def test_label_arrays_equal_a_loop_and_survive_json() -> None:
    documents = documents_of(1, 50)
    array = label_array(documents, INDEX)
    assert (array.dtype, array.shape) == (np.uint8, (50, 4))
    assert np.array_equal(array, table_of(documents))
    assert np.array_equal(from_plain(to_plain(array), 4, True), array)
    assert label_counts(array, 4).tolist() == [count_labels(documents)[name] for name in NAMES]
    assert label_array(Documents(["a"], [("odd", "odd")]), INDEX).tolist() == [[0, 0, 1, 0]]
    one = label_array(Documents(["a", "b", "c"], ["odd", "calm", "odd"]), INDEX)
    assert (one.dtype, one.tolist()) == (np.int64, [2, 0, 2])
    assert np.array_equal(from_plain(to_plain(one), 4, False), one)
    assert label_counts(one, 4).tolist() == [1, 0, 2, 0]
    assert label_array(documents, None).tolist() == [-1] * 50
    assert label_counts(label_array(documents, None), 4).tolist() == [0] * 4


def test_rejects_a_label_that_is_no_class_and_names_the_document() -> None:
    with pytest.raises(UserError, match=r"label 'new' of document 2 .*'calm'"):
        label_array(Documents(["a", "b"], [("calm",), ("odd", "new")]), INDEX)


def test_every_label_stands_on_both_sides_of_a_split_where_it_can() -> None:
    for seed in range(20):
        documents = documents_of(seed, 60)
        rest, held = hold_out(documents, 0.1, seed)
        assert sorted(rest.texts + held.texts) == sorted(documents.texts)
        assert set(count_labels(rest)) == set(count_labels(documents))
        for name in set(count_labels(documents)):
            with_it = [i for i, labels in enumerate(documents.labels or []) if name in labels]
            # a text that is the last of another label has to stay
            if len({documents.texts[i] for i in with_it}) > 8:
                assert count_labels(held)[name] > 0, (seed, name)


def test_documents_without_any_label_are_split_by_their_hash_alone() -> None:
    documents = Documents([f"text {i}" for i in range(200)], [()] * 199 + [("calm",)])
    rest, held = hold_out(documents, 0.2, 3)
    hashes = seeded_hash(content_keys(documents.texts), 3) / 2.0**64
    assert {t for t, h in zip(documents.texts[:199], hashes, strict=False) if h < 0.2} == set(held.texts) - {"text 199"}
    assert count_labels(rest) == {"calm": 1}, "a label that lives in one source stays in the rest"


def test_low_shot_takes_for_each_label_the_lowest_hashes_and_is_nested() -> None:
    documents = documents_of(5, 400)
    keys, table = content_keys(documents.texts), table_of(documents)
    hashes = seeded_hash(keys, 2)
    before: set[int] = set()
    for per_class in (1, 4, 15):
        chosen = low_shot(label_array(documents, INDEX), keys, per_class, 2, NAMES).tolist()
        wanted: set[int] = set()
        for column in range(4):
            members = [i for i in range(400) if table[i, column]]
            wanted |= set(sorted(members, key=lambda i: hashes[i])[:per_class])
        assert chosen == sorted(wanted)
        assert before <= set(chosen)
        assert all(documents.labels[i] for i in chosen)  # type: ignore[index]
        before = set(chosen)
    rare = int(table[:, 3].sum())
    with pytest.raises(UserError, match=f"class 'rare' has {rare} documents, fewer than the {rare + 1}"):
        low_shot(label_array(documents, INDEX), keys, rare + 1, 2, NAMES)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(documents_of(6, 40).texts, "bpe", vocab_size=280)


def test_token_arrays_and_batches_carry_the_labels(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = documents_of(6, 40)
    written = write_tokens(tmp_path / "a", documents, INDEX, tokenizer)
    for array in (written, read_tokens(tmp_path / "a")):
        assert array.labels.dtype == np.uint8
        assert np.array_equal(array.labels, table_of(documents))
        assert np.array_equal(array.select([5, 2]).labels, table_of(documents)[[5, 2]])
    served = DocumentDataset(written, tokenizer.eos_id, tokenizer.pad_id, 32, "head", 128, 8, seed=1, shuffle=True)
    for batch in served:
        assert batch.labels.dtype == torch.int8
        assert np.array_equal(batch.labels.numpy(), table_of(documents)[batch.indices.numpy()])


def test_a_process_without_a_document_gets_a_row_without_labels(tmp_path: Path, tokenizer: Tokenizer) -> None:
    array = write_tokens(tmp_path / "a", documents_of(6, 1), INDEX, tokenizer)
    dataset = DocumentDataset(array, tokenizer.eos_id, tokenizer.pad_id, 32, "head", 128, 8, seed=1, shuffle=False)
    dataset.shard(1, 2)
    batch = dataset[0]
    assert (batch.labels.tolist(), batch.indices.tolist()) == ([[-1] * 4], [-1])


def test_a_label_column_of_a_cache_has_one_or_two_axes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_tokens(tmp_path / "a", documents_of(6, 4), INDEX, tokenizer)
    np.save(tmp_path / "a" / "labels.npy", np.zeros((4, 2, 2), np.uint8))
    with pytest.raises(UserError, match="delete that folder"):
        read_tokens(tmp_path / "a")
    np.save(tmp_path / "a" / "labels.npy", np.zeros((4, 2), np.uint8))
    np.save(tmp_path / "a" / "keys.npy", np.zeros((4, 2), np.uint64))
    with pytest.raises(UserError, match="delete that folder"):
        read_tokens(tmp_path / "a")


# ---- from sources to the data module


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """Three files of multi-label documents, and ``single.jsonl``, whose documents have one label each."""
    found = {}
    for name, seed, size in (("train", 8, 60), ("val", 9, 20), ("test", 10, 20), ("single", 11, 20)):
        documents = documents_of(seed, size)
        labels = NAMES * 5 if name == "single" else documents.labels or []
        rows = [json.dumps({"text": text, "label": y}) for text, y in zip(documents.texts, labels, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
        found[name] = str(tmp_path / f"{name}.jsonl")
    return found


def module_of(sources: dict[str, str], cache: Path, **options: object) -> TextDataModule:
    given = {"labeled": sources["train"], "val": sources["val"], "test": sources["test"], "vocab_size": 300}
    data = TextDataModule(**{**given, "cache_dir": str(cache), **options})
    data.check_documents()
    data.prepare_data()
    data.setup()
    return data


def test_the_data_module_serves_them_and_counts_the_subset_in_use(sources: dict[str, str], tmp_path: Path) -> None:
    data = module_of(sources, tmp_path / "cache")
    assert data.multilabel
    assert data.label_names == NAMES
    for array, seed, size in ((data.train, 8, 60), (data.val, 9, 20), (data.test, 10, 20)):
        assert np.array_equal(array.labels, table_of(documents_of(seed, size)))
    assert data.label_counts.tolist() == table_of(documents_of(8, 60)).sum(0).tolist()
    few = module_of(sources, tmp_path / "cache", labels_per_class=2, seed=3)
    assert few.label_counts.tolist() == few.train.labels.sum(0).tolist()
    assert len(few.train) <= 8
    assert few.label_counts.min() >= 2
    held = module_of(sources, tmp_path / "cache", val=None)
    assert len(held.train) + len(held.val) == 60
    assert held.label_counts.sum() + held.val.labels.sum() == table_of(documents_of(8, 60)).sum()


def test_rejects_splits_of_two_kinds(sources: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.val .*single.jsonl: one label a document, .* any number"):
        module_of(sources, tmp_path, val=sources["single"])
    with pytest.raises(UserError, match=r"data.val .*val.jsonl: any number of labels a document, .* have one"):
        module_of(sources, tmp_path, labeled=sources["single"])
    with pytest.raises(UserError, match=r"single.jsonl: one label a document"):
        module_of(sources, tmp_path, labeled=[sources["train"], sources["single"]])


def test_rejects_data_of_another_kind_than_the_checkpoint(sources: dict[str, str], tmp_path: Path) -> None:
    tokenizer = module_of(sources, tmp_path).tokenizer
    for file, multilabel, message in (("test", False, "any number of labels"), ("single", True, "label_separator")):
        data = TextDataModule(labeled=sources["train"], test=sources[file], cache_dir=str(tmp_path))
        data.adopt(Adopted(tokenizer, NAMES, multilabel))
        data.read_only("test")
        data.prepare_data()
        with pytest.raises(UserError, match=message):
            data.setup()
