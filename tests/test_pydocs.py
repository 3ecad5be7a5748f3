"""The embedded corpus: clean prose, honest splits, no names, the same on every build."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import statistics
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lit_sft.data import pydocs, pydocs_text
from lit_sft.data.documents import Documents
from lit_sft.data.pydocs import PROJECTS, PyDocs, load_pydocs, near_duplicates, split_modules
from lit_sft.errors import UserError

# Written down again here, so that a name dropped from the package's own list is noticed.
NAMES = (
    "torch",
    "sympy",
    "networkx",
    "lightning",
    "huggingface",
    "hugging face",
    "python",
    "stdlib",
    "standard library",
)
ALIASES = {"nx", "pl", "hf", "hub"}


@pytest.fixture(scope="module")
def corpus(shared_cache: Path) -> PyDocs:
    return load_pydocs(shared_cache)


def splits(corpus: PyDocs) -> dict[str, Documents]:
    return {"train": corpus.train, "val": corpus.val, "test": corpus.test}


@pytest.fixture(scope="module")
def modules(corpus: PyDocs, shared_cache: Path) -> dict[str, list[str]]:
    """Of each part, the module of each passage, as the file has them."""
    table = pq.read_table(shared_cache / f"pydocs-{pydocs.fingerprint()}.parquet")
    found: dict[str, list[str]] = {}
    for part, group in zip(*(table.column(name).to_pylist() for name in ("part", "group")), strict=True):
        found.setdefault(part, []).append(group)
    return found


def six_grams(text: str) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + 6]) for i in range(max(1, len(words) - 5))}


# The real corpus


def test_sizes_are_of_the_expected_order(corpus: PyDocs, modules: dict[str, list[str]]) -> None:
    everything = corpus.train + corpus.val + corpus.test
    assert 12_000 < len(everything) < 30_000
    assert 3e6 < sum(len(text.encode()) for text in everything.texts) < 10e6
    assert 20 <= statistics.median(len(text.split()) for text in everything.texts) <= 40
    assert sum(len(text) for text in corpus.comments.texts) > 3e5
    assert corpus.comments.labels is None
    assert {group.split(":")[0] for group in modules["comments"]} == set(pydocs.PROJECTS)


@pytest.mark.parametrize("project", PROJECTS)
def test_every_project_has_its_share_of_each_split(corpus: PyDocs, project: str) -> None:
    sizes = {name: Counter(documents.labels)[project] for name, documents in splits(corpus).items()}
    total = sum(sizes.values())
    assert total > 250
    assert 0.12 < sizes["test"] / total < 0.16
    assert 0.07 < sizes["val"] / total < 0.11


def test_no_module_is_on_two_sides(corpus: PyDocs, modules: dict[str, list[str]]) -> None:
    train, val, test = (set(modules[name]) for name in ("train", "val", "test"))
    assert not train & val
    assert not train & test
    assert not val & test
    for name, documents in splits(corpus).items():
        assert documents.labels == [group.split(":")[0] for group in modules[name]]
    assert not set(modules["comments"]) & (val | test)


def test_no_project_name_is_left(corpus: PyDocs) -> None:
    left: Counter[str] = Counter()
    for documents in (*splits(corpus).values(), corpus.comments):
        for text in documents.texts:
            lowered = text.lower()
            left.update(name for name in NAMES if name in lowered)
            left.update(ALIASES.intersection(re.findall(r"[a-z0-9]+", lowered)))
    assert not left


def test_passages_are_one_line_of_twelve_words_or_more(corpus: PyDocs) -> None:
    for documents in splits(corpus).values():
        for text in documents.texts:
            assert text == " ".join(text.split())
            assert sum(any(map(str.isalpha, word)) for word in text.split()) >= 12
            assert not re.search(r"(^|\s)>>> ", text)
            assert ":param" not in text


def test_no_test_passage_shares_40_percent_of_its_six_grams_with_what_is_trained_on(corpus: PyDocs) -> None:
    seen = set().union(*map(six_grams, corpus.train.texts))
    for text in corpus.val.texts + corpus.test.texts:
        grams = six_grams(text)
        assert len(grams & seen) < 0.4 * len(grams), text
    held_out = set().union(*map(six_grams, corpus.val.texts + corpus.test.texts))
    for text in corpus.comments.texts:
        grams = six_grams(text)
        assert len(grams & held_out) < 0.4 * len(grams), text


def test_passages_come_in_the_order_of_the_sources(corpus: PyDocs) -> None:
    root = pydocs.source_roots()["networkx"]
    read: list[str] = []
    for file in sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).parts):
        found = None if "tests" in file.parts else pydocs_text.extract(file)
        read += found[0] if found else []
    for documents in splits(corpus).values():
        rest = iter(read)
        ours = [t for t, label in zip(documents.texts, documents.labels or [], strict=True) if label == "networkx"]
        assert all(text in rest for text in ours)  # a subsequence


def test_no_project_name_is_among_a_linear_models_strongest_features(corpus: PyDocs) -> None:
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.metrics import f1_score

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
    model = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=0, class_weight="balanced")
    model.fit(vectorizer.fit_transform(corpus.train.texts), corpus.train.labels)
    features = vectorizer.get_feature_names_out()
    for project, weights in zip(model.classes_, model.coef_, strict=True):
        strongest = features[np.argsort(-weights)[:50]]
        assert not [f for f in strongest if f in ALIASES or any(name in f for name in NAMES)], project
    # The task is neither given away nor hopeless.
    macro_f1 = f1_score(corpus.test.labels, model.predict(vectorizer.transform(corpus.test.texts)), average="macro")
    assert 0.55 < macro_f1 < 0.9


# A small one: seven made-up projects, built in a moment


def write_projects(folder: Path) -> dict[str, Path]:
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(3000)]
    roots = {name: folder / name for name in PROJECTS}
    for root in roots.values():
        root.mkdir(parents=True)
        for module in range(12):
            lines = [f"# {' '.join(generator.choices(words, k=9))}"]
            for function in range(6):
                lines += [f"def f{function}():", f'    """{" ".join(generator.choices(words, k=20))}."""']
            (root / f"m{module}.py").write_text("\n".join(lines) + "\n")
    return roots


@pytest.fixture
def projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    roots = write_projects(tmp_path / "sources")
    monkeypatch.setattr(pydocs, "source_roots", lambda: roots)
    return roots


def test_a_second_load_reads_no_source(
    projects: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_pydocs(tmp_path / "cache")
    monkeypatch.setattr(pydocs, "_build", lambda *_: pytest.fail("built again"))
    assert load_pydocs(tmp_path / "cache") == first
    assert len(first.train + first.val + first.test) == 7 * 12 * 6


def test_builds_agree_whatever_the_hash_seed(tmp_path: Path) -> None:
    script = """
