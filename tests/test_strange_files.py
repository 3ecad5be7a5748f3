"""Files that may come from a stranger are data: a pickle in any of them isn't loaded, nothing they name is imported."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Command, Configs, Files, Trained
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from refusals import commands, refused

from lit_sft import load
from lit_sft.atomic import write_atomically
from lit_sft.checkpoints import resolve
from lit_sft.data.tokens import read_tokens
from lit_sft.errors import UserError
from lit_sft.runs import read_record


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = str(sprung)

    def __reduce__(self) -> Any:
        return open, (self.sprung, "w")


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """The file that is there when a bomb went off, or the module ``evil`` was imported."""
    return tmp_path / "sprung"


@pytest.fixture
def bomb(sprung: Path) -> bytes:
    """A pickle that goes off: so it is shown first."""
    content = pickle.dumps(Bomb(sprung))
    pickle.loads(content).close()
    assert sprung.exists()
    sprung.unlink()
    return content


@pytest.fixture
def evil(sprung: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "evil.py").write_text(f"open({str(sprung)!r}, 'w').close()\nclass Encoder: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return sprung


@pytest.mark.parametrize("entry", ["lit_sft", "whole", "plain"])
def test_a_checkpoint(
    entry: str, bomb: bytes, sprung: Path, trained: Trained, cli: Command, configs: Configs, files: Files
) -> None:
    path = Path("bomb.ckpt")
    content = torch.load(trained.finetune / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(Bomb(sprung) if entry == "whole" else {**content, entry: Bomb(sprung)}, path)
    if entry == "plain":
        path.write_bytes(bomb)
    for arguments in commands(path, configs, files).values():
        refused(cli(*arguments), "bomb.ckpt: ", "" if entry == "plain" else "nothing of it was run")
    with pytest.raises(UserError, match=r"bomb\.ckpt"):
        load(path)
    folder = Path("run")
    shutil.copytree(trained.finetune, folder)
    (folder / "metrics.json").unlink()
    for name in ("last.ckpt", "last-1.ckpt"):
        shutil.copy(path, folder / "checkpoints" / name)
    refused(cli("fit", "--config", configs.finetune, "--run_dir", folder, "--ckpt_path", "last"), "no checkpoint to go")
    assert not sprung.exists()


def test_lightnings_own_read_of_a_checkpoint_takes_data_only(
    trained: Trained, cli: Command, configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says; and a user's ``--weights_only`` is no option."""
    seen: list[Any] = []
    read = TorchCheckpointIO.load_checkpoint

    def spy(self: Any, path: Any, map_location: Any = None, weights_only: Any = None) -> Any:
        seen.append(weights_only)
        return read(self, path, map_location, weights_only)

    monkeypatch.setattr(TorchCheckpointIO, "load_checkpoint", spy)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = trained.pretrain / "checkpoints" / "last.ckpt"
    fit = ["fit", "--config", configs.pretrain, "--trainer.max_epochs", 2, "--trainer.limit_train_batches", 2]
    assert cli(*fit, "--ckpt_path", path).code == 0
    run = "logs/tiny-pretrain/version_0"
    assert cli("validate", "--ckpt_path", run).code == 0
    assert cli("test", "--ckpt_path", run).code == 0
    shutil.rmtree("logs")
    assert seen == [True] * 3
    refused(cli("test", "--ckpt_path", path, "--weights_only", "false"), "no option weights_only")


