"""Every option of the data changes what it says, and nothing else: documents, classes, vocabulary or batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Command, Configs, Files, labeled_rows, read, write_csv
from training import data_of, equal

from lit_sft.checkpoints import read_checkpoint
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.textdata import TextData

pytestmark = pytest.mark.filterwarnings("ignore:transductive:")  # test copies are planted

SPLITS = {"train", "val", "test"}
TEXT = {*SPLITS, "unlabeled"}  # which documents there are, and their classes
BATCHES = {"streams", "batches", "measured", "unlabeled batches"}
IDS = {"vocabulary", *BATCHES}  # another tokenizer: the same documents in other tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, files: Files) -> Path:
    """The small corpus once more, in files that leave something to choose."""
    folder = tmp_path_factory.mktemp("choices")
    for seed, split in enumerate(("train", "val", "test"), 1):
        rows = labeled_rows(12, seed)
        lines = [f"{label}:x\t{text} à la mer" for text, label in rows]
        (folder / f"{split}.lines").write_text("\n".join(lines), encoding="latin-1")
        write_csv(folder / f"{split}-numbered.csv", rows, ("0", "1"))
        write_csv(folder / f"{split}-several.csv", [(text, f"{label}|{label[0]}") for text, label in rows])
        write_csv(folder / f"{split}-capitals.csv", [(text.title(), label) for text, label in rows])
        columns = ["text,other,label,kind", *(f"{text},the {text},{label},{label[0]}" for text, label in rows)]
        (folder / f"{split}-columns.csv").write_text("\n".join(columns))
    (folder / "both.csv").write_text(files.train.read_text() + "".join(files.test.read_text().splitlines(True)[1:9]))
    return folder


def split_files(ending: str, **options: Any) -> dict[str, Any]:
    """Options that name files of ``folder`` for the three splits; ``{}`` stands for the folder."""
    prefix = "label_text:" if ending == ".lines" else ""
    names = {"labeled": "train", "val": "val", "test": "test"}
    return {**{option: f"{prefix}{{}}/{name}{ending}" for option, name in names.items()}, **options}


LINES = split_files(".lines", encoding="latin-1")
COLUMNS = split_files("-columns.csv", text_column="text", label_column="label")
NUMBERED = split_files("-numbered.csv", text_column="0", label_column="1")
# option -> what it is compared with, the change, and what differs then
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "labeled": ({}, {"labeled": "{}/train-capitals.csv"}, {"train", "unlabeled", *IDS}),
    "unlabeled": ({}, {"unlabeled": "{}/both.csv"}, {"unlabeled", *IDS}),
    "val": ({}, {"val": "{}/val-capitals.csv"}, {"val", "measured"}),
    "test": ({}, {"test": "{}/test-capitals.csv"}, {"test"}),
    "text_column": (COLUMNS, {"text_column": "other"}, {*TEXT, *IDS}),
    "label_column": (COLUMNS, {"label_column": "kind"}, {*SPLITS, "names"}),
    "header": (NUMBERED, {"header": False}, {*TEXT, "names", *BATCHES}),
    "encoding": (LINES, {"encoding": "cp1251"}, {*TEXT, "vocabulary"}),  # its letter merges at the same ids
    "separator": (LINES, {"separator": ":"}, {*TEXT, "names", *BATCHES}),
    "label_pattern": ({}, {"label_pattern": "^."}, {*SPLITS, "names"}),
    "label_separator": (split_files("-several.csv"), {"label_separator": "|"}, {*SPLITS, "names"}),
    "label_names": ({}, {"label_names": {"wood": "trees", "sky": "air", "sea": "water"}}, {*SPLITS, "names"}),
    "val_fraction": ({"val": None}, {"val_fraction": 0.3}, {"train", "val", "unlabeled", *IDS}),
    "split_seed": ({"val": None}, {"split_seed": 1}, {"train", "val", "unlabeled", *IDS}),
    "remove_test_copies": ({"labeled": "{}/both.csv"}, {"remove_test_copies": True}, {"train", "unlabeled", *IDS}),
    "tokenizer": ({}, {"tokenizer": "word"}, IDS),
    "vocab_size": ({}, {"vocab_size": 280}, IDS),
    "lowercase": (split_files("-capitals.csv"), {"lowercase": True}, IDS),
    "min_frequency": ({}, {"min_frequency": 200}, IDS),
    "direction": ({}, {"direction": "backward"}, BATCHES),
    "replace": ({}, {"replace": {"[aeiou]": ""}}, IDS),
    "max_length": ({}, {"max_length": 5}, {"batches", "measured", "unlabeled batches"}),
    "truncation": ({"max_length": 5}, {"truncation": "tail"}, {"batches", "measured", "unlabeled batches"}),
    "batch_size": ({}, {"batch_size": 2}, {"streams"}),
    "bptt": ({}, {"bptt": 8}, {"streams"}),
    "random_bptt": ({"bptt": 16}, {"random_bptt": True}, {"streams"}),
    "max_tokens": ({}, {"max_tokens": 100}, {"batches", "measured", "unlabeled batches"}),
    "max_documents": ({}, {"max_documents": 3}, {"batches"}),
    "max_unlabeled_documents": ({}, {"max_unlabeled_documents": 3}, {"unlabeled batches"}),
    "labels_per_class": ({}, {"labels_per_class": 3}, {"train", "batches"}),
    "val_labels_per_class": ({}, {"val_labels_per_class": 3}, {"val", "measured"}),
    "seed": ({"labels_per_class": 20}, {"seed": 2}, {"train", "streams", "batches", "unlabeled batches"}),
    "num_workers": ({}, {"num_workers": 1}, set()),  # who makes the batches
    "cache_dir": ({}, {"cache_dir": "{}/cache"}, set()),  # where all that is kept
}


def test_every_option_of_the_data_is_here() -> None:
    """Those of prompts with responses, which are no labeled documents, are in test_pairs.py."""
    assert {*CHANGES, "response_column", "max_response_length"} == set(inspect.signature(TextData).parameters)


def views(data: TextDataModule) -> dict[str, Any]:
    """What can differ between two data modules, each as plain values."""
    data.prepare_data()
    data.setup()
    loaders = {
        "streams": data.stream_loader("train"),
        "batches": data.document_loader("train"),
        "measured": data.document_loader("val"),
        "unlabeled batches": data.unlabeled_document_loader(),
    }
    arrays = {"train": data.train, "val": data.val, "test": data.test}
    return {
        **{split: (array.keys.tolist(), np.asarray(array.labels).tolist()) for split, array in arrays.items()},
        "unlabeled": sorted(data.prepared.unlabeled.keys.tolist()),
        "names": data.label_names,
        "vocabulary": data.tokenizer.digest,
        **{name: [batch.input_ids.tolist() for batch in loader] for name, loader in loaders.items()},
    }


@pytest.fixture(scope="module")
def seen(files: Files, folder: Path, shared_cache: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The views of a data module with these options; the same options twice are looked at once."""
    known: dict[str, dict[str, Any]] = {}

    def look(options: dict[str, Any]) -> dict[str, Any]:
        if (key := str(options)) not in known:
            placed = {k: v.replace("{}", str(folder)) if isinstance(v, str) else v for k, v in options.items()}
            known[key] = views(data_of(files, shared_cache, **placed))
        return known[key]

    return look


