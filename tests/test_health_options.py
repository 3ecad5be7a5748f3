"""The options of ``health`` from the command line: each matters, and what a user sees when a run goes wrong."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Configs, Fit, made, read

from lit_sft.callbacks import Health
from lit_sft.evaluation.metrics import ClassificationMetrics
from lit_sft.models import LSTMState, Network
from lit_sft.objectives import Loss, Supervised

RUN = Path("logs/tiny-finetune/version_0")
BATCHES = 15  # of an epoch


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """``plant(batch, factor)``: what the next run multiplies the loss of one of its batches with."""
    plain = Supervised.__call__

    def call(at: int, factor: float) -> None:
        calls = iter(range(10**6))

        def sick(self: Supervised, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
            loss = plain(self, network, batch, state)
            loss.total = loss.total * (factor if next(calls) == at else 1.0)
            return loss

        monkeypatch.setattr(Supervised, "__call__", sick)

    return call


def test_a_run_stopped_by_nan_tells_where_and_how_to_go_on(fit: Fit, plant: Callable[[int, float], None]) -> None:
    plant(BATCHES + 7, math.nan)
    result = fit("--trainer.max_epochs", "3")
    assert result.code == 3
    (line,) = [line for line in result.err.splitlines() if line.startswith("lit_sft: error: ")]
    last = re.escape(f"{RUN}/checkpoints/last.ckpt")
    where = (
        rf"lit_sft: error: step {BATCHES + 7} \(epoch 1, batch 7\): the loss is nan; labeled documents \d+ \(.*more; "
    )
    way = rf"{last} keeps the weights after {BATCHES} steps: go on with --ckpt_path last and a lower "
    assert re.fullmatch(where + ".*" + way + r"--model\.optimizer\.lr \(now 0\.03\)", line)


def test_a_recipe_whose_second_stage_is_sick_ends_with_3_and_goes_on_with_a_lower_rate(
    fit_recipe: Fit, calls: list[list[str]], plant: Callable[[int, float], None], begun: list[int]
) -> None:
    run = Path("logs/tiny/version_0")
    plant(BATCHES + 7, math.nan)  # the pretraining has another objective
    result = fit_recipe("--trainer.max_epochs", "3")
    assert result.code == 3
    assert [command[0] for command in calls] == ["fit", "fit"]
    assert f"{run}/finetune/checkpoints/last.ckpt keeps the weights after {BATCHES} steps" in result.err
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "finetune", "pretrain"]
    kept = {path: path.stat().st_mtime_ns for path in (run / "pretrain").rglob("*")}
    assert run / "pretrain/metrics.json" in kept

    plant(-1, 1.0)
    begun.clear()
    result = fit_recipe("--trainer.max_epochs", "3", "--ckpt_path", "last", "--model.optimizer.lr", "0.01")
    assert result.code == 0
    assert [command[0] for command in calls] == ["fit", "test"]
    assert begun == [BATCHES]
    assert "resumed with changed options: lr: 0.03 -> 0.01" in result.log
    assert read(run / "finetune/metrics.json")["steps"] == 3 * BATCHES
    assert "test" in read(run / "metrics.json")
    assert {path: path.stat().st_mtime_ns for path in (run / "pretrain").rglob("*")} == kept


def test_a_run_stopped_before_its_first_checkpoint_keeps_its_folder(
    fit: Fit, plant: Callable[[int, float], None]
) -> None:
    plant(3, math.inf)
    result = fit("--trainer.log_every_n_steps", "1")
    assert result.code == 3
    assert "step 3 (epoch 0, batch 3): the loss is inf" in result.err
    assert "there is no checkpoint yet: start again with a lower --model.optimizer.lr (now 0.03)" in result.err
    assert (RUN / "config.yaml").is_file()
    assert list(RUN.glob("events*"))


def skips(fit: Fit, plant: Callable[[int, float], None], *flags: str) -> bool:
    plant(12, 50.0)
    result = fit(*flags)
    assert result.code == 0, result.err
    assert ("step 12 (epoch 0, batch 12) skipped: the loss" in result.log) == (" skipped: " in result.log)
    return " skipped: " in result.log


def collapses(fit: Fit, *flags: str) -> str | None:
    """The step at which a run that always predicts one class stops."""
    result = fit("--trainer.max_epochs", "5", *flags)
    assert result.code == (3 if "collapse" in result.err else 0)
    found = re.search(r"error: step (\d+): a collapse to one class", result.err)
    return found and found[1]


def test_every_option_matters(
    fit: Fit, plant: Callable[[int, float], None], configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(inspect.signature(Health).parameters) == {"skip_spikes", "spike_window", "collapse_patience"}
    window = ("--health.spike_window", "8")
    assert not skips(fit, plant)
    assert skips(fit, plant, "--health.skip_spikes", "6", *window)
    assert not skips(fit, plant, "--health.skip_spikes", "6")  # the window is never full
    assert not skips(fit, plant, "--health.skip_spikes", "1e6", *window)
    plant(-1, 1.0)
    monkeypatch.setattr(ClassificationMetrics, "collapsed_to", lambda self: "sea")
    monkeypatch.setattr("lit_sft.callbacks.health.NO_WORSE", 0.0)  # however good the model is
    assert collapses(fit) == str(3 * BATCHES)
    assert collapses(fit, "--health.collapse_patience", "1") == str(BATCHES)
    assert collapses(fit, "--health.collapse_patience", "0") is None
    options = yaml.safe_load(configs.finetune.read_text())
    configs.finetune.write_text(yaml.safe_dump({**options, "health": {"collapse_patience": 2}}))
    assert collapses(fit) == str(2 * BATCHES)


@pytest.mark.parametrize("flag", ["skip_spikes=-1", "spike_window=1", "collapse_patience=-2"])
def test_values_out_of_range_are_named(flag: str, fit: Fit) -> None:
    name, value = flag.split("=")
    result = fit(f"--health.{flag}")
    assert result.code == 2
    assert re.search(rf"health\.{name}={value}(\.0)? must be at least ", result.err)
    assert made() == []
