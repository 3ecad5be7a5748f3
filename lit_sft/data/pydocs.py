"""``pydocs``: the corpus that is installed wherever this package is, to be classified by project of origin.

Labeled passages are the English of docstrings of the standard library and of six packages that come with the core
dependencies; the label is the project. Project names are masked, near-duplicates dropped, and the split is by source
module, so that a classifier has to read what a passage is about. Comments are extra text without labels.

Advantages: no download, no licence question, real imbalance and shared vocabulary. The cost: the corpus changes with
the installed versions (listed in the run's record), so figures are comparable only within one set of versions.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress

from lit_sft.atomic import write_table
from lit_sft.data import pydocs_text
from lit_sft.data.documents import Documents
from lit_sft.errors import UserError

PROJECTS = ("python", "torch", "sympy", "networkx", "torchmetrics", "lightning", "huggingface_hub")
TEST_SHARE = 0.15
VAL_SHARE = 0.10
LARGEST_MODULE = 0.1  # of a share
SPLIT_SEED = 0
# Part of the cache's fingerprint: raise it whenever a change here or in pydocs_text changes the corpus.
FORMAT = 3
FILES_AT_A_TIME = 150  # for one worker process
SHINGLE = 6
NEAR_DUPLICATE = 0.4

_LEFT_OUT = {"test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
_LEFT_OUT |= {"_vendor", "_bundled"}

Passage = tuple[str, str]
"""A passage: its group and its text."""


@dataclass(frozen=True)
class PyDocs:
    """The corpus: labels are project names; no module has passages in two splits.

    ``comments`` are unlabeled and come from modules that have no passage in ``val`` or ``test``.
    """

    train: Documents
    val: Documents
    test: Documents
    comments: Documents


def load_pydocs(cache_dir: Path) -> PyDocs:
    """The corpus of the installed versions: built once (under a minute), then read from ``cache_dir``.

    Raises:
        UserError: a project's sources are not installed, or ``cache_dir`` cannot be written.
    """
    path = corpus_file(cache_dir)
    if path.is_file():
        try:
            return _from_table(pq.read_table(path))
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            pass  # damaged: built again
    table = _build(source_roots())
    write_table(path, table)
    return _from_table(table)


def corpus_file(cache_dir: Path) -> Path:
    """Where :func:`load_pydocs` keeps the corpus: Parquet, a passage with its module (``group``) a row."""
    return Path(cache_dir) / f"pydocs-{fingerprint()}.parquet"


def fingerprint() -> str:
    """16 hex digits that change with the corpus: a hash of the installed versions and of this code's format."""
    key = json.dumps([FORMAT, {name: _version(name) for name in PROJECTS}], sort_keys=True)
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def _version(name: str) -> str:
    try:
        return platform.python_version() if name == "python" else importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # not installed by a package manager
        return "unknown"


def source_roots() -> dict[str, Path]:
    """Where each project's sources lie, found without importing them.

    Raises:
        UserError: a project is not installed as plain files.
    """
    roots = {}
    for name in PROJECTS:
        if name == "python":
            root: str | None = sysconfig.get_path("stdlib")
        else:
            spec = importlib.util.find_spec(name)
            root = next(iter(spec.submodule_search_locations or []), None) if spec else None
        if root is None or not Path(root).is_dir():
            raise UserError(
                f"pydocs: the sources of {name!r} are not installed; pip install {name}, or give your own data"
            )
        roots[name] = Path(root)
    return roots


def source_files(root: Path) -> list[Path]:
    """The Python files under ``root`` in a fixed order, without tests and files of other projects."""
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _LEFT_OUT and not f.startswith("config-"))
        files += [Path(folder, n) for n in names if n.endswith(".py") and not n.startswith(("test_", "conftest"))]
    return sorted(files, key=lambda file: file.relative_to(root).parts)


def _extract(files: list[Path]) -> list[tuple[list[str], list[str]] | None]:
    """Run ``pydocs_text.extract`` on some files in a separate process."""
    command = [sys.executable, "-I", pydocs_text.__file__]
    paths = json.dumps([str(file) for file in files])
    done = subprocess.run(command, input=paths, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"pydocs: reading {files[0]} and what follows failed\n{done.stderr}")
    found: list[tuple[list[str], list[str]] | None] = json.loads(done.stdout)
    return found


def _distinct(passages: list[Passage], before: Sequence[str] = ()) -> list[Passage]:
    """The passages that repeat neither one another nor any of the texts ``before`` them."""
    repeats = list(near_duplicates([*before, *(text for _, text in passages)]))[len(before) :]
    return [passage for passage, repeats_one in zip(passages, repeats, strict=True) if not repeats_one]


