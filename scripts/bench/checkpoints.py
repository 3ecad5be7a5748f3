"""What the last checkpoint costs: seconds spent saving as a share of a pretraining at the default interval, in one run.

    python scripts/bench/checkpoints.py                # the first 6 minutes of configs/pydocs/pretrain.yaml
    python scripts/bench/checkpoints.py --minutes 12

Counted is all that happens at a save: loggers flushed, states gathered, the file written, synced to the disk and
renamed; saves after validations included. The run is an ordinary fit, in logs/bench-checkpoints.
"""

from __future__ import annotations

import argparse
import time
from functools import wraps
from typing import Any

from lightning.pytorch import Trainer

from lit_sft.callbacks import LastCheckpoint
from lit_sft.main import main as lit_sft
from lit_sft.runs import new_run


def parser() -> argparse.ArgumentParser:
    """What it is called with."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--config", default="configs/pydocs/pretrain.yaml")
    options.add_argument("--minutes", type=float, default=6.0, help="more than the interval, which is 5 minutes")
    return options


def main() -> None:
    """Run, then print the share."""
    arguments = parser().parse_args()
    saves: list[float] = []
    whole: list[float] = []
    save, fit = LastCheckpoint.save, Trainer.fit

    def timed_save(self: LastCheckpoint, trainer: Trainer) -> None:
        started = time.perf_counter()
        save(self, trainer)
        saves.append(time.perf_counter() - started)

    @wraps(fit)  # the command line reads its arguments
    def timed_fit(self: Trainer, *args: Any, **kwargs: Any) -> None:
        started = time.perf_counter()
        fit(self, *args, **kwargs)
        whole.append(time.perf_counter() - started)

    LastCheckpoint.save = timed_save  # type: ignore[method-assign]
    Trainer.fit = timed_fit  # type: ignore[method-assign]
    seconds = int(60 * arguments.minutes)
    limit = f"--trainer.max_time=00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    folder = new_run("bench-checkpoints")
    code = lit_sft(["fit", "--config", arguments.config, f"--run_dir={folder}", limit])
    if code:
        raise SystemExit(code)
    size = (folder / "checkpoints" / "last.ckpt").stat().st_size / 2**20
    print(f"run {whole[0]:.0f} s, {len(saves)} saves of {size:.0f} MiB, {sum(saves) / len(saves):.2f} s each")
    print(f"saving took {100 * sum(saves) / whole[0]:.2f}% of the run")


if __name__ == "__main__":
    main()
