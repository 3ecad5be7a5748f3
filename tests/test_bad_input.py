"""Bad input on the command line: exit code 2, one clear line that names the thing, and nothing left behind."""

import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Command, Fit, Trained, labeled_rows, write_csv
from lightning.fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from refusals import one_line, refused

from lit_sft.errors import UserError
from lit_sft.processes import check_processes
from lit_sft.trainer_checks import checked_data

GOOD = "text,label\n" + "".join(f"{text},{label}\n" for text, label in labeled_rows(4, 9))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("one.csv", b"text,label\nthe owl,wood\nthe fox,wood\n", ["one.csv: a classifier needs two", "only 'wood'"]),
        ("missing.csv", b"text,label\nthe owl,wood\nthe sail,\n", ["missing.csv, row 3: no label"]),
        ("data.xyz", b"the owl\n", ["data.xyz: unknown suffix '.xyz'", ".csv"]),
        ("few.csv", b"text,label\nthe owl,wood\nthe sail,sea\n", ["val"]),
    ],
)
def test_a_labeled_file_that_can_not_be_learnt_from(name: str, content: bytes, parts: list[str], fit: Fit) -> None:
    Path(name).write_bytes(content)
    alone = ["--data.val", "null", "--data.test", "null"] if name == "few.csv" else []
    refused(fit("--data.labeled", name, *alone), *parts)


@pytest.mark.parametrize("option", ["labeled", "unlabeled", "val", "test"])
def test_a_source_that_is_not_there_or_a_folder(option: str, fit: Fit) -> None:
    Path("folder").mkdir()
    Path("train.csv").write_text(GOOD)
    refused(fit(f"--data.{option}", "folder"), "folder")
    refused(fit(f"--data.{option}", "trian.csv"), "trian.csv: no such file; did you mean 'train.csv'?")


