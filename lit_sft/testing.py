"""What a test leaves behind: its figures in the run's record, and every document's prediction beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_sft.checkpoints import Checkpoint
from lit_sft.evaluation.predictions import FILE
from lit_sft.module import LitSFT
from lit_sft.runs import RECORD, read_record, record_of_test, told, write_test


def read_in_part(trainer: Trainer) -> bool:
    """Whether the test that ended left batches out (``trainer.limit_test_batches``); it says so."""
    loaders: Any = trainer.test_dataloaders
    partial = sum(trainer.num_test_batches) < sum(len(loader) for loader in loaders)
    if partial:
        rank_zero_info("a part of the test data was read (trainer.limit_test_batches): nothing is written")
    return partial


def keep_test(trainer: Trainer, module: LitSFT, source: Checkpoint, folder: Path, data: dict[str, Any]) -> None:
    """Write the figures and predictions of a finished test; those of a record that has them already stay.

    Nothing is written of a test that read a part of the data, so that none passes for the whole.

    Args:
        trainer: after its test.
        module: what was tested.
        source: the checkpoint it came from.
        folder: the run's folder.
        data: the data options of the test.
    """
    tested = module.tested
    assert tested is not None
    if read_in_part(trainer):
        return
    path = record_of_test(folder, source.path, source.config.get("data", {}), data)
    if path.name == RECORD and "test" in read_record(folder):
        rank_zero_info(f"{path} has test figures already: it stays")
        return
    if tested.predictions is not None:
        tested.predictions.write(path.with_name(FILE) if path.name == RECORD else path.with_suffix(".parquet"))
    logged = {k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
    record = tested.record()
    record["test"] = {**logged, **tested.figures}  # a callback of the user's own may have logged more
    if (confusion := module.evaluation.confusion()) is not None:
        record["test_confusion"] = confusion
    if (thresholds := module.evaluation.thresholds) is not None:
        record["thresholds"] = dict(zip(module.label_names, thresholds, strict=True))
    record["contamination"] = trainer.datamodule.contamination  # type: ignore[attr-defined]
    write_test(path, record, source.path, data)
    rank_zero_info(f"test: {told(record)}")
    rank_zero_info(f"wrote {path}")
