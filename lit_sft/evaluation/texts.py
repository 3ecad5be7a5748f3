"""How close generated texts are to their references: the usual figures of translation, summaries and answers.

BLEU is torchmetrics' SacreBLEU (Post 2018, its tokenization 13a; Papineni et al. 2002), ROUGE its F-measures (Lin 2004;
lower case, only the letters a to z and digits), exact match and token F1 those of SQuAD (Rajpurkar et al. 2016; lower
case, without punctuation and articles). All are fractions. Their components are computed for each document, so that the
figures of any weighting of the documents, such as a bootstrap resample, are quick to compute: ROUGE, exact match and F1
are means over documents, and BLEU is computed from counts summed over documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.text import rouge_score, squad
from torchmetrics.text import SacreBLEUScore

from lit_sft.evaluation.weighted import Figures

MEANS = ("rouge1", "rouge2", "rougeL", "exact_match", "token_f1")
NAMES = ("bleu", *MEANS)
GRAMS = 4  # of BLEU


@dataclass(frozen=True)
class TextScores:
    """The components of the figures of generated texts.

    Attributes:
        counts: float64 (documents, 10), for BLEU: the text's n-grams that the reference has too, n from 1 to 4; all
            n-grams of the text, n from 1 to 4; the tokens of the text; and those of the reference.
        means: float64 (documents, figures), each document's values of the figures in ``MEANS``.
    """

    counts: np.ndarray
    means: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str], references: Sequence[str]) -> TextScores:
        """Compare each text with its reference."""
        bleu = SacreBLEUScore(n_gram=GRAMS)
        counts, means = np.zeros((len(texts), 2 * GRAMS + 2)), np.zeros((len(texts), len(MEANS)))
        for row, (text, reference) in enumerate(zip(texts, references, strict=True)):
            bleu.reset()
            bleu.update([text], [[reference]])
            parts = (bleu.numerator, bleu.denominator, bleu.preds_len, bleu.target_len)
            counts[row] = torch.cat([part.double().flatten() for part in parts]).numpy()
            means[row] = _means(text, reference)
        return cls(counts, means)

    def figures(self, weights: np.ndarray) -> Figures:
        """Each figure (weightings,) by its name, for weights float64 (documents, weightings)."""
        found = dict(zip(MEANS, self.means.T @ weights / weights.sum(0), strict=True))
        return {"bleu": bleu_of(self.counts.T @ weights), **found}


def bleu_of(counts: np.ndarray) -> np.ndarray:
    """BLEU of summed counts (10, weightings), as :class:`TextScores` has them: (weightings,).

    The geometric mean of the n-gram precisions, times the penalty for texts shorter than the references; 0 if any
    precision is 0.
    """
    same, all_grams, (length, reference) = counts[:GRAMS], counts[GRAMS:-2], counts[-2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.exp(np.log(same / all_grams).mean(0))
        penalty = np.exp(np.minimum(1 - reference / length, 0.0))
    scores: np.ndarray = np.where(same.min(0) > 0, mean * penalty, 0.0)
    return scores


def _means(text: str, reference: str) -> list[float]:
    rouge = rouge_score(text, reference, rouge_keys=MEANS[:3])
    answers: dict[str, Any] = {"answers": {"answer_start": [0], "text": [reference]}, "id": "0"}
    answered = squad({"prediction_text": text, "id": "0"}, answers)
    own = [float(rouge[f"{name}_fmeasure"]) for name in MEANS[:3]]
    return [*own, float(answered["exact_match"]) / 100, float(answered["f1"]) / 100]
