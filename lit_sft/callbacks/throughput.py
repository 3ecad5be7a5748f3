"""Tokens a second of the training loop."""

from __future__ import annotations

import time
from typing import Any

import lightning as L


class Throughput(L.Callback):
    """Logs ``perf/tokens_per_second``: real tokens (no padding) over the time of the training steps alone.

    Validation and checkpoints are left out of the time. The count comes from the batches' own ``num_tokens``, so that
    nothing waits for the device; on a GPU the figure is right over many steps, not for a single one.

    Attributes:
        tokens, seconds: totals of the run; the first ``warmup`` steps are left out.
    """

    def __init__(self, warmup: int = 3) -> None:
        self.warmup = warmup
        self.tokens = 0
        self.seconds = 0.0
        self._seen = 0
        self._started = 0.0
        self._logged = (0, 0.0)

    @property
    def tokens_per_second(self) -> float | None:
        """The mean over the run so far; None before the first measured step."""
        return self.tokens / self.seconds if self.seconds > 0 else None

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seen += 1
        if self._seen <= self.warmup:
            return
        self.seconds += time.perf_counter() - self._started
        self.tokens += trainer.world_size * sum(part.num_tokens for part in batch.values())  # shares are about equal
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            tokens, seconds = self._logged
            if self.seconds > seconds:
                module.log("perf/tokens_per_second", (self.tokens - tokens) / (self.seconds - seconds), batch_size=1)
            self._logged = (self.tokens, self.seconds)

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]
        self._logged = (self.tokens, self.seconds)
