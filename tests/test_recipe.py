"""Recipes: stages in order, each from the one before, resumed and restarted, and one record on top.

A stage's process is called in this one, where it takes half a second; one test starts a real one.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Command, Configs, Result, Trained

from lit_sft import recipe as recipes
from lit_sft.errors import UserError
from lit_sft.main import main
from lit_sft.recipe import recipe_in

RUN = Path("logs/tiny/version_0")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the recipe starts; each is run in this process."""
    seen: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        assert command[1:3] == ["-m", "lit_sft"]
        seen.append(command[3:])
        return subprocess.CompletedProcess(command, main(command[3:]))

    monkeypatch.setattr(recipes.subprocess, "run", run)
    return seen


@pytest.fixture
def fit(cli: Command, configs: Configs, calls: list[list[str]]) -> Callable[..., Result]:
    """``fit("--flag", ...)``: the tiny recipe; ``calls`` then holds the commands of this fit alone."""

    def call(*arguments: object, recipe: Path | None = None) -> Result:
        calls.clear()
        return cli("fit", "--config", recipe or configs.recipe, *arguments)

    return call


@pytest.fixture
def done(configs: Configs, trained: Trained) -> Path:
    """A finished run of the tiny recipe, put together from finished stages."""
    for name in ("pretrain", "finetune"):
        shutil.copytree(getattr(trained, name), RUN / name)
    stages = [{"name": "pretrain", "init_from": None}, {"name": "finetune", "init_from": "pretrain"}]
    sources = {"pretrain": None, "finetune": None}
    (RUN / "config.yaml").write_text(yaml.safe_dump({"stages": stages, "flags": [], "sources": sources}))
    (RUN / "metrics.json").write_text("{}")
    return RUN


def option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())


# ---- a whole run


def test_stages_run_in_order_each_from_the_best_of_the_one_before(
    fit: Callable[..., Result], calls: list[list[str]]
) -> None:
    result = fit("--seed_everything", "3", "--trainer.max_epochs=2")
    assert result.code == 0
    assert [command[0] for command in calls] == ["fit", "fit", "test"]
    assert option(calls[0], "--run_dir") == str(RUN / "pretrain")
    assert "--model.init_from" not in calls[0]
    assert option(calls[1], "--run_dir") == str(RUN / "finetune")
    assert option(calls[1], "--model.init_from") == str(RUN / "pretrain/checkpoints/best.ckpt")
    assert option(calls[2], "--ckpt_path") == str(RUN / "finetune")
    for command in calls:  # the flags reach every stage and the test
        assert option(command, "--seed_everything") == "3"
        assert "--trainer.max_epochs=2" in command
    record = read(RUN / "metrics.json")
    assert set(record) == {"test", "pretrain", "finetune", "seed", "seconds", "versions"}
    assert {"accuracy", "macro_f1", "loss"} <= set(record["test"])
    assert record["test"] == read(RUN / "finetune/metrics.json")["test"]
    assert record["pretrain"]["val_perplexity"] > 1
    assert record["pretrain"]["tokens_per_second"] > 0
    assert record["seed"] == 3
    assert record["seconds"] > record["pretrain"]["seconds"] + record["finetune"]["seconds"]
    config = read(RUN / "config.yaml")
    assert [stage["name"] for stage in config["stages"]] == ["pretrain", "finetune"]
    assert read(RUN / "pretrain/config.yaml")["seed_everything"] == 3
    assert f"accuracy {record['test']['accuracy']:.4f}" in result.out
    assert sorted(path.name for path in RUN.iterdir()) == ["config.yaml", "finetune", "metrics.json", "pretrain"]


