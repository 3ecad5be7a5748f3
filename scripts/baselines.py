"""The same labels three ways: fine-tuned from a pretrained model, from scratch, and TF-IDF + logistic regression.

    python scripts/baselines.py --config configs/pydocs/finetune.yaml --init_from logs/pydocs/version_0 \\
        --search scripts/search/pydocs.yaml --out scripts/results/pydocs.csv

A cell is one method (a row of the table) at one label count and one seed. The search file names the methods: ``tfidf…``
is the linear model, ``scratch`` a network with random initial weights, and any other name a network that starts from
``--init_from``, or from the ``model.init_from`` in its own options (so objectives and pretrainings can be compared as
well). A seed determines the subset, the initial weights and the order of the data.

For each method and label count, the grid of the search file is run first, on the first ``search_seeds`` seeds, and the
options with the best mean validation figure (``--metric``) are chosen. Every method's grid has the same number of
points and reads the same validation data. (The config's ``checkpoint.monitor`` chooses the epoch within a run.) The
chosen options are then run on every seed, and only these runs are tested. Each run is an ordinary ``lit_sft fit`` and
``test``, called in this process; its flags are printed, so any cell can be repeated by hand. Options may name your own
objective, term or encoder, from a file in the current directory.

Each run appends a line to the CSV, and runs that are already in the CSV are skipped. If a config has changed, all cells
are run again, and the lines of the old or the new config must be removed before a table can be printed. (If the text in
the files that a config names has changed, start a new CSV.) A seed whose tested run ends sick gets no line: it is
reported at the end, and tried again by the next call. Two calls for different ``--methods`` or ``--labels`` may run at
the same time. Every tested run, including the linear model's, writes its predictions for scripts/paired.py to its
folder ``logs/baselines-OUT-METHOD-LABELS/version_K/`` (``…-small`` for the small validation set), which the CSV names;
the intervals over test documents are computed from them and written to ``OUT.intervals.csv``.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from contamination import data_options
from linear import OPTIONS as LINEAR_OPTIONS
from linear import linear_model
from one_line import in_one_line
from paired import write_intervals
from report import append_line, read_lines, table

from lit_sft.checkpoints import read_config
from lit_sft.data.corpus import Corpus
from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import SickRun, UserError
from lit_sft.main import main as lit_sft
from lit_sft.measured_data import VALIDATED
from lit_sft.options import GROUPS, read_config_file, read_yaml
from lit_sft.runs import new_run, read_record, run_name

# The columns that identify a run: "start" is --init_from, if the method uses it; "config" is a hash of the contents of
# the configs (and of small_val, for the small validation set).
CELL = ("method", "labels", "val", "seed", "options", "start", "config")
FIELDS = (*CELL, "val_macro_f1", "val_accuracy", "test_macro_f1", "test_accuracy", "run")
PLAN = ("small_val", "seeds", "search_seeds", "fixed")  # keys of a label count in a search file; others are methods
SHOWN = ("macro_f1", "accuracy")  # the choices of --metric
# The options that determine the documents, which must be the same for all methods.
DOCUMENTS = [name for name in VALIDATED if name not in ("max_length", "max_response_length", "truncation", "unlabeled")]
Options = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The search file's entry for one label count: the numbers of seeds, and the grid points of each method.

    ``small_val``: documents per class in the small validation set, which has no more than the training labels; None:
    the small validation set is not used.
    """

    labels: str
    small_val: int | None
    seeds: int
    search_seeds: int
    grids: dict[str, list[Options]]  # by method, in the order of the file


class Results:
    """The CSV, with one line per run; runs without test figures belong to the search."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = read_lines(path)

    def find(self, tested: bool, **cell: Any) -> dict[str, str] | None:
        wanted = {key: str(value) for key, value in cell.items()}
        for row in self.rows:
            # older files have no columns "start" and "config"
            if all(row.get(k, v) == v for k, v in wanted.items()) and (not tested or row["test_macro_f1"]):
                return row
        return None

    def add(self, row: dict[str, Any]) -> dict[str, str]:
        """Append a run's line."""
        plain = {field: str(row.get(field, "")) for field in FIELDS}
        append_line(self.path, plain)
        self.rows.append(plain)
        return plain


