"""Processes that others start: how many, and that they get the signals, or the end, of the one that starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lit_sft.errors import SickRun, UserError

# Ctrl-C, a scheduler's end of time, and the warning before it: a fit saves, then stops.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
STARTED_BY = "LIT_SFT_STARTED_BY"  # a run's first process, for those that Lightning's launcher starts from it


def launched() -> int:
    """How many processes a launcher has started for this command, this one among them: torchrun, srun, or Lightning's.

    In an interactive job of SLURM (Lightning knows it by these names) the step is the shell's, and a command is one.
    """
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    tasks = None if interactive else os.environ.get("SLURM_STEP_NUM_TASKS")
    return int(os.environ.get("WORLD_SIZE") or tasks or 1)


def check_launched(wanted: int) -> None:
    """Raise a UserError where a launcher has started other processes than the Trainer is one of: ``wanted`` many.

    Of more than that, each would be a training of its own, in one folder. Fewer may start the others themselves, but
    for those of torchrun, which would wait for them.
    """
    started = launched()
    if started > wanted or (started < wanted and "TORCHELASTIC_RUN_ID" in os.environ):
        count = "1 process was" if started == 1 else f"{started} processes were"
        raise UserError(
            f"{count} started, and --trainer.devices times --trainer.num_nodes is {wanted}: give these as torchrun or "
            "srun starts them, or start one process alone"
        )


def run_process(command: list[str]) -> int:
    """Run a command to its end and return its exit code: 128 plus the number of a signal that ended it or came.

    A terminal sends Ctrl-C to both processes, `kill` to the one that is named: it is handed on in any case.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process is not None and os.name != "nt":  # on Windows the console has told it already
            process.send_signal(number)

    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, hand_on) for number in STOPPING} if in_main else {}
    try:
        process = subprocess.Popen(command)
        if received:  # it came while the process was being started
            process.send_signal(received[0])
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0:
        return 128 - code
    return code or (128 + received[0] if received else 0)


class Stopped(SystemExit):
    """Ends a process at a place where all processes of its run end: it was stopped by a signal, and is saved."""


@contextmanager
def ending_together(launcher: Any) -> Iterator[None]:
    """Within it an exception of a run's first process ends those that it has started.

    Without it they would wait for the first, and outlive it. Where all end for the same reason (a sick run, a signal),
    a process that was started exits with 0, since Lightning would otherwise kill the first for its code. The exit code
    of the run is the first's.

    Args:
        launcher: of the Trainer's strategy; None where there is none.
    """
    was_started = os.environ.get(STARTED_BY) == str(os.getppid())
    os.environ[STARTED_BY] = str(os.getpid())
    try:
        yield
    except BaseException as error:
        children = [process for process in getattr(launcher, "procs", []) if isinstance(process, subprocess.Popen)]
        if children:
            launcher.procs.clear()  # Lightning's observer looks at this list, and would kill this process for their end
        for process in children:
            process.kill()
        for process in children:
            process.wait()
        if was_started and isinstance(error, (SickRun, Stopped)):
            raise SystemExit(0) from error
        raise
    finally:
        del os.environ[STARTED_BY]
