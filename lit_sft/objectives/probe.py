"""A linear probe: a classifier on a frozen encoder, whose vectors are computed once."""

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
    """`Supervised` for the classifier alone: measures a pretrained encoder as it is, in seconds per epoch.

    The encoder is frozen and reads every training document once, before the first step and without dropout; the pooled
    vectors are kept in the device's memory (documents x pooled units, 4 bytes each, 2 under bf16-mixed). The head's own
    dropout is still drawn at every step. The vectors depend only on the encoder and the documents, so a resumed run
    computes them again. With several processes, each holds the vectors of all documents.

    Args:
        label_smoothing, class_weights: as in `Supervised`.

    Raises:
        ValueError: as `Supervised`; in `prepare`, if pooling is by attention, whose query is trained.
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
        """Encode and pool the training documents."""
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
        """`batch["labeled"]`: indices (batch,) of training documents, and labels as in `loss`. No state is used."""
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
        """Leave the vectors out: a copy, such as the one that weight averaging makes, computes its own."""
        return {**self.__dict__, "_vectors": None}
