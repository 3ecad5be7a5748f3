"""Early stopping, and checks that the figures that callbacks wait for are measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_info

from lit_sft.callbacks.one_module import OfOneModule
from lit_sft.errors import UserError, nearest
from lit_sft.evaluation.metrics import FIGURES, better
from lit_sft.evaluation.texts import NAMES


class EarlyStop(EarlyStopping, OfOneModule):
    """Ends the stage when the monitored figure has not improved in ``patience`` validations; 0 disables it.

    Args:
        monitor, mode: as in ``BestCheckpoint``.
        patience: number of validations.
        min_delta: the smallest change that counts as an improvement.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] | None = None,
        patience: int = 0,
        min_delta: float = 0.0,
    ) -> None:
        if patience < 0:
            raise ValueError(f"early_stopping.patience={patience} must be at least 0")
        super().__init__(
            monitor=monitor,
            mode=mode or better(monitor) or "min",
            patience=patience or 10**9,
            min_delta=min_delta,
            check_on_train_epoch_end=False,
            check_finite=patience > 0,
        )
        self.undecided = mode is None and better(monitor) is None

    def forget(self) -> None:
        self.wait_count = self.stopped_epoch = 0
        self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None
        self.best_score = torch.tensor(-math.inf if self.mode == "max" else math.inf)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Determine the mode of a figure of the user's own, as ``BestCheckpoint`` does."""
        OfOneModule.setup(self, trainer, pl_module, stage)
        if self.undecided and stage == "fit":
            self.mode, self.undecided = mode_of(self.monitor, pl_module), False
            if self.mode == "max":  # Lightning took both for "min", which stands there until now
                self.best_score, self.min_delta = torch.tensor(-math.inf), -self.min_delta
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a resumed run at once if early stopping had ended it before, but it was killed before it finished.

        (Lightning's checkpoints don't record that it was stopping.) A stopped run that is trained further in another
        folder continues for at least ``patience`` validations.
        """
        check_interval(trainer)
        # with trainer.min_epochs it may have been asked to end, and have got better since
        ended = self.wait_count >= self.patience or self.stopping_reason != EarlyStoppingReason.NOT_STOPPED
        saving = [Path(folder).resolve() for c in trainer.callbacks if (folder := getattr(c, "dirpath", None))]  # type: ignore[attr-defined]
        if ended and trainer.ckpt_path and Path(trainer.ckpt_path).resolve().parent in saving:
            trainer.should_stop = True
            return
        self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None
        if ended:
            self.wait_count = 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the training ends; Lightning would also tell each time that the figure improves, or nothing."""
        if self.stopping_reason_message:
            reason = self.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
            rank_zero_info(f"early stopping: {reason}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count, but not the patience, which is an option of the resumed run."""
        super().load_state_dict({**state_dict, "patience": self.patience})
        exhausted = self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED
        if exhausted and state_dict["patience"] != self.patience and self.wait_count < self.patience:
            self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None


def look_after_validations(callbacks: Iterable[Callback]) -> None:
    """Let Lightning's own early stopping and checkpoints look at their figure after each validation, if not told when.

    By themselves they may look at the end of the epoch, where a run that is resumed from the last checkpoint, which is
    written after the validation, has no figure yet: the one would end it, and the other miss that epoch.
    """
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end is None:
            callback._check_on_train_epoch_end = False
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback._save_on_train_epoch_end is None:
            callback._save_on_train_epoch_end = False


def mode_of(monitor: str | None, module: LightningModule) -> Literal["min", "max"]:
    """Whether less or more of a monitored figure is better; a UserError if neither its name nor its metric tells."""
    found = better(str(monitor), getattr(module, "metrics", None))
    if found is None:
        raise UserError(
            f"{monitor} is monitored, and nothing tells whether less or more of it is better: give --checkpoint.mode "
            "(of early stopping --early_stopping.mode), min or max"
        )
    return found


def check_interval(trainer: Trainer) -> None:
    """Raise a UserError if the same weights would be validated twice: callbacks that wait would count both."""
    every, step = trainer.val_check_batch, min(trainer.accumulate_grad_batches, trainer.num_training_batches)
    if trainer.enable_validation and every is not None and every < step:
        raise UserError(
            f"trainer.val_check_interval {trainer.val_check_interval} is every {every} batches, and a step takes "
            f"{step} (accumulate_grad_batches): the same weights would be measured twice; give {step} or more"
        )


def check_monitors(
    callbacks: Iterable[Callback], heads: frozenset[str], multilabel: bool = False, own: Iterable[str] = ()
) -> None:
    """Raise a UserError if a callback waits for a figure of the test, or for one that the heads don't have.

    Choosing by the test would turn it into training data. Lightning reports a missing figure only after the first
    validation, perhaps an hour into the fit, so it is checked here. The check is left to Lightning if a callback of the
    user's own may log the figure and the callback that waits for it states whether less or more is better.

    Args:
        callbacks: all callbacks of the fit.
        heads, multilabel: those of the model.
        own: names of the figures of the user's own metrics.
    """
    callbacks = list(callbacks)
    known = [f"val/{name}" for name in FIGURES["multilabel" if multilabel else "classifier"] if "classifier" in heads]
    if "lm" in heads:  # beside a classifier under names of their own
        known += [f"val/{'lm_' if known else ''}{name}" for name in FIGURES["lm"]]
    known += [f"val/{name}" for name in own]
    logging = [c for c in callbacks if not type(c).__module__.startswith(("lit_sft.", "lightning."))]
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None) or ""
        if monitor.startswith("test/"):
            raise UserError(
                f"{monitor} can't be monitored (checkpoint.monitor, early_stopping.monitor): nothing is chosen by the "
                f"test; monitor val/{monitor[5:]}"
            )
        of_a_class = monitor.startswith(("val/precision/", "val/recall/"))
        directed = hasattr(callback, "mode") and not getattr(callback, "undecided", False)
        elsewhere = monitor.startswith("val/") and monitor not in known and not of_a_class
        if f"val/{monitor}" in known or (elsewhere and not (logging and directed)):
            longer = [name for name in known if name.startswith(monitor)]
            hint = nearest(monitor, longer or known).strip() or f"there are {', '.join(known)}"
            if monitor.removeprefix("val/") in NAMES and "lm" in heads:
                hint = "a fit writes no responses: monitor val/loss"
            if logging:
                hint += "; if a callback of your own logs it, give the mode, min or max, beside the monitor"
            raise UserError(f"no figure {monitor} to monitor (checkpoint.monitor, early_stopping.monitor); {hint}")
