"""Virtual adversarial training: the predictions must not change when the token vectors are moved against them."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_sft.models.network import Network
from lit_sft.objectives.at import Direction
from lit_sft.objectives.divergence import kl_divergence
from lit_sft.objectives.gradients import is_float16
from lit_sft.objectives.reading import Reading, mean_over, random_unit
from lit_sft.objectives.term import DOCUMENTS, LABELED, Step, Term


class VAT(Term):
    """KL(p(s) || p(s + r)), mean over documents, where r is the move of a given norm that maximises it.

    Needs no labels. r = norm * d, where d is the dominant eigenvector of the KL's Hessian at s, by power iteration from
    a random start: d <- g / ||g||, g the KL's gradient at s + xi * d (Miyato et al. 2017, equations 3, 4, 7 and 8).
    Since the KL and its gradient are both 0 at s, g is about xi times the Hessian times d, without any second
    derivative. p(s) is treated as a constant: gradients flow through p(s + r) only.

    The direction is computed without autocast: with an xi this small, the KL is between two nearly equal predictions,
    and bfloat16 can't resolve it. (TensorFloat-32, which cuDNN uses by default, is precise enough at an xi of 0.1.)

    For two classes the direction needs no iteration. The Hessian for their single logit z is p (1 - p) g g^T, with g
    the gradient of z at s, so that any start ends at +-g / ||g|| after one step; the sign is that of its product with
    the start. This g isn't a small difference, so the training precision is enough, and xi and power_steps have no
    effect. (The gradient of the supervised loss is a multiple of g as well: `AT`'s direction differs in the sign only.)

    With `diagnose`, "vat_kl_ratio" is logged: the KL at r over the KL at a random move of the same norm. Near 1, the
    direction is no better than chance. Since the KL grows with the square of the move, the ratio for a correct
    direction is of the order of the number of perturbed values, i.e. thousands.

    Args:
        norm: norm of the perturbation, as in `AT`.
        xi: distance from s at which the gradient is taken.
        power_steps: number of power iterations.
        unlabeled: use unlabeled documents as well; if false, only the labeled ones.
        direction: "random" moves as far in a random direction, as a control.
        weight, ramp_steps: as in `Term`.

    Raises:
        ValueError: if norm is below 0, xi is not above 0, or power_steps is below 1.
    """

    name = "vat"
    through_clean = False

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
        """The direction (batch, time, embedding_size), of norm 1 for each document."""
        direction = random_unit(reading.reach, reading.embeds)
        if self.direction == "random":
            return direction
        if reading.logits.shape[-1] == 1:
            start = torch.zeros_like(reading.embeds)
            slope = reading.steepest(Tensor.sum, start, exact=is_float16(start))  # in float16 small gradients underflow
            return slope * (slope * direction).sum((1, 2), keepdim=True).sign()
        clean = reading.exact_logits()

        def kl(logits: Tensor) -> Tensor:
            return kl_divergence(clean, logits, reading.network.multilabel).sum()

        for _ in range(self.power_steps):
            direction = reading.steepest(kl, self.xi * direction, exact=True)
        return direction

    @torch.no_grad()
    def _kl_ratio(self, readings: list[Reading], directions: list[Tensor]) -> Tensor:
        """The KL at the directions divided by the KL at random ones, each summed over documents.

        In float64, since the KL of a random move is close to float32's rounding error.
        """
        sums = []
        for reading, direction in zip(readings, directions, strict=True):
            clean, moves = _wide(reading.exact_logits()), (direction, random_unit(reading.reach, reading.embeds))
            moved = [_wide(reading.perturbed(self.norm * move, exact=True)) for move in moves]
            kl = torch.stack([kl_divergence(clean, logits, reading.network.multilabel) for logits in moved])
            sums.append((kl * reading.counted).sum(1))  # (2,)
        ours, by_chance = torch.stack(sums).sum(0).unbind()
        return ours / by_chance.clamp(min=1e-30)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.device.type == "mps" else logits.double()  # Apple's MPS has no float64
