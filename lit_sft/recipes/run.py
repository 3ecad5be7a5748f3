"""Recipes: a YAML with ``stages:``, run one after the other, each in a process of its own.

    stages:
      - name: pretrain
        config: quickstart/pretrain.yaml    # relative to the recipe; other keys may stand beside it
      - name: finetune
        config: quickstart/finetune.yaml    # starts from the stage before, or from what init_from names: a stage, a
                                            # list of two for a TwoWayEncoder, or null
    test: true                              # test the last stage at the end

Flags and further configs apply to every stage. ``--finetune.model.optimizer.lr 0.01``, and options under ``finetune:``
in a further config, apply to that stage alone, after the others.

A process per stage costs a few seconds of start-up each, but gives every stage fresh memory, a new Trainer and a new
random state, so that a stage of a recipe and the same stage run by hand give the same numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from jsonargparse import Namespace

from lit_sft.atomic import write_atomically
from lit_sft.checkpoints import names_in, resolve, saved
from lit_sft.cli import check
from lit_sft.errors import UserError, nearest
from lit_sft.measured_data import has_own_splits
from lit_sft.options import read_yaml, values_of
from lit_sft.processes import launched, run_process
from lit_sft.recipes.check import check_starts
from lit_sft.recipes.file import Recipe, Stage, flags_of
from lit_sft.recipes.record import joined_record
from lit_sft.runs import (
    LOGS,
    RECORD,
    discard_run,
    new_run,
    read_record,
    run_name,
    told,
    unfinished_run,
    versions,
    write_record,
)


@dataclass(frozen=True)
class Run:
    """A recipe's run. ``sources`` maps the name of each stage to run to what it starts from besides these stages."""

    recipe: Recipe
    folder: Path
    sources: dict[str, list[str]]
    flags: list[str]

    @property
    def stages(self) -> list[Stage]:
        """The stages of this run, in order."""
        return [stage for stage in self.recipe.stages if stage.name in self.sources]


def run_recipe(recipe: Recipe, arguments: list[str]) -> None:
    """Run the stages that aren't finished, test the last one, and write the recipe's record.

    The options and data of all stages that are to run are checked before the first one starts, so that a mistake in the
    last stage is reported now and not hours later.

    Raises:
        UserError: a mistake in an option, an unknown stage name, or nothing to resume or start from.
        SystemExit: a stage failed; with its exit code.
    """
    options, flags = _recipe_options(arguments)
    resumed = _resumed(recipe, options, flags) if options.ckpt_path else None
    chosen = resumed.stages if resumed else _chosen(recipe, options.stages, flags)
    if any(flag.startswith("--print_config") for flag in flags):
        _print_configs(recipe, chosen, flags)
        return
    finished = {stage.name for stage in chosen if resumed and (resumed.folder / stage.name / RECORD).is_file()}
    options_of = {stage.name: check_stage(recipe, stage, flags, stage.name in finished) for stage in chosen}
    check_starts(recipe, chosen, options_of, given=bool(options.init_from or options.ckpt_path))
    if any(stage_options.trainer.fast_dev_run for stage_options in options_of.values()):
        names = {stage.name for stage in chosen}
        for stage in chosen:  # a dry run keeps no weights: a stage that starts from one of these starts from nothing
            inside = bool(stage.init_from) and names >= {*stage.init_from}
            given = options.init_from and not stage.from_nothing and not inside
            _call("fit", recipe, stage, flags, *(["--model.init_from", options.init_from] if given else []))
        return
    run = resumed or _new(recipe, chosen, options, flags)
    try:
        for stage in run.stages:
            _run_stage(run, stage)
    except SystemExit as ended:
        by_signal = isinstance(ended.code, int) and ended.code > 128  # not a mistake: the run can be resumed
        if not by_signal and not any((run.folder / stage.name).is_dir() for stage in run.stages):
            discard_run(run.folder, [run.folder, run.folder.parent])
        raise
    last = run.stages[-1]
    data = options_of[last.name].data
    if recipe.test and not data.test and not has_own_splits(data):
        later = f"python -m lit_sft test --ckpt_path {run.folder} --data.test FILE"
        print(f"== stage {last.name} has no test data: later, {later}", flush=True)
    elif recipe.test and "test" not in read_record(run.folder / last.name):
        print(f"== test of {run.folder / last.name}", flush=True)
        _call("test", recipe, last, flags, "--ckpt_path", str(run.folder / last.name))
    _write_recipe_record(run)


