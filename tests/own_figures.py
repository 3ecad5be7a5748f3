"""Metrics and a callback of a user's own, which tests name by class_path."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import Metric


class Documents(Metric):
    """How many documents there were, and how often ``update`` was called: 100 a call and 1 a document.

    Its state isn't reduced over processes, as a first metric's often isn't.
    """

    higher_is_better = None

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.tensor(0))

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        assert probabilities.dtype == torch.float32
        assert labels.dtype == torch.int64
        self.count += 100 + len(labels)  # type: ignore[operator]

    def compute(self) -> Any:
        return self.count


class MeanSurprise(Documents):
    """Nats, less being better; its compute gives a plain number."""

    higher_is_better = False

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        self.surprise = -probabilities.gather(1, labels[:, None]).log().mean()

    def compute(self) -> Any:
        return float(self.surprise)


class FailsOn(Documents):
    """Fails on ``documents`` documents."""

    def __init__(self, documents: int) -> None:
        super().__init__()
        self.documents = documents

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        if len(labels) == self.documents:
            raise ZeroDivisionError("none of the 7th kind")
        super().update(probabilities, labels)


class LogsRising(Callback):
    """Logs ``val/rising``: 1, 2, and so on."""

    def __init__(self) -> None:
        self.value = 0.0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.value += 1
        pl_module.log("val/rising", self.value)
