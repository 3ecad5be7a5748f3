"""Mistaken options, and the commands themselves: how mistakes, bugs and interruptions are told."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Command, Configs, Fit, made, read
from processes import start
from refusals import one_line, refused

from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import UserError

RUN = Path("logs/tiny-finetune/version_0")

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
        (["--model.schedule", "torch.optim.SGD"], "--model.schedule torch.optim.SGD: not a subclass of Schedule"),
        (["--model.objective", "lit_sft.objectives.AT"], "lit_sft.objectives.AT: not a subclass of Objective"),
        (["--trainer.callbacks+", "torch.nn.Linear"], "callbacks torch.nn.Linear: not a subclass of Callback"),
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
def test_a_mistaken_option_is_named_with_the_right_one(flags: list[str], message: str, fit: Fit) -> None:
    result = fit(*flags)
    one_line(result, message)
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
        (
            "model.objective",
            {"class_path": "Mixed", "init_args": {"terms": [{"class_path": "AT", "init_args": {"nrom": 1.0}}]}},
            "no option model.objective.terms.nrom of lit_sft.objectives.AT; did you mean norm?",
        ),
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
    one_line(result, message)
    assert not Path("logs").exists()


# ---- the user's own classes

Write = Callable[[str], object]


@pytest.fixture
def own(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write the module ``own.mine``."""
    folder = workplace / "own"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(workplace)
    yield (folder / "mine.py").write_text
    for name in ("own", "own.mine"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("flags", [["--model.objective", "own.mine.Mine"], ["--trainer.callbacks+", "own.mine.Stop"]])
@pytest.mark.parametrize(
    ("more", "error"),
    [
        ("import torhc", "ModuleNotFoundError: No module named 'torhc' (mine.py, line 1)"),
        ("from torch import tensro", "ImportError: cannot import name 'tensro' from 'torch'"),
        ("x = = 1", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("1 / 0", "ZeroDivisionError: division by zero (mine.py, line 1)"),
    ],
)
def test_a_module_that_fails_is_not_told_as_a_missing_one(
    flags: list[str], more: str, error: str, fit: Fit, own: Write
) -> None:
    own(more)
    refused(fit(*flags), f"{flags[0].strip('+')} {flags[1]}: its module can't be imported: {error}")


def test_so_is_that_of_an_encoder_or_of_a_class_in_yaml(configs: Configs, fit: Fit, own: Write) -> None:
    own("import torhc")
    message = "its module can't be imported: ModuleNotFoundError: No module named 'torhc' (mine.py, line 1)"
    refused(fit("--model.encoder", "own.mine.Encoder"), f"--model.encoder own.mine.Encoder: {message}")
    own("x = = 1")
    failed = "own.mine.Encoder: its module can't be imported: SyntaxError: invalid syntax (mine.py, line 1)"
    refused(fit("--model.encoder", "own.mine.Encoder"), failed)
    own("import torhc")
    options = yaml.safe_load(configs.finetune.read_text())
    options["trainer"]["callbacks"] = [{"class_path": "Throughput"}, {"class_path": "own.mine.Stop"}]
    configs.finetune.write_text(yaml.safe_dump(options))
    refused(fit(), f"--trainer.callbacks own.mine.Stop: {message}")


@pytest.mark.parametrize("bug", ["weght", "self.weght", "{}['weght']"])
def test_a_bug_in_a_class_of_one_s_own_is_not_hidden(bug: str, fit: Fit, own: Write) -> None:
    own(f"from lightning import Callback\n\nclass Stop(Callback):\n    def __init__(self):\n        {bug}\n")
    with pytest.raises(ValueError, match="weght") as told:
        fit("--trainer.callbacks+", "own.mine.Stop")
    assert told.value.__cause__ is not None


# ---- the commands themselves


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_usage_names_every_command(arguments: list[str], cli: Command) -> None:
    result = cli(*arguments)
    assert result.code == 0
    assert all(f"  {command} " in result.out for command in ("fit", "validate", "test", "predict", "env"))


@pytest.mark.filterwarnings(r"ignore:\s*Hit failing import")  # of the classes that other tests have written
@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_command_s_help_lists_its_options(command: str, cli: Command) -> None:
    result = cli(command, "--help")
    assert result.code == 0
    assert "--data.batch_size" in result.out


def test_what_standard_output_can_not_spell_is_escaped_and_nothing_is_lost(
    fit: Fit, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit("--data.label_names", '{"sea": "海", "sky": "空", "wood": "Wald"}').code == 0

    def written(*arguments: object) -> str:
        stream = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="ascii"))
            assert cli(*arguments).code == 0
            sys.stdout.flush()
            return stream.getvalue().decode()

    assert "test/precision/\\u6d77" in written("test", "--ckpt_path", RUN)
    assert read(RUN / "metrics.json")["test"]["precision/海"] >= 0
    assert "--ckpt_path RUN_OR_CKPT [--config \\u2026]" in written("--help")
    shown = yaml.safe_load(written("fit", "--config", RUN / "config.yaml", "--print_config"))
    assert shown["data"]["label_names"]["sea"] == "海"  # a config is UTF-8 whatever the locale


def test_a_config_is_utf_8_whatever_the_locale(configs: Configs) -> None:
    Path("data.yaml").write_text("label_names: {sea: 海, sky: 空, wood: Wald}\n", encoding="utf-8")
    with configs.finetune.open("a", encoding="utf-8") as file:
        file.write("name: 海\n")
    command = [sys.executable, "-X", "utf8=0", "-m", "lit_sft", "fit", "--config", str(configs.finetune)]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command += ["--data", "data.yaml", "--print_config"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert (shown["name"], shown["data"]["label_names"]["sky"]) == ("海", "空")


def test_an_unknown_command_is_named_with_the_right_one(cli: Command) -> None:
    result = cli("fti")
    assert result.code == 2
    assert result.err == "lit_sft: error: no command 'fti': did you mean fit? python -m lit_sft --help lists them\n"


def test_env_tells_what_a_bug_report_needs(cli: Command, shared_cache: Path) -> None:
    result = cli("env")
    assert result.code == 0
    assert all(name in result.out for name in ("python", "torch", "lightning", "cores", "precision", str(shared_cache)))


@pytest.mark.parametrize(("slowness", "told"), [(3.0, "slow, a matrix product takes 3.0 times as long"), (0.3, "yes")])
def test_env_tells_where_bfloat16_is_slow(
    slowness: float, told: str, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("lit_sft.environment.bfloat16_slowness", lambda: slowness)
    assert f"bf16-mixed: {told};" in cli("env").out


def test_env_tells_of_a_gpu_that_only_emulates_bfloat16(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert "bf16-mixed: no;" in cli("env").out


def test_debug_shows_the_traceback_of_a_mistake(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_SFT_DEBUG", "1")
    result = cli("fit", "--config", "absent.yaml")
    assert result.code == 2
    assert result.err.startswith("Traceback")
    assert result.err.endswith("lit_sft: error: --config absent.yaml: no such file\n")
    monkeypatch.setenv("LIT_SFT_DEBUG", "0")
    assert "Traceback" not in cli("fit", "--config", "absent.yaml").err


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_bug_of_ours_is_not_hidden(error: type[Exception], fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise error("a bug")

    monkeypatch.setattr(TextDataModule, "train_dataloader", bug)
    with pytest.raises(error, match="a bug"):
        fit()


def test_an_interrupted_run_can_go_on(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_mistake_in_a_process_of_its_own_is_one_line(configs: Configs) -> None:
    code, written = start("fit", "--config", configs.finetune, "--data.labels_per_class", 41).wait()
    assert code == 2
    assert written.startswith("lit_sft: error: --data.labels_per_class 41: class 'sea' has 40 documents")
    assert written.count("\n") == 1
    assert not Path("logs").exists()


@pytest.mark.parametrize("error", [OSError(13, "Permission denied", "a.yaml"), OSError(30, "Read-only", "a.yaml")])
def test_a_file_that_this_user_may_not_use_is_told_in_one_line(
    error: OSError, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise error

    monkeypatch.setattr("lit_sft.options.yaml.safe_load", refuse)
    Path("a.yaml").touch()
    one_line(cli("fit", "--config", "a.yaml"), f"a.yaml: can't be read or written: {error.strerror}")


def test_a_user_error_is_told_in_one_line_however_it_was_written(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake(*_: object) -> str:
        raise UserError("first line\n   second line")

    monkeypatch.setattr("lit_sft.environment.report", mistake)
    assert cli("env").err == "lit_sft: error: first line second line\n"
