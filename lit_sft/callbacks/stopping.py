"""Best and last checkpoint, and early stopping, with this package's defaults."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from lit_sft.errors import UserError, nearest
from lit_sft.metrics import FIGURES


class _InFolder(ModelCheckpoint):
    """A checkpoint of one name in a run's folder, which may be moved, or named from elsewhere, before it is resumed.

    Lightning compares the folder's old name with the new one, and forgets the best score when they differ: the first
    validation would then overwrite a better checkpoint.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        path = str(Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}")
        if Path(path).is_file():
            scores = dict(zip([path], state_dict["best_k_models"].values(), strict=False))  # one at most
            paths = {"best_model_path": path, "kth_best_model_path": path if scores else ""}
            state_dict = {**state_dict, "dirpath": self.dirpath, "best_k_models": scores, **paths}
        super().load_state_dict(state_dict)


class BestCheckpoint(_InFolder):
    """``checkpoints/best.ckpt``: the best validation so far by the monitored figure.

    Args:
        monitor: a validation figure, such as ``val/loss`` or ``val/macro_f1``.
        mode: ``min`` where less is better, ``max`` where more is.
    """

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )


class LastCheckpoint(_InFolder):
    """``checkpoints/last.ckpt``, what ``--ckpt_path last`` goes on from: written after every validation and at the end.

    (``save_last`` of the callback above writes only when the best changes.)
    """

    def __init__(self) -> None:
        super().__init__(filename="last", monitor=None, save_top_k=1, enable_version_counter=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the last steps' weights where no validation followed them."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class EarlyStop(EarlyStopping):
    """Ends the stage when the monitored figure has not improved in ``patience`` validations; 0 never does."""

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        patience: int = 0,
        min_delta: float = 0.0,
    ) -> None:
        if patience < 0:
            raise ValueError(f"early_stopping.patience={patience} must be at least 0")
        super().__init__(
            monitor=monitor, mode=mode, patience=patience or 10**9, min_delta=min_delta, check_on_train_epoch_end=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The count goes on; the patience is the resumed run's own option and not the checkpoint's."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def check_monitors(callbacks: Iterable[Callback], heads: frozenset[str]) -> None:
    """Raise a UserError where a callback waits for a validation figure that the heads don't have.

    Lightning would tell after the first validation; an epoch of a language model can take an hour.
    """
    known = [f"val/{name}" for head in ("lm", "classifier") if head in heads for name in FIGURES[head]]
    if len(heads) > 1:
        known += [f"val/lm_{name}" for name in FIGURES["lm"]]
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None) or ""
        if monitor.startswith("val/") and monitor not in known and monitor.split("/")[1] not in ("precision", "recall"):
            longer = [name for name in known if name.startswith(monitor)]
            hint = nearest(monitor, longer or known).strip() or f"there are {', '.join(known)}"
            raise UserError(f"no figure {monitor} to monitor (checkpoint.monitor, early_stopping.monitor); {hint}")
