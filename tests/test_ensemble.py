"""Several checkpoints as one classifier, against means taken by hand of what each of them predicts alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import (
    SUBJECTS,
    Command,
    Endless,
    Files,
    Trained,
    labeled_rows,
    multilabel_rows,
    read,
    tiny_options,
    write_csv,
)
from refusals import one_line
from sklearn.metrics import f1_score

import lit_sft
from lit_sft import text_classifier
from lit_sft.data.readers import iter_rows
from lit_sft.ensemble import _contamination
from lit_sft.errors import UserError
from lit_sft.evaluation.mean_predictions import mean_predictions
from lit_sft.evaluation.predictions import Predictions, read_predictions

NAMES = sorted(SUBJECTS)


@dataclass(frozen=True)
class Runs:
    """Fine-tunings that differ in all that members may differ in."""

    folder: Path

    def copies(self) -> list[Path]:
        """Each in the current folder: tests write into them."""
        return [Path(shutil.copytree(self.folder / name, name)) for name in VARIANTS]


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "other": {
        "data": {"tokenizer": "word", "direction": "backward", "max_length": 9, "truncation": "tail"},
        "trainer": {"precision": "bf16-mixed"},
    },
    "turned": {"data": {"label_names": {"wood": "wood", "sea": "sea", "sky": "sky"}, "max_length": 5}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, files: Files, shared_cache: Path) -> Runs:
    from lit_sft.main import main

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LIT_SFT_CACHE", str(shared_cache))
        for seed, (name, changes) in enumerate(VARIANTS.items()):
            options: Any = tiny_options(files, "finetune")
            for section, values in changes.items():
                options[section] |= values
            options["trainer"]["max_epochs"] = 3
            Path(f"{name}.yaml").write_text(yaml.safe_dump(options, sort_keys=False))
            assert main(["fit", "--config", f"{name}.yaml", "--run_dir", name, "--seed_everything", str(seed)]) == 0
    return Runs(folder)


@pytest.fixture
def texts(files: Files) -> list[str]:
    return [str(row.text) for row in iter_rows(files.test, labels=False)]


def labels(path: Path) -> list[str]:
    return [str(row.label) for row in iter_rows(path, labels=True)]


def by_hand(paths: Sequence[Path], texts: list[str]) -> np.ndarray:
    """The mean probability of each class by its name, (texts, classes)."""
    members = [lit_sft.load(path, device="cpu").predict(texts) for path in paths]
    return np.mean(
        [[[row["probabilities"][name] for name in NAMES] for row in rows if row] for rows in members], axis=0
    )


def table(rows: Sequence[Any]) -> np.ndarray:
    return np.array([[row["probabilities"][name] for name in NAMES] for row in rows])


def test_an_ensemble_of_one_is_the_one(runs: Runs, texts: list[str]) -> None:
    for name in VARIANTS:
        alone = lit_sft.load(runs.folder / name, device="cpu")
        for members in ([runs.folder / name], [runs.folder / name] * 2):
            ensemble = lit_sft.load(members, device="cpu")
            assert ensemble.label_names == alone.label_names
            assert ensemble.predict([*texts, " "]) == alone.predict([*texts, " "])


def test_an_ensemble_predicts_the_mean_by_name_in_the_order_of_the_texts(
    runs: Runs, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [runs.folder / name for name in VARIANTS]
    ensemble = lit_sft.load(paths, device="cpu")
    assert isinstance(ensemble, lit_sft.Ensemble)
    assert [member.label_names for member in ensemble.members] == [NAMES, NAMES, ["wood", "sea", "sky"]]
    expected = by_hand(paths, texts)
    assert np.abs(by_hand(paths[:1], texts) - expected).max() > 1e-3
    for chunk in (2048, 7):
        monkeypatch.setattr(text_classifier, "TEXTS_AT_ONCE", chunk)
        found = ensemble.predict(["", *texts, " "])
        assert found[0] is found[-1] is None
        rows = [row for row in found if row]
        assert np.abs(table(rows) - expected).max() < 1e-6
        assert [row["label"] for row in rows] == [NAMES[i] for i in expected.argmax(1)]
    assert list(lit_sft.load(paths[::-1], device="cpu").predict(texts)[0]["probabilities"]) == ["wood", "sea", "sky"]


def test_the_input_is_read_as_it_is_needed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_classifier, "TEXTS_AT_ONCE", 5)
    texts = Endless()
    ensemble = lit_sft.load([runs.folder / name for name in VARIANTS], device="cpu")
    assert len(list(islice(ensemble.predict_iter(texts), 12))) == 12
    assert texts.taken == 15  # three chunks, however many members there are


def test_predict_takes_several(runs: Runs, files: Files, texts: list[str], cli: Command) -> None:
    paths = [runs.folder / name for name in VARIANTS]
    given = ("--input", files.test, "--output", "out.jsonl", "--device", "cpu")
    assert cli("predict", "--ckpt_path", ",".join(map(str, paths)), *given).code == 0
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert rows == lit_sft.load(paths, device="cpu").predict(texts)


@pytest.mark.filterwarnings("ignore:transductive:")  # another test file is wanted, and validation's is one
def test_a_test_measures_the_mean_and_writes_over_nothing(
    runs: Runs, files: Files, texts: list[str], cli: Command
) -> None:
    paths = runs.copies()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    command = ("test", "--ckpt_path", ",".join(map(str, paths)))
    result = cli(*command)
    assert result.code == 0, result.err
    expected, actual = by_hand(paths, texts), labels(files.test)
    kept = read_predictions(paths[0] / "test-ensemble.parquet")
    assert kept.label_names == NAMES
    assert np.abs(kept.probabilities - expected).max() < 1e-6
    assert kept.documents.tolist() == list(range(30))
    assert [NAMES[i] for i in kept.labels] == actual
    assert kept.clean is not None
    assert kept.clean.all()

    record = read(paths[0] / "test-ensemble.json")
    guesses = [NAMES[i] for i in expected.argmax(1)]
    assert record["test"]["accuracy"] == pytest.approx(np.mean([g == a for g, a in zip(guesses, actual, strict=True)]))
    assert record["test"]["macro_f1"] == pytest.approx(f1_score(actual, guesses, average="macro"), abs=1e-6)
    own = [expected[i, NAMES.index(name)] for i, name in enumerate(actual)]
    assert record["test"]["loss"] == pytest.approx(-np.log(own).mean(), abs=1e-5)
    assert record["test_clean"] == record["test"]
    low, high = record["test_interval"]["accuracy"]
    assert low <= record["test"]["accuracy"] <= high
    assert f"test of the ensemble: accuracy {record['test']['accuracy']:.3f} [{low:.3f}, {high:.3f}]" in result.log
    assert np.sum(record["test_confusion"]["matrix"]) == 30
    assert [member["checkpoint"] for member in record["members"]] == [str(p / "checkpoints/best.ckpt") for p in paths]
    assert record["data"]["test"] == str(files.test)
    assert record["contamination"]["transductive"] is False

    assert cli(*command).code == 0
    assert cli(*command, "--name", "three").code == 0
    made = {path for path in Path().rglob("*") if path.is_file()} - before.keys()
    names = ["test-ensemble", "test-ensemble-2", "test-ensemble-three"]
    assert made == {paths[0] / f"{name}{suffix}" for name in names for suffix in (".json", ".parquet")}
    assert all(path.read_bytes() == content for path, content in before.items())

    assert (
        cli(
            "test", "--ckpt_path", f"{paths[2]},{paths[0]}", "--data.test", files.val, "--trainer.fast_dev_run", "1"
        ).code
        == 0
    )
    assert not list(paths[2].glob("test-*"))


def test_an_ensemble_of_the_same_run_twice_has_the_figures_of_the_run(runs: Runs, cli: Command) -> None:
    path = runs.copies()[1]
    assert cli("test", "--ckpt_path", path).code == 0
    assert cli("test", "--ckpt_path", f"{path},{path}").code == 0
    one, both = read(path / "metrics.json"), read(path / "test-ensemble.json")
    assert both["test"] == pytest.approx(one["test"], abs=1e-6)
    for name, interval in one["test_interval"].items():
        assert both["test_interval"][name] == pytest.approx(interval, abs=1e-6)
    assert both["test_confusion"] == one["test_confusion"]
    figures = {name: value for name, value in one["test"].items() if "/" not in name}
    assert [member["test"] for member in both["members"]] == [pytest.approx(figures, abs=1e-6)] * 2
    single, double = (
        read_predictions(path / "predictions.parquet"),
        read_predictions(path / "test-ensemble.parquet"),
    )
    assert np.array_equal(single.probabilities, double.probabilities)
    assert np.array_equal(single.predicted, double.predicted)


def test_a_validation_measures_the_mean(runs: Runs, files: Files, cli: Command) -> None:
    paths = runs.copies()
    before = sorted(Path().rglob("*"))
    result = cli("validate", "--ckpt_path", ",".join(map(str, paths)))
    assert result.code == 0, result.err
    texts, actual = [str(row.text) for row in iter_rows(files.val, labels=False)], labels(files.val)
    expected = by_hand(paths, texts)
    accuracy = np.mean([NAMES[i] == name for i, name in zip(expected.argmax(1), actual, strict=True)])
    assert f"validation of the ensemble: accuracy {accuracy:.3f} [" in result.log
    assert sorted(Path().rglob("*")) == before


def test_mistakes_are_told_in_one_line(runs: Runs, trained: Trained, files: Files, cli: Command) -> None:
    plain, other, _ = runs.copies()
    elsewhere = tiny_options(files, "finetune")
    elsewhere["data"]["test"] = str(write_csv(Path("elsewhere.csv"), labeled_rows(10, 9)))  # type: ignore[index]
    two = tiny_options(files, "finetune")
    lines = [line for line in files.train.read_text().splitlines() if not line.endswith("wood")]
    Path("two.csv").write_text("\n".join(lines))
    two["data"] |= {"labeled": "two.csv", "val": None, "test": "two.csv"}  # type: ignore[operator]
    for name, options in (("elsewhere", elsewhere), ("two", two)):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(options, sort_keys=False))
        steps = ("--trainer.max_steps", "2", "--run_dir", name)
        with pytest.warns(UserWarning, match="transductive") if name == "two" else nullcontext():
            assert cli("fit", "--config", f"{name}.yaml", *steps).code == 0
    cases = [
        (("test",), f"{plain},{trained.pretrain}", "a pretraining checkpoint can't classify"),
        (("test",), f"{plain},nowhere", "nowhere: no such run or checkpoint"),
        (("test",), f"{plain},two", "models with the same labels, not"),
        (("test", "--name", "a/b"), f"{plain},{other}", "--name a/b"),
        (("validate",), f"{plain},", "is no list of runs or checkpoints"),
        (("predict", "--input", files.test, "--output", "-"), "[]", "is no list of runs or checkpoints"),
        (("test",), f"{plain},elsewhere", "different documents: name them, with --data.test"),
        (("test", "--trainer.devices", "2"), f"{plain},{other}", "--trainer.devices 1"),
        (("predict", "--input", files.test, "--output", "-"), f"{plain},two", "models with the same labels, not"),
        (("predict", "--input", files.test, "--output", "-"), f"{plain},{trained.pretrain}", "can't classify"),
    ]
    for command, path, message in cases:
        result = cli(*command, "--ckpt_path", path)
        one_line(result, message)
        assert ("member 1" in result.log) is (path.endswith("elsewhere") or "--trainer.devices" in command)
    assert cli("test", "--ckpt_path", f"{plain},elsewhere", "--data.test", files.test).code == 0
    with pytest.raises(UserError, match="one checkpoint at least"):
        lit_sft.load([])


def test_one_label_a_document_and_any_number_do_not_go_together_which_is_told_first(
    trained: Trained, cli: Command
) -> None:
    entries = torch.load(trained.finetune / "checkpoints" / "best.ckpt", weights_only=True)
    entries["lit_sft"] |= {"multilabel": True, "thresholds": [0.5, 0.5, 0.5]}
    torch.save(entries, "many.ckpt")
    for command in (["test"], ["predict", "--input", "many.ckpt", "--output", "-"]):
        result = cli(*command, "--ckpt_path", f"{trained.finetune},many.ckpt")
        one_line(result, "an ensemble is of models with one label a document, or of models with any number")
        assert "member 1" not in result.log


def made_up(names: list[str], probabilities: list[list[float]], labels: list[int], clean: Any) -> Predictions:
    p = np.array(probabilities, dtype=np.float32)
    keys = np.arange(len(p), dtype=np.uint64)
    documents = np.arange(len(p))
    return Predictions(names, documents, keys, np.array(labels), p.argmax(1), np.zeros(len(p)), p, clean)


def test_a_document_is_clean_where_it_is_for_all() -> None:
    flags = (np.array([True, True, False]), np.array([True, False, False]))
    one = made_up(["a", "b"], [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], [0, 1, 0], flags[0])
    two = made_up(["b", "a"], [[0.5, 0.5], [0.0, 1.0], [0.25, 0.75]], [1, 0, 1], flags[1])
    mean, thresholds = mean_predictions([one, two], [None, None])
    assert thresholds is None
    assert mean.clean is not None
    assert mean.clean.tolist() == [True, False, False]
    assert mean.label_names == ["a", "b"]
    assert mean.probabilities == pytest.approx(np.array([[0.7, 0.3], [0.6, 0.4], [0.625, 0.375]]))
    assert mean.predicted.tolist() == [0, 0, 0]
    assert mean.losses == pytest.approx(-np.log([0.7, 0.4, 0.625]))
    unknown, _ = mean_predictions([one, made_up(["a", "b"], [[1.0, 0.0]] * 3, [0, 1, 0], None)], [None, None])
    assert unknown.clean is None
    with pytest.raises(UserError, match="have different labels"):
        mean_predictions([one, made_up(["a", "b"], [[1.0, 0.0]] * 3, [0, 0, 0], None)], [None, None])
    with pytest.raises(UserError, match="different documents"):
        mean_predictions([one, made_up(["a", "b"], [[1.0, 0.0]] * 2, [0, 1], None)], [None, None])


def test_members_whose_labels_stand_in_another_order_are_averaged_by_name() -> None:
    """Three labels: with two, an order is its own inverse."""
    one = made_up(["a", "b", "c"], [[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.2, 0.2, 0.6]], [0, 1, 2], None)
    two = made_up(["c", "a", "b"], [[0.4, 0.3, 0.3], [0.0, 1.0, 0.0], [0.6, 0.1, 0.3]], [1, 2, 0], None)
    mean, _ = mean_predictions([one, two], [None, None])
    assert mean.probabilities == pytest.approx(np.array([[0.4, 0.3, 0.3], [1.0, 0.0, 0.0], [0.15, 0.25, 0.6]]))
    assert mean.losses == pytest.approx(-np.log([0.4, 1e-12, 0.6]))  # no probability at all, and a finite loss

    flags, thresholds = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]]), [[0.2, 0.4, 0.6], [0.8, 0.4, 0.3]]
    first, second = replace(one, labels=flags), replace(two, labels=flags[:, [2, 0, 1]])
    several, means = mean_predictions([first, second], thresholds)
    assert means == pytest.approx([0.3, 0.35, 0.7])
    assert several.probabilities == pytest.approx(mean.probabilities)
    assert several.predicted.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert several.losses[0] == pytest.approx(-np.log([0.4, 0.7, 0.7]).mean())
    with pytest.raises(UserError, match="have different labels"):
        mean_predictions([first, replace(two, labels=flags)], thresholds)


def test_what_is_known_of_the_members_text_is_told_of_each_where_it_differs() -> None:
    one: dict[str, Any] = {"exact": 0, "transductive": False, "why": ["x", "y"]}
    two: dict[str, Any] = {"exact": 3, "transductive": True, "why": ["y", "z"]}

    def told(*reports: dict[str, Any]) -> dict[str, Any]:
        return _contamination([SimpleNamespace(contamination=report) for report in reports])  # type: ignore[misc]

    assert told(two, dict(two)) == two
    assert told(one, two, {}) == {"transductive": True, "why": ["x", "y", "z"], "members": [one, two, {}]}


def test_thresholds_of_any_number_of_labels_are_averaged(
    cli: Command, files: Files, workplace: Path, trained: Trained
) -> None:
    options: Any = tiny_options(files, "finetune")
    for seed, (name, size) in enumerate((("labeled", 160), ("val", 60), ("test", 80))):
        path = workplace / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in multilabel_rows(size, seed)))
        options["data"][name] = str(path)
    options["trainer"]["max_epochs"] = 4
    Path("multi.yaml").write_text(yaml.safe_dump(options))
    for name, more in (("a", ()), ("b", ("--seed_everything", "5", "--data.direction", "backward"))):
        assert cli("fit", "--config", "multi.yaml", "--run_dir", name, *more).code == 0
    assert cli("test", "--ckpt_path", "a,b").code == 0
    members = [lit_sft.load(name, device="cpu") for name in ("a", "b")]
    thresholds = np.mean([member.thresholds for member in members], axis=0)
    record = read(Path("a/test-ensemble.json"))
    assert record["thresholds"] == dict(zip(members[0].label_names, thresholds.tolist(), strict=True))
    test = multilabel_rows(80, 2)
    texts, actual = [row["text"] for row in test], np.array([[n in row["label"] for n in NAMES] for row in test])
    mean = by_hand([Path("a"), Path("b")], texts)
    assert members[0].label_names == NAMES
    chosen = mean >= thresholds
    kept = read_predictions(Path("a/test-ensemble.parquet"))
    assert np.abs(kept.probabilities - mean).max() < 1e-6
    assert (kept.predicted == chosen).all()
    assert record["test"]["macro_f1"] == pytest.approx(f1_score(actual, chosen, average="macro", zero_division=0))
    losses = -np.where(actual, np.log(mean), np.log(1 - mean)).mean()
    assert record["test"]["loss"] == pytest.approx(losses, abs=1e-5)
    ensemble = lit_sft.load(["a", "b"], device="cpu").predict(texts)
    assert [row["labels"] for row in ensemble if row] == [
        [n for n, on in zip(NAMES, row, strict=True) if on] for row in chosen
    ]
    with pytest.raises(UserError, match="one label a document, or of models with any number"):
        lit_sft.load(["a", trained.finetune], device="cpu")
