"""Adversarial training: the labels must hold where the token vectors are moved against them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_sft.models.network import Network
from lit_sft.objectives.gradients import gradients, is_float16
from lit_sft.objectives.reading import Reading, random_unit, unit
from lit_sft.objectives.term import LABELED, Step, Term

Direction = Literal["adversarial", "random"]


class AT(Term):
    """The supervised loss at s + r, r = norm * g / ||g||, g its gradient at the token vectors s (Miyato et al. 2017).

    s is after dropout, and r a constant to the gradient (equations 3 and 4 there); ||g|| is the L2 norm over all of a
    document's tokens but its last. g comes from the step's own backward pass through the clean one, in the precision
    of the training: at s it is no small difference, unlike `VAT`'s (on IMDb, bfloat16's has a cosine of 0.999 to
    float32's). So a step takes twice a plain one; under 16-mixed, or above frozen token vectors, three times.

    Args:
        norm: of the perturbation, in the units of the token vectors: what is large depends on how long these are. (The
            paper's 5 is for normalised vectors of 256 units, so of length 16: see `NormalisedEmbedding`.)
        direction: "random" moves as far to anywhere, the control that tells what the direction is good for.
        weight, ramp_steps: as `Term` has them.

    Raises:
        ValueError: a norm below 0.
    """

    name = "at"

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
        """The direction, (batch, time, embedding_size), each document's of norm 1."""
        if self.direction == "random":
            return random_unit(reading.reach, reading.embeds)
        if reading.embeds.requires_grad and not is_float16(reading.embeds):
            return unit(step.gradient(), reading.reach)
        # above frozen token vectors, or in float16, where a sure prediction's gradient is zero
        moved = torch.zeros_like(reading.embeds, requires_grad=True)
        (gradient,) = gradients(step.loss(reading.perturbed(moved, exact=True)), [moved])
        return unit(gradient, reading.reach)
