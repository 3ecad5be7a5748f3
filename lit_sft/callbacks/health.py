"""Sick runs stop early and say why: numbers that aren't finite, spikes of the loss, collapse to one class."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from lit_sft.callbacks.one_module import OfOneModule
from lit_sft.callbacks.saving import BestCheckpoint, LastCheckpoint
from lit_sft.callbacks.spikes import SpikeFilter
from lit_sft.callbacks.stopping import check_interval
from lit_sft.checkpoints import read_checkpoint
from lit_sft.errors import SickRun, UserError
from lit_sft.ranks import steps_have_passed
from lit_sft.watch import Watcher

Place = tuple[str, int, int]  # a batch: kind of its loader, epoch of the loader, its number in that epoch
SHOWN = 4  # documents of a batch that a message names
UNREAD = 200  # readings that wait on the device, at most
SKIPPED_IN_A_ROW = 10  # batches; more is no spike
LEAST_SCALE = 1e-4  # of gradients in float16; it begins at 65,536
# A classifier that has only begun to learn differs from a collapsed one, though both predict a single class:
NO_WORSE = 1.1  # its loss is below this many times that of guessing,
RANKS = 0.6  # and either its AUROC is above this (a constant answer has 0.5),
FALLING = 0.99  # or the loss has come below this share of that of the validation before


@dataclass(frozen=True)
class Measured:
    """A number that ought to be finite, and where it came from."""

    what: str
    value: Tensor  # scalar, perhaps not computed yet
    step: int
    epoch: int
    batch: int
    places: tuple[Place, ...]

    def where(self) -> str:
        """Step, epoch and batch, all counted from 0, as Lightning and TensorBoard do."""
        return f"step {self.step} (epoch {self.epoch}, batch {self.batch})"


class Health(OfOneModule, Watcher):
    """Ends a fit that has gone wrong, with a UserError that names the step, the documents and what to do.

    **Not finite**: a loss or a gradient's norm that is NaN or infinite ends the fit. On a CPU it does so before the
    optimizer changes anything. On a GPU, where reading a number waits for the device, the numbers are read every
    ``log_every_n_steps``, before a validation and before a checkpoint; until then fused optimizers (the default) skip
    such a step, leaving weights and state unchanged. No checkpoint is ever written with numbers that aren't finite.
    Gradients under ``16-mixed`` don't count: there the gradient scaler skips the step and lowers its scale. The fit
    ends if that scale has become so small that recovery can't be expected.

    **Spikes**: a batch is not learned from if its loss is too far above earlier ones (see ``SpikeFilter``). Its step
    still counts, and the schedule proceeds. If it is one of several whose gradients are accumulated, the others are
    learned from with their usual weight (under ``16-mixed`` none of them, if it is the last). Ten in a row are not
    spikes, and end the fit. The loss is read at each step, which waits for a GPU.

    **Collapse**: the fit ends if, in ``collapse_patience`` validations in a row, a classifier gives nearly every
    document the same label although several occur: the documents predicted to have other labels are fewer than a
    twentieth of those that have them. (With any number of labels per document, all documents must get the same ones.)
    A classifier that has only begun to learn does so too, but is not stopped: its loss is about that of guessing and
    is falling, or its AUROC shows that it already ranks the documents.

    Args:
        skip_spikes: skip batches whose loss is this many spreads above the median of earlier ones, such as 6; 0 skips
            none. Single process only.
        spike_window: how many earlier losses are considered; as many batches at the start are never skipped.
        collapse_patience: end a fine-tuning after this many validations in a row that predict almost a single class;
            0 never does.
    """

    def __init__(self, skip_spikes: float = 0.0, spike_window: int = 100, collapse_patience: int = 3) -> None:
        at_least = {"skip_spikes": (skip_spikes, 0), "spike_window": (spike_window, 2)}
        for name, (value, least) in (at_least | {"collapse_patience": (collapse_patience, 0)}).items():
            if not value >= least:
                raise ValueError(f"health.{name}={value} must be at least {least}")
        self.skip_spikes, self.collapse_patience = skip_spikes, collapse_patience
        self.spikes = SpikeFilter(skip_spikes, spike_window)
        self._unread: list[Measured] = []
        self._error: SickRun | None = None
        self._batch = 0
        self._places: list[Place] = []  # of this batch
        self._accumulated: list[Place] = []  # of all batches of this step so far
        self.forget()

    def forget(self) -> None:
        self.spikes.losses.clear()
        self.skipped, self._in_a_row = 0, 0  # batches
        self._collapsed, self._collapsed_since = 0, 0  # validations in a row; the step of the first
        self._val_loss: float | None = None  # of the last validation

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, module, stage)
        self._unread, self._error = [], None  # of a fit before, which may have ended by it
        if stage == "fit" and self.skip_spikes and trainer.world_size > 1:
            raise UserError("--health.skip_spikes works in one process only: each would decide for itself")
        if stage == "fit" and trainer.barebones and self.collapse_patience and module.stage == "finetune":
            raise UserError(
                "Health looks for a collapse in figures that Trainer(barebones=True) doesn't keep: give it "
                "collapse_patience=0, or leave barebones out"
            )

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        check_interval(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:  # Lightning's own rule
            self._accumulated = []
        self._batch = batch_idx
        loaders = trainer.train_dataloader.items()  # type: ignore[union-attr]
        self._places = [(kind, loader.epoch, loader.served - 1) for kind, loader in loaders]
        self._accumulated += self._places

    # ---- numbers that aren't finite

    def see_gradient(self, trainer: L.Trainer, norm: Tensor, optimizer: Optimizer) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        self._note(self._reading(trainer, "norm of the gradient", norm, self._accumulated), trainer)
        if not is_ready(norm) and all(group.get("fused") for group in optimizer.param_groups):
            # A gradient scaler sets this, too; a fused kernel reads it on the device, and changes nothing if it is 1.
            optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]

    def _reading(self, trainer: L.Trainer, what: str, value: Tensor, places: Sequence[Place]) -> Measured:
        return Measured(what, value, trainer.global_step, trainer.current_epoch, self._batch, tuple(places))

    def _note(self, reading: Measured, trainer: L.Trainer) -> None:
        self._unread.append(reading)
        if is_ready(reading.value) or len(self._unread) >= UNREAD:
            self._read(trainer)

    def _read(self, trainer: L.Trainer) -> None:
        """Check the noted readings and the scaler, waiting for the device; a stopped run raises its error again."""
        if self._unread and self._error is None:
            finite = torch.stack([reading.value.isfinite() for reading in self._unread]).tolist()
            if not all(finite):
                first = self._unread[finite.index(False)]
                told = f"{first.where()}: the {first.what} is {first.value.item()}"
                self._stop(f"{told}; {documents(trainer, first.places)}; {_way_on(trainer)}")
        self._unread = []
        if self._error is not None:
            raise self._error
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and (scale := scaler.get_scale()) < LEAST_SCALE:
            told = f"gradients have not been finite for so long that their scale has come down to {scale:.2g}"
            self._stop(f"step {trainer.global_step}: {told}; {_way_on(trainer)}")

    def _stop(self, reason: str) -> NoReturn:
        self._error = SickRun(reason)  # kept, so that no checkpoint is written on the way out
        raise self._error

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if steps_have_passed(trainer, trainer.log_every_n_steps or UNREAD):  # type: ignore[attr-defined]
            self._read(trainer)
        if self.skip_spikes:
            module.log("train/skipped_batches", float(self.skipped), batch_size=1)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._read(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._read(trainer)

    def before_saving(self, trainer: L.Trainer) -> None:
        self._read(trainer)
        parameters = dict(trainer.lightning_module.named_parameters())
        finite = torch.stack([p.detach().isfinite().all() for p in parameters.values()]).tolist()
        if not all(finite):
            name = list(parameters)[finite.index(False)].removeprefix("network.")
            self._stop(f"step {trainer.global_step}: {name} isn't finite any more; {_way_on(trainer)}")

    # ---- spikes

    def accepts(self, trainer: L.Trainer, loss: Tensor) -> bool:
        reading = self._reading(trainer, "loss", loss, self._places)
        self._note(reading, trainer)
        if not self.skip_spikes:
            return True
        value, limit = loss.item(), self.spikes.limit()
        if not math.isfinite(value) or self.spikes.accepts(value):  # not finite: reported when the reading is read
            self._in_a_row = 0
            return True
        self.skipped += 1
        self._in_a_row += 1
        told = f"the loss {value:.4g} is above {limit:.4g}; {documents(trainer, self._places)}"
        if self._in_a_row >= SKIPPED_IN_A_ROW:
            ways = f"{_way_on(trainer)}, or a larger --health.skip_spikes (now {self.skip_spikes:g})"
            told += f"; that is batch {self._in_a_row} in a row and no spike any more; {ways}"
            self._stop(f"{reading.where()}: {told}")
        rank_zero_info(f"{reading.where()} skipped: {told}")
        return False

    # ---- collapse

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        measured: Any = module.evaluation
        watched = self.collapse_patience and trainer.state.fn == "fit" and measured.classes is not None
        if not watched or trainer.sanity_checking:
            return
        label: str | None = measured.classes.collapsed_to()
        loss, auroc = (float(trainer.callback_metrics[f"val/{name}"]) for name in ("loss", "auroc"))
        guessing = measured.classes.guessing
        falls = self._val_loss is not None and loss < FALLING * self._val_loss
        begun = loss < NO_WORSE * guessing and (auroc > RANKS or falls)
        self._val_loss = loss
        if label is None or begun:
            self._collapsed = 0
            return
        if self._collapsed == 0:
            self._collapsed_since = trainer.global_step
        self._collapsed += 1
        if self._collapsed >= self.collapse_patience:
            figures = f"val/loss {loss:.4g}, of guessing {guessing:.4g}; val/auroc {auroc:.3g}"
            self._stop(self._collapse(trainer, label, figures))

    def _collapse(self, trainer: L.Trainer, label: str, figures: str) -> str:
        best = _stored(trainer, BestCheckpoint)
        sound = best is not None and best[1] < self._collapsed_since
        start = f"go on from {best[0]} (after {best[1]} steps)" if best and sound else "start again"
        return (
            f"step {trainer.global_step}: a collapse to one class: in {self._collapsed} validations in a row nearly "
            f"every document was taken for {label!r} ({figures}); {start} with {_lower_rate(trainer)}, a longer "
            "warm-up or class weights (Supervised's class_weights); --health.collapse_patience 0 lets such a run go on"
        )

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": list(self.spikes.losses),
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "collapsed": [self._collapsed, self._collapsed_since],
            "val_loss": self._val_loss,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.spikes.losses.extend(state_dict["losses"])  # a smaller window keeps the last ones
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]
        self._collapsed, self._collapsed_since = state_dict["collapsed"]
        self._val_loss = state_dict["val_loss"]


def is_ready(value: Tensor) -> bool:
    """Whether a value can be read without waiting for a device."""
    return value.device.type == "cpu"


def documents(trainer: L.Trainer, places: Sequence[Place]) -> str:
    """Describe the documents of some batches: number and first words of the first few, and how many more there are."""
    told = []
    for kind in dict.fromkeys(place[0] for place in places):
        dataset = copy.copy(trainer.train_dataloader[kind].dataset)  # type: ignore[index]
        numbers: set[int] = set()
        for _, epoch, batch in (place for place in places if place[0] == kind):
            dataset.set_epoch(epoch)  # of the copy: the loader may have gone on to the next
            numbers |= set(np.asarray(dataset.documents(batch)).tolist())
        tokenizer: Any = trainer.lightning_module.tokenizer
        names = []
        for number in sorted(numbers)[:SHOWN]:
            text = " ".join(tokenizer.decode(dataset.tokens.document(number)[:20]).split())
            names.append(f"{number} ({text[:30]}…)")
        more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
        told.append(f"{kind} documents {', '.join(names)}{more}")
    return "; ".join(told)


def _stored(trainer: L.Trainer, kind: type[BestCheckpoint | LastCheckpoint]) -> tuple[Path, int] | None:
    """The path of the checkpoint of a callback of this kind, and the step after which it was written."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, kind) and callback.path is not None:
            with suppress(UserError):  # missing, or not resumable
                return callback.path, read_checkpoint(callback.path).global_step
    return None


def _way_on(trainer: L.Trainer) -> str:
    last = _stored(trainer, LastCheckpoint)
    if last is None:
        return f"there is no checkpoint yet: start again with {_lower_rate(trainer)}"
    return f"{last[0]} keeps the weights after {last[1]} steps: go on with --ckpt_path last and {_lower_rate(trainer)}"


def _lower_rate(trainer: L.Trainer) -> str:
    return f"a lower --model.optimizer.lr (now {trainer.optimizers[0].param_groups[-1]['initial_lr']:g})"