class Cells:
    """Runs one cell of any method."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.data = functools.lru_cache(maxsize=2)(self._data)  # the points of a grid share the search seeds' data
        self.methods: list[str] = []
        self.checked = False

    def run(self, plan: Plan, method: str, val: str, seed: int, options: Options, test: bool) -> dict[str, Any]:
        """Validation figures; with ``test``, also test figures and the ``run``'s folder, which has its predictions."""
        if not self.checked:  # only before the first run: not needed if the CSV has all cells
            check_corpus(self.corpus(), self.methods)
            self.checked = True
        subsets = {"labels_per_class": None if plan.labels == "all" else int(plan.labels)}
        subsets["val_labels_per_class"] = plan.small_val if val == "small" else None
        name = self.name(plan, method, val)
        figures: dict[str, Any]
        if method.startswith("tfidf"):
            folder = new_run(name) if test else None
            data = self.data(seed, subsets["labels_per_class"], subsets["val_labels_per_class"])
            figures = linear_model(data, options, folder, ("val", "test") if test else ("val",))
        else:
            # no early stopping, unless a grid sets it: a network from scratch learns late, and the best checkpoint is
            # the one measured
            to_its_end = {"early_stopping.patience": 0}
            flags = as_flags(to_its_end | {f"data.{key}": value for key, value in subsets.items()} | options)
            flags.append(f"--seed_everything={seed}")
            if "model.init_from" not in options:
                flags.append(f"--model.init_from={self.start(method, options) or 'null'}")  # whatever a config says
            configs = [part for path in self.arguments.config for part in ("--config", str(path))]
            folder = run_network([*configs, *flags], name, test)
            record = read_record(folder)
            if missing := [name for name in SHOWN if name not in record.get("val", {})]:
                raise UserError(
                    f"{folder}: its validation has no {' and no '.join(missing)}: does its training end before the "
                    "first one (trainer.check_val_every_n_epoch, trainer.val_check_interval)?"
                )
            if not (test and self.arguments.keep_tested):
                shutil.rmtree(folder / "checkpoints")  # a table leaves hundreds of runs behind
            figures = {f"{split}_{k}": record[split][k] for split in ("val", "test") if split in record for k in SHOWN}
        return figures | ({"run": folder} if test else {})

    def name(self, plan: Plan, method: str, val: str) -> str:
        """The name of a row's runs, which are in ``logs/NAME``."""
        return f"baselines-{self.arguments.out.stem}-{method}-{plan.labels}" + ("-small" if val == "small" else "")

    def cell(self, plan: Plan, method: str, val: str, seed: int, options: Options) -> dict[str, Any]:
        """The columns that identify a run in the CSV."""
        chosen, start = json.dumps(options, sort_keys=True), self.start(method, options)
        config = digest([self.config, plan.small_val]) if val == "small" else self.config
        return dict(zip(CELL, (method, plan.labels, val, seed, chosen, start, config), strict=True))

    @functools.cached_property
    def config(self) -> str:
        """A hash of the configs' contents, which changes if they do."""
        return digest([whole_config(path) for path in self.arguments.config])

    def start(self, method: str, options: Options) -> str:
        """``--init_from``, if the method's runs start from it; else the empty string."""
        if method == "scratch" or method.startswith("tfidf") or "model.init_from" in options:
            return ""
        if self.arguments.init_from is None:
            raise UserError(f"{method} starts from a pretraining: give --init_from")
        return str(self.arguments.init_from)

    def options(self) -> Options:
        """The data options of the configs."""
        found: Options = {}
        for path in self.arguments.config:
            found |= data_options(path)
        return found

    def corpus(self) -> Corpus:
        """The documents, as they are read."""
        return TextDataModule(**self.options()).preparation.ungated()

    def _data(self, seed: int, labels_per_class: int | None, val_labels_per_class: int | None) -> TextDataModule:
        """The data module of the configs, for the methods that read text."""
        subsets = {"labels_per_class": labels_per_class, "val_labels_per_class": val_labels_per_class, "seed": seed}
        data = TextDataModule(**self.options() | subsets)
        data.prepare_data()
        data.setup()
        return data


