"""From sources to splits: formats agree, labels keep their order, what must not be seen is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Files, labeled_rows, write_csv

from lit_sft.data.corpus import Corpus, load_corpus
from lit_sft.data.corpus_config import CorpusConfig
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.documents import Documents
from lit_sft.data.pydocs import PyDocs
from lit_sft.errors import UserError

ROWS = [
    (f'{text}\twith a tab, a comma and "quotes"' if i == 0 else text, "01"[i % 2])
    for i, (text, _) in enumerate(labeled_rows(6, 8))
]


def lines(path: Path, texts: list[str]) -> str:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)


def load(folder: Path, **options: Any) -> Corpus:
    return load_corpus(CorpusConfig(**options), folder)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a", "c"], ["a", "b", "c"]),
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["²", "9", "10"], ["10", "9", "²"]),
        (["--1", "0"], ["--1", "0"]),
    ],
    ids=str,
)
def test_labels_are_sorted_by_name_or_by_value(labels: list[str], expected: list[str], tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [(f"text {i}", label) for i, label in enumerate(labels * 4)])
    assert load(tmp_path, labeled=[str(path)]).label_names == expected


def test_label_names_that_yaml_takes_for_truth_values_are_told() -> None:
    names: Any = {True: "spam", False: "ham"}
    with pytest.raises(UserError, match=r"data\.label_names: quote its labels: YAML takes true"):
        TextDataModule(labeled="mails.jsonl", label_names=names)


def test_label_names_give_names_and_their_order_to_every_split(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "rows.csv", ROWS))
    names = {"1": "positive", "0": "negative"}
    corpus = load(tmp_path, labeled=[path], val=[path], test=[path], label_names=names)
    assert corpus.label_names == ["positive", "negative"]
    assert corpus.label_index == {"positive": 0, "negative": 1}
    for split in (corpus.train, corpus.val, corpus.test):
        assert split.labels == [names[label] for _, label in ROWS]
    more = str(write_csv(tmp_path / "merged.csv", [*ROWS, ("x y", "2")]))
    merged = load(tmp_path, labeled=[more], label_names={**names, "2": "positive"})
    assert merged.label_names == ["positive", "negative"]


def test_without_val_a_part_of_train_is_held_out_by_the_split_seed_alone(files: Files, tmp_path: Path) -> None:
    held = []
    for seed in (0, 0, 1):
        corpus = load(tmp_path, labeled=[str(files.train)], val_fraction=0.25, split_seed=seed)
        together = sorted([*corpus.train.texts, *corpus.val.texts])
        assert together == sorted(text for text, _ in labeled_rows(40, 1))
        assert 15 < len(corpus.val) < 45
        held.append(corpus.val.texts)
    assert held[0] == held[1] != held[2]


def test_copies_of_evaluation_documents_are_left_out_of_unlabeled_text_and_noted(files: Files, tmp_path: Path) -> None:
    """Those of validation always, by their words; those of test documents where it is asked for."""
    val, test = (labeled_rows(10, seed) for seed in (2, 3))
    extra = lines(tmp_path / "extra.txt", ["own text", val[0][0].upper(), val[4][0] + "!", test[1][0], "own text"])
    sources = {"val": [str(files.val)], "test": [str(files.test)], "unlabeled": [extra]}
    corpus = load(tmp_path, labeled=[str(files.train)], **sources)
    assert corpus.extra.texts == ["own text", test[1][0], "own text"]
    assert corpus.notes == ["2 unlabeled documents are copies of validation documents and were left out"]
    alone = load(tmp_path, **sources)
    assert alone.train.texts == corpus.extra.texts
    assert alone.notes == corpus.notes
    for labeled in ([str(files.train)], []):
        removed = load(tmp_path, labeled=labeled, **sources, remove_test_copies=True)
        assert (removed.extra if labeled else removed.train).texts == ["own text", "own text"]
        assert removed.gate is not None
        assert removed.gate.report()["unlabeled"] == {"documents": 5, "exact": 1, "near": 0, "removed": 1}
        assert removed.notes == corpus.notes


def test_held_out_documents_are_left_out_of_unlabeled_text_too(files: Files, tmp_path: Path) -> None:
    copies = lines(tmp_path / "copies.txt", [text for text, _ in labeled_rows(40, 1)])
    corpus = load(tmp_path, labeled=[str(files.train)], unlabeled=[copies])
    assert corpus.extra.texts == [text for text, _ in labeled_rows(40, 1) if text not in corpus.val.texts]


def test_unlabeled_text_alone_makes_a_corpus_without_labels(files: Files, tmp_path: Path) -> None:
    corpus = load(tmp_path, unlabeled=[str(files.unlabeled)], test=[str(files.test)])
    assert corpus.label_names == []
    assert corpus.train.labels is corpus.val.labels is corpus.test.labels is None
    assert len(corpus.train) + len(corpus.val) == 60
    assert len(corpus.test) == 30
    assert len(corpus.extra) == 0


def test_several_files_are_read_in_their_order_and_blank_texts_counted(files: Files, tmp_path: Path) -> None:
    more = write_csv(tmp_path / "more.csv", [("  ", "sea"), ("one more", "sky"), ("", "wood")])
    corpus = load(tmp_path, labeled=[str(more), str(files.train)], val=[str(files.val)])
    assert corpus.train.texts == ["one more", *(text for text, _ in labeled_rows(40, 1))]
    assert corpus.notes == [f"{more}: 2 of 3 texts are blank and were left out"]


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "rows.csv", [("a", "x"), ("b", "x")]))
    with pytest.raises(UserError, match=r"rows\.csv: a classifier needs two labels or more, found only 'x'"):
        load(tmp_path, labeled=[path])


def test_a_document_a_class_is_enough_where_the_classes_are_listed(tmp_path: Path) -> None:
    rows = [(f"document {i}", f"class {i}") for i in range(30)]
    path = str(write_csv(tmp_path / "rows.csv", rows))
    names = {label: label for _, label in rows}
    with pytest.raises(UserError, match=r"30 different labels in 30 documents.*list them in data\.label_names"):
        load(tmp_path, labeled=[path], val=[path])
    assert load(tmp_path, labeled=[path], val=[path], label_names=names).label_names == list(names)


def test_mistakes_in_labels_are_named_with_file_and_row(files: Files, tmp_path: Path) -> None:
    odd = str(write_csv(tmp_path / "odd.csv", [("fine", "sea"), ("what", "lake")]))
    for option in ("val", "test"):
        with pytest.raises(UserError, match=r"odd\.csv, row 3: label 'lake' .*sea, sky, wood"):
            load(tmp_path, labeled=[str(files.train)], **{option: [odd]})
    names = {"sea": "water", "sky": "air", "wood": "land", "fire": "fire"}
    with pytest.raises(UserError, match=r"no document has the label\(s\) \['fire'\]"):
        load(tmp_path, labeled=[str(files.train)], label_names=names)


def test_no_source_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training text"):
        load(tmp_path)


def test_the_fingerprint_follows_content_options_and_order(files: Files, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", ROWS)

    def fingerprint(**options: Any) -> str:
        return CorpusConfig(**{"labeled": [str(path)], **options}).fingerprint()

    first = fingerprint()
    assert fingerprint() == first
    names = {"0": "a", "1": "b"}
    others = [
        fingerprint(split_seed=1),
        fingerprint(val=[str(files.val)]),
        fingerprint(label_names=names),
        fingerprint(label_names=dict(reversed(names.items()))),
    ]
    write_csv(path, ROWS[:-1])
    assert len({first, *others, fingerprint()}) == 6


@pytest.fixture
def pydocs(monkeypatch: pytest.MonkeyPatch) -> PyDocs:
    """A stand-in of four documents a split."""
    splits = [
        Documents([f"{split} {i}" for i in range(4)], ["torch", "sympy"] * 2) for split in ("train", "val", "test")
    ]
    docs = PyDocs(*splits, Documents(["a comment", "val 1", "test 2", "of a package"]))
    monkeypatch.setattr("lit_sft.data.pydocs.load_pydocs", lambda cache_dir: docs)
    return docs


def test_pydocs_brings_its_splits_and_its_comments_only_on_request(
    pydocs: PyDocs, files: Files, tmp_path: Path
) -> None:
    corpus = load(tmp_path, labeled=["pydocs"])
    assert (corpus.train, corpus.val, corpus.test) == (pydocs.train, pydocs.val, pydocs.test)
    assert corpus.label_names == ["sympy", "torch"]
    assert len(corpus.extra) == 0
    asked = {"labeled": ["pydocs"], "unlabeled": ["pydocs", str(files.unlabeled)]}
    more = load(tmp_path, **asked)
    assert more.extra.texts[:3] == ["a comment", "test 2", "of a package"]
    assert len(more.extra) == 63
    assert load(tmp_path, **asked, remove_test_copies=True).extra.texts[:2] == ["a comment", "of a package"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labeled": ["pydocs", "FILE"]}, "can't be mixed"),
        ({"labeled": ["FILE", "pydocs"]}, "can't be mixed"),
        ({"labeled": ["FILE"], "unlabeled": ["pydocs"]}, "data.unlabeled: 'pydocs' goes with data.labeled pydocs only"),
        ({"labeled": ["FILE"], "test": ["pydocs"]}, "data.test: 'pydocs' goes with data.labeled pydocs only"),
        ({"labeled": ["pydocs"], "val": ["pydocs"]}, "data.val: pydocs brings its own val documents"),
    ],
    ids=str,
)
def test_pydocs_in_the_wrong_place_is_refused(
    options: dict[str, Any], message: str, pydocs: PyDocs, files: Files, tmp_path: Path
) -> None:
    given = {key: [str(files.train) if s == "FILE" else s for s in value] for key, value in options.items()}
    with pytest.raises(UserError, match=message):
        load(tmp_path, **given)
