"""Maximum likelihood: the language model that pretraining trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_sft.models.encoder import EncoderOutput, LSTMState, detach_state
from lit_sft.models.heads import IGNORE_INDEX
from lit_sft.models.network import Network
from lit_sft.objectives.base import Loss, Objective
from lit_sft.objectives.penalties import Penalties


class MLE(Objective):
    """Mean negative log-likelihood in nats of the next token, over the targets that are not ignored.

    The state is carried from batch to batch without its gradient (truncated BPTT), and reset at the start of an epoch.
    A batch without targets gives a loss of 0, with gradients of 0.

    A model that is only ever trained from carried states learns cells that hold one value for thousands of tokens, and
    does badly when it starts without such a state: at the start of validation, and of every document that a classifier
    reads. (On IMDb, after 3,000 steps: perplexity 109 in training and 297 in validation.) Lanes can therefore be reset
    at random (as in Melis et al. 2018, section 4).

    Args:
        activation_penalty, temporal_penalty: strengths of AWD-LSTM's penalties on the last layer's output, see
            `Penalties`; they are not part of the loss reported as "lm".
        reset_probability: in training, the probability that a lane is reset to the initial state before a batch.

    Raises:
        ValueError: a strength below 0, a probability outside [0, 1].
    """

    batches = frozenset({"unlabeled"})
    heads = frozenset({"lm"})

    def __init__(
        self, activation_penalty: float = 0.0, temporal_penalty: float = 0.0, reset_probability: float = 0.0
    ) -> None:
        super().__init__()  # of nn.Module, if a subclass is one, too
        if not 0.0 <= reset_probability <= 1.0:
            raise ValueError(f"reset_probability={reset_probability} must be from 0 to 1")
        self.penalties = Penalties(activation_penalty, temporal_penalty)
        self.reset_probability = reset_probability

    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        """`batch["unlabeled"]`: input_ids, targets, attention_mask, each (batch, time), and `first`."""
        stream = batch["unlabeled"]
        state = self.start(network, stream, state)
        encoded = network.encode(stream, state, network.draw_masks(*stream.input_ids.shape))
        return self.of_mean(*mean_nll(network, encoded.hidden, stream.targets), stream, encoded)

    def start(self, network: Network, stream: Any, state: LSTMState | None) -> LSTMState:
        """The state to read the next batch of the stream from, where `state` is the one after the previous batch."""
        lanes = len(stream.input_ids)
        if state is None or stream.first:
            return network.encoder.initial_state(lanes)
        if network.training and self.reset_probability > 0.0:
            return self._reset(state, network.encoder.initial_state(lanes))
        return state

    def of_mean(self, mean: Tensor, kept: Tensor, stream: Any, encoded: EncoderOutput) -> Loss:
        """The loss of a batch that has been encoded, from the values that `mean_nll` returned for it."""
        parts = {"lm": mean.detach()}
        total = self.penalties.add(mean, parts, encoded, stream.attention_mask)
        return Loss(total, parts, kept, detach_state(encoded.state))

    def _reset(self, state: LSTMState, initial: LSTMState) -> LSTMState:
        """The state, replaced by the initial one in lanes drawn at random."""
        drawn = torch.rand(len(state[0][0]), 1, device=state[0][0].device) < self.reset_probability  # (batch, 1)
        pairs = zip(state, initial, strict=True)
        return tuple(
            tuple(torch.where(drawn, new.to(old.dtype), old) for old, new in zip(*layers, strict=True))
            for layers in pairs
        )


def mean_nll(network: Network, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean negative log-likelihood of the targets that are not ignored, and their number; both scalars.

    hidden (batch, time, output_size), targets (batch, time).
    """
    nll = network.nll(hidden, targets)  # (batch, time)
    kept = (targets != IGNORE_INDEX).sum()
    return nll.sum() / kept.clamp(min=1), kept
