"""Prepared data: what the tokenizer sees, what is cached, and what two runs at once do to each other."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Files, labeled_rows, write_csv

from lit_sft.data import prepare as module
from lit_sft.data.corpus_config import CorpusConfig
from lit_sft.data.documents import content_keys
from lit_sft.data.prepare import Preparation, Prepared, TokenizerOptions, default_cache_dir, write_atomically
from lit_sft.data.splits import sample
from lit_sft.data.tokenization import Tokenizer
from lit_sft.data.tokens import TokenArray, read_tokens, write_tokens
from lit_sft.errors import UserError


def preparation(
    cache: Path, kind: str = "bpe", vocab_size: int = 300, min_frequency: int = 2, **options: Any
) -> Preparation:
    own = TokenizerOptions(vocab_size, options.pop("lowercase", False), min_frequency, options.pop("replace", {}))
    return Preparation(CorpusConfig(**options), kind, own, cache)


def prepared(cache: Path, **options: Any) -> Prepared:
    made = preparation(cache, **options)
    made.make(made.tokenizer())
    return made.read(made.tokenizer())


def sources(files: Files) -> dict[str, list[str]]:
    return {"labeled": [str(files.train)], "val": [str(files.val)], "test": [str(files.test)]}


def vocabulary(tokenizer: Tokenizer) -> set[str]:
    return set(json.loads(tokenizer.to_json())["model"]["vocab"])


def words(tokenizer: Tokenizer, array: TokenArray) -> set[str]:
    return {word for i in range(len(array)) for word in tokenizer.decode(array.document(i)).split()}


def marked(rows: list[tuple[str, str]], word: str) -> list[tuple[str, str]]:
    """The rows with a word that stands nowhere else, often enough to earn an entry of its own."""
    return [(f"{word} {text} {word}", label) for text, label in rows]


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_neither_tokenizer_nor_language_model_sees_validation_or_test_text(
    kind: str, files: Files, tmp_path: Path
) -> None:
    val, test = marked(labeled_rows(10, 2), "qvalqval"), marked(labeled_rows(10, 3), "qtestqtest")
    given = {
        "labeled": [str(write_csv(tmp_path / "train.csv", marked(labeled_rows(40, 1), "ptrainp")))],
        "val": [str(write_csv(tmp_path / "val.csv", val))],
        "test": [str(write_csv(tmp_path / "test.csv", test))],
        "unlabeled": [str(files.unlabeled)],
    }
    data = prepared(tmp_path / "cache", kind=kind, vocab_size=700, **given)
    entries = vocabulary(data.tokenizer)
    assert any("ptrainp" in entry for entry in entries)
    assert not any("qva" in entry or "qte" in entry for entry in entries)
    seen = words(data.tokenizer, data.unlabeled)
    assert "ptrainp" in seen
    assert not seen & {"qvalqval", "qtestqtest"}
    if kind == "bpe":
        assert "qvalqval" in words(data.tokenizer, data.val)
        assert "qtestqtest" in words(data.tokenizer, data.test)


def test_neither_sees_the_held_out_part(tmp_path: Path) -> None:
    rows = [(f"doc{i}x doc{i}x {text}", label) for i, (text, label) in enumerate(labeled_rows(40, 1))]
    path = str(write_csv(tmp_path / "train.csv", rows))
    data = prepared(tmp_path / "cache", kind="word", vocab_size=5000, labeled=[path], val_fraction=0.3)
    unique = {key: f"doc{i}x" for i, key in enumerate(content_keys([text for text, _ in rows]).tolist())}
    train, held = ({unique[key] for key in array.keys.tolist()} for array in (data.train, data.val))
    assert len(train) + len(held) == 120
    assert len(held) > 20
    entries = vocabulary(data.tokenizer)
    assert train <= entries
    assert not held & entries
    assert train <= words(data.tokenizer, data.unlabeled)


def test_the_arrays_hold_every_split_as_the_tokenizer_writes_it(files: Files, tmp_path: Path) -> None:
    made = preparation(tmp_path, unlabeled=[str(files.unlabeled)], **sources(files))
    tokenizer = made.tokenizer()
    made.make(tokenizer)
    data = made.read(tokenizer)
    corpus = made.corpus
    text = corpus.train + corpus.extra
    assert len(text) == 180
    pairs = [(data.train, corpus.train), (data.val, corpus.val), (data.test, corpus.test), (data.unlabeled, text)]
    for array, documents in pairs:
        ids = tokenizer.encode_batch(documents.texts)
        assert [array.document(i).tolist() for i in range(len(array))] == [d.tolist() for d in ids]
        labels = [corpus.label_names.index(label) for label in documents.labels or []] or [-1] * len(documents)
        assert array.labels.tolist() == labels
        assert np.array_equal(array.keys, content_keys(documents.texts))
        assert array.num_bytes.tolist() == [len(t.encode()) for t in documents.texts]
    assert data.label_names == ["sea", "sky", "wood"]


@pytest.mark.parametrize(("kind", "size"), [("bpe", 3000), ("word", None)])
def test_bpe_is_learned_from_a_sample_of_much_text_and_words_from_all(
    kind: str, size: int | None, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BPE_BYTES", 3000)
    made = preparation(tmp_path, kind=kind, unlabeled=[str(files.unlabeled)], **sources(files))
    texts = [*made.corpus.train.texts, *made.corpus.extra.texts]
    assert sum(map(len, texts)) > 10_000
    learned_from = texts if size is None else sample(texts, size)
    assert made.tokenizer().digest == Tokenizer.train(learned_from, kind, 300).digest  # type: ignore[arg-type]


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing may be read, trained or tokenised."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the cache was not used")

    for name in ("encode_batch", "encode_packed", "train"):
        monkeypatch.setattr(Tokenizer, name, fail)
    for name in ("load_corpus", "write_tokens"):
        monkeypatch.setattr(module, name, fail)


def test_the_second_time_comes_from_the_cache(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = write_csv(tmp_path / "val.csv", [("", "sea"), *labeled_rows(2, 2)])
    given = {**sources(files), "val": [str(blank)]}
    first = prepared(tmp_path / "cache", **given)
    forbid(monkeypatch)
    second = prepared(tmp_path / "cache", **given)
    assert second.tokenizer.digest == first.tokenizer.digest
    assert second.notes == first.notes == [f"{blank}: 1 of 7 texts are blank and were left out"]
    for name in ("train", "val", "test", "unlabeled"):
        one, other = getattr(first, name), getattr(second, name)
        assert np.array_equal(one.tokens, other.tokens)
        assert np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize("option", ["labeled", "val", "test"])
def test_a_changed_file_is_never_served_stale(option: str, tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.csv" for name in ("labeled", "val", "test")}
    given = {name: [str(write_csv(path, labeled_rows(5, seed)))] for seed, (name, path) in enumerate(paths.items())}
    prepared(tmp_path / "cache", **given)
    changed = [(text.upper(), label) for text, label in labeled_rows(5, 9)]
    write_csv(paths[option], changed)
    data = prepared(tmp_path / "cache", **given)
    array = {"labeled": data.train, "val": data.val, "test": data.test}[option]
    assert [data.tokenizer.decode(array.document(i)) for i in range(15)] == [text for text, _ in changed]


def test_a_given_tokenizer_is_used_as_it_is_and_shares_nothing_but_the_corpus(files: Files, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["some other text"] * 3, "word", 50)
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    data = prepared(tmp_path / "cache", kind=str(path), **sources(files))
    assert data.tokenizer.digest == tokenizer.digest
    assert not (tmp_path / "cache" / "tokenizers").exists()
    with pytest.raises(UserError, match=r"missing\.json does not exist"):
        prepared(tmp_path / "cache", kind=str(tmp_path / "missing.json"), **sources(files))


@pytest.mark.parametrize("part", ["unlabeled", "val", "test", "meta.json"])
def test_a_part_that_was_deleted_is_made_again(part: str, files: Files, tmp_path: Path) -> None:
    first = prepared(tmp_path, **sources(files))
    (folder,) = (tmp_path / "tokens").iterdir()
    target = folder / part
    if target.is_dir():
        for path in target.iterdir():
            path.unlink()
        target.rmdir()
    else:
        target.unlink()
    again = prepared(tmp_path, **sources(files))
    assert np.array_equal(again.test.tokens, first.test.tokens)
    assert np.array_equal(again.unlabeled.tokens, first.unlabeled.tokens)
    assert again.label_names == first.label_names


def test_another_run_that_comes_in_between_disturbs_nothing(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other: list[Prepared] = []

    def overtaken(folder: Path, *args: Any, **kwargs: Any) -> TokenArray:
        monkeypatch.setattr(module, "write_tokens", write_tokens)
        other.append(prepared(tmp_path, **sources(files)))  # a whole run, while the first is about to write
        return write_tokens(folder, *args, **kwargs)

    monkeypatch.setattr(module, "write_tokens", overtaken)
    mine = prepared(tmp_path, **sources(files))
    assert len(other) == 1
    assert np.array_equal(mine.unlabeled.tokens, other[0].unlabeled.tokens)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".")]


def test_the_texts_are_let_go_when_the_arrays_are_made_and_never_pickled(files: Files, tmp_path: Path) -> None:
    made = preparation(tmp_path, **sources(files))
    first = made.corpus.train
    assert len(pickle.dumps(made)) < 2000
    made.make(made.tokenizer())
    assert "corpus" not in vars(made)
    assert made.corpus.train == first
    made.make(made.tokenizer())
    assert "corpus" not in vars(made), "they were there already"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizers", "tokens"]


def test_the_order_of_replacements_makes_another_tokenizer(files: Files, tmp_path: Path) -> None:
    pairs = {"ab": "c", "c": "d"}
    for replace, expected in ((pairs, "d"), (dict(reversed(pairs.items())), "c")):
        made = preparation(tmp_path / "cache", kind="word", replace=replace, **sources(files))
        assert made.tokenizer().normalized("ab") == expected


def test_a_tokenizer_of_a_file_tells_that_it_has_its_own_options(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(preparation(tmp_path / "cache", kind="word", **sources(files)).tokenizer().to_json())
    for options, told in (({}, 0), ({"lowercase": True}, 1), ({"replace": {"a": "b"}}, 2)):
        preparation(tmp_path / "cache", kind=str(path), **sources(files), **options).tokenizer()
        assert caplog.text.count("tokenizer.json has its own") == told


def test_a_cache_that_can_not_be_written_is_named(files: Files, tmp_path: Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"a-file.*can't be written"):
        prepared(blocked, **sources(files))
    made = preparation(blocked, **sources(files))
    with pytest.raises(UserError, match=r"cache_dir.*a-file.*can't be written"):
        made.make(Tokenizer.train(["some text"] * 3, "word", 50))


@pytest.mark.parametrize("fsync", [1, 2, 7, 13, 20])
def test_a_disk_that_fills_up_anywhere_leaves_nothing_by_halves(
    fsync: int, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file is the tokenizer, six are each array's, the last is what stands beside them."""
    real, calls = os.fsync, []

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) == fsync:
            raise OSError(28, "No space left on device")
        real(number)

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cache.*can't be written: No space left on device") as caught:
            prepared(cache, **sources(files))
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".")]
    for folder in cache.glob("tokens/*/*/"):
        read_tokens(folder)  # what is there is whole
    assert len(prepared(cache, **sources(files)).test) == 30