def check_stage(recipe: Recipe, stage: Stage, flags: list[str], finished: bool = False) -> Namespace:
    """Check a stage's options, and its data unless it has finished, without running it; return the options."""
    with _command("fit", recipe, stage, flags) as command:
        try:
            options, data = check(command)
            if not finished:  # its text may be gone
                data.check_sources()
                data.check_documents()
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from error
    return options


def _print_configs(recipe: Recipe, stages: list[Stage], flags: list[str]) -> None:
    """Print all options of each stage with their values, as ``--print_config`` does for a single stage."""
    for stage in stages:
        print(f"# stage {stage.name}", flush=True)
        with suppress(SystemExit):  # after it has printed
            check_stage(recipe, stage, flags)


def _recipe_options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the recipe's own options, and the flags for its stages."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", "-c", action="append")
    parser.add_argument("--name")
    parser.add_argument("--stages")
    parser.add_argument("--ckpt_path")
    parser.add_argument("--model.init_from", dest="init_from")
    options, flags = parser.parse_known_args(arguments)
    if options.ckpt_path not in (None, "last"):
        raise UserError("a recipe resumes with --ckpt_path last; to start from a checkpoint use --model.init_from")
    if launched() > 1:
        raise UserError(
            "a recipe is one process, which starts others itself (--trainer.devices): a launcher's processes "
            "take the stages one by one, fit --config STAGE.yaml --run_dir FOLDER"
        )
    if values_of(flags, "--run_dir"):
        raise UserError("--run_dir is an option of a single stage; a recipe's runs are in logs/NAME: give --name")
    return options, flags


def _chosen(recipe: Recipe, names: str | None, flags: list[str]) -> list[Stage]:
    known = [stage.name for stage in recipe.stages]
    wanted = known if names is None else names.split(",")
    for name in wanted:
        if name not in known:
            raise UserError(f"--stages {name}: {nearest(name, known)}{recipe.path} has the stages {', '.join(known)}")
    _check_flags(set(known) - set(wanted), flags, f"with --stages {names}")
    return [stage for stage in recipe.stages if stage.name in wanted]


def _check_flags(names: set[str], flags: list[str], why: str) -> None:
    """Raise a UserError for a flag of a stage that doesn't run."""
    for name in sorted(names):
        if given := [flag for flag in flags if flag.startswith(f"--{name}.")]:
            raise UserError(f"{given[0]}: stage {name} doesn't run {why}")


def _new(recipe: Recipe, stages: list[Stage], options: argparse.Namespace, flags: list[str]) -> Run:
    """Create the folder of a new run, after finding out what every stage starts from."""
    name = run_name(str(recipe.path), options.name)
    given = [str(resolve(source, "init_from")) for source in names_in(options.init_from)]
    names = [stage.name for stage in stages]
    sources: dict[str, list[str]] = {}
    for stage in stages:
        missing = [start for start in stage.init_from if start not in names]  # the others are found after they have run
        if stage.from_nothing:
            sources[stage.name] = []
        elif given and (missing or not stage.init_from):
            sources[stage.name] = given
        else:
            sources[stage.name] = [str(_finished_pretraining(LOGS / name, start)) for start in missing]
    if given and given not in sources.values():
        raise UserError(f"--model.init_from {options.init_from}: none of the stages {', '.join(names)} starts from it")
    folder = new_run(name)
    config = {
        "stages": [{"name": stage.name, "init_from": stage.init_from} for stage in stages],
        "recipe_stages": [stage.name for stage in recipe.stages],
        "init_from": options.init_from,
        "test": recipe.test,
        "recipe": str(recipe.path),
        "configs": [str(path) for path in recipe.extra],
        "flags": flags,
        "sources": sources,
    }
    write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    return Run(recipe, folder, sources, flags)


