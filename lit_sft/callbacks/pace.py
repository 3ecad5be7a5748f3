"""How far a stage has come and how fast it goes, in words: shared by the bar and the lines of a log."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightning.pytorch.callbacks import Timer

LONG, MEDIUM, SHORT = range(3)
ABBREVIATED = {"perplexity": "ppl", "val perplexity": "val ppl", "val accuracy": "acc", "val macro_f1": "f1"}
SHOWN = ("loss", "perplexity", "accuracy", "macro_f1")  # of a validation's figures, beside the user's own
MARK_SECONDS, MARKS = 0.5, 60  # rates are those of the last half minute, or of the last 60 steps that take longer


class Pace:
    """Recent batches and tokens per second; the first batch, slow on most devices, is not measured."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._away = self._left = 0.0
        self._last = (0.0, 0, 0)  # seconds, batches, tokens
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=MARKS)

    def batch(self, tokens: int = 0) -> None:
        """Count a batch that has ended now."""
        now = self._clock() - self._away
        self._last = (now, self._last[1] + 1, self._last[2] + tokens)
        if not self._marks or now - self._marks[-1][0] >= MARK_SECONDS:
            self._marks.append(self._last)

    def pause(self) -> None:
        """Leave the time from here out, until ``resume``."""
        self._left = self._clock()

    def resume(self) -> float:
        """Go on measuring; returns the seconds since ``pause``."""
        seconds = self._clock() - self._left
        self._away += seconds
        return seconds

    @property
    def batches(self) -> int:
        """How many were counted."""
        return self._last[1]

    def rates(self) -> tuple[float, float] | None:
        """Batches and tokens a second; None before the second batch."""
        if not self._marks:
            return None
        seconds, batches, tokens = (last - first for last, first in zip(self._last, self._marks[0], strict=True))
        return (batches / seconds, tokens / seconds) if seconds > 0 else None


@dataclass(frozen=True)
class Standing:
    """The progress of a stage; ``words`` leaves out what isn't known yet."""

    stage: str
    epoch: str
    step: int  # of the epoch's `steps`
    steps: int
    figures: Mapping[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None
    seconds_left: float | None = None

    def words(self, brevity: int = LONG) -> list[str]:
        """Its parts in the order of a line."""
        parts = [self.stage, self.epoch if brevity == SHORT else f"epoch {self.epoch}"]
        parts.append(f"{'step ' if brevity == LONG else ''}{self.step:,}/{self.steps:,}")
        for name, value in self.figures.items():
            parts.append(f"{name if brevity == LONG else ABBREVIATED.get(name, name)} {number(value)}")
        if (tokens := self.tokens_per_second) is not None:
            in_full = tokens < {LONG: math.inf, MEDIUM: 100_000, SHORT: 10_000}[brevity]
            count = f"{tokens:,.0f}" if in_full else f"{tokens / 1000:,.0f}k"
            parts.append(f"{count} {'tokens' if brevity == LONG else 'tok'}/s")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return parts


class FitProgress:
    """Follows a fit. Values are read back from the device only when a :class:`Standing` is requested.

    Args:
        clock: seconds since an arbitrary moment.
        module: the LitSFT being trained; its Trainer must know the number of batches of an epoch by now.
    """

    def __init__(self, clock: Callable[[], float], module: Any) -> None:
        self._trainer: Any = module.trainer
        self._module = module
        self._pace = Pace(clock)
        self._total_steps = int(module.total_steps())  # 0 if the end of the fit is unknown
        self._validated: dict[str, float] = {}
        self._validation_seconds = 0.0
        self._batches = self._trainer.fit_loop.epoch_loop.batch_idx + 1  # of the epoch; not 0 after a resume

    def epoch_starts(self) -> None:
        """An epoch starts; not called if a run is resumed in mid-epoch."""
        self._batches = 0

    def batch(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """A training batch has ended."""
        self._batches = batch_idx + 1
        self._pace.batch(sum(part.num_tokens for part in batch.values()))

    def validation_starts(self) -> None:
        """A validation starts: its time does not count as training time."""
        self._pace.pause()

    def validation_ends(self) -> Standing:
        """Take the validation's figures; returns the standing of the fit with these figures alone."""
        self._validation_seconds = self._pace.resume()
        metrics = self._trainer.callback_metrics
        shown = (*SHOWN, *self._module.metrics)
        self._validated = {f"val {name}": float(metrics[f"val/{name}"]) for name in shown if f"val/{name}" in metrics}
        return replace(self._standing(self._validated), tokens_per_second=None, seconds_left=None)

    def standing(self) -> Standing:
        """Where the fit stands after its last batch; waits for the device."""
        metrics = self._trainer.callback_metrics
        figures: dict[str, float] = {}
        if "train/loss" in metrics:
            figures["loss"] = float(metrics["train/loss"])
        if self._module.stage == "pretrain" and figures:
            nll = float(metrics.get("train/lm", metrics["train/loss"]))  # an objective may add to it
            figures["perplexity"] = math.exp(nll) if nll < 700 else math.inf
        for name, value in self._validated.items():
            if name in ("val accuracy", "val macro_f1"):
                figures[name] = value
        return self._standing(figures)

    def _standing(self, figures: dict[str, float]) -> Standing:
        trainer, total = self._trainer, self._total_steps
        accumulate = trainer.accumulate_grad_batches
        per_epoch = -(-int(trainer.num_training_batches) // accumulate)
        epoch, steps = trainer.current_epoch, per_epoch
        if total:  # max_steps may end the last epoch early
            steps = min(per_epoch, max(1, total - epoch * per_epoch))
        rates = self._pace.rates()
        return Standing(
            stage=self._module.stage,
            epoch=f"{epoch + 1}/{-(-total // per_epoch)}" if total else f"{epoch + 1}",
            step=-(-self._batches // accumulate),
            steps=steps,
            figures=figures,
            tokens_per_second=rates[1] if rates else None,
            seconds_left=self._seconds_left(rates[0]) if rates else None,
        )

    def _seconds_left(self, batches_per_second: float) -> float | None:
        """For the whole fit, with validations as long as the last one; None if its end is unknown, or reached."""
        trainer = self._trainer
        total, done = (n * trainer.accumulate_grad_batches for n in (self._total_steps, trainer.global_step))
        ends = [timer.time_remaining() for timer in trainer.callbacks if isinstance(timer, Timer)]  # max_time
        if total:
            interval = self._batches_between_validations()
            validations = total // interval - done // interval if interval else 0
            ends.append((total - done) / batches_per_second + validations * self._validation_seconds)
        left = min((end for end in ends if end is not None), default=0.0)
        return left if left > 0 else None

    def _batches_between_validations(self) -> int:
        """The average number; 0 if there are no validations, or none that follow a number of batches."""
        trainer = self._trainer
        every, batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
        if not trainer.enable_validation or not batches or batches == math.inf:
            return 0
        if every is None:
            return int(batches)
        return max(1, int(trainer.num_training_batches * every // max(1, trainer.num_training_batches // batches)))


def number(value: float) -> str:
    """A figure in four digits or so: 4.312, 74.6, 15,074."""
    if abs(value) < 10:
        return f"{value:.3f}"
    if abs(value) < 1000:
        return f"{value:.1f}"
    return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Roughly: 45 s, 6 min, 2.1 h, 3 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"