def whole_config(path: Path) -> Options:
    """The options of a config, with those of the files that it names for its groups, such as ``data``."""
    return {
        name: whole_config(path.parent / value) if name in GROUPS and isinstance(value, str) else value
        for name, value in read_config_file(path).items()
    }


def digest(content: Any) -> str:
    """12 hex digits of a hash of the contents of configs, independent of comments and the order of options."""
    return hashlib.sha256(yaml.safe_dump(content).encode()).hexdigest()[:12]


def as_flags(options: Options) -> list[str]:
    """Options as ``lit_sft`` takes them on its command line."""

    def text(value: Any) -> str:
        return json.dumps(value) if isinstance(value, dict | list | None) else str(value)

    return [f"--{key}={text(value)}" for key, value in options.items()]


def run_network(arguments: list[str], name: str, test: bool) -> Path:
    """Run ``lit_sft fit`` and optionally ``test`` in this process; returns the run's folder, in ``logs/NAME``.

    A run that learns nothing is not stopped: its poor figure is a result. The test is given the encoder and metrics of
    the fit, since they may be the user's own, and a checkpoint alone can't name code.

    Raises:
        SickRun: if the run couldn't finish (its loss isn't finite).
        SystemExit: if it ended with any other error.
    """
    command = ["fit", *arguments, f"--name={name}", "--trainer.enable_progress_bar=false"]
    command.append("--health.collapse_patience=0")
    print("python -m lit_sft", shlex.join(command), flush=True)
    folder = new_run(name)
    _check(lit_sft([*command, f"--run_dir={folder}"]))
    if test:
        model = read_config(folder)["model"]
        own = as_flags({f"model.{key}": model[key] for key in ("encoder", "metrics") if model.get(key)})
        _check(lit_sft(["test", "--ckpt_path", str(folder), *own, "--trainer.enable_progress_bar=false"]))
    return folder


def search(cells: Cells, results: Results, plan: Plan, method: str, val: str) -> Options:
    """The grid point with the best mean validation figure over the search seeds; a single point needs no run.

    A point with a run that couldn't finish is not chosen.
    """
    if len(plan.grids[method]) == 1:
        return plan.grids[method][0]
    scores, figure = [], f"val_{cells.arguments.metric}"
    for options in plan.grids[method]:
        found = []
        for seed in range(plan.search_seeds):
            cell = cells.cell(plan, method, val, seed, options)
            row = results.find(False, **cell)
            if row is None:
                row = results.add({**cell, **searched(cells, plan, method, val, seed, options)})
            if not row.get(figure):
                raise UserError(f"{cells.arguments.out}: a line has no {figure}: another --metric, or a new --out")
            found.append(float(row[figure]))
        scores.append(float(np.mean(found)))
    if np.isnan(scores).all():
        raise UserError(f"{method} with {plan.labels} labels: each point of its grid has a run that ended sick")
    return plan.grids[method][int(np.nanargmax(scores))]


def searched(cells: Cells, plan: Plan, method: str, val: str, seed: int, options: Options) -> dict[str, Any]:
    """Validation figures of a grid point; NaN if its run couldn't finish."""
    try:
        return cells.run(plan, method, val, seed, options, test=False)
    except SickRun:
        return {f"val_{name}": float("nan") for name in SHOWN}


