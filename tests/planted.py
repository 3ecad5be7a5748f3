"""Losses that go wrong at a chosen batch, and what a step did to weights and optimizer."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from training import PowerCut, weights

from lit_sft.data.datamodule import TextDataModule
from lit_sft.models import LSTMState, Network
from lit_sft.objectives import MLE, Loss, Objective, Supervised

BATCHES = {"pretrain": 11, "finetune": 8}  # of an epoch


def planted(stage: str, at: Collection[int], factor: float) -> Objective:
    """The stage's own objective, but for a factor on the loss of the batches with these numbers."""
    kind: Any = MLE if stage == "pretrain" else Supervised

    class Planted(kind):  # type: ignore[misc]
        calls = 0

        def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
            loss: Loss = super().__call__(network, batch, state)
            loss.total = loss.total * (factor if self.calls in at else 1.0)
            self.calls += 1
            return loss

    return Planted()


class SickGradient(Callback):
    """One element of the gradient isn't finite after the backward pass of this batch of the fit."""

    def __init__(self, at: int, value: float) -> None:
        self.at, self.value, self.calls = at, value, 0

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.calls == self.at:
            gradient = next(p.grad for p in module.parameters() if p.grad is not None)
            gradient.view(-1)[3] = self.value
        self.calls += 1


class Seen(Callback):
    """Weights and optimizer state before each batch of the fit, and at the end; may end it before batch ``stop_at``."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.weights: list[dict[str, Tensor]] = []
        self.optimizer: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if len(self.weights) == self.stop_at:
            raise PowerCut
        self._look(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self._look(trainer, module)

    def _look(self, trainer: L.Trainer, module: Any) -> None:
        self.weights.append(weights(module))
        self.optimizer.append(copy.deepcopy(trainer.optimizers[0].state_dict()["state"]))


def same(one: Any, other: Any) -> bool:
    """Whether two nested values hold the same bits."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def documents_of(data: TextDataModule, stage: str, epoch: int, batches: Collection[int]) -> list[int]:
    """The documents of some batches of an epoch, by the batches themselves."""
    loader: Any = data.stream_loader("train") if stage == "pretrain" else data.document_loader("train")
    loader.dataset.set_epoch(epoch)
    found: set[int] = set()
    for batch in batches:
        if stage == "finetune":
            found |= set(loader.dataset[batch].indices.tolist())
        else:
            found |= set(documents_by_position(loader.dataset, batch))
    return sorted(found)


def documents_by_position(dataset: Any, batch: int) -> list[int]:
    """The documents that a stream batch's targets come from: the text written out, document numbers in place of ids."""
    owner = [n for n in dataset._order.tolist() for _ in range(int(dataset.tokens.lengths[n]) + 1)]
    starts = range(0, dataset.lane_length * dataset.batch_size, dataset.lane_length)
    begin = batch * dataset.bptt
    end = min(begin + dataset.bptt, dataset.lane_length)
    return sorted({n for start in starts for n in owner[start + begin : start + end]})
