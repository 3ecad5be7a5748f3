"""Loggers: any of them in the run's own folder, one run through resume and test, the same figures in every store."""

from __future__ import annotations

import csv
import json
import os
import posixpath
import re
import shutil
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Command, Configs, Files, Fit, Trained, made, read
from jsonargparse import Namespace
from lightning.pytorch.loggers import MLFlowLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft.loggers import IDS, LoggedRun, NamedMLFlowLogger, place_loggers

ROOT = Path(__file__).parents[1]
LOGGERS = ROOT / "configs" / "logger"
FOLDER = Path("logs/tiny-finetune/version_0")
QUICK = ("--trainer.log_every_n_steps", "1", "--trainer.limit_train_batches", "3")

Figures = dict[tuple[str, int], float]  # by name and step


# ---- where they are placed: no logger's package is needed


def logger(kind: str, **options: Any) -> Namespace:
    return Namespace(class_path=f"lightning.pytorch.loggers.{kind}", init_args=Namespace(options))


def wandb_logger(**options: Any) -> Namespace:
    return logger("WandbLogger", **{"name": None, "save_dir": ".", "id": None, "project": "p", **options})


def mlflow_logger(**options: Any) -> Namespace:
    unset = dict.fromkeys(("run_name", "tracking_uri", "artifact_location", "run_id"))
    return logger("MLFlowLogger", **{**unset, "save_dir": "./mlruns", "experiment_name": "e", **options})


def placed(given: Any, folder: Path | None, command: str = "fit", step: int | None = None) -> Any:
    trainer = Namespace(logger=given, default_root_dir=None)
    place_loggers(trainer, folder, command, step)
    assert trainer.default_root_dir == (None if folder is None else str(folder))
    return trainer.logger


def make_run(**ids: str) -> Path:
    FOLDER.mkdir(parents=True)
    (FOLDER / IDS).write_text(json.dumps(ids), encoding="utf-8")
    return FOLDER


@pytest.mark.parametrize("given", [True, False, None])
def test_no_logger_and_lightning_s_own_choice_stay(given: bool | None, tmp_path: Path) -> None:
    assert placed(given, tmp_path) is given


def test_without_a_folder_nothing_is_logged() -> None:
    assert placed(wandb_logger(), None) is False


@pytest.mark.parametrize("step", [None, 30])
def test_tensorboard_writes_into_the_folder_and_drops_what_a_resumed_run_logs_again(step: int | None) -> None:
    given = logger("TensorBoardLogger", save_dir="x", name="lightning_logs", version=None)
    options = placed(given, FOLDER, step=step).init_args
    assert options.as_dict() == {"save_dir": str(FOLDER), "name": "", "version": "", "purge_step": step or 0}
    options = placed(given, FOLDER, "test").init_args
    assert options.purge_step is None


def test_csv_finds_a_new_place_beside_what_is_there(tmp_path: Path) -> None:
    def version(command: str) -> str:
        given = logger("CSVLogger", save_dir="x", name="lightning_logs", version=None)
        found: str = placed(given, tmp_path, command).init_args.version
        return found

    assert version("fit") == ""
    (tmp_path / "metrics.csv").touch()
    assert version("test") == "test-1"


def test_loggers_in_a_list_are_all_placed() -> None:
    assert [one.init_args.save_dir for one in placed([wandb_logger(), mlflow_logger()], FOLDER)] == [str(FOLDER)] * 2


@pytest.mark.parametrize(
    ("folder", "name"),
    [("logs/mine/version_3", "mine-version_3"), ("logs/mine/version_3/pretrain", "mine-version_3-pretrain")],
    ids=["stage", "stage of a recipe"],
)
def test_runs_are_called_after_their_folder(folder: str, name: str, workplace: Path) -> None:
    for given in (None, "lightning_logs"):  # the second is the default logger's, which the parser carries over
        assert placed(wandb_logger(name=given), Path(folder)).init_args.name == name
    assert placed(mlflow_logger(), workplace / folder).init_args.run_name == name
    assert placed(wandb_logger(name="my own"), Path(folder)).init_args.name == "my own"


def test_a_folder_elsewhere_names_its_run_too(workplace: Path) -> None:
    assert placed(wandb_logger(), workplace / "scratch/big").init_args.name == "scratch-big"


