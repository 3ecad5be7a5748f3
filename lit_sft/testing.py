"""What a test leaves behind: its figures in the run's record, and every document's prediction beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_sft.checkpoints import Checkpoint
from lit_sft.module import LitSFT
from lit_sft.predictions import FILE
from lit_sft.runs import RECORD, record_of_test, write_test


def keep_test(trainer: Trainer, module: LitSFT, source: Checkpoint, folder: Path, data: dict[str, Any]) -> None:
    """Write the figures and predictions of a finished test; those of a record that has them already stay.

    Args:
        trainer: after its test.
        module: what was tested.
        source: the checkpoint it came from.
        folder: the run's folder.
        data: the data options of the test.
    """
    path = record_of_test(folder, source.path, source.config.get("data", {}), data)
    figures = {k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items()}
    predictions = path.with_name(FILE) if path.name == RECORD else path.with_suffix(".parquet")
    if module.tested is not None and not (path.name == RECORD and predictions.is_file()):
        module.tested.write(predictions)
    found: dict[str, Any] = {"test": figures}
    if (confusion := module.evaluation.confusion()) is not None:
        found["test_confusion"] = confusion
    if (thresholds := module.evaluation.thresholds) is not None:
        found["thresholds"] = dict(zip(module.label_names, thresholds, strict=True))
    written = write_test(path, found, source.path, data)
    rank_zero_info(f"wrote {path}" if written else f"{path} has these figures already: it stays")
