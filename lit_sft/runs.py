"""Run folders: ``logs/NAME/version_K``, made once, found again, and their records."""

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
MAIN = ("accuracy", "macro_f1", "bleu", "rougeL", "exact_match", "perplexity", "loss")  # told in one line
SHARED = "LIT_SFT_RUN_DIR"  # the run's folder, for the processes that its first one starts
# What decides a result: ours, the engines', and the projects whose documentation is the pydocs corpus.
VERSIONED = (
    *("lit_sft", "torch", "lightning", "torchmetrics", "tokenizers", "numpy", "pyarrow", "jsonargparse"),
    *("tensorboard", "sympy", "networkx", "huggingface_hub", "scikit-learn"),
)


def run_name(config: str | None, name: str | None) -> str:
    """``--name``, else the config's path under ``configs/`` with dashes, else ``run``.

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


def new_run(name: str, logs: Path | None = None) -> Path:
    """Make and return the folder of the next version; two runs started at once get two folders."""
    root = (logs or LOGS) / name
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
    """The folder of a run that begins: what ``--run_dir`` names, or a new version; the same one for all its processes.

    With it the folders that were made for it, the innermost first.

    Raises:
        UserError: it can't be made; or a process beside the first that wasn't started by it and has no ``--run_dir``.
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
    """The folder of a run that goes on: what ``--run_dir`` names, or the newest unfinished version.

    Raises:
        UserError: there is none.
    """
    shared = None if _is_first() else os.environ.get(SHARED)
    given = run_dir or shared
    return _shared_out(Path(given) if given else unfinished_run(name))


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Path]:
    """The same folder; within this context no other process can train in it.

    Of a run's processes the first one holds it. The lock ends with that process, however it ends. A file system
    without locks protects nothing.

    Raises:
        UserError: another process trains in it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        if _is_first():
            lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{folder}: another process is training in it: wait until that ends, or start a run of its own"
        ) from error
    except (OSError, NotImplementedError):  # no locks there, or it can't be written, which is told later
        pass
    try:
        yield folder
    finally:
        lock.release()


def _is_first() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _shared_out(folder: Path) -> Path:
    """The folder, told to the processes that this one will start."""
    os.environ[SHARED] = str(folder)
    return folder


def named_run(folder: Path) -> Path:
    """Make the folder that ``--run_dir`` names."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run_dir {folder}: can't be made: {error.strerror or error}") from error
    return folder


def discard_run(folder: Path, made: list[Path]) -> None:
    """Empty the folder of a run that ended by a mistake, unless it has a checkpoint already.

    ``made``: the folders that were made for it, the innermost first, which go where they are empty then; others stay.
    """
    with contextlib.suppress(OSError):  # another process removes what this one looks at
        if any(folder.glob("**/*.ckpt")):
            return
        for path in folder.iterdir():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a parent holds other runs
        for path in made:
            path.rmdir()


def unfinished_run(name: str, logs: Path | None = None) -> Path:
    """The newest version without a record.

    Raises:
        UserError: there is none.
    """
    root = (logs or LOGS) / name
    open_runs = [p for p in versions(root) if not (p / RECORD).is_file() and (p / "config.yaml").is_file()]
    if not open_runs:
        what = "every run there is finished" if versions(root) else "no run there"
        raise UserError(f"--ckpt_path last: nothing to resume in {root} ({what}); leave it out to start a new run")
    return open_runs[-1]


def versions(root: Path) -> list[Path]:
    """The version folders of a name, oldest first."""
    found = [p for p in root.glob("version_*") if p.is_dir() and p.name[8:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[8:]))


def run_folder_of(checkpoint: Path) -> Path | None:
    """The stage's folder that a checkpoint file lies in; None for a file on its own."""
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else None


def read_record(folder: Path, name: str = RECORD) -> dict[str, Any]:
    """A run's ``metrics.json``, or another record beside it; empty where there is none yet."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    return record if isinstance(record, dict) else {}


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as readable JSON, atomically; NaN (a figure that isn't defined) and infinities become null."""
    text = json.dumps(_defined(record), indent=2, allow_nan=False)
    # Lists of numbers in one line each: no JSON string holds a line break, so none is taken for a list.
    text = re.sub(r"\[\n\s+([-+.\w,\s]*?)\n\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    write_atomically(path, text + "\n")


def told(record: dict[str, Any], split: str = "test") -> str:
    """A record's main figures and their intervals in one line, as in ``accuracy 0.853 [0.839, 0.867], loss ...``.

    Those of the clean part follow where it is not the full set.
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
    """Where a record may go, in the order of preference: ``STEM.json``, ``STEM-2.json`` and so on."""
    yield folder / f"{stem}.json"
    yield from (folder / f"{stem}-{number}.json" for number in count(2))


def package_versions() -> dict[str, str]:
    """Versions of Python and of every installed package that a result may depend on."""
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