def test_a_stage_is_a_process_of_its_own(
    cli: Command, configs: Configs, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    configs.recipe.write_text("stages: [{name: finetune, config: tiny/finetune.yaml}]\ntest: false\n")
    result = cli("fit", "--config", configs.recipe, "--model.init_from", trained.pretrain)
    assert result.code == 0
    record = read(RUN / "metrics.json")
    assert set(record) == {"val", "finetune", "seed", "seconds", "versions"}  # nothing was tested
    assert "test" not in read(RUN / "finetune/metrics.json")


def test_what_stands_beside_a_stage_and_in_further_configs_goes_to_it(
    fit: Callable[..., Result], calls: list[list[str]], configs: Configs, trained: Trained
) -> None:
    Path("configs/short.yaml").write_text("trainer: {limit_train_batches: 3}\n")
    Path("configs/tiny/narrow.yaml").write_text("head_hidden_size: 5\n")
    stage = {"name": "finetune", "config": ["tiny/finetune.yaml"], "model": "tiny/narrow.yaml"}
    configs.recipe.write_text(yaml.safe_dump({"stages": [stage], "test": False}))
    result = fit("--config", "configs/short.yaml", "--model.init_from", trained.pretrain, "--name", "other")
    assert result.code == 0
    assert read(Path("logs/other/version_0/finetune/metrics.json"))["steps"] == 3
    assert read(Path("logs/other/version_0/finetune/config.yaml"))["model"]["head_hidden_size"] == 5
    assert len(calls) == 1


def test_a_stage_starts_from_the_one_that_it_names(
    fit: Callable[..., Result], calls: list[list[str]], configs: Configs
) -> None:
    stages = [
        {"name": "short", "config": "tiny/pretrain.yaml", "trainer": {"limit_train_batches": 2}},
        {"name": "other", "config": "tiny/pretrain.yaml", "trainer": {"limit_train_batches": 2}, "init_from": None},
        {"name": "scratch", "config": "tiny/finetune.yaml", "init_from": None},
        {"name": "tuned", "config": "tiny/finetune.yaml", "init_from": "short"},
    ]
    configs.recipe.write_text(yaml.safe_dump({"stages": stages, "test": False}))
    assert fit().code == 0
    starts = [option(command, "--model.init_from") for command in calls]
    assert starts == [None, None, None, str(RUN / "short/checkpoints/best.ckpt")]


def test_a_dry_run_leaves_nothing(fit: Callable[..., Result], calls: list[list[str]]) -> None:
    assert fit("--trainer.fast_dev_run", "true").code == 0
    assert [command[0] for command in calls] == ["fit", "fit"]
    assert not Path("logs").exists()


# ---- going on


def test_a_plain_fit_starts_a_new_version_and_a_finished_one_is_not_resumed(
    done: Path, fit: Callable[..., Result], calls: list[list[str]]
) -> None:
    result = fit("--ckpt_path", "last")
    assert result.code == 2
    assert "every run there is finished" in result.err
    assert fit("--stages", "finetune").code == 0
    assert option(calls[0], "--run_dir") == "logs/tiny/version_1/finetune"


def test_finished_stages_are_skipped(done: Path, fit: Callable[..., Result], calls: list[list[str]]) -> None:
    (done / "metrics.json").unlink()
    shutil.rmtree(done / "finetune")
    before = read(done / "pretrain/metrics.json")
    assert fit("--ckpt_path", "last").code == 0
    assert [command[0] for command in calls] == ["fit", "test"]
    assert option(calls[0], "--model.init_from") == str(done / "pretrain/checkpoints/best.ckpt")
    assert "--ckpt_path" not in calls[0]
    assert read(done / "pretrain/metrics.json") == before
    assert read(done / "metrics.json")["seconds"] > before["seconds"]  # what went before counts
    assert [path.name for path in Path("logs/tiny").iterdir()] == ["version_0"]


def test_an_unfinished_stage_is_resumed_from_its_last_checkpoint(
    done: Path, fit: Callable[..., Result], calls: list[list[str]]
) -> None:
    for path in (done / "metrics.json", done / "finetune/metrics.json"):
        path.unlink()
    steps = torch.load(done / "finetune/checkpoints/last.ckpt", weights_only=True)["global_step"]
    result = fit("--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert result.code == 0
    assert option(calls[0], "--ckpt_path") == "last"
    assert read(done / "finetune/metrics.json")["steps"] == steps * 3 // 2
    assert "resumed with other flags than before: [] -> ['--trainer.max_epochs', '3']" in result.out
    assert (done / "finetune/config.resume.yaml").is_file()


def test_a_stage_without_a_checkpoint_starts_again_in_its_folder(
    done: Path, fit: Callable[..., Result], calls: list[list[str]]
) -> None:
    for path in (done / "metrics.json", done / "finetune/metrics.json"):
        path.unlink()
    shutil.rmtree(done / "finetune/checkpoints")
    assert fit("--ckpt_path", "last").code == 0
    assert "--ckpt_path" not in calls[0]
    assert option(calls[0], "--run_dir") == str(done / "finetune")


def test_only_the_test_is_missing(done: Path, fit: Callable[..., Result], calls: list[list[str]]) -> None:
    (done / "metrics.json").unlink()
    record = read(done / "finetune/metrics.json")
    record.pop("test", None)
    (done / "finetune/metrics.json").write_text(json.dumps(record))
    assert fit("--ckpt_path", "last").code == 0
    assert [command[0] for command in calls] == ["test"]
    assert "test" in read(done / "metrics.json")


# ---- some of the stages


def test_a_stage_alone_starts_from_the_newest_finished_pretraining(
    done: Path, fit: Callable[..., Result], calls: list[list[str]]
) -> None:
    newer = Path("logs/tiny/version_1/pretrain")
    shutil.copytree(done / "pretrain", newer)
    unfinished = Path("logs/tiny/version_2/pretrain")
    shutil.copytree(done / "pretrain", unfinished)
    (unfinished / "metrics.json").unlink()
    assert fit("--stages", "finetune").code == 0
    assert option(calls[0], "--model.init_from") == str(newer)
    assert not Path("logs/tiny/version_3/pretrain").exists()


def test_what_the_user_names_to_start_from_wins(
    done: Path, fit: Callable[..., Result], calls: list[list[str]], trained: Trained
) -> None:
    assert fit("--stages", "finetune", "--model.init_from", trained.pretrain).code == 0
    assert option(calls[0], "--model.init_from") == str(trained.pretrain / "checkpoints/best.ckpt")


def test_a_stage_alone_is_resumed_from_what_it_began_with(
    done: Path, fit: Callable[..., Result], calls: list[list[str]]
) -> None:
    assert fit("--stages", "finetune").code == 0
    run = Path("logs/tiny/version_1")
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "finetune")
    shutil.copytree(done / "pretrain", "logs/tiny/version_2/pretrain")  # newer, but not what it began with
    assert fit("--ckpt_path", "last").code == 0
    assert [command[0] for command in calls] == ["fit", "test"]
    assert option(calls[0], "--model.init_from") == str(done / "pretrain")


def test_nothing_to_start_from_is_told(fit: Callable[..., Result], calls: list[list[str]]) -> None:
    result = fit("--stages", "finetune")
    assert result.code == 2
    assert "no finished pretrain in logs/tiny" in result.err
    assert calls == []
    assert not Path("logs").exists()


# ---- mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stages", "fintune"], "did you mean finetune?"),
        (["--stage", "finetune"], "no option stage"),
        (["--ckpt_path", "some.ckpt"], "a recipe resumes with --ckpt_path last"),
        (["--ckpt_path", "last"], "nothing to resume in logs/tiny"),
        (["--run_dir", "here"], "--run_dir is an option of a single stage"),
        (["--model.init_from", "nowhere"], "nowhere: no such run or checkpoint"),
        (["--data.labeled", "absent.csv", "--stages", "finetune"], "absent.csv: no such file"),  # before weights
        (["--data.labels_per_class", "41"], "class 'sea' has 40 documents"),
        (["--trainer.max_epoch", "3"], "did you mean trainer.max_epochs?"),
        (["--name", "a/b"], "--name a/b"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(
    flags: list[str], message: str, fit: Callable[..., Result], calls: list[list[str]]
) -> None:
    result = fit(*flags)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert calls == []
    assert not Path("logs").exists()


def test_a_mistake_in_the_last_stage_is_told_before_the_first_has_run(
    fit: Callable[..., Result], calls: list[list[str]], configs: Configs
) -> None:
    options = yaml.safe_load(configs.finetune.read_text())
    options["model"]["encoder"]["init_args"]["hiden_size"] = 3
    configs.finetune.write_text(yaml.safe_dump(options))
    result = fit()
    assert result.code == 2
    assert "hiden_size of lit_sft.models.LSTMEncoder; did you mean hidden_size?" in result.err
    assert calls == []


def test_a_first_stage_that_fails_ends_the_recipe_and_leaves_nothing(
    fit: Callable[..., Result], calls: list[list[str]]
) -> None:
    result = fit("--model.optimizer.lr=-1")  # no parser knows that this can't be
    assert result.code == 2
    assert len(calls) == 1
    assert not list(Path("logs").iterdir())


def test_a_later_stage_that_fails_leaves_the_finished_one(
    fit: Callable[..., Result], calls: list[list[str]], configs: Configs
) -> None:
    options = yaml.safe_load(configs.finetune.read_text())
    options["model"]["encoder"]["init_args"]["hidden_size"] = 13
    configs.finetune.write_text(yaml.safe_dump(options))
    result = fit()
    assert result.code == 2
    assert "the encoder doesn't fit" in result.err
    assert [command[0] for command in calls] == ["fit", "fit"]
    assert [path.name for path in sorted(RUN.iterdir())] == ["config.yaml", "pretrain"]


def test_a_stage_ended_by_a_signal_is_told(cli: Command, configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.CompletedProcess([], -9)
    monkeypatch.setattr(recipes.subprocess, "run", lambda *_, **__: killed)
    result = cli("fit", "--config", configs.recipe)
    assert result.code == 137
    assert "fit of stage pretrain was ended by signal 9" in result.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stages: {a: 1}", "stages must be a list"),
        ("stages: []", "stages must be a list"),
        ("stages: [pretrain]", "stages must be a list of mappings"),
        ("stages: [{config: a.yaml}]", "needs a name"),
        ("stages: [{name: a}, {name: a}]", "needs a name of its own"),
        ("stages: [{name: ../a}]", "not '../a'"),
        ("stages: [{name: test}]", "not 'test'"),
        ("stages: [{name: 3}]", "not 3"),
        ("stages: [{name: a}]\ndata: {}", "has the keys stages and test only, not data"),
        ("stages: [{name: a, init_from: b}, {name: b}]", "init_from of stage a names no earlier stage: 'b'"),
        ("stages: [{name: a, config: absent.yaml}]", "absent.yaml: no such file"),
        ("stages: [", "not valid YAML"),
        ("- stages", "a config is a mapping"),
    ],
)
def test_a_mistake_in_the_recipe_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message.replace("[", r"\[")) as error:
        recipe_in(["fit", "--config", str(path)])
    assert "recipe.yaml" in str(error.value) or "absent.yaml" in str(error.value)


