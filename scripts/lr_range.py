"""Learning rate range test: a short training under a rising rate shows where the loss falls fastest and is lowest.

    python scripts/lr_range.py --config configs/own/pretrain.yaml --config configs/mine.yaml
    python scripts/lr_range.py --config configs/own/finetune.yaml --config configs/mine.yaml \\
        --model.init_from logs/mine/version_0

Runs ``fit`` with the configs and flags of one stage for ``--steps`` optimizer steps under ``lit_sft.optim.RangeTest``,
from ``--min_lr`` to ``--max_lr``, without validation. The loss is smoothed by a centred mean over a tenth of the steps,
so that it doesn't lag behind the rate; the curve ends at the first loss that isn't finite. There are two suggestions,
as in fastai's ``lr_find``, after Smith's (2017) range test: the rate at which the loss falls fastest over the logarithm
of the rate, and a tenth of the rate at which it is lowest. Neither predicts the quality of the final model. If layers
have their own rates (``model.layer_decay``), the rate shown is the top layer's.
"""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
from pathlib import Path

import numpy as np
from one_line import in_one_line
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft.errors import SickRun, UserError
from lit_sft.main import main as lit_sft
from lit_sft.recipes.file import recipe_in
from lit_sft.runs import discard_run, new_run

SHOWN = 20  # lines of the table
LEAST = 20  # steps: with fewer there is no curve


def run(flags: list[str], name: str, lowest: float, highest: float, steps: int) -> Path:
    """Train under a rising rate; returns the run's folder.

    Raises:
        UserError: if the config is a recipe.
        SystemExit: if the fit ended with an error, which it has printed. (A loss that isn't finite is not an error.)
    """
    if recipe := recipe_in(flags):
        raise UserError(f"{recipe.path} is a recipe: give the config of one of its stages")
    folder = new_run(name)
    command = ["fit", *flags, f"--run_dir={folder}", "--model.schedule=lit_sft.optim.RangeTest"]
    command += [f"--model.schedule.start={lowest / highest}", f"--model.optimizer.lr={highest}"]
    command += [f"--trainer.max_steps={steps}", "--trainer.max_epochs=-1"]
    command += ["--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=0", "--health.skip_spikes=0"]
    print("python -m lit_sft", shlex.join(command), flush=True)
    code = lit_sft(command)
    if code == SickRun.exit_code:
        print("(the rate has become too high, as it does in such a run)")
    elif code:
        discard_run(folder, [folder, folder.parent])
        raise SystemExit(code)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # nothing that anyone should start from
    return folder


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The top layer's rate (steps,) and the loss (steps,) at each step of a run, up to the first that isn't finite."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    if "train/loss" not in tags or not any(tag.startswith("lr/") for tag in tags):
        raise UserError(f"{folder} has no train/loss and lr/ in its TensorBoard events: leave out --trainer.logger")
    rates: dict[int, float] = {}
    for tag in (tag for tag in tags if tag.startswith("lr/")):
        for event in events.Scalars(tag):
            rates[event.step] = max(event.value, rates.get(event.step, 0.0))
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    steps = sorted(set(rates) & set(losses))
    end = next((i for i, step in enumerate(steps) if not math.isfinite(losses[step])), len(steps))
    if end < LEAST:
        raise UserError(f"{folder}: {end} steps with a finite loss are no curve: a lower --max_lr, or more --steps")
    return np.array([rates[step] for step in steps[:end]]), np.array([losses[step] for step in steps[:end]])


def smoothed(losses: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Centred means over a share of the steps, losses (steps,) -> (steps,); fewer of them at the ends."""
    half = max(round(share * len(losses) / 2), 1)
    window = np.ones(2 * half + 1)
    return np.convolve(losses, window)[half:-half] / np.convolve(np.ones(len(losses)), window)[half:-half]


def suggestions(rates: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """The rates where smoothed losses (steps,) fall fastest over log(rates) (steps,), and where they are lowest.

    The steepest fall is only searched for up to the lowest loss.
    """
    lowest = int(losses.argmin())
    slopes = np.gradient(losses, np.log(rates))[: lowest + 1]
    return float(rates[slopes.argmin()]), float(rates[lowest])


def table(rates: np.ndarray, losses: np.ndarray) -> str:
    """Rates and smoothed losses, some of them, and the suggestions; ``losses`` (steps,) as they were measured."""
    mean = smoothed(losses)
    steepest, lowest = suggestions(rates, mean)
    chosen = np.unique(np.linspace(0, len(rates) - 1, SHOWN).round().astype(int))
    lines = ["    rate      loss", *(f"{rates[i]:8.2g}  {mean[i]:8.4g}" for i in chosen)]
    before = slice(0, int(mean.argmin()) + 1)
    if mean[0] - mean.min() < np.std(losses[before] - mean[before]):
        lines.append("the loss falls by less than its steps differ: what follows is noise, more --steps may help")
    lines.append(f"the loss falls fastest at a rate of {steepest:.2g}")
    lines.append(f"it is lowest at {lowest:.2g}, a tenth of which is {lowest / 10:.2g}")
    if lowest == rates[-1]:
        lines.append("it still falls at the end: a higher --max_lr shows where it doesn't")
    return "\n".join(lines)


def draw(rates: np.ndarray, losses: np.ndarray, path: Path) -> bool:
    """The picture, each step's loss and the smoothed ones; False where there is no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("agg")
    from matplotlib import pyplot

    mean = smoothed(losses)
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(rates, losses, alpha=0.3)
    axes.plot(rates, mean, color="C0")
    for rate, label, style in zip(suggestions(rates, mean), ("falls fastest", "lowest"), ("--", ":"), strict=True):
        axes.axvline(rate, linestyle=style, color="C1", label=f"{label}: {rate:.2g}")
    shown = (0.9 * losses.min(), min(losses.max(), 1.5 * mean[0]))  # what comes above is of no interest
    axes.set(xscale="log", xlabel="learning rate", ylabel="train/loss", ylim=shown)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True


def parser() -> argparse.ArgumentParser:
    """What it is called with; all else goes to ``fit``."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("--min_lr", type=float, default=1e-4, help="the rate at the start")
    options.add_argument("--max_lr", type=float, default=1.0, help="the rate at the end")
    options.add_argument("--steps", type=int, default=200, help="optimizer steps")
    options.add_argument("--name", default="lr_range", help="of the run, logs/NAME/version_K")
    return options


def main() -> None:
    """Train, print the table, and draw where that can be."""
    arguments, flags = parser().parse_known_args()
    folder = run(flags, arguments.name, arguments.min_lr, arguments.max_lr, arguments.steps)
    rates, losses = read(folder)
    print(table(rates, losses))
    picture = folder / "lr_range.png"
    print(f"wrote {picture}" if draw(rates, losses, picture) else "(a picture needs matplotlib, the extra plot)")


if __name__ == "__main__":
    in_one_line(main)