def test_a_source_that_may_not_be_read(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("secret.csv").write_text(GOOD)
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "secret.csv":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    refused(fit("--data.labeled", "secret.csv"), "secret.csv: can't be read: Permission denied")


@pytest.mark.parametrize("option", ["val", "test"])
def test_a_label_that_training_does_not_know(option: str, fit: Fit) -> None:
    Path("other.csv").write_text(GOOD + "the car on the street,road\n")
    refused(fit(f"--data.{option}", "other.csv"), "other.csv, row 14", "'road'", "sea, sky, wood")


@pytest.mark.parametrize("option", ["unlabeled", "val", "test"])
def test_undecodable_bytes_are_named_by_row(option: str, fit: Fit) -> None:
    Path("bytes.csv").write_bytes(GOOD.encode() + b"the \xe9t\xe9 owl,wood\n")
    refused(fit(f"--data.{option}", "bytes.csv"), "bytes.csv, row 14", "encoding")
    assert fit(f"--data.{option}", "bytes.csv", "--data.encoding", "latin-1").code == 0


def test_blank_texts_are_counted_told_once_and_left_out(fit: Fit, cli: Command) -> None:
    write_csv(Path("blank.csv"), [*labeled_rows(8, 7), (" ", "sea"), ("", "wood"), ("\t\n", "sky")])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit("--data.labeled", "blank.csv")
    assert result.code == 0
    told = [str(warning.message) for warning in caught if "blank" in str(warning.message)]
    assert told == ["blank.csv: 3 of 27 texts are blank and were left out"]
    assert "documents: 24 train" in result.log
    where = ("--ckpt_path", "logs/tiny-finetune/version_0", "--input", "blank.csv", "--output", "-")
    rows = [json.loads(line) for line in cli("predict", *where).out.splitlines()]
    assert [row is None for row in rows] == [False] * 24 + [True] * 3


def test_labels_other_than_the_checkpoints(cli: Command, trained: Trained) -> None:
    Path("other.csv").write_text("text,label\n" + "the car,road\nthe nut,food\n" * 9)
    flags = ("--data.labeled", "other.csv", "--data.val", "other.csv", "--data.test", "other.csv")
    result = cli("test", "--ckpt_path", trained.finetune, *flags)
    refused(result, "other.csv, row 2: label 'road' is not among sea, sky, wood", "data.label_names")


def test_columns_and_labels_that_are_not_there(fit: Fit) -> None:
    refused(fit("--data.text_column", "txt"), "train.csv: no column 'txt'", "did you mean 'text'?")
    refused(fit("--data.label_column", "labels"), "train.csv: no column 'labels'", "did you mean 'label'?")
    refused(fit("--data.encoding", "utf8x"), "unknown encoding 'utf8x'")
    two = '{"sea": "water", "sky": "air"}'
    refused(fit("--data.label_names", two), "label 'wood' is not among")
    four = '{"sea": "water", "sky": "air", "wood": "trees", "car": "road"}'
    refused(fit("--data.label_names", four, "--data.val", "null", "--data.test", "null"), "'road'")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--data.labels_per_class", "41"], ["--data.labels_per_class 41", "'sea' has 40"]),
        (["--data.labels_per_class", "0"], ["--data.labels_per_class 0", "at least 1"]),
        (["--data.val_labels_per_class", "11"], ["--data.val_labels_per_class 11", "'sea' has 10"]),
        (["--data.val_fraction", "1.5"], ["--data.val_fraction 1.5 must lie between 0 and 1"]),
        (["--data.val", "null", "--data.val_fraction", "0"], ["--data.val_fraction 0.0"]),
        (["--data.max_length", "-5"], ["--data.max_length -5"]),
        (["--data.max_length", "0", "--data.bptt", "-1"], ["--data.max_length 0, --data.bptt -1"]),
        (["--data.batch_size", "0"], ["--data.batch_size 0"]),
        (["--data.max_tokens", "-1"], ["--data.max_tokens -1"]),
        (["--data.max_documents", "0"], ["--data.max_documents 0"]),
        (["--data.num_workers", "-1"], ["--data.num_workers -1"]),
        (["--data.min_frequency", "0"], ["--data.min_frequency 0"]),
        (["--data.vocab_size", "5"], ["vocab_size 5 is too small"]),
        (["--data.truncation", "middle"], ["--data.truncation middle", "'head', 'tail', 'head_tail'"]),
        (["--data.tokenizer", "absent.json"], ["absent.json"]),
        (["--data.tokenizer", "bpee"], ["bpee"]),
        (["--data.labeled", "null"], ["--data.labeled"]),
        (["--data.cache_dir", "/dev/null"], ["/dev/null"]),
    ],
)
def test_a_data_option_out_of_range(flags: list[str], parts: list[str], fit: Fit) -> None:
    refused(fit(*flags), *parts)


