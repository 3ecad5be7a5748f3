"""Maximum likelihood: the language model that pretraining trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_sft.models.encoder import LSTMState, detach_state
from lit_sft.models.heads import IGNORE_INDEX
from lit_sft.models.network import Network
from lit_sft.objectives.base import Loss, Objective


class MLE(Objective):
    """Mean negative log-likelihood in nats of the next token, over the targets that are not ignored.

    The state is carried over batches and cut there (truncated BPTT), and starts anew with an epoch. A batch
    without targets gives 0, with gradients of 0.
    """

    batches = frozenset({"unlabeled"})
    heads = frozenset({"lm"})

    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        """`batch["unlabeled"]`: input_ids, targets, attention_mask, each (batch, time), and `first`."""
        stream = batch["unlabeled"]
        lanes = len(stream.input_ids)
        if state is None or stream.first:
            state = network.encoder.initial_state(lanes)
        nll, state = network.lm_nll(stream, state, network.draw_masks(*stream.input_ids.shape))  # (batch, time)
        kept = (stream.targets != IGNORE_INDEX).sum()
        total = nll.sum() / kept.clamp(min=1)
        return Loss(total, {"lm": total.detach()}, kept, detach_state(state))
