"""A pass over validation or test data: batches through the network, figures at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torchmetrics import Metric

from lit_sft.data.buckets import DocumentBatch
from lit_sft.data.pairs import PairBatch
from lit_sft.data.streams import StreamBatch
from lit_sft.errors import UserError
from lit_sft.evaluation.metrics import ClassificationMetrics, LanguageModelMetrics
from lit_sft.evaluation.multilabel import MultilabelMetrics
from lit_sft.evaluation.own import OwnMetrics
from lit_sft.evaluation.predictions import Collector
from lit_sft.evaluation.text_losses import document_sums, response_sums
from lit_sft.models import LSTMState, Masks, Network
from lit_sft.models.generation import respond
from lit_sft.objectives.divergence import log_probabilities


class Evaluation(nn.Module):
    """Measures a network's heads. One instance is used for many passes; :meth:`start` clears the previous one.

    Args:
        network: its heads determine what is measured; no reference to it is kept.
        label_names: the classes, if there is a classifier.
        metrics: the user's own metrics, by the names of their figures.
        special_ids: ids of the tokenizer's ``<eos>``, ``<pad>`` and ``<unk>``; needed if there are prompts.
        num_beams: beams of the search for responses to prompts, which only runs if each document's results are kept.

    Raises:
        UserError: if own metrics are given without a classifier, or :class:`OwnMetrics` rejects one.
    """

    def __init__(
        self,
        network: Network,
        label_names: Sequence[str],
        metrics: Mapping[str, Metric] | None = None,
        special_ids: tuple[int, int, int] | None = None,
        num_beams: int = 1,
    ) -> None:
        super().__init__()
        self.special_ids, self.num_beams = special_ids, num_beams
        self.lm = None if network.lm_head is None else LanguageModelMetrics()
        self.classes: ClassificationMetrics | MultilabelMetrics | None = None
        if network.classifier is not None:
            self.classes = (MultilabelMetrics if network.multilabel else ClassificationMetrics)(label_names)
        self.own: OwnMetrics | None = None
        if metrics:
            if network.classifier is None:
                raise UserError(
                    "model.metrics: this objective predicts no labels: give them to the fine-tuning of a classifier"
                )
            self.own = OwnMetrics(metrics, len(label_names), network.multilabel)
        self._state: LSTMState | None = None  # carried from one batch of the stream to the next
        self.kept: dict[str, Collector] = {}  # by head: the results of each document

    def start(self, keep: bool = False) -> None:
        """Clear all measurements; ``keep``: whether to collect the results of each document in ``kept``."""
        self._state = None
        self.kept = {"lm": Collector(), "classifier": Collector()} if keep else {}
        for metrics in (self.lm, self.classes, self.own):
            if metrics is not None:
                metrics.reset()

    def add(self, network: Network, batch: StreamBatch | DocumentBatch, documents: np.ndarray | None = None) -> None:
        """Measure a batch; ``network`` is in eval mode.

        ``documents``: for a stream, int64 (batch, time), the document of each target; None: its documents' results are
        not collected.
        """
        masks = network.draw_masks(*batch.input_ids.shape)  # all None: no dropout in eval mode
        if isinstance(batch, PairBatch):
            self._add_pairs(network, batch, masks)
            return
        if isinstance(batch, StreamBatch):
            assert self.lm is not None
            if batch.first or self._state is None:
                self._state = network.encoder.initial_state(len(batch.input_ids))
            nll, self._state = network.lm_nll(batch, self._state, masks)
            self.lm.update(nll, batch.targets)
            if self.kept and documents is not None:
                self.kept["lm"].add(**document_sums(nll, batch.targets, documents))
            return
        assert self.classes is not None
        if batch.empty:  # this process has no document of the batch
            return
        logits = network.classify(batch, masks)
        probabilities = network.class_probabilities(logits)
        losses = _losses(logits, batch.labels)
        self.classes.update(probabilities, batch.labels, losses)
        if self.own is not None:
            self.own.update(probabilities, batch.labels)
        if self.kept:
            columns = {"labels": batch.labels, "losses": losses, "probabilities": probabilities}
            self.kept["classifier"].add(documents=batch.indices, **columns)

    def _add_pairs(self, network: Network, batch: PairBatch, masks: Masks) -> None:
        assert self.lm is not None
        if batch.empty:
            return
        encoded = network.encode(batch, None, masks)
        targets = batch.response_targets
        nll = network.nll(encoded.hidden, targets)
        self.lm.update(nll, targets)
        if self.kept:
            assert self.special_ids is not None
            eos, *never = self.special_ids
            search = (eos, batch.max_response_length, self.num_beams, never)
            generated = respond(network, batch, batch.prompt_lengths, *search)
            self.kept["lm"].add(documents=batch.indices, generated=generated, **response_sums(nll, targets))

    def tune(self) -> None:
        """Choose the thresholds of multi-label data by this pass; for validation data only."""
        if isinstance(self.classes, MultilabelMetrics):
            self.classes.tune()

    @property
    def thresholds(self) -> list[float] | None:
        """The probability from which each label is predicted; None if a document has one label, the most probable."""
        return self.classes.thresholds if isinstance(self.classes, MultilabelMetrics) else None

    @thresholds.setter
    def thresholds(self, values: list[float] | None) -> None:
        if isinstance(self.classes, MultilabelMetrics) and values is not None:
            self.classes.thresholds = list(values)

    def confusion(self) -> dict[str, Any] | None:
        """The confusion matrix as plain values; None without a classifier.

        It has ``labels``, and in ``matrix`` the number of documents by label (row) and predicted label (column).
        Multi-label: ``matrix`` has for each label (row) the true and false negatives and positives that ``columns``
        names.
        """
        return None if self.classes is None else self.classes.confusion()

    def figures(self, bytes_per_target: float) -> dict[str, float]:
        """Every figure of the pass by its name.

        Args:
            bytes_per_target: see :meth:`lit_sft.evaluation.metrics.LanguageModelMetrics.compute`.
        """
        found = {} if self.lm is None else self.lm.compute(bytes_per_target)
        if self.classes is None:
            return found
        # with both heads, `loss` is the classifier's, by which checkpoints are chosen
        named = {f"lm_{name}": value for name, value in found.items()} | self.classes.compute()
        return named if self.own is None else named | self.own.compute()


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each document in nats, (batch,); multi-label: the mean of the labels' binary cross-entropies."""
    multilabel = labels.ndim == 2
    log_p = log_probabilities(logits, multilabel)  # (batch, choices, outcomes)
    chosen = (labels if multilabel else labels[:, None]).long()  # (batch, choices)
    return -log_p.gather(2, chosen.unsqueeze(2)).squeeze(2).mean(1)
