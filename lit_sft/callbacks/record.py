"""What a stage leaves in its run folder beside checkpoints and events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.utilities import rank_zero_info

from lit_sft.atomic import write_atomically
from lit_sft.callbacks.pace import SHOWN
from lit_sft.callbacks.saving import BestCheckpoint
from lit_sft.callbacks.throughput import Throughput
from lit_sft.checkpoints import read_config
from lit_sft.errors import UserError
from lit_sft.evaluation.confusion import log_confusion
from lit_sft.evaluation.predictions import VAL_FILE
from lit_sft.evaluation.responses import VAL_FILE as VAL_RESPONSES
from lit_sft.options import GROUPS
from lit_sft.runs import RECORD, package_versions, write_record
from lit_sft.tensorboard_text import log_options, log_text

# The sections of a config that decide a result. The optimizer's own options are reported by the LightningModule.
SECTIONS = ("seed_everything", *GROUPS)
PLACES = ("trainer.logger", "trainer.default_root_dir")
UNREPORTED = ("model.optimizer.", "model.init_from", "trainer.logger.", "trainer.default_root_dir")


class RunRecord(L.Callback):
    """Writes ``config.yaml`` and ``tokenizer.json`` at the start, ``metrics.json`` at the end of a fit.

    The record holds the validation figures of the best checkpoint, not of the last one: they are kept at each
    validation that is the best so far. The confusion matrix of that validation goes to TensorBoard.

    Args:
        folder: the stage's run folder.
        config: the run's options as plain values.
        resumed: leave the first start's ``config.yaml`` and write ``config.resume.yaml`` beside it.
    """

    def __init__(self, folder: Path, config: dict[str, Any], resumed: bool) -> None:
        self.folder, self.config, self.resumed = folder, config, resumed
        self._best: dict[str, float] = {}
        self._trained = False
        self._seconds_before = 0.0
        self._started = time.perf_counter()

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            name = "config.resume.yaml" if self.resumed else "config.yaml"
            if self.resumed and (changed := changed_options(read_config(self.folder), self.config)):
                rank_zero_info("resumed with changed options: " + "; ".join(changed))
            write_atomically(self.folder / name, yaml.safe_dump(self.config, sort_keys=False))

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        write_atomically(self.folder / "tokenizer.json", module.tokenizer.to_json())  # type: ignore
        text = yaml.safe_dump(self.config, sort_keys=False)
        log_text(trainer, "config", "".join(f"    {line}\n" for line in text.splitlines()))
        if not self.resumed:  # MLflow refuses to change a stored value
            options = {name: v for name, v in _flat(self.config) if not name.startswith(PLACES)}
            log_options(trainer, options, self.config.get("checkpoint", {}).get("monitor") or "val/loss")

    def on_train_batch_start(self, *_: Any) -> None:
        self._trained = True

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        figures = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        if trainer.progress_bar_callback is None:  # type: ignore[attr-defined] # else the bar shows them
            rank_zero_info(f"step {trainer.global_step}: {_shown(figures, module)}")
        best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
        if best is None or best.check_monitor_top_k(trainer, best._monitor_candidates(trainer).get(str(best.monitor))):
            self._best = figures  # what that callback, which comes after this one, is about to save
            if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                for name in (VAL_FILE, VAL_RESPONSES):
                    (self.folder / name).unlink(missing_ok=True)  # written by a `validate` of the previous best
            log_confusion(trainer, module, "val", trainer.global_step)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the record.

        Raises:
            UserError: a new run in which nothing was trained.
        """
        if trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        if not self._trained and not self.resumed:
            limits = f"trainer.max_epochs {trainer.max_epochs}, max_steps {trainer.max_steps} or max_time"
            raise UserError(
                f"nothing was trained: at step {trainer.global_step} {limits} is reached already; give more"
            )
        if not trainer.is_global_zero:
            return
        throughput = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
        record = {
            "stage": module.stage,
            "val": {k.removeprefix("val/"): v for k, v in self._best.items()},
            "tokens_per_second": throughput.tokens_per_second if throughput else None,
            "steps": trainer.global_step,
            "contamination": trainer.datamodule.contamination,  # type: ignore[attr-defined]
            "seed": self.config.get("seed_everything"),
            "seconds": self._seconds_before + time.perf_counter() - self._started,
            "versions": package_versions(),
        }
        write_record(self.folder / RECORD, record)
        if trainer.should_stop and module.schedule.needs_total:  # type: ignore[union-attr]
            _tell_rate(trainer, module)
        self._next_steps(module)

    def _next_steps(self, module: L.LightningModule) -> None:
        rank_zero_info(f"done: {self.folder} (best validation: {_shown(self._best, module) or 'none'})")
        if module.stage == "pretrain":
            rank_zero_info(f"fine-tune it:  python -m lit_sft fit --config … --model.init_from {self.folder}")
        else:
            rank_zero_info(f"test it:  python -m lit_sft test --ckpt_path {self.folder}")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "seconds": self._seconds_before + time.perf_counter() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (self.folder / "checkpoints" / "best.ckpt").is_file():  # else the best stays in its old folder
            self._best = state_dict["best"]
        self._seconds_before = state_dict["seconds"]


def _tell_rate(trainer: L.Trainer, module: Any) -> None:
    """Report where in its schedule a stopped training has ended: the rate may not have come down."""
    step, total = trainer.global_step, module.total_steps()
    if 0 < step < total:
        factor = module.schedule(step - 1, total)
        rank_zero_info(f"ended at step {step} of the {total} that the schedule is for, at {factor:.0%} of the rate")


def _shown(figures: dict[str, float], module: Any) -> str:
    names = [f"val/{name}" for name in (*SHOWN, *module.metrics)]
    return ", ".join(f"{name} {figures[name]:.4g}" for name in names if name in figures)


def changed_options(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The differences between the config that a run began with and the one it is resumed with, a line each."""
    old, new = dict(_flat(before)), dict(_flat(now))
    names = [name for name in {**old, **new} if not name.startswith(UNREPORTED)]
    return [f"{n}: {old.get(n)} -> {new.get(n)}" for n in names if old.get(n) != new.get(n)]


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if not prefix and key not in SECTIONS:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