def test_a_disk_without_room_for_the_texts_is_one_line_that_names_the_option(files: Files, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
        with pytest.raises(UserError, match=r"^--data\.cache_dir: .*cache can't be written: File too large$"):
            prepared(tmp_path / "cache", **sources(files))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_complete_cache_may_be_read_only(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that several users share; a recipe looks at the documents of all its stages first."""
    cache, temporary_file = tmp_path / "cache", tempfile.TemporaryFile
    prepared(cache, **sources(files))

    def read_only(*arguments: Any, **options: Any) -> Any:
        if Path(options["dir"]) == cache:
            raise OSError(errno.EROFS, "Read-only file system")
        return temporary_file(*arguments, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    again = preparation(cache, **sources(files))
    assert len(again.ungated().train) == len(prepared(cache, **sources(files)).train) == 120
    with pytest.raises(UserError, match=r"^--data\.cache_dir: .*cache can't be written: Read-only file system$"):
        prepared(cache, **sources(files), vocab_size=310)


def test_the_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIT_SFT_CACHE", "~/here")
    assert default_cache_dir() == Path.home() / "here"
    monkeypatch.delenv("LIT_SFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "lit_sft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "lit_sft"


def test_a_user_without_a_home_names_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a container's, whose number has no entry in its list of users."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv("LIT_SFT_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("LIT_SFT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UserError, match=r"^no home folder .*: give --data\.cache_dir or LIT_SFT_CACHE$"):
        default_cache_dir()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.json"
    write_atomically(path, "first")
    monkeypatch.setattr(Path, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"file\.json: can't be written: No space left"):
        write_atomically(path, "second")
    assert path.read_text(encoding="utf-8") == "first"
    assert list(path.parent.iterdir()) == [path]
