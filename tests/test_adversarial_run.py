"""Adversarial objectives from the command line: what is trained, logged, warned of, and evaluated later."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Command, Configs, Files, Trained, read
from refusals import one_line
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_ddp import exact, train
from test_ddp import pytestmark as needs_gloo

import lit_sft
from lit_sft.evaluation.predictions import read_predictions
from lit_sft.objectives.reading import Reading, random_unit

TERMS = ["AT", "VAT", "EntMin", "AuxiliaryLM"]


def mixed(*terms: dict[str, Any], **options: Any) -> str:
    return json.dumps({"class_path": "lit_sft.objectives.Mixed", "init_args": {"terms": list(terms), **options}})


def spec(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": f"lit_sft.objectives.{name}", "init_args": options}


def newest(folder: Path) -> Path:
    return sorted(folder.glob("version_*"))[-1]


def scalars(run: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(run)).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore:.*vat_kl_ratio is")
def test_every_term_from_a_config_to_a_tested_model(
    cli: Command, configs: Configs, files: Files, trained: Trained, workplace: Path
) -> None:
    """From a language model, in steps; the checkpoint alone is enough for what comes after."""
    objective = mixed(*map(spec, TERMS), diagnose_every=2)
    options = [
        f"--data.unlabeled={files.unlabeled}",
        "--trainer.limit_train_batches=6",
        "--trainer.log_every_n_steps=1",
    ]
    start = [f"--model.init_from={trained.pretrain}", f"--model.objective={objective}"]
    result = cli("fit", "--config", configs.finetune, "--name=mixed", *start, *options)
    assert result.code == 0, result.err
    run = newest(workplace / "logs" / "mixed")
    logged = scalars(run)
    for name in ("supervised", "at", "vat", "entmin", "lm"):
        assert len(logged[f"train/{name}"]) == 6
    for name in ("vat_kl_ratio", "unlabeled_share", "predicted_0", "predicted_1", "predicted_2"):
        assert len(logged[f"train/{name}"]) == 3  # each measured at every other step
    assert "val/lm_perplexity" in logged
    chosen = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]["objective"]["init_args"][
        "terms"
    ]
    assert [term["class_path"] for term in chosen] == [f"lit_sft.objectives.{name}" for name in TERMS]
    assert cli("test", "--ckpt_path", run).code == 0
    record = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    tested = read_predictions(run / "predictions.parquet")
    assert record["test"]["accuracy"] == pytest.approx((tested.predicted == tested.labels).mean())
    assert record["test"]["lm_perplexity"] == pytest.approx(math.exp(record["test"]["lm_loss"]))
    assert set(record["test"]) == set(record["test_interval"]) == set(record["test_clean"])
    assert cli("validate", "--ckpt_path", run).code == 0
    assert len(lit_sft.load(run).predict(["the owl near the oak"])) == 1


@pytest.mark.parametrize("name", ["AT", "VAT"])
def test_what_is_trained_against_moves_does_less_harm_and_the_labels_are_learned(
    name: str, cli: Command, configs: Configs, workplace: Path
) -> None:
    """Beside the same term of weight 0, which is computed and not trained; the corpus is easy for both."""
    accuracies, harm = [], []
    for weight in (0, 1):
        objective = mixed(spec(name, norm=0.2, weight=weight))
        run = f"weight-{weight}"
        options = ("--trainer.max_epochs=6", "--trainer.log_every_n_steps=1", f"--name={run}")
        result = cli("fit", "--config", configs.finetune, f"--model.objective={objective}", *options)
        assert result.code == 0, result.err
        folder = newest(workplace / "logs" / run)
        accuracies.append(read(folder / "metrics.json")["val"]["accuracy"])
        ends = {tag: sum(values[-30:]) / 30 for tag, values in scalars(folder).items()}  # of the last two epochs
        harm.append(ends["train/vat"] if name == "VAT" else ends["train/at"] / ends["train/supervised"])
    assert min(accuracies) > 0.9
    assert harm[1] < 0.6 * harm[0]


def test_a_pretraining_may_be_adversarial(cli: Command, configs: Configs, workplace: Path) -> None:
    arguments = ["--model.objective=AdversarialMLE", "--model.objective.norm=0.5", "--trainer.log_every_n_steps=1"]
    result = cli("fit", "--config", configs.pretrain, "--name=adversarial", *arguments)
    assert result.code == 0, result.err
    logged = scalars(newest(workplace / "logs" / "adversarial"))
    assert all(a > b for a, b in zip(logged["train/adversarial_lm"], logged["train/lm"], strict=True))


def test_a_direction_no_better_than_chance_is_warned_of_once(
    cli: Command, configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reading, "steepest", lambda self, *_, exact: random_unit(self.reach, self.embeds))
    objective = mixed(spec("VAT"), diagnose_every=1)
    with pytest.warns(
        UserWarning, match=r"step 15: train/vat_kl_ratio is \d+\.\d\d: the adversarial direction"
    ) as found:
        result = cli("fit", "--config", configs.finetune, f"--model.objective={objective}", "--trainer.max_epochs=3")
    assert result.code == 0, result.err
    assert sum("vat_kl_ratio" in str(warning.message) for warning in found) == 1


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([spec("VAT", norm=-1.0)], "norm=-1.0 must be at least 0"),
        ([spec("AT"), spec("AT")], "terms are at, at: give each of them once"),
    ],
)
def test_a_mistake_in_a_term_is_one_line(
    terms: list[dict[str, Any]], message: str, cli: Command, configs: Configs
) -> None:
    result = cli("fit", "--config", configs.finetune, f"--model.objective={mixed(*terms)}")
    one_line(result, message)


@needs_gloo
def test_two_processes_train_with_terms_as_one_does(configs: Configs) -> None:
    """Batches that two can't halve: AT weighs as the supervised loss, the others by their own documents."""
    config = exact(configs, "finetune")
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    options["data"]["max_unlabeled_documents"] = 5
    options["model"]["objective"]["init_args"]["terms"] = [spec("AT", norm=0.3), spec("EntMin", weight=0.1)]
    options["model"]["objective"]["class_path"] = "lit_sft.objectives.Mixed"  # with the class weights of `exact`
    config.write_text(yaml.safe_dump(options), encoding="utf-8")
    one, two = train(config, "one", 1), train(config, "two", 2)
    assert len(one) > 10
    assert (one - two).abs().max() < 1e-6
