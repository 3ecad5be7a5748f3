"""Early stopping, and whether what a callback waits for is measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.utilities import rank_zero_info

from lit_sft.errors import UserError, nearest
from lit_sft.evaluation.metrics import FIGURES, better


class EarlyStop(EarlyStopping):
    """Ends the stage when the monitored figure has not improved in ``patience`` validations; 0 never does.

    Args:
        monitor, mode: as ``BestCheckpoint`` has them.
        patience: in validations.
        min_delta: the least change that is an improvement.
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
            mode=mode or better(monitor),
            patience=patience or 10**9,
            min_delta=min_delta,
            check_on_train_epoch_end=False,
            check_finite=patience > 0,
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the training ends; Lightning would also tell each time that the figure improves, or nothing."""
        if self.stopping_reason_message:
            reason = self.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
            rank_zero_info(f"early stopping: {reason}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The count goes on; the patience is the resumed run's own option and not the checkpoint's."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def check_monitors(callbacks: Iterable[Callback], heads: frozenset[str], multilabel: bool = False) -> None:
    """Raise a UserError where a callback waits for a figure of the test, or for one that the heads don't have.

    The test is to tell about new text: whatever chooses by it makes it training data. Lightning would tell of a missing
    figure after the first validation; an epoch of a language model can take an hour.
    """
    known = [f"val/{name}" for name in FIGURES["multilabel" if multilabel else "classifier"] if "classifier" in heads]
    if "lm" in heads:  # beside a classifier under names of their own
        known += [f"val/{'lm_' if known else ''}{name}" for name in FIGURES["lm"]]
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None) or ""
        if monitor.startswith("test/"):
            raise UserError(
                f"{monitor} can't be monitored (checkpoint.monitor, early_stopping.monitor): nothing is chosen by the "
                f"test; monitor val/{monitor[5:]}"
            )
        of_a_class = monitor.startswith(("val/precision/", "val/recall/"))
        if f"val/{monitor}" in known or (monitor.startswith("val/") and monitor not in known and not of_a_class):
            longer = [name for name in known if name.startswith(monitor)]
            hint = nearest(monitor, longer or known).strip() or f"there are {', '.join(known)}"
            raise UserError(f"no figure {monitor} to monitor (checkpoint.monitor, early_stopping.monitor); {hint}")
