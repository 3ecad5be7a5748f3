"""Callbacks and an objective that a test's subprocess names by class_path."""

from __future__ import annotations

import errno
import math
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_sft.models import LSTMState, Network
from lit_sft.objectives import Loss, Supervised


class Snapshots(Callback):
    """All weights after each batch, (batches, weights) float64, in the file ``path``; ends the process at a step.

    Args:
        path: written at the end of the training, or where it stops.
        stop_at: the optimizer step after which every process ends at once, as in a power cut.
    """

    def __init__(self, path: str, stop_at: int = -1) -> None:
        self.path, self.stop_at = path, stop_at
        self.steps: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.steps.append(torch.cat([p.detach().flatten() for p in module.parameters()]).clone())
        if trainer.global_step == self.stop_at:
            trainer.strategy.barrier()  # so that every process has come this far
            self.on_train_end(trainer, module)
            raise SystemExit(9)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            torch.save(torch.stack(self.steps), self.path)


class FullDisk(Callback):
    """The first process meets a full disk after step 3; the second has told its number in the file ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 3 and not trainer.is_global_zero:
            Path(self.path).write_text(str(os.getpid()))
        trainer.strategy.barrier()
        if trainer.global_step == 3 and trainer.is_global_zero:
            raise OSError(errno.ENOSPC, "No space left on device")


class SlowEnd(Callback):
    """The first process takes 12 seconds over an exception; with ``stop`` it sends itself SIGTERM after step 3."""

    def __init__(self, stop: bool) -> None:
        self.stop = stop

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if self.stop and trainer.global_step == 3 and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero:
            time.sleep(12)


class SickShare(Supervised):
    """The supervised loss, but NaN at optimizer step 3 in the second of several processes."""

    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        loss = super().__call__(network, batch, state)
        if self.step == 3 and torch.distributed.get_rank() == 1:
            loss.total = loss.total * math.nan
        return loss
