"""Recipe files: which stages there are, in which order, and what each starts from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_sft.errors import UserError
from lit_sft.options import read_config_file, values_of
from lit_sft.recipes.record import RECORD_KEYS

KEYS = {"stages", "test"}
NAME = re.compile(r"[A-Za-z0-9_][\w-]*")


@dataclass(frozen=True)
class Stage:
    """One stage: its folder's name, config files, options of its own, and the earlier stages it starts from.

    ``from_nothing``: its ``init_from`` is null, so that it starts from nothing whatever the user names.
    """

    name: str
    configs: list[Path]
    options: dict[str, Any]
    init_from: list[str]
    from_nothing: bool = False


@dataclass(frozen=True)
class Recipe:
    """A recipe file: its stages in order and whether the last is tested. ``extra``: configs after every stage's own."""

    path: Path
    stages: list[Stage]
    test: bool
    extra: list[Path]


def recipe_in(arguments: list[str]) -> Recipe | None:
    """The recipe that ``--config`` names, or None where it names a single stage's config.

    Raises:
        UserError: a config that isn't there, isn't YAML, or is a recipe with a mistake in it.
    """
    configs = [Path(path) for path in values_of(arguments, "--config", "-c")]
    contents = {path: read_config_file(path) for path in configs}
    recipes = [path for path in configs if "stages" in contents[path]]
    if not recipes:
        return None
    path, *more = recipes
    if more:
        raise UserError(f"--config {path} and {more[0]}: two recipes at once")
    if extra := ", ".join(sorted(set(contents[path]) - KEYS)):
        raise UserError(f"{path}: a recipe has the keys stages and test only, not {extra}; these belong into a stage")
    content, others = contents[path], [p for p in configs if p != path]
    return Recipe(path, _stages(path, content["stages"]), bool(content.get("test", True)), others)


def _stages(path: Path, listed: Any) -> list[Stage]:
    """The stages as a recipe file lists them, checked."""
    if not isinstance(listed, list) or not listed or not all(isinstance(item, dict) for item in listed):
        raise UserError(f"{path}: stages must be a list of mappings, each with a name")
    stages: list[Stage] = []
    for item in listed:
        name, earlier = item.get("name"), [stage.name for stage in stages]
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in RECORD_KEYS or name in earlier:
            raise UserError(f"{path}: a stage needs a name of its own, of letters, digits, '-' and '_', not {name!r}")
        given = item.get("init_from", earlier[-1:])
        start = given if isinstance(given, list) else [given] if given is not None else []
        for one in start:
            if one not in earlier:
                raise UserError(f"{path}: init_from of stage {name} names no earlier stage: {one!r}")
        configs = item.get("config", [])
        files = [path.parent / str(file) for file in (configs if isinstance(configs, list) else [configs])]
        for file in files:
            read_config_file(file)
        options = {
            key: str((path.parent / value).resolve()) if str(value).endswith((".yaml", ".yml")) else value
            for key, value in item.items()
            if key not in ("name", "config", "init_from")
        }
        stages.append(Stage(name, files, options, start, from_nothing=given is None))
    return stages