def _read(roots: dict[str, Path]) -> tuple[list[Passage], list[Passage]]:
    """Passages and comments of all sources in a fixed order; a file that can't be read or parsed has none."""
    files = [
        (_module(name, file.relative_to(root)), file) for name, root in roots.items() for file in source_files(root)
    ]
    chunks = [files[start : start + FILES_AT_A_TIME] for start in range(0, len(files), FILES_AT_A_TIME)]
    passages: list[Passage] = []
    comments: list[Passage] = []
    console = Console(stderr=True)
    # The threads only wait for their processes; map keeps the order of the chunks.
    with (
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
    ):
        task = progress.add_task("pydocs: reading docstrings", total=len(files))
        for chunk, extracts in zip(chunks, pool.map(lambda c: _extract([file for _, file in c]), chunks), strict=True):
            for (group, _), extract in zip(chunk, extracts, strict=True):
                for kept, texts in zip((passages, comments), extract or ([], []), strict=True):
                    kept.extend((group, text) for text in texts)
            progress.advance(task, len(chunk))
    return passages, comments


def _module(project: str, file: Path) -> str:
    """The group of a file: the project and the dotted name of the module, as one imports it."""
    parts = [*([] if project == "python" else [project]), *file.with_suffix("").parts]
    return f"{project}:{'.'.join(parts[:-1] if parts[-1] == '__init__' and len(parts) > 1 else parts)}"


def _project(group: str) -> str:
    return group.split(":", 1)[0]


def near_duplicates(texts: Iterable[str]) -> Iterator[bool]:
    """For each text in turn, whether 40% or more of its distinct word six-grams occur in the texts kept before it.

    Words are compared without case and punctuation. A text of fewer than six words is one gram.
    """
    ids: dict[str, int] = {}
    seen: set[int] = set()
    for text in texts:
        words = [ids.setdefault(word, len(ids)) for word in re.findall(r"\w+", text.lower())]
        # The hash of a tuple of small integers is the same in every process, unlike that of strings.
        grams = {hash(tuple(words[i : i + SHINGLE])) for i in range(max(1, len(words) - SHINGLE + 1))}
        duplicate = len(grams & seen) >= NEAR_DUPLICATE * len(grams)
        if not duplicate:
            seen |= grams
        yield duplicate


def split_modules(groups: Sequence[str]) -> dict[str, str]:
    """``train``, ``val`` or ``test`` for each module of one project; ``groups`` names the module of each passage.

    Modules come in the order of a seeded hash of their names, the same on every machine. A module larger than a tenth
    of a share, or than what is left of it, stays in the training part, since a test score that depends on a few large
    modules varies by several points with the seed.
    """
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda group: hashlib.blake2b(f"{SPLIT_SEED}{group}".encode(), digest_size=8).digest())
    split = dict.fromkeys(order, "train")
    for part, share in (("test", TEST_SHARE), ("val", VAL_SHARE)):
        wanted = room = share * len(groups)
        for group in order:
            if split[group] == "train" and sizes[group] <= min(room, LARGEST_MODULE * wanted):
                split[group] = part
                room -= sizes[group]
            if room < 0.05 * wanted:
                break
    return split


def _build(roots: dict[str, Path]) -> pa.Table:
    passages, comments = _read(roots)
    passages = _distinct(passages)
    split: dict[str, str] = {}
    for name in roots:
        groups = [group for group, _ in passages if _project(group) == name]
        if not groups:
            raise UserError(
                f"pydocs: no docstrings in the sources of {name!r} ({roots[name]}); install it as plain files"
            )
        split |= split_modules(groups)
    # Again, with training passages first: a short passage may be contained in a longer one that came later, and no
    # passage of test may occur in train.
    rank = {"train": 0, "val": 1, "test": 2}
    passages = _distinct(sorted(passages, key=lambda passage: rank[split[passage[0]]]))  # the sort is stable
    free = [(group, text) for group, text in comments if split.get(group, "train") == "train"]
    free = _distinct(free, before=[text for _, text in passages])
    parts = [split[group] for group, _ in passages] + ["comments"] * len(free)
    kept = passages + free
    return pa.table({"text": [text for _, text in kept], "group": [group for group, _ in kept], "part": parts})


def _from_table(table: pa.Table) -> PyDocs:
    texts, groups, parts = (table.column(name).to_pylist() for name in ("text", "group", "part"))
    found: dict[str, Documents] = {}
    for part in ("train", "val", "test", "comments"):
        chosen = [i for i, its_part in enumerate(parts) if its_part == part]
        labels = None if part == "comments" else [_project(groups[i]) for i in chosen]
        found[part] = Documents([texts[i] for i in chosen], labels)
    return PyDocs(**found)
