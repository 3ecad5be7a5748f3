"""What a command leaves that is the user's mistake, and every command that reads a checkpoint."""

from __future__ import annotations

from pathlib import Path

from conftest import Configs, Files, Result


def one_line(result: Result, *parts: str) -> None:
    """A user's mistake, told in one line that has these parts, and exit code 2."""
    assert result.code == 2, result.log
    assert result.err.startswith("lit_sft: error: ")
    assert result.err.count("\n") == 1
    for part in parts:
        assert part in result.err, result.err


def refused(result: Result, *parts: str) -> None:
    """That, and no run left behind."""
    one_line(result, *parts)
    assert list(Path().glob("logs/*/*")) == []


def commands(path: Path, configs: Configs, files: Files) -> dict[str, list[object]]:
    """The arguments of each; ``fit`` goes on from the checkpoint, ``init_from`` starts from it."""
    fit = ["fit", "--config", configs.finetune]
    return {
        "fit": [*fit, "--ckpt_path", path],
        "init_from": [*fit, "--model.init_from", path],
        "test": ["test", "--ckpt_path", path],
        "validate": ["validate", "--ckpt_path", path],
        "predict": ["predict", "--ckpt_path", path, "--input", files.unlabeled, "--output", "out.jsonl"],
    }
