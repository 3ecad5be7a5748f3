"""The command line: what a stage leaves, how it is resumed and tested, how mistakes and bugs are told."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Command, Configs, Files, Fit, Trained, made, read, write_csv
from jsonargparse import Namespace
from kill import logged
from readmes import ROOT
from refusals import one_line
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_sft import load
from lit_sft.cli import LitCLI
from lit_sft.data.tokenization import Tokenizer
from lit_sft.evaluation.metrics import FIGURES
from lit_sft.evaluation.predictions import read_predictions
from lit_sft.optim import WarmupCosine
from lit_sft.options import values_of
from lit_sft.runs import held

RUN = Path("logs/tiny-finetune/version_0")


@pytest.fixture
def tuned(configs: Configs, trained: Trained) -> Path:
    """A finished fine-tuning as the first version of its name."""
    shutil.copytree(trained.finetune, RUN)
    return RUN


@pytest.fixture
def cut_off(tuned: Path) -> Path:
    """The same, as if it had been ended before its record was written."""
    (tuned / "metrics.json").unlink()
    return tuned


# ---- what a run leaves


def test_a_stage_leaves_a_complete_folder(fit: Fit) -> None:
    result = fit("--seed_everything", "5", "--trainer.log_every_n_steps", "2")
    assert result.code == 0
    files = {path.relative_to(RUN).as_posix() for path in RUN.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert files - events - {"hparams.yaml", ".lock"} == {
        *("config.yaml", "tokenizer.json", "metrics.json"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    }
    record = read(RUN / "metrics.json")
    figures = {"stage", "val", "tokens_per_second", "steps", "seed", "seconds", "versions"}
    assert set(record) == {*figures, "contamination"}
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


@pytest.mark.parametrize("name", ["overfit", "profile"])
def test_a_debug_config_does_what_it_says(name: str, fit: Fit) -> None:
    assert fit("--config", ROOT / f"configs/debug/{name}.yaml", "--run_dir", "run").code == 0
    if name == "profile":
        assert "train_dataloader_next" in Path("run/fit-profile.txt").read_text(encoding="utf-8")
    else:
        losses = list(logged(Path("run"))["train/loss"].values())
        assert losses[-1] < 0.1 * losses[0]


def test_the_saved_config_runs_the_same_again(fit: Fit, cli: Command) -> None:
    assert fit("--seed_everything", "5").code == 0
    assert cli("fit", "--config", RUN / "config.yaml", "--run_dir", "again").code == 0
    assert read(Path("again/metrics.json"))["val"] == read(RUN / "metrics.json")["val"]
    assert fit("--seed_everything", "6").code == 0
    assert read(RUN.with_name("version_1") / "metrics.json")["val"] != read(RUN / "metrics.json")["val"]


def test_the_record_holds_the_figures_of_the_best_checkpoint(fit: Fit, cli: Command) -> None:
    assert fit("--trainer.max_epochs=3", "--checkpoint.monitor=val/loss", "--checkpoint.mode=max").code == 0
    best = read(RUN / "metrics.json")["val"]["loss"]
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["epoch"]
    assert torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["epoch"] < last
    result = cli("validate", "--ckpt_path", RUN)
    assert float(re.search(r"val/loss\s+│\s+([\d.]+)", result.out)[1]) == pytest.approx(best)  # type: ignore[index]


@pytest.mark.parametrize("validations", ["1.0", "0"])
def test_a_finished_run_is_not_trained_further_without_more_to_do(validations: str, fit: Fit) -> None:
    quick = ("--trainer.limit_val_batches", validations, "--trainer.max_epochs")
    assert fit(*quick, "1").code == 0
    last = ("--ckpt_path", RUN / "checkpoints/last.ckpt")
    one_line(
        fit(*quick, "1", *last), "nothing was trained", "max_epochs 1, max_steps -1 or max_time is reached already"
    )
    assert made() == ["tiny-finetune/version_0"]
    assert fit(*quick, "2", *last).code == 0
    (RUN / "metrics.json").unlink()  # killed just before its end
    assert fit(*quick, "1", "--ckpt_path", "last").code == 0
    assert (RUN / "metrics.json").is_file()


def test_a_run_that_something_stops_tells_where_its_schedule_stands(fit: Fit) -> None:
    stopping = ("--early_stopping.patience", "1", "--early_stopping.min_delta", "100")  # after the second validation
    result = fit(*stopping, "--trainer.max_epochs", "4")
    steps = read(RUN / "metrics.json")["steps"]
    rate = WarmupCosine()(steps - 1, 2 * steps)  # of the last step
    told = f"ended at step {steps} of the {2 * steps} that the schedule is for, at {rate:.0%} of the rate"
    assert told in result.log
    assert "that the schedule is for" not in fit(*stopping, "--trainer.max_epochs", "2").log


def test_runs_are_named_and_counted(fit: Fit) -> None:
    for _ in range(2):
        assert fit("--trainer.limit_train_batches", "1").code == 0
    assert fit("--name", "mine", "--trainer.limit_train_batches", "1").code == 0
    assert made() == ["mine/version_0", "tiny-finetune/version_0", "tiny-finetune/version_1"]


@pytest.mark.parametrize(
    "flags",
    [["--trainer.fast_dev_run", "true"], ["--print_config"], ["--help"]],
    ids=["dry run", "print_config", "help"],
)
def test_what_trains_nothing_leaves_nothing(flags: list[str], fit: Fit) -> None:
    assert fit(*flags).code == 0
    assert not Path("logs").exists()


def test_a_run_may_log_elsewhere_or_nowhere(fit: Fit) -> None:
    quick = ("--trainer.limit_train_batches", "2", "--trainer.log_every_n_steps", "1")
    assert fit(*quick, "--trainer.logger", "false", "--name", "silent").code == 0
    assert not list(Path("logs/silent").rglob("events*"))
    assert fit(*quick, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "x", "--name", "csv").code == 0
    assert "val/loss" in Path("logs/csv/version_0/metrics.csv").read_text()
    assert not Path("x").exists()


def test_testing_and_resuming_leave_the_curves_of_a_csv_logger(fit: Fit, cli: Command) -> None:
    csv_logger = ("--trainer.log_every_n_steps", "1", "--trainer.logger", "CSVLogger")
    folder = Path("logs/csv/version_0")
    assert fit(*csv_logger, "--name", "csv").code == 0
    curves = (folder / "metrics.csv").read_text()
    assert cli("test", "--ckpt_path", folder, *csv_logger).code == 0
    (folder / "metrics.json").unlink()
    assert fit(*csv_logger, "--name", "csv", "--ckpt_path", "last", "--trainer.max_epochs", "2").code == 0
    assert (folder / "metrics.csv").read_text() == curves
    assert "test/loss" in (folder / "test-1/metrics.csv").read_text()
    assert "val/loss" in (folder / "fit-2/metrics.csv").read_text()


def test_a_fit_that_ends_before_a_validation_keeps_its_weights(fit: Fit, cli: Command) -> None:
    folder = Path("logs/tiny-finetune/version_0")
    assert fit("--trainer.check_val_every_n_epoch", "2").code == 0
    record = read(folder / "metrics.json")
    assert record["val"] == {}
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == record["steps"]
    assert cli("test", "--ckpt_path", folder).code == 0
    assert fit("--trainer.check_val_every_n_epoch", "2", "--trainer.max_epochs", "3", "--name", "odd").code == 0
    steps = {
        name: torch.load(f"logs/odd/version_0/checkpoints/{name}.ckpt", weights_only=True)["global_step"]
        for name in ("best", "last")
    }
    assert steps == {"best": 2 * record["steps"], "last": 3 * record["steps"]}


@pytest.mark.parametrize(("patience", "min_delta", "epochs"), [(1, 100, 2), (2, 100, 3), (1, -100, 4), (0, 100, 4)])
def test_early_stopping_ends_a_fit_by_its_patience_and_the_least_change(
    patience: int, min_delta: float, epochs: int, fit: Fit, trained: Trained
) -> None:
    """The first validation is always the best so far; no later loss is less by 100, and all are with -100."""
    options = (f"--early_stopping.patience={patience}", f"--early_stopping.min_delta={min_delta}")
    result = fit("--trainer.max_epochs=4", *options)
    assert result.code == 0
    an_epoch = read(trained.finetune / "metrics.json")["steps"] // 2
    assert read(RUN / "metrics.json")["steps"] == epochs * an_epoch
    told = f"early stopping: Monitored metric val/loss did not improve in the last {patience} records"
    assert (told in result.log) == (epochs < 4)


def test_as_many_of_the_last_checkpoints_are_kept_as_is_said(fit: Fit, trained: Trained) -> None:
    assert fit("--saving.every_steps=4", "--saving.keep=3").code == 0
    kept = {path.name: torch.load(path, weights_only=True)["global_step"] for path in RUN.glob("checkpoints/last*")}
    end = read(trained.finetune / "metrics.json")["steps"] // 2
    steps = [*range(4, end, 4), end]
    assert len(steps) > 3
    assert kept == dict(zip(("last.ckpt", "last-1.ckpt", "last-2.ckpt"), reversed(steps), strict=False))
    assert fit("--saving.every_steps=4", "--saving.keep=1", "--name=one").code == 0
    assert [path.name for path in Path("logs/one").glob("*/checkpoints/last*")] == ["last.ckpt"]


def test_groups_are_referenced_and_callbacks_appended(cli: Command, configs: Configs) -> None:
    options = yaml.safe_load(configs.finetune.read_text())
    for group in ("data", "model"):
        (configs.finetune.parent / f"{group}.yaml").write_text(yaml.safe_dump(options[group]))
        options[group] = f"{group}.yaml"
    timer = "lightning.pytorch.callbacks.Timer"
    options["trainer"]["callbacks+"] = [{"class_path": timer, "init_args": {"interval": "step"}}]
    configs.finetune.write_text(yaml.safe_dump(options))
    assert cli("fit", "--config", configs.finetune, "--trainer.limit_train_batches=1").code == 0
    callbacks = [callback["class_path"] for callback in read(RUN / "config.yaml")["trainer"]["callbacks"]]
    assert callbacks[0] == "lit_sft.callbacks.Throughput"
    assert callbacks[-1] == timer
    assert cli("test", "--ckpt_path", RUN).code == 0


# ---- testing


@pytest.mark.filterwarnings("ignore:transductive:")  # it is the text that was trained on
def test_a_language_model_is_tested_too_also_on_text_without_labels(
    trained: Trained, cli: Command, files: Files
) -> None:
    shutil.copytree(trained.pretrain, "run")
    for name, flags in (("metrics", ()), ("test-more", ("--data.test", files.unlabeled))):
        assert cli("test", "--ckpt_path", "run", *flags).code == 0
        assert set(read(Path(f"run/{name}.json"))["test"]) == set(FIGURES["lm"])


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_the_parser_reads_no_file_that_is_still_open(
    trained: Trained, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows would refuse it."""
    parse, seen = LitCLI._parse, []

    def look(of: LitCLI, arguments: list[str]) -> Namespace:
        configs = [Path(path).resolve() for path in values_of(arguments, "--config")]
        seen.append([path for path in configs if path in map(Path.resolve, Path("/proc/self/fd").iterdir())])
        return parse(of, arguments)

    monkeypatch.setattr(LitCLI, "_parse", look)
    assert cli("validate", "--ckpt_path", trained.finetune, "--print_config").code == 0
    assert seen == [[], []]


