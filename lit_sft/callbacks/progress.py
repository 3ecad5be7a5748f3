"""What a user sees of a running stage: a bar on a terminal, or an occasional line in a pipe or a file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar
from rich import get_console
from rich.console import Console, ConsoleOptions, RenderResult
from rich.file_proxy import FileProxy
from rich.measure import Measurement
from rich.progress import ProgressColumn, Task
from rich.progress_bar import ProgressBar as Bar
from rich.segment import Segment
from rich.text import Text

from lit_sft.callbacks.pace import LONG, MEDIUM, SHORT, FitProgress, Pace, Standing, duration


def progress_for(options: Any) -> list[Callback]:
    """The progress callback for a Trainer with these options; none if they disable it or contain one."""
    given = options.callbacks or []
    callbacks = [given] if isinstance(given, Callback) else given
    if options.enable_progress_bar is False or options.barebones:
        return []
    if any(isinstance(callback, ProgressBar) for callback in callbacks):
        return []
    console = get_console()  # rich takes FORCE_COLOR for a terminal, which a file is not
    stdout = sys.stdout  # None if it is closed
    terminal = bool(stdout and stdout.isatty()) and console.is_terminal and not console.is_dumb_terminal
    return [TerminalProgress() if terminal else LogProgress()]


class LogProgress(ProgressBar):
    """Plain lines on standard output: periodically, at the end of an epoch, and for each validation.

    Args:
        every_seconds: seconds that must pass between any line and the next periodic one.
        first_after: seconds until the first periodic line.
    """

    reads_loss = True  # by itself, when it is shown: the module need not hand it over at every step

    def __init__(self, every_seconds: float = 30.0, first_after: float = 5.0) -> None:
        super().__init__()
        self.every_seconds, self.first_after = every_seconds, first_after
        self.clock: Callable[[], float] = time.monotonic
        self._enabled = True
        self._due = 0.0
        self._untold = False  # whether a batch has ended since the last line about training

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def _tell(self, line: str) -> None:
        self._due = self.clock() + self.every_seconds
        if self._enabled:
            print(line, flush=True)

    # ---- training

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._watch = FitProgress(self.clock, module)
        self._untold = False
        self._due = self.clock() + self.first_after

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._watch.batch(batch, batch_idx)
        self._untold = True
        if trainer.is_last_batch or self.clock() >= self._due:  # type: ignore[attr-defined]
            self._tell_standing()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._untold:  # max_steps has ended it before its last batch
            self._tell_standing()

    def _tell_standing(self) -> None:
        self._untold = False
        self._tell("  ".join(self._watch.standing().words()))

    # ---- validation and test

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if _in_fit(trainer):
            self._watch.validation_starts()
        else:
            self._due = self.clock() + self.first_after
        self._evaluation = Pace(self.clock)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._tell_evaluation("validation", trainer.num_val_batches)  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if _in_fit(trainer):
            self._tell("  ".join(self._watch.validation_ends().words()))

    def on_test_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._due = self.clock() + self.first_after
        self._evaluation = Pace(self.clock)

    def on_test_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._tell_evaluation("test", trainer.num_test_batches)  # type: ignore[attr-defined]

    def _tell_evaluation(self, name: str, batches: Sequence[float]) -> None:
        self._evaluation.batch()
        if self.clock() < self._due:
            return
        done, total, rates = self._evaluation.batches, sum(batches), self._evaluation.rates()
        left = [f"{duration((total - done) / rates[0])} left"] if rates and done < total else []
        self._tell("  ".join([name, f"batch {done:,}/{total:,.0f}", *left]))


class TerminalProgress(RichProgressBar):
    """A line that stays in place: a bar, and the figures that fit into the terminal's width, none of them cut off.

    A validation has a second line while it runs, and leaves its figures above the bar.
    """

    reads_loss = True  # by itself, when it is shown: the module need not hand it over at every step

    def __init__(self) -> None:
        super().__init__(refresh_rate=4)
        self.clock: Callable[[], float] = time.monotonic
        self.standing: Standing | None = None
        self._due = 0.0
        self._moved: list[tuple[logging.StreamHandler, Any]] = []

    @property
    def validation_description(self) -> str:
        """What a validation's line starts with."""
        return "validation"

    @property
    def test_description(self) -> str:
        """What a test's line starts with."""
        return "test"

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        """A single column, since what fits depends on the whole line."""
        return [_LineColumn(self)]

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        """No figures: the line has its own, and these would be read back from the device at every step."""
        return {}

    # ---- training

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._watch = FitProgress(self.clock, module)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._watch.epoch_starts()
        self.standing = self._watch.standing()
        super().on_train_epoch_start(trainer, module)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._watch.batch(batch, batch_idx)
        if self.clock() >= self._due or trainer.is_last_batch:  # type: ignore[attr-defined]
            self._due = self.clock() + 0.5
            self.standing = self._watch.standing()
            super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.standing = self._watch.standing()
        super().on_train_epoch_end(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave the line as it is: what follows is written below it."""
        self._stop_progress()

    # ---- validation and test

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_validation_start(trainer, module)
        if _in_fit(trainer):
            self._watch.validation_starts()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_validation_end(trainer, module)
        if trainer.state.fn != "fit":
            self._stop_progress()
        elif _in_fit(trainer):
            validated = self._watch.validation_ends()
            self.standing = self._watch.standing()
            if self.is_enabled and self.progress is not None:
                self.refresh(hard=True)  # the validation's own line is gone before its figures are written
                self.progress.console.print(Text(" ".join(validated.words(MEDIUM))))

    def on_test_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave the line as it is, above the table of results."""
        super().on_test_end(trainer, module)
        self._stop_progress()

    # ---- other lines on the same terminal

    def _init_progress(self, trainer: L.Trainer) -> None:
        super()._init_progress(trainer)
        if not isinstance(sys.stderr, FileProxy):
            return
        stderr = sys.stderr.rich_proxied_file
        if not stderr.isatty():  # it goes to a file, and continues to do so
            sys.stderr = stderr
            return
        for name in (None, "lightning.pytorch", "lightning.fabric"):
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is stderr:
                    handler.setStream(sys.stderr)  # else its lines are written into the bar
                    self._moved.append((handler, stderr))

    def _stop_progress(self) -> None:
        super()._stop_progress()
        self.standing = None  # else a validation or test after the fit would show it in its own line's place
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._moved = []


class _LineColumn(ProgressColumn):
    """A whole line: the training's, or that of a validation or test."""

    def __init__(self, bar: TerminalProgress) -> None:
        super().__init__()
        self._bar = bar

    def render(self, task: Task) -> _Line:
        standing, training = self._bar.standing, self._bar.train_progress_bar_id
        if standing is not None and training in (None, task.id):  # None: it is being created
            forms = [standing.words(brevity) for brevity in (LONG, MEDIUM, SHORT)]
            return _Line(forms, standing.step, standing.steps)
        left = [] if not task.time_remaining else [f"{duration(task.time_remaining)} left"]
        total = task.total or 0
        return _Line([[task.description, f"{task.completed:,.0f}/{total:,.0f}", *left]], task.completed, total)


class _Line:
    """Words with a bar between them, in one line of any width."""

    def __init__(self, forms: Sequence[Sequence[str]], done: float, total: float) -> None:
        self.forms, self.done, self.total = forms, done, total

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        before, width, after = arrange(self.forms, options.max_width)
        yield Segment(before)
        if width:
            yield Bar(self.total, self.done, width)
        yield Segment(after)


def arrange(forms: Sequence[Sequence[str]], width: int) -> tuple[str, int, str]:
    """The text before the bar, the bar's width, and the text after it, of the longest form that fits into ``width``.

    The longest form needs room for a bar of at least 10, the others for one of at least 4, or for none. If nothing
    fits, whole parts are left out, beginning with the last but one, since the last is the time left.
    """
    for form in forms:
        room = width - len(" ".join(form)) - 1
        if room >= (10 if form is forms[0] else 4):
            return " ".join(form[:2]) + " ", min(room, 40), "".join(f" {part}" for part in form[2:])
    parts = list(next((form for form in forms[1:] if len(" ".join(form)) <= width), forms[-1]))
    while len(" ".join(parts)) > width and len(parts) > 1:
        del parts[-2]
    return " ".join(parts)[:width], 0, ""


def _in_fit(trainer: L.Trainer) -> bool:
    """Whether a validation is one of a fit, after some training."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking
