"""Where a run's loggers write: any that Lightning has, all into the run's own folder."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

RUN_OPTIONS = ("name", "id", "run_name")  # how W&B, MLflow and others call the run; a user's own names stay


def place_loggers(trainer: Namespace, folder: Path | None, command: str, step: int | None) -> None:
    """Set the folders and names of the loggers in the Trainer's options.

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
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    for logger in loggers:
        if isinstance(logger, Namespace):
            _place(logger.class_path.rsplit(".", 1)[-1], logger.init_args, folder, command, step)


def _place(kind: str, options: Namespace, folder: Path, command: str, step: int | None) -> None:
    if "save_dir" in options:
        options.save_dir = str(folder)
    if kind == "TensorBoardLogger":
        options.name, options.version = "", ""
        options.purge_step = step  # what was logged after the checkpoint is logged again: TensorBoard shows it once
    elif kind == "CSVLogger":
        earlier = list(folder.rglob("metrics.csv"))  # in the same place Lightning would delete it
        options.name, options.version = "", f"{command}-{len(earlier)}" if earlier else ""
    else:
        for key in RUN_OPTIONS:
            if key in options and options[key] is None:
                options[key] = f"{folder.parent.name}-{folder.name}"
        if kind == "WandbLogger" and options.get("resume") is None:
            options.resume = "allow"  # a resumed run, or its test, goes on under the same id
