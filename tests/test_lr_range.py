"""The range test of learning rates: its suggestions on a made-up curve, and the command on the small corpus."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Configs
from lr_range import main, read, smoothed, suggestions, table
from one_line import in_one_line

RATES = np.geomspace(1e-4, 1.0, 120)


def falls_and_grows(rates: np.ndarray) -> np.ndarray:
    """Fastest down at 0.003, where the logistic curve is steepest; then up."""
    return 2 + 3 / (1 + (rates / 3e-3) ** 2) + (rates / 0.1) ** 3


def test_the_suggestions_are_those_of_a_slow_computation() -> None:
    losses = falls_and_grows(RATES) + 0.05 * np.random.default_rng(0).standard_normal(len(RATES))
    mean = []
    for step in range(len(losses)):
        near = [loss for i, loss in enumerate(losses) if abs(i - step) <= 6]  # a tenth of the 120 steps
        mean.append(sum(near) / len(near))
    np.testing.assert_allclose(smoothed(losses), mean, rtol=1e-12)
    lowest = mean.index(min(mean))
    slopes = {}
    for step in range(1, lowest + 1):
        slopes[step] = (mean[step + 1] - mean[step - 1]) / math.log(RATES[step + 1] / RATES[step - 1])
    steepest = min(slopes, key=slopes.__getitem__)
    assert suggestions(RATES, np.array(mean)) == pytest.approx((RATES[steepest], RATES[lowest]))
    assert 2e-3 < RATES[steepest] < 5e-3  # where the curve without noise has it: 0.003
    exact = suggestions(RATES, falls_and_grows(RATES))
    assert exact[0] == pytest.approx(3e-3, rel=0.1)
    assert exact[1] == pytest.approx(RATES[falls_and_grows(RATES).argmin()])


def test_a_curve_that_has_not_turned_is_told() -> None:
    told = table(RATES, falls_and_grows(RATES))
    assert "at a rate of 0.003\n" in told
    assert "higher --max_lr" not in told
    assert "higher --max_lr" in table(RATES[:60], falls_and_grows(RATES[:60]))


def test_a_curve_of_noise_is_told() -> None:
    noise = np.random.default_rng(1).standard_normal(len(RATES))
    assert "is noise" not in table(RATES, falls_and_grows(RATES) + 0.05 * noise)
    assert "is noise" in table(RATES, 0.7 + 0.05 * noise + (RATES / 0.1) ** 3)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["lr_range.py", *map(str, arguments)])
    in_one_line(main)  # as the script does


def test_the_command_trains_under_a_rising_rate(
    configs: Configs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over several epochs of a few steps, with rates by layer, though the config would stop early."""
    options = yaml.safe_load(configs.finetune.read_text())
    options["model"] |= {"layer_decay": 0.5, "schedule": {"class_path": "WarmupCosine", "init_args": {"warmup": 0.2}}}
    options |= {"early_stopping": {"monitor": "val/macro_f1", "patience": 1}}
    configs.finetune.write_text(yaml.safe_dump(options))
    call(monkeypatch, "--config", configs.finetune, "--steps", 40, "--min_lr", 1e-3, "--max_lr", 0.5)
    run = Path("logs/lr_range/version_0")
    rates, losses = read(run)
    assert rates == pytest.approx([0.5 * 2e-3 ** (1 - step / 39) for step in range(40)], rel=1e-6)
    assert losses[0] == pytest.approx(math.log(3), abs=0.3)
    assert losses.min() < 0.9 * losses[0]
    assert table(rates, losses) in capsys.readouterr().out
    assert (run / "lr_range.png").stat().st_size > 5_000
    assert not (run / "checkpoints").exists()


def test_a_loss_that_is_no_number_ends_the_curve_and_is_no_mistake(
    configs: Configs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sgd = ("--model.optimizer", "torch.optim.SGD", "--trainer.gradient_clip_val", 0)
    call(monkeypatch, "--config", configs.pretrain, "--steps", 100, "--max_lr", 1e30, *sgd)
    told = capsys.readouterr()
    assert "the rate has become too high" in told.out
    rates, losses = read(Path("logs/lr_range/version_0"))
    assert 20 <= len(rates) < 100
    assert np.isfinite(losses).all()
    with pytest.raises(SystemExit, match="steps with a finite loss are no curve"):
        call(monkeypatch, "--config", configs.pretrain, "--steps", 5)


def test_mistakes_are_told_and_leave_nothing(
    configs: Configs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="is a recipe: give the config of one of its stages"):
        call(monkeypatch, "--config", configs.recipe)
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, "--config", configs.finetune, "--model.pooling", "the sum")
    told = capsys.readouterr()
    assert "--model.pooling the sum" in told.err
    assert "--model.pooling 'the sum'" in told.out  # the command, as a shell takes it
    assert not list(Path().glob("logs/lr_range/*"))
