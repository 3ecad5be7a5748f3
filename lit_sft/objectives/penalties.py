"""Penalties on what the encoder's last layer puts out: its size, and how fast it changes."""

from __future__ import annotations

from torch import Tensor

from lit_sft.models.encoder import EncoderOutput
from lit_sft.models.heads import at_least_float32


class Penalties:
    """Activation and temporal activation regularisation (Merity et al. 2018, section 4.6), to be added to a loss.

    They are reported as separate parts: the figure of the loss itself excludes them, and evaluation does not measure
    them. Several processes weight their penalties as they weight their losses.

    Args:
        activation: a in a * mean(h^2), h the last layer's output after its dropout.
        temporal: b in b * mean((r_t - r_(t-1))^2), r that output before its dropout, over pairs in the batch.

    Raises:
        ValueError: a strength below 0.
    """

    def __init__(self, activation: float, temporal: float) -> None:
        for name, value in (("activation_penalty", activation), ("temporal_penalty", temporal)):
            if not value >= 0:
                raise ValueError(f"{name}={value} must be at least 0")
        self.activation, self.temporal = activation, temporal
        self.on = activation > 0 or temporal > 0

    def add(self, loss: Tensor, parts: dict[str, Tensor], encoded: EncoderOutput, mask: Tensor) -> Tensor:
        """`loss` (scalar) plus the enabled penalties; each of them is also stored in `parts`, detached.

        mask (batch, time), 1 or True at the tokens that count.
        """
        if self.activation:
            penalty = self.activation * mean_square(encoded.hidden, mask)
            parts["activation_penalty"] = penalty.detach()
            loss = loss + penalty
        if self.temporal:
            raw = encoded.hidden if encoded.raw is None else encoded.raw
            mask = mask.bool()
            penalty = self.temporal * mean_square(raw[:, 1:] - raw[:, :-1], mask[:, 1:] & mask[:, :-1])
            parts["temporal_penalty"] = penalty.detach()
            loss = loss + penalty
        return loss


def mean_square(x: Tensor, mask: Tensor) -> Tensor:
    """x (batch, time, units), mask (batch, time) -> mean of x^2 over units where the mask is 1; 0 where it never is."""
    squares = at_least_float32(x).square().mean(-1)  # (batch, time)
    mask = mask.to(squares.dtype)
    return (squares * mask).sum() / mask.sum().clamp(min=1)