def test_labels_may_be_mapped_in_any_order(tuned: Path, cli: Command, files: Files) -> None:
    with files.test.open(newline="", encoding="utf-8") as file:
        rows = [(row["text"], {"sea": "0", "sky": "1", "wood": "2"}[row["label"]]) for row in csv.DictReader(file)]
    write_csv(Path("numbers.csv"), rows)
    names = '{"2": "wood", "0": "sea", "1": "sky"}'
    for options in (["--data.test", "numbers.csv", "--data.label_names", names], []):
        assert cli("test", "--ckpt_path", tuned, *options).code == 0
    assert read(tuned / "test-numbers.json")["test"] == read(tuned / "metrics.json")["test"]


@pytest.mark.filterwarnings("ignore:transductive:")  # another test file is wanted, and validation's is one
def test_a_test_is_put_into_the_record_once_and_never_overwritten(tuned: Path, cli: Command, files: Files) -> None:
    before = read(tuned / "metrics.json")
    assert cli("test", "--ckpt_path", tuned).code == 0
    record = read(tuned / "metrics.json")
    assert {name: value for name, value in record.items() if not name.startswith("test")} == before
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
    for name, figures in (("predictions", record), ("test-val", read(tuned / "test-val.json"))):
        kept = read_predictions(tuned / f"{name}.parquet")
        assert kept.documents.tolist() == list(range(30))
        assert (kept.predicted == kept.labels).mean() == pytest.approx(figures["test"]["accuracy"])
        assert kept.losses.mean() == pytest.approx(figures["test"]["loss"])
    assert (tuned / "test-last.parquet").is_file()
    assert cli("validate", "--ckpt_path", tuned).code == 0
    assert made() == ["tiny-finetune/version_0"]  # no new version for validate and test
    assert not Path("lightning_logs").exists()