SUPERVISED = ["--model.objective", "Supervised"]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--model.encoder.embedding_dropout", "1.5"], ["embedding_dropout=1.5"]),
        (["--model.encoder.output_dropout", "-0.1"], ["output_dropout=-0.1"]),
        (["--model.encoder.hidden_size", "-3"], ["hidden_size=-3"]),
        (["--model.encoder.embedding_size", "0"], ["embedding_size=0"]),
        (["--model.encoder.num_layers", "0"], ["num_layers=0"]),
        (["--model.head_dropout", "1.5"], ["head_dropout=1.5"]),
        (["--model.head_hidden_size", "-1"], ["hidden_size=-1"]),
        (["--model.layer_decay", "-1"], ["layer_decay=-1"]),
        (["--model.pooling", "median"], ["--model.pooling median", "'mean'"]),
        ([*SUPERVISED, "--model.objective.label_smoothing", "2"], ["label_smoothing=2.0"]),
        ([*SUPERVISED, "--model.objective.class_weights", "[1,2]"], ["class_weights has 2 values", "3 classes"]),
        ([*SUPERVISED, "--model.objective.class_weights", "[-1,2,3]"], ["class_weights"]),
        (["--model.objective", "MLE"], ["model.stage finetune", "MLE"]),
        (["--model.optimizer.lr", "-1"], ["model.optimizer: Invalid learning rate: -1"]),
        (["--model.optimizer", "torch.optim.LBFGS"], ["model.optimizer: LBFGS"]),
        (["--model.schedule", "WarmupCosine", "--model.schedule.warmup", "2"], ["warmup", "not 2.0"]),
        (["--checkpoint.monitor", "val/acc"], ["no figure val/acc", "did you mean val/accuracy?"]),
        (["--early_stopping.monitor", "val/f1"], ["no figure val/f1", "val/macro_f1"]),
        (["--early_stopping.patience", "-1"], ["early_stopping.patience=-1"]),
        (["--trainer.max_epochs", "-5"], ["trainer: ", "max_epochs"]),
        (["--trainer.limit_train_batches", "3.5"], ["trainer: ", "3.5"]),
        (["--trainer.accumulate_grad_batches", "0"], ["--trainer.accumulate_grad_batches 0"]),
        (["--trainer.gradient_clip_val", "-1"], ["--trainer.gradient_clip_val -1"]),
        (["--trainer.reload_dataloaders_every_n_epochs", "1"], ["must stay 0: each epoch is drawn anew"]),
        (
            ["--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={0: 4}"],
            ["changes the number of steps", "use --trainer.accumulate_grad_batches"],
        ),
        (
            ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"],
            ["averages nothing", "use lit_sft.callbacks.ExponentialAveraging"],
        ),
        (["--trainer.val_check_interval", "1000"], ["trainer: ", "val_check_interval"]),
        (["--trainer.val_check_interval", "00:00:15:00"], ["--trainer.val_check_interval 00:00:15:00: ", "in batches"]),
        (["--trainer.val_check_interval", "{minutes: 15}"], ["--trainer.val_check_interval ", "by the clock"]),
        (["--trainer.devices", "0"], ["trainer: ", "devices"]),
        (["--trainer.max_time", "soon"], ["trainer: ", "soon"]),
        (["--run_dir", "/dev/null/run"], ["--run_dir /dev/null/run: can't be made"]),
    ],
)
def test_a_model_or_trainer_option_out_of_range(flags: list[str], parts: list[str], fit: Fit) -> None:
    refused(fit(*flags), *parts)


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_processes_of_a_launcher_that_would_each_train_alone(
    command: str, fit: Fit, cli: Command, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(trained.finetune, Path("run"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = fit("--run_dir", "new") if command == "fit" else cli(command, "--ckpt_path", run)
    refused(result, "2 processes were started, and --trainer.devices times --trainer.num_nodes is 1")
    assert not Path("new").exists()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("environment", "variables", "wanted", "right"),
    [
        (LightningEnvironment, {}, 2, True),  # Lightning starts the second
        (LightningEnvironment, {"WORLD_SIZE": "2"}, 2, True),
        (LightningEnvironment, {"WORLD_SIZE": "4"}, 2, False),
        (LightningEnvironment, {"WORLD_SIZE": "2"}, 4, True),  # one a machine, each of which starts another
        (TorchElasticEnvironment, {"WORLD_SIZE": "2"}, 4, False),
        (TorchElasticEnvironment, {"WORLD_SIZE": "1"}, 2, False),
        (None, {"WORLD_SIZE": "1"}, 1, True),  # torchrun, for one device
        (None, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NAME": "mine"}, 1, False),
        (None, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NAME": "bash"}, 1, True),  # of srun --pty bash
        (None, {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "mine"}, 1, True),  # sbatch's own step
        (SLURMEnvironment, {"SLURM_JOB_NAME": "mine"}, 2, False),  # python without srun
        (SLURMEnvironment, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_NAME": "mine"}, 2, False),  # one task for two
        (SLURMEnvironment, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NAME": "mine"}, 2, True),
        (TorchElasticEnvironment, {"SLURM_STEP_NUM_TASKS": "1", "WORLD_SIZE": "2"}, 2, True),  # torchrun in it
    ],
)
def test_how_many_processes_a_launcher_has_started(
    environment: Callable[[], Any] | None,
    variables: dict[str, str],
    wanted: int,
    right: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    strategy = SingleDeviceStrategy() if environment is None else DDPStrategy(cluster_environment=environment())
    trainer = SimpleNamespace(num_devices=wanted, num_nodes=1, strategy=strategy)
    with nullcontext() if right else pytest.raises(UserError, match=f"num_nodes is {wanted}: give these as"):
        check_processes(trainer, "fit")


def test_what_is_measured_in_other_processes_would_be_lost(cli: Command, trained: Trained) -> None:
    spawned = ("--trainer.strategy", "ddp_spawn", "--trainer.devices", "2")
    one_line(cli("test", "--ckpt_path", trained.finetune, *spawned), "test keeps its results in this process")


def test_weights_in_parts_are_refused() -> None:
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), strategy=FSDPStrategy())
    with pytest.raises(UserError, match="FSDPStrategy may split them"):
        checked_data(trainer)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_no_folder(name: str, fit: Fit) -> None:
    """As of an unset variable of the shell; it would stand for the current folder."""
    refused(fit("--data.unlabeled", name), "data.unlabeled: an empty name")


def test_a_number_of_processes_that_lightning_refuses(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "NTASKS": 4,
        "NTASKS_PER_NODE": 4,
        "STEP_NUM_TASKS": 2,
        "PROCID": 0,
        "LOCALID": 0,
        "NODEID": 0,
        "JOB_NAME": "mine",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    refused(fit("--trainer.devices", "2"), "trainer: You set `devices=2`", "Set `devices=4`")


@pytest.mark.skipif(torch.cuda.is_available(), reason="16-mixed is right where there is a GPU")
@pytest.mark.parametrize("precision", ["16-mixed", "16"])
def test_float16_on_the_cpu(precision: str, fit: Fit) -> None:
    refused(fit("--trainer.precision", precision), f"--trainer.precision {precision} needs a GPU", "bf16-mixed")


@pytest.mark.parametrize("kind", ["bf16", "16"])
def test_figures_are_not_summed_up_in_half_precision(kind: str, fit: Fit) -> None:
    refused(fit("--trainer.precision", f"{kind}-true"), f"--trainer.precision {kind}-true", f"use {kind}-mixed")


def test_a_tokenizer_that_does_not_fit_the_checkpoint(fit: Fit, trained: Trained) -> None:
    Path("broken.json").write_text("{}")
    refused(fit("--data.tokenizer", "broken.json"), "broken.json is not a tokenizer")
    tokenizer = json.loads((trained.pretrain / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    Path("other.json").write_text(json.dumps(tokenizer))
    flags = ("--model.init_from", trained.pretrain)
    refused(fit(*flags, "--data.tokenizer", "other.json"), "other.json doesn't fit", "best.ckpt")
    assert fit(*flags, "--data.tokenizer", trained.pretrain / "tokenizer.json").code == 0


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"model: {stage: [\n", ["not valid YAML", "line 2"]),
        (b"- model\n", ["a config is a mapping of options, not a list"]),
        (b"model\n", ["a config is a mapping of options, not a str"]),
        (b"\xff\xfe\x00model", ["not valid YAML"]),
        (b"optimizer: {lr: 1}\n", ["no option optimizer.lr", "did you mean model.optimizer"]),
    ],
)
def test_a_config_that_is_none(content: bytes, parts: list[str], cli: Command) -> None:
    Path("broken.yaml").write_bytes(content)
    refused(cli("fit", "--config", "broken.yaml"), *parts)
    refused(cli("fit", "--config=broken.yaml", "--trainer.max_epochs", "1"), *parts)


def test_a_config_that_is_not_there(cli: Command) -> None:
    refused(cli("fit", "--config", "absent.yaml"), "--config absent.yaml: no such file")
    refused(cli("fit", "--config", "."), "--config .: not a file")
    refused(cli("fit", "-c", "absent.yaml"), "absent.yaml: no such file")
