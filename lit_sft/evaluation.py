"""A pass over validation or test data: batches through the network, figures at the end."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lit_sft.data.buckets import DocumentBatch
from lit_sft.data.streams import StreamBatch
from lit_sft.metrics import ClassificationMetrics, LanguageModelMetrics
from lit_sft.models import LSTMState, Network
from lit_sft.objectives.supervised import class_probabilities
from lit_sft.predictions import Collector


class Evaluation(nn.Module):
    """Measures a network's heads. One instance serves pass after pass; :meth:`start` forgets the one before.

    Args:
        network: whose heads say what is measured; it is not kept.
        label_names: the classes, where there is a classifier.
    """

    def __init__(self, network: Network, label_names: Sequence[str]) -> None:
        super().__init__()
        self.lm = None if network.lm_head is None else LanguageModelMetrics()
        self.classes = None if network.classifier is None else ClassificationMetrics(label_names)
        self._state: LSTMState | None = None  # carried from one batch of the stream to the next
        self.kept: Collector | None = None

    def start(self, keep: bool = False) -> None:
        """Forget everything that was measured; ``keep``: each document's prediction is kept in ``kept``."""
        self._state = None
        self.kept = Collector() if keep else None
        for metrics in (self.lm, self.classes):
            if metrics is not None:
                metrics.reset()

    def add(self, network: Network, batch: StreamBatch | DocumentBatch) -> None:
        """Measure a batch; ``network`` is in eval mode."""
        masks = network.draw_masks(len(batch.input_ids))  # all None: evaluation drops nothing
        if isinstance(batch, StreamBatch):
            assert self.lm is not None
            if batch.first or self._state is None:
                self._state = network.encoder.initial_state(len(batch.input_ids))
            nll, self._state = network.lm_nll(batch, self._state, masks)
            self.lm.update(nll, batch.targets)
            return
        assert self.classes is not None
        probabilities = class_probabilities(network.classify(batch, masks))
        if batch.indices[0] < 0:  # nothing of this batch is for this process
            return
        loss = -probabilities.gather(1, batch.labels[:, None]).squeeze(1).clamp_min(1e-12).log()
        self.classes.update(probabilities, batch.labels, loss)
        if self.kept is not None:
            self.kept.add(batch.indices, batch.labels, probabilities.argmax(1), loss, probabilities)

    def figures(self, bytes_per_target: float) -> dict[str, float]:
        """Every figure of the pass by its name.

        Args:
            bytes_per_target: see :meth:`lit_sft.metrics.LanguageModelMetrics.compute`.
        """
        found = {} if self.lm is None else self.lm.compute(bytes_per_target)
        if self.classes is None:
            return found
        # with both heads the classifier's loss is the one to choose by
        return {f"lm_{name}": value for name, value in found.items()} | self.classes.compute()