def test_new_data_are_tested_without_the_training_data(fit: Fit, cli: Command, files: Files) -> None:
    shutil.copy(files.train, "mine.csv")
    assert fit("--data.labeled", "mine.csv", "--data.labels_per_class", "10").code == 0
    Path("mine.csv").unlink()
    folder = Path("logs/tiny-finetune/version_0")
    with files.test.open(newline="", encoding="utf-8") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    known = [row for row in rows if row[1] != "sky"]  # a class is missing
    write_csv(Path("new.csv"), known)
    assert cli("test", "--ckpt_path", folder, "--data.test", "new.csv").code == 0
    predicted = load(folder).predict([text for text, _ in known])
    right = [p is not None and p["label"] == label for p, (_, label) in zip(predicted, known, strict=True)]
    assert read(folder / "test-new.json")["test"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert cli("validate", "--ckpt_path", folder, "--data.val", "new.csv").code == 0
    write_csv(Path("new.csv"), [*rows, ("the owl", "city")])
    result = cli("test", "--ckpt_path", folder, "--data.test", "new.csv")
    assert result.code == 2
    assert "'city'" in result.err


def test_a_checkpoint_on_its_own_is_tested_without_a_trace(tuned: Path, cli: Command) -> None:
    alone = shutil.move(tuned / "checkpoints" / "best.ckpt", "alone.ckpt")
    shutil.rmtree("logs")
    result = cli("test", "--ckpt_path", alone)
    assert result.code == 0
    assert "test/accuracy" in result.out
    assert sorted(path.name for path in Path().iterdir()) == ["alone.ckpt", "configs"]


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
    one_line(result, message)
    assert read(tuned / "metrics.json") == before


# ---- starting and going on


def test_a_run_starts_from_the_weights_and_the_tokenizer_of_another(
    cli: Command, configs: Configs, trained: Trained
) -> None:
    result = cli("fit", "--config", configs.finetune, "--model.init_from", trained.pretrain)
    assert result.code == 0
    assert "loaded" in result.log
    assert (RUN / "tokenizer.json").read_text() == (trained.pretrain / "tokenizer.json").read_text()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--data.vocab_size", "290"], "data.vocab_size 290: not used, as the tokenizer of RUN is; .* or --model.re"),
        (["--data.tokenizer", "word", "--data.vocab_size", "290"], "tokenizer word, data.vocab_size 290: .*with it$"),
        (["--data.vocab_size", "8000"], None),  # the default isn't known to be asked for
    ],
)
def test_a_tokenizer_that_is_asked_for_beside_init_from_is_told_not_to_be_used(
    asked: list[str], told: str | None, cli: Command, configs: Configs, trained: Trained
) -> None:
    dry = ("--model.init_from", trained.pretrain, "--trainer.fast_dev_run", "true")
    result = cli("fit", "--config", configs.finetune, *dry, *asked)
    assert result.code == 0
    lines = [line for line in result.log.splitlines() if "not used" in line]
    path = str(trained.pretrain / "checkpoints/best.ckpt")
    assert [bool(re.search(str(told).replace("RUN", path), line)) for line in lines] == [True] * bool(told)


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
        (["--ckpt_path", ""], "--ckpt_path: an empty name"),  # and no new run
        (["--model.init_from", ""], "'' is no list of runs or checkpoints"),
        (["--ckpt_path", "last"], "--ckpt_path last: nothing to resume in logs/tiny-finetune (no run there)"),
        (["--ckpt_path", "last", "--run_dir", "absent"], "--ckpt_path last: nothing to resume in absent"),
        (["--run_dir", "PRETRAIN"], "holds a finished run"),
        (["--run_dir", "PRETRAIN", "--ckpt_path", "last"], "holds a finished run"),
    ],
)
def test_a_wrong_start_is_one_line_and_leaves_nothing(
    flags: list[str], message: str, fit: Fit, trained: Trained
) -> None:
    from lit_sft.data.tokenization import Tokenizer

    Path("other.json").write_text(Tokenizer.train(["the owl the oak"] * 3, "word", 20).to_json())
    result = fit(*[flag.replace("PRETRAIN", str(trained.pretrain)) for flag in flags])
    one_line(result, message.replace("PRETRAIN", str(trained.pretrain)))
    assert not Path("logs").exists() or made() == []


