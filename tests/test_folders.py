"""Folders as sources: a folder for each class, and a folder of files; what is not read is told."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from lit_sft.data.corpus import load_corpus
from lit_sft.data.corpus_config import CorpusConfig, source_digest
from lit_sft.data.readers import ReadReport, read_documents
from lit_sft.data.rows import RowOptions
from lit_sft.errors import UserError


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


def acl_imdb(root: Path) -> Path:
    """The layout of the Large Movie Review Dataset."""
    reviews = {f"train/pos/{i}_9.txt": f"good {i}" for i in range(12)}
    reviews |= {f"train/neg/{i}_1.txt": f"bad {i}" for i in range(3)} | {"train/neg/3_1.txt": "two\nlines\n"}
    reviews |= {f"train/unsup/{i}_0.txt": f"some {i}" for i in range(5)}
    other = {
        "train/urls_pos.txt": "http://x\n",
        "train/labeledBow.feat": "9 0:9\n",
        "README": "about",
        "imdb.vocab": "a",
    }
    return tree(root, reviews | other | {"test/pos/0_9.txt": "fine", "test/neg/0_1.txt": "poor"})


def read(source: object, labeled: bool = True, **options: object) -> tuple[list[tuple[str, str]], ReadReport]:
    documents, report = read_documents(str(source), labeled=labeled, **options)  # type: ignore[arg-type]
    return list(zip(documents.texts, documents.labels or [""] * len(documents), strict=True)), report  # type: ignore[arg-type]


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    rows, report = read(acl_imdb(tmp_path) / "train")
    numbers = sorted(range(12), key=lambda i: f"{i}_9.txt")
    expected = [("bad 0", "neg"), ("bad 1", "neg"), ("bad 2", "neg"), ("two\nlines", "neg")]
    assert rows == [*expected, *((f"good {i}", "pos") for i in numbers)]
    assert (report.rows, report.blank) == (16, 0)
    assert [note.replace(str(tmp_path), "") for note in report.notes] == [
        "/train/unsup: 5 files are left out (documents without a label)",
        "/train: 2 files are not read: labeledBow.feat, urls_pos.txt",
    ]


def test_folders_for_several_labels(tmp_path: Path) -> None:
    train = tree(tmp_path, {f"{name}/1.txt": name for name in ("a;b", "b", "unsup")})
    rows, report = read(train, label_separator=";")
    assert rows == [("a;b", ("a", "b")), ("b", ("b",))]
    assert report.notes == [f"{train}/unsup: 1 files are left out (documents without a label)"]


def test_label_names_choose_the_classes_and_others_are_left_out(tmp_path: Path) -> None:
    train = str(acl_imdb(tmp_path) / "train")
    test = str(tmp_path / "test")
    config = CorpusConfig(labeled=[train], test=[test], label_names={"pos": "positive", "neg": "negative"})
    corpus = load_corpus(config, tmp_path / "cache")
    assert corpus.label_names == ["positive", "negative"]
    assert set(corpus.train.labels or []) == {"positive", "negative"}
    assert any("unsup: 5 files are left out (data.label_names lacks it)" in note for note in corpus.notes)
    kept = {"pos": "p", "neg": "n", "unsup": "u"}
    rows, report = read(train, label_names=kept, classes=list(kept))
    assert [label for _, label in rows].count("u") == 5
    assert not any("left out" in note for note in report.notes)
    with pytest.raises(UserError, match=r"train: none of the folders neg, pos, unsup is a class of data\.label_names"):
        read(train, label_names={"a": "a"}, classes=["a"])


def test_a_class_that_only_the_test_folder_has_is_refused(tmp_path: Path) -> None:
    """Where label_names are not given, nobody has said that it should be left out."""
    acl_imdb(tmp_path)
    tree(tmp_path, {"test/other/0.txt": "a text"})
    config = CorpusConfig(labeled=[str(tmp_path / "train")], test=[str(tmp_path / "test")])
    with pytest.raises(UserError, match=r"test/other/0\.txt, row 1: label 'other' is not among neg, pos \("):
        load_corpus(config, tmp_path / "cache")
    measured = config.measuring("test", ["neg", "pos"])
    with pytest.raises(UserError, match="label 'other' is not among"):
        load_corpus(measured, tmp_path / "cache")


def test_splits_are_not_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r": test, train are splits, not classes; give .*/train$"):
        read(acl_imdb(tmp_path))
    with pytest.raises(UserError, match=r"holds several splits \(.*\); give the files, or hf:"):
        read(tree(tmp_path / "a", {"train.csv": "text\nx\n", "dev-0.csv": "text\nx\n"}), labeled=False)
    with pytest.raises(UserError, match=r"holds several splits \(x_test\.csv, x_train\.csv\)"):
        read(tree(tmp_path / "b", {"x_train.csv": "text\nx\n", "x_test.csv": "text\nx\n"}), labeled=False)
    with pytest.raises(UserError, match=r"holds several splits \(test/pos, train.*\); give a folder of one split"):
        read(f"file:{tmp_path}", labeled=False)
    documents = tree(tmp_path / "c", {"a/train_1.txt": "text", "a/test_1.txt": "text", "testing.txt": "text"})
    assert len(read(f"file:{documents}", labeled=False)[0]) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sst2.train.csv", "sst2.test.csv"),
        ("imdb-train-00000-of-00001.csv", "imdb-test-00000-of-00001.csv"),
        ("x_train_1.csv", "x_dev_1.csv"),
    ],
)
def test_the_usual_names_of_splits_are_known(one: str, other: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds several splits"):
        read(tree(tmp_path, {one: "text\nx\n", other: "text\nx\n"}), labeled=False)


def test_what_only_speaks_of_a_split_is_none(tmp_path: Path) -> None:
    names = ("train.csv", "unit-test-guide.csv", "contest.csv", "my_dev_notes.csv", "validity.1.csv")
    assert len(read(tree(tmp_path, dict.fromkeys(names, "text\nx\n")), labeled=False)[0]) == len(names)


def test_unlabeled_documents_of_a_folder(tmp_path: Path) -> None:
    train = acl_imdb(tmp_path) / "train"
    rows, report = read(f"file:{train}/neg", labeled=False)
    assert [text for text, _ in rows] == ["bad 0", "bad 1", "bad 2", "two\nlines"]
    assert report.notes == []
    rows, report = read(f"{train}/neg", labeled=False)
    assert [text for text, _ in rows] == ["bad 0", "bad 1", "bad 2", "two", "lines"]
    assert report.notes == [
        f"{train}/neg: 4 text files are read as a document a line; with file: before the folder each is a document"
    ]
    _, report = read(f"file:{train}", labeled=False)
    assert f"{train}: 1 files beside the subfolders are read too: urls_pos.txt" in report.notes


def test_documents_without_a_suffix_and_deeper_folders(tmp_path: Path) -> None:
    root = tree(
        tmp_path, {"alt.atheism/49960": "a", "sci.space/deep/er/60150": "b", "sci.space/x.gif": "", "sci.space/e": ""}
    )
    rows, report = read(root)
    assert rows == [("a", "alt.atheism"), ("b", "sci.space")]
    assert (report.rows, report.blank) == (3, 1)
    assert report.notes == [f"{root}: 1 files are not read: sci.space/x.gif"]


def test_a_folder_of_files_is_read_one_after_the_other(tmp_path: Path) -> None:
    files = {
        "b/2.jsonl": json.dumps({"label": "y", "review": "third"}),
        "a.csv": "text,label\nfirst,x\n,x\n",
        "b/1.tsv": "label\tid\ttext\ny\t1\tsecond\n",
        "part-9.csv": "",
        "part-8.csv": "\ufeff",
        "c.pdf": "%PDF",
        "LICENSE": "free",
    }
    root = tree(tmp_path, files)
    rows, report = read(root)
    assert rows == [("first", "x"), ("second", "y"), ("third", "y")]
    assert (report.rows, report.blank) == (4, 1)
    assert report.notes == [
        f"{root}: 2 files are not read: LICENSE, c.pdf",
        f"{root}: 2 empty files: part-8.csv, part-9.csv",
    ]
    rows, report = read(f"tsv:{root}")
    assert rows == [("second", "y")]
    assert "a.csv, b/2.jsonl, c.pdf" in report.notes[0]
    tree(root, {"b/3.jsonl": '{"label": "y", "review": "x"}\n{"label": "y"}\n'})
    with pytest.raises(UserError, match=rf"^{re.escape(str(root))}/b/3\.jsonl, row 2: no 'review'; there: label$"):
        read(root)
    tree(root, {"b/0.txt": "no label"})
    with pytest.raises(UserError, match=r"holds both folders of text files \(b\) and a\.csv, b/1\.tsv"):
        read(root)


def test_a_folder_without_a_readable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file in it that can be read; known: \.txt, \.csv"):
        read(tree(tmp_path, {"a.pdf": "x", ".b.csv": "text\nx\n"}), labeled=False)
    with pytest.raises(UserError, match="is a folder; give its files"):
        read(f"label_text:{tmp_path}")


def test_a_pipe_is_refused_since_it_can_be_read_only_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is no file but a pipe or a device"):
        CorpusConfig(unlabeled=[f"txt:{tmp_path / 'pipe'}"]).fingerprint()


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", {"pos/0.txt": "good"})
    (root / "neg").symlink_to(tree(tmp_path / "elsewhere", {"0.txt": "bad"}))
    assert read(root)[0] == [("bad", "neg"), ("good", "pos")]
    (root / "pos" / "up").symlink_to(root)
    with pytest.raises(UserError, match="pos/up: a link that leads back to a folder above it"):
        read(root)


def test_the_fingerprint_is_that_of_the_names_and_bytes_of_the_files_read(tmp_path: Path) -> None:
    train = acl_imdb(tmp_path) / "train"
    config = CorpusConfig(labeled=[str(train)])
    prints = [config.fingerprint(), config.fingerprint()]
    (train / "pos/0_9.txt").write_text("good 9")
    prints.append(config.fingerprint())
    (train / "pos/0_9.txt").rename(train / "pos/0_8.txt")
    prints.append(config.fingerprint())
    (train / "unsup/9_0.txt").write_text("one more is left out")  # the note that tells of them is kept with the data
    prints.append(config.fingerprint())
    (train / "urls_pos.txt").write_text("not read")
    prints.append(config.fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints[:5])) == 4
    assert prints[4] == prints[5]


def test_what_desktops_and_notebooks_leave_in_a_folder_is_not_there(tmp_path: Path) -> None:
    """Else a folder that was only looked into would hold other text than a run was trained on."""
    litter = (".DS_Store", "._0_9.txt", ".ipynb_checkpoints/0_9-checkpoint.txt", "Thumbs.db", "desktop.ini")
    acl_imdb(tmp_path / "data")
    sources = [f"{kind}{tmp_path}/data/train{below}" for kind, below in (("", ""), ("file:", "/pos"), ("", "/neg"))]

    def found() -> list[object]:
        digests = [source_digest(source, RowOptions("", labels=True), None, "train") for source in sources]
        return [*digests, *(read(source, labeled=source == sources[0]) for source in sources)]

    before = found()
    tree(tmp_path / "data/train", {f"{folder}/{name}": "x" for folder in (".", "pos", "neg") for name in litter})
    assert found() == before
    tree(tmp_path / "data/train", {"pos/picture.gif": "x"})
    assert found()[:3] != before[:3]


@pytest.mark.parametrize(
    ("kind", "folder", "labels"), [("", "train", True), ("", "train/neg", False), ("file:", "train", False)]
)
def test_another_spelling_of_a_folder_is_the_same_text(
    kind: str, folder: str, labels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Provenance goes by these hashes: what another run has read is known again."""
    acl_imdb(tmp_path / "data")
    monkeypatch.chdir(tmp_path)

    def digest(path: str) -> str:
        return source_digest(kind + path, RowOptions("", labels=labels), None, "train")

    spellings = (f"data/{folder}", f"./data/{folder}/", str(tmp_path / "data" / folder), "data/test")
    first, *same, other = map(digest, spellings)
    assert same == [first, first]
    (tmp_path / "data" / "train" / "neg" / "0_1.txt").rename(tmp_path / "data" / "train" / "neg" / "zero.txt")
    assert len({first, other, digest(f"data/{folder}")}) == 3
