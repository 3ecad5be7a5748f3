"""``hf:`` sources, on local folders in the hub's own layout; no test needs a network."""

from __future__ import annotations

import io
import os
import ssl
import time
from email.message import Message
from http.client import BadStatusLine
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Fit, labeled_rows
from refusals import refused

from lit_sft.data import hub
from lit_sft.data.corpus import load_corpus
from lit_sft.data.corpus_config import CorpusConfig
from lit_sft.data.readers import iter_rows, read_documents
from lit_sft.errors import UserError

pytest.importorskip("datasets")

NAMES = ["neg", "pos"]


hub_answers = hub._hub_answers


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(hub, "_hub_answers", lambda endpoint: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def hub_folder(
    root: Path, splits: dict[str, pa.Table], configs: tuple[str, ...] = ("default",), feature: str = ""
) -> str:
    """A folder as a data set's page serves it: README with front matter, a Parquet file a split and configuration."""
    feature = feature or "{name: label, dtype: {class_label: {names: {'0': neg, '1': pos}}}}"
    info, files = "", ""
    for config in configs:
        info += f"- config_name: {config}\n  features:\n  - {{name: text, dtype: string}}\n  - {feature}\n"
        files += f"- config_name: {config}\n  data_files:\n"
        for split, table in splits.items():
            files += f"  - {{split: {split}, path: {config}/{split}-*}}\n"
            (root / config).mkdir(parents=True, exist_ok=True)
            pq.write_table(table, root / config / f"{split}-00000-of-00001.parquet")
    (root / "README.md").write_text(f"---\ndataset_info:\n{info}configs:\n{files}---\n# Reviews\n", encoding="utf-8")
    return str(root)


def table(rows: list[tuple[str | None, Any]]) -> pa.Table:
    return pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})


def test_numbers_of_classes_become_their_names_and_each_option_reads_its_split(tmp_path: Path) -> None:
    train = [(f"text {i}", i % 2) for i in range(2000)]  # more than a batch
    folder = hub_folder(
        tmp_path / "hub",
        {"train": table(train), "validation": table([("v", 1), ("w", 0)]), "test": table([("t", 0), ("u", 1)])},
    )
    source = f"hf:{folder}"
    config = CorpusConfig(labeled=[source], unlabeled=[source], val=[source], test=[source])
    corpus = load_corpus(config, tmp_path / "cache")
    assert list(corpus.train.texts) == [text for text, _ in train]
    assert corpus.train.labels == [NAMES[label] for _, label in train]
    assert (list(corpus.val.texts), corpus.val.labels) == (["v", "w"], ["pos", "neg"])
    assert (list(corpus.test.texts), corpus.test.labels) == (["t", "u"], ["neg", "pos"])
    assert list(corpus.extra.texts) == [text for text, _ in train]
    assert list((tmp_path / "hf-cache").rglob("*.arrow")) == []  # a local folder is not copied


def test_splits_and_configurations_are_named_behind_colons(tmp_path: Path) -> None:
    splits = {"train": table([("a", 0)]), "extra": table([("b", 1), (None, 0), ("c", None), ("d", -1)])}
    folder = hub_folder(tmp_path / "with:colon", splits, ("one", "two"))
    pq.write_table(table([("of two", 1)]), Path(folder) / "two/train-00000-of-00001.parquet")

    def texts(source: str) -> list[str | None]:
        return [row.text for row in iter_rows(source)]

    assert texts(f"hf:{folder}:one") == ["a"]
    assert texts(f"hf:{folder}:two") == texts(f"hf:{folder}:two:train") == ["of two"]
    assert [row.label for row in iter_rows(f"hf:{folder}:one:extra")] == ["pos", "neg", None, None]
    documents, report = read_documents(f"hf:{folder}:one:extra", labeled=False)
    assert (list(documents.texts), report.rows, report.blank) == (["b", "c", "d"], 4, 1)
    with pytest.raises(UserError, match=r"extra, row 3: no label"):
        read_documents(f"hf:{folder}:one:extra", labeled=True)
    with pytest.raises(UserError, match=r"no split 'dev'; there are: train, extra; write hf:.*with:colon:SPLIT"):
        texts(f"hf:{folder}:one:dev")
    with pytest.raises(UserError, match="Config name is missing"):
        texts(f"hf:{folder}")


