"""Virtual adversarial training: the predictions must hold where the token vectors are moved against them."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_sft.models.network import Network
from lit_sft.objectives.at import Direction
from lit_sft.objectives.divergence import kl_divergence
from lit_sft.objectives.gradients import gradients
from lit_sft.objectives.reading import Reading, mean_over, random_unit, unit
from lit_sft.objectives.term import DOCUMENTS, LABELED, Step, Term


class VAT(Term):
    """KL(p(s) || p(s + r)), mean over documents, where r is the move of a given norm that it is largest for.

    Needs no labels. r = norm * d, d the dominant eigenvector of the KL's Hessian at s by power iteration from a random
    start: d <- g / ||g||, g the KL's gradient at s + xi * d (Miyato et al. 2017, equations 5 to 7). Since both the KL
    and its gradient are 0 at s, that gradient is xi times the Hessian times d, and takes no second derivative. p(s) is
    a constant: the gradient goes into p(s + r) alone.

    The direction is computed without autocast: at these xi the KL is the difference of two nearly equal predictions,
    and bfloat16 leaves nothing of it. (TensorFloat-32, which cuDNN uses by default, leaves enough at an xi of 0.1.)

    With `diagnose`, "vat_kl_ratio" is logged: the KL at r over the KL at a random move of the same norm. Near 1, the
    direction is no better than chance; the KL grows with the square of a move, so that the ratio of a right direction
    is of the order of the perturbed numbers, thousands.

    Args:
        norm: of the perturbation, as `AT` has it.
        xi: how far from s the gradient is taken.
        power_steps: of the iteration.
        unlabeled: take unlabeled documents, too; false: the labeled ones alone.
        direction: "random" moves as far to anywhere, the control.
        weight, ramp_steps: as `Term` has them.

    Raises:
        ValueError: a norm below 0, an xi not above 0, power_steps below 1.
    """

    name = "vat"

    def __init__(
        self,
        norm: float = 1.0,
        xi: float = 0.1,
        power_steps: int = 1,
        unlabeled: bool = True,
        direction: Direction = "adversarial",
        weight: float = 1.0,
        ramp_steps: int = 0,
    ) -> None:
        super().__init__(weight, ramp_steps)
        if not norm >= 0 or not xi > 0 or power_steps < 1:
            raise ValueError(f"norm={norm} must be at least 0, xi={xi} above 0, power_steps={power_steps} at least 1")
        self.norm, self.xi, self.power_steps, self.direction = norm, xi, power_steps, direction
        if unlabeled:
            self.batches = frozenset({DOCUMENTS})

    def prepare(self, network: Network) -> None:
        Reading.check(network)

    def __call__(self, step: Step) -> tuple[Tensor, Tensor]:
        readings = [step.reading(kind) for kind in sorted({LABELED, *self.batches})]
        directions = [self.towards(reading) for reading in readings]
        if step.diagnose and self.direction == "adversarial":
            step.measured["vat_kl_ratio"] = self._kl_ratio(readings, directions)
        multilabel = step.network.multilabel
        moved = [reading.perturbed(self.norm * d) for reading, d in zip(readings, directions, strict=True)]
        clean = torch.cat([reading.logits.detach() for reading in readings])
        values = kl_divergence(clean, torch.cat(moved), multilabel)  # (documents,)
        return mean_over(values, readings)

    def towards(self, reading: Reading) -> Tensor:
        """The direction, (batch, time, embedding_size), each document's of norm 1."""
        direction = random_unit(reading.reach, reading.embeds)
        if self.direction == "random":
            return direction
        clean = reading.exact_logits()
        for _ in range(self.power_steps):
            moved = (self.xi * direction).requires_grad_()
            kl = kl_divergence(clean, reading.perturbed(moved, exact=True), reading.network.multilabel)
            (gradient,) = gradients(kl.sum(), [moved])
            direction = unit(gradient, reading.reach)
        return direction

    @torch.no_grad()
    def _kl_ratio(self, readings: list[Reading], directions: list[Tensor]) -> Tensor:
        """The KL at the directions over that at random ones, each the sum over documents.

        In float64, since a random move's KL is near what float32 makes of none at all.
        """
        sums = []
        for reading, direction in zip(readings, directions, strict=True):
            clean, moves = reading.exact_logits().double(), (direction, random_unit(reading.reach, reading.embeds))
            moved = [reading.perturbed(self.norm * move, exact=True).double() for move in moves]
            kl = torch.stack([kl_divergence(clean, logits, reading.network.multilabel) for logits in moved])
            sums.append((kl * reading.counted).sum(1))  # (2,)
        ours, by_chance = torch.stack(sums).sum(0).unbind()
        return ours / by_chance.clamp(min=1e-30)
