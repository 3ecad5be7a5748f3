"""What is saved and when: the best checkpoint, and the last one, from which a run goes on exactly."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lit_sft.callbacks.stopping import mode_of
from lit_sft.checkpoint_io import AtomicCheckpointIO, check_unused
from lit_sft.evaluation.metrics import better
from lit_sft.processes import STOPPING, Stopped
from lit_sft.ranks import agreed

SAME_PRESS = 1.0  # seconds: a recipe forwards a signal that its stage may also get from the terminal


class BestCheckpoint(ModelCheckpoint):
    """``checkpoints/best.ckpt``: the best validation so far by the monitored figure.

    Args:
        monitor: a validation figure, such as ``val/loss`` or ``val/macro_f1``.
        mode: ``min`` if less is better, ``max`` if more is; None: as suits the figure; for one of the user's own, as
            its metric says, if it does.
    """

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] | None = None) -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode or better(monitor) or "min",
            save_top_k=1,
            enable_version_counter=False,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,  # after the validation, so that the last checkpoint knows of it
        )
        self.undecided = mode is None and better(monitor) is None  # until the module tells which mode it is

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Determine the mode of a figure of the user's own."""
        if self.undecided and stage == "fit":
            self.mode, self.undecided = mode_of(self.monitor, pl_module), False
            self.kth_value = torch.tensor(math.inf if self.mode == "min" else -math.inf)
        super().setup(trainer, pl_module, stage)

    @property
    def path(self) -> Path | None:
        """Where it is, or will be."""
        return None if self.dirpath is None else Path(self.dirpath) / "best.ckpt"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Allow a run's folder to be moved, or to be named differently, before it is resumed.

        Lightning compares the folder's old name with the new one, and forgets the best score when they differ: the
        first validation would then overwrite a better checkpoint.
        """
        path = str(self.path)
        if Path(path).is_file():
            scores = dict(zip([path], state_dict["best_k_models"].values(), strict=False))  # one at most
            paths = {"best_model_path": path, "kth_best_model_path": path if scores else ""}
            state_dict = {**state_dict, "dirpath": self.dirpath, "best_k_models": scores, **paths}
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]  # Lightning saves it, but doesn't load it


class LastCheckpoint(Checkpoint):
    """``checkpoints/last.ckpt``, from which ``--ckpt_path last`` resumes a run, bit for bit.

    It is written after each validation, at the end of the training, and in between by the clock or by steps. In
    between, a save waits for a suitable batch: not one in the middle of an accumulation, since no checkpoint contains
    accumulated gradients, nor one right before a validation, which Lightning would skip on resume, nor an epoch's last
    (see :func:`resumes_exactly`). If the training ends in mid-accumulation (``max_time``), those gradients are lost.

    Args:
        every_minutes: minutes between two saves; 0 does not save by the clock.
        every_steps: optimizer steps between two saves, in addition to the clock; 0 does not save by steps.
        keep: number of checkpoints kept; if the last one is damaged, a run resumes from the previous, ``last-1.ckpt``.
    """

    def __init__(self, every_minutes: float = 5.0, every_steps: int = 0, keep: int = 2) -> None:
        if every_minutes < 0 or every_steps < 0 or keep < 1:
            raise ValueError(
                f"saving: every_minutes={every_minutes} and every_steps={every_steps} must be at least 0, "
                f"keep={keep} at least 1"
            )
        self.every_minutes, self.every_steps, self.keep = every_minutes, every_steps, keep
        self.dirpath: str | None = None  # the run's checkpoints/
        self._saved_step = -1
        self._saved_at = time.monotonic()
        self._time_is_up = False  # the processes have agreed

    @property
    def path(self) -> Path | None:
        """Where it is, or will be."""
        return None if self.dirpath is None else Path(self.dirpath) / "last.ckpt"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.dirpath is None:  # outside the command line
            self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
            check_unused(trainer, Path(self.dirpath) / "last.ckpt")
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ending = ends(trainer)
        if not self._due(trainer, ending) or not (resumes_exactly(trainer) or (ending and not validates_next(trainer))):
            return
        # Lightning logs a step after this hook: a run killed in between would never log it. So the next step is saved
        # instead; but if every step is logged, or the training is about to stop, this one is logged before saving.
        if trainer._logger_connector.should_update_logs:
            if trainer.log_every_n_steps > 1 and not (trainer.should_stop or ending):  # type: ignore[attr-defined]
                return
            trainer._logger_connector.update_train_step_metrics()
        self.save(trainer)

    def _due(self, trainer: Trainer, ending: bool) -> bool:
        if trainer.global_step == self._saved_step:
            return False
        by_steps = self.every_steps > 0 and trainer.global_step - self._saved_step >= self.every_steps
        by_clock = self.every_minutes > 0 and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        self._time_is_up = self._time_is_up or agreed(trainer, by_clock)
        return by_steps or self._time_is_up or ending

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        unsaved = fitting and ends(trainer) and self._saved_step != trainer.global_step
        if unsaved or resumes_exactly_after_validation(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights of the last steps if nothing else has.

        This is a last resort: by now Lightning counts an interrupted epoch as complete, and with ``max_steps`` a
        complete one as interrupted, so that a run resumed from here skips batches.
        """
        if self._saved_step != trainer.global_step:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint now, after everything logged so far."""
        if trainer.fast_dev_run or self.path is None:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()
        atomic = isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
        options = {"keep": self.keep} if atomic else None  # a plugin that the user chose knows no such option
        trainer.save_checkpoint(self.path, weights_only=False, storage_options=options)
        self._saved_step, self._saved_at, self._time_is_up = trainer.global_step, time.monotonic(), False


class StopOnSignal(Callback):
    """Ctrl-C, SIGTERM and SIGUSR1 (the warning that a job scheduler can send) end a fit at a step it can go on from.

    The run is saved at the next such step (during a validation, at its end), and the process ends with the exit code
    that shells expect, 128 plus the signal's number. A second signal, at least a second later, ends the run at once. A
    signal after the last step and its validation changes nothing: the run is finished, and ends normally.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self.last = last
        self.received: int | None = None
        self._received_at = 0.0
        self._stopping = False  # the processes have agreed
        self._before: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install()  # Lightning has installed its own since, which would end the run anywhere
        trainer._signal_connector.received_sigterm = False  # one that came before was heard here, too
        if self._before:  # else processes wait for each other at every batch to ask for Lightning's own signals
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing_to_tell  # type: ignore[method-assign]

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                before = signal.signal(number, self._receive)
                self._before.setdefault(number, before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = number, now
            if getattr(rank_zero_only, "rank", 0) == 0:
                name = signal.Signals(number).name
                told = f"{name}: saving at the next step, then stopping; again to stop at once\n"
                with contextlib.suppress(OSError):  # sys.stderr refuses a handler that interrupts a write to it
                    os.write(2, told.encode())
        elif now - self._received_at > SAME_PRESS:
            raise SystemExit(128 + number)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_stopping(trainer) and resumes_exactly(trainer):
            trainer._logger_connector.update_train_step_metrics()
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if resumes_exactly_after_validation(trainer) and self._is_stopping(trainer):
            self._stop(trainer)

    def _is_stopping(self, trainer: Trainer) -> bool:
        self._stopping = self._stopping or agreed(trainer, self.received is not None)
        return self._stopping

    def _stop(self, trainer: Trainer) -> None:
        if self.last._saved_step != trainer.global_step:
            self.last.save(trainer)
        rank_zero_info(f"stopped at step {trainer.global_step}: fit goes on with --ckpt_path last")
        raise Stopped(128 + (self.received or signal.SIGTERM))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Lightning restores the handlers that it found when training began: ours from setup, not the original ones.
        trainer._signal_connector._original_handlers |= self._before
        self._before = {}
        _ask_again(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        _ask_again(trainer)


def _nothing_to_tell() -> None:
    """Replaces Lightning's question to all processes whether its handler was called, while ours is installed."""


def _ask_again(trainer: Trainer) -> None:
    trainer.fit_loop.epoch_loop.__dict__.pop("_broadcast_sigterm_tensor", None)


def place_saving(callbacks: list[Callback], folder: Path) -> None:
    """Direct the checkpoints to a run's folder, handle signals, and order both after the callbacks that they save."""
    (last,) = (callback for callback in callbacks if isinstance(callback, LastCheckpoint))
    callbacks.append(StopOnSignal(last))
    for callback in callbacks:
        if isinstance(callback, (ModelCheckpoint, LastCheckpoint)) and callback.dirpath is None:
            callback.dirpath = str(folder)
    order = (ModelCheckpoint, LastCheckpoint, StopOnSignal)
    callbacks.sort(key=lambda callback: next((i for i, kind in enumerate(order) if isinstance(callback, kind)), -1))


def resumes_exactly(trainer: Trainer) -> bool:
    """Whether a run that is saved at the end of this batch resumes as if it had never been stopped.

    After the last batch of an epoch, it would skip the hooks of the epoch's end, which a callback of the user's may
    have; that batch is accepted only if it completes the epoch's only step.
    """
    loop = trainer.fit_loop.epoch_loop
    last = loop.batch_progress.is_last_batch and trainer.num_training_batches > trainer.accumulate_grad_batches
    return not (loop._should_accumulate() or last or validates_next(trainer))


def validates_next(trainer: Trainer) -> bool:
    """Whether a validation follows this batch."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def ends(trainer: Trainer) -> bool:
    """Whether the training ends with this batch: by its steps, its epochs, or because something has asked for it."""
    loop = trainer.fit_loop
    done: int = loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    epochs = done + loop.epoch_loop.batch_progress.is_last_batch
    asked = trainer.should_stop and epochs >= (loop.min_epochs or 0) and trainer.global_step >= (loop.min_steps or 0)
    return asked or trainer.global_step == loop.max_steps or 0 <= (loop.max_epochs or -1) <= epochs


def resumes_exactly_after_validation(trainer: Trainer) -> bool:
    """As :func:`resumes_exactly`, at the end of a validation: one of a fit, with no accumulated gradients pending."""
    fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
    return fitting and not trainer.fit_loop._should_accumulate()
