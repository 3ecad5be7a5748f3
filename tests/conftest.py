"""What the tests share: a small labeled corpus, tiny configs, and the command line called in this process."""

from __future__ import annotations

import csv
import json
import logging
import os
import random
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Before torch is imported, and for the processes that tests start: several at once, with a thread for each core in
# each of them, take many times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from readmes import block

if TYPE_CHECKING:
    from lit_sft.data.datamodule import TextDataModule

torch.set_num_threads(1)

# Three subjects that share their function words and nothing else: a tiny model tells them apart in a few steps.
WORDS = {
    "sea": "anchor boat coral harbour island mast reef sail shore tide wave whale",
    "sky": "breeze cloud comet dawn eagle glider kite lightning moon rainbow star thunder",
    "wood": "acorn bark beech fern fox hazel lichen moss oak owl pine trail",
}
FUNCTION_WORDS = "a and above beside finds hears near of one sees the then two under with"
SUBJECTS = {subject: words.split() for subject, words in WORDS.items()}


def sentence(subject: str, rng: random.Random, words: int | None = None) -> str:
    """A made-up sentence about a subject: every other word is its own."""
    length, shared = words or rng.randint(6, 24), FUNCTION_WORDS.split()
    return " ".join(rng.choice(SUBJECTS[subject] if i % 2 else shared) for i in range(length))


