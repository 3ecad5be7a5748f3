"""scripts/export.py: a file to hand over that does all that a trained model can do."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import export
import pytest
import torch
from conftest import Command, Configs, Files, Trained

import lit_sft
from lit_sft.checkpoints import resolve
from lit_sft.errors import UserError

TEXTS = ["the owl near the oak", "a ship on the sea", "nothing known"]


@pytest.fixture
def handed_over(trained: Trained, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["export.py", str(trained.finetune), "model.ckpt"])
    export.main()
    return workplace / "model.ckpt"


def test_the_file_predicts_tests_and_starts_runs(
    handed_over: Path, trained: Trained, files: Files, cli: Command, configs: Configs
) -> None:
    assert lit_sft.load(handed_over).predict(TEXTS) == lit_sft.load(trained.finetune).predict(TEXTS)
    folder = shutil.copytree(trained.finetune, handed_over.parent / "run")
    tests = [cli("test", "--ckpt_path", path, "--data.test", files.test) for path in (handed_over, folder)]
    assert [test.code for test in tests] == [0, 0]
    mine, theirs = (re.findall(r"test/(\w+) +│ +([\d.]+)", test.out) for test in tests)
    assert mine == theirs
    assert "macro_f1" in dict(mine)
    told, other = (re.findall(r"^test: accuracy 0.\d+ \[.*", test.log, re.MULTILINE) for test in tests)
    assert told == other != []  # with intervals
    assert f"{handed_over} is in no run's folder: nothing is written" in tests[0].log
    begun = cli("fit", "--config", configs.finetune, "--model.init_from", handed_over, "--trainer.fast_dev_run", "true")
    assert begun.code == 0


def test_without_data_it_asks_for_those_that_are_measured(handed_over: Path, cli: Command) -> None:
    for command, split in (("test", "test"), ("validate", "val")):
        done = cli(command, "--ckpt_path", handed_over)
        assert (done.code, f"names no data: give --data.{split} a file" in done.err) == (2, True)


def test_a_place_that_cant_be_written_to_is_told_alone(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't be written: [^;]*$"):  # and not how a training would go on
        export.write_exported(resolve(str(trained.finetune), "ckpt_path"), tmp_path)


def test_the_place_of_a_tokenizer_is_not_handed_over() -> None:
    places = ("/home/me/run/tokenizer.json", "run/tokenizer.json", "~/tokenizer.json")
    for given, kept in (*((place, "tokenizer.json") for place in places), ("word", "word")):
        entries = {"state_dict": {}, "lit_sft": {"config": {"data": {"tokenizer": given}, "model": {}}, "ranks": []}}
        assert export.exported(entries)["lit_sft"]["config"]["data"] == {"tokenizer": kept}


def test_it_holds_no_optimizer_and_no_path_and_no_run_goes_on_from_it(
    handed_over: Path, files: Files, cli: Command, configs: Configs
) -> None:
    whole = handed_over.read_bytes()
    assert b"exp_avg" not in whole
    assert str(files.train).encode() not in whole
    weights = torch.load(handed_over, weights_only=True)["state_dict"].values()
    assert len(whole) < 1.2 * sum(w.numel() * w.element_size() for w in weights) + 100_000
    resumed = cli("fit", "--config", configs.finetune, "--ckpt_path", handed_over)
    assert (resumed.code, "can't go on from it" in resumed.err) == (2, True)
