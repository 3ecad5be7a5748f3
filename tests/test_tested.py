"""The clean part of a test, its intervals, and what stands in the record."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, Configs, Files, Trained, labeled_rows, read, write_csv
from refusals import one_line
from training import data_of, module_of, trainer_of

from lit_sft.checkpoints import read_checkpoint
from lit_sft.evaluation.metrics import ClassificationMetrics
from lit_sft.evaluation.predictions import VAL_FILE, Predictions, read_predictions
from lit_sft.measured_data import holds_out_others, holds_out_trained, same_data

COPIED = (0, 3, 4, 11, 25)  # of the 30 test documents


@pytest.fixture
def copies(files: Files, tmp_path: Path) -> Path:
    """The training documents, and copies of some of the test's."""
    rows = []
    for path in (files.train, files.test):
        with path.open(newline="", encoding="utf-8") as file:
            found = [(row["text"], row["label"]) for row in csv.DictReader(file)]
            rows += found if path is files.train else [found[i] for i in COPIED]
    return write_csv(tmp_path / "copies.csv", rows)


def figures_of(p: Predictions) -> dict[str, float]:
    metrics = ClassificationMetrics(p.label_names)
    columns = (p.probabilities, p.labels, p.losses)
    metrics.update(*(torch.from_numpy(np.array(column)) for column in columns))
    return metrics.compute()


def test_the_clean_part_is_measured_apart_where_test_documents_were_trained_on(
    copies: Path, cli: Command, configs: Configs
) -> None:
    assert cli("fit", "--config", configs.finetune, "--data.labeled", copies).code == 0
    run = Path("logs/tiny-finetune/version_0")
    result = cli("test", "--ckpt_path", run)
    assert result.code == 0
    record, kept = read(run / "metrics.json"), read_predictions(run / "predictions.parquet")
    assert record["contamination"]["exact"] == len(COPIED)
    assert kept.clean is not None
    assert np.flatnonzero(~kept.clean).tolist() == list(COPIED)
    assert record["test"] == pytest.approx(figures_of(kept), abs=1e-5)
    assert record["test_clean"] == pytest.approx(figures_of(kept.select(kept.clean)), abs=1e-5)
    assert record["test_clean"]["loss"] != record["test"]["loss"]
    for split in ("test", "test_clean"):
        assert record[f"{split}_interval"].keys() == record[split].keys()
        for name, interval in record[f"{split}_interval"].items():
            value = record[split][name]
            if interval is None:  # biased, or a precision where nothing was predicted, which is 0 by convention
                assert name == "ece" or value == 0
            else:
                assert interval[0] <= value <= interval[1]
    assert record["test_interval"] != record["test_clean_interval"]
    assert "test_clean/accuracy" in result.out
    assert "; without copies of training documents: accuracy" in result.log


def test_a_clean_test_set_is_its_clean_part(trained: Trained, cli: Command, tmp_path: Path, files: Files) -> None:
    run = shutil.copytree(trained.finetune, tmp_path / "run")
    result = cli("test", "--ckpt_path", run)
    assert result.code == 0
    record = read(run / "metrics.json")
    assert record["test_clean"] == record["test"]
    assert record["test_clean_interval"] == record["test_interval"]
    assert record["contamination"]["clean_documents"] == 30
    assert "without copies" not in result.log
    # where the training data are not read nothing is known of copies
    shutil.copy(files.test, "other.csv")
    own = read_checkpoint(run / "checkpoints/best.ckpt").config["data"]
    assert cli("test", "--ckpt_path", run, "--data.test", "other.csv", "--data.labeled", own["labeled"]).code == 0
    other = read(run / "test-other.json")
    assert "test_clean" not in other
    for name, interval in record["test_interval"].items():
        assert other["test_interval"][name] == pytest.approx(interval)
    assert read_predictions(run / "test-other.parquet").clean is None


