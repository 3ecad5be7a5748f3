"""Every file in ``configs/`` parses, says what it is, and its command and the README's name what is there."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from baselines import as_flags, plans_in
from jsonargparse import Namespace
from readmes import READMES, ROOT, commands, dead_links

from lit_sft.callbacks import GradualUnfreezing, LastCheckpoint, NonMonotonicAveraging
from lit_sft.callbacks.stopping import check_monitors
from lit_sft.cli import LitCLI
from lit_sft.data.textdata import TextData
from lit_sft.errors import UserError
from lit_sft.module import LitSFT
from lit_sft.recipes import run as recipes
from lit_sft.recipes.file import recipe_in

CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml"))
STAGES = [path for path in CONFIGS if re.fullmatch(r"configs/(?!(?:data|model|trainer|logger|debug)/)[^/]+/.*", path)]
RUNNABLE = [path for path in CONFIGS if path.count("/") == 1] + STAGES  # recipes, and stages on their own
SEARCHES = [path for path in ROOT.glob("scripts/search/*.yaml") if not path.stem.endswith("parts")]  # of baselines.py
OPTIONS = {"data": "--data", "model": "--model", "trainer": "--trainer", "logger": "--trainer.logger"}


def test_what_the_readmes_call_a_default_is_one() -> None:
    named = [
        (LastCheckpoint, "every_minutes", 5),
        (LastCheckpoint, "keep", 2),
        (TextData, "val_fraction", 0.1),
        (TextData, "tokenizer", "bpe"),
        (NonMonotonicAveraging, "nonmono", 5),
        (GradualUnfreezing, "epochs", 1),
        (LitSFT, "pooling", "concat"),
        (LitSFT, "tie_weights_up_to", 10_000),
    ]
    defaults = [(kind.__name__, name, inspect.signature(kind).parameters[name].default) for kind, name, _ in named]
    assert defaults == [(kind.__name__, name, value) for kind, name, value in named]
    for name in ("imdb", "imdb_hub"):  # the results on IMDb rest on it
        assert yaml.safe_load((ROOT / f"configs/data/{name}.yaml").read_text("utf-8"))["remove_test_copies"] is True


class Parsed(Exception):
    pass


class ParseOnly(LitCLI):
    """The command line up to where it would look at the data."""

    def before_instantiate_classes(self) -> None:
        raise Parsed(self)


@dataclass(frozen=True)
class Stage:
    """A stage as the command line has parsed it."""

    cli: ParseOnly

    @property
    def options(self) -> Namespace:
        options: Namespace = self.cli.config["fit"]
        return options

    @cached_property
    def built(self) -> Any:
        """Its classes with their options, and the network, without memory: a wrong value is an error here."""
        config = self.cli.config.clone()
        config["fit"]["trainer"]["logger"] = False  # some are extras, which aren't always there
        made = self.cli.parser.instantiate(config)["fit"]
        entries = self.options.data.vocab_size or 30_000
        with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
            patch.setattr("lit_sft.module.Evaluation", lambda *_: None)  # torchmetrics' can't do without memory
            made.model.build(
                SimpleNamespace(special_ids=(2, 0, 1), vocab_size=entries), list(self.options.data.label_names or "ab")
            )
            made.model.make_optimizer([torch.nn.Parameter(torch.empty(1))])
        check_monitors([made.checkpoint, made.early_stopping], made.model.objective.heads)
        return made


Parse = Callable[[list[str]], list[Stage]]
KNOWN: dict[tuple[str, ...], Stage] = {}


def parse_stage(arguments: list[str]) -> Stage:
    """The same arguments are parsed once; a recipe's own options are in a file of another name each time."""
    paths = [Path(argument) for argument in arguments]
    key = tuple(path.read_text("utf-8") if path.is_absolute() and path.is_file() else str(path) for path in paths)
    if key not in KNOWN:
        with pytest.raises(Parsed) as parsed:
            ParseOnly(arguments)
        KNOWN[key] = Stage(parsed.value.args[0])
    return KNOWN[key]


def parse_recorded(stages: list[Stage]) -> Callable[[list[str]], tuple[Namespace, Any]]:
    unread = SimpleNamespace(check_sources=lambda: None, check_documents=lambda: None)

    def parse(arguments: list[str]) -> tuple[Namespace, Any]:
        stages.append(parse_stage(arguments))
        return stages[-1].options, unread

    return parse


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """Parses the arguments of a ``fit`` as it would: of a recipe, each stage's, from the repository's root."""
    monkeypatch.chdir(ROOT)

    def call(arguments: list[str]) -> list[Namespace]:
        recipe = recipe_in(arguments)
        if recipe is None:
            return [parse_stage(arguments)]
        stages: list[Stage] = []
        monkeypatch.setattr(recipes, "check", parse_recorded(stages))
        monkeypatch.setattr(recipes, "_call", lambda *_: None)
        recipes.run_recipe(recipe, [*arguments[1:], "--trainer.fast_dev_run=true"])
        return stages

    return call


def header(text: str) -> str:
    """The comment lines that a config starts with, without their ``#``."""
    return "\n".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), text.splitlines()))


