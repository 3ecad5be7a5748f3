"""Mistakes in recipes and their options: told before the first stage has cost its time."""

from pathlib import Path

import pytest
import yaml
from conftest import Command, Configs, Files, Fit, made
from refusals import one_line

from lit_sft.errors import UserError
from lit_sft.recipes import run as recipes
from lit_sft.recipes.file import Stage, recipe_in

RUN = Path("logs/tiny/version_0")


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
        # what the last stage can't do with its data, its objective or its figures
        (["--data.response_column", "label"], "fine-tuning needs labeled data"),
        (["--data.labeled", "null", "--data.unlabeled", "TEXT"], "fine-tuning needs labeled data"),
        (["--finetune.model.objective", "MLE"], "model.stage finetune doesn't go with model.objective MLE"),
        (["--finetune.model.objective", "Completion"], "set --data.response_column"),
        (["--finetune.model.objective", "Supervised", "--finetune.model.objective.label_smoothing", "2"], "smoothing"),
        (["--finetune.checkpoint.monitor", "val/macro_f2"], "no figure val/macro_f2 to monitor"),
        (["--pretrain.early_stopping.monitor", "val/accuracy"], "no figure val/accuracy to monitor"),
        # nor what the network, the optimizer or a callback of the last stage refuses
        (["--finetune.model.encoder.weight_dropout", "1.5"], "stage finetune: model: weight_dropout=1.5"),
        (["--finetune.model.head_hidden_size", "-1"], "hidden_size=-1 must be at least 0"),
        (["--finetune.model.backprop_tokens", "0"], "backprop_tokens=0 must be at least 1"),
        (["--finetune.model.layer_decay", "-1"], "model.optimizer: layer_decay=-1.0 must be above 0"),
        (["--finetune.model.optimizer", "SGD", "--finetune.model.optimizer.lr", "-1"], "Invalid learning rate: -1"),
        (["--finetune.model.num_beams", "0"], "num_beams 0 must be at least 1"),
        (["--finetune.saving.keep", "0"], "keep=0 at least 1"),
        (["--finetune.health.spike_window", "0"], "health.spike_window=0 must be at least 2"),
        (["--pretrain.model.adaptive_cutoffs", "[20, 10]"], "adaptive_cutoffs=[20, 10] must rise"),
        (["--pretrain.model.loss_chunk", "0"], "loss_chunk=0 must be at least 1"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(
    flags: list[str], message: str, fit_recipe: Fit, calls: list[list[str]], files: Files
) -> None:
    result = fit_recipe(*(flag.replace("TEXT", str(files.unlabeled)) for flag in flags))
    one_line(result, message)
    assert calls == []
    assert not Path("logs").exists()


def test_a_mistake_in_the_last_stage_is_told_before_the_first_has_run(
    fit_recipe: Fit, calls: list[list[str]], configs: Configs
) -> None:
    options = yaml.safe_load(configs.finetune.read_text())
    options["model"]["encoder"]["init_args"]["hiden_size"] = 3
    configs.finetune.write_text(yaml.safe_dump(options))
    result = fit_recipe()
    assert result.code == 2
    assert "hiden_size of lit_sft.models.LSTMEncoder; did you mean hidden_size?" in result.err
    assert calls == []


@pytest.mark.parametrize("init_from", [None, "pretrain"])
def test_a_start_in_a_stage_s_options_and_another_in_the_recipe_are_told(
    init_from: str | None, fit_recipe: Fit, calls: list[list[str]], configs: Configs
) -> None:
    recipe = yaml.safe_load(configs.recipe.read_text())
    recipe["stages"][1] |= {"init_from": init_from, "model": {"init_from": "logs/other"}}
    configs.recipe.write_text(yaml.safe_dump(recipe))
    named = f"init_from {init_from or 'null'} in the recipe: leave one of them out"
    one_line(fit_recipe(), f"stage finetune has model.init_from logs/other in its options, and {named}")
    assert calls == []


@pytest.mark.parametrize("options", [{"name": "mine"}, {"finetune": {"run_dir": "here"}}, {"ckpt_path": "last"}])
def test_what_a_recipe_takes_on_the_command_line_is_refused_in_a_further_config(
    options: dict[str, object], fit_recipe: Fit, calls: list[list[str]]
) -> None:
    Path("more.yaml").write_text(yaml.safe_dump(options))
    one_line(fit_recipe("--config", "more.yaml"), "more.yaml", "a recipe takes it on the command line only")
    assert calls == []


def test_a_stage_that_came_into_the_recipe_since_the_run_began_is_told(
    fit_recipe: Fit, configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as stopped:
        stopped.setattr(recipes, "run_process", lambda _: 143)
        assert fit_recipe().code == 143
    recipe = yaml.safe_load(configs.recipe.read_text())
    recipe["stages"].append({"name": "more", "config": "tiny/finetune.yaml"})
    configs.recipe.write_text(yaml.safe_dump(recipe))
    one_line(fit_recipe("--ckpt_path", "last"), "stage more came into ")


def test_a_flag_of_a_stage_that_the_resumed_run_has_not_is_told(
    fit_recipe: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "run_process", lambda _: 143)
    assert fit_recipe("--stages", "pretrain").code == 143
    refused = fit_recipe("--ckpt_path", "last", "--finetune.model.optimizer.lr", "0.1")
    one_line(refused, "stage finetune doesn't run in logs/tiny/version_0, which is resumed")


def test_a_first_stage_that_fails_ends_the_recipe_and_leaves_nothing(fit_recipe: Fit, calls: list[list[str]]) -> None:
    cutoffs = ("--model.tie_weights_up_to", "1", "--model.adaptive_cutoffs", "[1000]")  # the vocabulary is smaller
    result = fit_recipe(*cutoffs)
    assert result.code == 2
    assert len(calls) == 1
    assert not list(Path("logs").iterdir())


def test_a_later_stage_that_fails_leaves_the_finished_one(
    fit_recipe: Fit, calls: list[list[str]], configs: Configs
) -> None:
    options = yaml.safe_load(configs.finetune.read_text())
    weighted = {"class_path": "Supervised", "init_args": {"class_weights": [1.0] * 9}}  # there are fewer classes
    options["model"]["objective"] = weighted
    configs.finetune.write_text(yaml.safe_dump(options))
    result = fit_recipe()
    assert result.code == 2
    assert "class_weights has 9 values" in result.err
    assert [command[0] for command in calls] == ["fit", "fit"]
    assert [path.name for path in sorted(RUN.iterdir())] == ["config.yaml", "pretrain"]


def test_a_stage_ended_by_a_signal_is_told(cli: Command, configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "run_process", lambda _: 137)
    result = cli("fit", "--config", configs.recipe)
    assert result.code == 137
    assert "fit of stage pretrain was ended by signal 9" in result.err


def test_a_run_that_a_signal_ends_before_its_first_stage_has_begun_is_gone_on_with(
    cli: Command, configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "run_process", lambda _: 143)
    for more in ((), ("--ckpt_path", "last")):  # as the README's lines for SLURM start it again
        assert cli("fit", "--config", configs.recipe, *more).code == 143
    assert made() == ["tiny/version_0"]


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
        ("stages: [{name: data}]", "not that of an option or figure, not 'data'"),
        ("stages: [{name: run_dir}]", "not 'run_dir'"),
        ("stages: [{name: 3}]", "not 3"),
        ("stages: [{name: a}]\ndata: {}", "has the keys stages and test only, not data"),
        ("stages: [{name: a}]\non: 1\ndata: {}", "has the keys stages and test only, not True, data"),
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


@pytest.mark.parametrize("stage", ["{name: a}", "{name: a, config: }", "{name: a, config: []}"])
def test_a_stage_may_have_no_config(stage: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"stages: [{stage}]")
    recipe = recipe_in(["fit", "--config", str(tmp_path / "recipe.yaml")])
    assert recipe is not None
    assert recipe.stages == [Stage("a", [{}], [])]


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
