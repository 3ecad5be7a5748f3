"""The contamination gate: counted before anything is removed, removed before anything is trained, told and kept."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Command, Configs, Files, Fit, Trained, labeled_rows, read, sentence, write_csv
from contamination import count, options_of
from refusals import one_line

from lit_sft.checkpoints import read_checkpoint
from lit_sft.data.adopted import Adopted
from lit_sft.data.contamination import told
from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import UserError

TEST = [(sentence(label, random.Random(i), 40), label) for i, label in enumerate(["sea", "sky", "wood"] * 4)]


def changed(text: str) -> str:
    words = text.upper().split()
    words[5] = "other"
    return ", ".join(words)


@pytest.fixture
def planted(tmp_path: Path) -> dict[str, str]:
    """Of 12 test documents 1, 2 and 3 stand in train (3 nearly), 3, 4 and 5 in unlabeled text (5 nearly)."""
    train = [*labeled_rows(40, 1), (f"{TEST[1][0]}!", "sky"), (TEST[2][0], "sea"), (changed(TEST[3][0]), "sea")]
    unlabeled = ["own text", TEST[3][0], TEST[4][0].upper(), TEST[4][0], changed(TEST[5][0])]
    (tmp_path / "more.txt").write_text("".join(f"{line}\n" for line in unlabeled), encoding="utf-8")
    return {
        "labeled": str(write_csv(tmp_path / "train.csv", train)),
        "test": str(write_csv(tmp_path / "test.csv", TEST)),
        "unlabeled": str(tmp_path / "more.txt"),
    }


def ready(cache: Path, fed: dict[str, Any] | None = None, **options: Any) -> TextDataModule:
    data = TextDataModule(vocab_size=400, cache_dir=str(cache), tokenizer="word", min_frequency=1, **options)
    if fed is not None:
        data.adopt(Adopted(data.preparation.tokenizer(), fed=fed))
    data.prepare_data()
    data.setup()
    return data


def test_copies_are_counted_for_each_side_and_the_clean_documents_known(
    planted: dict[str, str], tmp_path: Path
) -> None:
    for options in ({}, {"labels_per_class": 5}, {"val_fraction": 0.4}):  # always of all documents as they were read
        data = ready(tmp_path / "cache", **planted, **options)
        assert data.contamination == {
            "test_documents": 12,
            "clean_documents": 7,
            "exact": 4,
            "near": 1,
            "compared_exactly": 0,
            "train": {"documents": 123, "exact": 2, "near": 1, "removed": 0},
            "unlabeled": {"documents": 5, "exact": 2, "near": 1, "removed": 0},
            "val": {"documents": 0, "exact": 0, "near": 0, "removed": 0},  # held out of the training data
            "transductive": False,
            "why": [],
        }
        assert data.test_is_clean is not None
        assert np.flatnonzero(~data.test_is_clean).tolist() == [1, 2, 3, 4, 5]
        assert len(data.train) + len(data.val) >= 15
        assert len(data.prepared.unlabeled) == len(data.prepared.train) + 5
    assert json.loads(json.dumps(data.contamination)) == data.contamination


def test_removed_copies_are_in_no_part_of_the_training_text(planted: dict[str, str], tmp_path: Path) -> None:
    data = ready(tmp_path / "cache", **planted, remove_test_copies=True)
    assert data.contamination["train"] == {"documents": 123, "exact": 2, "near": 1, "removed": 3}
    assert data.contamination["unlabeled"] == {"documents": 5, "exact": 2, "near": 1, "removed": 4}
    assert (data.contamination["exact"], data.contamination["near"]) == (4, 1)
    assert data.contamination["clean_documents"] == 12
    assert data.test_is_clean is not None
    assert data.test_is_clean.all()
    assert len(data.prepared.train) + len(data.val) == 120
    assert len(data.prepared.unlabeled) == len(data.prepared.train) + 1
    entries = json.loads(data.tokenizer.to_json())["model"]["vocab"]
    assert "OTHER" not in entries
    assert "other" not in entries
    assert "own" in entries


def test_copies_in_validation_data_count_too(planted: dict[str, str], tmp_path: Path) -> None:
    rows = [*labeled_rows(10, 2), (TEST[7][0], "sky"), (changed(TEST[8][0]), "wood"), (TEST[1][0], "sky")]
    val = str(write_csv(tmp_path / "val.csv", rows))
    data = ready(tmp_path / "cache", **planted, val=val)
    assert data.contamination["val"] == {"documents": 33, "exact": 2, "near": 1, "removed": 0}
    assert data.test_is_clean is not None
    assert np.flatnonzero(~data.test_is_clean).tolist() == [1, 2, 3, 4, 5, 7, 8]
    assert (data.contamination["exact"], data.contamination["near"]) == (5, 2)
    assert not data.contamination["transductive"]
    removed = ready(tmp_path / "cache", **planted, val=val, remove_test_copies=True)
    assert removed.contamination["val"]["removed"] == 3
    assert len(removed.val) == 30


def test_a_validation_file_that_is_the_test_file_is_told(planted: dict[str, str], tmp_path: Path) -> None:
    given = {**planted, "unlabeled": None, "val": planted["test"]}
    with pytest.warns(UserWarning, match="transductive: 12 of 12 test documents stand in the validation data"):
        assert ready(tmp_path / "cache", **given).contamination["clean_documents"] == 0
    with pytest.raises(UserError, match="remove_test_copies: every validation document is a copy of a test document"):
        ready(tmp_path / "cache", **given, remove_test_copies=True)


def test_a_language_models_corpus_has_one_side(planted: dict[str, str], tmp_path: Path) -> None:
    only = {"labeled": None, "unlabeled": [planted["unlabeled"], planted["labeled"]], "test": planted["test"]}
    only |= {"text_column": "text"}
    kept, removed = (ready(tmp_path / "cache", **only, remove_test_copies=remove) for remove in (False, True))
    assert kept.contamination["train"] == {"documents": 0, "exact": 0, "near": 0, "removed": 0}
    assert kept.contamination["unlabeled"] == {"documents": 128, "exact": 4, "near": 1, "removed": 0}
    assert removed.contamination["unlabeled"]["removed"] == 7
    assert len(kept.train) + len(kept.val) == 128
    assert len(removed.train) + len(removed.val) == 121


def test_nothing_left_to_train_on_is_told(tmp_path: Path) -> None:
    test = str(write_csv(tmp_path / "test.csv", TEST))
    rows = [*labeled_rows(10, 1), ("Thunder over the lake", "storm"), ("thunder, over the lake", "storm")]
    train = str(write_csv(tmp_path / "train.csv", rows))
    storm = str(write_csv(tmp_path / "storm.csv", [*TEST, ("thunder over the lake", "storm")]))
    with pytest.raises(UserError, match="remove_test_copies: every document of the label 'storm' is a copy of a test"):
        ready(tmp_path / "cache", labeled=train, test=storm, remove_test_copies=True)
    with pytest.raises(UserError, match="remove_test_copies: every training document is a copy of a test document"):
        ready(tmp_path / "cache", labeled=test, test=test, remove_test_copies=True)


def test_the_second_start_counts_nothing_anew(
    planted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ready(tmp_path / "cache", **planted)
    monkeypatch.setattr("lit_sft.data.contamination.CopyFinder", None)
    second = ready(tmp_path / "cache", **planted)
    assert second.contamination == first.contamination
    assert np.array_equal(second.test_is_clean, first.test_is_clean)  # type: ignore[arg-type]


def test_the_scripts_counts_are_the_gates(planted: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({**planted, "label_column": 1}), encoding="utf-8")
    options = options_of([str(tmp_path / "data.yaml"), "label_column=label", "remove_test_copies=true"])
    found = count(options)
    assert found.pop("seconds").keys() == {"reading", "gate"}
    assert found == ready(tmp_path / "cache", **planted, remove_test_copies=True).contamination
    with pytest.raises(UserError, match="there are no test documents"):
        count({**options, "test": None})


def test_documents_that_are_compared_exactly_only_are_told(planted: dict[str, str], tmp_path: Path) -> None:
    report = ready(tmp_path / "cache", **planted).contamination
    assert "exactly only" not in told(report)
    short = str(write_csv(tmp_path / "short.csv", [*TEST, ("thunder over the lake", "sea")]))
    report = ready(tmp_path / "cache", **planted | {"test": short}).contamination
    assert told(report).endswith("; 1 compared exactly only, too short or a form")


# ---- transductive


def test_test_documents_fed_to_the_run_make_it_transductive(planted: dict[str, str], tmp_path: Path) -> None:
    half = tmp_path / "half.txt"
    half.write_text("".join(f"{text}\n" for text, _ in TEST[6:7]), encoding="utf-8")
    given = {**planted, "unlabeled": [planted["unlabeled"], str(half)]}
    with pytest.warns(UserWarning, match="transductive: 6 of 12 test documents stand in the training text"):
        data = ready(tmp_path / "cache", **given)
    assert data.contamination["transductive"] is True
    assert data.fed["transductive"] is True
    assert not ready(tmp_path / "cache", **given, remove_test_copies=True).contamination["transductive"]


def test_a_source_that_is_test_and_training_text_makes_it_transductive(
    planted: dict[str, str], files: Files, tmp_path: Path
) -> None:
    small = str(write_csv(tmp_path / "small.csv", TEST[:2]))
    again = str(shutil.copy(small, tmp_path / "again.csv"))  # the same bytes under another name
    given: dict[str, Any] = {"labeled": str(files.train), "unlabeled": again, "test": [str(files.test), small]}
    with pytest.warns(UserWarning, match=r"small\.csv is test and training text \(.*again\.csv\)"):
        data = ready(tmp_path / "cache", **given)
    assert data.contamination["transductive"] is True
    given["unlabeled"] = [again, planted["unlabeled"]]
    removed = ready(tmp_path / "cache", **given, remove_test_copies=True)
    assert not removed.contamination["transductive"]
    assert data.fed["digests"] != removed.fed["digests"]
    assert len(removed.fed["digests"]) == 2


def test_a_folder_that_is_labeled_and_unlabeled_text_is_known_as_both(tmp_path: Path) -> None:
    for name in ("sea", "sky", "unsup"):  # as classes the last one is left out: another text than that of all files
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "a.txt").write_text(f"a document of {name}", encoding="utf-8")
    folder = str(tmp_path / "data")
    data = TextDataModule(labeled=folder, unlabeled=folder, test=folder, cache_dir=str(tmp_path / "cache"))
    assert len(data.provenance.plain(False)["digests"]) == 2
    assert data.provenance.reasons() == [f"{folder} is test and training text ({folder})"]


def test_a_run_inherits_what_the_one_before_was_fed_with(planted: dict[str, str], files: Files, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    pretrained = ready(cache, labeled=None, unlabeled=[planted["unlabeled"], planted["test"]], text_column="text")
    assert pretrained.contamination == {}
    assert pretrained.fed["transductive"] is False
    assert len(pretrained.fed["digests"]) == 2
    tuned = {"labeled": str(files.train), "test": planted["test"]}
    assert ready(cache, **tuned).contamination["transductive"] is False
    with pytest.warns(
        UserWarning, match=r"test\.csv was training or validation text of the run that the weights come from"
    ):
        data = ready(cache, pretrained.fed, **tuned)
    assert data.contamination["transductive"] is True
    assert set(data.fed["digests"]) > set(pretrained.fed["digests"])
    with pytest.warns(UserWarning, match="the run that the weights come from is transductive"):
        third = ready(cache, data.fed, labeled=str(files.train), test=str(files.test))
    assert third.fed["transductive"] is True


# ---- on the command line


def test_a_fit_tells_its_counts_keeps_them_and_hands_on_what_it_was_fed(
    cli: Command, configs: Configs, planted: dict[str, str]
) -> None:
    flags = [f"--data.{name}={path}" for name, path in planted.items()]
    shown = cli("fit", "--config", configs.pretrain, *flags, "--run_dir", "lm")
    assert "contamination: of 12 test documents 5 have a copy in what is trained or chosen on (2 exactly" in shown.log
    assert "left there (see --data.remove_test_copies)" in shown.log
    assert read(Path("lm/metrics.json"))["contamination"]["exact"] == 4
    fed = read_checkpoint(Path("lm/checkpoints/best.ckpt")).fed
    assert len(fed["digests"]) == 3
    with pytest.warns(
        UserWarning, match="train.csv was training or validation text of the run that the weights come from"
    ):
        cli(
            *("fit", "--config", configs.finetune, "--model.init_from", "lm", "--data.test", planted["labeled"]),
            *("--run_dir", "tuned"),
        )
    record = read(Path("tuned/metrics.json"))["contamination"]
    assert record["transductive"] is True
    assert read_checkpoint(Path("tuned/checkpoints/best.ckpt")).fed["transductive"] is True


def test_a_resumed_run_knows_what_it_was_fed_before(cli: Command, trained: Trained, files: Files) -> None:
    """Other text is read from now on; the weights have seen that of the first start."""
    shutil.copytree(trained.pretrain, "lm")
    flags = ["--config", "lm/config.yaml", "--ckpt_path", "lm/checkpoints/last.ckpt", "--run_dir", "more"]
    flags += ["--trainer.max_epochs", "2", "--data.labeled", "null", "--data.unlabeled", files.unlabeled]
    with (
        pytest.warns(UserWarning, match=r"hold other text than lm/checkpoints/last\.ckpt was fed with: the run goes"),
        pytest.warns(UserWarning, match=r"was training or validation text of the run that the weights come from"),
    ):
        assert cli("fit", *flags, "--data.test", files.train).code == 0
    assert read(Path("more/metrics.json"))["contamination"]["transductive"] is True
    fed = read_checkpoint(Path("more/checkpoints/last.ckpt")).fed
    assert fed["transductive"] is True
    assert len(fed["digests"]) == 3


def test_a_checkpoint_that_tells_nothing_or_nonsense_of_its_food(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "edited.ckpt"
    entries = torch.load(trained.finetune / "checkpoints" / "best.ckpt", weights_only=True)
    del entries["lit_sft"]["fed"]
    torch.save(entries, path)
    assert read_checkpoint(path).fed == {"digests": [], "transductive": False}
    for nonsense in (3, {}, {"digests": "all", "transductive": False}, {"digests": [1], "transductive": False}):
        entries["lit_sft"]["fed"] = nonsense
        torch.save(entries, path)
        with pytest.raises(UserError, match=r"edited\.ckpt: a damaged checkpoint, its fed can't be used"):
            read_checkpoint(path)


def test_other_test_data_are_compared_with_what_the_run_was_fed(cli: Command, trained: Trained, files: Files) -> None:
    folder = shutil.copytree(trained.finetune, "run")
    for seen in (files.train, files.val):  # of the latter the best checkpoint was chosen by
        told = rf"{seen.name} was training or validation text of the run that the weights come from"
        with pytest.warns(UserWarning, match=told):
            assert cli("test", "--ckpt_path", folder, "--data.test", seen).code == 0
    unseen = write_csv(Path("unseen.csv"), labeled_rows(6, 77))
    assert cli("test", "--ckpt_path", folder, "--data.test", unseen).code == 0


def test_near_copies_of_most_of_the_test_make_a_run_transductive_too(planted: dict[str, str], tmp_path: Path) -> None:
    text = "".join(f"number {i} {text}\n" for i, (text, _) in enumerate(TEST))
    (tmp_path / "more.txt").write_text(text, encoding="utf-8")
    with pytest.warns(UserWarning, match="12 of 12 test documents stand in the training text, word for word or nearly"):
        data = ready(tmp_path / "cache", **planted)
    assert data.contamination["transductive"]
    removed = ready(tmp_path / "cache", **planted, remove_test_copies=True)
    assert not removed.contamination["transductive"]


@pytest.mark.parametrize("option", ["checkpoint.monitor", "early_stopping.monitor"])
def test_nothing_is_chosen_by_the_test(option: str, fit: Fit) -> None:
    result = fit(f"--{option}", "test/loss")
    one_line(result, "test/loss can't be monitored", "monitor val/loss")


def test_no_callback_of_the_users_own_is_led_by_the_test(fit: Fit, configs: Configs) -> None:
    options = read(configs.finetune)
    keeper = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "test/accuracy"}}
    options["trainer"]["callbacks"] = [keeper]
    configs.finetune.write_text(yaml.safe_dump(options), encoding="utf-8")
    result = fit()
    assert result.code == 2
    assert "test/accuracy can't be monitored" in result.err