def test_lists_of_classes_are_multi_label(tmp_path: Path) -> None:
    feature = "{name: label, list: {class_label: {names: {'0': joy, '1': fear}}}}"
    folder = hub_folder(tmp_path / "hub", {"train": table([("a", [1, 0]), ("b", [])])}, feature=feature)
    assert read_documents(f"hf:{folder}", labeled=True)[0].labels == [("fear", "joy"), ()]


def test_columns_are_chosen_as_in_files(tmp_path: Path) -> None:
    (tmp_path / "hub/data").mkdir(parents=True)
    (tmp_path / "hub/data/train.csv").write_text("id,sentence,topic\n1,a text,x\n2,another,y\n")
    source = f"hf:{tmp_path / 'hub'}"
    documents, _ = read_documents(source, labeled=True, label_column="topic", text_column="sentence")
    assert (list(documents.texts), documents.labels) == (["a text", "another"], ["x", "y"])
    with pytest.raises(UserError, match=r"no column 'label'; columns: id, sentence, topic"):
        read_documents(source, labeled=True)


def test_a_damaged_file_is_one_line_and_nothing_else_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = hub_folder(tmp_path / "hub", {"train": table([(text, 0) for text, _ in labeled_rows(9, 1)])})
    [path] = Path(folder).glob("*/train*")
    path.write_bytes(path.read_bytes()[:-100])
    capfd.readouterr()
    with pytest.raises(UserError, match=r"^hf:") as caught:
        read_documents(f"hf:{folder}", labeled=True)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_changes_with_the_data_and_with_the_split(tmp_path: Path) -> None:
    splits = {"train": table([("a", 0), ("b", 1)]), "test": table([("c", 0)])}
    folder = hub_folder(tmp_path / "hub", splits)
    first = CorpusConfig(labeled=[f"hf:{folder}"]).fingerprint()
    assert first == CorpusConfig(labeled=[f"hf:{folder}"]).fingerprint()
    assert first != CorpusConfig(labeled=[f"hf:{folder}:test"]).fingerprint()
    [path] = Path(folder).glob("*/train*")
    before = path.stat()
    pq.write_table(table([("a", 0), ("c", 1)]), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert first != CorpusConfig(labeled=[f"hf:{folder}"]).fingerprint()


def test_without_a_network_the_way_to_local_files_is_told_at_once(fit: Fit) -> None:
    start = time.monotonic()
    parts = ("hf:nobody/nothing-here: the Hugging Face hub can't be reached", "--data.labeled FILE", "hf:FOLDER")
    refused(fit("--data.labeled", "hf:nobody/nothing-here"), *parts)
    assert time.monotonic() - start < 20


def test_a_source_is_read_though_standard_error_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub_folder(tmp_path / "hub", {"train": table([("a text", 0)])})
    monkeypatch.setattr("sys.stderr", None)
    assert [row.text for row in iter_rows(f"hf:{folder}")] == ["a text"]


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (URLError(ssl.SSLCertVerificationError(1, "no issuer's certificate")), True),
        (HTTPError("https://hub", 401, "Unauthorized", Message(), None), True),
        (URLError(OSError(-3, "Temporary failure in name resolution")), False),
        (TimeoutError("timed out"), False),
        (BadStatusLine("SSH-2.0-OpenSSH"), False),
        (None, True),
    ],
)
def test_a_hub_answers_even_where_pythons_own_certificates_are_missing(
    error: Exception | None, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(*_: object, timeout: float) -> io.BytesIO:
        if error is not None:
            raise error
        return io.BytesIO()

    monkeypatch.setattr(hub, "_answers", {})
    monkeypatch.setattr("urllib.request.urlopen", probe)
    assert hub_answers("https://hub") is answers


def test_without_the_library_its_extra_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'lit_sft\[hub\]', or give local files"):
        iter_rows(f"hf:{tmp_path}")
    (tmp_path / "a.csv").write_text("text\nx\n")
    assert [row.text for row in iter_rows(tmp_path / "a.csv")] == ["x"]


def test_a_file_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nx\n")
    with pytest.raises(UserError, match=r"is a file; write .*a\.csv$"):
        iter_rows(f"hf:{tmp_path}/a.csv")
