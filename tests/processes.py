"""The command line in processes that begin with everything imported, where the start of an interpreter isn't the point.

A fresh one takes seconds for its imports; these are forked from a server that has them (multiprocessing's).
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

STARTED: list[BaseProcess] = []  # and not waited for yet
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["lit_sft.cli", "lit_sft.recipes.run"])

Ended = tuple[int, str]  # exit code (negative where a signal ended it), what went to standard output and error


@dataclass(frozen=True)
class Running:
    """A process that was started from the current folder; what it writes goes into a file."""

    process: BaseProcess
    written: Path

    def wait(self, seconds: float = 120) -> Ended:
        """How it ended."""
        (ended,) = wait_all([self], seconds)
        return ended


def wait_all(running: Sequence[Running], seconds: float = 120) -> list[Ended]:
    """How each of them ended; those that are still running after so many seconds in all are killed, and told."""
    end = time.monotonic() + seconds
    try:
        for one in running:
            one.process.join(max(0.0, end - time.monotonic()))
    finally:
        late = [place for place, one in enumerate(running) if one.process.is_alive()]
        for place in late:
            running[place].process.kill()
        texts = []
        for one in running:
            one.process.join()
            STARTED.remove(one.process)
            texts.append(one.written.read_text(encoding="utf-8"))
            one.written.unlink()
    assert not late, f"still running after {seconds} s: {late}\n" + "\n".join(texts)
    codes = [one.process.exitcode for one in running]
    return [(code, text) for code, text in zip(codes, texts, strict=True) if code is not None]


def start(
    *arguments: object, environment: Mapping[str, str] | None = None, first: Callable[[], object] | None = None
) -> Running:
    """``python -m lit_sft ARGUMENTS`` in a process of its own.

    Args:
        arguments: the command and its options.
        environment: variables beside those of this process.
        first: what the process calls before the command; a function of a module.
    """
    handle, written = tempfile.mkstemp(suffix=".txt")
    os.close(handle)
    given = ([str(argument) for argument in arguments], {**os.environ, **(environment or {})}, written, first)
    process = SERVER.Process(target=_command, args=given)
    process.start()
    STARTED.append(process)
    return Running(process, Path(written))


def run_ranks(count: int, *arguments: object, again: bool = True) -> list[Ended]:
    """The processes of one distributed training, all started here, as torchrun does it; they need a ``--run_dir``.

    Another process may have taken the port that was free when it was looked for: then they are started once more.
    """
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "WORLD_SIZE": str(count)}
    ranks = [{**shared, "NODE_RANK": "0", "LOCAL_RANK": str(rank)} for rank in range(count)]
    ended = wait_all([start(*arguments, f"--trainer.devices={count}", environment=rank) for rank in ranks])
    if again and any("address already in use" in written.lower() for _, written in ended):
        return run_ranks(count, *arguments, again=False)
    return ended


@atexit.register
def _kill_what_is_left() -> None:
    """Before multiprocessing waits for them; as daemons, which it would end, they could have no loaders' processes."""
    for process in STARTED:
        if process.is_alive():
            process.kill()


def _command(
    arguments: list[str], environment: dict[str, str], written: str, first: Callable[[], object] | None
) -> None:
    """What a process does."""
    from lightning.pytorch.utilities import rank_zero_only

    from lit_sft.main import main

    multiprocessing.set_start_method(None, force=True)  # the platform's, for loaders; not that of this process
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(written, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    rank_zero_only.rank = int(environment.get("LOCAL_RANK", 0))  # elsewhere set when Lightning is imported
    sys.argv = ["lit_sft", *arguments]
    if first is not None:
        first()
    try:
        sys.exit(main(arguments))
    finally:
        atexit._run_exitfuncs()  # as an interpreter does: they end the loaders' processes
