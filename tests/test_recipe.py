"""Recipes: stages in order, each from the one before, resumed and restarted, and one record on top.

A stage's process is called in this one, where it takes half a second; one test starts a real one.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Command, Configs, Fit, Trained, read
from refusals import one_line
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RUN = Path("logs/tiny/version_0")


@pytest.fixture
def done(configs: Configs, trained: Trained) -> Path:
    """A finished run of the tiny recipe, put together from finished stages."""
    for name in ("pretrain", "finetune"):
        shutil.copytree(getattr(trained, name), RUN / name)
    stages = [{"name": "pretrain", "init_from": []}, {"name": "finetune", "init_from": ["pretrain"]}]
    sources: dict[str, list[str]] = {"pretrain": [], "finetune": []}
    (RUN / "config.yaml").write_text(yaml.safe_dump({"stages": stages, "flags": [], "configs": [], "sources": sources}))
    (RUN / "metrics.json").write_text("{}")
    return RUN


def option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


# ---- a whole run


def test_stages_run_in_order_each_from_the_best_of_the_one_before(fit_recipe: Fit, calls: list[list[str]]) -> None:
    result = fit_recipe("--seed_everything", "3", "--trainer.max_epochs=2")
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
    tested = {"test", "test_interval", "test_clean", "test_clean_interval", "contamination"}
    assert set(record) == {*tested, "pretrain", "finetune", "seed", "seconds", "versions"}
    assert {"accuracy", "macro_f1", "loss"} <= set(record["test"])
    of_last = read(RUN / "finetune/metrics.json")
    assert {key: record[key] for key in tested} == {key: of_last[key] for key in tested}
    assert record["pretrain"]["val_perplexity"] > 1
    assert record["pretrain"]["tokens_per_second"] > 0
    assert record["seed"] == 3
    assert record["seconds"] == record["pretrain"]["seconds"] + record["finetune"]["seconds"]
    config = read(RUN / "config.yaml")
    assert [stage["name"] for stage in config["stages"]] == ["pretrain", "finetune"]
    assert read(RUN / "pretrain/config.yaml")["seed_everything"] == 3
    low, high = record["test_interval"]["accuracy"]
    assert f"test accuracy {record['test']['accuracy']:.3f} [{low:.3f}, {high:.3f}], macro_f1" in result.out
    assert sorted(path.name for path in RUN.iterdir()) == ["config.yaml", "finetune", "metrics.json", "pretrain"]


def test_without_test_data_a_recipe_ends_with_its_validation(fit_recipe: Fit, calls: list[list[str]]) -> None:
    result = fit_recipe("--data.test", "null")
    assert result.code == 0
    assert [command[0] for command in calls] == ["fit", "fit"]
    later = f"python -m lit_sft test --ckpt_path {RUN} --data.test FILE"
    assert f"== stage finetune has no test data: later, {later}" in result.out
    record = read(RUN / "metrics.json")
    assert record["val"] == read(RUN / "finetune/metrics.json")["val"]
    assert "test" not in record


def test_a_stage_is_a_process_of_its_own(cli: Command, configs: Configs, trained: Trained) -> None:
    configs.recipe.write_text("stages: [{name: finetune, config: tiny/finetune.yaml}]\ntest: false\n")
    result = cli("fit", "--config", configs.recipe, "--model.init_from", trained.pretrain)
    assert result.code == 0
    record = read(RUN / "metrics.json")
    assert set(record) == {"val", "finetune", "contamination", "seed", "seconds", "versions"}  # nothing was tested
    assert "test" not in read(RUN / "finetune/metrics.json")


def test_what_stands_beside_a_stage_and_in_further_configs_goes_to_it(
    fit_recipe: Fit, calls: list[list[str]], configs: Configs, trained: Trained
) -> None:
    Path("configs/short.yaml").write_text("trainer: {limit_train_batches: 3}\n")
    Path("configs/tiny/narrow.yaml").write_text("head_hidden_size: 5\n")
    stage = {"name": "finetune", "config": ["tiny/finetune.yaml"], "model": "tiny/narrow.yaml"}
    configs.recipe.write_text(yaml.safe_dump({"stages": [stage], "test": False}))
    result = fit_recipe("--config", "configs/short.yaml", "--model.init_from", trained.pretrain, "--name", "other")
    assert result.code == 0
    assert read(Path("logs/other/version_0/finetune/metrics.json"))["steps"] == 3
    assert read(Path("logs/other/version_0/finetune/config.yaml"))["model"]["head_hidden_size"] == 5
    assert len(calls) == 1


def test_a_stage_starts_from_the_one_that_it_names(fit_recipe: Fit, calls: list[list[str]], configs: Configs) -> None:
    stages = [
        {"name": "short", "config": "tiny/pretrain.yaml", "trainer": {"limit_train_batches": 2}},
        {"name": "other", "config": "tiny/pretrain.yaml", "trainer": {"limit_train_batches": 2}, "init_from": None},
        {"name": "scratch", "config": "tiny/finetune.yaml", "init_from": None},
        {"name": "tuned", "config": "tiny/finetune.yaml", "init_from": "short"},
    ]
    configs.recipe.write_text(yaml.safe_dump({"stages": stages, "test": False}))
    assert fit_recipe().code == 0
    starts = [option(command, "--model.init_from") for command in calls]
    assert starts == [None, None, None, str(RUN / "short/checkpoints/best.ckpt")]


def test_a_dry_run_leaves_nothing(fit_recipe: Fit, calls: list[list[str]], trained: Trained) -> None:
    dry = ("--trainer.fast_dev_run", "true")
    assert fit_recipe(*dry).code == 0
    assert [command[0] for command in calls] == ["fit", "fit"]
    start = ("--stages", "finetune", "--model.init_from")
    assert fit_recipe(*dry, *start, trained.pretrain).code == 0  # its weights are looked at
    assert [option(command, "--model.init_from") for command in calls] == [str(trained.pretrain)]
    one_line(fit_recipe(*dry, *start, "nowhere"), "nowhere")
    assert not Path("logs").exists()


# ---- going on


def test_a_plain_fit_starts_a_new_version_and_a_finished_one_is_not_resumed(
    done: Path, fit_recipe: Fit, calls: list[list[str]]
) -> None:
    result = fit_recipe("--ckpt_path", "last")
    assert result.code == 2
    assert "every run there is finished" in result.err
    assert fit_recipe("--stages", "finetune").code == 0
    assert option(calls[0], "--run_dir") == "logs/tiny/version_1/finetune"


def test_finished_stages_are_skipped(done: Path, fit_recipe: Fit, calls: list[list[str]], configs: Configs) -> None:
    (done / "metrics.json").unlink()
    shutil.rmtree(done / "finetune")
    before = read(done / "pretrain/metrics.json")
    options = read(configs.pretrain)
    options["data"]["labeled"] = "gone.csv"  # what it was trained on is needed no more
    configs.pretrain.write_text(yaml.safe_dump(options))
    assert fit_recipe("--ckpt_path", "last").code == 0
    assert [command[0] for command in calls] == ["fit", "test"]
    assert option(calls[0], "--model.init_from") == str(done / "pretrain/checkpoints/best.ckpt")
    assert "--ckpt_path" not in calls[0]
    assert read(done / "pretrain/metrics.json") == before
    assert read(done / "metrics.json")["seconds"] > before["seconds"]  # what went before counts
    assert [path.name for path in Path("logs/tiny").iterdir()] == ["version_0"]


def test_an_unfinished_stage_is_resumed_from_its_last_checkpoint(
    done: Path, fit_recipe: Fit, calls: list[list[str]], begun: list[int]
) -> None:
    for path in (done / "metrics.json", done / "finetune/metrics.json"):
        path.unlink()
    steps = torch.load(done / "finetune/checkpoints/last.ckpt", weights_only=True)["global_step"]
    result = fit_recipe("--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert result.code == 0
    assert option(calls[0], "--ckpt_path") == "last"
    assert begun == [steps]
    assert read(done / "finetune/metrics.json")["steps"] == steps * 3 // 2
    assert "resumed with other flags than before: [] -> ['--trainer.max_epochs', '3']" in result.out
    assert (done / "finetune/config.resume.yaml").is_file()


def curve(run: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def test_a_stage_without_a_checkpoint_starts_again_in_its_folder(
    done: Path, fit_recipe: Fit, calls: list[list[str]]
) -> None:
    for path in (done / "metrics.json", done / "finetune/metrics.json"):
        path.unlink()
    shutil.rmtree(done / "finetune/checkpoints")
    before = curve(done / "finetune")
    assert fit_recipe("--ckpt_path", "last").code == 0
    assert "--ckpt_path" not in calls[0]
    assert option(calls[0], "--run_dir") == str(done / "finetune")
    after = curve(done / "finetune")  # anew, not on top of the first
    assert len({step for step, _ in after}) == len(after) < len(before)
    assert not {*after} & {*before}


def test_only_the_test_is_missing(done: Path, fit_recipe: Fit, calls: list[list[str]]) -> None:
    (done / "metrics.json").unlink()
    record = read(done / "finetune/metrics.json")
    record.pop("test", None)
    (done / "finetune/metrics.json").write_text(json.dumps(record))
    assert fit_recipe("--ckpt_path", "last").code == 0
    assert [command[0] for command in calls] == ["test"]
    assert "test" in read(done / "metrics.json")


# ---- some of the stages


def test_a_stage_alone_starts_from_the_newest_finished_pretraining(
    done: Path, fit_recipe: Fit, calls: list[list[str]]
) -> None:
    newer = Path("logs/tiny/version_1/pretrain")
    shutil.copytree(done / "pretrain", newer)
    unfinished = Path("logs/tiny/version_2/pretrain")
    shutil.copytree(done / "pretrain", unfinished)
    (unfinished / "metrics.json").unlink()
    assert fit_recipe("--stages", "finetune").code == 0
    assert option(calls[0], "--model.init_from") == str(newer)
    assert not Path("logs/tiny/version_3/pretrain").exists()


def test_what_the_user_names_to_start_from_wins(
    done: Path, fit_recipe: Fit, calls: list[list[str]], trained: Trained
) -> None:
    assert fit_recipe("--stages", "finetune", "--model.init_from", trained.pretrain).code == 0
    assert option(calls[0], "--model.init_from") == str(trained.pretrain / "checkpoints/best.ckpt")


def test_what_a_finished_stage_started_from_may_be_gone(
    fit_recipe: Fit, calls: list[list[str]], trained: Trained
) -> None:
    shutil.copytree(trained.pretrain, "other")
    start = ("--stages", "finetune", "--model.init_from", "other")
    assert fit_recipe(*start).code == 0
    shutil.rmtree("other")
    (RUN / "metrics.json").unlink()  # as if it had ended after the stage, before the test
    record = read(RUN / "finetune/metrics.json")
    (RUN / "finetune/metrics.json").write_text(json.dumps({k: v for k, v in record.items() if k != "test"}))
    assert fit_recipe(*start, "--ckpt_path", "last").code == 0
    assert [command[0] for command in calls] == ["test"]


def test_a_stage_alone_is_resumed_from_what_it_began_with(done: Path, fit_recipe: Fit, calls: list[list[str]]) -> None:
    assert fit_recipe("--stages", "finetune").code == 0
    run = Path("logs/tiny/version_1")
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "finetune")
    shutil.copytree(done / "pretrain", "logs/tiny/version_2/pretrain")  # newer, but not what it began with
    assert fit_recipe("--ckpt_path", "last").code == 0
    assert [command[0] for command in calls] == ["fit", "test"]
    assert option(calls[0], "--model.init_from") == str(done / "pretrain")


def test_a_stage_that_starts_from_nothing_does_whatever_the_user_names(
    done: Path, fit_recipe: Fit, calls: list[list[str]], configs: Configs, trained: Trained
) -> None:
    stages = [
        {"name": "pretrain", "config": "tiny/pretrain.yaml"},
        {"name": "scratch", "config": "tiny/finetune.yaml", "init_from": None},
        {"name": "finetune", "config": "tiny/finetune.yaml", "init_from": "pretrain"},
    ]
    configs.recipe.write_text(yaml.safe_dump({"stages": stages, "test": False}))
    start = ("--model.init_from", trained.pretrain)
    assert fit_recipe("--stages", "scratch,finetune", *start).code == 0
    starts = [option(command, "--model.init_from") for command in calls]
    assert starts == [None, str(trained.pretrain / "checkpoints/best.ckpt")]
    result = fit_recipe("--stages", "scratch", *start)
    assert result.code == 2
    assert f"--model.init_from {trained.pretrain}: none of the stages scratch starts from it" in result.err


def test_a_resumed_run_has_its_own_stages_and_tells_what_else_is_given(
    done: Path, fit_recipe: Fit, calls: list[list[str]]
) -> None:
    Path("configs/short.yaml").write_text("trainer: {limit_train_batches: 3}\n")
    of_one_stage = ("--config", "configs/short.yaml", "--model.objective", "Supervised")  # not of the pretraining
    assert fit_recipe("--stages", "finetune", *of_one_stage).code == 0
    run = Path("logs/tiny/version_1")
    for finished in (run / "metrics.json", run / "finetune/metrics.json"):
        finished.unlink()
    again = fit_recipe("--ckpt_path", "last", *of_one_stage)
    assert again.code == 0
    assert "resumed with other" not in again.out
    (run / "metrics.json").unlink()
    other = fit_recipe("--ckpt_path", "last", "--stages", "finetune")
    assert other.code == 0
    assert "resumed with other configs than before: ['configs/short.yaml'] -> []" in other.out
    (run / "metrics.json").unlink()
    refused = fit_recipe("--ckpt_path", "last", "--model.init_from", done / "finetune")
    assert refused.code == 2
    assert "logs/tiny/version_1, which is resumed, began from another; leave it out" in refused.err
    refused = fit_recipe("--ckpt_path", "last", "--stages", "pretrain")
    assert refused.code == 2
    assert "--stages pretrain: logs/tiny/version_1, which is resumed, has the stages finetune" in refused.err


@pytest.mark.parametrize("flags", [["--name", "tiny", "--ckpt_path", "last"], ["--run_dir", str(RUN)]], ids=" ".join)
def test_a_stage_alone_does_not_train_in_a_recipe_s_folder(flags: list[str], done: Path, fit: Fit) -> None:
    (done / "metrics.json").unlink()
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    one_line(fit(*flags), f"{done} holds the run of a recipe: go on with it by that")
    (done / ".lock").unlink(missing_ok=True)
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("start", [["target"], None], ids=["a stage put in between", "nothing"])
def test_a_run_is_not_resumed_by_a_recipe_that_starts_a_stage_from_something_else(
    start: list[str] | None, done: Path, fit_recipe: Fit, calls: list[list[str]], configs: Configs
) -> None:
    (done / "metrics.json").unlink()
    shutil.rmtree(done / "finetune")
    stages = [
        {"name": "pretrain", "config": "tiny/pretrain.yaml"},
        {"name": "target", "config": "tiny/pretrain.yaml"},
        {"name": "finetune", "config": "tiny/finetune.yaml", "init_from": start},
    ]
    configs.recipe.write_text(yaml.safe_dump({"stages": stages}))
    now = "target" if start else "nothing"
    expected = f"stage finetune of {configs.recipe} starts from {now}, and in {done} from pretrain"
    one_line(fit_recipe("--ckpt_path", "last"), expected)
    assert calls == []


def test_all_stages_options_are_shown(fit_recipe: Fit, calls: list[list[str]]) -> None:
    result = fit_recipe("--print_config", "--seed_everything", "5")
    assert result.code == 0
    shown = [yaml.safe_load(part) for part in re.split("# stage .*\n", result.out)[1:]]
    assert [options["model"]["stage"] for options in shown] == ["pretrain", "finetune"]
    assert [options["seed_everything"] for options in shown] == [5, 5]
    assert calls == []
    assert not Path("logs").exists()


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_launchers_processes_take_no_recipe(
    variable: str, fit_recipe: Fit, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "2")
    result = fit_recipe()
    assert result.code == 2
    assert "take the stages one by one" in result.err
    assert calls == []


def test_nothing_to_start_from_is_told(fit_recipe: Fit, calls: list[list[str]]) -> None:
    result = fit_recipe("--stages", "finetune")
    assert result.code == 2
    assert "no finished pretrain in logs/tiny" in result.err
    assert calls == []
    assert not Path("logs").exists()
