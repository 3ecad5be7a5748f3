"""The READMEs' examples run as they stand."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Command, Files, read
from kill import logged
from readmes import ROOT, block
from test_adversarial import sharp
from toy_network import Batch, batch

from lit_sft.objectives import Mixed


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
    # beside one of the package's own, each is built with its own encoder
    assert cli("fit", *tiny(files, "finetune"), "--name", "plain").code == 0
    both = "logs/fine/version_0,logs/plain/version_0"
    assert cli("test", "--ckpt_path", both, "--model.encoder", "my_encoder.GRUEncoder").code == 0
    assert len(read(Path("logs/fine/version_0/test-ensemble.json"))["members"]) == 2


def test_your_own_objective_changes_the_training_and_as_a_term_in_the_same_way(
    cli: Command, files: Files, example: Callable[[str], None]
) -> None:
    example("my_objective.py")
    example("my_term.py")
    small = ["--model.encoder.hidden_size", "12", "--model.encoder.embedding_size", "8"]
    small += ["--trainer.log_every_n_steps", "1", "--trainer.max_epochs", "3"]
    small += ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "0.03"]
    term = {"class_path": "my_term.ConfidencePenalty", "init_args": {"weight": 0.2}}
    mixed = {"class_path": "lit_sft.objectives.Mixed", "init_args": {"terms": [term]}}
    own = ["--model.objective", "my_objective.ConfidencePenalty", "--model.objective.weight", "0.2"]
    losses, curves = {}, {}
    for name, objective in (("plain", []), ("own", own), ("term", ["--model.objective", json.dumps(mixed)])):
        assert cli("fit", *tiny(files, "finetune"), *objective, *small, "--name", name).code == 0
        losses[name] = read(Path(f"logs/{name}/version_0/metrics.json"))["val"]["loss"]
        curves[name] = logged(Path(f"logs/{name}/version_0"))
    for name in ("own", "term"):  # the class needs no name again
        assert cli("test", "--ckpt_path", f"logs/{name}/version_0").code == 0
        assert "test" in read(Path(f"logs/{name}/version_0/metrics.json"))

    plain, loss, supervised, entropy = (
        np.array(list(curves[name][f"train/{tag}"].values()))
        for name, tag in (("plain", "loss"), ("own", "loss"), ("own", "supervised"), ("own", "entropy"))
    )
    assert loss == pytest.approx(supervised - 0.2 * entropy, abs=1e-6)
    assert entropy.min() > 0
    assert supervised[0] == plain[0]  # the same weights, batch and masks
    assert np.abs(supervised - plain).max() > 1e-3
    assert abs(losses["own"] - losses["plain"]) > 1e-3
    assert losses["term"] == pytest.approx(losses["own"], rel=1e-5)


def test_your_own_objective_and_term_are_means_over_documents_by_which_processes_weigh_them(
    example: Callable[[str], None],
) -> None:
    """The last row stands for no document, as where several processes share fewer than they are."""
    example("my_objective.py")
    example("my_term.py")
    own = import_module("my_objective").ConfidencePenalty(0.2)
    network, documents = sharp().eval(), batch()
    documents.labels[3], documents.indices[3] = -1, -1
    there = Batch(**{name: value[:3] for name, value in vars(documents).items() if name != "first"})
    for objective in (own, Mixed([import_module("my_term").ConfidencePenalty(0.2)])):
        found, expected = (objective(network, {"labeled": given}, None) for given in (documents, there))
        torch.testing.assert_close(found.total, expected.total)
        assert found.weight == expected.weight == 3
        assert all(count == 3 for _, count in found.shares)


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
        assert cli("fit", "--config", str(ROOT / "configs" / "own" / f"{stage}.yaml"), *fast).code == 0
