"""Maximum likelihood: the language model that pretraining trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_sft.models.encoder import LSTMState, detach_state
from lit_sft.models.heads import IGNORE_INDEX
from lit_sft.models.network import Network
from lit_sft.objectives.base import Loss, Objective
from lit_sft.objectives.penalties import Penalties


class MLE(Objective):
    """Mean negative log-likelihood in nats of the next token, over the targets that are not ignored.

    The state is carried over batches and cut there (truncated BPTT), and starts anew with an epoch. A batch
    without targets gives 0, with gradients of 0.

    Args:
        activation_penalty, temporal_penalty: strengths of AWD-LSTM's penalties on the last layer's output, see
            `Penalties`; they are no part of the loss that is reported as "lm".

    Raises:
        ValueError: a strength below 0.
    """

    batches = frozenset({"unlabeled"})
    heads = frozenset({"lm"})

    def __init__(self, activation_penalty: float = 0.0, temporal_penalty: float = 0.0) -> None:
        self.penalties = Penalties(activation_penalty, temporal_penalty)

    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        """`batch["unlabeled"]`: input_ids, targets, attention_mask, each (batch, time), and `first`."""
        stream = batch["unlabeled"]
        lanes = len(stream.input_ids)
        if state is None or stream.first:
            state = network.encoder.initial_state(lanes)
        encoded = network.encode(stream, state, network.draw_masks(*stream.input_ids.shape))
        nll = network.nll(encoded.hidden, stream.targets)  # (batch, time)
        kept = (stream.targets != IGNORE_INDEX).sum()
        mean = nll.sum() / kept.clamp(min=1)
        parts = {"lm": mean.detach()}
        total = self.penalties.add(mean, parts, encoded, stream.attention_mask)
        return Loss(total, parts, kept, detach_state(encoded.state))