def test_a_class_in_a_checkpoint_that_is_gone_on_with_or_started_from(
    evil: Path, trained: Trained, cli: Command, configs: Configs
) -> None:
    content = torch.load(trained.finetune / "checkpoints" / "last.ckpt", weights_only=True)
    spec = {"class_path": "evil.Encoder", "init_args": {}}
    content["lit_sft"]["config"]["model"] |= {"encoder": spec, "objective": spec, "optimizer": spec}
    content["lit_sft"]["config"]["trainer"] |= {"callbacks": [spec], "logger": spec}
    content["hyper_parameters"] = {"_class_path": "evil.Encoder", "_instantiator": "evil.Encoder"}
    content["datamodule_hyper_parameters"] = content["hyper_parameters"]
    torch.save(content, "class.ckpt")
    fit = ["fit", "--config", configs.finetune, "--trainer.max_epochs", 2]
    refused(
        cli(*fit, "--ckpt_path", "class.ckpt"), "AdamW can't go on with class.ckpt, which keeps the state of Encoder"
    )
    assert cli(*fit, "--model.init_from", "class.ckpt").code == 0
    del content["lit_sft"]["config"]["model"]["optimizer"]
    torch.save(content, "class.ckpt")
    assert cli(*fit, "--trainer.max_epochs", 3, "--ckpt_path", "class.ckpt").code == 0
    assert not evil.exists()


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir [sprung]", "name:evil.Encoder"])
def test_a_config(tag: str, evil: Path, trained: Trained, cli: Command, configs: Configs, tmp_path: Path) -> None:
    text = f"model: !!python/{tag}\n"
    config = tmp_path / "config.yaml"
    config.write_text(text)
    refused(cli("fit", "--config", config), "config.yaml: not valid YAML")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stages:\n  - name: one\n    config: config.yaml\n")
    refused(cli("fit", "--config", recipe), "config.yaml: not valid YAML")
    refused(cli("fit", "--config", configs.finetune, "--data.label_names", f"!!python/{tag}"), "label_names")
    for name in ("config.yaml", "hparams.yaml"):
        folder = tmp_path / name.removesuffix(".yaml")
        shutil.copytree(trained.finetune, folder)
        (folder / name).write_text(text)
        cli("test", "--ckpt_path", folder)
    with pytest.raises(UserError, match=r"config\.yaml: not valid YAML"):
        resolve(tmp_path / "config", "ckpt_path")
    assert not evil.exists()


def test_a_tokenizer_and_a_record(bomb: bytes, sprung: Path, cli: Command, configs: Configs, tmp_path: Path) -> None:
    for content in (bomb, b"!!python/module:evil"):
        tokenizer = tmp_path / "tokenizer.json"
        tokenizer.write_bytes(content)
        refused(cli("fit", "--config", configs.finetune, "--data.tokenizer", tokenizer), "tokenizer.json is not a tok")
        (tmp_path / "metrics.json").write_bytes(content)
        with pytest.raises(UserError, match=r"metrics\.json: not valid JSON"):
            read_record(tmp_path)
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["meta.json", "val/labels.npy"])
def test_prepared_data(name: str, bomb: bytes, sprung: Path, cli: Command, configs: Configs, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    options = yaml.safe_load(configs.finetune.read_text())
    options["data"]["cache_dir"] = str(cache)
    write_atomically(configs.finetune, yaml.safe_dump(options))
    flags = ["--trainer.fast_dev_run", "true"]
    assert cli("fit", "--config", configs.finetune, *flags).code == 0
    (folder,) = (cache / "tokens").iterdir()
    objects = np.array([Bomb(sprung)] * 30, dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "archive.npz", objects, allow_pickle=True)
    contents = [bomb, (tmp_path / "objects.npy").read_bytes(), (tmp_path / "archive.npz").read_bytes(), b"", b"[1]"]
    for content in contents:
        (folder / name).write_bytes(content)
        refused(cli("fit", "--config", configs.finetune, *flags), "delete that folder and run again")
    assert not sprung.exists()


def test_the_types_of_prepared_tokens_are_numbers(tmp_path: Path) -> None:
    for kind in ("O", "V8", "nothing", None, 3):
        (tmp_path / "meta.json").write_text(json.dumps({"dtype": kind, "tokens": 1}))
        with pytest.raises(UserError, match=r"(tokens of|data) type.*: delete that folder"):
            read_tokens(tmp_path)
