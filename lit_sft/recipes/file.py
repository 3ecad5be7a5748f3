"""Recipe files: which stages there are, in which order, and what each starts from."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_sft.errors import UserError, nearest
from lit_sft.options import GROUPS, read_config_file, values_of
from lit_sft.recipes.record import RECORD_KEYS

KEYS = {"stages", "test"}
OPTIONS = {*GROUPS, "seed_everything", "name", "run_dir", "ckpt_path", "config", "stages"}  # of a fit, up to a dot
OF_ALL = ("name", "run_dir", "ckpt_path", "stages", "model.init_from")  # not allowed as flags of one stage
NAME = re.compile(r"[A-Za-z0-9_][\w-]*")


@dataclass(frozen=True)
class Stage:
    """One stage: its folder's name, its configs, and the earlier stages it starts from.

    ``configs``: files and options, first the recipe's for this stage, then the user's for all stages and for this one.
    ``from_nothing``: its ``init_from`` is null, so that it starts from nothing even if the user names a checkpoint.
    """

    name: str
    configs: list[Path | dict[str, Any]]
    init_from: list[str]
    from_nothing: bool = False


@dataclass(frozen=True)
class Recipe:
    """A recipe file: its stages in order and whether the last is tested. ``extra``: the user's further configs."""

    path: Path
    stages: list[Stage]
    test: bool
    extra: list[Path]


def recipe_in(arguments: list[str]) -> Recipe | None:
    """Return the recipe that ``--config`` names, or None if it names a single stage's config.

    Raises:
        UserError: a config doesn't exist, isn't YAML, or is a recipe with a mistake in it.
    """
    configs = [Path(path) for path in values_of(arguments, "--config", "-c")]
    contents = {path: read_config_file(path) for path in configs}
    recipes = [path for path in configs if "stages" in contents[path]]
    if not recipes:
        return None
    path, *more = recipes
    if more:
        raise UserError(f"--config {path} and {more[0]}: two recipes at once")
    if extra := ", ".join(sorted(map(str, set(contents[path]) - KEYS))):
        raise UserError(f"{path}: a recipe has the keys stages and test only, not {extra}; these belong into a stage")
    content, others = contents[path], [p for p in configs if p != path]
    stages = _stages(path, content["stages"])
    names = {stage.name for stage in stages}
    for other in others:
        for key, options in contents[other].items():
            _check_near(str(key), names, f"{other}: {key}")
            if key in names and not isinstance(options, dict):
                raise UserError(f"{other}: {key} must hold options of that stage, not {options!r}")
            for name, value in (options if key in names else {key: options}).items():
                if name in OF_ALL and value is not None:
                    raise UserError(f"{other}: {name}: a recipe takes it on the command line only, --{name} {value}")
    further = [(other, contents[other]) for other in others]
    stages = [replace(stage, configs=stage.configs + _parts(stage.name, names, further)) for stage in stages]
    return Recipe(path, stages, bool(content.get("test", True)), others)


def _parts(stage: str, names: set[str], further: list[tuple[Path, dict[str, Any]]]) -> list[Path | dict[str, Any]]:
    """Return the options that further configs have for every stage, then those for this one."""
    common = [
        path if names.isdisjoint(content) else _beside(path, {k: v for k, v in content.items() if k not in names})
        for path, content in further
    ]
    return [*common, *(_beside(path, content[stage]) for path, content in further if stage in content)]


def flags_of(stage: str, names: set[str], flags: list[str]) -> list[str]:
    """Return the flags of a stage: those for all stages, then its own (``--STAGE.option``), which override them."""
    found: dict[str, list[str]] = {name: [] for name in ("", *names)}
    to = ""
    for part in flags:
        if part.startswith("--"):  # else it is the value of the flag before
            name, _, option = part[2:].partition(".")
            to = name if option and name in names else ""
            if to and option.partition("=")[0] in OF_ALL:
                raise UserError(f"{part}: a recipe has one for all its stages, --{option}")
            if option:
                _check_near(name, names, part)
        found[to].append(f"--{option}" if to and part.startswith("--") else part)
    return found[""] + found[stage]


def _check_near(name: str, names: set[str], where: str) -> None:
    """Raise a UserError if a name is neither a group of options nor a stage, but most similar to a stage."""
    hint = nearest(name, names)
    if name not in {*OPTIONS, *names} and hint and hint == nearest(name, [*names, *OPTIONS]):
        raise UserError(f"{where}: there is no stage {name}; {hint.strip()}")


def _beside(file: Path, options: Any) -> Any:
    """Return a file's options for use in another file: YAML files that they name are resolved relative to ``file``."""
    if isinstance(options, dict):
        return {key: _beside(file, value) for key, value in options.items()}
    if isinstance(options, list):
        return [_beside(file, value) for value in options]
    return str((file.parent / options).resolve()) if str(options).endswith((".yaml", ".yml")) else options


def _stages(path: Path, listed: Any) -> list[Stage]:
    """Check and return the stages that a recipe file lists."""
    if not isinstance(listed, list) or not listed or not all(isinstance(item, dict) for item in listed):
        raise UserError(f"{path}: stages must be a list of mappings, each with a name")
    stages: list[Stage] = []
    for item in listed:
        name, earlier = item.get("name"), [stage.name for stage in stages]
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in {*RECORD_KEYS, *OPTIONS, *earlier}:
            raise UserError(
                f"{path}: a stage needs a name of its own, of letters, digits, '-' and '_' and not that of an option "
                f"or figure, not {name!r}"
            )
        given = item.get("init_from", earlier[-1:])
        start = given if isinstance(given, list) else [given] if given is not None else []
        for one in start:
            if one not in earlier:
                raise UserError(f"{path}: init_from of stage {name} names no earlier stage: {one!r}")
        configs = item.get("config") or []
        files = [path.parent / str(file) for file in (configs if isinstance(configs, list) else [configs])]
        for file in files:
            read_config_file(file)
        options = {key: value for key, value in item.items() if key not in ("name", "config", "init_from")}
        stages.append(Stage(name, [*files, _beside(path, options)], start, from_nothing=given is None))
    return stages
