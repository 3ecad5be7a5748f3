"""What was taken for what: the table, and the figures of a run's record."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, Files, Trained, labeled_rows, read, write_csv
from sklearn.metrics import confusion_matrix
from sklearn.utils.class_weight import compute_class_weight
from training import data_of, module_of, trainer_of

from lit_sft import load
from lit_sft.errors import UserError
from lit_sft.evaluation.confusion import confusion_table
from lit_sft.evaluation.metrics import ClassificationMetrics
from lit_sft.objectives import Supervised
from lit_sft.runs import write_record


def test_the_matrix_equals_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    labels, predicted = draw.integers(4, size=80), draw.integers(4, size=80)
    metrics = ClassificationMetrics(list("abcd"))
    metrics.update(torch.eye(4)[predicted] * 0.6 + 0.1, torch.from_numpy(labels), torch.zeros(80))
    assert metrics.confusion() == {"labels": list("abcd"), "matrix": confusion_matrix(labels, predicted).tolist()}


def test_the_table_names_rows_and_columns() -> None:
    table = confusion_table({"labels": ["a|b", "c"], "matrix": [[5, 1], [2, 7]]})
    assert table.splitlines() == [
        "| label \\ predicted | a\\|b | c |",
        "| --- | --- | --- |",
        "| a\\|b | 5 | 1 |",
        "| c | 2 | 7 |",
    ]
    columns = ["tn", "fp", "fn", "tp"]
    table = confusion_table({"labels": ["a", "b"], "columns": columns, "matrix": [[1, 2, 3, 4], [5, 6, 7, 8]]})
    assert table.splitlines() == [
        "| label | tn | fp | fn | tp |",
        "| --- | --- | --- | --- | --- |",
        "| a | 1 | 2 | 3 | 4 |",
        "| b | 5 | 6 | 7 | 8 |",
    ]


def test_of_many_labels_those_with_the_most_errors_are_shown() -> None:
    matrix = np.diag(np.full(30, 50))
    matrix[3, 17] = 9  # two labels have errors
    table = confusion_table({"labels": [f"l{i}" for i in range(30)], "matrix": matrix.tolist()}, most=2)
    assert table.splitlines() == [
        "| label \\ predicted | l3 | l17 |",
        "| --- | --- | --- |",
        "| l3 | 50 | 9 |",
        "| l17 | 0 | 50 |",
        "",
        "2 of 30 labels, those with the most errors",
    ]
    rows = [[10, 0, 0, 5], [4, 3, 3, 5], [5, 5, 0, 5]]
    table = confusion_table({"labels": ["a", "b", "c"], "columns": ["tn", "fp", "fn", "tp"], "matrix": rows}, most=1)
    assert table.splitlines()[2] == "| b | 4 | 3 | 3 | 5 |"


def test_a_test_keeps_the_matrix_of_its_documents(cli: Command, trained: Trained, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.finetune, tmp_path / "run"))
    assert cli("test", "--ckpt_path", run).code == 0
    rows = labeled_rows(10, 3)
    told = [row["label"] for row in load(run).predict([text for text, _ in rows]) if row]
    names = ["sea", "sky", "wood"]
    expected = confusion_matrix([label for _, label in rows], told, labels=names).tolist()
    assert read(run / "metrics.json")["test_confusion"] == {"labels": names, "matrix": expected}
    assert f"\n      {expected[0]},\n" in (run / "metrics.json").read_text()  # a row a line


def test_class_weights_count_the_training_documents_in_use(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    rows = [row for i, row in enumerate(labeled_rows(40, 1)) if row[1] == "sea" or i % 5 == 0]
    data = data_of(files, shared_cache, labeled=str(write_csv(tmp_path / "some.csv", rows)))
    objective = Supervised(class_weights="balanced")
    trainer_of(tmp_path, max_steps=1).fit(module_of("finetune", objective=objective), datamodule=data)
    y = [label for _, label in rows]
    expected = compute_class_weight("balanced", classes=np.array(["sea", "sky", "wood"]), y=y)
    assert objective._weights is not None
    assert objective._weights.tolist() == pytest.approx(expected.tolist())

    few = data_of(files, shared_cache, labeled=str(tmp_path / "some.csv"), labels_per_class=3)
    trainer_of(tmp_path, max_steps=1).fit(module_of("finetune", objective=objective), datamodule=few)
    assert objective._weights.tolist() == [1.0, 1.0, 1.0]


def test_weights_by_counts_are_not_looked_for_in_a_test(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    module = module_of("finetune", objective=Supervised(class_weights="sqrt"))
    trainer_of(tmp_path).test(module, datamodule=data_of(files, shared_cache), verbose=False)
    data = data_of(files, shared_cache)
    data.prepare_data()
    data.setup()
    data.train = data.train.select(np.flatnonzero(data.train.labels != 1))
    with pytest.raises(UserError, match=r"model.objective: .*no training document has the label of class 1"):
        trainer_of(tmp_path, max_steps=1).fit(module, datamodule=data)


def test_a_record_with_lists_reads_back_as_it_was(tmp_path: Path) -> None:
    record = {"a": [[1, -2.5e-05, None], []], "b": ["[\n  5\n]", "x"], "c": {"d": [0.5], "e": [{"f": [1, 2]}]}, "g": []}
    write_record(tmp_path / "r.json", record)
    assert read(tmp_path / "r.json") == record
    assert "[1, -2.5e-05, null]" in (tmp_path / "r.json").read_text()