def test_a_test_says_nothing_of_copies_in_text_that_the_model_never_saw(
    trained: Trained, cli: Command, tmp_path: Path, files: Files
) -> None:
    run = shutil.copytree(trained.finetune, tmp_path / "run")
    own = read_checkpoint(run / "checkpoints/best.ckpt").config["data"]
    refused = cli("test", "--ckpt_path", run, "--data.remove_test_copies", "true")
    assert (refused.code, "is for a training, and that of" in refused.err) == (2, True)
    for changed in ({"labeled": str(files.val)}, {"unlabeled": str(files.unlabeled)}, {"val": None}):
        flags = [f"--data.{name}={'null' if value is None else value}" for name, value in changed.items()]
        assert cli("test", "--ckpt_path", run, *flags).code == 0
        assert "test" not in read(run / "metrics.json")
    others = [read(path) for path in run.glob("test-*.json")]
    assert len(others) == 3
    assert not any("test_clean" in record or "exact" in record["contamination"] for record in others)
    # its own test, whose file is written in another way, or read in batches of another size, is its own
    relative = Path(own["test"]).resolve().relative_to("/")
    flags = ["--data.test", Path("/") / ".." / relative, "--data.batch_size", 2]
    assert cli("test", "--ckpt_path", run, *flags).code == 0
    assert read(run / "metrics.json")["test_clean"]


def test_text_that_has_changed_since_the_training_is_not_searched_for_copies(
    copies: Path, cli: Command, configs: Configs, files: Files
) -> None:
    shutil.copy(files.test, "test.csv")
    own = ("--data.labeled", copies, "--data.test", "test.csv")
    run, without = Path("logs/tiny-finetune/version_0"), Path("logs/without/version_0")
    assert cli("fit", "--config", configs.finetune, *own).code == 0
    assert cli("fit", "--config", configs.finetune, *own, "--data.remove_test_copies=true", "--name=without").code == 0
    kept = copies.read_bytes()
    shutil.copy(files.train, copies)  # cleaned, and the models not trained again
    with pytest.warns(UserWarning, match=r"hold other text than .*best\.ckpt was fed with: this test is of other data"):
        assert cli("test", "--ckpt_path", run).code == 0
    assert "test" not in read(run / "metrics.json")
    other = read(run / "test-test.json")
    assert "test_clean" not in other
    assert "exact" not in other["contamination"]
    copies.write_bytes(kept)
    assert cli("test", "--ckpt_path", run).code == 0
    assert read(run / "metrics.json")["contamination"]["exact"] == len(COPIED)
    write_csv(Path("test.csv"), labeled_rows(3, 5))  # of these no copies were left out
    with pytest.warns(UserWarning, match="this test is of other data"):
        assert cli("test", "--ckpt_path", without).code == 0
    assert "exact" not in read(without / "test-test.json")["contamination"]


@pytest.mark.parametrize(("name", "value"), [("remove_test_copies", "false"), ("text_column", "more")])
def test_text_that_is_read_in_another_way_is_not_searched_for_copies(
    name: str, value: str, cli: Command, configs: Configs, tmp_path: Path, files: Files
) -> None:
    given = []
    for option, path in (("labeled", files.train), ("val", files.val), ("test", files.test)):
        lines = path.read_text(encoding="utf-8").splitlines()
        text = "".join(f"{line},{'more' if i == 0 else f'the owl {i}'}\n" for i, line in enumerate(lines))
        (tmp_path / path.name).write_text(text, encoding="utf-8")
        given.append(f"--data.{option}={tmp_path / path.name}")
    given.append("--data.remove_test_copies=true")
    assert cli("fit", "--config", configs.finetune, *given).code == 0
    run = Path("logs/tiny-finetune/version_0")
    assert cli("test", "--ckpt_path", run, f"--data.{name}", value).code == 0
    assert "test" not in read(run / "metrics.json")
    assert "exact" not in read(run / "test-test.json")["contamination"]


