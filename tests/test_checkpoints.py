"""Checkpoints: how they are found, that they carry all they need, and that a stranger's is data and not code."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Command, Files, Trained, read, tiny_options
from refusals import one_line

from lit_sft import LitSFT, load
from lit_sft.checkpoints import read_checkpoint, resolve, stage_folders, stage_of
from lit_sft.errors import UserError
from lit_sft.models import LSTMEncoder
from lit_sft.stored_options import objective_of, own_encoder, stored_config


class TestRunOrCheckpoint:
    @pytest.fixture
    def recipe(self, tmp_path: Path) -> Path:
        """The folder of a recipe's run with two pretrainings and two fine-tunings, the last of which has no best."""
        names = {"pretrain": "pretrain", "more": "pretrain", "finetune": "finetune", "again": "finetune"}
        stages = [{"name": name} for name in (*names, "later")]  # the last stage has not run
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"stages": stages}))
        for name, stage in names.items():
            folder = tmp_path / name / "checkpoints"
            folder.mkdir(parents=True)
            (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({"model": {"stage": stage}}))
            for which in ("last",) if name == "again" else ("best", "last"):
                (folder / f"{which}.ckpt").write_text("")
        return tmp_path

    def test_a_file_is_itself(self, recipe: Path) -> None:
        file = recipe / "more" / "checkpoints" / "last.ckpt"
        assert resolve(file, "ckpt_path") == resolve(file, "init_from") == file

    def test_a_stage_is_its_best_checkpoint_else_its_last(self, recipe: Path) -> None:
        assert resolve(recipe / "finetune", "ckpt_path") == recipe / "finetune/checkpoints/best.ckpt"
        assert resolve(str(recipe / "again"), "ckpt_path") == recipe / "again/checkpoints/last.ckpt"

    def test_a_recipe_is_its_pretraining_to_start_from_else_its_last_stage(self, recipe: Path) -> None:
        assert resolve(recipe, "init_from") == recipe / "more/checkpoints/best.ckpt"
        assert resolve(recipe, "ckpt_path") == recipe / "again/checkpoints/last.ckpt"
        assert [folder.name for folder in stage_folders(recipe)] == ["pretrain", "more", "finetune", "again"]
        assert stage_of(recipe / "more") == "pretrain"

    @pytest.mark.parametrize(("purpose", "option"), [("init_from", "--model.init_from"), ("ckpt_path", "--ckpt_path")])
    def test_what_is_not_there_is_named_with_the_option(self, purpose: Any, option: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=f"nowhere: no such run or checkpoint .from {option}"):
            resolve("nowhere", purpose)
        for empty in ("", " "):  # of an unset variable of the shell; as a path it is the current folder
            with pytest.raises(UserError, match=f"^{option}: an empty name"):
                resolve(empty, purpose)
        with pytest.raises(UserError, match="no checkpoint in this folder"):
            resolve(tmp_path, purpose)

    def test_a_recipe_without_pretraining_is_nothing_to_start_from(self, recipe: Path) -> None:
        for name in ("pretrain", "more"):
            shutil.rmtree(recipe / name)
        with pytest.raises(UserError, match="no checkpoint"):
            resolve(recipe, "init_from")

    def test_a_broken_config_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("a: [")
        with pytest.raises(UserError, match=r"config.yaml: not valid YAML"):
            resolve(tmp_path, "ckpt_path")


