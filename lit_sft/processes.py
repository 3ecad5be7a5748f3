"""Processes that start others: count them, hand signals on to them, and end them together."""

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

# Ctrl-C, the end of a scheduler's time limit, and the warning before it: a fit saves, then stops.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
STARTED_BY = "LIT_SFT_STARTED_BY"  # environment variable: a run's first process tells its id to those that it starts


def launched() -> int:
    """Number of processes, this one included, that a launcher (torchrun, srun or Lightning's) started for this command.

    In an interactive SLURM job (recognised by its name, as in Lightning) the job step belongs to the shell, and a
    command is one process.
    """
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    tasks = None if interactive else os.environ.get("SLURM_STEP_NUM_TASKS")
    return int(os.environ.get("WORLD_SIZE") or tasks or 1)


def check_processes(trainer: Any, command: str) -> None:
    """Raise a UserError if the Trainer can't run ``command`` with its processes.

    If a launcher has started more of them than the Trainer expects, each would be a training of its own in the same
    folder. If it has started fewer, a Trainer that starts none itself, as under torchrun and SLURM, would wait for the
    others, or use some of its devices only.
    """
    wanted, started = trainer.num_devices * trainer.num_nodes, launched()
    environment = getattr(trainer.strategy, "cluster_environment", None)
    starts_none = environment is not None and environment.creates_processes_externally
    if started > wanted or (started < wanted and starts_none):
        count = "1 process was" if started == 1 else f"{started} processes were"
        raise UserError(
            f"{count} started, and --trainer.devices times --trainer.num_nodes is {wanted}: give these as torchrun or "
            "srun starts them, or start one process alone"
        )
    if command != "fit" and getattr(trainer.strategy, "_start_method", "popen") != "popen":
        raise UserError(f"--trainer.strategy: {command} keeps its results in this process: use one device, or ddp")


def run_process(command: list[str]) -> int:
    """Run a command to its end and return its exit code, or 128 plus the number of a signal that ended or reached it.

    A terminal sends Ctrl-C to both processes, `kill` signals only the process it names: signals are always handed on.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process is not None and os.name != "nt":  # on Windows the console has signalled it already
            process.send_signal(number)

    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, hand_on) for number in STOPPING} if in_main else {}
    try:
        process = subprocess.Popen(command)
        if received:  # a signal came while the process was being started
            process.send_signal(received[0])
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0:
        return 128 - code
    return code or (128 + received[0] if received else 0)


class Stopped(SystemExit):
    """Raised in all processes of a run at the same step, after a signal has stopped it and a checkpoint was saved."""


@contextmanager
def ending_together(launcher: Any) -> Iterator[None]:
    """Within this context, an exception in a run's first process ends the processes that it has started.

    Otherwise they would wait for the first one and outlive it. If all end for the same reason (a sick run, a signal),
    a started process exits with 0, since Lightning would kill the first process for any other code. The exit code of
    the run is that of the first process.

    Args:
        launcher: the launcher of the Trainer's strategy; None if it has none.
    """
    was_started = os.environ.get(STARTED_BY) == str(os.getppid())
    os.environ[STARTED_BY] = str(os.getpid())
    try:
        yield
    except BaseException as error:
        children = [process for process in getattr(launcher, "procs", []) if isinstance(process, subprocess.Popen)]
        if children:
            launcher.procs.clear()  # Lightning's observer watches this list, and would kill this process when they end
        for process in children:
            process.kill()
        for process in children:
            process.wait()
        if was_started and isinstance(error, (SickRun, Stopped)):
            raise SystemExit(0) from error
        raise
    finally:
        del os.environ[STARTED_BY]
