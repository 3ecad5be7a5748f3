"""Supervised fine-tuning of a language model: responses to prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_sft.models.encoder import LSTMState
from lit_sft.models.network import Network
from lit_sft.objectives.base import Loss, Objective
from lit_sft.objectives.mle import mean_nll
from lit_sft.objectives.penalties import Penalties


class Completion(Objective):
    """Mean negative log-likelihood in nats of the responses' tokens, their `<eos>` included, given their prompts.

    Prompts are read, but their tokens are not predicted (TRL's `completion_only_loss`). Summaries, translations and
    answers are responses to a text, a sentence and a question. The mean is over the tokens of the batch, so a
    response's weight is proportional to its length.

    Args:
        completion_only: if False, the prompts' tokens are predicted as well, and the loss is the mean over all tokens.
        activation_penalty, temporal_penalty: strengths of AWD-LSTM's penalties on the last layer's output, see
            `Penalties`; they are not part of the loss reported as "completion".

    Raises:
        ValueError: a strength below 0.
    """

    batches = frozenset({"pairs"})
    heads = frozenset({"lm"})

    def __init__(
        self, completion_only: bool = True, activation_penalty: float = 0.0, temporal_penalty: float = 0.0
    ) -> None:
        super().__init__()  # of nn.Module, if a subclass is one, too
        self.completion_only = completion_only
        self.penalties = Penalties(activation_penalty, temporal_penalty)

    def prepare(self, network: Network) -> None:
        """Raise a ValueError for an option of classifiers that would cut the gradients of a long response."""
        if network.backprop_tokens is not None:
            raise ValueError("backprop_tokens is for classifiers, and Completion has none: leave it out")

    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        """`batch["pairs"]`: input_ids, attention_mask, targets, each (batch, time), and response_places (tokens,), the
        positions of the responses' tokens in the flattened `targets`. No state is used.
        """
        pairs = batch["pairs"]
        start = network.encoder.initial_state(len(pairs.input_ids))
        encoded = network.encode(pairs, start, network.draw_masks(*pairs.input_ids.shape))
        hidden, targets = encoded.hidden.flatten(0, 1), pairs.targets.flatten()  # (positions, units), (positions,)
        if self.completion_only:  # no logits of the prompts: with a large vocabulary they take most of the time
            hidden, targets = hidden[pairs.response_places], targets[pairs.response_places]
        mean, kept = mean_nll(network, hidden.unsqueeze(0), targets.unsqueeze(0))
        parts = {"completion": mean.detach()}
        total = self.penalties.add(mean, parts, encoded, pairs.attention_mask)
        return Loss(total, parts, kept)