class TestReading:
    def test_a_checkpoint_tells_what_every_command_needs(self, trained: Trained) -> None:
        checkpoint = read_checkpoint(resolve(trained.finetune, "ckpt_path"))
        assert checkpoint.stage == "finetune"
        assert checkpoint.label_names == ["sea", "sky", "wood"]
        assert checkpoint.tokenizer().vocab_size == 300
        assert checkpoint.config["data"]["max_length"] == 32
        assert {name.split(".")[0] for name in checkpoint.network_weights()} == {"encoder", "classifier"}

    def test_what_is_no_checkpoint_of_ours_is_refused(self, trained: Trained, tmp_path: Path) -> None:
        whole = resolve(trained.finetune, "ckpt_path").read_bytes()
        cases = {
            "truncated": whole[: len(whole) // 2],
            "nearly": whole[:-100],
            "empty": b"",
            "text": b"text,label\n",
            "pickle": pickle.dumps({"a": 1}),
        }
        for name, content in cases.items():
            path = tmp_path / f"{name}.ckpt"
            path.write_bytes(content)
            with pytest.raises(UserError, match=rf"{name}.ckpt: .*damaged"):
                read_checkpoint(path)
        torch.save({"state_dict": {}}, tmp_path / "theirs.ckpt")
        with pytest.raises(UserError, match="not one of lit_sft's"):
            read_checkpoint(tmp_path / "theirs.ckpt")
        with pytest.raises(UserError, match="no such checkpoint"):
            read_checkpoint(tmp_path / "absent.ckpt")

    @pytest.mark.parametrize(
        ("entry", "value"),
        [
            ("stage", "test"),
            ("label_names", [1]),
            ("config", {"data": []}),
            ("config", {"data": {"max_length": "x"}}),
            ("config", {"data": {"max_length": -5}}),
            ("config", None),
            ("tokenizer_json", None),
        ],
    )
    def test_an_entry_of_another_kind_is_named(self, entry: str, value: Any, edited: "Edited") -> None:
        path = edited(lambda ours: ours.update({entry.removesuffix("_json"): value}))
        with pytest.raises(UserError, match=f"its {entry} can't be used"):
            read_checkpoint(path)


# ---- a stranger's checkpoint

Edited = Callable[[Callable[[dict[str, Any]], Any]], Path]


@pytest.fixture
def edited(trained: Trained, tmp_path: Path) -> Edited:
    """``edited(change)``: a copy of the fine-tuned checkpoint whose ``lit_sft`` entry ``change`` has changed."""

    def edit(change: Callable[[dict[str, Any]], Any]) -> Path:
        raw = torch.load(resolve(trained.finetune, "ckpt_path"), weights_only=True)
        change(raw["lit_sft"])
        path = tmp_path / "edited.ckpt"
        torch.save(raw, path)
        return path

    return edit


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module ``evil`` that can be imported from here, and the file that it makes when it is."""
    (tmp_path / "evil.py").write_text("open('sprung', 'w').close()\nclass Encoder: pass\nclass Objective: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return tmp_path / "sprung"


LSTM = "lit_sft.models.LSTMEncoder"
STRANGE: dict[str, Any] = {
    "encoder": {"class_path": "evil.Encoder", "init_args": {}},
    "encoder as a string": "evil.Encoder",
    "encoder as YAML in a string": "{class_path: evil.Encoder}",
    "nested": {"class_path": LSTM, "init_args": {"hidden_size": {"class_path": "evil.Encoder"}}},
    "nested as a string": {"class_path": LSTM, "init_args": {"hidden_size": "evil.Encoder"}},
    "nested as YAML in a string": {"class_path": LSTM, "init_args": {"hidden_size": "{class_path: evil.Encoder}"}},
    "a file of a class": {"class_path": LSTM, "init_args": {"hidden_size": "/tmp/evil.yaml"}},
    "a function of ours": {"class_path": "lit_sft.main.main", "init_args": {"argv": ["env"]}},
    "a module of ours": {"class_path": "lit_sft.processes.subprocess", "init_args": {}},
    "another class of ours": {"class_path": "lit_sft.cli.LitCLI", "init_args": {"args": ["env"]}},
    "a list": ["evil.Encoder"],
}


@pytest.mark.parametrize("spec", STRANGE.values(), ids=STRANGE.keys())
def test_nothing_that_a_checkpoint_names_is_run(
    spec: Any, edited: Edited, trap: Path, cli: Command, files: Files
) -> None:
    path = edited(lambda ours: ours["config"]["model"].update(encoder=spec))
    inputs = ["--input", files.unlabeled, "--output", "out.jsonl"]
    for command in (["test"], ["predict", *inputs]):
        result = cli(command[0], "--ckpt_path", path, *command[1:])
        one_line(result, "encoder", "not followed on a checkpoint's word")
    with pytest.raises(UserError, match="not followed"):
        load(path)
    assert not trap.exists()
    assert not Path("out.jsonl").exists()


TERMS = {"class_path": "lit_sft.objectives.Mixed", "init_args": {"terms": [{"class_path": "evil.Term"}]}}


@pytest.mark.parametrize(
    "objective",
    [
        {"class_path": "evil.Objective"},
        "evil.Objective",
        "payload.yaml",
        TERMS,
        {**TERMS, "init_args": {"terms": "x"}},
        1,
    ],
    ids=["class", "name", "file", "term", "file of terms", "number"],
)
def test_an_objective_is_neither_needed_nor_looked_at(
    objective: Any, edited: Edited, trained: Trained, trap: Path, cli: Command
) -> None:
    Path("payload.yaml").write_text("class_path: evil.Objective\n")
    expected = cli("validate", "--ckpt_path", trained.finetune).out
    assert "val/macro_f1" in expected
    path = edited(lambda ours: ours["config"]["model"].update(objective=objective))
    assert cli("test", "--ckpt_path", path).code == 0
    assert cli("validate", "--ckpt_path", path).out == expected
    assert cli("validate", "--ckpt_path", f"{path},{path}").code == 0
    assert load(path).predict(["the owl"])[0] is not None
    assert not trap.exists()


def test_the_users_objective_is_of_no_account_for_a_test(trained: Trained, trap: Path, cli: Command) -> None:
    plain = cli("validate", "--ckpt_path", trained.finetune)
    for given in ("Supervised", "MLE", "Probe"):  # of whatever stage: none is made
        assert cli("validate", "--ckpt_path", trained.finetune, "--model.objective", given).out == plain.out
    cli("test", "--ckpt_path", trained.finetune, "--model.objective", "evil.Objective")
    assert trap.exists()  # the trap works: named by the user, it is followed


def test_a_model_has_the_heads_that_it_was_trained_with(trained: Trained, cli: Command) -> None:
    """Of a fine-tuning with a language model beside it both are measured."""
    terms = [{"class_path": "lit_sft.objectives.AuxiliaryLM"}]
    mixed = {"class_path": "lit_sft.objectives.Mixed", "init_args": {"terms": terms}}
    config = trained.finetune.parent / "finetune.yaml"
    done = cli("fit", "--config", config, "--model.objective", json.dumps(mixed), "--run_dir", "both")
    assert done.code == 0, done.err
    runs = {"lm": trained.pretrain, "classifier": trained.finetune, "both": Path("both")}
    heads = {name: objective_of(read_checkpoint(resolve(run, "ckpt_path"))).heads for name, run in runs.items()}
    assert heads == {"lm": {"lm"}, "classifier": {"classifier"}, "both": {"lm", "classifier"}}
    assert cli("test", "--ckpt_path", "both").code == 0
    assert {"accuracy", "lm_perplexity"} <= set(read(Path("both/metrics.json"))["test"])


def test_an_own_objective_with_weights_is_needed_in_the_fit_alone(
    cli: Command, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint holds the weights of an objective that is a module, and an evaluation those of the network."""
    (tmp_path / "own_objectives.py").write_text(
        "from torch import nn, ones\n\nfrom lit_sft.objectives import Supervised\n\n\n"
        "class Own(Supervised, nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.register_buffer('seen', ones(3))\n"
        "        self.scale = nn.Parameter(ones(()))\n"
        "    def __call__(self, network, batch, state):\n"
        "        loss = super().__call__(network, batch, state)\n"
        "        loss.total = loss.total * self.scale\n"
        "        return loss\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump(tiny_options(files, "finetune")))
    done = cli("fit", "--config", config, "--model.objective", "own_objectives.Own", "--run_dir", "run")
    assert done.code == 0, done.err
    state = read_checkpoint(resolve("run", "ckpt_path")).state_dict
    assert "objective.seen" in state
    assert state["objective.scale"] < 1.0  # it was trained
    monkeypatch.delitem(sys.modules, "own_objectives")
    (tmp_path / "own_objectives.py").unlink()
    assert cli("test", "--ckpt_path", "run").code == 0
    assert cli("fit", "--config", config, "--model.init_from", "run", "--run_dir", "more").code == 0


def test_a_test_with_the_config_of_another_stage_names_the_stage(trained: Trained, cli: Command) -> None:
    for stage, other in (("finetune", "pretrain"), ("pretrain", "finetune")):
        result = cli("test", "--ckpt_path", getattr(trained, stage), "--model.stage", other)
        one_line(result, f"is a {stage} checkpoint and model.stage is {other}")


def test_options_of_a_trainer_optimizer_or_schedule_are_left_alone(edited: Edited, trap: Path, cli: Command) -> None:
    def change(ours: dict[str, Any]) -> None:
        ours["config"]["model"] |= {"optimizer": {"class_path": "evil.Encoder"}, "schedule": "evil.Encoder"}
        ours["config"]["trainer"] |= {"callbacks": [{"class_path": "evil.Encoder"}], "logger": "evil.Encoder"}
        ours["config"]["data"] |= {"cache_dir": str(trap.parent / "theirs"), "num_workers": 99}

    path = edited(change)
    assert cli("test", "--ckpt_path", path).code == 0
    assert not trap.exists()
    assert not (trap.parent / "theirs").exists()


# ---- a class of the user's own


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module beside the user's configs with an encoder of their own; the class to name."""
    (tmp_path / "own_encoders.py").write_text(
        "from collections.abc import Callable\n\nimport torch\n\nfrom lit_sft.models import LSTMEncoder\n\n\n"
        "class Own(LSTMEncoder):\n"
        "    def __init__(self, vocab_size: int, width: int = 10, vectors: str = ''):\n"
        "        super().__init__(vocab_size, embedding_size=8, hidden_size=width)\n\n\n"
        "class Called(Own):\n"
        "    def __init__(self, vocab_size: int, width: int, act: Callable = torch.tanh):\n"
        "        super().__init__(vocab_size, width)\n"
        "        assert callable(act)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "own_encoders.Own"


def test_a_class_is_followed_where_the_users_own_config_or_flag_names_it(
    own: str, cli: Command, files: Files, tmp_path: Path
) -> None:
    options: Any = tiny_options(files, "finetune")
    options["model"]["encoder"] = {"class_path": own, "init_args": {"width": 14}}
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump(options))
    assert cli("fit", "--config", config, "--run_dir", "run").code == 0

    refused = cli("test", "--ckpt_path", "run")
    assert refused.code == 2
    assert "--model.encoder" in refused.err
    assert cli("test", "--ckpt_path", "run", "--config", config).code == 0
    assert cli("validate", "--ckpt_path", "run", "--model.encoder", own).code == 0
    assert cli("validate", "--ckpt_path", "run", f"--model.encoder={own}").code == 0

    mistaken = cli("test", "--ckpt_path", "run", "--model.encoder", own, "--data.tset", "other.csv")
    one_line(mistaken, "no option data.tset; did you mean data.test?")

    predict = ["predict", "--ckpt_path", "run", "--input", files.unlabeled, "--output", "-"]
    assert cli(*predict).code == 2
    assert cli(*predict, "--model.encoder", own).code == 0
    wrong = cli(*predict, "--model.encoder", "own_encoders.Mine")
    assert wrong.code == 2
    assert "own_encoders.Mine: no such class" in wrong.err

    import own_encoders  # type: ignore[import-not-found]

    texts = ["the whale near the reef"]
    by_class = load("run", encoder=own_encoders.Own).predict(texts)
    assert by_class == load("run", encoder=lambda size: own_encoders.Own(size, width=14)).predict(texts)


def test_naming_one_class_does_not_open_the_door_to_another(own: str, edited: Edited, trap: Path, cli: Command) -> None:
    for option in ({"width": "evil.Encoder"}, {"width": {"class_path": "evil.Encoder"}}, {"more": "evil.Encoder"}):
        nested = {"class_path": own, "init_args": option}
        path = edited(lambda ours, nested=nested: ours["config"]["model"].update(encoder=nested))  # type: ignore[misc]
        one_line(cli("test", "--ckpt_path", path, "--model.encoder", own), "could name code")
        given = ["--model.encoder", own, "--model.encoder.width", "12"]
        one_line(cli("test", "--ckpt_path", path, *given), "could name code")
    assert not trap.exists()


def test_an_option_that_could_name_code_is_followed_where_the_user_says_the_same(
    own: str, cli: Command, files: Files, tmp_path: Path
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump(tiny_options(files, "finetune")))
    given = ["--model.encoder", own, "--model.encoder.vectors", "vectors.txt"]
    assert cli("fit", "--config", config, *given, "--model.encoder.width", "14", "--run_dir", "run").code == 0
    one_line(cli("test", "--ckpt_path", "run", *given[:2]), "its encoder's option vectors could name code")
    one_line(cli("test", "--ckpt_path", "run", *given[:3], "other.txt"), "option vectors could name code")
    assert cli("test", "--ckpt_path", "run", *given).code == 0

    predict = ["predict", "--ckpt_path", "run", "--input", files.unlabeled, "--output", "-"]
    how = "the same value yourself: --model.encoder.vectors VALUE, or in Python encoder=partial(Class, vectors=VALUE)"
    one_line(cli(*predict, *given[:2]), how)
    one_line(cli(*predict, *given[:3], "other.txt"), how)
    predicted = cli(*predict, *given)
    assert predicted.code == 0
    own_class = import_module("own_encoders").Own
    by_class = load("run", encoder=partial(own_class, vectors="vectors.txt")).predict(["the whale near the reef"])
    assert by_class == load("run", encoder=lambda size: own_class(size, width=14)).predict(["the whale near the reef"])


def test_a_function_as_an_option_is_compared_by_where_it_stands(
    own: str, cli: Command, files: Files, tmp_path: Path
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump(tiny_options(files, "finetune")))
    given = ["--model.encoder", "own_encoders.Called", "--model.encoder.act"]
    width = ["--model.encoder.width", "14"]
    assert cli("fit", "--config", config, *given, "torch.tanh", *width, "--run_dir", "run").code == 0
    predict = ["predict", "--ckpt_path", "run", "--input", files.unlabeled, "--output", "-"]
    for command, more in ((["test", "--ckpt_path", "run"], width), (predict, [])):
        assert cli(*command, *given, "torch.tanh", *more).code == 0
        one_line(cli(*command, *given, "torch.relu", *more), "its encoder's option act could name code")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.encoder.width", "14"], "--model.encoder.width: name the encoder's class, too"),
        (["--model.encoder", "{own}", "--model.encoder.widht", "1"], "no option model.encoder.widht; did you mean"),
        (["--model.encoder", "{own}", "--model.encoder.width=many"], "--model.encoder.width many: expected int"),
        (["--model.encoder", "{own}", "--model.encoder.width", "1", "--inptu", "-"], "did you mean input?"),
    ],
)
def test_a_mistaken_option_of_the_encoder_is_told_in_a_prediction(
    flags: list[str], message: str, own: str, cli: Command, trained: Trained, files: Files
) -> None:
    predict = ["predict", "--ckpt_path", trained.finetune, "--input", files.unlabeled, "--output", "-"]
    one_line(cli(*predict, *(flag.format(own=own) for flag in flags)), message)


