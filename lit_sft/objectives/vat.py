"""Virtual adversarial training: the predictions must hold where the token vectors are moved against them."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_sft.objectives.at import Direction
from lit_sft.objectives.divergence import kl_divergence
from lit_sft.objectives.reading import Reading, random_unit, unit
from lit_sft.objectives.term import DOCUMENTS, LABELED, Step, Term


class VAT(Term):
    """KL(p(s) || p(s + r)), mean over documents, where r is the move of a given norm that it is largest for.

    Needs no labels. r = norm * d, d the dominant eigenvector of the KL's Hessian at s by power iteration from a random
    start: d <- g / ||g||, g the KL's gradient at s + xi * d (Miyato et al. 2017, equations 5 to 7). Since both the KL
    and its gradient are 0 at s, that gradient is xi times the Hessian times d, and takes no second derivative. p(s) is
    a constant: the gradient goes into p(s + r) alone.

    The direction is computed in float32 whatever the precision of the training is: at these xi the KL is the difference
    of two nearly equal predictions, and bfloat16 leaves nothing of it.

    With `diagnose`, "vat_kl_ratio" is logged: the KL at r over the KL at a random move of the same norm. Near 1, the
    direction is no better than chance.

    Args:
        norm: of the perturbation, in the units of the token vectors.
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
        norm: float = 5.0,
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

    def __call__(self, step: Step) -> Tensor:
        readings = [step.reading(kind) for kind in sorted({LABELED, *self.batches})]
        moved, by_chance, count = [], [], []
        for reading in readings:
            towards = self.towards(reading)
            counted = reading.counted.to(torch.float32)
            moved.append((self._kl(reading, self.norm * towards) * counted).sum())
            count.append(counted.sum())
            if step.diagnose:
                with torch.no_grad():
                    chance = random_unit(reading.reach, reading.embeds)
                    by_chance.append((self._kl(reading, self.norm * chance) * counted).sum())
        total = torch.stack(moved).sum()
        if step.diagnose:
            step.parts["vat_kl_ratio"] = total.detach() / torch.stack(by_chance).sum().clamp(min=1e-12)
        return total / torch.stack(count).sum().clamp(min=1)

    def towards(self, reading: Reading) -> Tensor:
        """The direction, (batch, time, embedding_size), each document's of norm 1."""
        direction = random_unit(reading.reach, reading.embeds)
        if self.direction == "random":
            return direction
        device = reading.embeds.device.type
        lower = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False):
            clean = reading.logits.detach()
            if lower:  # of the same precision as what it is compared with
                with torch.no_grad():
                    clean = reading.perturbed(torch.zeros_like(direction))
            for _ in range(self.power_steps):
                moved = (self.xi * direction).requires_grad_()
                kl = kl_divergence(clean, reading.perturbed(moved), reading.network.multilabel)
                (gradient,) = torch.autograd.grad(kl.sum(), moved)
                direction = unit(gradient, reading.reach)
        return direction

    def _kl(self, reading: Reading, perturbation: Tensor) -> Tensor:
        """(batch,)"""
        return kl_divergence(reading.logits.detach(), reading.perturbed(perturbation), reading.network.multilabel)
