"""The command line: what a stage leaves, how it is resumed and tested, how mistakes and bugs are told."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Command, Configs, Files, Result, Trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import UserError
from lit_sft.metrics import FIGURES

RUN = Path("logs/tiny-finetune/version_0")


@pytest.fixture
def fit(cli: Command, configs: Configs) -> Callable[..., Result]:
    """``fit("--flag", ...)``: the tiny fine-tuning, from scratch."""
    return lambda *arguments: cli("fit", "--config", configs.finetune, *arguments)


@pytest.fixture
def tuned(configs: Configs, trained: Trained) -> Path:
    """A finished fine-tuning as the first version of its name."""
    shutil.copytree(trained.finetune, RUN)
    for path in RUN.glob("test-*.json"):
        path.unlink()
    record = read(RUN / "metrics.json")
    record.pop("test", None)
    (RUN / "metrics.json").write_text(json.dumps(record))
    return RUN


@pytest.fixture
def cut_off(tuned: Path) -> Path:
    """The same, as if it had been ended before its record was written."""
    (tuned / "metrics.json").unlink()
    return tuned


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())


def made() -> list[str]:
    """Every folder of a run that there is."""
    return sorted(path.relative_to("logs").as_posix() for path in Path("logs").glob("*/*"))


# ---- what a run leaves


def test_a_stage_leaves_a_complete_folder(fit: Callable[..., Result]) -> None:
    result = fit("--seed_everything", "5", "--trainer.log_every_n_steps", "2")
    assert result.code == 0
    files = {path.relative_to(RUN).as_posix() for path in RUN.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert files - events - {"hparams.yaml"} == {
        *("config.yaml", "tokenizer.json", "metrics.json"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    }
    record = read(RUN / "metrics.json")
    assert set(record) == {"stage", "val", "tokens_per_second", "steps", "seed", "seconds", "versions"}
    assert record["seed"] == 5
    assert record["stage"] == "finetune"
    config = read(RUN / "config.yaml")
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.03
    assert config["data"]["max_length"] == 32
    (event,) = events
    accumulator = EventAccumulator(str(RUN / event))
    accumulator.Reload()
    tags = accumulator.Tags()
    assert {"train/loss", "val/loss", "val/accuracy", "val/macro_f1", "perf/tokens_per_second"} <= set(tags["scalars"])
    assert any(tag.startswith("lr") for tag in tags["scalars"])
    assert "config/text_summary" in tags["tensors"]
    assert f"test --ckpt_path {RUN}" in result.log


def test_the_saved_config_runs_the_same_again(fit: Callable[..., Result], cli: Command) -> None:
    assert fit("--seed_everything", "5").code == 0
    assert cli("fit", "--config", RUN / "config.yaml", "--run_dir", "again").code == 0
    assert read(Path("again/metrics.json"))["val"] == read(RUN / "metrics.json")["val"]
    assert fit("--seed_everything", "6").code == 0
    assert read(RUN.with_name("version_1") / "metrics.json")["val"] != read(RUN / "metrics.json")["val"]


def test_every_figure_can_be_monitored_by_its_name(trained: Trained) -> None:
    figures = {folder: set(read(folder / "metrics.json")["val"]) for folder in (trained.pretrain, trained.finetune)}
    assert figures[trained.pretrain] == set(FIGURES["lm"])
    assert {name for name in figures[trained.finetune] if "/" not in name} == set(FIGURES["classifier"])


def test_the_record_holds_the_figures_of_the_best_checkpoint(fit: Callable[..., Result], cli: Command) -> None:
    assert fit("--trainer.max_epochs=4", "--model.optimizer.lr=0.3", "--checkpoint.monitor", "val/loss").code == 0
    best = read(RUN / "metrics.json")["val"]["loss"]
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["epoch"]
    assert torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["epoch"] < last
    result = cli("validate", "--ckpt_path", RUN)
    assert float(re.search(r"val/loss\s+│\s+([\d.]+)", result.out)[1]) == pytest.approx(best)  # type: ignore[index]


def test_runs_are_named_and_counted(fit: Callable[..., Result]) -> None:
    for _ in range(2):
        assert fit("--trainer.limit_train_batches", "1").code == 0
    assert fit("--name", "mine", "--trainer.limit_train_batches", "1").code == 0
    assert made() == ["mine/version_0", "tiny-finetune/version_0", "tiny-finetune/version_1"]


@pytest.mark.parametrize(
    "flags",
    [["--trainer.fast_dev_run", "true"], ["--print_config"], ["--help"]],
    ids=["dry run", "print_config", "help"],
)
def test_what_trains_nothing_leaves_nothing(flags: list[str], fit: Callable[..., Result]) -> None:
    assert fit(*flags).code == 0
    assert not Path("logs").exists()


def test_a_run_may_log_elsewhere_or_nowhere(fit: Callable[..., Result]) -> None:
    quick = ("--trainer.limit_train_batches", "2", "--trainer.log_every_n_steps", "1")
    assert fit(*quick, "--trainer.logger", "false", "--name", "silent").code == 0
    assert not list(Path("logs/silent").rglob("events*"))
    assert fit(*quick, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "x", "--name", "csv").code == 0
    assert "val/loss" in Path("logs/csv/version_0/metrics.csv").read_text()
    assert not Path("x").exists()


def test_groups_are_referenced_and_callbacks_appended(cli: Command, configs: Configs) -> None:
    options = yaml.safe_load(configs.finetune.read_text())
    for group in ("data", "model"):
        (configs.finetune.parent / f"{group}.yaml").write_text(yaml.safe_dump(options[group]))
        options[group] = f"{group}.yaml"
    options["trainer"]["callbacks+"] = [{"class_path": "lightning.pytorch.callbacks.Timer"}]
    configs.finetune.write_text(yaml.safe_dump(options))
    assert cli("fit", "--config", configs.finetune, "--trainer.limit_train_batches=1").code == 0
    callbacks = [callback["class_path"] for callback in read(RUN / "config.yaml")["trainer"]["callbacks"]]
    assert callbacks[0] == "lit_sft.callbacks.Throughput"
    assert callbacks[-1] == "lightning.pytorch.callbacks.Timer"
    assert cli("test", "--ckpt_path", RUN).code == 0


# ---- testing


def test_a_test_is_put_into_the_record_once_and_never_overwritten(tuned: Path, cli: Command, files: Files) -> None:
    before = read(tuned / "metrics.json")
    assert cli("test", "--ckpt_path", tuned).code == 0
    record = read(tuned / "metrics.json")
    assert {name: value for name, value in record.items() if name != "test"} == before
    assert {"accuracy", "macro_f1", "loss", "auroc", "mcc", "ece", "precision/sea", "recall/wood"} <= set(
        record["test"]
    )
    result = cli("test", "--ckpt_path", tuned)
    assert result.code == 0
    assert "already" in result.log
    assert cli("test", "--ckpt_path", tuned, "--data.test", files.val).code == 0
    assert cli("test", "--ckpt_path", tuned / "checkpoints/last.ckpt").code == 0
    assert read(tuned / "test-val.json")["data"]["test"] == str(files.val)
    assert (tuned / "test-last.json").is_file()
    assert read(tuned / "metrics.json") == record
    assert cli("validate", "--ckpt_path", tuned).code == 0
    assert made() == ["tiny-finetune/version_0"]  # no new version for validate and test
    assert not Path("lightning_logs").exists()


def test_a_checkpoint_on_its_own_is_tested_without_a_trace(tuned: Path, cli: Command) -> None:
    alone = shutil.move(tuned / "checkpoints" / "best.ckpt", "alone.ckpt")
    shutil.rmtree("logs")
    result = cli("test", "--ckpt_path", alone)
    assert result.code == 0
    assert "test/accuracy" in result.out
    assert sorted(path.name for path in Path().iterdir()) == ["alone.ckpt", "configs"]


def test_a_language_model_is_tested_too(trained: Trained, cli: Command, tmp_path: Path) -> None:
    run = shutil.copytree(trained.pretrain, tmp_path / "run")
    assert cli("test", "--ckpt_path", run).code == 0
    assert set(read(run / "metrics.json")["test"]) == set(FIGURES["lm"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test"], "test needs --ckpt_path RUN_OR_CKPT"),
        (["validate", "--ckpt_path"], "validate needs --ckpt_path"),
        (["test", "--ckpt_path", "absent"], "absent: no such run or checkpoint (from --ckpt_path)"),
        (["test", "--ckpt_path", str(RUN), "--config", "configs/tiny.yaml"], "is a recipe: test takes"),
        (["test", "--ckpt_path", str(RUN), "--config", "absent.yaml"], "--config absent.yaml: no such file"),
        (["test", "--ckpt_path", str(RUN), "--data.tets", "x.csv"], "no option data.tets; did you mean data.test?"),
        (["test", "--ckpt_path", str(RUN), "--data.test", "x.csv"], "x.csv: no such file"),
        (["test", "--ckpt_path", str(RUN), "--model.encoder.hidden_size", "9"], "the checkpoint doesn't fit the model"),
        (["test", "--ckpt_path", str(RUN), "--model.encoder.hiden_size", "9"], "did you mean hidden_size?"),
        (["test", "--ckpt_path", "configs/tiny.yaml"], "not a checkpoint, or a damaged one"),
    ],
)
def test_a_mistake_in_testing_is_one_line(arguments: list[str], message: str, tuned: Path, cli: Command) -> None:
    before = read(tuned / "metrics.json")
    result = cli(*arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert read(tuned / "metrics.json") == before


# ---- starting and going on


def test_a_run_starts_from_the_weights_and_the_tokenizer_of_another(
    cli: Command, configs: Configs, trained: Trained
) -> None:
    flags = ("--model.init_from", trained.pretrain, "--data.vocab_size", "290")  # the pretraining's tokenizer holds
    result = cli("fit", "--config", configs.finetune, *flags)
    assert result.code == 0
    assert "loaded" in result.log
    assert (RUN / "tokenizer.json").read_text() == (trained.pretrain / "tokenizer.json").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.init_from", "absent"], "absent: no such run or checkpoint (from --model.init_from)"),
        (["--model.init_from", "PRETRAIN", "--model.encoder.hidden_size=13"], "the encoder doesn't fit"),
        (
            ["--model.init_from", "PRETRAIN", "--data.tokenizer", "other.json"],
            "--data.tokenizer other.json doesn't fit",
        ),
        (["--ckpt_path", "PRETRAIN"], "--model.init_from PRETRAIN/checkpoints/best.ckpt"),  # the right command
        (["--ckpt_path", "absent.ckpt"], "absent.ckpt: no such run or checkpoint (from --ckpt_path)"),
        (["--ckpt_path", "last"], "--ckpt_path last: nothing to resume in logs/tiny-finetune (no run there)"),
        (["--ckpt_path", "last", "--run_dir", "absent"], "--ckpt_path last: nothing to resume in absent"),
        (["--run_dir", "PRETRAIN"], "holds a finished run"),
    ],
)
def test_a_wrong_start_is_one_line_and_leaves_nothing(
    flags: list[str], message: str, fit: Callable[..., Result], trained: Trained, files: Files, cli: Command
) -> None:
    from lit_sft.data.tokenization import Tokenizer

    Path("other.json").write_text(Tokenizer.train(["the owl the oak"] * 3, "word", 20).to_json())
    result = fit(*[flag.replace("PRETRAIN", str(trained.pretrain)) for flag in flags])
    assert result.code == 2
    assert message.replace("PRETRAIN", str(trained.pretrain)) in result.err
    assert result.err.count("\n") == 1
    assert not Path("logs").exists() or made() == []


def test_the_data_are_looked_at_before_the_weights(fit: Callable[..., Result]) -> None:
    Path("one.csv").write_text("text,label\nthe owl,wood\n")
    result = fit("--data.labeled", "one.csv", "--model.init_from", "absent")
    assert "one.csv: a classifier needs two labels or more" in result.err


def test_a_run_goes_on_in_its_folder_with_what_the_user_changed(
    cut_off: Path, fit: Callable[..., Result], trained: Trained
) -> None:
    steps = read(trained.finetune / "metrics.json")["steps"]
    config = (cut_off / "config.yaml").read_text()
    result = fit("--ckpt_path", "last", "--trainer.max_epochs", "4", "--model.optimizer.lr", "0.005")
    assert result.code == 0
    assert "trainer.max_epochs: 2 -> 4" in result.log
    assert "0.03 -> 0.005" in result.log
    assert read(cut_off / "metrics.json")["steps"] == 2 * steps
    optimizer = torch.load(cut_off / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert {group["initial_lr"] for group in optimizer["param_groups"]} == {0.005}
    assert (cut_off / "config.yaml").read_text() == config
    assert read(cut_off / "config.resume.yaml")["trainer"]["max_epochs"] == 4
    assert made() == ["tiny-finetune/version_0"]


def test_a_moved_run_keeps_its_best_checkpoint_when_it_goes_on(cut_off: Path, fit: Callable[..., Result]) -> None:
    best = torch.load(cut_off / "checkpoints/best.ckpt", weights_only=True)["global_step"]
    result = fit("--ckpt_path", "last", "--trainer.max_epochs", "3", "--model.optimizer.lr", "5.0")  # can only be worse
    assert result.code == 0
    assert torch.load(cut_off / "checkpoints/best.ckpt", weights_only=True)["global_step"] == best
    assert torch.load(cut_off / "checkpoints/last.ckpt", weights_only=True)["global_step"] > best


def test_a_run_without_a_checkpoint_starts_again_in_its_folder(cut_off: Path, fit: Callable[..., Result]) -> None:
    shutil.rmtree(cut_off / "checkpoints")
    assert fit("--ckpt_path", "last").code == 0
    assert (cut_off / "metrics.json").is_file()
    assert made() == ["tiny-finetune/version_0"]


def test_a_named_checkpoint_goes_on_in_a_new_version(tuned: Path, fit: Callable[..., Result]) -> None:
    before = {path: path.stat().st_mtime_ns for path in tuned.rglob("*")}
    assert fit("--ckpt_path", tuned / "checkpoints/last.ckpt", "--trainer.max_epochs", "3").code == 0
    assert made() == ["tiny-finetune/version_0", "tiny-finetune/version_1"]
    assert {path: path.stat().st_mtime_ns for path in tuned.rglob("*")} == before
    record = read(Path("logs/tiny-finetune/version_1/metrics.json"))
    assert record["steps"] == read(tuned / "metrics.json")["steps"] * 3 // 2
    assert "checkpoints/best.ckpt" in {
        p.relative_to("logs/tiny-finetune/version_1").as_posix()
        for p in Path("logs/tiny-finetune/version_1").rglob("*")
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.stage", "pretrain"], "is a finetune checkpoint and model.stage is pretrain"),
        (["--model.encoder.hidden_size=13"], "the checkpoint doesn't fit the model"),
        (["--model.pooling", "mean"], "the checkpoint doesn't fit the model"),
        (["--data.vocab_size", "400"], "--data.vocab_size 400 conflicts with"),
        (["--data.tokenizer", "word"], "--data.tokenizer word conflicts with"),
        (["--data.lowercase", "true"], "--data.lowercase True conflicts with"),
    ],
)
def test_a_conflict_on_resume_is_one_line_and_harms_nothing(
    flags: list[str], message: str, cut_off: Path, fit: Callable[..., Result]
) -> None:
    result = fit("--ckpt_path", "last", *flags)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert (cut_off / "checkpoints/last.ckpt").is_file()
    assert fit("--ckpt_path", "last", "--trainer.max_epochs", "3").code == 0


# ---- options


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainer.max_epoch", "3"], "no option trainer.max_epoch; did you mean trainer.max_epochs?"),
        (["--trainer.max_epoch=3"], "did you mean trainer.max_epochs?"),
        (["--model.stag", "finetune"], "did you mean model.stage?"),
        (["--checkpoint.monitr", "val/loss"], "did you mean checkpoint.monitor?"),
        (
            ["--model.encoder.hiden_size", "3"],
            "no option model.encoder.hiden_size of lit_sft.models.LSTMEncoder; did you",
        ),
        (["--model.optimizer.learning_rate", "3"], "it has lr, betas"),
        (["--model.objective.label_smoothing", "0.1"], "--model.objective: name its class first"),
        (["--model.encoder", "GRUEncodr"], "--model.encoder GRUEncodr: no such class"),
        (["--model.encoder", "absent.module.Encoder"], "--model.encoder absent.module.Encoder: no such class"),
        (["--model.encoder", "torch.nn.Linear"], "torch.nn.Linear: not a subclass of Encoder"),
        (["--model.schedule", "WarmupCosin"], "did you mean WarmupCosine?"),
        (["--model.optimizer", "torch.optim.AdmW"], "did you mean AdamW?"),
        (["--trainer.logger", "CSVLoger"], "did you mean CSVLogger?"),
        (["--trainer.callbacks+", "RichProgresBar"], "did you mean RichProgressBar?"),
        (
            ["--model.stage", "finetun"],
            "--model.stage finetun: expected 'pretrain', 'finetune'; did you mean finetune?",
        ),
        (["--trainer.max_epochs", "many"], "--trainer.max_epochs many: expected int or null"),
        (["--data.vocab_size=1.5"], "--data.vocab_size 1.5: expected int"),
        (["--model.optimizer.lr", "fast"], "--model.optimizer.lr fast: expected float"),
        (["--trainer.precision", "16-mixed"], "--trainer.precision 16-mixed needs a GPU"),
        (["--trainer.accelerator", "cuda"], "trainer: "),
        (["--seed_everything", "-1"], "--seed_everything -1 must be at least 0"),
        (["--stages", "finetune"], "--stages is an option of recipes"),
        (["--data", "absent.yaml"], "absent.yaml"),
        (["--name"], "--name: expected one argument"),
        (["--config"], "--config: expected one argument"),
        (["superfluous"], "unrecognized arguments: superfluous"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the mistakes of a machine without a GPU are among them")
def test_a_mistaken_option_is_named_with_the_right_one(
    flags: list[str], message: str, fit: Callable[..., Result]
) -> None:
    result = fit(*flags)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not Path("logs").exists() or made() == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer.max_epoch", 3, "no option trainer.max_epoch; did you mean trainer.max_epochs?"),
        ("modle.stage", "finetune", "no option modle.stage; did you mean model.stage?"),
        ("data.label", "x", "no option data.label; did you mean data.labeled?"),
        ("model.encoder.init_args.hiden_size", 3, "did you mean hidden_size?"),
        ("model.optimizer.init_args.weigth_decay", 3, "did you mean weight_decay?"),
        ("model.objective", {"class_path": "Supervised", "init_args": {"label_smothing": 1}}, "mean label_smoothing?"),
        ("trainer.callbacks", [{"class_path": "Throughput", "init_args": {"warmpu": 3}}], "did you mean warmup?"),
        ("trainer.callbacks+", [{"class_path": "lit_sft.callbacks.Througput"}], "did you mean Throughput?"),
        ("data", [1], "data must hold options, not [1]"),
        ("trainer", None, "trainer must hold options, not None"),
        ("data", "absent.yaml", "absent.yaml"),
    ],
)
def test_a_mistaken_key_in_yaml_is_named_with_the_right_one(
    key: str, value: Any, message: str, cli: Command, configs: Configs
) -> None:
    options = yaml.safe_load(configs.finetune.read_text())
    *parents, last = key.split(".")
    group = options
    for parent in parents:
        group = group.setdefault(parent, {})
    group[last] = value
    configs.finetune.write_text(yaml.safe_dump(options))
    result = cli("fit", "--config", configs.finetune)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not Path("logs").exists()


# ---- the commands themselves


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_usage_names_every_command(arguments: list[str], cli: Command) -> None:
    result = cli(*arguments)
    assert result.code == 0
    assert all(f"  {command} " in result.out for command in ("fit", "validate", "test", "predict", "env"))


def test_an_unknown_command_is_named_with_the_right_one(cli: Command) -> None:
    result = cli("fti")
    assert result.code == 2
    assert result.err == "lit_sft: error: no command 'fti': did you mean fit? python -m lit_sft --help lists them\n"


def test_env_tells_what_a_bug_report_needs(cli: Command, shared_cache: Path) -> None:
    result = cli("env")
    assert result.code == 0
    assert all(name in result.out for name in ("python", "torch", "lightning", "cores", "precision", str(shared_cache)))


def test_debug_shows_the_traceback_of_a_mistake(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_SFT_DEBUG", "1")
    result = cli("fit", "--config", "absent.yaml")
    assert result.code == 2
    assert result.err.startswith("Traceback")
    assert result.err.endswith("lit_sft: error: --config absent.yaml: no such file\n")
    monkeypatch.setenv("LIT_SFT_DEBUG", "0")
    assert "Traceback" not in cli("fit", "--config", "absent.yaml").err


@pytest.mark.parametrize("error", [RuntimeError, ValueError, KeyError, TypeError, AttributeError])
def test_a_bug_of_ours_is_not_hidden(
    error: type[Exception], fit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise error("a bug")

    monkeypatch.setattr(TextDataModule, "train_dataloader", bug)
    with pytest.raises(error, match="a bug"):
        fit()


def test_an_interrupted_run_can_go_on(fit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TextDataModule, "val_dataloader", interrupt)
        assert fit().code != 0
    assert not (RUN / "metrics.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(TextDataModule, "check_sources", interrupt)
        result = fit()
        assert result.code == 130
        assert "Traceback" not in result.err
    assert fit("--ckpt_path", "last").code == 0
    assert (RUN / "metrics.json").exists()


def test_a_mistake_in_a_real_process_is_one_line_on_standard_error(configs: Configs) -> None:
    command = [sys.executable, "-m", "lit_sft", "fit", "--config", str(configs.finetune)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--data.labels_per_class", "41"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("lit_sft: error: --data.labels_per_class 41: class 'sea' has 40 documents")
    assert done.stderr.count("\n") == 1
    assert not Path("logs").exists()


def test_a_user_error_is_told_in_one_line_however_it_was_written(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake(*_: object) -> str:
        raise UserError("first line\n   second line")

    monkeypatch.setattr("lit_sft.environment.report", mistake)
    assert cli("env").err == "lit_sft: error: first line second line\n"
