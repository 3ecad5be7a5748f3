"""scripts/baselines.py: what is searched, what is chosen, and what is run with it; most runs are made up."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import baselines
import pytest
import yaml
from baselines import Cells, Results, check_corpus, fill, plans_in
from conftest import Files, read, tiny_options
from one_line import in_one_line
from readmes import ROOT
from report import read_lines, rows_tested, write_figures

from lit_sft.errors import SickRun, UserError

SEARCH = """
7:
  small_val: 3
  seeds: 3
  search_seeds: 2
  fixed: {trainer.max_epochs: 2}
  pretrained: {model.optimizer.lr: [0.1, 0.2]}
  other: {model.optimizer.lr: [0.3], model.init_from: [logs/other, logs/third]}
  scratch: {model.optimizer.lr: [0.4, 0.5]}
  tfidf: {C: [1, 10]}
all:
  seeds: 1
  search_seeds: 1
  pretrained: {model.optimizer.lr: [0.1]}
  other: {model.optimizer.lr: [0.1]}
  scratch: {model.optimizer.lr: [0.1]}
  tfidf: {C: [1]}
"""
# What makes a point good: validation figures by (macro_f1, accuracy), where the two disagree which is better.
GOOD = {"0.1": (0.4, 0.9), "0.2": (0.5, 0.8), "logs/other": (0.3, 0.3), "logs/third": (0.2, 0.2)}
GOOD |= {"0.4": (0.3, 0.3), "0.5": (0.2, 0.2), "1": (0.1, 0.1), "10": (0.6, 0.6)}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What was run, as flags; nothing of it is."""
    done: list[dict[str, Any]] = []

    def figures(point: str, seed: int, test: bool) -> dict[str, Any]:
        f1, accuracy = (value + 0.01 * seed for value in GOOD[point])
        record = {"val": {"macro_f1": f1, "accuracy": accuracy}}
        return record | ({"test": {"macro_f1": f1 / 2, "accuracy": accuracy / 2}} if test else {})

    def network(arguments: list[str], name: str, test: bool) -> Path:
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in arguments if "=" in flag)
        point = flags["model.init_from"] if "-other-" in name else flags["model.optimizer.lr"]
        if point not in GOOD:
            point = flags["model.optimizer.lr"]
        folder = tmp_path / "logs" / name / f"version_{len(done)}"
        (folder / "checkpoints").mkdir(parents=True)
        done.append({"name": name, "test": test, "flags": flags, "folder": folder})
        record = figures(point, int(flags["seed_everything"]), test)
        (folder / "metrics.json").write_text(json.dumps(record))
        return folder

    def linear(data: Any, options: dict[str, Any], folder: Path | None, splits: tuple[str, ...]) -> dict[str, float]:
        done.append({"name": "tfidf", "test": "test" in splits, "flags": options, "data": data, "folder": folder})
        record = figures(str(options["C"]), data[0], "test" in splits)
        return {f"{split}_{name}": value for split in record for name, value in record[split].items()}

    monkeypatch.setattr(baselines, "run_network", network)
    monkeypatch.setattr(baselines, "linear_model", linear)
    monkeypatch.setattr(Cells, "_data", lambda self, *subset: subset)
    monkeypatch.setattr(Cells, "corpus", lambda self: SimpleNamespace(test=["a text"], multilabel=False, pairs=False))
    monkeypatch.chdir(tmp_path)
    return done


def filled(tmp_path: Path, metric: str = "macro_f1", **options: Any) -> list[dict[str, str]]:
    search, out = tmp_path / "search.yaml", tmp_path / "out.csv"
    search.write_text(options.get("search", SEARCH))
    (tmp_path / "config.yaml").write_text(options.get("config", "{}"))
    start = options.get("init_from", "logs/lm")
    keep = options.get("keep_tested", False)
    given = argparse.Namespace(config=[Path("config.yaml")], init_from=start, metric=metric, out=out, keep_tested=keep)
    plans = plans_in(search, options.get("labels"))
    fill(Cells(given), Results(out), plans, options.get("vals", ["full"]), options.get("methods"))
    return read_lines(out)


