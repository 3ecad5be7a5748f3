"""A disk that is full: the run ends in one line, what was saved stays whole, and with room it goes on to the same end.

The limit on a file's size stands for the disk: what is written beyond it fails in the middle, as on a full one.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Command, Configs, Files, Trained
from kill import differences
from lightning.pytorch import Trainer
from processes import start
from refusals import one_line, refused

from lit_sft.callbacks import LastCheckpoint
from lit_sft.checkpoint_io import AtomicCheckpointIO
from lit_sft.errors import UserError
from lit_sft.resume import read_resumable


def limit(size: int) -> None:
    """No file of this process may get longer, that of what it writes to its standard output included."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def full_for_tensorboard() -> None:
    limit(8_000)


def full_at_the_third_save() -> None:
    save, saves = LastCheckpoint.save, []

    def save_or_fail(self: LastCheckpoint, trainer: Trainer) -> None:
        saves.append(self)
        if len(saves) == 3:
            limit(40_000)
        save(self, trainer)

    LastCheckpoint.save = save_or_fail  # type: ignore[method-assign]


def test_a_disk_that_is_full_in_mid_checkpoint(configs: Configs, cli: Command, begun: list[int]) -> None:
    options = yaml.safe_load(configs.finetune.read_text())
    options["saving"] = {"every_steps": 3}
    configs.finetune.write_text(yaml.safe_dump(options))
    whole, cut = Path("logs/whole/version_0"), Path("logs/cut/version_0")
    assert cli("fit", "--config", configs.finetune, "--name", "whole").code == 0
    running = start("fit", "--config", configs.finetune, "--name", "cut", first=full_at_the_third_save)
    code, written = running.wait()
    assert code == 2, written
    assert "Traceback" not in written
    assert written.splitlines()[-1] == (
        f"lit_sft: error: {cut}/checkpoints/last.ckpt: can't be written: File too large; the checkpoints before it "
        "are kept: make room, then go on with --ckpt_path last"
    )
    names = {path.name for path in (cut / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "last-1.ckpt"}
    steps = [read_resumable(cut / "checkpoints" / name).global_step for name in ("last-1.ckpt", "last.ckpt")]
    assert steps == [3, 6]
    assert not (cut / "metrics.json").exists()
    assert cli("fit", "--config", configs.finetune, "--name", "cut", "--ckpt_path", "last").code == 0
    assert begun == [0, 6]
    assert differences(whole, cut) == []


def test_a_disk_that_is_full_for_the_figures_of_tensorboard(configs: Configs) -> None:
    """Its thread meets the full disk, and the run ends with the next figure: without a traceback, and at all."""
    flags = ["--trainer.log_every_n_steps", 1, "--trainer.max_epochs", 4, "--trainer.check_val_every_n_epoch", 4]
    code, written = start("fit", "--config", configs.finetune, *flags, first=full_for_tensorboard).wait()
    assert code == 2, written
    assert "Traceback" not in written
    assert "can't be written: File too large; there is no checkpoint to go on from yet" in written.splitlines()[-1]
    assert not Path("logs/tiny-finetune").exists()


def failing(*, at: str, times: int) -> Callable[..., Any]:
    """``os.fsync`` or ``Path.replace``, that fails from its ``times``-th call on."""
    module, name = (os, "fsync") if at == "fsync" else (Path, "replace")
    real, calls = getattr(module, name), []

    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) >= times:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    return call


@pytest.mark.parametrize(("at", "times"), [("fsync", 1), ("replace", 1), ("replace", 2)])
def test_a_save_that_fails_leaves_what_was_there(
    at: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path, {"keep": 2})
    with monkeypatch.context() as patch:
        patch.setattr(os if at == "fsync" else Path, at, failing(at=at, times=times))
        with pytest.raises(UserError, match="No space left on device; the checkpoints before it are kept"):
            io.save_checkpoint({"step": 2}, path, {"keep": 2})
    (left,) = tmp_path.iterdir()
    assert torch.load(left, weights_only=True) == {"step": 1}


def test_a_first_save_that_fails_promises_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(at="fsync", times=1))
    with pytest.raises(UserError, match=r"last\.ckpt: can't be written: .*; there is no checkpoint to go on from yet"):
        AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["config.yaml", "tokenizer.json", "best.ckpt", "metrics.json"])
def test_a_disk_that_is_full_at_any_file_of_a_run(
    file: str, configs: Configs, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == file:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        result = cli("fit", "--config", configs.finetune)
    one_line(result, f"{file}: can't be written: No space left on device")
    kept = file == "metrics.json"
    assert Path("logs/tiny-finetune/version_0/checkpoints/last.ckpt").is_file() == kept
    assert {path.name for path in Path("logs").rglob(".*")} <= {".lock"}
    if kept:
        assert cli("fit", "--config", configs.finetune, "--ckpt_path", "last").code == 0
        assert Path("logs/tiny-finetune/version_0/metrics.json").is_file()


def test_a_prediction_that_does_not_fit_on_the_disk(trained: Trained, files: Files, cli: Command) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    arguments = ["predict", "--ckpt_path", trained.finetune, "--input", files.unlabeled, "--output", "/dev/full"]
    refused(cli(*arguments), "can't be written: No space left on device")