def test_the_encoder_in_python_is_a_class_and_no_name(edited: Edited) -> None:
    path = edited(lambda ours: ours["config"]["model"].update(encoder="theirs.Encoder"))
    for loaded in (load, LitSFT.load_from_checkpoint):
        with pytest.raises(UserError, match=r"encoder 'theirs\.Encoder': import the class and give it itself"):
            loaded(path, encoder="theirs.Encoder")
        with pytest.raises(UserError, match=r"add --model\.encoder with its name, or in Python encoder=Class"):
            loaded(path)


def test_the_users_class_wins_over_the_checkpoints(edited: Edited) -> None:
    path = edited(lambda ours: ours["config"]["model"].update(encoder="theirs.Encoder"))
    for given in (LSTM, {"class_path": LSTM, "init_args": {}}):
        assert "encoder" not in stored_config(read_checkpoint(path), given)["model"]
    with pytest.raises(UserError, match=r"theirs\.Encoder"):
        stored_config(read_checkpoint(path))


def test_a_model_is_evaluated_with_the_memory_that_it_was_trained_with(edited: Edited) -> None:
    path = edited(lambda ours: ours["config"]["model"].update(loss_chunk=7))
    assert stored_config(read_checkpoint(path))["model"]["loss_chunk"] == 7


def test_the_options_that_are_shown_are_the_checkpoints(trained: Trained, cli: Command) -> None:
    """With ``--print_config``, the user's over them."""
    for flags in (["--print_config"], ["--print_config=skip_unset"], ["--data.bptt=9", "--print_config"]):
        shown = cli("test", "--ckpt_path", trained.finetune, *flags)
        assert shown.code == 0, shown.err
        options = yaml.safe_load(shown.out)
        assert options["model"]["stage"] == "finetune"
        assert options["model"]["encoder"]["init_args"]["hidden_size"] == 12
        assert options["data"]["max_length"] == 32
        assert options["data"]["bptt"] == (9 if len(flags) == 2 else 16)


