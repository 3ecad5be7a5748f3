"""Texts on disk against a plain list: the same strings, whatever is asked of them, and no trace left behind."""

from __future__ import annotations

import os
import random
import resource
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import write_csv

from lit_sft.data import texts as module
from lit_sft.data.documents import Documents, bytes_of, content_keys
from lit_sft.data.readers import read_documents
from lit_sft.data.texts import TextFile, Texts, joined
from lit_sft.errors import UserError

ALPHABET = ["a", " ", "\n", "\x00", "é", "漢", "🙂", "\ud800", "\udcff", "\r\n", '"']


def random_texts(seed: int, count: int, longest: int = 40) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(ALPHABET, k=draw.randrange(longest))) for _ in range(count)]


@pytest.fixture(params=[(7, 3), (1 << 20, 1024)], ids=["small-blocks", "blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", request.param[0])
    monkeypatch.setattr(module, "BLOCK_TEXTS", request.param[1])


def append_all(file: TextFile, texts: list[str]) -> TextFile:
    for text in texts:
        file.append(text)
    return file


def on_disk(texts: list[str], folder: Path) -> Texts:
    return append_all(TextFile(folder), texts).view()


def assert_same(texts: Texts, expected: list[str]) -> None:
    assert list(texts) == expected
    assert [texts[i] for i in range(len(texts))] == expected
    assert len(texts) == len(expected)
    assert content_keys(texts).tolist() == content_keys(expected).tolist()
    assert bytes_of(texts).tolist() == bytes_of(expected).tolist()
    assert content_keys(texts).dtype == np.uint64


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("count", [0, 1, 200])
def test_every_text_reads_back(count: int, tmp_path: Path) -> None:
    expected = random_texts(1, count)
    texts = on_disk(expected, tmp_path / "new" / "folder")
    assert_same(texts, expected)
    assert texts == expected
    assert expected == texts
    assert texts != [*expected, "one more"]
    assert texts != ["other", *expected[1:]] or not expected


@pytest.mark.usefixtures("blocks")
def test_any_selection_in_any_order_is_that_of_a_list(tmp_path: Path) -> None:
    expected, draw = random_texts(2, 100), random.Random(2)
    texts = on_disk(expected, tmp_path)
    for size in (0, 1, 30, 300):
        for arrange in (list, sorted, lambda chosen: sorted(chosen, reverse=True)):
            chosen = arrange(draw.choices(range(-100, 100), k=size))
            assert_same(texts.select(np.array(chosen)), [expected[i] for i in chosen])
    again = texts.select(np.arange(99, 9, -3))
    assert_same(again.select(np.array([5, 1, 1])), [expected[99 - 3 * i] for i in (5, 1, 1)])
    for part in (slice(3, 20), slice(None, None, -1), slice(90, 500), slice(-4, None, 2), slice(5, 5)):
        assert_same(texts[part], expected[part])
    with pytest.raises(IndexError):
        texts[100]


@pytest.mark.usefixtures("blocks")
def test_sums_of_views_of_other_files_and_of_lists(tmp_path: Path) -> None:
    one, two = random_texts(3, 20), random_texts(4, 30)
    first, second = on_disk(one, tmp_path), on_disk(two, tmp_path)
    both = joined(first, second)
    assert isinstance(both, Texts)
    assert_same(both, one + two)
    assert_same(second, two)
    for left, right, expected in (
        (first, first[::-1], one + one[::-1]),
        (first, two, one + two),
        (two, first, two + one),
        ([], first, one),
        (first, [], one),
    ):
        total = joined(left, right)
        assert isinstance(total, Texts)
        assert_same(total, expected)
    assert joined(one, two) == one + two


def test_texts_may_be_added_while_others_are_read(tmp_path: Path) -> None:
    file = TextFile(tmp_path)
    expected = random_texts(5, 60)
    for i, text in enumerate(expected):
        file.append(text)
        assert file.view(i) == [text]
        assert file.view(i // 2) == expected[i // 2 : i + 1]
    earlier = file.view()
    append_all(file, expected)
    assert earlier == expected
    assert file.view(60) == expected


def test_a_system_without_pread_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pread")
    file = runpy.run_path(str(module.__file__))["TextFile"](tmp_path)
    expected = random_texts(5, 60)
    for i, text in enumerate(expected):
        file.append(text)
        assert list(file.view(i // 2)) == expected[i // 2 : i + 1]


def test_documents_take_both_kinds_of_texts(tmp_path: Path) -> None:
    texts = random_texts(6, 12)
    labels = [str(i % 3) for i in range(12)]
    plain = Documents(texts, labels)
    stored = Documents(on_disk(texts, tmp_path), labels)
    assert stored == plain
    for chosen in ([3, 1, 1], range(12), reversed(range(5)), np.array([], dtype=np.int64)):
        indices = list(chosen)
        assert stored.select(indices) == plain.select(indices) == stored.select(iter(indices))
    assert stored + plain == plain + stored == plain + plain
    with pytest.raises(ValueError, match="12 labels for 11 texts"):
        Documents(stored.texts[:11], labels)


@pytest.mark.parametrize("stored", [False, True])
def test_reading_keeps_texts_on_disk_and_each_label_once(stored: bool, tmp_path: Path) -> None:
    rows = [(f"text {i}", f"label {i % 3}") for i in range(500)]
    path = write_csv(tmp_path / "rows.csv", [*rows[:250], ("", "label 0"), *rows[250:]])
    file = TextFile(tmp_path) if stored else None
    if file is not None:
        file.append("of another source")
    documents, report = read_documents(path, labeled=True, file=file)
    assert isinstance(documents.texts, Texts if stored else list)
    assert documents == Documents([text for text, _ in rows], [label for _, label in rows])
    assert len({id(label) for label in documents.labels or []}) == 3
    assert (report.rows, report.blank) == (501, 1)


def opened(folder: Path) -> Iterator[str]:
    """The files of a folder that this process has open."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith(str(folder)):
            yield target


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_the_file_has_no_name_and_goes_with_its_last_view(tmp_path: Path) -> None:
    texts = on_disk(["one", "two"], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(list(opened(tmp_path))) == 1
    part = texts[1:]
    del texts
    assert list(part) == ["two"]
    del part
    assert list(opened(tmp_path)) == []


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
from lit_sft.data.texts import TextFile
file = TextFile(Path({str(tmp_path)!r}))
for i in range(3000):
    file.append("x" * 1000)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_that_names_the_option(tmp_path: Path) -> None:
    file = TextFile(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, limits[1]))
        with pytest.raises(UserError, match=r"--data\.cache_dir: .* can't be written: File too large") as caught:
            append_all(file, ["x" * 1000] * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    del file, caught  # closing must not try, and fail, to write the rest
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("x")
    for folder in (tmp_path / "a-file", tmp_path / "a-file" / "below"):
        with pytest.raises(UserError, match=r"--data\.cache_dir: .*a-file.* can't be written"):
            TextFile(folder)


def test_two_processes_may_read_one_file(tmp_path: Path) -> None:
    """A forked process shares the descriptor, and its position."""
    expected = random_texts(7, 400)
    texts = on_disk(expected, tmp_path)
    texts[0]  # written
    child = os.fork()
    if child == 0:  # whatever happens, it must not go on as a second pytest
        code = 1
        try:
            code = 0 if all(list(texts) == expected for _ in range(20)) else 1
        finally:
            os._exit(code)
    try:
        same = all(list(texts) == expected for _ in range(20))
    finally:
        _, status = os.waitpid(child, 0)
    assert same
    assert status == 0
