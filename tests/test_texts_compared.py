"""The figures of generated texts: those of torchmetrics over all documents, under any weighting of them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from torchmetrics.functional.text import rouge_score, sacre_bleu_score, squad

from lit_sft.evaluation.texts import MEANS, NAMES, TextScores

WORDS = ["the", "a", "boat,", "tide", "reef;", "shore.", "wave", "mast", "and", "near", "Island", "harbour's", "coral"]


def texts_of(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts that share runs of words with their references; one is empty, one the same but for an article."""
    rng = random.Random(seed)
    references = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 14))) for _ in range(count)]
    texts = []
    for reference in references:
        words = [word if rng.random() < 0.8 else rng.choice(WORDS) for word in reference.split()]
        texts.append(" ".join(words[: rng.randint(3, len(words))]))
    texts[0], texts[1] = "", f"The {references[1]}!"
    return texts, references


def of_torchmetrics(texts: list[str], references: list[str]) -> dict[str, float]:
    rouge = rouge_score(texts, [[reference] for reference in references], rouge_keys=MEANS[:3])
    answered = squad(
        [{"prediction_text": text, "id": str(i)} for i, text in enumerate(texts)],
        [{"answers": {"answer_start": [0], "text": [one]}, "id": str(i)} for i, one in enumerate(references)],
    )
    return {
        "bleu": float(sacre_bleu_score(texts, [[reference] for reference in references])),
        **{name: float(rouge[f"{name}_fmeasure"]) for name in MEANS[:3]},
        "exact_match": float(answered["exact_match"]) / 100,
        "token_f1": float(answered["f1"]) / 100,
    }


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_torchmetrics_of_documents_that_count_several_times(seed: int) -> None:
    texts, references = texts_of(30, seed)
    rng = np.random.default_rng(seed)
    weights = np.stack([np.ones(30), rng.integers(0, 3, 30), (np.arange(30) == 1) * 2.0], axis=1)
    found = TextScores.of(texts, references).figures(weights)
    assert tuple(found) == NAMES
    for column in range(weights.shape[1]):
        chosen = np.repeat(np.arange(30), weights[:, column].astype(int)).tolist()
        expected = of_torchmetrics([texts[i] for i in chosen], [references[i] for i in chosen])
        assert {name: found[name][column] for name in NAMES} == pytest.approx(expected, abs=1e-6)
    assert 0.2 < found["bleu"][0] < 0.9
    assert found["exact_match"][2] == 1.0


def test_nothing_in_common_is_zero_and_the_same_is_one() -> None:
    references = ["one two three four five", "six seven eight nine ten"]
    once = np.ones((2, 1))
    assert all(value[0] == 0.0 for value in TextScores.of(["a", ""], references).figures(once).values())
    assert all(value[0] == pytest.approx(1.0) for value in TextScores.of(references, references).figures(once).values())
