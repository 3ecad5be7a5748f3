"""Pseudo-labels: what the classifier is sure of, it has to say again of the same document with words left out."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_sft.models.dropout import check_dropout
from lit_sft.models.network import Network
from lit_sft.objectives.divergence import log_probabilities
from lit_sft.objectives.reading import Reading, mean_over
from lit_sft.objectives.term import DOCUMENTS, LABELED, Step, Term


class PseudoLabels(Term):
    """Cross-entropy with the most probable class of unlabeled documents, where its probability reaches a threshold.

    FixMatch (Sohn et al. 2020) for text: the pseudo-label comes from a clean pass, the loss from another one that
    leaves words out. A document below the threshold counts as a loss of 0. With `relative`, the threshold is that
    share of the mean largest probability on the step's labeled documents (AdaMatch, Berthelot et al. 2022, section
    3.3), which starts low and rises as the classifier learns.

    "pseudo_labeled" is logged: the share of documents above the threshold.

    Args:
        threshold: of the probability, or of its share.
        relative: see above.
        word_dropout: words left out of the pass that the loss is of, beside the encoder's own dropout.
        weight, ramp_steps: as `Term` has them.

    Raises:
        ValueError: a threshold or a dropout outside [0, 1); in `prepare`, multi-label data.
    """

    name = "pseudo_labels"
    batches = frozenset({DOCUMENTS})

    def __init__(
        self,
        threshold: float = 0.95,
        relative: bool = False,
        word_dropout: float = 0.3,
        weight: float = 1.0,
        ramp_steps: int = 0,
    ) -> None:
        super().__init__(weight, ramp_steps)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold} must be at least 0 and less than 1")
        self.threshold, self.relative = threshold, relative
        self.word_dropout = check_dropout("word_dropout", word_dropout)

    def prepare(self, network: Network) -> None:
        if network.multilabel:
            raise ValueError("PseudoLabels takes the most probable class, and multi-label data have none")

    def __call__(self, step: Step) -> tuple[Tensor, Tensor]:
        clean = step.reading(DOCUMENTS)
        probability, label = log_probabilities(clean.logits.detach(), False)[:, 0].exp().max(-1)  # (batch,)
        least: float | Tensor = self.threshold
        if self.relative:
            labeled = step.reading(LABELED)
            sure = log_probabilities(labeled.logits.detach(), False)[:, 0].exp().amax(-1)
            least = self.threshold * mean_over(sure, [labeled])[0]
        kept = (probability >= least).to(probability.dtype)
        other = Reading.of(step.network, clean.documents, self.word_dropout)
        losses = F.nll_loss(log_probabilities(other.logits, False)[:, 0], label, reduction="none")
        step.parts["pseudo_labeled"], _ = mean_over(kept, [clean])
        return mean_over(kept * losses, [clean])
