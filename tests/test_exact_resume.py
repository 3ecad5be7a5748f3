"""A run that goes on from any of its checkpoints ends as one that was never stopped, to the bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from conftest import Configs, Files
from kill import differences, logged, newest, unbroken, unequal
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger
from processes import start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from training import Began, Losses, PowerCut, check_resumes, data_of, equal, module_of, step_of, trainer_of, weights

from lit_sft.callbacks import (
    BestCheckpoint,
    EarlyStop,
    ExponentialAveraging,
    GradualUnfreezing,
    L2Start,
    LastCheckpoint,
    NonMonotonicAveraging,
)
from lit_sft.callbacks.averaging import TRAINED
from lit_sft.module import LitSFT
from lit_sft.objectives import MLE
from lit_sft.optim import SlantedTriangular, WarmupCosine


def train(stage: str, files: Files, cache: Path, folder: Path, options: dict[str, Any], path: Path | None) -> Path:
    """A fit with all that has a state: dropout, a schedule, averaged weights, early stopping, two loader processes."""
    began, saving = Began(), [BestCheckpoint(), LastCheckpoint(every_steps=1, keep=100)]
    for callback in saving:
        callback.dirpath = str(folder)
    callbacks = [EMAWeightAveraging(decay=0.9), EarlyStop(patience=50), began, *saving]
    logger = TensorBoardLogger(folder, name="", version="", purge_step=None)
    module = module_of(stage, dropout=True, schedule=WarmupCosine(0.2), layer_decay=0.7)
    given = {"max_epochs": 3, "gradient_clip_val": 0.5, "limit_val_batches": 1.0, "logger": logger, **options}
    of_data = {name: given.pop(name) for name in ("num_workers", "direction", "random_bptt") if name in given}
    data = data_of(files, cache, **of_data)
    trainer = trainer_of(folder, callbacks=callbacks, **given)
    trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    assert began.step == step_of(path)
    return folder


Batch = tuple[int, int, int]  # epoch of the loader, batches of it, optimizer steps
OPTIONS = [
    {"accumulate_grad_batches": 2, "val_check_interval": 3, "num_workers": 2, "max_epochs": 2},
    {"check_val_every_n_epoch": 2},
    {"limit_train_batches": 5, "log_every_n_steps": 3},
]
OF_STREAMS = [
    {"direction": "backward", "accumulate_grad_batches": 2, "max_epochs": 2},
    {"random_bptt": True, "accumulate_grad_batches": 2, "max_epochs": 2},
]


@pytest.mark.parametrize(
    ("stage", "options"),
    [("pretrain", given) for given in OPTIONS + OF_STREAMS] + [("finetune", given) for given in OPTIONS],
    ids=str,
)
def test_every_checkpoint_leads_to_the_same_end(
    stage: str, options: dict[str, Any], files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    whole = train(stage, files, shared_cache, folder, options, None).rename(tmp_path / "whole")
    saved = sorted(whole.glob("last-*.ckpt"), key=lambda path: int(path.stem[5:]))
    assert len(saved) >= 6
    if "log_every_n_steps" in options:  # saved at every step, logged at every third: each of these once
        (file,) = whole.glob("events.out.tfevents.*")
        steps = [event.step for event in EventAccumulator(str(file)).Reload().Scalars("train/loss")]
        assert steps == list(range(2, 15, 3))
    for path in saved[:: -(-len(saved) // 6)]:  # six of them, from the last to the first
        step = step_of(path)
        folder.mkdir()
        shutil.copy(whole / "best.ckpt", folder)
        rest = train(stage, files, shared_cache, folder, options, path)
        ends = [torch.load(end / "last.ckpt", weights_only=True) for end in (whole, rest)]
        assert unequal(*ends, "") == [], f"from step {step}"
        for tag, values in logged(rest).items():
            assert values == {s: v for s, v in logged(whole)[tag].items() if s in values}, f"{tag} from step {step}"
            assert max(values) == max(logged(whole)[tag])
        shutil.rmtree(folder)


OF_STAGE: dict[str, dict[str, Any]] = {
    "pretrain": {"objective": MLE(2.0, 1.0, 0.2), "loss_chunk": 50, "optimizer": partial(torch.optim.SGD, lr=8.0)},
    "finetune": {"backprop_tokens": 5, "layer_decay": 0.5, "schedule": SlantedTriangular()},
}


@pytest.mark.parametrize("stage", OF_STAGE)
def test_parts_of_awd_lstm_and_ulmfit_together_lead_to_the_same_end(
    stage: str, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path)
    trainer.fit(module_of("pretrain"), data_of(files, shared_cache))
    trainer.save_checkpoint(tmp_path / "start.ckpt")

    def fit(saving: list[Callback], path: Path | None) -> dict[str, Tensor]:
        callbacks: list[Callback] = [NonMonotonicAveraging(nonmono=0)]
        if stage == "finetune":
            callbacks = [GradualUnfreezing(0.5), ExponentialAveraging(0.8, 6), L2Start(0.1)]
        options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.25, "val_check_interval": 4}
        trainer = trainer_of(tmp_path, max_epochs=3, limit_val_batches=1.0, callbacks=callbacks + saving, **options)
        start = str(tmp_path / "start.ckpt") if stage == "finetune" else None
        module = module_of(stage, dropout=True, init_from=start, **OF_STAGE[stage])
        data = data_of(files, shared_cache, bptt=64, random_bptt=True)
        trainer.fit(module, data, ckpt_path=path, weights_only=True)
        return weights(module)

    check_resumes(fit, tmp_path, least=10, every=3)
    tried = sorted((tmp_path / "whole").glob("last-*.ckpt"))[::3]
    assert {TRAINED in torch.load(path, weights_only=True) for path in tried} == {True, False}


def test_a_run_that_early_stopping_ended_ends_there_however_often_it_is_resumed(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    """It may have been killed after its last checkpoint, which doesn't say that training was to stop.

    In another folder it is trained further, as any finished run may be, with all its patience, and may be killed again.
    """

    def fit(folder: Path, path: Path | None, stop_at: int | None = None) -> tuple[int, dict[str, Tensor]]:
        last = LastCheckpoint(every_steps=1)
        last.dirpath = str(folder)
        callbacks = [EarlyStop(patience=2), Losses(stop_at), last]
        trainer = trainer_of(folder, max_epochs=20, limit_val_batches=1.0, callbacks=callbacks)
        module = module_of("finetune", optimizer=partial(torch.optim.AdamW, lr=0.3))
        trainer.fit(module, data_of(files, shared_cache), ckpt_path=path, weights_only=True)
        return trainer.global_step, weights(module)

    (end, whole), path = fit(tmp_path / "a", None), tmp_path / "a" / "last.ckpt"
    assert end <= 140  # of the 160 of twenty epochs; where it ends differs from machine to machine
    again, rest = fit(tmp_path / "a", path)
    assert again == end
    assert all(torch.equal(whole[name], rest[name]) for name in whole)
    with pytest.raises(PowerCut):
        fit(tmp_path / "b", path, stop_at=end + 4)
    path = tmp_path / "b" / "last.ckpt"
    states = torch.load(path, weights_only=True)["callbacks"]
    (state,) = (value for key, value in states.items() if key.startswith("EarlyStop"))
    assert (state["wait_count"], state["stopping_reason_message"]) == (0, None)
    assert fit(tmp_path / "b", path)[0] >= end + 16


class Asks(Callback):
    """Early stopping asks for the end in the first epoch, which ``min_epochs`` puts off, and the figure gets better."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        (stop,) = (callback for callback in trainer.callbacks if isinstance(callback, EarlyStop))  # type: ignore[attr-defined]
        stop.stopping_reason, trainer.should_stop = EarlyStoppingReason.PATIENCE_EXHAUSTED, True