def _resumed(recipe: Recipe, options: argparse.Namespace, flags: list[str]) -> Run:
    """Return the newest unfinished run, with the stages and sources it began with; the recipe may have changed."""
    folder = unfinished_run(run_name(str(recipe.path), options.name))
    config = read_yaml(folder / "config.yaml")
    known = [stage.name for stage in recipe.stages]
    sources = config.get("sources")
    if not isinstance(sources, dict) or not set(sources) <= set(known):
        raise UserError(f"--ckpt_path last: {folder} is not a run of {recipe.path}; leave it out to start a new run")
    begun = {stage["name"]: stage["init_from"] for stage in config["stages"]}
    for stage in recipe.stages:
        if stage.name in sources and stage.init_from != begun[stage.name]:
            asked, had = (", ".join(starts) or "nothing" for starts in (stage.init_from, begun[stage.name]))
            raise UserError(
                f"--ckpt_path last: stage {stage.name} of {recipe.path} starts from {asked}, and in {folder} from "
                f"{had}: put that back, or leave --ckpt_path out to start a new run"
            )
    if added := [name for name in known if name not in config.get("recipe_stages", known)]:
        raise UserError(
            f"--ckpt_path last: stage {added[0]} came into {recipe.path} after {folder} had begun: take it out to "
            f"finish that run, then run it by itself, --stages {added[0]}"
        )
    _check_flags(set(known) - set(sources), flags, f"in {folder}, which is resumed")
    if options.stages and {stage.name for stage in _chosen(recipe, options.stages, flags)} != set(sources):
        raise UserError(f"--stages {options.stages}: {folder}, which is resumed, has the stages {', '.join(sources)}")
    given = names_in(options.init_from)
    same = options.init_from == config.get("init_from")  # it may be gone, and no longer needed
    if given and not same and _files(given) not in [_files(starts) for starts in sources.values() if starts]:
        raise UserError(
            f"--model.init_from {options.init_from}: {folder}, which is resumed, began from another; leave it out"
        )
    for what, now in (("flags", flags), ("configs", [str(path) for path in recipe.extra])):
        if config.get(what) != now:
            print(f"== resumed with other {what} than before: {config.get(what)} -> {now}", flush=True)
    return Run(recipe, folder, sources, flags)


def _files(starts: list[str]) -> list[Path]:
    """Return the checkpoints that these name, as full paths, so that different spellings of a path compare equal."""
    return [resolve(start, "init_from").resolve() for start in starts]


def _finished_pretraining(root: Path, stage: str) -> Path:
    """Return the stage's folder in the newest run that has finished it."""
    for run in reversed(versions(root)):
        if (run / stage / RECORD).is_file():
            return run / stage
    raise UserError(f"no finished {stage} in {root}: run the whole recipe, or give --model.init_from RUN_OR_CKPT")


def _run_stage(run: Run, stage: Stage) -> None:
    """Run a stage as an ordinary ``fit`` into its folder: skip it if finished, resume it if it has a checkpoint."""
    folder = run.folder / stage.name
    if (folder / RECORD).is_file():
        return
    print(f"== stage {stage.name}: {folder}", flush=True)
    inside = [str(resolve(run.folder / name, "ckpt_path")) for name in stage.init_from if name in run.sources]
    starts = inside + run.sources[stage.name]
    more = ["--run_dir", str(folder)]
    if starts:
        more += ["--model.init_from", starts[0] if len(starts) == 1 else json.dumps(starts)]
    if saved(folder / "checkpoints" / "last.ckpt"):
        more += ["--ckpt_path", "last"]
    _call("fit", run.recipe, stage, run.flags, *more)


@contextmanager
def _command(command: str, recipe: Recipe, stage: Stage, flags: list[str], *more: str) -> Iterator[list[str]]:
    """Yield the arguments of a command on a stage: its configs, its own options as temporary configs, and its flags."""
    with tempfile.TemporaryDirectory() as temporary:
        arguments = [command]
        for number, config in enumerate(stage.configs):
            path = config if isinstance(config, Path) else Path(temporary) / f"{stage.name}-{number}.yaml"
            if isinstance(config, dict):
                path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
            arguments += ["--config", str(path)]
        yield [*arguments, *flags_of(stage.name, {s.name for s in recipe.stages}, flags), *more]


def _call(command: str, recipe: Recipe, stage: Stage, flags: list[str], *more: str) -> None:
    """Run a command on a stage in a process of its own; raise a SystemExit with its exit code if it fails."""
    with _command(command, recipe, stage, flags, *more) as arguments:
        code = run_process([sys.executable, "-m", "lit_sft", *arguments])
    if code > 128:
        print(f"lit_sft: {command} of stage {stage.name} was ended by signal {code - 128}", file=sys.stderr)
    if code != 0:
        raise SystemExit(code)


def _write_recipe_record(run: Run) -> None:
    """Write the recipe's own ``metrics.json`` and print the result."""
    record = joined_record([(stage.name, read_record(run.folder / stage.name)) for stage in run.stages])
    write_record(run.folder / RECORD, record)
    split = "test" if "test" in record else "val"
    print(f"== {run.folder}: {split} {told(record, split)}")
