"""Checkpoints that are valid files, but lack something or hold something else: told in one line by every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, Configs, Files, Trained
from refusals import commands, refused

from lit_sft.checkpoints import read_checkpoint
from lit_sft.errors import UserError
from lit_sft.resume import read_resumable

Content = dict[str, Any]
Edited = Callable[[Callable[[Content], Any]], Path]


@pytest.fixture
def edited(trained: Trained, tmp_path: Path) -> Edited:
    def edit(change: Callable[[Content], Any]) -> Path:
        content = torch.load(trained.finetune / "checkpoints" / "last.ckpt", weights_only=True)
        change(content)
        torch.save(content, tmp_path / "edited.ckpt")
        return tmp_path / "edited.ckpt"

    return edit


def without(*names: str) -> Callable[[Content], Any]:
    return lambda content: [content.pop(name) for name in names]


def rank(content: Content) -> Content:
    found: Content = content["lit_sft"]["ranks"][0]
    return found


MISSING = {
    "loops": [without("loops"), lambda c: c.update(loops={}), lambda c: c["loops"].update(fit_loop={})],
    "optimizer_states": [without("optimizer_states"), lambda c: c["optimizer_states"].clear()],
    "lr_schedulers": [without("lr_schedulers"), lambda c: c["lr_schedulers"].clear()],
    "callbacks": [without("callbacks"), lambda c: c["callbacks"].update(RunRecord={})],
    "TextDataModule": [without("TextDataModule")],
    "global_step": [without("global_step")],
    "ranks": [
        lambda c: c["lit_sft"].pop("ranks"),
        lambda c: c["lit_sft"]["ranks"].clear(),
        lambda c: rank(c).pop("random"),
        lambda c: rank(c)["random"].pop("torch"),
        lambda c: rank(c).update(state="x"),
    ],
    "optimizer_states, lr_schedulers, callbacks": [without("optimizer_states", "lr_schedulers", "callbacks")],
}


@pytest.mark.parametrize("entry", MISSING)
def test_a_run_goes_on_only_from_a_file_with_all_it_needs(entry: str, edited: Edited) -> None:
    for change in MISSING[entry]:
        path = edited(change)
        with pytest.raises(UserError, match=f"can't go on from it, its {entry} .*--model.init_from .*edited.ckpt"):
            read_resumable(path)
        read_checkpoint(path)  # its weights are whole


def test_a_file_of_weights_alone_is_good_for_anything_but_going_on(
    edited: Edited, cli: Command, configs: Configs, files: Files
) -> None:
    given = commands(edited(without("optimizer_states", "lr_schedulers", "callbacks", "loops")), configs, files)
    refused(cli(*given["fit"]), "optimizer_states", "--model.init_from")
    for name in ("test", "predict", "init_from"):
        assert cli(*given[name]).code == 0


def smaller_vocabulary(content: Content) -> None:
    tokenizer = json.loads(content["lit_sft"]["tokenizer"])
    model = tokenizer["model"]
    model["merges"] = model["merges"][:-5]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < len(model["vocab"]) - 5}
    content["lit_sft"]["tokenizer"] = json.dumps(tokenizer)


WRONG: dict[str, tuple[Callable[[Content], Any], str]] = {
    "tokenizer": (lambda c: c["lit_sft"].update(tokenizer=c["lit_sft"]["tokenizer"][:-40]), "damaged checkpoint: its"),
    "vocabulary": (smaller_vocabulary, "295, 8"),
    "shape": (lambda c: c["state_dict"].update({"network.encoder.embedding.weight": torch.zeros(3, 3)}), "3, 3"),
    "weight": (lambda c: c["state_dict"].pop("network.encoder.embedding.weight"), "embedding.weight"),
    "weights": (lambda c: c["state_dict"].clear(), "its state_dict can't be used"),
    "name": (lambda c: c["state_dict"].update({3: torch.zeros(1)}), "its state_dict can't be used"),
}


@pytest.mark.parametrize("what", WRONG)
def test_every_command_tells_what_is_wrong_in_a_valid_file(
    what: str, edited: Edited, cli: Command, configs: Configs, files: Files
) -> None:
    change, part = WRONG[what]
    for arguments in commands(edited(change), configs, files).values():
        refused(cli(*arguments), part)


REFUSED: dict[str, tuple[Callable[[Content], Any], str]] = {
    "version": (without("pytorch-lightning_version"), "KeyError: 'pytorch-lightning_version'"),
    "groups": (lambda c: c["optimizer_states"][0]["param_groups"].pop(), "different number of parameter groups"),
    "state": (lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(2)), "exp_avg is (2,)"),
    "random": (lambda c: rank(c)["random"].update(torch=torch.zeros(3, dtype=torch.uint8)), "RNG state size"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_lightning_and_torch_refuse_is_told_in_one_line(
    what: str, edited: Edited, cli: Command, configs: Configs
) -> None:
    change, part = REFUSED[what]
    result = cli("fit", "--config", configs.finetune, "--ckpt_path", edited(change), "--trainer.max_epochs", 3)
    refused(result, "checkpoint", part)
