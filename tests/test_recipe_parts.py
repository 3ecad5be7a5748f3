"""Options of one stage of a recipe, in flags and in the user's configs."""

from pathlib import Path

import pytest
import yaml
from conftest import Configs, Fit, read
from refusals import one_line

RUN = Path("logs/tiny/version_0")


def test_flags_and_configs_may_be_for_one_stage(fit_recipe: Fit, calls: list[list[str]], configs: Configs) -> None:
    """Those of all stages come first, and those of one win over them; a test gets those of its stage."""
    Path("configs/mine").mkdir()
    Path("configs/mine/narrow.yaml").write_text("head_hidden_size: 5\n")
    mine = {"trainer": {"limit_train_batches": 3, "logger": "csv.yaml"}, "pretrain": {"data": {"bptt": 8}}}
    mine |= {"finetune": {"model": "narrow.yaml", "trainer": {"limit_train_batches": 2, "max_steps": 9}}}
    Path("configs/mine/mine.yaml").write_text(yaml.safe_dump(mine))
    Path("configs/mine/csv.yaml").write_text(
        "class_path: lightning.pytorch.loggers.CSVLogger\ninit_args: {save_dir: .}\n"
    )
    Path("configs/last.yaml").write_text("trainer: {max_steps: 8}\n")
    flags = ["--config", "configs/mine/mine.yaml", "--config", "configs/last.yaml"]
    flags += ["--finetune.model.optimizer.lr=0.01", "--model.optimizer.lr", "0.02"]
    flags += ["--finetune.model.objective", "Supervised", "--finetune.model.objective.class_weights", "balanced"]
    assert fit_recipe(*flags).code == 0
    assert [command[0] for command in calls] == ["fit", "fit", "test"]
    assert all("finetune." not in part for command in calls for part in command if part.startswith("--"))
    options = [read(RUN / name / "config.yaml") for name in ("pretrain", "finetune")]
    assert [o["model"]["optimizer"]["init_args"]["lr"] for o in options] == [0.02, 0.01]
    assert [o["data"]["bptt"] for o in options] == [8, 16]
    assert [o["trainer"]["limit_train_batches"] for o in options] == [3, 2]
    assert [o["trainer"]["max_steps"] for o in options] == [8, 9]
    assert [o["model"]["head_hidden_size"] for o in options] == [0, 5]
    assert {o["trainer"]["logger"]["class_path"] for o in options} == {"lightning.pytorch.loggers.CSVLogger"}
    assert options[1]["model"]["objective"]["init_args"]["class_weights"] == "balanced"
    assert options[0]["model"]["objective"] is None
    assert read(RUN / "config.yaml")["flags"] == flags[4:]

    for finished in (RUN / "metrics.json", RUN / "finetune/metrics.json"):
        finished.unlink()
    again = fit_recipe(*flags, "--ckpt_path", "last")
    assert again.code == 0
    assert "resumed with" not in again.out + again.log
    shown = fit_recipe(*flags, "--print_config")
    printed = [yaml.safe_load(part.partition("\n")[2]) for part in shown.out.split("# stage ")[1:]]
    rates = [o["model"]["optimizer"]["init_args"]["lr"] for o in printed]
    assert rates == [0.02, 0.01]
    assert fit_recipe(*flags, "--trainer.fast_dev_run", "true").code == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fintune.trainer.max_epochs", "3"], "there is no stage fintune; did you mean finetune?"),
        (["--finetune.trainer.max_epoch", "3"], "did you mean trainer.max_epochs?"),
        (["--tranier.max_epochs", "3"], "no option tranier.max_epochs; did you mean trainer.max_epochs?"),
        (["--finetune.name", "a"], "--finetune.name: a recipe has one for all its stages, --name"),
        (["--finetune.model.init_from=a"], "--finetune.model.init_from=a: a recipe has one for all its stages"),
        (["--finetune.data.bptt", "8", "--stages", "pretrain"], "finetune.data.bptt: stage finetune doesn't run"),
        (["--finetune.trainer.fast_dev_run", "true"], "all stages of a recipe are run dry, or none"),
    ],
)
def test_a_mistake_in_a_flag_of_one_stage(
    flags: list[str], message: str, fit_recipe: Fit, calls: list[list[str]]
) -> None:
    one_line(fit_recipe(*flags), message)
    assert calls == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("fintune: {trainer: {max_epochs: 3}}", "mine.yaml: fintune: there is no stage fintune; did you"),
        ("finetune: {trainer: {max_epoch: 3}}", "did you mean trainer.max_epochs?"),
        ("finetune: 3", "mine.yaml: finetune must hold options of that stage, not 3"),
    ],
)
def test_a_mistake_in_what_a_config_says_of_a_stage(
    content: str, message: str, fit_recipe: Fit, calls: list[list[str]]
) -> None:
    Path("mine.yaml").write_text(content)
    one_line(fit_recipe("--config", "mine.yaml"), message)
    assert calls == []


def test_a_stage_alone_knows_no_stages(fit: Fit) -> None:
    Path("mine.yaml").write_text("finetune: {trainer: {max_epochs: 3}}\n")
    for flags in (["--config", "mine.yaml"], ["--finetune.trainer.max_epochs", "3"]):
        one_line(fit(*flags), "finetune.trainer.max_epochs: options of one stage are for a recipe")
