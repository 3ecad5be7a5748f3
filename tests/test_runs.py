"""Run folders: their names, how they are made and found, and what is written into them."""

import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import Configs
from lightning.pytorch.utilities import rank_zero_only
from processes import start, wait_all

from lit_sft.errors import UserError
from lit_sft.measured_data import TESTED, same_data
from lit_sft.runs import (
    LOGS,
    RECORD,
    SHARED,
    discard_run,
    held,
    named_run,
    new_run,
    package_versions,
    read_record,
    run_folder_of,
    run_name,
    start_run,
    unfinished_run,
    versions,
    write_record,
)
from lit_sft.written_results import record_of_test, write_test


def test_a_process_that_the_first_did_not_start_needs_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.delenv(SHARED, raising=False)
    with pytest.raises(UserError, match="give --run_dir"):
        start_run("a", None)
    assert start_run("a", "given") == (Path("given"), [])


def test_the_first_process_of_a_second_machine_is_not_the_run_s_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_RANK", "1")  # of Lightning's own launcher, which knows no rank before there is a Trainer
    monkeypatch.delenv(SHARED, raising=False)
    with pytest.raises(UserError, match="give --run_dir"):
        start_run("a", None)
    with held(tmp_path), held(tmp_path):  # by the first alone
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        ("configs/quickstart.yaml", None, "quickstart"),
        ("configs/quickstart/pretrain.yaml", None, "quickstart-pretrain"),
        ("/somewhere/configs/imdb/finetune.yaml", None, "imdb-finetune"),
        ("elsewhere/mine.yaml", None, "mine"),
        ("my own config.yaml", None, "my_own_config"),
        (None, None, "run"),
        ("configs/quickstart.yaml", "other_1.2=x", "other_1.2=x"),
    ],
)
def test_a_run_is_named_by_option_or_config(config: str | None, name: str | None, expected: str) -> None:
    assert run_name(config, name) == expected


