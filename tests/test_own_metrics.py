"""Figures of the user's own: what they measure, which way is better, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Command, Configs, Files, Fit, Trained, multilabel_rows, read, write_csv
from processes import run_ranks
from refusals import one_line, refused
from sklearn.metrics import cohen_kappa_score, fbeta_score
from torchmetrics import Metric
from torchmetrics.classification import BinaryFBetaScore, MulticlassCalibrationError, MulticlassFBetaScore

from lit_sft import LitSFT, load
from lit_sft.callbacks import BestCheckpoint, EarlyStop, NonMonotonicAveraging
from lit_sft.checkpoints import read_checkpoint
from lit_sft.errors import UserError
from lit_sft.evaluation.metrics import better
from lit_sft.evaluation.own import OwnMetrics
from lit_sft.evaluation.predictions import Predictions, read_predictions

RUN = Path("logs/tiny-finetune/version_0")
F2 = {
    "class_path": "torchmetrics.classification.MulticlassFBetaScore",
    "init_args": {"beta": 2.0, "num_classes": 3, "average": "macro"},
}
KAPPA = {"class_path": "torchmetrics.classification.MulticlassCohenKappa", "init_args": {"num_classes": 3}}
DOCUMENTS = {"class_path": "own_figures.Documents"}

Given = Callable[..., Path]


@pytest.fixture
def given(configs: Configs) -> Given:
    """``given({"f2": F2}, checkpoint={...})``: the tiny fine-tuning's config with these metrics and options."""

    def write(metrics: dict[str, Any] | None, **sections: dict[str, Any]) -> Path:
        options = read(configs.finetune)
        if metrics is not None:
            options["model"]["metrics"] = metrics
        for section, values in sections.items():
            options[section] = {**options.get(section, {}), **values}
        configs.finetune.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
        return configs.finetune

    return write


def f2_of(p: Predictions) -> float:
    return float(fbeta_score(p.labels, p.probabilities.argmax(1), beta=2, average="macro", zero_division=0))


