"""Every test document's prediction: kept once, gathered over processes, written and read back."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from lit_sft.errors import UserError
from lit_sft.evaluation.predictions import Collector, Predictions, gathered, predictions_in, read_predictions

NAMES = ["a", "b, c", "ü"]


def predictions(count: int = 20, multilabel: bool = False, clean: bool = True) -> Predictions:
    random = np.random.default_rng(5)
    probabilities = random.dirichlet([1.0, 1.0, 1.0], count).astype(np.float32)
    labels = random.integers(3, size=count)
    predicted = probabilities.argmax(1)
    if multilabel:
        labels, predicted = random.integers(2, size=(count, 3), dtype=np.uint8), (probabilities > 0.3).astype(np.uint8)
    keys = random.integers(2**64, size=count, dtype=np.uint64)
    losses = random.random(count, dtype=np.float32)
    flags = random.random(count) < 0.8 if clean else None
    return Predictions(NAMES, np.arange(count) * 3, keys, labels, predicted, losses, probabilities, flags)


def assert_equal(one: Predictions, other: Predictions) -> None:
    for field in fields(Predictions):
        mine, theirs = (getattr(p, field.name) for p in (one, other))
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype, field.name
            assert mine.tolist() == theirs.tolist(), field.name
        else:
            assert mine == theirs, field.name


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_a_file_gives_back_what_was_written(multilabel: bool, clean: bool, tmp_path: Path) -> None:
    kept = predictions(multilabel=multilabel, clean=clean)
    path = tmp_path / "run" / "predictions.parquet"
    kept.write(path)
    assert_equal(read_predictions(path), kept)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == ["document", "key", "label", "predicted", "loss", "probabilities", "clean"]
    if not multilabel:
        assert table.column("label").to_pylist() == [NAMES[i] for i in kept.labels]


def test_documents_are_gathered_in_their_order_and_each_once() -> None:
    whole = replace(predictions(), documents=np.arange(20))
    assert whole.clean is not None
    ranks = []
    for rank in range(3):
        collector = Collector()
        for start in (12, 0):  # batches in another order than the documents
            mine = np.arange(start, start + 8 if start == 12 else 12)[rank::3]
            part = whole.select(mine)
            names = ("labels", "losses", "probabilities")
            collector.add(documents=torch.from_numpy(mine), **{n: torch.from_numpy(getattr(part, n)) for n in names})
        ranks.append(collector.rows())
    rows = gathered([*ranks, Collector().rows()])
    assert_equal(predictions_in(rows, NAMES, None, whole.keys, whole.clean), whole)
    applies = replace(whole, labels=np.eye(len(NAMES), dtype=np.uint8)[whole.labels])
    applies = replace(applies, predicted=(whole.probabilities >= np.array([0.3, 0.2, 0.4])).astype(np.uint8))
    rows["labels"] = applies.labels[rows["documents"]].astype(np.float32)
    assert_equal(predictions_in(rows, NAMES, [0.3, 0.2, 0.4], whole.keys, whole.clean), applies)
    assert gathered([{}, {}]) == {}


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"predictions\.parquet: can't be written: No space left on device"):
        predictions().write(tmp_path / "predictions.parquet")
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_predictions(tmp_path / "absent.parquet")
    other = tmp_path / "other.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), other)
    with pytest.raises(UserError, match="not a predictions file"):
        read_predictions(other)
    other.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a predictions file"):
        read_predictions(other)