def fill(cells: Cells, results: Results, plans: list[Plan], vals: list[str], methods: list[str] | None) -> list[str]:
    """Run every cell of these methods (None: all) that the CSV lacks; returns the tested ones that ended sick.

    Raises:
        UserError: before anything runs, if a method starts from a pretraining and there is none, or can't name a run.
    """
    rows = [
        (plan, method, val)
        for val, plan in itertools.product(vals, plans)
        for method in plan.grids
        if (methods is None or method in methods) and not (val == "small" and plan.small_val is None)
    ]
    for plan, method, val in rows:
        if not method.startswith("tfidf"):
            run_name(None, cells.name(plan, method, val))
        for options in plan.grids[method]:
            cells.start(method, options)
    cells.methods = [method for _, method, _ in rows]
    return [
        f"{method} with {plan.labels} labels, {val} validation, seed {seed}"
        for plan, method, val in rows
        for seed in fill_method(cells, results, plan, method, val)
    ]


def fill_method(cells: Cells, results: Results, plan: Plan, method: str, val: str) -> list[int]:
    """Run the search of a method at one label count, then the chosen options on every seed; returns the sick seeds."""
    options, sick = search(cells, results, plan, method, val), []
    for seed in range(plan.seeds):
        cell = cells.cell(plan, method, val, seed, options)
        if results.find(True, **cell) is None:
            try:
                results.add({**cell, **cells.run(plan, method, val, seed, options, test=True)})
            except SickRun:
                sick.append(seed)
    return sick


def plans_in(path: Path, only: list[str] | None = None) -> list[Plan]:
    """The plans of a search file (see scripts/search/pydocs.yaml), or those of some label counts.

    Raises:
        UserError: if the file has another form; a number of seeds is missing; a grid is malformed, or has an option
            that it may not have; or the methods' grids differ in their number of points, i.e. in their search budget.
    """
    plans = []
    for labels, content in read_yaml(path).items():
        where = f"{path}, {labels}"
        if labels != "all" and not str(labels).isdigit():
            raise UserError(f"{where}: give a number of labels a class, or all")
        if not isinstance(content, dict):
            raise UserError(f"{where}: give seeds, search_seeds and a grid for each method")
        if missing := [name for name in ("seeds", "search_seeds") if not isinstance(content.get(name), int)]:
            raise UserError(f"{where}: give {' and '.join(missing)} a number")
        fixed = content.get("fixed") or {}
        if not isinstance(fixed, dict):
            raise UserError(f"{where}: fixed: give a mapping of options, not {fixed!r}")
        grids: dict[str, list[Options]] = {}
        for method in [name for name in content if name not in PLAN]:
            points = points_of(where, method, content[method])
            grids[method] = [{**(fixed if not method.startswith("tfidf") else {}), **point} for point in points]
        check_options(where, grids)
        if len({len(grid) for grid in grids.values()}) != 1:
            sizes = {method: len(grid) for method, grid in grids.items()}
            raise UserError(f"{where}: every method gets the same search budget, not {sizes}")
        if content["search_seeds"] < 1 and any(len(grid) > 1 for grid in grids.values()):
            raise UserError(f"{where}: search_seeds must be at least 1 where there are points to choose from")
        plans.append(Plan(str(labels), content.get("small_val"), content["seeds"], content["search_seeds"], grids))
    return [plan for plan in plans if only is None or plan.labels in only]


def check_options(where: str, grids: dict[str, list[Options]]) -> None:
    """Raise a UserError for options that contradict a row's method, labels or seed.

    Also for options that would give the networks other documents than the linear model.
    """
    named = {name for grid in grids.values() for point in grid for name in point}
    if groups := sorted(named & set(GROUPS)):
        raise UserError(f"{where}: {', '.join(groups)}: write options in full, as {groups[0]}.NAME: value")
    if said := sorted(named & {"data.labels_per_class", "data.seed", "seed_everything"}):
        raise UserError(f"{where}: {', '.join(said)}: a row's labels and seed say that")
    if any(point.get("model.init_from") for point in grids.get("scratch", ())):
        raise UserError(
            f"{where}: scratch has model.init_from, and starts from nothing: give it to other methods alone"
        )
    if documents := sorted(named & {f"data.{option}" for option in DOCUMENTS}):
        raise UserError(f"{where}: {', '.join(documents)}: in a --config, where the linear model reads it, too")