def test_a_run_that_is_to_stop_later_is_saved_meanwhile_and_stops_there_when_it_is_resumed(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    def fit(path: Path | None, *more: Callback, patience: int = 3) -> int:
        last = LastCheckpoint(every_steps=1, keep=100)
        last.dirpath = str(tmp_path)
        options = {"max_epochs": 9, "min_epochs": 2, "log_every_n_steps": 50, "limit_val_batches": 1.0}
        trainer = trainer_of(tmp_path, callbacks=[EarlyStop(patience=patience), *more, last], **options)
        trainer.fit(module_of("finetune"), data_of(files, shared_cache), ckpt_path=path, weights_only=True)
        return int(trainer.global_step)

    assert fit(None, Asks()) == 16
    kept = {step_of(path): path for path in tmp_path.glob("last*.ckpt")}
    assert {*range(9, 17)} <= kept.keys()
    assert fit(kept[11]) == 16
    assert fit(kept[11], patience=9) == 72  # another one was given for that


@pytest.mark.parametrize("validated", [{}, {"limit_val_batches": 0}, {"check_val_every_n_epoch": 3}], ids=str)
@pytest.mark.parametrize("end", [{"max_steps": 11}, {"max_steps": 16}, {"max_epochs": 2}, {"stop_at": 11}], ids=str)
def test_a_run_that_has_ended_trains_further_as_if_it_had_not(
    end: dict[str, int], validated: dict[str, Any], files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    """In the middle of the second epoch of 8 batches, or at its end; validated there, or not."""

    def fit(name: str, path: Path | None, **options: Any) -> tuple[list[int], dict[str, Tensor]]:
        last, seen = LastCheckpoint(), Seen(options.pop("stop_at", None))
        last.dirpath = str(tmp_path / name)
        given = {"limit_val_batches": 1.0, "max_epochs": -1, **validated, **options}
        trainer = trainer_of(tmp_path, callbacks=[seen, last], **given)
        module = module_of("finetune", dropout=True)
        trainer.fit(module, data_of(files, shared_cache), ckpt_path=path, weights_only=True)
        assert trainer.global_step == step_of(tmp_path / name / "last.ckpt")
        return seen.validated, weights(module)

    regular, whole = fit("whole", None, max_epochs=3)
    assert regular == {"{}": [8, 16, 24], "{'limit_val_batches': 0}": []}.get(str(validated), [24])
    # where every step is logged, and where none of these is; Lightning goes on with steps in another way
    for rate, more in ((1, {"max_epochs": 3}), (50, {"max_steps": 24})):
        begun, _ = fit("begun", None, log_every_n_steps=rate, **end)
        at, rest = fit("rest", tmp_path / "begun" / "last.ckpt", **more)
        assert sorted({*begun, *at} - {11}) == regular
        assert equal(whole, rest)


@pytest.mark.parametrize("validated", [0, 1.0])
@pytest.mark.parametrize("every_steps", [0, 1])
def test_a_run_that_ended_among_gradients_under_accumulation_goes_on_with_the_next_batch(
    every_steps: int, validated: float, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    """The gradients of these are lost; a checkpoint that loses none, of the step before, stays."""

    def fit(name: str, path: Path | None, stop_at: int | None = None) -> tuple[list[Batch], dict[str, Tensor]]:
        last, seen = LastCheckpoint(every_steps=every_steps), Seen(stop_at)
        last.dirpath = str(tmp_path / name)
        options = {"max_epochs": 3, "accumulate_grad_batches": 4, "limit_val_batches": validated}
        trainer = trainer_of(tmp_path, callbacks=[seen, last], **options)
        module = module_of("finetune", dropout=True)
        trainer.fit(module, data_of(files, shared_cache), ckpt_path=path, weights_only=True)
        return seen.batches, weights(module)

    batches, whole = fit("whole", None)
    begun, _ = fit("begun", None, stop_at=14)
    assert begun == batches[:14]
    rest, ended = fit("rest", tmp_path / "begun" / "last.ckpt")
    assert [batch[:2] for batch in rest] == [batch[:2] for batch in batches[12 if every_steps else 14 :]]
    assert rest[-1] == batches[-1]
    assert equal(whole, ended) == bool(every_steps)


def test_a_run_whose_epochs_are_one_step_each_goes_on_from_any_of_them(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    def fit(saving: list[Callback], path: Path | None) -> dict[str, Tensor]:
        callbacks = [GradualUnfreezing(2.0), ExponentialAveraging(0.8, 3), *saving]
        trainer = trainer_of(tmp_path, max_epochs=7, accumulate_grad_batches=8, callbacks=callbacks)
        module = module_of("finetune", dropout=True, schedule=WarmupCosine(0.2))
        trainer.fit(module, data_of(files, shared_cache), ckpt_path=path, weights_only=True)
        return weights(module)

    check_resumes(fit, tmp_path, least=6, every=2)


class Seen(Callback):
    """The batches that were trained on, and the steps at which the model was validated; may end the training."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.batches: list[Batch] = []
        self.validated: list[int] = []
        self.stop_at = stop_at

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        loader = trainer.train_dataloader["labeled"]  # type: ignore[index]
        self.batches.append((loader.epoch, loader.served, trainer.global_step))
        trainer.should_stop = trainer.should_stop or len(self.batches) == self.stop_at  # as max_time does

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.validated.append(trainer.global_step)


def with_all_states(configs: Configs) -> Path:
    """The tiny fine-tuning with all that has a state, saved at every third step."""
    options = yaml.safe_load(configs.finetune.read_text())
    options["data"]["num_workers"] = 2
    options["trainer"] |= {"accumulate_grad_batches": 2, "max_epochs": 6, "log_every_n_steps": 1}
    averaged = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}}
    options["trainer"]["callbacks+"] = [averaged]
    options["saving"] = {"every_steps": 3}
    configs.finetune.write_text(yaml.safe_dump(options))
    return configs.finetune


def test_a_killed_run_and_one_that_got_a_signal_go_on_to_the_same_end(configs: Configs) -> None:
    config = with_all_states(configs)
    whole, _ = unbroken(config, "whole", [])  # by an interpreter of its own
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        code, errors = stopped(number, config)
        if number == signal.SIGKILL:
            assert code == -number
        else:
            assert code == 128 + number, errors
            assert f"{number.name}: saving at the next step" in errors
            assert "Traceback" not in errors
        folder = newest(number.name)
        saved = step_of(folder / "checkpoints" / "last.ckpt")
        code, written = start("fit", "--config", config, "--name", number.name, "--ckpt_path", "last").wait()
        assert code == 0, written
        assert differences(whole, folder) == []
        file = max(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime)
        first = min(event.step for event in EventAccumulator(str(file)).Reload().Scalars("train/loss"))
        assert first == saved, "the resumed part began elsewhere"


def stopped(number: signal.Signals, config: Path) -> tuple[int, str]:
    """A run that gets the signal after its second checkpoint; its exit code, and what it says."""
    running = start("fit", "--config", config, "--name", number.name, first=slowly)
    end = time.monotonic() + 120
    while not list(Path("logs", number.name).glob("*/checkpoints/last-1.ckpt")):
        if not running.process.is_alive() or time.monotonic() > end:
            pytest.fail(f"it ended or stands still, with no second checkpoint:\n{running.wait(0)[1]}")
        time.sleep(0.02)
    assert running.process.pid is not None
    os.kill(running.process.pid, number)
    return running.wait()


def slowly() -> None:
    """Let the steps take long enough for the signal to come before the end."""
    step = LitSFT.training_step

    def training_step(module: LitSFT, batch: Any, batch_idx: int) -> Tensor | None:
        time.sleep(0.05)
        return step(module, batch, batch_idx)

    LitSFT.training_step = training_step  # type: ignore[method-assign]


@pytest.mark.slow
def test_the_pydocs_recipe_is_killed_twenty_times() -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "scripts/kill.py"], cwd=root, timeout=7200, check=False)
    assert done.returncode == 0