import hashlib, sys
from pathlib import Path
from lit_sft.data import pydocs
sources = Path(sys.argv[1])
pydocs.source_roots = lambda: {name: sources / name for name in pydocs.PROJECTS}
print(hashlib.sha256(repr(pydocs.load_pydocs(Path(sys.argv[2]))).encode()).hexdigest())
"""
    write_projects(tmp_path / "sources")
    digests = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", script, str(tmp_path / "sources"), str(tmp_path / f"cache{seed}")]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_two_builds_at_once_leave_one_whole_file(projects: dict[str, Path], tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: load_pydocs(tmp_path / "cache"), range(4)))
    assert all(other == built[0] for other in built)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_damaged_cache_is_built_again(projects: dict[str, Path], tmp_path: Path) -> None:
    first = load_pydocs(tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert load_pydocs(tmp_path / "cache") == first


def test_broken_files_are_skipped(projects: dict[str, Path], tmp_path: Path) -> None:
    sentence = "une phrase tout à fait ordinaire de douze mots ou plus pour être gardée ici"
    code = f'"""{sentence}"""\n'
    (projects["torch"] / "syntax.py").write_text("def broken(:\n")
    (projects["torch"] / "undeclared.py").write_bytes(code.encode("latin-1"))
    (projects["torch"] / "unknown.py").write_text("# coding: no-such-codec\n")
    (projects["torch"] / "declared.py").write_bytes(b"# -*- coding: latin-1 -*-\n" + code.encode("latin-1"))
    corpus = load_pydocs(tmp_path / "cache")
    assert sentence in (corpus.train + corpus.val + corpus.test).texts


def test_a_project_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "networkx" else found(name))
    with pytest.raises(UserError, match=r"'networkx' are not installed"):
        load_pydocs(tmp_path)


def test_a_cache_folder_that_cannot_be_written_is_named(projects: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache.*: can't be written"):
        load_pydocs(tmp_path / "file" / "cache")


def test_finding_the_sources_imports_none_of_them() -> None:
    script = """
import sys
from lit_sft.data import pydocs
assert all(root.is_dir() for root in pydocs.source_roots().values())
print([name for name in pydocs.PROJECTS if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_tests_and_other_peoples_packages_are_left_out(tmp_path: Path) -> None:
    for name in (
        "a/b.py",
        "a.py",
        "tests/x.py",
        "a/test/x.py",
        "site-packages/x.py",
        "config-3/x.py",
        "test_x.py",
        "c.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = [file.relative_to(tmp_path).as_posix() for file in pydocs.source_files(tmp_path)]
    assert found == ["a/b.py", "a.py"]


# Splits and near-duplicates


def test_split_keeps_modules_whole_and_does_not_depend_on_their_order() -> None:
    generator = random.Random(1)
    modules = [f"torch:m{i}" for i in range(200) for _ in range(generator.randint(1, 9))] + ["torch:giant"] * 400
    split = split_modules(modules)
    assert split["torch:giant"] == "train"
    sizes = Counter(split[module] for module in modules)
    assert 0.14 < sizes["test"] / len(modules) <= 0.15
    assert 0.09 < sizes["val"] / len(modules) <= 0.10
    generator.shuffle(modules)
    assert split_modules(modules) == split


def test_near_duplicates_equal_a_slow_search() -> None:
    generator = random.Random(2)
    phrases = [" ".join(generator.choices("abcdefgh", k=7)) for _ in range(30)]
    texts = [" ".join(generator.choices(phrases, k=generator.randint(1, 4))) for _ in range(300)] + [
        "two words",
        "Two, words",
    ]
    kept: list[str] = []
    expected = []
    for text in texts:
        grams = six_grams(text)
        repeated = sum(any(gram in six_grams(other) for other in kept) for gram in grams)
        expected.append(repeated >= 0.4 * len(grams))
        if not expected[-1]:
            kept.append(text)
    assert list(near_duplicates(texts)) == expected
    assert 20 < sum(expected) < 280
