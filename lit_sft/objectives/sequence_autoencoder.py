"""Sequence autoencoder: a document is read, then written again from the state at its end (Dai & Le 2015, section 2).

Validation is that of a language model, on streams, and therefore measures a different task: it can't select a
checkpoint by how well documents are reconstructed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_sft.models.encoder import LSTMState
from lit_sft.models.heads import IGNORE_INDEX
from lit_sft.models.network import Network
from lit_sft.objectives.base import Loss, Objective
from lit_sft.objectives.mle import MLE, mean_nll


@dataclass
class Twice:
    """Documents repeated, `<eos> x <eos> x <eos>`: the input, which is all of this but the last token, and the targets,
    which are the second copy."""

    input_ids: Tensor  # int64 (batch, 2 * time - 2)
    attention_mask: Tensor  # bool, the same shape
    targets: Tensor  # int64 (batch, time - 1): x <eos>, IGNORE_INDEX at padding


class SequenceAutoencoder(Objective):
    """Mean negative log-likelihood of a document's tokens, given the whole document; one network encodes and decodes.

    Args:
        activation_penalty, temporal_penalty: as in `MLE`, over both copies of the document.
    """

    batches = frozenset({"unlabeled_documents"})
    heads = frozenset({"lm"})

    def __init__(self, activation_penalty: float = 0.0, temporal_penalty: float = 0.0) -> None:
        super().__init__()  # of nn.Module, if a subclass is one, too
        self.mle = MLE(activation_penalty, temporal_penalty)

    def prepare(self, network: Network) -> None:
        """Raise a ValueError for an option of classifiers that would leave the first reading without gradients."""
        if network.backprop_tokens is not None:
            raise ValueError("backprop_tokens is for classifiers, and SequenceAutoencoder has none: leave it out")

    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        """`batch["unlabeled_documents"]`: input_ids, attention_mask (batch, time), lengths, indices (batch,)."""
        documents = batch["unlabeled_documents"]
        twice = read_twice(documents)
        encoded = network.encode(twice, None, network.draw_masks(*twice.input_ids.shape))
        hidden = second_reading(encoded.hidden, documents.lengths, twice.targets.shape[1])
        loss = self.mle.of_mean(*mean_nll(network, hidden, twice.targets), twice, encoded)
        loss.state = None  # every document starts from nothing
        return loss


def read_twice(documents: Any) -> Twice:
    """The inputs and targets of documents `<eos> x <eos>`, each repeated with a single `<eos>` between the copies."""
    input_ids, first = documents.input_ids, documents.lengths.unsqueeze(1)  # (batch, time), (batch, 1)
    time = input_ids.shape[1]
    place = torch.arange(2 * time - 2, device=input_ids.device)  # (2 * time - 2,)
    source = torch.where(place < first, place, place - first + 1).clamp(max=time - 1)  # (batch, 2 * time - 2)
    is_one = (documents.indices >= 0).unsqueeze(1)  # False for a placeholder, see `DocumentBatch.empty`
    targets = input_ids[:, 1:].masked_fill(~(documents.attention_mask[:, 1:].bool() & is_one), IGNORE_INDEX)
    return Twice(input_ids.gather(1, source), (place < 2 * first - 2) & is_one, targets)


def second_reading(hidden: Tensor, lengths: Tensor, steps: int) -> Tensor:
    """The hidden vectors (batch, 2 * time - 2, size) from each document's second `<eos>` on: (batch, steps, size)."""
    place = lengths.unsqueeze(1) - 1 + torch.arange(steps, device=hidden.device)  # (batch, steps)
    place = place.clamp(max=hidden.shape[1] - 1)
    return hidden.gather(1, place.unsqueeze(2).expand(-1, -1, hidden.shape[2]))
