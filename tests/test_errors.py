"""The documents that a run gets wrong: validation leaves its predictions, and each is found in its file by row."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import errors
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import Command, Files, Trained, labeled_rows, multilabel_rows, write_csv
from errors import data_of, places, shown, told, worst

from lit_sft import load
from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import UserError
from lit_sft.evaluation.predictions import VAL_FILE, Predictions, read_predictions


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    return shutil.copytree(trained.finetune, tmp_path / "run")


def made_up(data: TextDataModule) -> Predictions:
    """Predictions of the validation documents by nobody; the losses fall in their order."""
    data.prepare_data()
    data.setup()
    labels, count = np.asarray(data.val.labels), len(data.val)
    losses = np.linspace(2, 1, count, dtype=np.float32)
    probabilities = np.full((count, len(data.label_names)), 0.5, dtype=np.float32)
    return Predictions(data.label_names, np.arange(count), data.val.keys, labels, labels, losses, probabilities)


def test_a_validation_leaves_each_documents_prediction_which_is_found_in_its_file(
    run: Path, cli: Command, files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("validate", "--ckpt_path", run).code == 0
    assert not (run / "predictions.parquet").exists()
    with files.val.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    predicted = [p["probabilities"] for p in load(run).predict([row["text"] for row in rows]) if p]
    losses = [-np.log(p[row["label"]]) for p, row in zip(predicted, rows, strict=True)]
    monkeypatch.setattr(sys, "argv", ["errors.py", str(run), "--split", "val", "--top", "7", "--json"])
    capsys.readouterr()
    errors.main()
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for document, i in zip(found, np.argsort(losses)[::-1][:7], strict=True):
        assert document["rows"] == [{"source": str(files.val), "row": i + 2}]  # the header is row 1
        assert (document["text"], document["label"]) == (rows[i]["text"], rows[i]["label"])
        assert document["loss"] == pytest.approx(losses[i], rel=1e-4)
        assert document["probabilities"] == pytest.approx(predicted[i], abs=1e-6)
        assert document["predicted"] == max(predicted[i], key=predicted[i].__getitem__)


def test_only_the_best_checkpoint_on_all_own_validation_data_leaves_predictions(
    run: Path, cli: Command, files: Files
) -> None:
    (run / VAL_FILE).write_bytes(b"before")
    shutil.copy(files.test, "other.csv")
    for more in (["--data.val", "other.csv"], ["--trainer.limit_val_batches", "0.5", "--data.max_tokens", "100"]):
        result = cli("validate", "--ckpt_path", run, *more)
        assert "no predictions are written" in result.log
    assert "no predictions are" in cli("validate", "--ckpt_path", run / "checkpoints/last.ckpt").log
    assert (run / VAL_FILE).read_bytes() == b"before"
    assert cli("validate", "--ckpt_path", run).code == 0
    assert len(read_predictions(run / VAL_FILE)) == 30


def test_predictions_of_a_test_are_not_taken_for_those_of_a_validation(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "predictions.parquet").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["errors.py", str(run / "predictions.parquet"), "--split", "val"])
    with pytest.raises(UserError, match=rf"predictions\.parquet isn't a {VAL_FILE}: for --split val give that file"):
        errors.main()


def test_a_row_is_that_of_the_file_with_its_blank_ones_and_all_that_hold_the_text(run: Path, cli: Command) -> None:
    texts = ["the owl", " ", "the oak\nnear the sea", "the sail", "", "the owl", "the whale"]
    write_csv(Path("new.csv"), [(text, "wood") for text in texts])
    with pytest.warns(UserWarning, match="2 of 7 texts are blank"):
        assert cli("test", "--ckpt_path", run, "--data.test", "new.csv").code == 0
    file = run / "test-new.parquet"
    predictions = read_predictions(file)
    found = shown(predictions, places(data_of(file), "test"))
    assert [d["text"] for d in found] == [text for text in texts if text.strip()]
    assert [[row["row"] for row in d["rows"]] for d in found] == [[2, 7], [4], [5], [2, 7], [8]]
    assert "new.csv, row 2; new.csv, row 7\n  loss" in told(found[0])
    assert worst(predictions, 2).losses.tolist() == sorted(predictions.losses.tolist())[:-3:-1]
    assert len(worst(predictions, 0)) == 5
    write_csv(Path("new.csv"), [("the owl", "wood")])
    with pytest.raises(UserError, match="3 of 5 documents are not in the sources"):
        shown(predictions, places(data_of(file), "test"))


@pytest.mark.filterwarnings("ignore:.*1 of 26 texts are blank")
def test_validation_that_is_held_out_is_found_in_the_labeled_files(tmp_path: Path) -> None:
    one, rows = tmp_path / "one.jsonl", multilabel_rows(40, 1)
    one.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows[:25]))
    two = tmp_path / "two.jsonl"
    two.write_text("".join(json.dumps(row) + "\n" for row in rows[25:]))
    data = TextDataModule(labeled=[str(one), str(two)], val_fraction=0.3, vocab_size=300)
    predictions = made_up(data)
    found = shown(predictions, places(data, "val"))
    assert 5 < len(found) < 25
    for document in found:
        (place,) = document["rows"]
        row = rows[place["row"] - 2] if place["source"] == str(one) else rows[24 + place["row"]]
        assert (document["text"], sorted(document["label"])) == (row["text"], sorted(row["label"]))
    none = replace(predictions, predicted=np.zeros_like(predictions.labels))
    assert "predicted: none" in told(shown(none, places(data, "val"))[0])


def test_a_file_of_a_class_folder_is_the_source(tmp_path: Path) -> None:
    for i, (text, label) in enumerate(labeled_rows(8, 5)):
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / label / f"{i}.txt").write_text(text)
    data = TextDataModule(labeled=str(tmp_path / "data"), val_fraction=0.3, vocab_size=300)
    for document in shown(made_up(data), places(data, "val")):
        (place,) = document["rows"]
        assert Path(place["source"]).read_text() == document["text"]
        assert Path(place["source"]).parent.name == document["label"]
        assert place["row"] == 1
    (tmp_path / "data" / "sea" / "0.txt").write_text("the whale\nand the reef")
    alone = places(TextDataModule(labeled=None, test=str(tmp_path / "data")), "test")  # by --data.labeled null
    assert "the whale\nand the reef" in {place.text for place in alone}


def test_a_passage_of_pydocs_is_found_in_the_cached_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pydocs.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a b", "c d"], "group": ["x:y", "x:z"]}), file)
    monkeypatch.setattr(errors, "load_pydocs", lambda cache_dir: None)
    monkeypatch.setattr(errors, "corpus_file", lambda cache_dir: file)
    assert list(places(TextDataModule(), "test")) == [(str(file), 1, "a b"), (str(file), 2, "c d")]


def test_what_names_no_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names its data"):
        data_of(tmp_path / "other.parquet")
