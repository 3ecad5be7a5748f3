"""Chunks: every text once, in order, within the limits; what happens when one fails or nobody wants the rest."""

from __future__ import annotations

import random
import threading
from contextlib import closing

import numpy as np
import pytest

from lit_sft.data import encoding
from lit_sft.data.encoding import chunks, encoded
from lit_sft.data.tokenization import Tokenizer

U2 = np.dtype("<u2")


def random_texts(seed: int) -> list[str]:
    draw = random.Random(seed)
    return [draw.choice("ab ") * draw.choice([0, 1, 5, 40, 400]) for _ in range(300)]


@pytest.mark.parametrize("limits", [(7, 100), (1, 10**9), (10**9, 1), (50, 50), (10**9, 10**9)], ids=str)
def test_chunks_hold_every_text_and_keep_to_both_limits(
    limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    most, characters = limits
    monkeypatch.setattr(encoding, "CHUNK_TEXTS", most)
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", characters)
    texts = random_texts(0)
    found = list(chunks(iter(texts)))
    assert [text for chunk in found for text in chunk] == texts
    for chunk, following in zip(found, [*found[1:], None], strict=True):
        size = sum(map(len, chunk))
        assert len(chunk) <= most
        assert size <= characters or len(chunk) == 1  # a text above the limit is a chunk of its own
        assert (
            following is None or len(chunk) == most or size + len(following[0]) > characters
        )  # no shorter than need be
    assert list(chunks([])) == []


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_chunks_come_back_in_order_with_the_ids_of_each_text(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "CHUNK_TEXTS", most)
    texts = random_texts(1)
    tokenizer = Tokenizer.train(texts, "bpe", 270)
    parts = list(encoded(texts, tokenizer, U2))
    ids, lengths = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    expected = tokenizer.encode_batch(texts)
    assert ids.tolist() == np.concatenate(expected).tolist()
    assert lengths.tolist() == [len(document) for document in expected]
    assert len(parts) == -(-len(texts) // most)


class Failing(Tokenizer):
    """Fails at a text, and counts what it was given."""

    def encode_packed(self, texts: list[str], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[override]
        self.seen = [*getattr(self, "seen", []), *texts]
        if "bad" in texts:
            raise KeyboardInterrupt
        return super().encode_packed(texts, dtype)


@pytest.mark.parametrize("end", ["failure", "closed"])
def test_what_ends_early_reads_little_ahead_and_leaves_no_thread(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "CHUNK_TEXTS", 1)
    before = set(threading.enumerate())
    tokenizer = Failing.from_json(Tokenizer.train(["a b"] * 3, "word", 9).to_json())
    texts = ["a"] * 5 + ["bad" if end == "failure" else "b"] + ["a"] * 100
    got = 0
    with closing(encoded(texts, tokenizer, U2)) as parts:
        try:
            for _ in parts:
                got += 1
                if end == "closed" and got == 6:
                    break
        except KeyboardInterrupt:
            assert end == "failure"
    assert got == 5 + (end == "closed")
    assert len(tokenizer.seen) <= got + encoding.AT_ONCE + 1  # type: ignore[attr-defined]
    assert set(threading.enumerate()) <= before  # others, of tests before this one, may have ended