def labeled_rows(per_class: int, seed: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [(sentence(subject, rng), subject) for _ in range(per_class) for subject in SUBJECTS]


def multilabel_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts about none, one or several subjects, wood being rare: four words of each, among six that all share."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        labels = [name for name, share in zip(SUBJECTS, (0.5, 0.4, 0.15), strict=True) if draw.random() < share]
        words = [draw.choice(FUNCTION_WORDS.split()) for _ in range(6)]
        words += [draw.choice(SUBJECTS[name]) for name in labels for _ in range(4)]
        draw.shuffle(words)
        made.append({"text": " ".join(words), "label": labels})
    return made


def write_csv(path: Path, rows: list[tuple[str, str]], columns: tuple[str, str] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


@dataclass(frozen=True)
class Files:
    """The small corpus on disk: 3 labels, 40 training, 10 validation and 10 test documents each, 60 lines of text."""

    folder: Path
    train: Path
    val: Path
    test: Path
    unlabeled: Path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The small corpus, written once; read it, never change it."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(4)
    lines = "".join(sentence(rng.choice(list(SUBJECTS)), rng) + "\n" for _ in range(60))
    unlabeled = folder / "more.txt"
    unlabeled.write_text(lines, encoding="utf-8")
    return Files(
        folder,
        write_csv(folder / "train.csv", labeled_rows(40, 1)),
        write_csv(folder / "val.csv", labeled_rows(10, 2)),
        write_csv(folder / "test.csv", labeled_rows(10, 3)),
        unlabeled,
    )


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of prepared data for the whole session, that of all processes that pytest-xdist spreads it over."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # its base folder lies in that of the session
        folder = folder.parent
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    return cache


@pytest.fixture(autouse=True)
def _own_world(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache, and none depends on the user's settings; each is seeded."""
    monkeypatch.setenv("LIT_SFT_CACHE", str(shared_cache))
    monkeypatch.delenv("LIT_SFT_DEBUG", raising=False)
    torch.manual_seed(0)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a test that calls the command line: run folders land in its ``logs/``."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, standard output and error, and the lines that were logged."""

    code: int
    out: str
    err: str
    log: str


Command = Callable[..., Result]


@pytest.fixture
def cli(
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """``cli("fit", "--config", path, ...)``: the command line in this process, from an empty folder.

    What Lightning logs comes as ``log`` and not on standard error, where its handlers may or may not find the capture.
    """
    import lightning.pytorch  # noqa: F401 - makes these handlers

    from lit_sft.main import main

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        caplog.clear()
        with caplog.at_level(logging.INFO):
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as stop:  # --help, and a stage of a recipe that failed
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err, "\n".join(caplog.messages))

    return call


def tiny_options(files: Files, stage: str) -> dict[str, object]:
    """A stage of a few steps: embedding 8, hidden 12, at most 300 vocabulary entries, everything on the CPU."""
    encoder = {"class_path": "lit_sft.models.LSTMEncoder", "init_args": {"embedding_size": 8, "hidden_size": 12}}
    return {
        "data": {
            "labeled": str(files.train),
            "val": str(files.val),
            "test": str(files.test),
            "vocab_size": 300,
            "max_length": 32,
            "batch_size": 4,
            "bptt": 16,
            "max_documents": 8,
        },
        "model": {
            "stage": stage,
            "encoder": encoder,
            "head_dropout": 0.1,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.03}},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False},
    }


@dataclass(frozen=True)
class Configs:
    """Config files under ``configs/tiny/`` of the test's folder, and the recipe ``configs/tiny.yaml`` of both."""

    pretrain: Path
    finetune: Path
    recipe: Path


@pytest.fixture
def configs(workplace: Path, files: Files) -> Configs:
    folder = workplace / "configs" / "tiny"
    folder.mkdir(parents=True)
    paths = []
    for stage in ("pretrain", "finetune"):
        path = folder / f"{stage}.yaml"
        path.write_text(yaml.safe_dump(tiny_options(files, stage)), encoding="utf-8")
        paths.append(path)
    recipe = workplace / "configs" / "tiny.yaml"
    stages = [{"name": path.stem, "config": f"tiny/{path.name}"} for path in paths]
    recipe.write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    return Configs(*paths, recipe)


class Endless:
    """One text for ever; ``taken`` counts how often it was asked for."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[str]:
        while True:
            self.taken += 1
            yield "the owl near the oak"


@dataclass(frozen=True)
class Trained:
    """Finished runs, made once: copy a folder before changing it."""

    pretrain: Path
    finetune: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, files: Files, shared_cache: Path) -> Trained:
    """A finished tiny pretraining, and a fine-tuning that started from it."""
    from lit_sft.main import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LIT_SFT_CACHE", str(shared_cache))
        for stage in ("pretrain", "finetune"):
            options = tiny_options(files, stage)
            if stage == "finetune":
                options["model"]["init_from"] = str(folder / "pretrain")  # type: ignore[index]
                options["trainer"]["max_epochs"] = 2  # type: ignore[index]
            Path(f"{stage}.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
            assert main(["fit", "--config", f"{stage}.yaml", "--run_dir", str(folder / stage)]) == 0
    return Trained(folder / "pretrain", folder / "finetune")


@pytest.fixture
def data(files: Files, shared_cache: Path) -> TextDataModule:
    """The small corpus as ``training.data_of`` has it, not read yet."""
    from training import data_of

    return data_of(files, shared_cache)


# ---- short hands of the tests that call the command line

Fit = Callable[..., Result]


@pytest.fixture
def fit(cli: Command, configs: Configs) -> Fit:
    """``fit("--flag", ...)``: the tiny fine-tuning, from scratch."""
    return lambda *arguments: cli("fit", "--config", configs.finetune, *arguments)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that a recipe starts; each is run in this process."""
    from lit_sft.main import main

    seen: list[list[str]] = []

    def run(command: list[str]) -> int:
        assert command[:3] == [sys.executable, "-m", "lit_sft"]
        seen.append(command[3:])
        return main(command[3:])

    monkeypatch.setattr("lit_sft.recipes.run.run_process", run)
    return seen


@pytest.fixture
def fit_recipe(cli: Command, configs: Configs, calls: list[list[str]]) -> Fit:
    """``fit_recipe("--flag", ...)``: the tiny recipe; ``calls`` then holds the commands of this fit alone."""

    def call(*arguments: object) -> Result:
        calls.clear()
        return cli("fit", "--config", configs.recipe, *arguments)

    return call


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write a README's example, a file of this name, where Python finds it."""

    def write(name: str) -> None:
        (tmp_path / name).write_text(block(f"# {name}"), encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop(name.removesuffix(".py"), None)

    return write


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The optimizer step at which each training in this process began: a resumed one above 0, where it was saved."""
    from lit_sft.module import LitSFT

    steps: list[int] = []
    before = LitSFT.on_train_start

    def on_train_start(module: LitSFT) -> None:
        steps.append(module.trainer.global_step)
        before(module)

    monkeypatch.setattr(LitSFT, "on_train_start", on_train_start)
    return steps


@contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """A function that tells how many bytes Python has had at once since the block began."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def read(path: Path) -> Any:
    """The content of a JSON or YAML file."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def made() -> list[str]:
    """Every run's folder that there is, as NAME/version_K."""
    return sorted(path.relative_to("logs").as_posix() for path in Path("logs").glob("*/*"))