def test_mlflow_keeps_everything_in_the_folder(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    options = placed(mlflow_logger(), FOLDER).init_args
    assert options.tracking_uri == f"sqlite:///{(workplace / FOLDER).as_posix()}/mlflow.db"
    assert options.artifact_location == (workplace / FOLDER / "artifacts").as_uri()
    assert os.environ.pop("MLFLOW_DISABLE_TELEMETRY") == "true"


def test_a_store_of_one_s_own_stays(workplace: Path) -> None:
    options = placed(mlflow_logger(tracking_uri="http://there"), make_run(MLFlowLogger="7"), "test").init_args
    assert (options.tracking_uri, options.artifact_location, options.run_id) == ("http://there", None, "7")


def test_mlflow_is_given_names_that_it_takes(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word characters, ``/ . -`` and spaces, and no name that a path would be written shorter for."""
    seen: list[str] = []
    for method in ("log_metrics", "log_hyperparams"):
        monkeypatch.setattr(MLFlowLogger, method, lambda _, given, *__: seen.extend(given))
    monkeypatch.setattr(MLFlowLogger, "version", "7")
    assert placed(mlflow_logger(), FOLDER).class_path == "lit_sft.loggers.NamedMLFlowLogger"
    given = object.__new__(NamedMLFlowLogger)  # MLflow itself isn't needed
    figures = ["val/f1/C", "val/f1/C++", "val/f1/плохо", "val/f1/好", "val/f1/a//b", "val/f1/..", "val/f1/n/", "lr/b"]
    given.log_metrics(dict.fromkeys(figures, 1.0), 3)
    given.log_hyperparams({"data.replace.<br\\s*/?>": " ", "data.batch_size": 4})
    assert len({*seen}) == len(figures) + 2
    assert all(re.fullmatch(r"[\w/. -]+", name, re.ASCII) and posixpath.normpath(name) == name for name in seen)
    assert {"val/f1/C", "val/f1/C_2b__2b_", "lr/b", "data.batch_size"} <= {*seen}
    FOLDER.mkdir(parents=True)
    trainer = SimpleNamespace(is_global_zero=True, fast_dev_run=0, loggers=[given])
    LoggedRun(FOLDER, 0).setup(trainer, None, "fit")  # type: ignore[arg-type]
    assert read(FOLDER / IDS) == {"MLFlowLogger": "7"}


@pytest.mark.parametrize(
    ("command", "step", "goes_on"),
    [("fit", None, False), ("fit", 30, True), ("test", None, True), ("validate", None, True)],
    ids=["new", "resumed", "tested", "validated"],
)
def test_a_run_goes_on_under_its_ids(command: str, step: int | None, goes_on: bool, workplace: Path) -> None:
    folder = make_run(WandbLogger="abc", MLFlowLogger="7")
    (folder / "mlflow.db").touch()
    wandb, mlflow = placed([wandb_logger(), mlflow_logger()], folder, command, step)
    assert (wandb.init_args.id, mlflow.init_args.run_id) == (("abc", "7") if goes_on else (None, None))


def test_an_id_is_not_looked_for_in_another_store(workplace: Path) -> None:
    assert placed(mlflow_logger(), make_run(MLFlowLogger="7"), "test").init_args.run_id is None


def test_an_id_of_one_s_own_stays(workplace: Path) -> None:
    assert placed(wandb_logger(id="mine"), make_run(WandbLogger="abc"), "test").init_args.id == "mine"


def test_a_run_without_a_checkpoint_goes_on_at_step_0_and_not_where_it_starts_from(
    fit: Fit, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def noted(trainer: Any, folder: Path | None, command: str, step: int | None) -> None:
        steps.append(step)
        place_loggers(trainer, folder, command, step)

    monkeypatch.setattr("lit_sft.cli.place_loggers", noted)
    assert fit(*QUICK, "--model.init_from", trained.pretrain).code == 0
    (FOLDER / "metrics.json").unlink()
    assert fit(*QUICK, "--model.init_from", trained.pretrain, "--ckpt_path", "last").code == 0
    (FOLDER / "metrics.json").unlink()
    shutil.rmtree(FOLDER / "checkpoints")
    assert fit(*QUICK, "--model.init_from", trained.pretrain, "--ckpt_path", "last").code == 0
    assert steps == [None, 3, 0]


# ---- what they hold


def in_csv(folder: Path) -> Figures:
    figures: Figures = {}
    for path in folder.rglob("metrics.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step"))
                figures |= {(name, step): float(value) for name, value in row.items() if value}
    return figures


def in_tensorboard(folder: Path) -> Figures:
    events = EventAccumulator(str(folder)).Reload()
    return {(name, e.step): e.value for name in events.Tags()["scalars"] for e in events.Scalars(name)}


def records(path: Path) -> Iterator[bytes]:
    """What a W&B file holds: after 7 bytes, records as in LevelDB's logs, in pieces that end with a block of 32 KiB."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])  # after the checksum
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield whole
            whole = b""


def in_wandb(folder: Path) -> Figures:
    from wandb.proto.wandb_internal_pb2 import Record

    figures: Figures = {}
    ids = set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in map(Record.FromString, records(path)):
            row = {".".join([i.key] if i.key else i.nested_key): json.loads(i.value_json) for i in record.history.item}
            if row:
                step = row.pop("trainer/global_step")
                figures |= {(name, step): value for name, value in row.items() if not name.startswith("_")}
            if record.HasField("run"):
                ids.add((record.run.run_id, record.run.display_name))
    assert ids == {(read(folder / IDS)["WandbLogger"], "tiny-finetune-version_0")}, "one run through resume and test"
    return figures


def in_mlflow(folder: Path) -> Figures:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations, in how MLflow calls SQLAlchemy
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name("lit_sft").experiment_id])
        found = [client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
    assert (run.info.run_id, run.info.run_name) == (read(folder / IDS)["MLFlowLogger"], "tiny-finetune-version_0")
    assert run.info.status == "FINISHED"
    return {(one.key, one.step): one.value for metric in found for one in metric}


def decisive(figures: Figures) -> Figures:
    """Those that two runs have in common: not the speed; nor the epoch, which a store may hold twice for a step."""
    return {key: value for key, value in figures.items() if key[0].split("/")[0] in ("train", "lr", "val", "test")}


def fit_test_and_resume(call: Callable[..., object], config: Path, name: str) -> Figures:
    """The commands, with a logger from ``configs/logger/``; returns what the run's record says of the test."""
    chosen = (*QUICK, "--trainer.logger", LOGGERS / f"{name}.yaml")
    call("fit", "--config", config, *chosen)
    call("test", "--ckpt_path", FOLDER, *chosen)
    record = read(FOLDER / "metrics.json")
    (FOLDER / "metrics.json").unlink()  # now it is an unfinished run
    call("fit", "--config", config, *chosen, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert made() == ["tiny-finetune/version_0"]
    assert {path.name for path in Path().iterdir()} == {"configs", "logs"}, "nothing is left in the current folder"
    return {(f"test/{name}", 2): value for name, value in record["test"].items()}


def test_tensorboard_and_csv_side_by_side(fit: Fit) -> None:
    assert fit(*QUICK, "--trainer.logger", LOGGERS / "tensorboard_csv.yaml").code == 0
    assert made() == ["tiny-finetune/version_0"]
    assert len(list(FOLDER.glob("events*"))) == 1
    figures = decisive(in_csv(FOLDER))
    assert {("train/loss", 0), ("lr/head", 2), ("val/macro_f1", 2)} <= set(figures)
    assert decisive(in_tensorboard(FOLDER)) == pytest.approx(figures)


@pytest.mark.parametrize(("name", "stored"), [("wandb", in_wandb), ("mlflow", in_mlflow)], ids=["wandb", "mlflow"])
def test_every_store_holds_the_same_figures_as_csv(
    name: str, stored: Callable[[Path], Figures], cli: Command, configs: Configs
) -> None:
    pytest.importorskip(name, reason=f"needs the extra {name}")

    def process(*arguments: object) -> None:  # W&B has one run a process
        command = [sys.executable, "-m", "lit_sft", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr

    tested = fit_test_and_resume(process, configs.finetune, name)
    figures = decisive(stored(FOLDER))
    FOLDER.parent.rename("configs/kept")
    assert fit_test_and_resume(cli, configs.finetune, "csv") == tested
    expected = decisive(in_csv(FOLDER))
    assert {("train/loss", 0), ("val/loss", 2), ("test/loss", 2), ("train/loss", 5), ("val/loss", 5)} <= set(expected)
    assert figures == pytest.approx(expected, rel=1e-12)
    assert {key: figures[key] for key in tested} == pytest.approx(tested, nan_ok=True)


def test_a_run_from_another_s_options_is_placed_in_its_own_folder(fit: Fit, cli: Command) -> None:
    assert fit(*QUICK, "--trainer.logger", LOGGERS / "csv.yaml").code == 0
    saved = read(FOLDER / "config.yaml")["trainer"]["logger"]["init_args"]
    assert (saved["save_dir"], saved["name"], saved["version"]) == ("logs", "lightning_logs", None)
    assert cli("fit", "--config", FOLDER / "config.yaml", "--run_dir", "again").code == 0
    assert "val/loss" in Path("again/metrics.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["test", "validate"])
def test_of_what_is_measured_only_all_of_the_runs_own_is_logged(
    command: str, cli: Command, trained: Trained, files: Files, tmp_path: Path
) -> None:
    run, split = shutil.copytree(trained.finetune, tmp_path / "run"), "test" if command == "test" else "val"
    before = list(run.glob("events*"))
    shutil.copy(files.test, "other.csv")
    part = (f"--trainer.limit_{split}_batches", "0.5", "--data.max_tokens", "100")
    for more in ((f"--data.{split}", "other.csv"), part, ("--data.max_length", "8")):
        assert cli(command, "--ckpt_path", run, *more).code == 0
        assert list(run.glob("events*")) == before
    assert cli(command, "--ckpt_path", run, "--data.batch_size", "2").code == 0
    assert len(list(run.glob("events*"))) == len(before) + 1