def points_of(where: str, method: str, lists: Any) -> list[Options]:
    """The points of a method's grid.

    Raises:
        UserError: if an option has no list of values, the linear model doesn't have it, or a C is not a number.
    """
    if not isinstance(lists, dict) or not all(isinstance(values, list) and values for values in lists.values()):
        raise UserError(f"{where}: {method}: each option needs a list of values, as in `C: [1, 10]`")
    if method.startswith("tfidf") and (set(lists) - set(LINEAR_OPTIONS) or "C" not in lists):
        raise UserError(f"{where}: {method} has the options {', '.join(LINEAR_OPTIONS)}, and needs C")
    if method.startswith("tfidf"):
        try:
            lists = lists | {"C": [float(c) if isinstance(c, str) else c for c in lists["C"]]}  # YAML's 1e3 is a text
        except ValueError as error:
            raise UserError(f"{where}: {method}: C needs numbers: {error}") from error
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def check_corpus(corpus: Corpus, methods: list[str]) -> None:
    """Raise a UserError for documents that can't be tested on, or that one of the methods doesn't support."""
    if not len(corpus.test):
        raise UserError("there are no test documents: give data.test in a config")
    if corpus.pairs:
        raise UserError("prompts with responses have no labels: scripts/nearest.py has the row to compare a model with")
    linear = sorted({method for method in methods if method.startswith("tfidf")})
    if corpus.multilabel and linear:
        raise UserError(
            f"{', '.join(linear)}: the linear model needs one label a document, and the data have any number: choose "
            "others by --methods"
        )


def _check(code: int) -> None:
    if code == SickRun.exit_code:
        raise SickRun("a run ended sick, as the line above says")
    if code:
        raise SystemExit(code)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--config", type=Path, nargs="+", required=True, help="a fine-tuning config, and others that win over it"
    )
    options.add_argument("--init_from", help="the pretraining that cells start from, unless their method says another")
    options.add_argument("--methods", nargs="+", help="some of the search file's methods")
    options.add_argument("--labels", nargs="+", help="some of the search file's label counts")
    options.add_argument(
        "--val", nargs="+", default=["full"], choices=("full", "small"), help="small: no more than training labels"
    )
    options.add_argument(
        "--metric", default="macro_f1", choices=SHOWN, help="the validation figure that chooses options"
    )
    options.add_argument("--keep_tested", action="store_true", help="keep the checkpoints of the tested runs")
    options.add_argument("--search", type=Path, required=True, help="YAML: seeds and grids for each label count")
    options.add_argument("--out", type=Path, required=True, help="the CSV of all runs")
    return options


def main() -> None:
    """Fill the CSV, then print the table."""
    arguments = parser().parse_args()
    plans = plans_in(arguments.search, arguments.labels)
    if unknown := set(arguments.methods or ()) - {method for plan in plans for method in plan.grids}:
        raise UserError(f"{arguments.search} has no method {', '.join(sorted(unknown))}")
    if unknown := set(arguments.labels or ()) - {plan.labels for plan in plans}:
        raise UserError(f"{arguments.search} has no label count {', '.join(sorted(unknown))}")
    results = Results(arguments.out)
    sick = fill(Cells(arguments), results, plans, arguments.val, arguments.methods)
    if not sick or any(row["test_macro_f1"] for row in results.rows):
        write_intervals(arguments.out)
        print(table(arguments.out))
    if sick:
        raise SickRun(f"{arguments.out} is without runs that ended sick: {'; '.join(sick)}")


if __name__ == "__main__":
    in_one_line(main)
