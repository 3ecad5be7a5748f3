"""Run folders, ``logs/NAME/version_K``: create and find them, read and write their records."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from lit_sft.atomic import write_atomically
from lit_sft.errors import UserError

LOGS = Path("logs")
RECORD = "metrics.json"
MAIN = ("accuracy", "macro_f1", "bleu", "rougeL", "exact_match", "perplexity", "loss")  # reported in one line
SHARED = "LIT_SFT_RUN_DIR"  # environment variable: the run's folder, for the processes that its first process starts
# Packages that a result may depend on: ours, those it is computed with, and the projects in the pydocs corpus.
VERSIONED = (
    *("lit_sft", "torch", "lightning", "torchmetrics", "tokenizers", "numpy", "pyarrow", "jsonargparse"),
    *("tensorboard", "sympy", "networkx", "huggingface_hub", "scikit-learn"),
)


def run_name(config: str | None, name: str | None) -> str:
    """Return ``--name``, else the config's path below ``configs/`` with dashes for slashes, else ``run``.

    Raises:
        UserError: a name that isn't a plain folder name.
    """
    if name is None:
        if config is None:
            return "run"
        parts = Path(config).with_suffix("").parts
        below = parts[parts.index("configs") + 1 :] if "configs" in parts else parts[-1:]
        name = re.sub(r"[^\w.+=-]", "_", "-".join(below)).lstrip(".") or "run"
    if not re.fullmatch(r"[\w.+=-]+", name) or name.startswith("."):
        raise UserError(f"--name {name}: use letters, digits, '-', '_', '.', '+' and '=' only")
    return name


def new_run(name: str) -> Path:
    """Create and return the folder of the next version; two runs started at the same time get two folders."""
    root = LOGS / name
    try:
        root.mkdir(parents=True, exist_ok=True)
        number = max((int(p.name[8:]) for p in versions(root)), default=-1) + 1
        while True:
            folder = root / f"version_{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder
    except OSError as error:
        raise UserError(f"{root}: can't make a run folder: {error.strerror or error}") from error


def start_run(name: str, run_dir: str | None) -> tuple[Path, list[Path]]:
    """Create the folder of a new run: ``--run_dir`` or a new version. All processes of the run get the same one.

    Return it with the folders that may have been created for it, the innermost first.

    Raises:
        UserError: it can't be created; or this process is neither the first nor started by it, without ``--run_dir``.
    """
    if not _is_first():
        shared = run_dir or os.environ.get(SHARED)
        if shared is None:
            raise UserError("give --run_dir: processes that are not started by the first one need one folder for all")
        return Path(shared), []
    if run_dir is None:
        folder = new_run(name)
        return _shared_out(folder), [folder, folder.parent]
    folder = Path(run_dir)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    return _shared_out(named_run(folder)), made


def resume_run(name: str, run_dir: str | None) -> Path:
    """Return the folder of a run to resume: ``--run_dir``, or the newest unfinished version.

    Raises:
        UserError: there is no unfinished version.
    """
    shared = None if _is_first() else os.environ.get(SHARED)
    given = run_dir or shared
    return _shared_out(Path(given) if given else unfinished_run(name))


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Path]:
    """The same folder; within this context no other process can train in it.

    Of a run's processes the first one holds it. The lock ends with that process, however it ends. A file system
    without locks protects nothing. A folder that isn't there is not made.

    Raises:
        UserError: another process trains in it.
    """
    lock = FileLock(folder / ".lock", timeout=0, fallback_to_soft=False)  # a file alone would outlive a killed process
    try:
        if _is_first() and folder.is_dir():
            lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{folder}: another process is training in it: wait until that ends, or start a run of its own"
        ) from error
    except (OSError, NotImplementedError):
        pass  # a file system without locks; or one that can't be written to, as the first write of the run tells
    try:
        yield folder
    finally:
        lock.release()


def _is_first() -> bool:
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or 0
    return getattr(rank_zero_only, "rank", 0) == 0 and int(node) == 0  # before there is a Trainer: the rank on its node


def _shared_out(folder: Path) -> Path:
    """Return the folder, and pass it on to the processes that this one will start."""
    os.environ[SHARED] = str(folder)
    return folder


def named_run(folder: Path) -> Path:
    """Create and return the folder that ``--run_dir`` names."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run_dir {folder}: can't be made: {error.strerror or error}") from error
    return folder


def discard_run(folder: Path, made: list[Path]) -> None:
    """Empty the folder of a run that a user's mistake has ended, unless it has a checkpoint already.

    ``made``: the folders created for it, the innermost first; those that are empty afterwards are removed.
    """
    with contextlib.suppress(OSError):  # another process may be removing the same files
        if any(folder.glob("**/*.ckpt")):
            return
        for path in folder.iterdir():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a parent may hold other runs
        for path in made:
            path.rmdir()


def unfinished_run(name: str) -> Path:
    """Return the newest version that has a config and no record.

    Raises:
        UserError: there is none.
    """
    root = LOGS / name
    open_runs = [p for p in versions(root) if not (p / RECORD).is_file() and (p / "config.yaml").is_file()]
    if not open_runs:
        what = "every run there is finished" if versions(root) else "no run there"
        raise UserError(f"--ckpt_path last: nothing to resume in {root} ({what}); leave it out to start a new run")
    return open_runs[-1]


def versions(root: Path) -> list[Path]:
    """Return the version folders of a run's name, whose folder is ``root``, oldest first."""
    found = [p for p in root.glob("version_*") if p.is_dir() and p.name[8:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[8:]))


def run_folder_of(checkpoint: Path) -> Path | None:
    """Return the folder of the stage that a checkpoint file belongs to; None for a file outside a run folder."""
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else None


def read_record(folder: Path, name: str = RECORD) -> dict[str, Any]:
    """Read a run's ``metrics.json``, or another record in its folder; empty if there is none yet."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    return record if isinstance(record, dict) else {}


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as readable JSON, atomically; NaN (an undefined figure) and infinities become null."""
    text = json.dumps(_defined(record), indent=2, allow_nan=False)
    # Put each list of numbers on one line. No JSON string holds a line break, so none is mistaken for a list.
    text = re.sub(r"\[\n\s+([-+.\w,\s]*?)\n\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    write_atomically(path, text + "\n")


def told(record: dict[str, Any], split: str = "test") -> str:
    """Return a record's main figures and intervals in one line: ``accuracy 0.853 [0.839, 0.867], loss ...``.

    For a test, the figures of its clean part follow if they differ from those of the full set.
    """
    intervals = record.get(f"{split}_interval") or {}
    parts = []
    for name in MAIN:
        if record[split].get(name) is not None:
            interval = intervals.get(name)
            around = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            parts.append(f"{name} {record[split][name]:.3f}{around}")
    line = ", ".join(parts)
    clean = record.get("test_clean", record[split])
    if split == "test" and any(clean.get(name) != record[split].get(name) for name in MAIN):
        line += f"; without copies of training documents: {told(record, 'test_clean')}"
    return line


def numbered(folder: Path, stem: str) -> Iterator[Path]:
    """Yield the possible files of a record, in the order of preference: ``STEM.json``, ``STEM-2.json`` and so on."""
    yield folder / f"{stem}.json"
    yield from (folder / f"{stem}-{number}.json" for number in count(2))


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of every installed package that a result may depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _defined(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_defined(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
