"""The README's examples run as they stand."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Command, Files

README = Path(__file__).parents[1] / "README.md"


def block(first_line: str) -> str:
    """The fenced block that starts with a line, without the fence."""
    found = re.search(rf"```\w*\n({re.escape(first_line)}.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"README.md has no block that starts with {first_line!r}"
    return found[1]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write an example's file where Python finds it."""

    def write(name: str) -> None:
        (tmp_path / name).write_text(block(f"# {name}"), encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop(name.removesuffix(".py"), None)

    return write


def tiny(files: Files, stage: str) -> list[str]:
    flags = {"model.stage": stage, "data.labeled": files.train, "data.test": files.test, "data.vocab_size": 300}
    flags |= {"trainer.max_epochs": 1, "trainer.enable_progress_bar": False, "data.batch_size": 4, "data.bptt": 16}
    return [f"--{name}={value}" for name, value in flags.items()]


def test_your_own_encoder_pretrains_and_fine_tunes(cli: Command, files: Files, example: Callable[[str], None]) -> None:
    example("my_encoder.py")
    encoder = ["--model.encoder", "my_encoder.GRUEncoder", "--model.encoder.size", "16"]
    assert cli("fit", *tiny(files, "pretrain"), *encoder, "--name", "pre").code == 0
    start = ["--model.init_from", "logs/pre/version_0"]
    assert cli("fit", *tiny(files, "finetune"), *encoder, *start, "--name", "fine").code == 0
    assert cli("test", "--ckpt_path", "logs/fine/version_0", "--model.encoder", "my_encoder.GRUEncoder").code == 0
    assert Path("logs/fine/version_0/metrics.json").is_file()


def test_your_own_objective_trains(cli: Command, files: Files, example: Callable[[str], None]) -> None:
    example("my_objective.py")
    objective = ["--model.objective", "my_objective.ConfidencePenalty", "--model.objective.weight", "0.2"]
    small = ["--model.encoder.hidden_size", "12", "--model.encoder.embedding_size", "8"]
    assert cli("fit", *tiny(files, "finetune"), *objective, *small, "--name", "fine").code == 0
    assert Path("logs/fine/version_0/metrics.json").is_file()


def test_your_own_term_trains_to_what_the_objective_does(
    cli: Command, files: Files, example: Callable[[str], None]
) -> None:
    example("my_objective.py")
    example("my_term.py")
    small = ["--model.encoder.hidden_size", "12", "--model.encoder.embedding_size", "8"]
    term = {"class_path": "my_term.ConfidencePenalty", "init_args": {"weight": 0.2}}
    mixed = {"class_path": "lit_sft.objectives.Mixed", "init_args": {"terms": [term]}}
    own = ["--model.objective", "my_objective.ConfidencePenalty", "--model.objective.weight", "0.2"]
    losses = []
    for name, objective in (("term", ["--model.objective", json.dumps(mixed)]), ("own", own)):
        assert cli("fit", *tiny(files, "finetune"), *objective, *small, "--name", name).code == 0
        losses.append(json.loads(Path(f"logs/{name}/version_0/metrics.json").read_text())["val"]["loss"])
    given = ["--ckpt_path", "logs/term/version_0", "--model.objective", json.dumps(mixed)]
    assert "could name code" in cli("test", *given[:2]).err  # a class that the checkpoint alone names
    assert cli("test", *given).code == 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_adversarial_example_trains(cli: Command, files: Files) -> None:
    Path("mixed.yaml").write_text(block("# in a fine-tuning's config"), encoding="utf-8")
    small = ["--model.encoder.hidden_size", "12", "--model.encoder.embedding_size", "8"]
    steps = ["--trainer.limit_train_batches", "3"]
    assert cli("fit", "--config", "mixed.yaml", *tiny(files, "finetune"), *small, *steps, "--name", "mixed").code == 0
    assert Path("logs/mixed/version_0/metrics.json").is_file()


def test_your_own_data_in_three_lines_of_yaml(cli: Command, files: Files) -> None:
    config = yaml.safe_load(block("# configs/mine.yaml"))
    assert list(config) == ["data"]
    assert len(config["data"]) == 3
    mine = {"labeled": files.train, "unlabeled": files.unlabeled, "test": files.test}
    assert set(config["data"]) == set(mine)
    Path("mine.yaml").write_text(yaml.safe_dump({"data": {k: str(v) for k, v in mine.items()}}))
    fast = ["--config", "mine.yaml", "--trainer.fast_dev_run", "true", "--data.vocab_size", "300"]
    for stage in ("pretrain", "finetune"):
        assert cli("fit", "--config", str(README.parent / "configs" / "own" / f"{stage}.yaml"), *fast).code == 0