@pytest.mark.parametrize(
    "arguments", [["--config", "A"], ["--config=A"], ["-c", "A"], ["--trainer.x", "1", "--config", "A"]]
)
def test_a_recipe_is_known_by_its_stages_however_it_is_given(arguments: list[str], configs: Configs) -> None:
    given = [argument.replace("A", str(configs.recipe)) for argument in arguments]
    recipe = recipe_in(["fit", *given])
    assert recipe is not None
    assert [stage.name for stage in recipe.stages] == ["pretrain", "finetune"]
    assert recipe_in(["fit", "--config", str(configs.finetune)]) is None
    assert recipe_in(["fit"]) is None


def test_two_recipes_at_once_are_refused(configs: Configs) -> None:
    with pytest.raises(UserError, match="two recipes at once"):
        recipe_in(["fit", "--config", str(configs.recipe), "--config", str(configs.recipe)])


def test_a_stage_uses_this_python(configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(recipes.subprocess, "run", run)
    recipe = recipe_in(["fit", "--config", str(configs.recipe)])
    assert recipe is not None
    recipes._call("test", recipe, recipe.stages[0], ["--flag"], "--more")
    path = str(configs.recipe.parent / "tiny/pretrain.yaml")
    assert commands == [[sys.executable, "-m", "lit_sft", "test", "--config", path, "--flag", "--more"]]
