"""The words that texts are compared by, and that their hashes in NumPy say the same."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest

from lit_sft.data import words as module
from lit_sft.data.words import document_keys, hashed_words, normalized, words

PIECES = [
    *("the", "The", "THE", "Straße", "STRASSE", "élan", "e\u0301lan", "x²", "3.14", "don't", "snake_case"),
    *("日本語", "日", "ไม่ใช่", "ที่", "\u0e31", "မြန်", "ខ្មែរ", "か\u3099", "ｶ", "〇", "\U00020000", "한국"),
    *("ŉ", "İ", "ς", "हिन्दी", "தமிழ்", "o\u0323\u0300ro\u0323\u0300", "\u0301"),
    *(" ", "  ", "\n", "\t", "\u00a0", "...", "—", "<br />", "<BR>", "<br\n/>", "<b>", "\0", "\ud800", "😀", "", "_"),
]


def random_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choice(PIECES) for _ in range(rng.randint(0, 12))) for _ in range(count)]


WITHOUT_BLANKS = (
    *("THAI", "LAO", "MYANMAR", "KHMER", "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA"),
    *("TAI LE", "NEW TAI LUE", "TAI THAM", "TAI VIET", "BALINESE", "JAVANESE"),
)


def slow_words(text: str) -> list[str]:
    text = unicodedata.normalize("NFC", re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE).casefold())
    kinds = "".join(map(kind, text))  # in a script without blanks, a letter and its marks; else letters, numbers, marks
    return [text[found.start() : found.end()] for found in re.finditer("am*|w+m*|m+", kinds)]


def kind(character: str) -> str:
    category = unicodedata.category(character)[0]
    if category not in "LNM":
        return " "
    if not unicodedata.name(character).startswith(WITHOUT_BLANKS):
        return "w"
    return "m" if category == "M" else "a"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It's GOOD,\nvery good!", "it s good very good"),
        ("good<br /><br />bad<br>end", "Good bad end"),
        ("snake_case", "snake case"),
        ("Straße", "STRASSE"),
        ("日本語。", "日 本語"),
        ("\u00c9lan", "e\u0301lan"),
        (":-) ", ":-)"),
    ],
)
def test_case_punctuation_line_breaks_and_composition_make_no_difference(one: str, other: str) -> None:
    assert normalized(one) == normalized(other) != ""
    assert len(set(document_keys([one, other]).tolist())) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a b", "ab"),
        ("a b", "b a"),
        ("a", "a a"),
        (":-)", ":-("),
        ("<b r>", "<br>"),
        ("1 0", "10"),
        ("हिन्दी", "हनद"),
        ("e\u0301", "e"),
    ],
)
def test_other_words_in_another_order_make_one(one: str, other: str) -> None:
    assert normalized(one) != normalized(other)
    assert len(set(document_keys([one, other]).tolist())) == 2


def test_keys_are_equal_exactly_where_the_words_are(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = random_texts(3000, 0)
    assert all(words(text) == slow_words(text) for text in texts)
    monkeypatch.setattr(module, "CHARACTERS_AT_ONCE", 500)  # a new chunk every few dozen texts
    by_key: dict[int, set[str]] = {}
    for key, text in zip(document_keys(texts).tolist(), texts, strict=True):
        by_key.setdefault(key, set()).add(normalized(text))
    assert all(len(group) == 1 for group in by_key.values())
    assert len(by_key) == len({normalized(text) for text in texts}) > 1500


@pytest.mark.parametrize("size", [1, 2, 5])
def test_grams_are_equal_exactly_where_the_words_in_a_row_are(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(size)
    texts = [" ".join(rng.choice("abc") for _ in range(rng.randint(0, 9))) for _ in range(400)]
    monkeypatch.setattr(module, "CHARACTERS_AT_ONCE", 100)
    found: list[tuple[int, int]] = []
    first = 0
    for some in hashed_words(texts):
        grams, documents = some.grams(size)
        found += zip(grams.tolist(), (documents + first).tolist(), strict=True)
        first += len(some.texts)
    expected = [
        (tuple(ws[i : i + size]), number)
        for number, ws in enumerate(map(slow_words, texts))
        for i in range(len(ws) - size + 1)
    ]
    assert [document for _, document in found] == [document for _, document in expected]
    pairs = {(gram, key) for (gram, _), (key, _) in zip(found, expected, strict=True)}
    assert len(pairs) == len({gram for gram, _ in pairs}) == len({key for _, key in pairs})


def test_a_text_longer_than_a_chunk_and_no_text_at_all_are_fine() -> None:
    long = "word " * 300_000
    one, other = document_keys([long, long + "end"])
    assert one != other
    assert document_keys([]).shape == (0,)
    assert np.array_equal(document_keys(["", " "]), document_keys([" ", ""]))


def test_texts_stream_by() -> None:
    taken: list[int] = []

    def stream() -> Sequence[str]:
        for i in range(10):
            taken.append(i)
            yield "x" * module.CHARACTERS_AT_ONCE

    chunks = hashed_words(stream())  # type: ignore[arg-type]
    next(chunks)
    assert taken == [0]
