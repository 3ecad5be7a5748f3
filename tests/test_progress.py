"""What a user sees of a running stage: plain lines in a pipe or a file, and where there is a bar instead."""

from __future__ import annotations

import io
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from conftest import Command, Files, Fit, Trained
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from training import Losses, PowerCut, data_of, module_of, trainer_of

from lit_sft.callbacks import LogProgress, TerminalProgress
from lit_sft.callbacks.pace import FitProgress, Pace, duration, number
from lit_sft.callbacks.progress import progress_for


class Clock:
    """Time that passes by ``step`` at every training batch, and by ``validation`` at every validation batch."""

    def __init__(self, step: float = 1.0, validation: float = 0.0) -> None:
        self.now, self.step, self.validation = 1000.0, step, validation

    def __call__(self) -> float:
        return self.now


class Ticks(Callback):
    """Moves the clock, and notes when which lines were printed; stands before the progress in the list of callbacks."""

    def __init__(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        self.clock, self.capsys = clock, capsys
        self.lines: list[tuple[float, str]] = []

    def note(self) -> None:
        self.lines += [(self.clock.now - 1000.0, line) for line in self.capsys.readouterr().out.splitlines()]

    def on_train_batch_end(self, *_: Any) -> None:
        self.note()
        self.clock.now += self.clock.step

    def on_validation_batch_end(self, *_: Any) -> None:
        self.note()
        self.clock.now += self.clock.validation

    on_test_batch_end = on_validation_batch_end


def fit_lines(
    stage: str,
    files: Files,
    cache: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    clock: Clock,
    progress: LogProgress,
    ckpt_path: Path | None = None,
    callbacks: tuple[Callback, ...] = (),
    **options: Any,
) -> list[tuple[float, str]]:
    """The lines of a fit of 11 (pretrain) or 8 (finetune) batches an epoch, each with the clock's time."""
    progress.clock = clock
    ticks = Ticks(clock, capsys)
    given = {"enable_progress_bar": True, "max_epochs": 3, "callbacks": [ticks, progress, *callbacks], **options}
    trainer = trainer_of(folder, **given)
    module = module_of(stage)
    capsys.readouterr()
    trainer.fit(module, datamodule=data_of(files, cache), ckpt_path=ckpt_path, weights_only=True)
    ticks.note()
    return ticks.lines


# ---- in a pipe or a file


def test_a_fit_in_a_pipe_tells_epochs_and_validations_in_plain_lines(fit: Fit) -> None:
    result = fit("--trainer.enable_progress_bar=true", "--trainer.max_epochs=2")
    assert result.code == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", result.out)
    lines = result.out.splitlines()
    kinds = [("val loss" in line, re.findall(r"epoch (\d/\d)", line)) for line in lines]
    assert kinds == [(False, ["1/2"]), (True, ["1/2"]), (False, ["2/2"]), (True, ["2/2"])]
    assert re.fullmatch(r"finetune  epoch 1/2  step (\d+)/\1  loss \d\.\d{3}  [\d,]+ tokens/s  \d+ s left", lines[0])
    figures = r"val loss \d\.\d{3}  val accuracy \d\.\d{3}  val macro_f1 \d\.\d{3}"
    assert re.fullmatch(rf"finetune  epoch 1/2  step (\d+)/\1  {figures}", lines[1])
    assert "left" not in lines[2]  # nothing is left after the last step
    assert "val/loss" not in result.log.replace("best validation: val/loss", "")  # told once, not by the record too


def test_validate_and_test_in_a_pipe_have_no_control_characters(cli: Command, trained: Trained) -> None:
    shutil.copytree(trained.finetune, "run")
    for command in ("validate", "test"):
        result = cli(command, "--ckpt_path", "run", "--trainer.enable_progress_bar=true")
        assert result.code == 0
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", result.out)


def test_lines_come_after_five_seconds_and_then_every_thirty(
    files: Files, shared_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = fit_lines("pretrain", files, shared_cache, tmp_path, capsys, Clock(step=4.0), LogProgress(), max_epochs=4)
    # A step ends every 4 s: lines at 8 s and 40 s, the epoch's at 44 s, and from there one 32 s later, the epoch's …
    steps = [(int(e), int(s)) for _, line in lines for e, s in re.findall(r"epoch (\d)/4  step (\d+)/11", line)]
    assert steps == [(1, 2), (1, 10), (1, 11), (2, 8), (2, 11), (3, 8), (3, 11), (4, 8), (4, 11)]
    fast = fit_lines("pretrain", files, shared_cache, tmp_path, capsys, Clock(step=0.1), LogProgress(), max_epochs=2)
    assert [line for _, line in fast if "step 11/11" not in line] == []


def test_a_long_validation_and_a_long_test_show_signs_of_life(
    files: Files, shared_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress, clock = LogProgress(every_seconds=5), Clock(step=0.1, validation=3.0)
    options = {"limit_val_batches": 1.0, "max_epochs": 1}
    lines = fit_lines("pretrain", files, shared_cache, tmp_path, capsys, clock, progress, **options)
    told = [line for _, line in lines]
    assert told[0].startswith("pretrain  epoch 1/1  step 11/11  loss")
    assert re.fullmatch(r"validation  batch 2/\d+  \d+ s left", told[1])
    assert re.fullmatch(r"pretrain  epoch 1/1  step 11/11  val loss \d\.\d{3}  val perplexity [\d.,]+", told[-1])

    progress.clock, ticks = clock, Ticks(clock, capsys)
    trainer = trainer_of(tmp_path, enable_progress_bar=True, callbacks=[ticks, progress])
    clock.now += 1000.0  # since the last line of the fit
    trainer.test(module_of("pretrain"), datamodule=data_of(files, shared_cache), verbose=False)
    ticks.note()
    assert re.fullmatch(r"test  batch 2/\d+  \d+ s left", ticks.lines[0][1])


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_figures_and_time_left_are_right(
    stage: str, files: Files, shared_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress, clock, losses = LogProgress(0, 0), Clock(step=2.0, validation=3.0), Losses()
    options = {"limit_val_batches": 1, "callbacks": (losses,)}
    lines = fit_lines(stage, files, shared_cache, tmp_path, capsys, clock, progress, **options)
    told = [line for _, line in lines if "step" in line and "val loss" not in line]
    assert len(told) == len(losses.values)
    for done, (line, loss) in enumerate(zip(told, losses.values, strict=True), start=1):
        assert f"loss {number(loss)}" in line
        assert (f"perplexity {number(math.exp(loss))}" in line) == (stage == "pretrain")
        validated = done > len(told) / 3
        assert ("val macro_f1" in line) == (stage == "finetune" and validated)
        left = re.findall(r"(\d+) (s|min) left", line)
        steps = len(told) - done
        if done == 1 or not steps:  # no speed yet; and the end
            assert left == []
        elif validated:  # a validation takes 3 s
            validations = 3 - done * 3 // len(told)
            assert left == [(str(steps * 2 + validations * 3), "s")]


def test_where_a_time_ends_the_fit_that_is_left(
    files: Files, shared_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half an hour of the real clock; by the test's own, on which speed is measured, a step takes 1,000 s."""
    options = {"max_epochs": 1, "max_time": "00:00:30:00"}
    lines = fit_lines("finetune", files, shared_cache, tmp_path, capsys, Clock(1000.0), LogProgress(0, 0), **options)
    left = [re.findall(r"(\d+) min left", line) for _, line in lines]
    assert left[0] == left[-1] == []  # no speed yet; and the end
    assert [minutes in (["30"], ["29"]) for minutes in left[1:-1]] == [True] * 5 + [False]
    assert left[-2] == ["17"]  # of the last step


@pytest.mark.parametrize(("options", "epochs", "last"), [({}, 3, 11), ({"max_steps": 14}, 2, 3)])
def test_the_last_epoch_ends_where_the_fit_ends(
    options: dict[str, Any],
    epochs: int,
    last: int,
    files: Files,
    shared_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = fit_lines("pretrain", files, shared_cache, tmp_path, capsys, Clock(), LogProgress(), **options)
    assert f"epoch 1/{epochs}  step 11/11" in lines[-epochs][1]
    assert f"epoch {epochs}/{epochs}  step {last}/{last}" in lines[-1][1]


def test_steps_are_the_optimizers(
    files: Files, shared_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"accumulate_grad_batches": 2, "max_epochs": 2}
    lines = fit_lines("finetune", files, shared_cache, tmp_path, capsys, Clock(), LogProgress(), **options)
    assert [re.findall(r"step \d/\d", line) for _, line in lines[-2:]] == [["step 4/4"]] * 2


def test_a_run_resumed_in_mid_epoch_goes_on_at_its_step_with_a_sensible_time_left(
    files: Files, shared_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*callbacks: Callback, ckpt_path: Path | None = None) -> list[tuple[float, str]]:
        keep = ModelCheckpoint(tmp_path, filename="mid", every_n_train_steps=5, enable_version_counter=False)
        options = {"callbacks": (keep, *callbacks), "ckpt_path": ckpt_path}
        return fit_lines("pretrain", files, shared_cache, tmp_path, capsys, Clock(), LogProgress(0, 0), **options)

    with pytest.raises(PowerCut):
        run(Losses(stop_at=7))
    lines = run(ckpt_path=tmp_path / "mid.ckpt")
    assert "epoch 1/3  step 6/11" in lines[0][1]
    assert "left" not in lines[0][1]
    assert "epoch 1/3  step 7/11" in lines[1][1]
    assert lines[1][1].endswith("26 s left")  # 33 - 7 steps of a second
    assert "epoch 2/3  step 1/11" in lines[6][1]


def test_the_device_is_not_waited_for_at_every_step(
    files: Files, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    standing = FitProgress.standing
    monkeypatch.setattr(FitProgress, "standing", lambda watch: read.append(None) or standing(watch))
    for progress, shown in ((LogProgress(), False), (TQDMProgressBar(), True)):
        trainer = trainer_of(tmp_path, enable_progress_bar=True, callbacks=[progress])
        trainer.fit(module_of("pretrain"), datamodule=data_of(files, shared_cache))
        assert ("train/loss" in trainer.progress_bar_metrics) == shown
    assert len(read) == 1  # at the end of the epoch


# ---- which of them


def test_a_bar_on_a_terminal_lines_elsewhere_and_the_users_own_before_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(terminal: bool, callbacks: Any = None, **options: Any) -> list[type]:
        monkeypatch.setattr("sys.stdout", io.StringIO())
        monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
        given = {"callbacks": callbacks, "enable_progress_bar": None, "barebones": False, **options}
        return [type(callback) for callback in progress_for(SimpleNamespace(**given))]

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("rich._console", None)
    assert chosen(True) == [TerminalProgress]
    assert chosen(False) == chosen(False, [Losses()]) == [LogProgress]  # FORCE_COLOR makes no terminal of a file
    assert chosen(True, [Losses(), RichProgressBar()]) == chosen(False, TQDMProgressBar()) == []
    assert chosen(True, enable_progress_bar=False) == chosen(True, barebones=True) == []
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("rich._console", None)
    assert chosen(True) == [LogProgress]
    monkeypatch.setattr("sys.stdout", None)  # closed
    options = SimpleNamespace(callbacks=None, enable_progress_bar=None, barebones=False)
    assert [type(callback) for callback in progress_for(options)] == [LogProgress]


def test_the_users_own_progress_wins_on_the_command_line(fit: Fit) -> None:
    own = ("--trainer.callbacks+=lit_sft.callbacks.LogProgress", "--trainer.callbacks.every_seconds=0")
    result = fit("--trainer.enable_progress_bar=true", *own, "--trainer.callbacks.first_after=0")
    assert result.code == 0
    assert len([line for line in result.out.splitlines() if "val loss" not in line]) > 8  # each step


def test_without_a_progress_bar_the_record_tells_the_validations_alone(fit: Fit) -> None:
    result = fit("--trainer.enable_progress_bar=false")
    assert result.code == 0
    assert result.out == ""
    assert re.search(r"^step \d+: val/loss ", result.log, re.MULTILINE)


# ---- words


def test_figures_are_short() -> None:
    told = [number(x) for x in (0.6123, 4.3119, 74.61, 15_074.2, 3.2e8, math.inf, math.nan)]
    assert told == ["0.612", "4.312", "74.6", "15,074", "3.2e+08", "inf", "nan"]
    told = [duration(x) for x in (3.4, 89, 360, 5399, 7560, 86_000, 300_000)]
    assert told == ["3 s", "89 s", "6 min", "90 min", "2.1 h", "23.9 h", "3 days"]


@pytest.mark.parametrize(("every", "interval"), [(1, 10), (1, 5), (1, 4), (2, 10), (2, 5), (None, 15)])
def test_the_time_left_is_that_of_all_batches_and_validations_to_come(every: int | None, interval: int) -> None:
    """Six epochs of ten batches, two a step: a second a batch, a hundred a validation."""
    clock, validated, found = Clock(), [], {}
    trainer = SimpleNamespace(accumulate_grad_batches=2, num_training_batches=10, current_epoch=0, callbacks=[])
    trainer.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_idx=-1))
    trainer.enable_validation, trainer.check_val_every_n_epoch, trainer.val_check_batch = True, every, interval
    trainer.callback_metrics = {}
    watch = FitProgress(clock, SimpleNamespace(trainer=trainer, total_steps=lambda: 30, metrics={}, stage="finetune"))
    for done in range(1, 61):
        clock.now += 1.0
        watch.batch({}, (done - 1) % 10)
        trainer.global_step = done // 2
        epoch, of_epoch = divmod(done - 1, 10)
        if done % interval == 0 if every is None else ((epoch + 1) % every, (of_epoch + 1) % interval) == (0, 0):
            validated.append(done)
            watch.validation_starts()
            clock.now += 100.0
            watch.validation_ends()
        if done % 20 == 0:
            found[done] = watch.standing().seconds_left
    expected = {done: 60 - done + 100 * sum(step > done for step in validated) for done in (20, 40)}
    assert found == {**{done: pytest.approx(left) for done, left in expected.items()}, 60: None}


def test_the_pace_is_the_last_half_minutes_without_pauses_and_without_the_first_batch() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.batch(1000)
    assert pace.rates() is None
    for seconds, tokens in [(1.0, 10)] * 100 + [(0.5, 10)] * 70:
        clock.now += seconds
        pace.batch(tokens)
        pace.pause()
        clock.now += 100.0
        assert pace.resume() == 100.0
        if seconds == 1.0:
            assert pace.rates() == pytest.approx((1.0, 10.0))
    assert pace.rates() == pytest.approx((2.0, 20.0))
    assert pace.batches == 171


def test_a_disabled_progress_says_nothing(
    files: Files, shared_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class OtherRank(LogProgress):
        def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
            super().setup(trainer, module, stage)
            self.disable()  # as Lightning does where the rank is not 0

    assert fit_lines("pretrain", files, shared_cache, tmp_path, capsys, Clock(), OtherRank()) == []


def test_a_validation_after_a_fit_has_a_line_of_its_own(
    files: Files, shared_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"enable_progress_bar": True, "limit_val_batches": 1, "callbacks": [TerminalProgress()]}
    trainer, module, data = trainer_of(tmp_path, **given), module_of("finetune"), data_of(files, shared_cache)
    trainer.fit(module, datamodule=data)
    assert "finetune epoch 1/1" in capsys.readouterr().out
    trainer.validate(module, datamodule=data, verbose=False)
    assert capsys.readouterr().out.split()[:2] == ["validation", "1/1"]