@pytest.mark.parametrize("option", CHANGES)
def test_an_option_changes_what_it_says_and_nothing_else(
    option: str, seen: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    base, change, expected = CHANGES[option]
    assert set(change) == {option}
    before, after = seen(base), seen({**base, **change})
    assert {name for name in before if before[name] != after[name]} == expected


def test_a_fit_reads_a_file_of_labels_and_texts_as_it_reads_a_csv_file(cli: Command, configs: Configs) -> None:
    """The same rows in both, with a letter that is another one in UTF-8."""
    plain, fitted = read(configs.finetune), []
    described = {"separator": " ::: ", "label_pattern": "<(.*)>", "encoding": "latin-1"}
    for form, how in (("csv", {}), ("label_text", described)):
        data = {**plain["data"], "tokenizer": "word", **how}
        for seed, option in enumerate(("labeled", "val", "test"), 1):
            rows = [(f"{text} à", label) for text, label in labeled_rows(10, seed)]
            path = write_csv(Path(f"{option}.{form}"), rows)
            if how:
                path.write_text("".join(f"<{y}>? ::: {text}\n" for text, y in rows), encoding="latin-1")
            data[option] = f"{form}:{path}"
        configs.finetune.write_text(yaml.safe_dump({**plain, "data": data}))
        result = cli("fit", "--config", configs.finetune, "--run_dir", form)
        assert result.code == 0, result.err
        assert cli("test", "--ckpt_path", form).code == 0
        fitted.append(read_checkpoint(Path(form, "checkpoints/last.ckpt")))
    for found in fitted:
        assert found.label_names == ["sea", "sky", "wood"]
        assert "à" in found.tokenizer().entries
    assert equal(*(found.network_weights() for found in fitted))
    assert read(Path("csv/metrics.json"))["test"] == read(Path("label_text/metrics.json"))["test"]
