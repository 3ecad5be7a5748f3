"""Two processes train as one does on the same batches, and go on where they were cut off."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Configs, Files, Trained, multilabel_rows, read
from processes import run_ranks
from torch import Tensor

from lit_sft.checkpoints import read_checkpoint
from lit_sft.errors import SickRun, UserError
from lit_sft.evaluation.predictions import VAL_FILE, read_predictions
from lit_sft.ranks import of_this_rank

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)
BATCHES = {"pretrain": {"batch_size": 3, "bptt": 64}, "finetune": {"max_documents": 7, "max_tokens": 200}}


def exact(configs: Configs, stage: str) -> Path:
    """A config of the stage in float64, without dropout, with batches that two processes can't halve."""
    path: Path = getattr(configs, stage)
    options = yaml.safe_load(path.read_text())
    options["data"] |= BATCHES[stage]
    options["model"] |= {"head_dropout": 0.0}
    options["model"]["encoder"]["init_args"] |= {"embedding_dropout": 0.0, "output_dropout": 0.0}
    if stage == "finetune":
        options["model"]["objective"] = {
            "class_path": "lit_sft.objectives.Supervised",
            "init_args": {"class_weights": [1.0, 2.0, 5.0]},
        }
    options["trainer"] |= {"precision": "64-true", "max_epochs": 2, "accelerator": "cpu"}
    options["saving"] = {"every_steps": 5}
    path.write_text(yaml.safe_dump(options))
    return path


def launch(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command whose first process starts the others, as on the command line."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "lit_sft", *map(str, arguments), f"--trainer.devices={processes}"]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def train(
    config: Path, name: str, processes: int, *flags: str, code: int = 0, stop_at: int = -1, launched: bool = False
) -> Tensor:
    """A fit in processes of its own, in logs/NAME/version_0; the weights after each batch.

    ``launched``: the first process starts the second; else they are started side by side.
    """
    snapshots = Path(f"{name}-{'-'.join(flags[1:2]) or 'new'}.pt").resolve()
    arguments = ["fit", "--config", str(config), *flags]
    arguments += ["--trainer.callbacks+=ddp_callbacks.Snapshots", f"--trainer.callbacks.path={snapshots}"]
    arguments += [f"--trainer.callbacks.stop_at={stop_at}"]
    if launched:
        done = launch(processes, *arguments, "--name", name)
        assert done.returncode == code, done.stderr
    else:
        ended = run_ranks(processes, *arguments, "--run_dir", f"logs/{name}/version_0")
        assert [found for found, _ in ended] == [code] * processes, "\n".join(written for _, written in ended)
    return torch.load(snapshots, weights_only=True)


@pytest.mark.parametrize(
    ("stage", "resume"),
    [("pretrain", True), ("finetune", False), pytest.param("finetune", True, marks=pytest.mark.slow)],
)
def test_two_processes_equal_one_at_every_step_and_resume(stage: str, resume: bool, configs: Configs) -> None:
    config = exact(configs, stage)
    one = train(config, "one", 1)
    two = train(config, "two", 2, launched=resume)
    assert one.shape == two.shape
    assert len(one) > 10
    assert (one[1:-1] - one[:-2]).abs().amax(1).min() > 1e-6  # every batch changes something, until the rate is 0
    assert (one - two).abs().max() < 1e-6
    assert [path.name for path in Path("logs/two").iterdir()] == ["version_0"]
    figures = [read(Path(f"logs/{name}/version_0/metrics.json"))["val"] for name in ("one", "two")]
    assert figures[0] == pytest.approx(figures[1], abs=1e-6, nan_ok=True)

    if not resume:
        return
    train(config, "cut", 2, code=9, stop_at=8)  # the last checkpoint is of step 5
    rest = train(config, "cut", 2, "--ckpt_path", "last", launched=True)
    assert torch.equal(rest, two[5:])
    assert [path.name for path in Path("logs/cut").iterdir()] == ["version_0"]


