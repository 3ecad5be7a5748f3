"""A language-modelling loss beside the classifier's, which preserves the language model while labels are learned."""

from __future__ import annotations

from torch import Tensor

from lit_sft.objectives.mle import MLE
from lit_sft.objectives.term import STREAM, Step, Term


class AuxiliaryLM(Term):
    """Mean negative log-likelihood of the next token on the unlabeled stream, as in `MLE` (Rei 2017; Chronopoulou et
    al. 2019 for a pretrained model).

    Args:
        reset_probability: as in `MLE`.
        weight, ramp_steps: as in `Term`.
    """

    name = "lm"
    through_clean = False
    batches = frozenset({STREAM})
    heads = frozenset({"lm"})

    def __init__(self, reset_probability: float = 0.0, weight: float = 0.1, ramp_steps: int = 0) -> None:
        super().__init__(weight, ramp_steps)
        self.mle = MLE(reset_probability=reset_probability)

    def __call__(self, step: Step) -> tuple[Tensor, Tensor]:
        loss = self.mle(step.network, step.batch, step.state)
        step.state = loss.state
        assert loss.weight is not None
        return loss.total, loss.weight
