"""Write the results of a test: its figures to the run's record, every document's prediction to a file beside it.

A ``validate`` writes only the predictions or responses, no figures.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_sft.checkpoints import Checkpoint, stage_folders
from lit_sft.evaluation.predictions import FILE, VAL_FILE
from lit_sft.evaluation.responses import FILE as RESPONSES
from lit_sft.evaluation.responses import VAL_FILE as VAL_RESPONSES
from lit_sft.evaluation.responses import Responses
from lit_sft.measured_data import TESTED, reads_streams, same_data
from lit_sft.module import LitSFT
from lit_sft.runs import RECORD, numbered, read_record, told, write_record


def read_in_part(trainer: Trainer) -> bool:
    """Return whether the finished test left batches out (``trainer.limit_test_batches``), and report it."""
    loaders: Any = trainer.test_dataloaders
    partial = sum(trainer.num_test_batches) < sum(len(loader) for loader in loaders)
    if partial:
        rank_zero_info("a part of the test data was read (trainer.limit_test_batches): nothing is written")
    return partial


def logged_figures(trainer: Trainer, split: Literal["val", "test"]) -> dict[str, float]:
    """Return the figures of a finished validation or test by their names without the split."""
    prefix = f"{split}/"
    return {k.removeprefix(prefix): float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}


def keep_test(
    trainer: Trainer, module: LitSFT, source: Checkpoint, folder: Path | None, data: dict[str, Any], own: bool
) -> None:
    """Print the figures of a finished test with their intervals, and write them and the predictions.

    A run's record that has test figures already is kept. If only a part of the data was read, nothing is written: the
    figures could be taken for those of all data.

    Args:
        trainer: the Trainer after its test.
        module: the tested module.
        source: the checkpoint that it comes from.
        folder: the run's folder; None for a checkpoint in no run's folder, of which nothing is written.
        data: the data options of the test.
        own: whether the run's own data were tested (:func:`lit_sft.measured_data.choose_measured`).
    """
    tested = module.tested
    assert tested is not None
    if tested.responses is not None:  # other beams make it another test
        data, own = {**data, "num_beams": module.num_beams}, own and module.num_beams == source.num_beams
    if not trainer.is_global_zero or read_in_part(trainer):
        return
    if not reads_streams(module.objective):
        data = {**data, "batch_size": source.options("data").get("batch_size")}
    record = tested.record()
    record["test"] = logged_figures(trainer, "test") | tested.figures  # a callback of the user may have logged more
    rank_zero_info(f"test: {told(record)}")
    if folder is None:
        rank_zero_info(f"{source.path} is in no run's folder: nothing is written")
        return
    path = record_of_test(folder, source.path, own, data)
    if path.name == RECORD and "test" in read_record(folder):
        rank_zero_info(f"{path} has test figures already: it stays")
        return
    for documents, name in ((tested.predictions, FILE), (tested.responses, RESPONSES)):
        if documents is not None:
            documents.write(path.with_name(name) if path.name == RECORD else path.with_suffix(".parquet"))
    if (confusion := module.evaluation.confusion()) is not None:
        record["test_confusion"] = confusion
    if (thresholds := module.evaluation.thresholds) is not None:
        record["thresholds"] = dict(zip(module.label_names, thresholds, strict=True))
    record["contamination"] = trainer.datamodule.contamination  # type: ignore[attr-defined]
    write_test(path, record, source.path, data)
    rank_zero_info(f"wrote {path}")


def predictions_file(run: Path) -> Path:
    """Return the predictions file of a run's own test; ``run`` is its folder, a recipe's folder, or the file itself."""
    if not run.is_dir():
        return run
    stages = stage_folders(run)
    return (stages[-1] if stages and not (run / FILE).is_file() else run) / FILE


def keep_validation(
    trainer: Trainer, module: LitSFT, source: Checkpoint, folder: Path | None, data: dict[str, Any], own: bool
) -> None:
    """Write the predictions or responses of a finished ``validate``; for the arguments see :func:`keep_test`.

    A run has only one such file: for its best checkpoint, on all of its own validation data.
    """
    found = module.validated
    if folder is None or found is None or not trainer.is_global_zero:
        return
    path = folder / (VAL_RESPONSES if isinstance(found, Responses) else VAL_FILE)
    own = own and module.num_beams == source.num_beams
    whole = len(found) == len(trainer.datamodule.val)  # type: ignore[attr-defined]
    if whole and is_best(source.path) and own:
        found.write(path)
        rank_zero_info(f"wrote {path}")
    else:
        rank_zero_info("not the best checkpoint on all of the run's own validation data: no predictions are written")


def record_of_test(folder: Path, checkpoint: Path, own: bool, data: dict[str, Any]) -> Path:
    """Return a test's file: the run's record for its best checkpoint on its own data, else a file beside the record.

    Args:
        folder, checkpoint: the run's folder, and the tested checkpoint.
        own: whether the run's own data were tested.
        data: the data options of the test.
    """
    parts = [] if read_record(folder) and is_best(checkpoint) else [checkpoint.stem]
    if not own:
        source = data.get("test") or data.get("labeled")
        parts += [Path(str(s)).stem for s in (source if isinstance(source, list) else [source])]
    if not parts:
        return folder / RECORD
    name = re.sub(r'[\x00-\x1f<>:"/\\|?*]', "-", "-".join(parts))  # what names on Windows can't have, as of hf:NAME
    name = name.encode()[:200].decode(errors="ignore")  # a file name has at most 255 bytes
    files = numbered(folder, f"test-{name}")
    return next(file for file in files if not file.is_file() or _is_test_of(file, data))


def _is_test_of(path: Path, data: dict[str, Any]) -> bool:
    """Whether the file holds figures of the same data, so that a new test may replace them."""
    try:
        tested = dict(json.loads(path.read_text(encoding="utf-8"))["data"])
    except (ValueError, KeyError, TypeError):
        return False  # another kind of file: keep it
    return same_data(tested, data, [key for key in TESTED if key in tested])


def write_test(path: Path, figures: dict[str, Any], checkpoint: Path, data: dict[str, Any]) -> None:
    """Write the results of a test to the file that :func:`record_of_test` returned.

    Args:
        path: that file.
        figures: ``test`` and the entries that belong to it, as plain values.
        checkpoint, data: the tested checkpoint, and the data options of the test.
    """
    if path.name == RECORD:
        write_record(path, {**read_record(path.parent), **figures})
    else:
        tested = {key: data.get(key) for key in TESTED}
        write_record(path, {**figures, "data": tested, "checkpoint": str(checkpoint)})


def is_best(checkpoint: Path) -> bool:
    """Whether a checkpoint represents its run: it is ``best.ckpt``, or there is no ``best.ckpt`` beside it."""
    return checkpoint.name == "best.ckpt" or not (checkpoint.parent / "best.ckpt").is_file()
