"""When the last checkpoint is saved, and what a signal does: by a clock and signals of the test's own."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import Command, Files, Trained
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from training import PowerCut, data_of, module_of, trainer_of

from lit_sft.callbacks import LastCheckpoint
from lit_sft.callbacks import saving as module
from lit_sft.callbacks.saving import StopOnSignal
from lit_sft.checkpoint_io import AtomicCheckpointIO
from lit_sft.errors import SickRun, UserError, no_room
from lit_sft.processes import STARTED_BY, STOPPING, Stopped, ending_together, run_process
from lit_sft.ranks import agreed


class Clock(Callback):
    """Two minutes a step."""

    def __init__(self) -> None:
        self.now = 1000.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 120.0


class Saved(LastCheckpoint):
    """Notes the steps it is saved at."""

    def save(self, trainer: L.Trainer) -> None:
        super().save(trainer)
        self.steps = [*getattr(self, "steps", []), trainer.global_step]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"every_minutes": 6.0}, [3, 6, 8]),  # the last is the training's end
        ({"every_minutes": 3.0}, [2, 4, 6, 8]),
        ({"every_minutes": 0}, [8]),
        ({"every_minutes": 0, "every_steps": 3}, [3, 6, 8]),
        ({"every_minutes": 12.0, "every_steps": 5}, [5, 8]),
        ({}, [3, 6, 8]),  # every five minutes
    ],
    ids=str,
)
def test_the_last_checkpoint_is_saved_by_the_clock_and_by_steps(
    options: dict[str, Any],
    steps: list[int],
    files: Files,
    shared_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, saving = Clock(), Saved(**options)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    saving.dirpath = str(tmp_path)
    trainer = trainer_of(tmp_path, max_epochs=1, limit_val_batches=0, log_every_n_steps=1, callbacks=[clock, saving])
    trainer.fit(module_of("finetune"), data_of(files, shared_cache))
    assert saving.steps == steps


@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available")
def test_a_fit_in_python_does_not_write_over_the_last_checkpoint_of_one_before(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    def fit(last: LastCheckpoint, **options: Any) -> None:
        trainer = trainer_of(tmp_path, max_steps=options.pop("max_steps", 1), callbacks=[last])
        trainer.fit(module_of("pretrain"), data_of(files, shared_cache), **options)

    path, own = tmp_path / "checkpoints" / "last.ckpt", LastCheckpoint()
    fit(own)
    before = path.read_bytes()
    for options in ({}, {"ckpt_path": "last"}):
        with pytest.raises(UserError, match=rf"{path} is of a fit before this one, .* go on from it with ckpt_path="):
            fit(LastCheckpoint(), **options)
    assert path.read_bytes() == before
    fit(LastCheckpoint(), max_steps=2, ckpt_path=path, weights_only=True)
    fit(own)  # its own from before


@pytest.mark.parametrize("signaled", [False, True])
def test_where_an_epoch_is_one_step_the_clock_and_signals_are_heard(
    signaled: bool, files: Files, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, saving = Clock(), Saved(every_minutes=6.0)
    stop = StopOnSignal(saving)
    stop.received = signal.SIGTERM if signaled else None
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    options = {"max_epochs": 5, "accumulate_grad_batches": 2, "limit_train_batches": 2, "log_every_n_steps": 50}
    trainer = trainer_of(tmp_path, callbacks=[clock, saving, stop], **options)
    with pytest.raises(Stopped) if signaled else nullcontext():
        trainer.fit(module_of("finetune"), data_of(files, shared_cache))
    assert saving.steps == ([1] if signaled else [2, 4, 5])


def test_a_signal_after_the_last_step_leaves_a_finished_run(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    """With 143 a scheduler would start it again, and `--ckpt_path last` find nothing to go on with."""

    class Late(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    stop = StopOnSignal(saving := Saved())
    trainer = trainer_of(tmp_path, callbacks=[Late(), saving, stop], max_steps=3)
    trainer.fit(module_of("finetune"), data_of(files, shared_cache))
    assert stop.received == signal.SIGTERM


def test_a_signal_before_the_training_is_answered_at_a_step_that_can_be_saved(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    """Lightning has heard it as well, and would end the run after the first batch, of two a step."""

    class Early(L.Callback):
        def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    saving = Saved()
    options = {"max_steps": 5, "accumulate_grad_batches": 2, "num_sanity_val_steps": 1, "limit_val_batches": 1}
    trainer = trainer_of(tmp_path, callbacks=[Early(), saving, StopOnSignal(saving)], **options)
    with pytest.raises(Stopped) as stopped:
        trainer.fit(module_of("finetune"), data_of(files, shared_cache))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert saving.steps == [1]


@pytest.mark.parametrize(("own", "others"), [(False, False), (True, False), (False, True)])
def test_processes_agree_at_the_steps_that_are_logged_and_one_of_them_is_enough(own: bool, others: bool) -> None:
    asked = []

    def reduce(decision: bool, all: bool) -> bool:
        asked.append(trainer.global_step)
        return decision and others if all else decision or others

    loop = SimpleNamespace(_should_accumulate=lambda: trainer.global_step == 6)
    trainer: Any = SimpleNamespace(world_size=2, log_every_n_steps=3, fit_loop=loop)
    trainer.strategy = SimpleNamespace(reduce_boolean_decision=reduce)
    for trainer.global_step in range(1, 10):
        assert agreed(trainer, own) == (trainer.global_step in (3, 9) and (own or others))
    assert asked == [3, 9]  # not within an accumulation, and not at each step: the answer waits for the device
    trainer.world_size = 1
    assert agreed(trainer, own) is own


@pytest.mark.parametrize("options", [{"every_minutes": -1.0}, {"every_steps": -1}, {"keep": 0}], ids=str)
def test_values_out_of_range_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="saving: every_minutes="):
        LastCheckpoint(**options)


def test_a_way_of_writing_that_the_user_chose_stays_and_is_given_no_option_of_ours(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    class Own(TorchCheckpointIO):
        """Refuses any option, as Lightning's own does."""

    trainer = trainer_of(tmp_path, max_steps=1, callbacks=[LastCheckpoint()], plugins=[Own()])
    trainer.fit(module_of("finetune"), data_of(files, shared_cache))
    assert isinstance(trainer.strategy.checkpoint_io, Own)
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_what_could_not_be_read_again_is_told_at_the_first_save(tmp_path: Path) -> None:
    checkpoint = {"state_dict": {"a": torch.zeros(2)}, "callbacks": {"Best": {"score": 1.0}}}
    wrong = {**checkpoint, "callbacks": {**checkpoint["callbacks"], "Mine": {"score": np.float64(1.0)}}}
    writer = AtomicCheckpointIO()
    with pytest.raises(UserError, match="callback Mine holds more than tensors"):
        writer.save_checkpoint(wrong, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []
    writer.save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"] == {"Best": {"score": 1.0}}


def test_a_second_signal_stops_at_once_unless_it_is_the_same_press(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stop = StopOnSignal(LastCheckpoint())
    stop._receive(signal.SIGTERM, None)
    now[0] += 0.5
    stop._receive(signal.SIGTERM, None)  # a terminal's, and then a recipe's
    now[0] += 2.0
    with pytest.raises(SystemExit) as error:
        stop._receive(signal.SIGTERM, None)
    assert error.value.code == 128 + signal.SIGTERM


class Interrupted(io.RawIOBase):
    """A stream below standard error, which a signal reaches in the middle of a write."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        signal.raise_signal(signal.SIGUSR1)
        return len(data)


def test_a_signal_in_the_middle_of_a_write_to_standard_error_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stop = StopOnSignal(LastCheckpoint())
    before = signal.signal(signal.SIGUSR1, stop._receive)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Interrupted()), write_through=True))
            print("training goes on", file=sys.stderr, flush=True)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stop.received == signal.SIGUSR1
    assert capfd.readouterr().err == "SIGUSR1: saving at the next step, then stopping; again to stop at once\n"


class Asks(Callback):
    """Asks what Lightning asks all processes at every batch; may end the fit by an exception."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
        if self.fails:
            raise PowerCut


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_lightnings_question_for_its_own_handler_is_left_out_while_ours_is_in_its_place(
    ours: bool, fails: bool, files: Files, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, asked = "_broadcast_sigterm_tensor", []
    assert name in _TrainingEpochLoop.advance.__code__.co_names  # where Lightning asks
    monkeypatch.setattr(_TrainingEpochLoop, name, lambda loop: asked.append(loop))
    callbacks = [StopOnSignal(LastCheckpoint())] if ours else []
    trainer = trainer_of(tmp_path, max_steps=2, callbacks=[*callbacks, Asks(fails)])
    with pytest.raises(PowerCut) if fails else nullcontext():
        trainer.fit(module_of("finetune"), data_of(files, shared_cache))
    assert bool(asked) is not ours
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    assert asked[-1] is trainer.fit_loop.epoch_loop


@pytest.mark.parametrize("fails", [False, True])
def test_after_a_fit_signals_are_answered_as_before_it(
    fails: bool, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    before = {number: signal.getsignal(number) for number in STOPPING}
    trainer = trainer_of(tmp_path, max_steps=1, callbacks=[StopOnSignal(LastCheckpoint()), Asks(fails)])
    with pytest.raises(PowerCut) if fails else nullcontext():
        trainer.fit(module_of("finetune"), data_of(files, shared_cache))
    assert {number: signal.getsignal(number) for number in STOPPING} == before


CHILD = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.{name}, lambda *_: sys.exit({code}))
Path("ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("code", [0, 7])
def test_a_signal_is_handed_on_and_the_exit_code_comes_back(name: str, code: int, workplace: Path) -> None:
    """A child that ends well was stopped all the same."""
    number = getattr(signal, name)
    before = [signal.getsignal(s) for s in STOPPING]

    def send() -> None:
        while not Path("ready").exists():
            if ended.wait(0.02):
                return
        os.kill(os.getpid(), number)

    ended = threading.Event()
    thread = threading.Thread(target=send)
    thread.start()
    try:
        found = run_process([sys.executable, "-c", CHILD.format(name=name, code=code)])
    finally:
        ended.set()
        thread.join()
    assert found == (code or 128 + number)
    assert [signal.getsignal(s) for s in STOPPING] == before


def test_a_child_ended_by_a_signal_has_the_shells_exit_code() -> None:
    end = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_process([sys.executable, "-c", end]) == 137
    assert run_process([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert run_process([sys.executable, "-c", ""]) == 0


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit(143)], ids=repr)
def test_an_exception_ends_the_processes_that_a_launcher_has_started(error: BaseException) -> None:
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=3, num_nodes=1)
    children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    launcher.procs += children
    observer = _ChildProcessObserver(main_pid=os.getpid(), child_processes=launcher.procs)
    with ending_together(launcher):
        pass
    assert [process.poll() for process in children] == [None, None]
    with pytest.raises(type(error)) as caught, ending_together(launcher):
        raise error
    assert caught.value is error
    assert [process.poll() for process in children] == [-signal.SIGKILL] * 2
    assert observer._run()  # it has nothing left to look at, or this process would be gone


@pytest.mark.parametrize("parent", [True, False])
@pytest.mark.parametrize(
    ("error", "alike"), [(Stopped(143), True), (SickRun("nan"), True), (SystemExit(143), False), (OSError(28), False)]
)
def test_a_process_that_lightning_has_started_leaves_the_exit_code_to_the_first_where_all_end_alike(
    error: BaseException, alike: bool, parent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STARTED_BY, str(os.getppid() if parent else os.getppid() + 1))
    with pytest.raises(BaseException) as caught, ending_together(None):
        raise error
    if parent and alike:
        assert isinstance(caught.value, SystemExit)
        assert caught.value.code == 0
    else:
        assert caught.value is error
    assert STARTED_BY not in os.environ
    with ending_together(None):
        assert os.environ[STARTED_BY] == str(os.getpid())  # for those that this one starts


def test_a_test_that_a_signal_ends_has_the_shells_exit_code(
    cli: Command, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Lightning ends with 0 on SIGTERM and with 1 on Ctrl-C."""
    run = shutil.copytree(trained.finetune, tmp_path / "run")
    answer = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, answer))
    for number in (signal.SIGTERM, signal.SIGINT):
        hit = lambda self, *_, number=number: os.kill(os.getpid(), number)  # noqa: E731
        monkeypatch.setattr("lit_sft.module.LitSFT.on_test_start", hit)
        result = cli("test", "--ckpt_path", run, "--data.max_tokens", "100")  # in several batches
        assert result.code == 128 + number


def test_a_ring_of_exceptions_has_an_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert no_room(first) is None
    second.__cause__ = OSError(errno.ENOSPC, "full")
    assert no_room(first) is second.__cause__
