"""Small trainings in this process, for the tests of module, data module and callbacks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from conftest import Files
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor

from lit_sft.callbacks import LastCheckpoint
from lit_sft.data.datamodule import TextDataModule
from lit_sft.models import LSTMEncoder
from lit_sft.module import LitSFT
from lit_sft.optim import Constant

DROPOUTS = [name for name in inspect.signature(LSTMEncoder).parameters if name.endswith("_dropout")]


def data_of(files: Files, cache: Path, **options: Any) -> TextDataModule:
    """The small corpus: 9 batches a stream epoch, 8 a document epoch."""
    given: dict[str, Any] = {
        "labeled": str(files.train),
        "val": str(files.val),
        "test": str(files.test),
        "vocab_size": 300,
        "max_length": 32,
        "batch_size": 4,
        "bptt": 128,
        "max_documents": 16,
        "seed": 1,
        "cache_dir": str(cache),
    }
    return TextDataModule(**{**given, **options})


def module_of(stage: str, dropout: bool = False, encoder: dict[str, Any] | None = None, **options: Any) -> LitSFT:
    """A module of a few units with seeded start weights; without dropout unless asked for."""
    torch.manual_seed(7)
    units = {"embedding_size": 8, "hidden_size": 12, "num_layers": 2}
    rates = dict.fromkeys(DROPOUTS, 0.2) if dropout else dict.fromkeys(DROPOUTS, 0.0)
    chosen = {**units, **rates, **(encoder or {})}
    given: dict[str, Any] = {
        "stage": stage,
        "encoder": partial(chosen.pop("kind", LSTMEncoder), **chosen),
        "optimizer": partial(torch.optim.AdamW, lr=0.01),
        "head_dropout": 0.3 if dropout else 0.0,
        "schedule": Constant(),
    }
    return LitSFT(**{**given, **options})


def trainer_of(folder: Path, **options: Any) -> L.Trainer:
    callbacks = options.get("callbacks", [])
    given: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**given, **options})


class Losses(Callback):
    """Every training loss, in order; ends the run by an exception before step ``stop_at``."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.values: list[float] = []
        self.rates: list[float] = []
        self.stop_at = stop_at

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.stop_at:
            raise PowerCut
        self.rates.append(trainer.optimizers[0].param_groups[-1]["lr"])

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.values.append(float(outputs["loss"]))


class Began(Callback):
    """The optimizer step at which the training began; None before that."""

    step: int | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.step = trainer.global_step


class PowerCut(Exception):
    """What ends a run in the middle."""


def check_resumes(
    fit: Callable[[list[Callback], Path | None], dict[str, Tensor]], folder: Path, least: int, every: int = 1
) -> None:
    """A fit that is gone on with begins where it was saved, and ends as one that was never stopped, bit by bit.

    Args:
        fit: trains with these callbacks, from the start or from a checkpoint; the weights at its end.
        folder: empty.
        least: checkpoints that the whole fit must leave, one a step.
        every: of these, how many steps lie between two that are tried.
    """

    def run(name: str, path: Path | None) -> dict[str, Tensor]:
        saving, began = LastCheckpoint(every_steps=1, keep=100), Began()
        saving.dirpath = str(folder / name)
        ended = fit([saving, began], path)
        assert began.step == step_of(path)  # one that starts over would end the same
        return ended

    whole = run("whole", None)
    saved = sorted((folder / "whole").glob("last-*.ckpt"))
    assert len(saved) >= least
    for path in saved[::every]:
        assert equal(run("rest", path), whole), path.name


def step_of(path: Path | None) -> int:
    """The optimizer step of a checkpoint; 0 without one."""
    if path is None:
        return 0
    step: int = torch.load(path, weights_only=True)["global_step"]
    assert step > 0
    return step


def weights(module: LitSFT) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.net.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether both hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
