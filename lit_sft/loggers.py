"""Where a run's loggers write: any that Lightning has, all into the run's own folder, and on when it is resumed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.loggers import MLFlowLogger

from lit_sft.atomic import write_atomically
from lit_sft.evaluation.confusion import log_confusion
from lit_sft.runs import LOGS

NAMES = ("name", "run_name")  # what W&B, MLflow and others show; a user's own names stay
UNNAMED = (None, "lightning_logs")  # the latter from the default logger: the parser keeps options that both have
ID_OPTIONS = {"WandbLogger": "id", "MLFlowLogger": "run_id"}  # by which a store finds a run again
MLFLOW = ("lightning.pytorch.loggers.MLFlowLogger", "lightning.pytorch.loggers.mlflow.MLFlowLogger")
IDS = "logger_ids.json"
STORE = "mlflow.db"


def place_loggers(trainer: Namespace, folder: Path | None, command: str, step: int | None) -> None:
    """Set the folders, names and ids of the loggers in the Trainer's options.

    Args:
        trainer: the options, changed in place.
        folder: the run's folder; without one (a dry run, a checkpoint on its own) nothing is logged.
        command: ``fit``, ``validate`` or ``test``.
        step: the optimizer step that a resumed run goes on from; None for any other.
    """
    if folder is None:
        trainer.logger = False
        return
    trainer.default_root_dir = str(folder)
    begins = command == "fit" and step is None  # it is nobody's continuation, whatever lies in its folder
    ids = {} if begins else read_ids(folder)
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    for logger in loggers:
        if isinstance(logger, Namespace):
            _place(logger.class_path.rsplit(".", 1)[-1], logger.init_args, folder, command, step, ids)
            if logger.class_path in MLFLOW:
                logger.class_path = f"{__name__}.{NamedMLFlowLogger.__name__}"


def _place(kind: str, options: Namespace, folder: Path, command: str, step: int | None, ids: dict[str, str]) -> None:
    if "save_dir" in options:
        options.save_dir = str(folder)
    if kind == "TensorBoardLogger":
        options.name, options.version = "", ""
        # what was logged after the checkpoint, or by a run that ended before its first one, is logged again: shown once
        options.purge_step = 0 if command == "fit" and step is None else step
        return
    if kind == "CSVLogger":
        earlier = list(folder.rglob("metrics.csv"))  # in the same place Lightning would delete it
        options.name, options.version = "", f"{command}-{len(earlier)}" if earlier else ""
        return
    for key in NAMES:
        if key in options and options[key] in UNNAMED:
            options[key] = _title(folder)
    if kind == "MLFlowLogger" and not options.get("tracking_uri"):
        _local_store(options, folder)
        if not (folder / STORE).is_file():
            return  # the ids are of another store
    if kind in ids and options.get(ID_OPTIONS[kind]) is None:
        options[ID_OPTIONS[kind]] = ids[kind]


def _local_store(options: Namespace, folder: Path) -> None:
    """SQLite in the run's folder: MLflow's present versions refuse the folder of files that Lightning would choose."""
    options.tracking_uri = f"sqlite:///{(folder / STORE).resolve().as_posix()}"
    if options.get("artifact_location") is None:  # MLflow's own is mlruns/ in the current folder
        options.artifact_location = (folder / "artifacts").resolve().as_uri()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # who logs to a file doesn't expect calls home


def _title(folder: Path) -> str:
    """NAME-version_K, and the stage's name where a recipe runs it; elsewhere than in ``logs/`` the last two folders."""
    path, logs = folder.resolve(), LOGS.resolve()
    return "-".join(path.relative_to(logs).parts if path.is_relative_to(logs) else path.parts[-2:])


def read_ids(folder: Path) -> dict[str, str]:
    """The ids that the loggers' stores gave the run of a folder, by the class of the logger."""
    path = folder / IDS
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


class NamedMLFlowLogger(MLFlowLogger):
    """Lightning's, with names that MLflow takes: of labels and of patterns it would refuse most other characters.

    Lightning leaves these out of a figure's name, so that the labels ``C`` and ``C++`` had one figure between them.
    """

    def log_hyperparams(self, params: Any) -> None:
        """Log the options under such names."""
        super().log_hyperparams({_admitted(name): value for name, value in dict(params).items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the figures under such names."""
        super().log_metrics({_admitted(name): value for name, value in metrics.items()}, step)


def _admitted(name: str) -> str:
    """The name with the code of each character that MLflow refuses in its place, and without folders like ``..``."""
    plain = re.sub(r"[^A-Za-z0-9_/. -]", lambda found: f"_{ord(found[0]):x}_", name)
    return "/".join(f"_{part}_" if part in ("", ".", "..") else part for part in plain.split("/"))


class LoggedRun(L.Callback):
    """Keeps a run one run in every store: by the ids that a resume and a test go on under, and by the step.

    Args:
        folder: the run's folder.
        step: the optimizer step of the checkpoint that is validated or tested: its figures stand where those
            of the validation in the fit stand.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            # Lightning logs at this step, which a fit alone restores: 0. Its own validations stand one before the next.
            trainer.fit_loop.epoch_loop._batches_that_stepped = max(0, self.step - 1)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        found = [(kind.__name__, logger) for logger in trainer.loggers for kind in type(logger).__mro__]
        ids = {kind: str(logger.version) for kind, logger in found if kind in ID_OPTIONS}
        before = read_ids(self.folder)
        if ids and {**before, **ids} != before:
            write_atomically(self.folder / IDS, json.dumps({**before, **ids}, indent=2) + "\n")

    def on_test_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write what was taken for what where the test's figures stand."""
        log_confusion(trainer, module, "test", self.step)