def test_a_group_of_options_may_be_a_file(fit: Fit) -> None:
    Path("stop.yaml").write_text("{monitor: val/accuracy, patience: 2}\n")
    Path("best.yaml").write_text("{monitor: val/accuracy}\n")
    assert fit("--early_stopping", "stop.yaml", "--checkpoint", "best.yaml", "--run_dir", "run").code == 0
    config = read(Path("run/config.yaml"))
    assert (config["early_stopping"]["patience"], config["checkpoint"]["monitor"]) == (2, "val/accuracy")


def test_a_function_is_no_encoder_of_the_command_line(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    make = "from lit_sft.models import Encoder, LSTMEncoder\n\ndef make(vocab_size: int) -> Encoder:\n"
    Path("own_function.py").write_text(make + "    return LSTMEncoder(vocab_size)\n")
    monkeypatch.syspath_prepend(Path.cwd())
    one_line(fit("--model.encoder", "own_function.make"), "--model.encoder", "give a class")


def test_a_run_with_lightnings_own_early_stopping_and_checkpoints_is_resumed(fit: Fit) -> None:
    """Its last checkpoint stands after the validation, before the end of the epoch."""
    stop = "{class_path: EarlyStopping, init_args: {monitor: val/loss, patience: 5}}"
    keep = "{class_path: ModelCheckpoint, init_args: {monitor: val/loss, save_top_k: -1, filename: '{step}'}}"
    command = ("--trainer.callbacks+", stop, "--trainer.callbacks+", keep, "--run_dir", "run")
    assert fit(*command).code == 0
    Path("run/metrics.json").unlink()
    done = fit(*command, "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert done.code == 0, done.err
    assert "could not find the monitored key" not in done.log + done.err


def test_one_callback_needs_no_list(fit: Fit) -> None:
    assert fit("--trainer.callbacks", "lightning.pytorch.callbacks.ModelSummary", "--run_dir", "run").code == 0


def test_a_new_run_takes_no_unfinished_ones_folder(fit: Fit, trained: Trained) -> None:
    """Its checkpoints would be written over."""
    shutil.copytree(trained.finetune, "run")
    Path("run/metrics.json").unlink()  # which a finished run has
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    one_line(fit("--run_dir", "run"), "--run_dir run holds a run that isn't finished", "--ckpt_path last")
    one_line(fit("--run_dir", "run", "--ckpt_path", trained.finetune), "--run_dir run holds a run that isn't finished")
    assert fit("--run_dir", "run", "--trainer.fast_dev_run", "true").code == 0  # which writes nothing
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    assert fit("--run_dir", "run", "--ckpt_path", "last", "--trainer.max_epochs", "3").code == 0


@pytest.mark.parametrize("more", [["--ckpt_path", "last"], []], ids=["resumed", "new"])
def test_two_processes_do_not_train_in_one_folder(more: list[str], fit: Fit, trained: Trained) -> None:
    Path("run").mkdir()
    if more:
        shutil.copytree(trained.finetune, "run", dirs_exist_ok=True)
        Path("run/metrics.json").unlink()
    with held(Path("run")):
        before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
        one_line(fit("--run_dir", "run", *more), "run: another process is training in it")
        assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    assert fit("--run_dir", "run", *more).code == 0


def test_a_folder_with_nothing_to_resume_is_not_made(fit: Fit) -> None:
    one_line(fit("--run_dir", "typo/run", "--ckpt_path", "last"), "--ckpt_path last: nothing to resume in typo/run")
    assert not Path("typo").exists()


@pytest.mark.parametrize("there", [[], ["out"], ["out", "out/run"], ["out", "out/run", "out/run/notes.txt"]], ids=len)
def test_a_mistake_takes_back_the_folders_that_it_made_and_no_others(there: list[str], fit: Fit) -> None:
    for name in there:
        Path(name).touch() if Path(name).suffix else Path(name).mkdir()
    before = set(Path().rglob("*"))
    weights = ("--model.objective", "Supervised", "--model.objective.class_weights", "[1, 1, 1, 1, 1, 1, 1, 1, 1]")
    one_line(fit("--run_dir", "out/run", *weights), "class_weights has 9 values")  # when there is a folder
    after = set(Path().rglob("*"))
    assert after > before if "out/run/notes.txt" in there else after == before  # nothing goes from a folder of files


def test_the_data_are_looked_at_before_the_weights(fit: Fit) -> None:
    Path("one.csv").write_text("text,label\nthe owl,wood\n")
    result = fit("--data.labeled", "one.csv", "--model.init_from", "absent")
    assert "one.csv: a classifier needs two labels or more" in result.err


def test_a_run_goes_on_in_its_folder_with_what_the_user_changed(
    cut_off: Path, fit: Fit, trained: Trained, begun: list[int]
) -> None:
    steps = read(trained.finetune / "metrics.json")["steps"]
    config = (cut_off / "config.yaml").read_text()
    result = fit("--ckpt_path", "last", "--trainer.max_epochs", "4", "--model.optimizer.lr", "0.005")
    assert result.code == 0
    assert "trainer.max_epochs: 2 -> 4" in result.log
    assert "0.03 -> 0.005" in result.log
    assert begun == [steps]
    assert read(cut_off / "metrics.json")["steps"] == 2 * steps
    optimizer = torch.load(cut_off / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert {group["initial_lr"] for group in optimizer["param_groups"]} == {0.005}
    assert (cut_off / "config.yaml").read_text() == config
    assert read(cut_off / "config.resume.yaml")["trainer"]["max_epochs"] == 4
    assert made() == ["tiny-finetune/version_0"]


def test_a_moved_run_keeps_its_best_checkpoint_when_it_goes_on(cut_off: Path, fit: Fit) -> None:
    best = torch.load(cut_off / "checkpoints/best.ckpt", weights_only=True)["global_step"]
    result = fit("--ckpt_path", "last", "--trainer.max_epochs", "3", "--model.optimizer.lr", "0.0")  # no better, so
    assert result.code == 0
    assert torch.load(cut_off / "checkpoints/best.ckpt", weights_only=True)["global_step"] == best
    assert torch.load(cut_off / "checkpoints/last.ckpt", weights_only=True)["global_step"] > best


def test_a_run_without_a_checkpoint_starts_again_in_its_folder(cut_off: Path, fit: Fit) -> None:
    shutil.rmtree(cut_off / "checkpoints")
    assert fit("--ckpt_path", "last").code == 0
    assert (cut_off / "metrics.json").is_file()
    assert made() == ["tiny-finetune/version_0"]


@pytest.mark.parametrize("named", ["checkpoints/last.ckpt", ""])  # or the run: from its best checkpoint
def test_a_named_checkpoint_goes_on_in_a_new_version(named: str, tuned: Path, fit: Fit, begun: list[int]) -> None:
    before = {path: path.stat().st_mtime_ns for path in tuned.rglob("*")}
    assert fit("--ckpt_path", tuned / named, "--trainer.max_epochs", "3").code == 0
    assert made() == ["tiny-finetune/version_0", "tiny-finetune/version_1"]
    assert {path: path.stat().st_mtime_ns for path in tuned.rglob("*")} == before
    record = read(Path("logs/tiny-finetune/version_1/metrics.json"))
    steps = read(tuned / "metrics.json")["steps"]
    name = "last" if named else "best"
    assert begun == [torch.load(tuned / f"checkpoints/{name}.ckpt", weights_only=True)["global_step"]]
    assert record["steps"] == steps * 3 // 2
    assert Path("logs/tiny-finetune/version_1/checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.stage", "pretrain"], "is a finetune checkpoint and model.stage is pretrain"),
        (["--model.encoder.hidden_size=13"], "the checkpoint doesn't fit the model"),
        (["--model.pooling", "mean"], "the checkpoint doesn't fit the model"),
        (["--data.vocab_size", "400"], "--data.vocab_size 400 conflicts with"),
        (["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"], "optimizer SGD can't go on with"),
        (["--data.tokenizer", "word"], "--data.tokenizer word conflicts with"),
        (["--data.lowercase", "true"], "--data.lowercase True conflicts with"),
        (["--data.replace", '{"x": ""}'], "--data.replace {'x': ''} conflicts with"),
        (["--data.val", "null"], "it would validate on documents that it was trained on"),
    ],
)
def test_a_conflict_on_resume_is_one_line_and_harms_nothing(
    flags: list[str], message: str, cut_off: Path, fit: Fit
) -> None:
    before = {path: path.read_bytes() for path in cut_off.rglob("*") if path.is_file()}
    result = fit("--ckpt_path", "last", *flags)
    one_line(result, message)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("option", "told"), [("labeled", "the run goes on with it"), ("val", "its best validation was of others")]
)
def test_a_resumed_run_tells_that_its_sources_have_changed(
    option: str, told: str, cut_off: Path, fit: Fit, files: Files
) -> None:
    text = (files.train if option == "labeled" else files.val).read_text(encoding="utf-8")
    Path("edited.csv").write_text(text + text.splitlines()[1] + "\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=rf"hold other text than .*last\.ckpt was fed with: {told}"):
        assert fit("--ckpt_path", "last", "--trainer.max_epochs", "3", f"--data.{option}", "edited.csv").code == 0


def test_another_tokenizer_file_on_resume_is_refused(cut_off: Path, fit: Fit, files: Files) -> None:
    Path("other.json").write_text(Tokenizer.train([files.train.read_text()], "bpe", 280).to_json())
    result = fit("--ckpt_path", "last", "--data.tokenizer", "other.json")
    assert result.code == 2
    assert "--data.tokenizer other.json doesn't fit" in result.err
    assert fit("--ckpt_path", "last", "--data.tokenizer", cut_off / "tokenizer.json").code == 0


def test_a_classifier_of_other_labels_is_left_behind(trained: Trained, fit: Fit) -> None:
    """Also one of the same number of them: its outputs mean something else."""
    turned = json.dumps({name: name for name in ("wood", "sky", "sea")})
    for flags, fresh in ((), 0), (("--data.label_names", turned), 2):
        result = fit("--model.init_from", trained.finetune, *flags, "--trainer.max_steps", "1")
        assert f", {fresh} start fresh" in result.log
