"""A spike of the loss is skipped when so configured: told, counted, without a trace in weights and optimizer."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import Files
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from planted import BATCHES, Seen, documents_of, planted, same
from training import PowerCut, data_of, equal, module_of, trainer_of, weights

from lit_sft.callbacks import Health
from lit_sft.callbacks.spikes import SpikeFilter
from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import SickRun, UserError
from lit_sft.module import LitSFT
from lit_sft.optim import WarmupCosine

pytestmark = pytest.mark.filterwarnings("ignore:`training_step` returned `None`")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("lit_sft.callbacks.health.rank_zero_info", lines.append)
    return lines


def fit(module: LitSFT, data: TextDataModule, folder: Path, *callbacks: Callback, **options: Any) -> L.Trainer:
    path = options.pop("ckpt_path", None)
    trainer = trainer_of(folder, **{"max_epochs": 2, "callbacks": list(callbacks), **options})
    trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    return trainer


@pytest.mark.parametrize("stage", BATCHES)
def test_a_spike_is_skipped_and_its_documents_are_named(
    stage: str, data: TextDataModule, tmp_path: Path, told: list[str]
) -> None:
    at = BATCHES[stage] + 4
    module = module_of(stage, objective=planted(stage, [at], 50.0), schedule=WarmupCosine(0.2, 0.1))
    seen = Seen()
    trainer = fit(module, data, tmp_path, seen, Health(skip_spikes=6, spike_window=6))
    (line,) = told
    assert line.startswith(f"step {at} (epoch 1, batch 4) skipped: the loss ")
    numbers = documents_of(data, stage, 1, [4])
    shown = ", ".join(rf"{n} \([^)]+\)" for n in numbers[:4])
    assert re.search(f"labeled documents {shown} and {len(numbers) - 4} more$", line)
    assert equal(seen.weights[at], seen.weights[at + 1])
    assert same(seen.optimizer[at], seen.optimizer[at + 1])
    steps = zip(seen.weights, seen.weights[1:], strict=False)
    assert [step for step, (before, after) in enumerate(steps) if equal(before, after)] == [at]
    assert trainer.global_step == 2 * BATCHES[stage]  # the step counts, and the schedule goes on
    assert trainer.optimizers[0].param_groups[-1]["lr"] == pytest.approx(0.01 * WarmupCosine(0.2, 0.1)(99, 100))
    assert trainer.callback_metrics["train/skipped_batches"] == 1.0
    if stage == "pretrain":  # what the text left in the state is carried over the spike
        assert all(t.isfinite().all() and not t.requires_grad for layer in module._state or () for t in layer)
        assert math.isfinite(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize("health", [None, Health(), Health(6, 100)], ids=["none", "off", "not full"])
def test_nothing_is_skipped_when_off_or_before_the_window_is_full(
    health: Health | None, data: TextDataModule, tmp_path: Path, told: list[str]
) -> None:
    seen = Seen()
    module = module_of("finetune", objective=planted("finetune", [12], 50.0))
    trainer = fit(module, data, tmp_path, seen, *([health] if health else []))
    assert told == []
    assert not equal(seen.weights[12], seen.weights[13])
    counted = trainer.callback_metrics.get("train/skipped_batches")
    assert counted == (0.0 if health and health.skip_spikes else None)


@pytest.mark.parametrize("at", [12, 13, 15])  # first, second of two accumulated batches; the last of the epoch
@pytest.mark.parametrize("stage", BATCHES)
def test_the_other_batches_of_the_step_are_learned_from(
    stage: str, at: int, data: TextDataModule, tmp_path: Path, told: list[str]
) -> None:
    after = []
    for factor, callbacks in ((50.0, [Health(skip_spikes=6, spike_window=6)]), (0.0, [])):
        module = module_of(stage, objective=planted(stage, [at], factor))
        trainer = fit(module, data, tmp_path, *callbacks, accumulate_grad_batches=2)
        assert trainer.global_step == 2 * -(-BATCHES[stage] // 2)
        after.append(weights(module))
    assert len(told) == 1
    for name, value in after[0].items():
        torch.testing.assert_close(value, after[1][name], rtol=0, atol=0)


@pytest.mark.parametrize("stage", BATCHES)
def test_a_resumed_run_skips_what_the_unbroken_one_skips(
    stage: str, files: Files, shared_cache: Path, tmp_path: Path, told: list[str]
) -> None:
    """The window is full, and a batch was skipped, before the cut; the spike to be found comes right after it."""
    runs, spikes = [], [7, 11]
    for stop_at, ckpt_path in ((None, None), (11, None), (None, tmp_path / "step=10.ckpt")):
        every = ModelCheckpoint(str(tmp_path), "{step}", every_n_train_steps=10, save_top_k=-1)
        done = 10 if ckpt_path else 0
        module = module_of(stage, objective=planted(stage, [at - done for at in spikes], 50.0))
        health = Health(skip_spikes=6, spike_window=5)
        callbacks = (Seen(stop_at), health, every)
        if stop_at:
            with pytest.raises(PowerCut):
                fit(module, data_of(files, shared_cache), tmp_path, *callbacks)
            continue
        fit(module, data_of(files, shared_cache), tmp_path, *callbacks, ckpt_path=ckpt_path)
        runs.append((weights(module), health))
    (whole, first), (resumed, second) = runs
    assert equal(whole, resumed)
    assert first.state_dict() == second.state_dict()
    assert second.skipped == 2
    assert [line.split(" ", 2)[1] for line in told] == ["7", "11", "7", "11"]


def test_many_in_a_row_are_no_spike(data: TextDataModule, tmp_path: Path, told: list[str]) -> None:
    module = module_of("finetune", objective=planted("finetune", range(6, 99), 50.0))
    message = r"^step 15 \(epoch 1, batch 7\): .* 10 in a row and no spike .* larger --health\.skip_spikes \(now 6\)"
    with pytest.raises(SickRun, match=message):
        fit(module, data, tmp_path, Health(skip_spikes=6, spike_window=5))
    assert len(told) == 9


def test_the_losses_of_one_module_are_no_measure_for_another(
    data: TextDataModule, tmp_path: Path, told: list[str]
) -> None:
    """As where a loop over stages or seeds makes its list of callbacks once."""
    again = Health(skip_spikes=6, spike_window=6)
    for stage in ("finetune", "pretrain"):  # the second one's losses are several times those of the first
        fit(module_of(stage), data, tmp_path, again)
    alone = Health(skip_spikes=6, spike_window=6)
    fit(module_of("pretrain"), data, tmp_path, alone)
    assert again.state_dict() == alone.state_dict()
    assert told == []


def test_a_loss_that_is_no_number_is_no_spike(data: TextDataModule, tmp_path: Path, told: list[str]) -> None:
    module = module_of("finetune", objective=planted("finetune", [12], math.inf))
    with pytest.raises(SickRun, match="the loss is inf"):
        fit(module, data, tmp_path, Health(skip_spikes=6, spike_window=6))
    assert told == []


def test_the_limit_is_the_median_and_so_many_spreads() -> None:
    rng = np.random.default_rng(3)
    losses = rng.normal(5.0, 0.5, 400)
    spikes = SpikeFilter(4.0, 50)
    kept: list[float] = []
    for loss in losses.tolist():
        limit = math.inf
        if len(kept) >= 50:
            last = np.array(kept[-50:])
            limit = np.median(last) + 4.0 * 1.4826 * np.median(abs(last - np.median(last)))
        assert spikes.limit() == pytest.approx(limit)
        assert spikes.accepts(loss) == (loss <= limit)
        if loss <= limit:
            kept.append(loss)
    assert 390 < len(kept) <= 400
    assert not spikes.accepts(9.0)
    assert not spikes.accepts(9.0)  # what was refused moves nothing


def test_equal_losses_have_a_spread_too() -> None:
    spikes = SpikeFilter(5.0, 3)
    assert all(spikes.accepts(2.0) for _ in range(3))
    assert not spikes.accepts(2.11)
    assert spikes.accepts(2.09)


def test_another_window_keeps_the_last_losses() -> None:
    before, now = Health(6.0, 5), Health(6.0, 3)
    for loss in (1.0, 2.0, 3.0, 4.0, 5.0):
        before.spikes.accepts(loss)
    now.load_state_dict(before.state_dict())
    assert list(now.spikes.losses) == [3.0, 4.0, 5.0]


def test_several_processes_are_refused() -> None:
    class Trainer:
        world_size, barebones = 2, False

    with pytest.raises(UserError, match="one process only"):
        Health(skip_spikes=6).setup(Trainer(), module_of("pretrain"), "fit")  # type: ignore[arg-type]
    Health().setup(Trainer(), module_of("pretrain"), "fit")  # type: ignore[arg-type]
