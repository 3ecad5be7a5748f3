"""Adversarial training: the predictions must keep matching the labels when the token vectors are moved against them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_sft.models.network import Network
from lit_sft.objectives.gradients import is_float16
from lit_sft.objectives.reading import Reading, random_unit, unit
from lit_sft.objectives.term import LABELED, Step, Term

Direction = Literal["adversarial", "random"]


class AT(Term):
    """The supervised loss at s + r, r = norm * g / ||g||, g its gradient at the token vectors s (Miyato et al. 2017).

    s is taken after dropout, and no gradient flows through r (equations 5 and 6 of the paper). ||g|| is the L2 norm
    over all of a document's tokens except the last. g comes from the step's own backward pass through the clean pass,
    in the training precision, which is enough because the gradient at s, unlike `VAT`'s, is not a small difference (on
    IMDb, the cosine between g in bfloat16 and in float32 is 0.999). A step therefore costs twice a plain one; under
    16-mixed, or with frozen token vectors, three times.

    Args:
        norm: L2 norm of the perturbation, in the units of the token vectors; what counts as large depends on their
            length. (The paper's 5 is for normalised vectors of 256 units, of length 16: see `NormalisedEmbedding`.)
        direction: "random" moves as far in a random direction, a control that shows what the gradient's one adds.
        weight, ramp_steps: as in `Term`.

    Raises:
        ValueError: a norm below 0.
    """

    name = "at"
    through_clean = False

    def __init__(
        self, norm: float = 1.0, direction: Direction = "adversarial", weight: float = 1.0, ramp_steps: int = 0
    ) -> None:
        super().__init__(weight, ramp_steps)
        if not norm >= 0:
            raise ValueError(f"norm={norm} must be at least 0")
        self.norm, self.direction = norm, direction

    def prepare(self, network: Network) -> None:
        Reading.check(network)

    def __call__(self, step: Step) -> Tensor:
        reading = step.reading(LABELED)
        return step.loss(reading.perturbed(self.norm * self.towards(reading, step)))

    def towards(self, reading: Reading, step: Step) -> Tensor:
        """The direction (batch, time, embedding_size), of norm 1 for each document."""
        if self.direction == "random":
            return random_unit(reading.reach, reading.embeds)
        if reading.embeds.requires_grad and not is_float16(reading.embeds):
            return unit(step.gradient(), reading.reach)
        # frozen token vectors, or float16, in which the gradient of a confident prediction underflows to zero
        return reading.steepest(step.loss, torch.zeros_like(reading.embeds), exact=True)
