"""The data card's figures against a count in plain Python over the texts, and where it is shown."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, Configs, Files, Fit, labeled_rows, write_csv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft.data import card as module
from lit_sft.data.card import DataCard, SplitCard, data_card, split_card
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.tokens import TokenArray

MAX_LENGTH = 12


def ready(cache: Path, **options: Any) -> TextDataModule:
    given = {"vocab_size": 40, "tokenizer": "word", "max_length": MAX_LENGTH, "max_documents": 8}
    data = TextDataModule(**{**given, **options}, cache_dir=str(cache))
    data.prepare_data()
    data.setup()
    return data


def check(split: SplitCard, texts: list[str], labels: list[str], data: TextDataModule, cut: bool = True) -> None:
    """Every figure of a split, from its texts: words are tokens here, and those outside the vocabulary unknown."""
    vocabulary = json.loads(data.tokenizer.to_json())["model"]["vocab"]
    documents = [text.split() for text in texts]
    lengths = sorted(len(words) for words in documents)
    total = sum(lengths)
    assert (split.documents, split.tokens) == (len(texts), total)
    assert split.lengths == (*(lengths[math.ceil(p * len(lengths) / 100) - 1] for p in (5, 50, 95)), lengths[-1])
    unknown = sum(word not in vocabulary for words in documents for word in words)
    assert split.unknown == pytest.approx(unknown / total)
    assert 0.05 < split.unknown < 0.5
    assert split.bytes_per_token == pytest.approx(sum(len(text.encode()) for text in texts) / total)
    counts = Counter(labels)
    assert split.labels.tolist() == [counts[name] for name in data.label_names] * bool(labels)
    if not cut:
        assert split.truncated is split.cut is None
        return
    over = [max(0, length - MAX_LENGTH) for length in lengths]
    assert split.truncated == pytest.approx(sum(n > 0 for n in over) / len(over))
    assert split.cut == pytest.approx(sum(over) / total)


def test_every_figure_is_that_of_a_count_over_the_texts(files: Files, tmp_path: Path) -> None:
    train, val, test = labeled_rows(40, 1), labeled_rows(10, 2), labeled_rows(10, 3)
    lines = files.unlabeled.read_text().splitlines()
    given = {name: str(getattr(files, name)) for name in ("val", "test", "unlabeled")}
    data = ready(tmp_path, labeled=str(files.train), **given)
    card = data_card(data, classifies=True)
    expected = {
        "train": train,
        "val": val,
        "test": test,
        "text": [*train, *((line, "") for line in lines)],
    }
    assert [split.name for split in card.splits] == list(expected)
    for split in card.splits:
        rows, is_text = expected[split.name], split.name == "text"
        check(split, [text for text, _ in rows], [] if is_text else [label for _, label in rows], data, not is_text)
    assert card.vocabulary == 40
    batches = list(data.document_loader("train"))
    positions = sum(batch.attention_mask.numel() for batch in batches)
    assert card.padding == pytest.approx(1 - sum(int(batch.attention_mask.sum()) for batch in batches) / positions)


def test_a_low_shot_subset_is_what_the_card_tells_of(files: Files, tmp_path: Path) -> None:
    data = ready(tmp_path, labeled=str(files.train), val=str(files.val), labels_per_class=7)
    split = data_card(data, classifies=True).splits[0]
    keys = dict(zip(data.prepared.train.keys.tolist(), labeled_rows(40, 1), strict=True))
    rows = [keys[key] for key in data.train.keys.tolist()]
    check(split, [text for text, _ in rows], [label for _, label in rows], data)
    assert split.documents == 21


def test_a_language_models_card_has_its_text_and_no_classes(files: Files, tmp_path: Path) -> None:
    card = data_card(ready(tmp_path, labeled=str(files.train), val=str(files.val)), classifies=False)
    assert [split.name for split in card.splits] == ["val", "text"]
    assert card.padding is card.max_length is None
    assert "labels" not in card.text()
    assert "over" not in card.text()


def test_repeated_documents_are_counted_within_and_between_splits(tmp_path: Path) -> None:
    rows = labeled_rows(10, 1)
    train = [*rows, (rows[0][0].upper(), rows[0][1]), (f"{rows[0][0]}!", rows[0][1])]
    val = [*labeled_rows(4, 2), (rows[3][0].title(), rows[3][1])]
    test = [*labeled_rows(4, 3), (val[0][0].upper(), val[0][1]), val[0]]
    paths = {
        name: str(write_csv(tmp_path / f"{name}.csv", r))
        for name, r in (("labeled", train), ("val", val), ("test", test))
    }
    (tmp_path / "more.txt").write_text("one\nOne.\ntwo\n", encoding="utf-8")
    data = ready(tmp_path / "cache", **paths, unlabeled=str(tmp_path / "more.txt"))
    counts = {"train": 2, "unlabeled": 1, "val": 0, "test": 1, "val_in_train": 1, "test_in_val": 2}
    assert data.prepared.repeats == counts
    told = "documents that repeat the words of another: 2 in train, 1 in unlabeled, 1 in test, 1 of val in train, 2 of"
    assert told in data_card(data, classifies=True).text()


def test_unknown_tokens_are_counted_in_any_order_of_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 3)
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 4, size=rng.integers(0, 9)) for _ in range(40)]
    array = TokenArray.from_ids(documents)
    for chosen in (np.arange(40), rng.permutation(40), rng.choice(40, 11, replace=False), np.array([5])):
        ids = np.concatenate([documents[i] for i in chosen])
        assert split_card("x", array.select(chosen), 1, None, 0).unknown == pytest.approx((ids == 1).sum() / len(ids))


def test_labels_of_many_classes_and_multi_labels_are_counted() -> None:
    names = [f"c{i:02}" for i in range(30)]
    table = np.zeros((50, 30), dtype=np.uint8)
    table[:, 3] = 1
    table[:20, 7] = 1
    table[:5] = 1
    array = TokenArray.from_ids([[1, 2]] * 50)
    array.labels = table
    split = split_card("train", array, 0, None, 30)
    assert split.labels.tolist() == table.sum(0).tolist()
    line = DataCard([split], names, None, 10, None, {}).notes()[0]
    assert line.startswith("labels of train: c03 50, c07 20, c00 5, c01 5")
    assert line.endswith("22 more, the least c29 5")


def test_text_that_was_prepared_in_another_way_is_pointed_at(tmp_path: Path) -> None:
    test = [(text.replace(" ", " <br> "), label) for text, label in labeled_rows(10, 3)]
    for name, rows in (("same", labeled_rows(10, 3)), ("other", test)):
        path = str(write_csv(tmp_path / f"{name}.csv", rows))
        train = str(write_csv(tmp_path / "train.csv", labeled_rows(40, 1)))
        text = data_card(ready(tmp_path / "cache", labeled=train, test=path, vocab_size=300), classifies=True).text()
        assert ("of the tokens of test are unknown" in text) == (name == "other")


def test_a_validation_that_decides_by_chance_is_told(tmp_path: Path) -> None:
    for count, told in ((60, True), (600, False)):
        train = str(write_csv(tmp_path / f"train{count}.csv", labeled_rows(count, 1)))
        data = ready(tmp_path / "cache", labeled=train, vocab_size=300)
        assert ("of validation choose little but by chance" in data_card(data, classifies=True).text()) == told


def test_a_fit_shows_its_card_also_in_tensorboard(cli: Command, configs: Configs) -> None:
    shown = cli("fit", "--config", configs.finetune, "--run_dir", "run")
    assert "labels of train: sea 40, sky 40, wood 40" in shown.log
    (events,) = Path("run").rglob("events.out.tfevents*")
    accumulator = EventAccumulator(str(events), size_guidance={"tensors": 0})
    accumulator.Reload()
    text = accumulator.Tensors("data/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("| split | documents | tokens |")
    assert "| train | 120 |" in text
    assert "- labels of train: sea 40" in text


def test_a_dry_run_shows_the_card_and_leaves_nothing(cli: Command, configs: Configs) -> None:
    shown = cli("fit", "--config", configs.pretrain, "--trainer.fast_dev_run", "true")
    assert shown.code == 0
    assert "documents that repeat the words of another: none" in shown.log
    assert not Path("logs").exists()


@pytest.mark.parametrize(
    ("precision", "slowness", "told"), [("bf16-mixed", 3.0, True), ("bf16-mixed", 0.3, False), ("32-true", 3.0, False)]
)
def test_a_precision_that_this_cpu_has_no_instructions_for_is_told(
    precision: str, slowness: float, told: bool, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_sft.callbacks.card.bfloat16_slowness", lambda: slowness)
    result = fit("--trainer.accelerator", "cpu", "--trainer.precision", precision, "--trainer.fast_dev_run", "true")
    assert result.code == 0
    assert ("bf16-mixed is slow here" in result.log) == told
    assert ("takes this CPU 3.0 times as long" in result.log) == told