def fit_commands(text: str) -> list[list[str]]:
    """The arguments of every ``python -m lit_sft fit`` in a text."""
    return commands(text, "-m lit_sft (fit) ")


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in RUNNABLE])  # those: by their own commands
def test_every_fragment_parses_where_it_belongs(path: str, parse: Parse) -> None:
    folder = Path(path).parts[1]
    assert parse(["fit", OPTIONS.get(folder, "--config"), path])


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.name)
def test_every_method_of_a_search_parses_with_its_config(path: Path, parse: Parse) -> None:
    """Its grid's last point, on the config that the file's own command names."""
    command = re.search(r"scripts/baselines\.py [^\n]*?--config (\S+)", header(path.read_text(encoding="utf-8")))
    assert command
    for plan in plans_in(path):
        for method, grid in plan.grids.items():
            if not method.startswith("tfidf"):
                assert parse(["fit", "--config", command[1], *as_flags(grid[-1])])


@pytest.mark.parametrize(
    ("path", "main"),
    [
        (path, main)
        for path in CONFIGS
        if "/debug/" in path
        for main in (STAGES if "overfit" in path else STAGES[:2])  # the one that names options of encoders
    ],
)
def test_a_debug_config_parses_after_every_stage(path: str, main: str, parse: Parse) -> None:
    (with_debug,), (alone,) = parse(["fit", "--config", main, "--config", path]), parse(["fit", "--config", main])
    assert with_debug.options.model.encoder.class_path == alone.options.model.encoder.class_path
    assert with_debug.options.data == alone.options.data
    assert with_debug.options.trainer != alone.options.trainer


def test_every_config_starts_by_saying_what_it_is() -> None:
    """The first line is a comment: what the config does."""
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in CONFIGS}
    assert [path for path, text in texts.items() if not re.match(r"# \S+ \S+ \S+", text)] == []


@pytest.mark.parametrize("path", CONFIGS)
def test_the_command_in_a_config_runs_that_config(path: str, parse: Parse) -> None:
    found = fit_commands(header((ROOT / path).read_text(encoding="utf-8")))
    assert all(path in command for command in found)
    stages = [stage for command in found for stage in parse(command)]
    assert all(stage.built for stage in stages)
    assert stages or path not in RUNNABLE


def test_files_named_in_a_config_s_comments_exist() -> None:
    comments = {path: "\n".join(re.findall(r"#.*", (ROOT / path).read_text(encoding="utf-8"))) for path in CONFIGS}
    missing = {path: missing_files(text) for path, text in comments.items()}
    assert {path: files for path, files in missing.items() if files} == {}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_headings_named_in_a_readme_exist(readme: Path) -> None:
    assert missing_files(readme.read_text(encoding="utf-8")) == []
    assert dead_links(readme) == []


def test_every_fit_of_a_config_in_the_readme_parses(parse: Parse) -> None:
    found = [
        command
        for readme in READMES
        for command in fit_commands(readme.read_text(encoding="utf-8"))
        if set(command) & set(CONFIGS) and not any(Path(word).stem == "mine" for word in command)
    ]
    assert found
    assert all(parse(command) for command in found)


def test_a_mistake_in_a_config_is_found(tmp_path: Path, parse: Parse) -> None:
    """In a name where it is parsed, in a value where the classes and the network are built."""
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"max_epoch": 3}}), encoding="utf-8")
    with pytest.raises(UserError, match="max_epochs"):
        parse(["fit", "--config", str(path)])
    wrong: list[tuple[str, Any, str]] = [
        ("head_dropout", 1.5, "head_dropout"),
        ("schedule", {"class_path": "WarmupCosine", "init_args": {"warmup": 2.0}}, "warmup"),
        ("optimizer", {"class_path": "torch.optim.AdamW", "init_args": {"lr": -1.0}}, "learning rate"),
    ]
    for option, value, message in wrong:
        path.write_text(yaml.safe_dump({"model": {"stage": "finetune", option: value}}), encoding="utf-8")
        (stage,) = parse(["fit", "--config", str(path)])
        with pytest.raises((UserError, ValueError), match=message):
            _ = stage.built
    path.write_text(yaml.safe_dump({"checkpoint": {"monitor": "val/f1"}}), encoding="utf-8")
    with pytest.raises(UserError, match="no figure val/f1"):
        _ = parse(["fit", "--config", str(path)])[0].built


def missing_files(text: str) -> list[str]:
    """The repository's files that a text names and that aren't there; those called ``mine`` are the reader's own."""
    named = re.findall(r"(?<![\w./-])(?:configs|scripts|tests|lit_sft|docs)/[\w./-]+\.\w+", text)
    return sorted(name for name in set(named) if not (ROOT / name).is_file() and Path(name).stem != "mine")


@pytest.mark.parametrize("path", [path for path in CONFIGS if "/trainer/gpu" in path])
def test_how_many_gpus_is_the_users_choice(path: str, parse: Parse) -> None:
    for flags, devices in (["--trainer.devices=2"], "2"), ([], "1"):
        (stage,) = parse(["fit", "--config", STAGES[0], *flags, "--trainer", path])
        assert str(stage.options.trainer.devices) == devices