F2 = {"class_path": "torchmetrics.classification.MulticlassFBetaScore", "init_args": {"beta": 2.0, "num_classes": 3}}


@pytest.mark.parametrize(
    ("metric", "refused"),
    [
        (F2, False),
        ({**F2, "class_path": "torchmetrics.FBetaScore"}, True),  # lacks task
        ("evil.Metric", True),
        ({"class_path": "evil.Metric"}, True),
        ({"class_path": "torchmetrics.classification.evil.Metric"}, True),
        ({"class_path": "torchmetrics.Metric"}, True),  # no metric of classification
        ({"class_path": "torchmetrics.wrappers.MinMaxMetric", "init_args": {"base_metric": F2}}, True),
        ({**F2, "init_args": {**F2["init_args"], "dist_sync_fn": "evil.sync"}}, True),  # type: ignore[dict-item]
        ({**F2, "init_args": {**F2["init_args"], "dist_sync_fn": {"class_path": "evil.Sync"}}}, True),  # type: ignore[dict-item]
        ({**F2, "init_args": "payload"}, True),
        ("payload", True),
    ],
)
def test_metrics_of_a_strangers_run_are_torchmetrics(
    metric: Any, refused: bool, edited: Edited, trap: Path, cli: Command, files: Files
) -> None:
    path = edited(lambda ours: ours["config"]["model"].update(metrics={"f2": metric}))
    Path("payload").write_text("class_path: evil.Metric\n")
    result = cli("test", "--ckpt_path", path)
    assert (result.code == 2) == refused
    assert result.err.count("\n") == refused, result.err
    assert ("test/f2" in result.out) != refused
    assert cli("test", "--ckpt_path", path, "--model.metrics", "{}").code == 0
    assert load(path).predict(["the whale"])
    assert cli("predict", "--ckpt_path", path, "--input", files.unlabeled, "--output", "-").code == 0
    assert not trap.exists()


def test_only_encoders_of_this_package_are_its_own() -> None:
    assert own_encoder("lit_sft.models.LSTMEncoder") is LSTMEncoder
    for name in (
        "lit_sft.objectives.Supervised",
        "torch.nn.LSTM",
        "lit_sft.nowhere.X",
        "lit_sft.models.X",
        "LSTMEncoder",
    ):
        assert own_encoder(name) is None