def test_validation_documents_that_have_changed_are_not_the_runs(cli: Command, configs: Configs, files: Files) -> None:
    for path in (files.train, files.val):
        shutil.copy(path, path.name)
    files_here = ("--data.labeled", "train.csv", "--data.val", "val.csv")
    held_out = ("--data.labeled", "train.csv", "--data.val", "null", "--name", "held_out")
    for options in (files_here, held_out):
        assert cli("fit", "--config", configs.finetune, *options).code == 0
    run, part = Path("logs/tiny-finetune/version_0"), Path("logs/held_out/version_0")
    write_csv(Path("train.csv"), labeled_rows(20, 5))
    result = cli("validate", "--ckpt_path", part)
    one_line(result, "its val documents were a part of that: give --data.val a file")
    assert cli("validate", "--ckpt_path", run).code == 0  # validation's own file is as it was
    before = (run / VAL_FILE).read_bytes()
    write_csv(Path("val.csv"), labeled_rows(4, 5))
    with pytest.warns(UserWarning, match="this validate is of other data"):
        assert "no predictions are written" in cli("validate", "--ckpt_path", run).log
    assert (run / VAL_FILE).read_bytes() == before


def test_one_source_is_the_same_with_and_without_a_list() -> None:
    before = {"labeled": "a", "unlabeled": None, "val": None, "val_fraction": 0.1, "split_seed": 0}
    assert same_data({"labeled": ["a"]}, before, ["labeled"])
    assert not same_data({"labeled": ["a", "b"]}, before, ["labeled"])
    assert holds_out_others(before | {"labeled": ["a"], "val_fraction": 0.3}, before)


@pytest.mark.parametrize("flags", [("--data.split_seed", "1"), ("--data.val_fraction", "0.3")])
def test_no_others_are_held_out_than_in_the_run(flags: tuple[str, str], cli: Command, configs: Configs) -> None:
    assert cli("fit", "--config", configs.finetune, "--data.val", "null").code == 0
    run = Path("logs/tiny-finetune/version_0")
    one_line(cli("validate", "--ckpt_path", run, *flags), "other documents would be held out than in the run of")
    assert cli("validate", "--ckpt_path", run).code == 0
    further = ("fit", "--config", configs.finetune, "--data.val", "null", "--ckpt_path", run / "checkpoints/last.ckpt")
    one_line(
        cli(*further, "--trainer.max_epochs", "3", *flags), "it would validate on documents that it was trained on"
    )


def test_a_run_goes_on_with_no_validation_data_that_it_was_trained_on() -> None:
    held_out = {"labeled": ["a"], "unlabeled": ["u"], "val": None, "val_fraction": 0.1, "split_seed": 0}
    given = held_out | {"val": ["v"]}
    for before, now, refused in (
        (held_out, {"labeled": ["a", "b"]}, False),  # what was held out stays so
        (held_out, {"labeled": ["a", "b"], "val_fraction": 0.3}, True),
        (held_out, {"val": ["v"]}, False),
        (held_out, {"val": ["v", "u"]}, True),
        (held_out, {"val": ["./a"]}, False),  # no such files: names are compared
        (given, {}, False),
        (given, {"val": None, "labeled": ["a", "v"]}, True),
        (given, {"val": ["a"], "labeled": ["b"]}, True),
        (given, {"val": None, "labeled": "pydocs"}, False),  # has validation data of its own
    ):
        assert holds_out_trained(before | now, before) is refused, (before, now)
    assert not holds_out_trained(held_out, {})  # a checkpoint without options


def test_what_a_run_validated_on_is_not_replaced_by_its_training_text(trained: Trained, cli: Command) -> None:
    result = cli("validate", "--ckpt_path", trained.finetune, "--data.val", "null")
    one_line(result, "other documents would be held out than in the run of")


def test_other_validation_data_are_measured_whole(cli: Command, configs: Configs, files: Files) -> None:
    assert cli("fit", "--config", configs.finetune, "--data.val_labels_per_class", 2).code == 0
    run = Path("logs/tiny-finetune/version_0")
    assert "6 val," in cli("validate", "--ckpt_path", run).log
    for size, count in ((), 30), (("--data.val_labels_per_class", 3), 9):
        assert f"{count} val," in cli("validate", "--ckpt_path", run, "--data.val", files.test, *size).log


