"""Check that runs which are killed repeatedly end exactly as an unbroken run does. Counts those that are bit-identical.

    python scripts/kill.py                                   # scripts/kill.yaml, 20 kills in one run
    python scripts/kill.py --kills 5 --repeats 10            # ten runs of five kills each
    python scripts/kill.py --signal TERM                     # a signal that the run saves at, instead of SIGKILL

The recipe runs once unbroken, then ``--repeats`` times with ``--kills`` kills at random moments, each followed by
``--ckpt_path last``. The comparison covers the weights, optimizer and other states of every stage's checkpoints, the
figures of ``metrics.json`` (except timings), and every logged value by step (the last one if a step was logged twice).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

TIMINGS = ("seconds", "tokens_per_second")


def run(config: Path, name: str, flags: list[str], resume: bool, after: float | None, number: int) -> tuple[int, float]:
    """Start or resume the run, and send signal ``number`` to its whole process group after ``after`` seconds, if given.

    Returns:
        The exit code (negative if the signal ended the run), and the seconds that it ran.
    """
    command = [sys.executable, "-m", "lit_sft", "fit", "--config", str(config), "--name", name]
    command += [*flags, "--trainer.enable_progress_bar=false", *(["--ckpt_path", "last"] if resume else [])]
    started = time.monotonic()
    with subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            _, errors = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
            _, errors = process.communicate()
    code = process.returncode
    if code > 0 and code != 128 + number:
        raise SystemExit(f"{' '.join(command)}\nended with {code}:\n{errors.decode()[-2000:]}")
    return code, time.monotonic() - started


def unbroken(config: Path, name: str, flags: list[str]) -> tuple[Path, float]:
    """The run that is never killed: its folder, and its seconds."""
    _, seconds = run(config, name, flags, resume=False, after=None, number=signal.SIGKILL)
    return newest(name), seconds


def killed(config: Path, name: str, flags: list[str], moments: Iterator[float], number: int) -> tuple[Path, int]:
    """A run that is killed after each of ``moments`` (seconds) and resumed; then it runs to its end.

    Returns:
        Its folder, and how many of the kills came before it ended.
    """
    count, resume, before = 0, False, set(_begun(name))
    for after in [*moments, None]:
        code, _ = run(config, name, flags, resume, after, number)
        if code == 0:
            break
        count += 1
        resume = resume or bool(set(_begun(name)) - before)  # if killed before it wrote its folder, start again
    return newest(name), count


def _begun(name: str) -> Iterator[Path]:
    return Path("logs", name).glob("version_*/config.yaml")


def newest(name: str) -> Path:
    """The folder of the newest run of a name."""
    return max(Path("logs", name).glob("version_*"), key=lambda folder: int(folder.name[8:]))


def differences(one: Path, other: Path) -> list[str]:
    """The differences between two runs' folders, one line each."""
    found = []
    files = {path.relative_to(folder) for folder in (one, other) for path in folder.rglob("*.ckpt")}
    for file in sorted(file for file in files if file.name in ("best.ckpt", "last.ckpt")):
        if not (one / file).is_file() or not (other / file).is_file():
            found.append(f"{file}: in one run only")
            continue
        states = [_comparable(torch.load(f / file, map_location="cpu", weights_only=True)) for f in (one, other)]
        found += [f"{file}: {place}" for place in unequal(states[0], states[1], "")]
    for file in sorted(path.relative_to(one) for path in one.rglob("metrics.json")):
        records = [_without_timings(json.loads((folder / file).read_text())) for folder in (one, other)]
        found += [f"{file}: {place}" for place in unequal(records[0], records[1], "")]
    for folder in sorted({path.parent.relative_to(one) for path in one.rglob("events.out.tfevents.*")}):
        found += [f"{folder}: {place}" for place in unequal(logged(one / folder), logged(other / folder), "")]
    return found


def _comparable(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without the entries that depend on the time or the folder."""
    callbacks = checkpoint.pop("callbacks")
    for key in list(callbacks):
        if key.startswith(("Throughput", "RunRecord", "BestCheckpoint")):
            callbacks[key] = {k: v for k, v in callbacks[key].items() if k in ("best", "best_model_score")}
    checkpoint["lit_sft"]["config"]["model"].pop("init_from", None)
    return {**checkpoint, "callbacks": callbacks}


def _without_timings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_timings(v) for key, v in value.items() if key not in TIMINGS}
    return value


def logged(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar by tag and step over all event files, in the order they were written, timings aside."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
        for tag in events.Tags()["scalars"]:
            if not tag.startswith("perf/"):
                found.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return found


def unequal(one: Any, other: Any, place: str) -> list[str]:
    """The places where two nested values differ; tensors and floats to the bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        missing = [f"{place}{key} in one only" for key in one.keys() ^ other.keys()]
        return missing + [
            p for key in one.keys() & other.keys() for p in unequal(one[key], other[key], f"{place}{key}.")
        ]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [p for i, (a, b) in enumerate(zip(one, other, strict=True)) for p in unequal(a, b, f"{place}{i}.")]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return [] if torch.equal(one, other) else [f"{place} differs"]
    same = one == other or (one != one and other != other)
    return [] if same else [f"{place} {one!r:.60} and {other!r:.60}"]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--config", type=Path, default=Path("scripts/kill.yaml"))
    options.add_argument("--kills", type=int, default=20, help="in each run")
    options.add_argument("--repeats", type=int, default=1, help="runs that are killed")
    options.add_argument("--signal", default="KILL", choices=("KILL", "TERM", "INT"))
    options.add_argument("--seed", type=int, default=0, help="draws the moments")
    options.add_argument("--start", type=float, default=10.0, help="seconds that a start takes before training")
    options.add_argument("--name", default="kill", help="the runs' folders: logs/NAME-unbroken and logs/NAME-killed")
    return options


def main() -> None:
    """Run and compare; exit code 1 where a run differs."""
    arguments, flags = parser().parse_known_args()
    number = signal.Signals[f"SIG{arguments.signal}"]
    whole, seconds = unbroken(arguments.config, f"{arguments.name}-unbroken", flags)
    print(f"unbroken: {whole}, {seconds:.0f} s", flush=True)
    drawn, equal = random.Random(arguments.seed), 0
    for repeat in range(arguments.repeats):
        # the intervals add up to one start per kill plus the training once: some kills hit a start, most the training
        share = 2 * max(seconds - arguments.start, 1.0) / (arguments.kills + 1)
        moments = (arguments.start * drawn.random() * 1.2 + share * drawn.random() for _ in range(arguments.kills))
        folder, count = killed(arguments.config, f"{arguments.name}-killed", flags, moments, number)
        found = differences(whole, folder)
        equal += not found
        print(
            f"run {repeat + 1}: {count} kills, {folder}: {'equal to the bit' if not found else 'DIFFERS'}", flush=True
        )
        for line in found[:20]:
            print(f"  {line}", flush=True)
    print(f"{equal} of {arguments.repeats} killed runs ended as the unbroken one")
    raise SystemExit(equal != arguments.repeats)


if __name__ == "__main__":
    main()