def test_every_point_is_searched_and_the_best_mean_runs_on_every_seed(
    runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = filled(tmp_path, labels=["7"])
    best = {"pretrained": 0.2, "other": "logs/other", "scratch": 0.4, "tfidf": 10}
    for method, point in best.items():
        mine = [row for row in rows if row["method"] == method]
        searched, tested = mine[:4], mine[4:]
        assert [(row["seed"], row["test_macro_f1"], row["run"]) for row in searched] == [
            ("0", "", ""),
            ("1", "", ""),
        ] * 2
        assert len({row["options"] for row in searched}) == 2
        assert [row["seed"] for row in tested] == ["0", "1", "2"]
        for seed, row in enumerate(tested):
            assert point in json.loads(row["options"]).values()
            assert Path(row["run"]).is_dir()
            assert not (Path(row["run"]) / "checkpoints").exists()
            f1 = GOOD[str(point)][0] + 0.01 * seed
            assert (float(row["val_macro_f1"]), float(row["test_macro_f1"])) == pytest.approx((f1, f1 / 2))
    assert [run["test"] for run in runs] == ([False] * 4 + [True] * 3) * 4


def test_the_tested_runs_keep_their_checkpoints_where_asked_for(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    filled(tmp_path, labels=["7"], methods=["pretrained"], keep_tested=True)
    assert [(run["folder"] / "checkpoints").is_dir() for run in runs] == [False] * 4 + [True] * 3


def test_the_metric_chooses(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = filled(tmp_path, metric="accuracy", labels=["7"], methods=["pretrained"])
    assert {json.loads(row["options"])["model.optimizer.lr"] for row in rows[4:]} == {0.1}
    assert {row["method"] for row in rows} == {"pretrained"}
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert "val_accuracy" in lines[0]
    (tmp_path / "out.csv").write_text("\n".join([lines[0].replace("val_accuracy", "another"), *lines[1:]]) + "\n")
    with pytest.raises(UserError, match="a line has no val_accuracy: another --metric, or a new --out"):
        filled(tmp_path, metric="accuracy", labels=["7"], methods=["pretrained"])


def test_a_cell_is_an_ordinary_run_of_its_method_labels_and_seed(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    filled(tmp_path)
    by_method: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_method.setdefault(run["name"].removeprefix("baselines-out-"), []).append(run)
    common = {"early_stopping.patience": "0", "trainer.max_epochs": "2"}
    common |= {"data.labels_per_class": "7", "data.val_labels_per_class": "null"}
    first = by_method["pretrained-7"][0]["flags"]
    assert first == common | {"model.optimizer.lr": "0.1", "seed_everything": "0", "model.init_from": "logs/lm"}
    assert {run["flags"]["model.init_from"] for run in by_method["other-7"]} == {"logs/other", "logs/third"}
    scratch = by_method["scratch-7"] + by_method["scratch-all"]
    assert {run["flags"]["model.init_from"] for run in scratch} == {"null"}  # whatever the config has
    whole = by_method["pretrained-all"][0]["flags"]
    assert whole["data.labels_per_class"] == "null"  # a config's own number would be another for TF-IDF
    assert "trainer.max_epochs" not in whole
    linear = by_method["tfidf"]
    assert [run["data"] for run in linear[:2]] == [(0, 7, None), (1, 7, None)]
    assert linear[-1]["data"] == (0, None, None)
    assert linear[0]["flags"] == {"C": 1}  # without the networks' fixed options


def test_what_is_there_is_not_run_again(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    first = filled(tmp_path)
    count = len(runs)
    assert filled(tmp_path) == first
    assert len(runs) == count
    out = tmp_path / "out.csv"
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:-3]))  # cut off
    again = filled(tmp_path)
    assert len(runs) == count + 3
    plain = [{k: v for k, v in row.items() if k != "run"} for row in again]
    assert plain == [{k: v for k, v in row.items() if k != "run"} for row in first]


def test_rows_of_another_pretraining_are_not_taken_for_this_one_s(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    filled(tmp_path, labels=["7"])
    count = len(runs)
    rows = filled(tmp_path, labels=["7"], init_from="logs/other_lm")
    again = runs[count:]
    assert {run["name"] for run in again} == {"baselines-out-pretrained-7"}  # the others start from elsewhere
    assert {run["flags"]["model.init_from"] for run in again} == {"logs/other_lm"}
    starts = {(row["method"], row["start"]) for row in rows}
    assert starts == {(m, "") for m in ("other", "scratch", "tfidf")} | {
        ("pretrained", "logs/lm"),
        ("pretrained", "logs/other_lm"),
    }


def test_rows_of_another_config_are_not_taken_for_this_one_s(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    filled(tmp_path, labels=["all"])
    only = len(runs)
    (tmp_path / "data.yaml").write_text("max_length: 8")
    before = filled(tmp_path, labels=["all"], config="data: data.yaml")
    assert len(runs) == 2 * only
    assert filled(tmp_path, labels=["all"], config="data: data.yaml # as it was") == before
    (tmp_path / "data.yaml").write_text("max_length: 9")
    rows = filled(tmp_path, labels=["all"], config="data: data.yaml")
    assert len(runs) == 3 * only
    assert len({row["config"] for row in rows}) == 3
    with pytest.raises(UserError, match=r"ran with different options, .* config \w{12} and .* config \w{12}: take"):
        rows_tested(tmp_path / "out.csv")


def test_rows_of_a_csv_without_configs_are_not_run_again(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = filled(tmp_path, labels=["all"])
    write_figures(tmp_path / "out.csv", [name for name in rows[0] if name != "config"], [without(row) for row in rows])
    count = len(runs)
    assert filled(tmp_path, labels=["all"], config="data: {max_length: 8}") == [without(row) for row in rows]
    assert len(runs) == count


def without(row: dict[str, str]) -> dict[str, str]:
    """The row of an older file."""
    return {name: value for name, value in row.items() if name != "config"}


def test_a_small_validation_set_is_drawn_where_the_plan_has_one(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = filled(tmp_path, vals=["small"], methods=["pretrained", "tfidf"])
    assert {(row["labels"], row["val"]) for row in rows} == {("7", "small")}
    assert all(run["flags"]["data.val_labels_per_class"] == "3" for run in runs if run["name"] != "tfidf")
    assert {run["data"][2] for run in runs if run["name"] == "tfidf"} == {3}
    # apart from those of the full validation set, so that a pattern of folders is of one method
    assert {run["name"] for run in runs} == {"baselines-out-pretrained-7-small", "tfidf"}


def test_rows_of_a_small_validation_set_of_another_size_are_not_taken_for_this_one_s(
    runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    for number in (3, 3, 2):
        search = SEARCH.replace("small_val: 3", f"small_val: {number}")
        rows = filled(tmp_path, vals=["small", "full"], labels=["7"], methods=["pretrained"], search=search)
    assert len(rows) == 7 + 7 + 7  # of both sizes, and of the full set once
    assert len({row["config"] for row in rows}) == 3


def test_a_point_whose_run_ends_sick_is_not_chosen_and_not_run_again(
    runs: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up, tried = baselines.run_network, []

    def network(arguments: list[str], name: str, test: bool) -> Path:
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in arguments if "=" in flag)
        tried.append(flags["model.optimizer.lr"])
        if flags["model.optimizer.lr"] in sick:
            raise SickRun("a run ended sick")
        return made_up(arguments, name, test)

    monkeypatch.setattr(baselines, "run_network", network)
    sick = {"0.2"}  # which is the better point otherwise
    rows = filled(tmp_path, labels=["7"], methods=["pretrained"])
    assert [row["val_macro_f1"] for row in rows[2:4]] == ["nan", "nan"]
    assert tried == ["0.1", "0.1", "0.2", "0.2", "0.1", "0.1", "0.1"]
    assert filled(tmp_path, labels=["7"], methods=["pretrained"]) == rows
    assert len(tried) == 7
    sick = {"0.4", "0.5"}
    with pytest.raises(UserError, match="scratch with 7 labels: each point of its grid has a run that ended sick"):
        filled(tmp_path, labels=["7"], methods=["scratch"])


def test_a_tested_run_that_ends_sick_is_told_after_the_rest(
    runs: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up = baselines.run_network
    sick = {"--seed_everything=1"}

    def network(arguments: list[str], name: str, test: bool) -> Path:
        if test and "-pretrained-" in name and sick & set(arguments):
            raise SickRun("a run ended sick")
        return made_up(arguments, name, test)

    monkeypatch.setattr(baselines, "run_network", network)
    (tmp_path / "search.yaml").write_text(SEARCH)
    (tmp_path / "config.yaml").write_text("{}")
    command = "baselines.py --config config.yaml --init_from logs/lm --search search.yaml --out out.csv"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--methods", "pretrained"])
    for left_out in ("pretrained with 7 labels, full validation, seed 1", ""):
        with pytest.raises(SystemExit) if left_out else nullcontext() as ended:
            in_one_line(baselines.main)
        printed = capsys.readouterr()
        assert f"| 7 | pretrained | {2 if left_out else 3} |" in printed.out
        assert "| all | pretrained | 1 |" in printed.out
        if ended is not None:
            assert ended.value.code == SickRun.exit_code
            assert printed.err == f"error: out.csv is without runs that ended sick: {left_out}\n"
        sick.clear()


def test_a_run_without_a_validation_is_told(
    runs: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "read_record", lambda folder: {"val": {}})
    with pytest.raises(UserError, match="version_0: its validation has no macro_f1 and no accuracy: does its training"):
        filled(tmp_path, labels=["7"], methods=["pretrained"])


def test_a_number_that_yaml_reads_as_a_text_is_one(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(
        "all: {seeds: 1, search_seeds: 1, tfidf: {C: [1, 1e3], class_weight: [balanced]}}"
    )
    (plan,) = plans_in(tmp_path / "search.yaml")
    assert plan.grids["tfidf"] == [{"C": c, "class_weight": "balanced"} for c in (1, 1000.0)]


def test_a_grid_of_one_point_is_not_searched(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = filled(tmp_path, labels=["all"])
    assert [row["method"] for row in rows] == ["pretrained", "other", "scratch", "tfidf"]
    assert all(row["test_macro_f1"] for row in rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"search_seeds": 1, "tfidf": {"C": [1]}}, "give seeds a number"),
        ({"tfidf": {"C": [1], "component": [300]}}, "tfidf has the options C, class_weight, min_df, unlabeled"),
        ({"tfidf": {"min_df": [1]}}, "and needs C"),
        ({"tfidf": {"C": 1}}, r"tfidf: each option needs a list of values, as in `C: \[1, 10\]`"),
        ({"vat": {"model.objective": "VAT"}}, "vat: each option needs a list of values"),
        ({"vat": None}, "vat: each option needs a list of values"),
        (
            {"fixed": {"data.val_fraction": 0.3}, "a": {"data.split_seed": [1]}},
            "data.split_seed, data.val_fraction: in",
        ),
        ({"a": {"b": [1, 2]}, "tfidf": {"C": [1]}}, "the same search budget, not {'a': 2, 'tfidf': 1}"),
        ({"fixed": {"data": {"val_fraction": 0.5}}, "a": {}}, "data: write options in full, as data.NAME: value"),
        ({"a": {"data.labels_per_class": [5]}}, "data.labels_per_class: a row's labels and seed say that"),
        ({"fixed": {"seed_everything": 1}, "a": {}}, "seed_everything: a row's labels and seed say that"),
        ({"fixed": {"model.init_from": "logs/lm"}, "scratch": {}}, "scratch has model.init_from, and starts from"),
        ({"fixed": ["model.dropout"]}, r"fixed: give a mapping of options, not \['model.dropout'\]"),
        ({"tfidf": {"C": ["ten"]}}, "tfidf: C needs numbers: could not convert string to float: 'ten'"),
        ({"seeds": 1, "search_seeds": 0, "a": {"b": [1, 2]}}, "search_seeds must be at least 1 where there are"),
    ],
)
def test_mistakes_in_a_search_file_are_told_before_anything_runs(
    content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    seeds = {} if "search_seeds" in content else {"seeds": 1, "search_seeds": 1}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({"all": {**seeds, **content}}))
    with pytest.raises(UserError, match=rf"search\.yaml, all: .*{message}"):
        plans_in(tmp_path / "search.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("all:\n", "search.yaml, all: give seeds, search_seeds and a grid"),
        ("\tall: {}", "search.yaml: not valid YAML"),
        ("full: {seeds: 1, search_seeds: 1}", "search.yaml, full: give a number of labels a class, or all"),
    ],
)
def test_what_is_no_search_file_is_told(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        plans_in(tmp_path / "search.yaml")


def test_data_that_a_method_cant_have_are_told_before_anything_runs() -> None:
    def data(test: list[str], multilabel: bool) -> Any:
        return SimpleNamespace(test=test, multilabel=multilabel, pairs=False)

    check_corpus(data(["a text"], False), ["pretrained", "tfidf"])
    check_corpus(data(["a text"], True), ["pretrained"])
    with pytest.raises(UserError, match="there are no test documents"):
        check_corpus(data([], False), ["pretrained"])
    with pytest.raises(UserError, match="tfidf: the linear model needs one label a document"):
        check_corpus(data(["a text"], True), ["pretrained", "tfidf"])


@pytest.mark.parametrize(("code", "error"), [(3, SickRun), (2, SystemExit)])
def test_a_sick_run_is_told_from_a_mistake(
    code: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(baselines, "lit_sft", lambda arguments: code)
    with pytest.raises(error):
        baselines.run_network([], "name", test=False)


def test_a_command_that_is_printed_can_be_given_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(baselines, "lit_sft", seen.append)  # None is no mistake's exit code
    baselines.run_network(baselines.as_flags({"model.objective.terms": [{"weight": 0.2}]}), "name", test=False)
    printed = shlex.split(capsys.readouterr().out)
    assert [*printed, "--run_dir=logs/name/version_0"] == ["python", "-m", "lit_sft", *seen[0]]


def test_a_method_that_starts_from_a_pretraining_asks_for_one_before_others_run(
    runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    search = """
all: {seeds: 1, search_seeds: 1, scratch: {model.optimizer.lr: [0.1]}, pretrained: {model.optimizer.lr: [0.1]}}
"""
    with pytest.raises(UserError, match="pretrained starts from a pretraining: give --init_from"):
        filled(tmp_path, search=search, init_from=None)
    assert runs == []
    assert len(filled(tmp_path, search=search, init_from=None, methods=["scratch"])) == 1


def test_a_method_that_can_not_name_a_run_is_told_before_others_run(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    search = SEARCH.replace("scratch:", "from scratch:")
    with pytest.raises(UserError, match="--name baselines-out-from scratch-7: use letters, digits"):
        filled(tmp_path, search=search)
    assert runs == []


def test_methods_of_an_own_objective_term_encoder_and_metric_are_trained_and_tested(
    files: Files, tmp_path: Path, example: Callable[[str], None]
) -> None:
    """The README's, as a user calls the script: in a process of its own, with these files where it runs."""
    for name in ("my_objective", "my_term", "my_encoder"):
        example(f"{name}.py")
    term = {"class_path": "my_term.ConfidencePenalty", "init_args": {"weight": 0.2}}
    own = {
        "objective": {"model.objective": "my_objective.ConfidencePenalty", "model.objective.weight": 0.2},
        "term": {"model.objective": "lit_sft.objectives.Mixed", "model.objective.terms": [term]},
        "encoder": {"model.encoder": "my_encoder.GRUEncoder", "model.encoder.size": 16},
    }
    methods = {name: {key: [v] for key, v in {**o, "model.init_from": None}.items()} for name, o in own.items()}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({9: {"seeds": 1, "search_seeds": 1, **methods}}))
    options: Any = tiny_options(files, "finetune")
    shutil.copy(ROOT / "tests" / "own_figures.py", tmp_path)
    options["model"]["metrics"] = {"documents": {"class_path": "own_figures.Documents"}}
    options["model"]["init_from"] = "nowhere"  # which the methods override
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(options))
    command = [sys.executable, str(ROOT / "scripts" / "baselines.py"), "--config", "tiny.yaml"]
    command += ["--search", "search.yaml", "--out", "out.csv"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in read_lines(tmp_path / "out.csv")}
    assert set(rows) == set(own)
    models = {}
    for name, row in rows.items():
        run = tmp_path / row["run"]
        tested = read(run / "metrics.json")["test"]
        assert (float(row["test_macro_f1"]), tested["documents"]) == (tested["macro_f1"], 130)
        assert (run / "predictions.parquet").is_file()
        models[name] = read(run / "config.yaml")["model"]
    assert models["objective"]["objective"]["class_path"] == own["objective"]["model.objective"]
    assert models["term"]["objective"]["init_args"]["terms"][0]["class_path"] == term["class_path"]
    assert models["encoder"]["encoder"] == {"class_path": "my_encoder.GRUEncoder", "init_args": {"size": 16}}
