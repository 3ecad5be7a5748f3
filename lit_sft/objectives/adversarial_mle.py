"""Adversarially trained language model: the next token must stay likely when token vectors are moved against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_sft.models.encoder import LSTMState, detach_state
from lit_sft.models.network import Network
from lit_sft.objectives.at import Direction
from lit_sft.objectives.base import Loss
from lit_sft.objectives.gradients import differentiated, gradients, is_float16
from lit_sft.objectives.mle import MLE, mean_nll
from lit_sft.objectives.reading import random_unit, unit


class AdversarialMLE(MLE):
    """`MLE` at the token vectors s, plus `weight` times the same loss at s + r, with the same masks and initial state.

    This is `AT` for a language model: r = norm * g / ||g||, where g is the gradient of the loss at s, and ||g|| is
    taken over a lane's tokens in the batch (so `norm` applies to `data.bptt` tokens). No gradient flows through r. The
    "lm" figure and the carried state come from the clean pass, the penalties from the perturbed pass.

    A step costs twice a step of `MLE` (more under 16-mixed): one backward pass through the clean pass gives both the
    direction and the step's own gradient (`differentiated`). It runs in the training precision, which is enough because
    the gradient at s, unlike `VAT`'s, is not a small difference. Penalties on the clean pass would require a further
    backward pass.

    Args:
        norm: L2 norm of the perturbation, in the units of the token vectors.
        weight: weight of the adversarial loss, relative to the clean loss.
        direction: "random" moves as far in a random direction, as a control.
        activation_penalty, temporal_penalty, reset_probability: as in `MLE`.

    Raises:
        ValueError: as `MLE`; a norm or weight below 0.
    """

    def __init__(
        self,
        norm: float = 1.0,
        weight: float = 1.0,
        direction: Direction = "adversarial",
        activation_penalty: float = 0.0,
        temporal_penalty: float = 0.0,
        reset_probability: float = 0.0,
    ) -> None:
        super().__init__(activation_penalty, temporal_penalty, reset_probability)
        if not norm >= 0 or not weight >= 0:
            raise ValueError(f"norm={norm} and weight={weight} must be at least 0")
        self.norm, self.weight, self.direction = norm, weight, direction

    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        """As `MLE`."""
        stream = batch["unlabeled"]
        state = self.start(network, stream, state)
        masks = network.draw_masks(*stream.input_ids.shape)
        embeds = network.encoder.embed(stream.input_ids, masks.encoder)
        embeds.requires_grad_()  # frozen token vectors, too: the direction needs their gradient
        encoded = network.encode(stream, state, masks, embeds)
        mean, kept = mean_nll(network, encoded.hidden, stream.targets)
        reach = stream.attention_mask.bool().unsqueeze(-1)  # (batch, time, 1)
        if self.direction == "random":
            towards = random_unit(reach, embeds)
        else:
            if is_float16(embeds):  # of the sum: in float16 the gradient of a mean over thousands of tokens underflows
                (gradient,) = gradients(mean * kept, [embeds], retain_graph=True)
            else:
                mean, gradient = differentiated(mean, embeds, network.parameters())
            towards = unit(gradient, reach)
        after = detach_state(encoded.state)
        del encoded  # frees what the clean pass saved for a backward pass that won't happen
        moved = network.encode(stream, state, masks, embeds + (self.norm * towards).to(embeds.dtype))
        adversarial, _ = mean_nll(network, moved.hidden, stream.targets)
        loss = self.of_mean(mean, kept, stream, moved)
        loss.state = after
        loss.parts["adversarial_lm"] = adversarial.detach()
        loss.total = loss.total + self.weight * adversarial
        return loss