def by_load(run: Path, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predicted labels, by what ``load`` makes of a file's texts."""
    with file.open(newline="", encoding="utf-8") as source:
        rows = list(csv.DictReader(source))
    predicted = [row["label"] for row in load(run, device="cpu").predict([r["text"] for r in rows]) if row]
    return np.array([row["label"] for row in rows]), np.array(predicted)


def test_own_figures_stand_beside_ours(given: Given, fit: Fit, cli: Command, files: Files) -> None:
    config = given({"f2": F2, "kappa": KAPPA, "documents": DOCUMENTS}, trainer={"max_epochs": 2})
    result = fit()
    assert result.code == 0, result.err
    assert "val/f2" in result.log
    record = read(RUN / "metrics.json")
    labels, predicted = by_load(RUN, files.val)
    assert record["val"]["f2"] == pytest.approx(fbeta_score(labels, predicted, beta=2, average="macro"), abs=1e-6)
    assert record["val"]["kappa"] == pytest.approx(cohen_kappa_score(labels, predicted), abs=1e-6)
    assert record["val"]["documents"] == 130  # all 30 in one update, of several batches
    assert not any("own" in name for name in read_checkpoint(RUN / "checkpoints/best.ckpt").state_dict)

    # the user's class is named again, or left out: a checkpoint names no code
    one_line(cli("test", "--ckpt_path", RUN), "its metric documents is own_figures.Documents", "--model.metrics '{}'")
    measured = cli("validate", "--ckpt_path", RUN, "--model.metrics", "{}")
    assert measured.code == 0
    assert "val/f2" not in measured.out
    result = cli("test", "--ckpt_path", RUN, "--config", config)
    assert result.code == 0, result.err
    assert "test/f2" in result.out
    record, kept = read(RUN / "metrics.json"), read_predictions(RUN / "predictions.parquet")
    assert record["test"]["f2"] == pytest.approx(f2_of(kept), abs=1e-6)
    assert record["test"]["documents"] == record["test_clean"]["documents"] == 130
    assert cli("fit", "--config", RUN / "config.yaml", "--run_dir", "again").code == 0  # as it was written
    assert read(Path("again/metrics.json"))["val"] == record["val"]


def test_torchmetrics_own_are_followed_in_a_test_unless_others_are_named(given: Given, fit: Fit, cli: Command) -> None:
    given({"f2": F2})
    assert fit().code == 0
    measured = cli("validate", "--ckpt_path", RUN, "--model.metrics.kappa", KAPPA["class_path"])
    assert measured.code == 2  # its number of classes isn't given
    named = ("--model.metrics", json.dumps({"kappa": KAPPA}))
    measured = cli("validate", "--ckpt_path", RUN, *named)
    assert "val/kappa" in measured.out
    assert "val/f2" not in measured.out
    assert cli("test", "--ckpt_path", RUN).code == 0
    assert read(RUN / "metrics.json")["test"]["f2"] == pytest.approx(
        f2_of(read_predictions(RUN / "predictions.parquet")), abs=1e-6
    )


def test_the_clean_part_has_them_too(given: Given, fit: Fit, cli: Command, files: Files) -> None:
    rows = []
    for path, chosen in ((files.train, slice(None)), (files.test, slice(0, 7))):
        with path.open(newline="", encoding="utf-8") as file:
            rows += [(row["text"], row["label"]) for row in csv.DictReader(file)][chosen]
    given({"f2": F2, "documents": DOCUMENTS}, data={"labeled": str(write_csv(Path("copies.csv").resolve(), rows))})
    assert fit().code == 0
    assert cli("test", "--ckpt_path", RUN, "--config", "configs/tiny/finetune.yaml").code == 0
    record, kept = read(RUN / "metrics.json"), read_predictions(RUN / "predictions.parquet")
    assert kept.clean is not None
    assert record["test"]["documents"] == 130
    assert record["test_clean"]["documents"] == 123
    assert record["test_clean"]["f2"] == pytest.approx(f2_of(kept.select(kept.clean)), abs=1e-6)


def test_an_ensemble_has_them_of_the_mean(given: Given, fit: Fit, cli: Command) -> None:
    given({"f2": F2})
    for seed in (1, 2):
        assert fit("--seed_everything", seed).code == 0
    other = RUN.with_name("version_1")
    assert cli("test", "--ckpt_path", f"{RUN},{other}").code == 0
    found = read(RUN / "test-ensemble.json")
    assert found["test"]["f2"] == pytest.approx(f2_of(read_predictions(RUN / "test-ensemble.parquet")), abs=1e-6)
    assert found["test_clean"]["f2"] == found["test"]["f2"]


def test_of_many_labels_they_get_rows_of_both(given: Given, fit: Fit, cli: Command) -> None:
    data: dict[str, Any] = {}
    for seed, name in enumerate(("labeled", "val", "test")):
        path = Path(f"{name}.jsonl").resolve()
        path.write_text("".join(json.dumps(row) + "\n" for row in multilabel_rows(60, seed)))
        data[name] = str(path)
    options = {"beta": 2.0, "num_labels": 3, "threshold": 0.3}
    given({"f2": {"class_path": "torchmetrics.classification.MultilabelFBetaScore", "init_args": options}}, data=data)
    assert fit().code == 0
    assert cli("test", "--ckpt_path", RUN).code == 0
    kept = read_predictions(RUN / "predictions.parquet")
    expected = fbeta_score(kept.labels, kept.probabilities > 0.3, beta=2, average="macro", zero_division=0)
    assert read(RUN / "metrics.json")["test"]["f2"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)
def test_two_processes_measure_what_one_does(given: Given, cli: Command, fit: Fit) -> None:
    """Of a class that says nothing of processes, too: each of them has all documents."""
    config = given({"f2": F2, "documents": DOCUMENTS})
    assert fit().code == 0
    arguments = ["validate", "--ckpt_path", RUN, "--config", config]
    one = cli(*arguments)
    ended = run_ranks(2, *arguments)
    assert [code for code, _ in ended] == [0, 0], ended

    def told(text: str) -> dict[str, float]:
        lines = [line.split("│") for line in text.splitlines() if "val/" in line]
        return {cells[1].strip(): float(cells[2]) for cells in lines}

    assert told(one.out)["val/documents"] == 130
    assert told(ended[0][1]) == pytest.approx(told(one.out), abs=1e-5)


# ---- which way is better


class Undirected(MulticlassFBetaScore):
    higher_is_better = None  # type: ignore[assignment]


def test_the_metric_tells_which_way_is_better() -> None:
    own: dict[str, Metric] = {
        "f2": MulticlassFBetaScore(2.0, 3),
        "calibration": MulticlassCalibrationError(3),
        "mine": Undirected(2.0, 3),
    }
    assert [better(f"val/{name}", own) for name in own] == ["max", "min", None]
    assert better("val/f2") is None
    assert better("val/loss", own) == "min"
    assert better("val/macro_f1", own) == "max"


@pytest.mark.parametrize("kind", [BestCheckpoint, EarlyStop])
def test_a_callback_learns_it_when_a_fit_begins(kind: type[BestCheckpoint | EarlyStop]) -> None:
    from training import module_of, trainer_of

    module = module_of("finetune", metrics={"f2": MulticlassFBetaScore(2.0, 3), "mine": Undirected(2.0, 3)})
    trainer = trainer_of(Path())
    callback, same = kind("val/f2"), kind("val/f2", "max")
    for one in (callback, same):
        one.setup(trainer, module, "fit")
    assert callback.mode == "max"
    start = "kth_value" if isinstance(callback, BestCheckpoint) else "best_score"
    assert getattr(callback, start) == getattr(same, start) == -torch.inf
    assert callback.state_key == same.state_key
    for monitor in ("val/mine", "lr-AdamW"):
        with pytest.raises(UserError, match=rf"{monitor} is monitored.*--checkpoint\.mode"):
            kind(monitor).setup(trainer, module, "fit")
        kind(monitor).setup(trainer, module, "test")
        kind(monitor, "min").setup(trainer, module, "fit")


def test_averaging_waits_for_no_figure_of_which_more_is_better() -> None:
    from training import module_of, trainer_of

    own: dict[str, Metric] = {"f2": MulticlassFBetaScore(2.0, 3), "calibration": MulticlassCalibrationError(3)}
    module, trainer = module_of("finetune", metrics=own), trainer_of(Path())
    with pytest.raises(UserError, match="of monitor val/f2 more is better"):
        NonMonotonicAveraging("val/f2").setup(trainer, module, "fit")
    NonMonotonicAveraging("val/f2").setup(trainer, module, "test")
    NonMonotonicAveraging("val/calibration").setup(trainer, module, "fit")


def test_the_best_checkpoint_is_the_best_by_the_users_figure(given: Given, fit: Fit) -> None:
    sections = {"checkpoint": {"monitor": "val/f2"}, "early_stopping": {"monitor": "val/surprise", "patience": 2}}
    given({"f2": F2, "surprise": {"class_path": "own_figures.MeanSurprise"}}, trainer={"max_epochs": 3}, **sections)
    result = fit()
    assert result.code == 0, result.err
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    states = {key: value for key, value in last["callbacks"].items() if "val/" in key}
    (best,) = (value for key, value in states.items() if "val/f2" in key and "'mode': 'max'" in key)
    (stop,) = (value for key, value in states.items() if "val/surprise" in key and "'mode': 'min'" in key)
    record = read(RUN / "metrics.json")["val"]
    assert record["f2"] == pytest.approx(float(best["best_model_score"]))
    assert record["surprise"] == pytest.approx(record["loss"], abs=1e-5)
    assert stop["wait_count"] < 2
    assert fit("--trainer.max_epochs", "4", "--ckpt_path", RUN / "checkpoints/last.ckpt").code == 0


def test_a_figure_without_a_direction_needs_a_mode(given: Given, fit: Fit) -> None:
    given({"documents": DOCUMENTS})
    for option in ("checkpoint", "early_stopping"):
        for monitor in ("val/documents", "train/grad_norm"):
            result = fit(f"--{option}.monitor", monitor)
            refused(result, f"{monitor} is monitored, and nothing tells", "--checkpoint.mode", "--early_stopping.mode")
    assert fit("--checkpoint.monitor", "val/documents", "--checkpoint.mode", "max").code == 0


def test_a_figure_that_a_callback_of_the_users_own_logs(given: Given, fit: Fit) -> None:
    monitored = ("--checkpoint.monitor", "val/rising")
    refused(fit(*monitored, "--checkpoint.mode", "max"), "no figure val/rising to monitor")  # nothing may log it
    given(None, trainer={"callbacks+": ["own_figures.LogsRising"], "max_epochs": 2})
    refused(fit(*monitored), "no figure val/rising to monitor", "give the mode")
    # one that isn't logged is told after the first validation
    for option in ("checkpoint", "early_stopping"):
        result = fit(f"--{option}.monitor", "val/risin", f"--{option}.mode", "max")
        assert result.code == 2
        assert result.err.count("\n") == 1
        assert "val/risin" in result.err
    assert fit(*monitored, "--checkpoint.mode", "max", "--run_dir", "run").code == 0
    assert read(Path("run/metrics.json"))["val"]["rising"] == 2


# ---- what is refused


@pytest.mark.parametrize(
    ("metrics", "parts"),
    [
        ({"accuracy": F2}, ["model.metrics.accuracy", "there is a figure accuracy already"]),
        ({"micro_f1": F2}, ["model.metrics.micro_f1", "there is a figure micro_f1 already"]),
        ({"precision": F2}, ["model.metrics.precision"]),
        ({"lm_f2": F2}, ["model.metrics.lm_f2"]),
        ({"recall/sea": F2}, ["model.metrics: 'recall/sea' can't name a figure"]),
        (
            {"f2": {**F2, "init_args": {"beta": 2.0, "num_classes": 7}}},
            [
                "model.metrics.f2: MulticlassFBetaScore fails on probabilities (6, 3) and labels (6,)",
                "number of classes",
            ],
        ),
        (
            {"f2": {**F2, "init_args": {**F2["init_args"], "average": "none"}}},  # type: ignore[dict-item]
            ["model.metrics.f2", "gives 3 numbers", "average"],
        ),
        ({"f2": {"class_path": "torchmetrics.classification.MulticlassFBeta"}}, ["model.metrics", "MulticlassFBeta"]),
        ({"f2": {"class_path": "torch.nn.LSTM"}}, ["--model.metrics torch.nn.LSTM: not a subclass of Metric"]),
        ({"f2": {"class_path": "nowhere.Metric"}}, ["--model.metrics nowhere.Metric: no such class"]),
        ({"f2": {"class_path": F2["class_path"]}}, ["MulticlassFBetaScore: give its beta, num_classes"]),
        (
            {"mine": {"class_path": "own_figures.FailsOn", "init_args": {"documents": 30}}},  # only in validation
            ["model.metrics.mine: FailsOn fails on probabilities (30, 3)", "ZeroDivisionError: none of the 7th kind"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_told_in_one_line(metrics: dict[str, Any], parts: list[str], given: Given, fit: Fit) -> None:
    given(metrics)
    refused(fit(), *parts)


def test_a_pretraining_has_no_labels_to_measure(cli: Command, configs: Configs) -> None:
    result = cli("fit", "--config", configs.pretrain, "--model.metrics", json.dumps({"f2": F2}))
    refused(result, "model.metrics", "give them to the fine-tuning of a classifier")


def test_the_trial_has_documents_of_each_class() -> None:
    """A metric of scikit-learn's that needs all classes, or of each label both kinds, gets them."""
    from sklearn.metrics import roc_auc_score

    class Ranking(MulticlassFBetaScore):
        def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
            several = {} if target.ndim == 2 else {"multi_class": "ovr"}
            assert np.isfinite(roc_auc_score(target.numpy(), preds.numpy(), **several))
            self.seen = len(target)

        def compute(self) -> torch.Tensor:
            return torch.tensor(float(self.seen))

    for classes in (3, 40):
        OwnMetrics({"auroc2": Ranking(2.0, 3)}, classes, multilabel=False)
        OwnMetrics({"auroc2": Ranking(2.0, 3)}, classes, multilabel=True)
    OwnMetrics({"f2": MulticlassFBetaScore(2.0, 2000)}, 2000, multilabel=False)
    OwnMetrics({"f2": BinaryFBetaScore(2.0)}, 1, multilabel=True)


def test_without_any_nothing_is_kept_for_them(trained: Trained) -> None:
    assert LitSFT.load_from_checkpoint(trained.finetune).evaluation.own is None