def test_another_network_than_the_runs_is_refused(trained: Trained, cli: Command) -> None:
    for command in ("test", "validate"):
        result = cli(command, "--ckpt_path", trained.finetune, "--model.pooling", "max")
        one_line(result, "which was trained with concat: leave model.pooling out")


@pytest.mark.parametrize("command", ["test", "validate"])
def test_nothing_to_measure_is_told(command: str, trained: Trained, cli: Command) -> None:
    option = f"--trainer.limit_{'test' if command == 'test' else 'val'}_batches"
    for paths in (trained.finetune, f"{trained.finetune},{trained.finetune}"):
        told = cli(command, "--ckpt_path", paths, option, "0")
        assert (told.code, f"{option} 0: there is nothing to measure" in told.err) == (2, True)


def written(run: Path) -> dict[str, bytes]:
    """A run's records, predictions and events."""
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def test_a_part_of_the_test_data_is_no_test_and_what_a_broken_off_one_has_left_is_replaced(
    trained: Trained, cli: Command, tmp_path: Path
) -> None:
    run = shutil.copytree(trained.finetune, tmp_path / "run")
    before = written(run)
    for limit in ("0.3", "0.5"):  # not "1", which typing's cache may make a batch or, as 1.0, all of them
        result = cli("test", "--ckpt_path", run, "--trainer.limit_test_batches", limit, "--data.max_tokens", "100")
        assert result.code == 0
        assert "a part of the test data was read" in result.log
        assert written(run) == before
    part = ("--trainer.limit_test_batches", "0.5", "--data.max_tokens", "100")
    assert cli("test", "--ckpt_path", f"{run},{trained.finetune}", *part).code == 0
    assert written(run) == before
    (run / "predictions.parquet").write_bytes(b"half")
    assert cli("test", "--ckpt_path", run).code == 0
    assert len(read_predictions(run / "predictions.parquet")) == 30


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_language_models_clean_part_are_the_tokens_of_clean_documents(
    batch_size: int, copies: Path, files: Files, tmp_path: Path
) -> None:
    data = data_of(files, tmp_path / "cache", labeled=str(copies), batch_size=batch_size, bptt=9)
    module, trainer = module_of("pretrain"), trainer_of(tmp_path)
    figures = trainer.test(module, data, verbose=False)[0]
    tested = module.tested
    assert tested is not None
    # the loss of every target, in the order of the text
    stream, nll = data.stream_loader("test").dataset, []
    state = module.net.encoder.initial_state(batch_size)
    with torch.inference_mode():
        for i in range(len(stream)):
            values, state = module.net.lm_nll(stream[i], state, module.net.draw_masks(batch_size, 9))
            nll.append(values)
    flat = torch.cat(nll, dim=1).flatten()[: stream.num_targets].numpy()
    documents = np.repeat(np.arange(30), data.test.lengths + 1)
    clean = ~np.isin(documents, COPIED)
    assert figures["test/loss"] == pytest.approx(flat.mean(), rel=1e-5)
    assert figures["test_clean/loss"] == pytest.approx(flat[clean].mean(), rel=1e-5)
    bits = flat[clean].sum() / math.log(2) / np.delete(data.test.num_bytes, COPIED).sum()
    assert figures["test_clean/bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    sums = np.bincount(documents, flat), np.bincount(documents)
    for part, chosen in ((tested.whole[""], slice(None)), (tested.clean[""], np.delete(np.arange(30), COPIED))):
        weights = np.arange(1.0, part.count + 1)[:, None]
        expected = (sums[0][chosen] @ weights) / (sums[1][chosen] @ weights)  # by document
        assert part.figures(weights)["loss"] == pytest.approx(expected, rel=1e-5)
    record: dict[str, Any] = tested.record()
    assert record["test_clean"].keys() == record["test_clean_interval"].keys() == record["test"].keys()
    low, high = record["test_clean_interval"]["loss"]
    assert low < figures["test_clean/loss"] < high
