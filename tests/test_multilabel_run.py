"""A multi-label run through the command line: it learns, its thresholds are validation's, and what is told of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import SUBJECTS, Command, Trained, multilabel_rows, read, tiny_options
from sklearn.metrics import f1_score, multilabel_confusion_matrix
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import module_of, trainer_of

from lit_sft import load
from lit_sft.checkpoints import checkpoint_in, read_checkpoint, read_entries
from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import UserError
from lit_sft.evaluation.predictions import read_predictions

RUN = Path("logs/multi/version_0")
NAMES = list(SUBJECTS)


def write(path: Path, documents: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in documents), encoding="utf-8")
    return str(path)


@pytest.fixture
def config(workplace: Path, files: Any) -> Path:
    options: Any = tiny_options(files, "finetune")
    options["data"] |= {
        name: write(workplace / f"{name}.jsonl", multilabel_rows(size, i)) for i, (name, size) in enumerate(SIZES)
    }
    options["data"] |= {"max_documents": 16}
    options["trainer"]["max_epochs"] = 8
    options["model"]["objective"] = {
        "class_path": "lit_sft.objectives.Supervised",
        "init_args": {"class_weights": "balanced"},
    }
    options["model"]["schedule"] = {"class_path": "lit_sft.optim.Constant"}
    options["checkpoint"] = {"monitor": "val/macro_f1", "mode": "max"}
    path = workplace / "multi.yaml"
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path


SIZES = (("labeled", 320), ("val", 80), ("test", 120))


def table(documents: list[dict[str, Any]], key: str = "label") -> np.ndarray:
    return np.array([[name in row[key] for name in NAMES] for row in documents])


def test_a_multilabel_run_learns_and_its_thresholds_are_those_of_validation(cli: Command, config: Path) -> None:
    assert cli("fit", "--config", config, "--name", "multi").code == 0
    best = RUN / "checkpoints" / "best.ckpt"
    stored = read_checkpoint(best)
    assert stored.multilabel
    assert stored.thresholds is not None
    assert stored.thresholds != [0.5] * 3
    assert cli("test", "--ckpt_path", RUN).code == 0
    record = read(RUN / "metrics.json")
    test, actual = multilabel_rows(120, 2), table(multilabel_rows(120, 2))
    figures = record["test"]
    random_f1 = np.mean([2 * p / (1 + p) for p in actual.mean(0)])  # all labels to all, the best without a look
    assert random_f1 < 0.6
    assert figures["macro_f1"] > 0.9

    # predict tells what test measured, at the thresholds that validation chose
    source = write(Path("new.jsonl"), [*test, {"text": " ", "label": []}])
    assert cli("predict", "--ckpt_path", RUN, "--input", source, "--output", "out.jsonl").code == 0
    told = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert told.pop() is None
    probabilities = np.array([[row["probabilities"][name] for name in NAMES] for row in told])
    assert np.array_equal(table(told, "labels"), probabilities >= np.array(stored.thresholds))
    assert f1_score(actual, table(told, "labels"), average="macro") == pytest.approx(figures["macro_f1"], abs=1e-6)
    assert record["thresholds"] == dict(zip(NAMES, stored.thresholds, strict=True))
    kept = read_predictions(RUN / "predictions.parquet")
    assert np.array_equal(kept.labels, actual)
    assert np.array_equal(kept.predicted, table(told, "labels"))
    assert kept.probabilities == pytest.approx(probabilities, abs=1e-6)
    assert record["test_interval"].keys() == figures.keys()
    intervals = {name: interval for name, interval in record["test_interval"].items() if interval is not None}
    assert all(low <= figures[name] <= high for name, (low, high) in intervals.items())
    assert intervals.keys() >= {"loss", "accuracy", "micro_f1", "macro_f1"}
    assert record["test_confusion"] == {
        "labels": NAMES,
        "columns": ["tn", "fp", "fn", "tp"],
        "matrix": multilabel_confusion_matrix(actual, table(told, "labels")).reshape(3, 4).tolist(),
    }

    # they are the best for the validation documents, of this very model
    val = load(RUN).predict([row["text"] for row in multilabel_rows(80, 1)])
    scores = np.array([[row["probabilities"][name] for name in NAMES] for row in val if row])
    truth = table(multilabel_rows(80, 1))
    for i, threshold in enumerate(stored.thresholds):
        reached = f1_score(truth[:, i], scores[:, i] >= threshold)
        assert all(f1_score(truth[:, i], scores[:, i] >= other) <= reached for other in scores[:, i])
    chosen = f1_score(truth, scores >= np.array(stored.thresholds), average="macro")
    assert record["val"]["macro_f1"] == pytest.approx(chosen, abs=1e-6)

    events = EventAccumulator(str(RUN)).Reload()
    assert {"val/confusion/text_summary", "test/confusion/text_summary"} <= set(events.Tags()["tensors"])


def test_a_test_leaves_the_thresholds_alone_and_a_resumed_run_goes_on_with_them(
    cli: Command, config: Path, begun: list[int]
) -> None:
    short = ("--config", config, "--name", "multi", "--trainer.max_epochs", "1")
    assert cli("fit", *short).code == 0
    before = read_checkpoint(RUN / "checkpoints" / "best.ckpt")
    assert cli("validate", "--ckpt_path", RUN).code == 0
    assert cli("test", "--ckpt_path", RUN, "--data.test", write(Path("other.jsonl"), multilabel_rows(40, 9))).code == 0
    told = read(RUN / "test-other.json")
    assert list(told["thresholds"].values()) == before.thresholds
    assert read_checkpoint(RUN / "checkpoints" / "best.ckpt").thresholds == before.thresholds
    (RUN / "metrics.json").unlink()
    longer = ("fit", *short[:-1], "2")
    step = read_checkpoint(RUN / "checkpoints" / "last.ckpt").global_step
    assert cli(*longer, "--ckpt_path", "last").code == 0
    assert begun == [0, step]
    resumed = read_checkpoint(RUN / "checkpoints" / "last.ckpt")
    assert cli(*longer).code == 0
    assert resumed.thresholds == read_checkpoint(Path("logs/multi/version_1/checkpoints/last.ckpt")).thresholds


def test_rejects_a_figure_that_multilabel_data_lack_and_data_of_one_label(cli: Command, config: Path) -> None:
    result = cli("fit", "--config", config, "--checkpoint.monitor", "val/mcc")
    assert result.code == 2
    assert "no figure val/mcc to monitor" in result.err
    result = cli("fit", "--config", config, "--data.val", write(Path("one.jsonl"), [{"text": "a", "label": "sea"}]))
    assert result.code == 2
    assert "one.jsonl: one label a document" in result.err
    result = cli("fit", "--config", config, "--data.test", write(Path("b.jsonl"), [{"text": "a", "label": ["pear"]}]))
    assert result.code == 2
    assert "b.jsonl, row 1: label 'pear'" in result.err


def test_checkpoints_from_before_are_of_one_label_and_damaged_thresholds_are_told(trained: Trained) -> None:
    path = trained.finetune / "checkpoints" / "best.ckpt"
    entries = read_entries(path)
    assert checkpoint_in(entries, path).thresholds is None
    before = {k: v for k, v in entries["lit_sft"].items() if k not in ("multilabel", "thresholds")}
    old = checkpoint_in({**entries, "lit_sft": before}, path)
    assert (old.multilabel, old.thresholds) == (False, None)
    for wrong in ([0.5, 0.5], [0.5, 0.5, 1.5], [0.5, 0.5, math.nan], [0.5, 0.5, "a"], 0.5):
        with pytest.raises(UserError, match="its thresholds can't be used"):
            checkpoint_in({**entries, "lit_sft": {**before, "multilabel": True, "thresholds": wrong}}, path)
    with pytest.raises(UserError, match="its multilabel can't be used"):
        checkpoint_in({**entries, "lit_sft": {**before, "multilabel": 1}}, path)


def test_only_a_fit_tunes_thresholds(workplace: Path, shared_cache: Path) -> None:
    sources = {
        name: write(workplace / f"{name}.jsonl", multilabel_rows(size, i)) for i, (name, size) in enumerate(SIZES)
    }
    data = TextDataModule(**sources, vocab_size=300, cache_dir=str(shared_cache))
    module = module_of("finetune")
    trainer_of(workplace, max_epochs=1, limit_val_batches=1.0, num_sanity_val_steps=2).fit(module, datamodule=data)
    tuned = module.evaluation.thresholds
    assert tuned is not None
    assert tuned != [0.5] * 3
    figures = trainer_of(workplace, limit_val_batches=1.0).validate(module, datamodule=data, verbose=False)
    trainer_of(workplace).test(module, datamodule=data, verbose=False)
    assert module.evaluation.thresholds == tuned
    module.evaluation.thresholds = [0.9, 0.9, 0.9]
    others = trainer_of(workplace, limit_val_batches=1.0).validate(module, datamodule=data, verbose=False)
    assert module.evaluation.thresholds == [0.9] * 3
    assert others[0]["val/macro_f1"] < figures[0]["val/macro_f1"]
    assert others[0]["val/auroc"] == figures[0]["val/auroc"]


def test_averaged_weights_are_tested_at_their_own_thresholds(cli: Command, config: Path) -> None:
    averaging = ("--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9")
    assert cli("fit", "--config", config, "--name", "multi", "--trainer.max_epochs", "3", *averaging).code == 0
    stored = read_checkpoint(RUN / "checkpoints" / "best.ckpt").thresholds
    assert stored is not None
    val = load(RUN).predict([row["text"] for row in multilabel_rows(80, 1)])
    scores = np.array([[row["probabilities"][name] for name in NAMES] for row in val if row])
    figures = read(RUN / "metrics.json")["val"]
    chosen = f1_score(table(multilabel_rows(80, 1)), scores >= np.array(stored), average="macro")
    assert figures["macro_f1"] == pytest.approx(chosen, abs=1e-6)
