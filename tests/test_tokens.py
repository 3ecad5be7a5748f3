"""The token array on disk: same tokens as the tokenizer's, whole or not at all."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from lit_sft.data import encoding
from lit_sft.data.documents import Documents, content_keys
from lit_sft.data.tokenization import Tokenizer
from lit_sft.data.tokens import TokenArray, read_tokens, write_tokens
from lit_sft.errors import UserError

TEXTS = [f"document {i} says é" * (i % 4) for i in range(23)]  # every fourth is empty
LABELS = ["yes" if i % 3 else "no" for i in range(23)]
INDEX = {"no": 0, "yes": 1}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, "bpe", vocab_size=280)


@pytest.fixture(params=[5, 1000])
def texts_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(encoding, "CHUNK_TEXTS", request.param)
    return int(request.param)


@pytest.mark.usefixtures("texts_at_once")
def test_every_document_reads_back_as_the_tokenizer_wrote_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    written = write_tokens(tmp_path / "new" / "train", Documents(TEXTS, LABELS), INDEX, tokenizer)
    expected = [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)]
    for array in (written, read_tokens(tmp_path / "new" / "train")):
        assert len(array) == 23
        assert [array.document(i).tolist() for i in range(23)] == expected
        assert array.lengths.tolist() == [len(ids) for ids in expected]
        assert array.num_tokens == sum(map(len, expected))
        assert array.labels.tolist() == [INDEX[label] for label in LABELS]
        assert array.keys.tolist() == content_keys(TEXTS).tolist()
        assert array.num_bytes.tolist() == [len(t.encode()) for t in TEXTS]
        assert array.tokens.dtype == np.uint16
        assert not array.tokens.flags.writeable


def test_large_vocabularies_are_stored_in_32_bits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tall = Tokenizer.from_json(tokenizer.to_json())
    tall.vocab_size = 65_537
    assert write_tokens(tmp_path / "a", Documents(TEXTS), None, tall).tokens.dtype == np.uint32
    tall.vocab_size = 65_536
    assert write_tokens(tmp_path / "b", Documents(TEXTS), None, tall).tokens.dtype == np.uint16


def test_documents_without_labels_or_without_an_index_have_label_minus_one(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    assert set(write_tokens(tmp_path / "a", Documents(TEXTS), INDEX, tokenizer).labels) == {-1}
    assert set(write_tokens(tmp_path / "b", Documents(TEXTS, LABELS), None, tokenizer).labels) == {-1}


def test_rejects_a_label_that_is_no_class(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"'yes' of document 2 .*'no'"):
        write_tokens(tmp_path / "a", Documents(TEXTS, LABELS), {"no": 0}, tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_no_or_only_empty_documents_make_an_empty_array(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert len(write_tokens(tmp_path / "none", Documents([]), None, tokenizer)) == 0
    empty = write_tokens(tmp_path / "empty", Documents(["", ""]), None, tokenizer)
    assert (len(empty), empty.num_tokens, empty.document(1).tolist()) == (2, 0, [])
    assert len(pickle.loads(pickle.dumps(empty))) == 2


def test_select_shares_the_tokens_and_keeps_rows_together(tmp_path: Path, tokenizer: Tokenizer) -> None:
    array = write_tokens(tmp_path / "a", Documents(TEXTS, LABELS), INDEX, tokenizer)
    chosen = [7, 0, 7, 22]
    selected = array.select(np.array(chosen))
    assert selected.tokens is array.tokens
    assert [selected.document(i).tolist() for i in range(4)] == [array.document(i).tolist() for i in chosen]
    for name in ("lengths", "labels", "keys", "num_bytes"):
        assert getattr(selected, name).tolist() == [getattr(array, name)[i] for i in chosen]
    assert selected.select([1]).document(0).tolist() == array.document(0).tolist()


def test_pickling_carries_the_path_and_not_the_corpus(tmp_path: Path, tokenizer: Tokenizer) -> None:
    array = write_tokens(tmp_path / "a", Documents(["many words " * 50_000]), None, tokenizer)
    pickled = pickle.dumps(array.select([0]))
    assert len(pickled) < 10_000 < array.tokens.nbytes
    assert pickle.loads(pickled).document(0).tolist() == array.document(0).tolist()


def test_an_array_in_memory_pickles_too() -> None:
    array = TokenArray.from_ids([[5, 6], [], [7]], labels=[1, 0, 1])
    copy = pickle.loads(pickle.dumps(array))
    assert [copy.document(i).tolist() for i in range(3)] == [[5, 6], [], [7]]
    assert copy.labels.tolist() == [1, 0, 1]


def test_the_folder_that_was_there_first_is_used(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_tokens(tmp_path / "a", Documents(TEXTS[:4]), None, tokenizer)
    assert len(write_tokens(tmp_path / "a", Documents(TEXTS), None, tokenizer)) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class Interrupted(Tokenizer):
        def encode_packed(self, texts: object, dtype: object) -> tuple[np.ndarray, np.ndarray]:
            raise KeyboardInterrupt

    broken = Interrupted.from_json(tokenizer.to_json())
    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path / "a", Documents(TEXTS), None, broken)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "truncated", "other_length", "no_meta"])
def test_rejects_a_damaged_folder_by_name(tmp_path: Path, tokenizer: Tokenizer, damage: str) -> None:
    folder = tmp_path / "cache"
    if damage != "missing":
        write_tokens(folder, Documents(TEXTS), None, tokenizer)
    if damage == "truncated":
        content = (folder / "tokens.bin").read_bytes()
        (folder / "tokens.bin").write_bytes(content[:-4])
    if damage == "other_length":
        np.save(folder / "labels.npy", np.zeros(3, dtype=np.int64))
    if damage == "no_meta":
        (folder / "meta.json").write_text("{}")
    with pytest.raises(UserError, match=r"cache.*delete that folder") as caught:
        read_tokens(folder)
    assert "\n" not in str(caught.value)
