"""Tokens a second of the training loop."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch

from lit_sft.ranks import steps_have_passed


class Throughput(L.Callback):
    """Logs ``perf/tokens_per_second``: real tokens (no padding) over the time from one batch to the next.

    The time includes everything in a training step, also the wait for its batch and the work of callbacks, but not
    validation and saving. Tokens are counted by the batches' own ``num_tokens``. The callback waits for a GPU only when
    numbers are read from it anyway: when the figure is logged, before a validation, before saving and at the end.

    Attributes:
        tokens, seconds: totals of the run up to the last such wait; the first ``warmup`` batches are left out.
    """

    def __init__(self, warmup: int = 3) -> None:
        self.warmup = warmup
        self.tokens = 0
        self.seconds = 0.0
        self._seen = 0
        self._started: float | None = None  # None: not measuring
        self._since = 0  # tokens since then
        self._logged = (0, 0.0)

    @property
    def tokens_per_second(self) -> float | None:
        """The mean over the run so far; None before the first measured step."""
        return self.tokens / self.seconds if self.seconds > 0 else None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._started, self._since = None, 0  # a fit before this one may have ended anywhere

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._started is None and self._seen >= self.warmup:
            self._started = _now()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seen += 1
        if self._started is None:
            return
        self._since += trainer.world_size * sum(part.num_tokens for part in batch.values())  # shares are about equal
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and steps_have_passed(trainer, every):
            self._started = self._stop()
            tokens, seconds = self._logged
            if self.seconds > seconds:
                module.log("perf/tokens_per_second", (self.tokens - tokens) / (self.seconds - seconds), batch_size=1)
            self._logged = (self.tokens, self.seconds)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._stop()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._stop()

    def _stop(self) -> float | None:
        """Add what was measured to the totals and return the present time; the next batch starts a new measurement."""
        if self._started is None:
            return None
        now = _now()
        self.seconds, self.tokens = self.seconds + now - self._started, self.tokens + self._since
        self._started, self._since = None, 0
        return now

    def state_dict(self) -> dict[str, Any]:
        """Called for a checkpoint; the time of saving it must not be measured."""
        self._stop()
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]
        self._logged = (self.tokens, self.seconds)


def _now() -> float:
    """The time in seconds, after the device has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
