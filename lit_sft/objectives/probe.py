"""A linear probe: a classifier on an encoder that stays as it is, whose vectors are computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lit_sft.models.encoder import LSTMState
from lit_sft.models.heads import at_least_float32
from lit_sft.models.network import Masks, Network
from lit_sft.objectives.base import Loss
from lit_sft.objectives.supervised import Supervised


class Probe(Supervised):
    """`Supervised` for the classifier alone: what a pretraining is worth as it is, in seconds an epoch.

    The encoder is frozen and reads every training document once, before the first step and without dropout; what the
    classifier pools of it stays in the device's memory (documents x pooled units, 4 bytes each, 2 under bf16-mixed).
    The head's own dropout is drawn anew at every step. The vectors are a function of encoder and documents, so that a
    resumed run computes them again; each of several processes has all of them.

    Args:
        label_smoothing, class_weights: as `Supervised` has them.

    Raises:
        ValueError: as `Supervised`; in `prepare`, pooling by attention, whose query is trained.
    """

    def __init__(
        self, label_smoothing: float = 0.0, class_weights: Literal["balanced", "sqrt"] | list[float] | None = None
    ) -> None:
        super().__init__(label_smoothing, class_weights)
        self._vectors: Tensor | None = None  # (training documents, pooled_size), on the device

    def prepare(self, network: Network) -> None:
        """Freeze the encoder."""
        if network.classifier is not None and network.classifier.query is not None:
            raise ValueError("Probe pools once, and pooling=attention learns what to pool: choose another pooling")
        for parameter in network.encoder.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def see_documents(self, network: Network, documents: Iterable[Any], count: int) -> None:
        """Read the training documents."""
        encoder, training = network.encoder, network.encoder.training
        encoder.eval()
        self._vectors = None
        for batch in documents:
            pooled = network.pooled(batch, Masks(encoder.draw_masks(*batch.input_ids.shape)))  # (batch, pooled_size)
            if self._vectors is None:
                self._vectors = pooled.new_zeros(count, pooled.shape[1])
            self._vectors[batch.indices] = pooled
        encoder.train(training)

    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        """`batch["labeled"]`: indices (batch,), places of documents, and their labels as for `loss`. No state."""
        documents = batch["labeled"]
        if self._vectors is None or network.classifier is None:
            raise ValueError("Probe needs a classifier, and see_documents before the first loss")
        mask = network.classifier.draw_mask(len(documents.labels))
        logits = network.classifier.of_pooled(self._vectors[documents.indices], mask)  # (batch, num_outputs)
        logits = at_least_float32(logits)
        total = self.loss(logits, documents.labels)
        weight = self._document_weights(logits, documents.labels).sum()
        return Loss(total, {"supervised": total.detach()}, weight)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, as weight averaging makes one, reads the documents for itself."""
        return {**self.__dict__, "_vectors": None}
