"""Copies of test documents: planted ones are found, others are not, and a slow reference finds the same."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lit_sft.data import copies as module
from lit_sft.data import words as words_module
from lit_sft.data.copies import CopyFinder
from lit_sft.data.words import normalized

N = 13
rng = random.Random(0)
VOCABULARY = [f"w{i}" for i in range(2000)]


def text(words: int) -> str:
    return " ".join(rng.choice(VOCABULARY) for _ in range(words))


def grams(document: str) -> set[tuple[str, ...]]:
    words = normalized(document).split()
    return {tuple(words[i : i + N]) for i in range(len(words) - N + 1)}


def slow(test: list[str], others: list[str]) -> tuple[list[bool], list[bool], list[bool]]:
    """exact, near, and which of the others are copies: every pair is compared."""
    pairs = [
        [(normalized(t) == normalized(o), 2 * len(grams(t) & grams(o)), len(grams(t))) for o in others] for t in test
    ]
    exact = [any(same for same, _, _ in row) for row in pairs]
    is_near = [[count > 0 and shared >= count for _, shared, count in row] for row in pairs]
    near = [any(row) and not e for row, e in zip(is_near, exact, strict=True)]
    copied = [any(pairs[t][o][0] or is_near[t][o] for t in range(len(test))) for o in range(len(others))]
    return exact, near, copied


def cut(seeds: list[list[str]], draw: random.Random) -> str:
    """A stretch of one of the seeds, or of two of them."""
    words = draw.choice(seeds) + draw.choice(seeds) * draw.randint(0, 1)
    start = draw.randint(0, len(words) // 2)
    return " ".join(words[start : start + draw.randint(1, 60)])


THAI = "".join(chr(c) for c in (*range(0x0E01, 0x0E31), *range(0x0E40, 0x0E45)))


@pytest.mark.parametrize("letters", [THAI, "".join(map(chr, range(0x4E00, 0x4F00)))], ids=["Thai", "Chinese"])
def test_near_copies_are_found_in_text_without_blanks(letters: str) -> None:
    draw = random.Random(3)
    test = [" ".join("".join(draw.choices(letters, k=80)) for _ in range(4)) for _ in range(20)]
    finder = CopyFinder(test)
    assert not finder.exactly.any()
    others = [text[:-5] if i % 2 else f"{text[:100]}{letters[0]}{text[101:]}" for i, text in enumerate(test[:10])]
    found = finder.find([*others, "".join(draw.choices(letters, k=300))])
    assert found.near.tolist() == [True] * 10 + [False] * 10
    assert found.others.tolist() == [True] * 10 + [False]


def plant(document: str, how: str) -> str:
    """A near copy of a document of some 100 words, or what is none any more."""
    words = document.split()
    if how == "words changed":
        return " ".join("other" if i in (10, 60) else word for i, word in enumerate(words))
    if how == "cut in half and more":
        return " ".join(words[: len(words) // 2 + 20])
    if how == "inside a longer one":
        return f"{text(300)} {document} {text(300)}"
    if how == "half of it inside another":
        return f"{text(50)} {' '.join(words[30:95])} {text(50)}"
    if how == "markup and case":
        return "<br />".join(words).upper()
    if how == "a third of it":
        return " ".join(words[:33]) + " " + text(70)
    if how == "every tenth word changed":
        return " ".join("other" if i % 10 == 0 else word for i, word in enumerate(words))
    if how == "shuffled":
        return " ".join(random.Random(1).sample(words, len(words)))
    raise AssertionError(how)


@pytest.mark.parametrize(
    "how", ["words changed", "cut in half and more", "inside a longer one", "half of it inside another"]
)
def test_planted_near_copies_are_found(how: str) -> None:
    test, others = [text(100) for _ in range(20)], [text(100) for _ in range(50)]
    others[7], others[31] = plant(test[3], how), plant(test[12], how).title()
    found = CopyFinder(test).find(others)
    assert not found.exact.any()
    assert np.flatnonzero(found.near).tolist() == [3, 12]
    assert np.flatnonzero(found.others).tolist() == [7, 31]


@pytest.mark.parametrize("how", ["a third of it", "every tenth word changed", "shuffled"])
def test_planted_documents_that_share_less_are_no_copies(how: str) -> None:
    test, others = [text(100) for _ in range(20)], [text(100) for _ in range(50)]
    others[7] = plant(test[3], how)
    found = CopyFinder(test).find(others)
    assert not (found.exact | found.near).any()
    assert not found.others.any()


def test_exact_copies_differ_in_case_punctuation_and_markup_alone() -> None:
    test = ["A short one.", text(100), text(100), "!!", "another, short one"]
    others = ["a SHORT one", plant(test[1], "markup and case"), text(100), "??", "another short two"]
    found = CopyFinder(test).find(others)
    assert found.exact.tolist() == [True, True, False, False, False]
    assert not found.near.any()
    assert found.others.tolist() == [True, True, False, False, False]


def test_the_slow_reference_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of few words, so that they share many grams; cut, joined and repeated ones among them."""
    monkeypatch.setattr(words_module, "CHARACTERS_AT_ONCE", 2000)
    total = np.zeros(3, dtype=int)
    for seed in range(8):
        draw = random.Random(seed)
        seeds = [[draw.choice("abcde") for _ in range(draw.randint(5, 60))] for _ in range(12)]
        test, others = ([cut(seeds, draw) for _ in range(n)] for n in (60, 80))
        finder = CopyFinder(test)
        found = finder.find(others)
        expected = slow(test, others)
        assert (found.exact.tolist(), found.near.tolist(), found.others.tolist()) == expected
        assert finder.exactly.tolist() == [not grams(t) for t in test]
        total += [sum(part) for part in expected]
    assert (total > 20).all()


def test_the_grams_of_forms_dont_count_and_documents_of_little_else_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grams in over 100 test documents say nothing of any; exact copies are found all the same."""
    monkeypatch.setattr(module, "COMMON", 5)
    form = text(40)
    test = [f"{form} {name}" for name in "abcdefgh"] + [text(60)] * 10 + [f"{text(60)} {form}", form]
    finder = CopyFinder(test)
    assert finder.exactly.tolist() == [True] * 8 + [False] * 11 + [True]
    others = [
        f"{form} a",
        f"{form} z",
        plant(test[8], "cut in half and more"),
        f"{' '.join(test[-2].split()[:45])} end",
    ]
    found = finder.find([*others, f"{form} b {text(40)}"])
    assert found.exact.tolist() == [True] + [False] * 19
    assert found.near.tolist() == [False] * 8 + [True] * 11 + [False]
    assert found.others.tolist() == [True, False, True, True, False]
    assert finder.find([form]).exact.tolist() == [False] * 19 + [True]


def test_no_documents_on_either_side_are_fine() -> None:
    nothing = CopyFinder([]).find([text(20)])
    assert nothing.exact.shape == nothing.near.shape == (0,)
    assert nothing.others.tolist() == [False]
    assert CopyFinder([text(20)]).find([]).exact.tolist() == [False]
