"""A language model that learns to answer, from the command line to Python: pretrained, fine-tuned, measured, asked.

The small corpus once more, each text a prompt and its subject the response.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
import yaml
from conftest import Command, Files, Result, Trained, read, tiny_options
from refusals import one_line, refused
from test_texts_compared import of_torchmetrics

from lit_sft import load
from lit_sft.checkpoints import read_checkpoint
from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import UserError
from lit_sft.main import main
from lit_sft.module import LitSFT
from lit_sft.objectives import Completion

pytestmark = pytest.mark.filterwarnings("ignore:transductive:")  # test copies are planted


def options_of(files: Files, epochs: int = 12, **data: Any) -> dict[str, Any]:
    options: dict[str, Any] = tiny_options(files, "finetune")
    options["data"] |= {"response_column": "label", "max_response_length": 6, **data}
    options["model"] |= {"objective": "lit_sft.objectives.Completion", "num_beams": 2}
    options["trainer"] |= {"max_epochs": epochs, "check_val_every_n_epoch": 4}
    return options


@pytest.fixture(scope="module")
def run(files: Files, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers, and was tested; copy it before changing it."""
    folder = tmp_path_factory.mktemp("responses")
    options = options_of(files, 40, tokenizer="word")
    sizes = {"embedding_size": 24, "hidden_size": 48, "embedding_dropout": 0.0, "output_dropout": 0.0}
    options["model"]["encoder"]["init_args"] = sizes
    options["model"]["optimizer"]["init_args"]["lr"] = 0.005
    options["trainer"]["gradient_clip_val"] = 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LIT_SFT_CACHE", str(shared_cache))
        Path("pairs.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
        assert main(["fit", "--config", "pairs.yaml", "--run_dir", str(folder / "run")]) == 0
        assert main(["test", "--ckpt_path", str(folder / "run")]) == 0
    return folder / "run"


CONSTANT = "lit_sft.optim.Constant"  # the same rate at a step, whatever the number of steps is


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def test_it_learns_to_answer(run: Path) -> None:
    """Thirty prompts, each of which has one of three answers."""
    record = read(run / "metrics.json")
    assert record["test"]["exact_match"] > 0.9
    assert record["stage"] == "finetune"
    assert record["val"]["loss"] < 0.5
    low, high = record["test_interval"]["exact_match"]
    assert low <= record["test"]["exact_match"] <= high


def test_the_figures_are_those_of_the_responses_that_are_kept(run: Path, files: Files) -> None:
    rows, record = rows_of(run / "responses.parquet"), read(run / "metrics.json")
    with files.test.open(newline="", encoding="utf-8") as file:
        expected = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    assert [(row["prompt"], row["reference"]) for row in rows] == expected
    assert [row["document"] for row in rows] == list(range(30))
    figures = of_torchmetrics([row["response"] for row in rows], [row["reference"] for row in rows])
    assert {name: record["test"][name] for name in figures} == pytest.approx(figures, abs=1e-6)
    checkpoint = read_checkpoint(run / "checkpoints" / "best.ckpt")
    tokens = np.array([len(ids) + 1 for ids in checkpoint.tokenizer().encode_batch([label for _, label in expected])])
    loss = float((np.array([row["loss"] for row in rows]) * tokens).sum() / tokens.sum())
    assert record["test"]["loss"] == pytest.approx(loss, rel=1e-4)
    size = sum(len(label.encode()) for _, label in expected)
    assert record["test"]["bits_per_byte"] == pytest.approx(loss / np.log(2) * tokens.sum() / size, rel=1e-4)
    assert {"loss", "perplexity", "bits_per_byte", *figures} <= set(record["test_interval"])


@torch.no_grad()
def test_the_loss_is_that_of_the_network_read_by_hand(run: Path) -> None:
    predictor, rows = load(run), rows_of(run / "responses.parquet")
    network, tokenizer = predictor.network, predictor.tokenizer
    assert network.lm_head is not None
    for row in rows[:3]:
        prompt, response = (ids.tolist() for ids in tokenizer.encode_batch([row["prompt"], row["reference"]]))
        eos = tokenizer.eos_id
        ids = torch.tensor([[eos, *prompt[:32], eos, *response, eos]])
        hidden = network.encoder(
            network.encoder.embed(ids, network.encoder.draw_masks(*ids.shape)),
            torch.ones_like(ids),
            network.encoder.initial_state(1),
            network.encoder.draw_masks(*ids.shape),
        ).hidden[0]
        log_p = network.lm_head.log_prob(hidden)[:-1].gather(1, ids[0, 1:, None]).squeeze(1)
        assert row["loss"] == pytest.approx(-float(log_p[-len(response) - 1 :].mean()), rel=1e-4)


def test_predict_answers_each_row_in_its_order(run: Path, cli: Command, workplace: Path) -> None:
    rows = rows_of(run / "responses.parquet")
    lines = [json.dumps({"text": row["prompt"]}) for row in rows]
    lines.insert(3, json.dumps({"text": " "}))
    Path("in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert cli("predict", "--ckpt_path", run, "--input", "in.jsonl", "--output", "out.jsonl").code == 0
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert found.pop(3) is None
    assert found == [{"response": row["response"]} for row in rows]


def test_predict_searches_as_it_is_told(run: Path, cli: Command, workplace: Path, trained: Trained) -> None:
    prompts = [row["prompt"] for row in rows_of(run / "responses.parquet")][:4]
    Path("in.txt").write_text("\n".join(prompts), encoding="utf-8")
    predict = ("predict", "--input", "in.txt", "--output", "-", "--ckpt_path")
    found = [json.loads(line)["response"] for line in cli(*predict, run, "--num_beams", "1").out.splitlines()]
    assert found == load(run).respond(prompts, num_beams=1)
    found = [json.loads(line)["response"] for line in cli(*predict, run, "--max_new_tokens", "1").out.splitlines()]
    assert found == load(run).respond(prompts, max_new_tokens=1)
    one_line(cli(*predict, run, "--num_beams", "0"), "--num_beams 0 must be at least 1")
    one_line(cli(*predict, trained.finetune, "--num_beams", "2"), "--num_beams is for a model that answers prompts")


def test_from_python(run: Path) -> None:
    predictor, rows = load(run), rows_of(run / "responses.parquet")
    prompts = [row["prompt"] for row in rows]
    assert predictor.predict([prompts[0], None]) == [{"response": rows[0]["response"]}, None]
    assert predictor.respond(prompts) == [row["response"] for row in rows]
    assert list(predictor.respond_iter(iter(prompts))) == [row["response"] for row in rows]
    (short,) = predictor.respond(prompts[:1], max_new_tokens=1)
    assert short is not None
    assert len(predictor.tokenizer.encode_batch([short])[0]) <= 1
    with pytest.raises(UserError, match="can't classify"):
        list(predictor.probabilities(prompts))
    with pytest.raises(UserError, match="must be at least 1"):
        predictor.respond(prompts, num_beams=-1)
    assert predictor.encode(prompts).shape == (30, 48)


@torch.no_grad()
def test_a_classifier_and_a_pretraining_do_not_answer(trained: Trained) -> None:
    for path in (trained.finetune, trained.pretrain):
        with pytest.raises(UserError, match="can't answer"):
            load(path).respond(["a text"])


def test_validate_keeps_its_responses(run: Path, cli: Command, workplace: Path) -> None:
    shutil.copytree(run, "run")
    result = cli("validate", "--ckpt_path", "run")
    assert result.code == 0, result.err
    rows, best = rows_of(Path("run/val-responses.parquet")), read(run / "metrics.json")["val"]
    assert len(rows) == 30
    assert "val/exact_match" in result.out
    tokenizer = read_checkpoint(run / "checkpoints" / "best.ckpt").tokenizer()
    tokens = np.array([len(ids) + 1 for ids in tokenizer.encode_batch([row["reference"] for row in rows])])
    loss = np.array([row["loss"] for row in rows])
    assert (loss * tokens).sum() / tokens.sum() == pytest.approx(best["loss"], rel=1e-4)
    assert not Path("run/val-predictions.parquet").exists()


def test_a_test_of_other_data_stands_beside_it(run: Path, cli: Command, workplace: Path, files: Files) -> None:
    shutil.copytree(run, "run")
    before = read(Path("run/metrics.json"))
    result = cli("test", "--ckpt_path", "run", "--data.test", files.val)
    assert result.code == 0, result.err
    assert read(Path("run/metrics.json")) == before
    beside = list(Path("run").glob("test-*.json"))
    assert len(beside) == 1
    assert read(beside[0])["data"]["num_beams"] == 2
    assert len(rows_of(beside[0].with_suffix(".parquet"))) == 30
    assert read(beside[0])["data"]["response_column"] == "label"


def test_copies_of_training_prompts_are_told_apart(cli: Command, workplace: Path, files: Files) -> None:
    train = files.train.read_text().splitlines(True)
    Path("test.csv").write_text(files.test.read_text() + "".join(train[1:11]))
    Path("pairs.yaml").write_text(yaml.safe_dump(options_of(files, 1, test="test.csv")), encoding="utf-8")
    assert cli("fit", "--config", "pairs.yaml", "--run_dir", "run").code == 0
    assert cli("test", "--ckpt_path", "run").code == 0
    record, rows = read(Path("run/metrics.json")), rows_of(Path("run/responses.parquet"))
    clean = [row for row in rows if row["clean"]]
    assert 25 <= len(clean) <= 30 < len(rows) == 40
    figures = of_torchmetrics([row["response"] for row in clean], [row["reference"] for row in clean])
    assert {name: record["test_clean"][name] for name in figures} == pytest.approx(figures, abs=1e-6)
    assert record["test_clean"]["loss"] != record["test"]["loss"]
    tokenizer = read_checkpoint(Path("run/checkpoints/last.ckpt")).tokenizer()
    tokens = sum(len(ids) + 1 for ids in tokenizer.encode_batch([row["reference"] for row in clean]))
    size = sum(len(row["reference"].encode()) for row in clean)
    bits = record["test_clean"]["loss"] / np.log(2) * tokens / size
    assert record["test_clean"]["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_the_batch_size_of_streams_makes_no_other_test(run: Path, cli: Command, workplace: Path) -> None:
    """Pairs are not read in streams, so that this is the test that the record has already."""
    shutil.copytree(run, "run")
    assert cli("test", "--ckpt_path", "run", "--data.batch_size", "3").code == 0
    assert not list(Path("run").glob("test-*"))


def test_copies_of_test_prompts_are_left_out_whatever_they_were_answered_with(
    shared_cache: Path, tmp_path: Path
) -> None:
    """A response that no other prompt has is no class that would be lost."""
    rows = [{"text": f"the prompt number {i} of all", "response": f"response {i}"} for i in range(20)]
    for name, some in (("train", rows), ("test", rows[:3])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    paths = {"labeled": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    options = {"response_column": "response", "remove_test_copies": True, "cache_dir": str(shared_cache)}
    corpus = TextDataModule(**paths, **options).corpus
    assert len(corpus.train) + len(corpus.val) == 17
    assert not {row["text"] for row in rows[:3]} & {*corpus.train.texts, *corpus.val.texts}


def test_another_search_is_another_test(run: Path, cli: Command, workplace: Path) -> None:
    shutil.copytree(run, "run")
    before = read(Path("run/metrics.json"))
    assert cli("test", "--ckpt_path", "run", "--model.num_beams", "1").code == 0
    assert read(Path("run/metrics.json")) == before
    (beside,) = Path("run").glob("test-*.json")
    assert read(beside)["data"]["num_beams"] == 1
    assert read(beside)["test"]["loss"] == pytest.approx(before["test"]["loss"])


def test_a_cut_response_has_no_bits_per_byte_and_the_card_says_what_is_cut(
    cli: Command, workplace: Path, files: Files
) -> None:
    options = options_of(files, 1, max_response_length=2)
    Path("pairs.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    result = cli("fit", "--config", "pairs.yaml", "--run_dir", "run")
    assert "bits_per_byte" not in read(Path("run/metrics.json"))["val"]
    assert re.search(r"cut in train: \d+\.\d% of the prompts \(over 32 tokens\), \d+\.\d% of the responses", result.log)
    assert cli("test", "--ckpt_path", "run", "--data.max_response_length", "6").code == 0  # other data, the same text
    (beside,) = Path("run").glob("test-*.json")
    assert {"bits_per_byte", "bleu"} <= set(read(beside)["test"])
    assert "test_clean" in read(beside)


def test_a_broken_off_run_goes_on_as_if_it_had_not_been(cli: Command, workplace: Path, files: Files) -> None:
    Path("pairs.yaml").write_text(yaml.safe_dump(options_of(files, 2)), encoding="utf-8")
    fit = ("fit", "--config", "pairs.yaml", "--trainer.check_val_every_n_epoch", "1", "--model.schedule", CONSTANT)
    assert cli(*fit, "--run_dir", "whole").code == 0
    assert cli(*fit, "--run_dir", "parts", "--saving.every_steps", "3", "--trainer.max_steps", "10").code == 0
    assert cli(*fit, "--ckpt_path", "parts/checkpoints/last.ckpt", "--run_dir", "rest").code == 0
    whole, parts = (read_checkpoint(Path(name, "checkpoints/last.ckpt")) for name in ("whole", "rest"))
    assert whole.global_step == parts.global_step > 10
    for name, weight in whole.network_weights().items():
        assert torch.equal(weight, parts.network_weights()[name]), name


def test_a_recipe_that_would_read_responses_backward_is_told_before_its_pretraining(
    cli: Command, workplace: Path, files: Files
) -> None:
    options = options_of(files, 1)
    data = options.pop("data")
    Path("answer.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    stages = [{"name": "pretrain", "model": {"stage": "pretrain"}}, {"name": "finetune", "config": "answer.yaml"}]
    Path("recipe.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    Path("data.yaml").write_text(yaml.safe_dump({"data": data}), encoding="utf-8")
    flags = ("--config", "data.yaml", "--data.direction", "backward")
    one_line(cli("fit", "--config", "recipe.yaml", *flags), "leave out --data.direction backward")
    assert not Path("logs").exists()


def test_what_does_not_go_together_is_told(
    cli: Command, workplace: Path, files: Files, run: Path, trained: Trained
) -> None:
    def fit(*arguments: object, **data: Any) -> Result:
        options = options_of(files, 1, **data)
        Path("pairs.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
        return cli("fit", "--config", "pairs.yaml", *arguments)

    refused(fit(response_column=None), "set --data.response_column")
    refused(fit("--model.objective", "Supervised"), "data.response_column", "--model.objective Completion")
    refused(fit("--model.stage", "pretrain"), "model.stage pretrain doesn't go with model.objective Completion")
    refused(fit("--data.labels_per_class", "3"), "prompts with responses have no classes")
    refused(fit("--model.encoder", "TwoWayEncoder"), "TwoWayEncoder")
    refused(fit("--data.direction", "backward"), "leave out --data.direction backward")
    refused(fit("--model.num_beams", "0"), "--model.num_beams 0")
    refused(fit("--checkpoint.monitor", "val/bleu"), "val/bleu", "a fit writes no responses")
    refused(fit("--model.backprop_tokens", "5"), "backprop_tokens is for classifiers")
    one_line(cli("test", "--ckpt_path", run, "--data.response_column", "null"), "give --data.response_column")
    other = ("--data.test", files.test, "--data.response_column", "label")
    one_line(cli("test", "--ckpt_path", trained.finetune, *other), "leave out --data.response_column")
    one_line(cli("test", "--ckpt_path", f"{run},{run}"), "classif")


def test_a_pretraining_reads_both_texts_of_a_pair(cli: Command, workplace: Path, files: Files) -> None:
    options = tiny_options(files, "pretrain")
    options["data"]["response_column"] = "label"  # type: ignore[index]
    Path("text.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    assert cli("fit", "--config", "text.yaml", "--run_dir", "run").code == 0
    assert "perplexity" in read(Path("run/metrics.json"))["val"]
    Path("pairs.yaml").write_text(yaml.safe_dump(options_of(files, 1)), encoding="utf-8")
    assert cli("fit", "--config", "pairs.yaml", "--model.init_from", "run", "--run_dir", "answers").code == 0


def test_the_modules_python_names_do_it_too(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    from training import data_of, trainer_of

    data = data_of(files, shared_cache, response_column="label")
    module = LitSFT("finetune", objective=Completion(), num_beams=3)
    trainer = trainer_of(tmp_path, max_steps=2, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert load(tmp_path / "x.ckpt").num_beams == LitSFT.load_from_checkpoint(tmp_path / "x.ckpt").num_beams == 3
    assert isinstance(data, TextDataModule)
    (figures,) = trainer.test(module, datamodule=data, verbose=False)
    assert 0.0 <= figures["test/bleu"] <= 1.0
    again = LitSFT.load_from_checkpoint(tmp_path / "x.ckpt")
    assert isinstance(again.objective, Completion)
