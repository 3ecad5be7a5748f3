"""Set up a run's loggers, any of Lightning's: they write to the run's folder, and a resumed run continues its logs."""

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

NAMES = ("name", "run_name")  # shown by W&B, MLflow and others; names that the user gives are kept
UNNAMED = (None, "lightning_logs")  # the latter is the default logger's: the parser keeps options that both have
ID_OPTIONS = {"WandbLogger": "id", "MLFlowLogger": "run_id"}  # the option that identifies a run in the logger's store
MLFLOW = ("lightning.pytorch.loggers.MLFlowLogger", "lightning.pytorch.loggers.mlflow.MLFlowLogger")
IDS = "logger_ids.json"
STORE = "mlflow.db"


def place_loggers(trainer: Namespace, folder: Path | None, command: str, step: int | None) -> None:
    """Set the folders, names and ids of the loggers in the Trainer's options.

    Args:
        trainer: the options, changed in place.
        folder: the run's folder; None (a dry run, a checkpoint file outside a run folder): nothing is logged.
        command: ``fit``, ``validate`` or ``test``.
        step: the optimizer step from which ``--ckpt_path last`` resumes the run; None in all other cases.
    """
    if folder is None:
        trainer.logger = False
        return
    trainer.default_root_dir = str(folder)
    begins = command == "fit" and step is None  # a new run: ids that its folder may hold are not its own
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
        # hide what was logged after the checkpoint (everything, if there is none yet): it will be logged again
        options.purge_step = 0 if command == "fit" and step is None else step
        return
    if kind == "CSVLogger":
        earlier = list(folder.rglob("metrics.csv"))  # Lightning would delete a file at the same place
        options.name, options.version = "", f"{command}-{len(earlier)}" if earlier else ""
        return
    for key in NAMES:
        if key in options and options[key] in UNNAMED:
            options[key] = _title(folder)
    if kind == "MLFlowLogger" and not options.get("tracking_uri"):
        _local_store(options, folder)
        if not (folder / STORE).is_file():
            return  # the ids belong to another store
    if kind in ids and options.get(ID_OPTIONS[kind]) is None:
        options[ID_OPTIONS[kind]] = ids[kind]


def _local_store(options: Namespace, folder: Path) -> None:
    """Use SQLite in the run's folder: current versions of MLflow refuse Lightning's default, a folder of files."""
    options.tracking_uri = f"sqlite:///{(folder / STORE).resolve().as_posix()}"
    if options.get("artifact_location") is None:  # MLflow's default is mlruns/ in the current folder
        options.artifact_location = (folder / "artifacts").resolve().as_uri()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # not expected by a user who logs to a file


def _title(folder: Path) -> str:
    """Return NAME-version_K (of a recipe's stage NAME-version_K-STAGE); outside ``logs/`` the last two folder names."""
    path, logs = folder.resolve(), LOGS.resolve()
    return "-".join(path.relative_to(logs).parts if path.is_relative_to(logs) else path.parts[-2:])


def read_ids(folder: Path) -> dict[str, str]:
    """Return the ids of the folder's run in its loggers' stores, by the logger's class name."""
    path = folder / IDS
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


class NamedMLFlowLogger(MLFlowLogger):
    """Lightning's MLFlowLogger, with names that MLflow accepts: it refuses most special characters, as in labels.

    Lightning drops these characters from a figure's name, so that the labels ``C`` and ``C++`` would share one figure.
    """

    def log_hyperparams(self, params: Any) -> None:
        """Log the options under accepted names."""
        super().log_hyperparams({_admitted(name): value for name, value in dict(params).items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the figures under accepted names."""
        super().log_metrics({_admitted(name): value for name, value in metrics.items()}, step)


def _admitted(name: str) -> str:
    """Replace each character that MLflow refuses by its code, and path parts like ``..`` by ``_.._``."""
    plain = re.sub(r"[^A-Za-z0-9_/. -]", lambda found: f"_{ord(found[0]):x}_", name)
    return "/".join(f"_{part}_" if part in ("", ".", "..") else part for part in plain.split("/"))


class LoggedRun(L.Callback):
    """Keeps all of a run's figures in one run of each store: saves the ids that a resume or a test will use again.

    Args:
        folder: the run's folder.
        step: the optimizer step of the checkpoint that is validated or tested; its figures are logged at the same step
            as those of the fit's own validation of these weights.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            # Lightning logs at this step, which only a fit restores. A fit logs its validation after N steps at N - 1.
            trainer.fit_loop.epoch_loop._batches_that_stepped = max(0, self.step - 1)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        found = [(kind.__name__, logger) for logger in trainer.loggers for kind in type(logger).__mro__]
        ids = {kind: str(logger.version) for kind, logger in found if kind in ID_OPTIONS}
        before = read_ids(self.folder)
        if ids and {**before, **ids} != before:
            write_atomically(self.folder / IDS, json.dumps({**before, **ids}, indent=2) + "\n")

    def on_test_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Log the confusion matrix at the same step as the test's figures."""
        log_confusion(trainer, module, "test", self.step)