@pytest.mark.parametrize("name", ["a/b", "../a", ".hidden", "", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        run_name(None, name)


def test_versions_are_counted_on_and_sorted_by_number(workplace: Path) -> None:
    made = [new_run("a").name for _ in range(11)]
    assert made == [f"version_{i}" for i in range(11)]
    (LOGS / "a" / "version_x").mkdir()
    assert [folder.name for folder in versions(LOGS / "a")] == made


def test_runs_started_at_once_get_a_folder_each(workplace: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_run("a"), range(24)))
    assert len(set(made)) == 24


def test_a_folder_that_can_not_be_made_is_the_users_mistake(workplace: Path) -> None:
    LOGS.write_text("x")
    with pytest.raises(UserError, match="can't make a run folder"):
        new_run("a")
    with pytest.raises(UserError, match="--run_dir"):
        named_run(LOGS / "a")


def test_the_newest_unfinished_run_is_found(workplace: Path) -> None:
    with pytest.raises(UserError, match="no run there"):
        unfinished_run("a")
    for version in range(4):
        folder = new_run("a")
        if version != 3:  # the last one was ended before it began
            (folder / "config.yaml").write_text("")
    write_record(LOGS / "a" / "version_2" / RECORD, {})
    assert unfinished_run("a").name == "version_1"
    for version in range(2):
        write_record(LOGS / "a" / f"version_{version}" / RECORD, {})
    with pytest.raises(UserError, match="every run there is finished"):
        unfinished_run("a")


def test_a_discarded_run_leaves_nothing_unless_it_has_a_checkpoint(workplace: Path) -> None:
    folder = new_run("a")
    (folder / "config.yaml").write_text("")
    (folder / "checkpoints").mkdir()
    discard_run(folder, [folder, folder.parent])
    assert not (LOGS / "a").exists()
    trained = new_run("b") / "pretrain" / "checkpoints"
    trained.mkdir(parents=True)
    (trained / "last.ckpt").write_text("")
    discard_run(LOGS / "b" / "version_0", [LOGS / "b" / "version_0", LOGS / "b"])
    assert (trained / "last.ckpt").is_file()


def test_another_process_may_discard_the_same_run_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "name" / "version_0"
    (folder / "checkpoints").mkdir(parents=True)
    scandir = os.scandir

    def gone(path: str = ".") -> Any:
        monkeypatch.setattr(os, "scandir", scandir)
        shutil.rmtree(folder)  # as the other process does between two looks
        return scandir(path)

    monkeypatch.setattr(os, "scandir", gone)
    discard_run(folder, [folder, folder.parent])
    assert not folder.exists()


def test_a_checkpoint_knows_its_runs_folder() -> None:
    assert run_folder_of(Path("logs/a/version_0/checkpoints/best.ckpt")) == Path("logs/a/version_0")
    assert run_folder_of(Path("somewhere/best.ckpt")) is None


def test_an_undefined_figure_is_null_and_the_file_is_readable_by_all(tmp_path: Path) -> None:
    members = [{"test": {"auroc": math.nan, "loss": 0.5}}, {"test": {"auroc": 1.0, "loss": math.inf}}]
    given = {"test": {"auroc": math.nan, "loss": 1.5}, "interval": (-math.inf, 2.0), "members": members}
    write_record(tmp_path / RECORD, given)
    assert read_record(tmp_path) == {
        "test": {"auroc": None, "loss": 1.5},
        "interval": [None, 2.0],
        "members": [{"test": {"auroc": None, "loss": 0.5}}, {"test": {"auroc": 1.0, "loss": None}}],
    }
    plain = tmp_path / "plain.txt"
    plain.write_text("x")
    assert (tmp_path / RECORD).stat().st_mode == plain.stat().st_mode


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    assert read_record(tmp_path) == {}
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_record(tmp_path)


class TestFiguresOfATest:
    own: ClassVar = {"test": "test.csv", "max_length": 40}

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "checkpoints").mkdir()
        for name in ("best", "last"):
            (tmp_path / "checkpoints" / f"{name}.ckpt").write_text("")
        write_record(tmp_path / RECORD, {"val": {"loss": 2.0}})
        return tmp_path

    def write(self, folder: Path, checkpoint: str = "best", value: float = 1.0, **data: object) -> Path:
        path, tested = folder / "checkpoints" / f"{checkpoint}.ckpt", {**self.own, **data}
        file = record_of_test(folder, path, same_data(tested, self.own, TESTED), tested)
        write_test(file, {"test": {"loss": value}}, path, tested)
        return file

    def test_the_runs_own_go_into_the_record(self, folder: Path) -> None:
        assert self.write(folder, max_documents=3) == folder / RECORD
        assert read_record(folder) == {"val": {"loss": 2.0}, "test": {"loss": 1.0}}

    def test_those_of_other_data_stand_beside_it(self, folder: Path) -> None:
        assert self.write(folder, test="data/reviews.csv") == folder / "test-reviews.json"
        assert self.write(folder, test=["a.csv", "b.csv"]) == folder / "test-a-b.json"
        assert self.write(folder, max_length=20) == folder / "test-test.json"
        assert self.write(folder, test="hf:a/imdb:plain:test") == folder / "test-imdb-plain-test.json"  # for Windows
        assert self.write(folder, test="elsewhere/reviews.csv") == folder / "test-reviews-2.json"  # nothing is lost
        assert self.write(folder, test="data/reviews.csv", value=3.0) == folder / "test-reviews.json"
        assert json.loads((folder / "test-reviews.json").read_text())["data"]["test"] == "data/reviews.csv"
        assert read_record(folder) == {"val": {"loss": 2.0}}

    def test_two_ways_to_write_a_path_are_the_same_data(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        Path("test.csv").write_text("")
        assert self.write(folder, test=str(folder / "test.csv")) == folder / RECORD

    def test_those_of_many_files_are_not_lost_for_a_long_name(self, folder: Path) -> None:
        many = [f"reviews-of-{number:02}.csv" for number in range(30)]
        first, other = self.write(folder, test=many), self.write(folder, test=["отзывы" * 30 + ".csv"])
        assert first.name.startswith("test-reviews-of-00-reviews-of-01-")
        assert self.write(folder, test=[*many, "more.csv"]).name == f"{first.stem}-2.json"
        assert self.write(folder, test=many) == first
        assert max(len(file.name.encode()) for file in (first, other)) < 230  # a name in the writing is longer

    def test_a_path_that_cannot_be_looked_at_is_told_by_its_name(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.write(folder, label_pattern="(a|b)" * 60) == folder / "test-test.json"  # longer than a path can be

        def closed(_: Path) -> bool:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "exists", closed)
        assert same_data({"test": "secret/a.csv"}, {"test": "secret/a.csv"}, ["test"])

    def test_those_of_the_last_checkpoint_are_not_the_runs(self, folder: Path) -> None:
        assert self.write(folder, checkpoint="last") == folder / "test-last.json"
        assert self.write(folder, checkpoint="last", test="b.csv") == folder / "test-last-b.json"

    def test_a_run_under_way_does_not_become_a_finished_one(self, folder: Path) -> None:
        (folder / RECORD).unlink()
        assert self.write(folder) == folder / "test-best.json"
        assert not (folder / RECORD).exists()


def test_versions_of_what_decides_a_result_are_told() -> None:
    assert {"python", "torch", "lightning", "tokenizers", "sympy", "networkx"} <= set(package_versions())


def test_four_runs_started_at_once(configs: Configs, tmp_path: Path) -> None:
    """Four folders, one cache, and the figures depend on the seed alone."""
    cache = tmp_path / "cache"
    command = ["fit", "--config", configs.finetune, "--name", "four", "--seed_everything"]
    four = [start(*command, seed, environment={"LIT_SFT_CACHE": str(cache)}) for seed in (1, 1, 2, 2)]
    for code, written in wait_all(four):
        assert code == 0, written

    folders = versions(Path("logs/four"))
    assert [folder.name for folder in folders] == [f"version_{number}" for number in range(4)]
    weights: dict[int, list[dict[str, torch.Tensor]]] = {}
    for folder in folders:
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        weights.setdefault(read_record(folder)["seed"], []).append(state)
    assert sorted(weights) == [1, 2]
    for one, other in weights.values():
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert len({json.dumps(read_record(folder)["val"]) for folder in folders}) == 2

    assert len(list((cache / "tokenizers").iterdir())) == len(list((cache / "tokens").iterdir())) == 1
    (prepared,) = (cache / "tokens").iterdir()
    assert sorted(path.name for path in prepared.iterdir()) == ["meta.json", "test", "unlabeled", "val"]
    hidden = {path.name for path in tmp_path.rglob("*") if path.name.startswith(".") or path.name.endswith(".tmp")}
    assert hidden == {".lock"}