@pytest.mark.slow
def test_two_processes_tune_the_thresholds_of_one(configs: Configs) -> None:
    config = exact(configs, "finetune")
    options = yaml.safe_load(config.read_text())
    for name, (size, seed) in {"labeled": (60, 0), "val": (33, 1), "test": (9, 2)}.items():
        path = Path(f"{name}.jsonl").resolve()
        path.write_text("".join(json.dumps(row) + "\n" for row in multilabel_rows(size, seed)))
        options["data"][name] = str(path)
    config.write_text(yaml.safe_dump(options))
    assert (train(config, "one", 1) - train(config, "two", 2)).abs().max() < 1e-6
    runs = [Path(f"logs/{name}/version_0") for name in ("one", "two")]
    chosen = [read_checkpoint(run / "checkpoints" / "last.ckpt").thresholds for run in runs]
    assert chosen[0] is not None
    assert chosen[0] == pytest.approx(chosen[1], abs=1e-6)
    figures = [read(Path(run, "metrics.json"))["val"] for run in runs]
    assert figures[0] == pytest.approx(figures[1], abs=1e-6, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "batches"),
    [("pretrain", BATCHES["pretrain"]), ("finetune", BATCHES["finetune"]), ("finetune", {"max_tokens": 1})],
)
def test_two_processes_test_as_one_does(
    stage: str, batches: dict[str, int], configs: Configs, trained: Trained, files: Files
) -> None:
    """Also where a part of the test data was trained on, and each process has an odd share of each batch, or none."""
    copies = Path("copies.csv")
    copies.write_text(files.train.read_text() + "".join(files.test.read_text().splitlines(keepends=True)[1:8]))
    records, kept = [], []
    for processes in (1, 2):
        run = str(shutil.copytree(getattr(trained, stage), f"run-{processes}"))
        options = [f"--data.{name}={value}" for name, value in batches.items()]
        command = ["test", "--ckpt_path", run, f"--trainer.devices={processes}", f"--data.labeled={copies}", *options]
        command = [sys.executable, "-m", "lit_sft", *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        records.append(read(Path(run, "metrics.json")))
        if stage == "finetune":
            kept.append(read_predictions(Path(run, "predictions.parquet")))
    for name in ("test", "test_clean"):
        assert records[0][name] == pytest.approx(records[1][name], rel=1e-5, abs=1e-6, nan_ok=True)
        intervals = [record[f"{name}_interval"] for record in records]
        assert intervals[0].keys() == intervals[1].keys() == records[0][name].keys()
    assert records[0]["test"] != records[0]["test_clean"]
    if stage == "finetune":
        assert kept[0].documents.tolist() == kept[1].documents.tolist() == list(range(30))
        assert kept[0].keys.tolist() == kept[1].keys.tolist()
        assert kept[0].probabilities == pytest.approx(kept[1].probabilities, abs=1e-6)
        assert records[0]["test_interval"]["loss"] == pytest.approx(records[1]["test_interval"]["loss"], abs=1e-5)


@pytest.mark.slow
def test_two_processes_leave_the_validations_predictions_of_one(workplace: Path, trained: Trained) -> None:
    kept = []
    for processes in (1, 2):
        run = shutil.copytree(trained.finetune, Path(f"run-{processes}"))
        ended = run_ranks(processes, "validate", "--ckpt_path", run)
        assert [code for code, _ in ended] == [0] * processes, ended
        kept.append(read_predictions(run / VAL_FILE))
    assert kept[0].documents.tolist() == kept[1].documents.tolist() == list(range(30))
    assert kept[0].keys.tolist() == kept[1].keys.tolist()
    assert kept[0].losses == pytest.approx(kept[1].losses, abs=1e-5)


def test_a_loss_that_is_not_finite_in_one_process_ends_both_before_the_weights_change(configs: Configs) -> None:
    sick = ("--model.objective=ddp_callbacks.SickShare", "--saving.every_steps=1")
    told = set()
    for code, written in run_ranks(2, "fit", "--config", configs.finetune, *sick, "--run_dir=sick"):
        assert code == SickRun.exit_code, written
        assert "Traceback" not in written
        (line,) = re.findall("^lit_sft: error: (.*)$", written, re.MULTILINE)
        told.add(line)
    (message,) = told
    assert message.startswith("step 3 (epoch 0, batch 3): the loss is nan; labeled documents ")
    checkpoint = "sick/checkpoints/last.ckpt"
    way_on = "go on with --ckpt_path last and a lower --model.optimizer.lr (now 0.03)"
    assert message.endswith(f"{checkpoint} keeps the weights after 3 steps: {way_on}")
    assert all(value.isfinite().all() for value in read_checkpoint(Path(checkpoint)).network_weights().values())


@pytest.mark.slow
def test_an_error_of_the_first_process_alone_ends_the_one_that_it_has_started(configs: Configs) -> None:
    full = ("--trainer.callbacks+=ddp_callbacks.FullDisk", "--trainer.callbacks.path=second.pid")
    done = launch(2, "fit", "--config", configs.finetune, *full)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.findall("^lit_sft: error: (.*)$", done.stderr, re.MULTILINE) == [
        "logs/tiny-finetune/version_0: can't be written: No space left on device; there is no checkpoint to go on from "
        "yet: make room, then start again"
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("second.pid").read_text()), 0)


@pytest.mark.slow
@pytest.mark.parametrize("sick", [False, True])
def test_an_end_that_all_processes_reach_has_the_exit_code_of_the_first(sick: bool, configs: Configs) -> None:
    """Though the first takes longer over it than Lightning gives it when another has ended with an error."""
    ends = ("--trainer.callbacks+=ddp_callbacks.SlowEnd", f"--trainer.callbacks.stop={not sick}".lower())
    more = ["--model.objective=ddp_callbacks.SickShare"] if sick else ["--trainer.log_every_n_steps=1"]
    done = launch(2, "fit", "--config", configs.finetune, *ends, *more)
    assert done.returncode == (SickRun.exit_code if sick else 128 + signal.SIGTERM), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("lit_sft: error: step 3 ") == int(sick)
    saved = Path("logs/tiny-finetune/version_0/checkpoints/last.ckpt")
    assert saved.is_file() is not sick


def test_a_run_goes_on_with_as_many_processes_only() -> None:
    class One:
        world_size, global_rank = 1, 0

    with pytest.raises(UserError, match="a run of 2 processes and this one has 1"):
        of_this_rank(One(), [{}, {}])  # type: ignore[arg-type]
