"""The picture of the rooms holds: who may import whom, how long things are, and that public names are documented."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lit_sft

ROOT = Path(lit_sft.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {path: ".".join(("lit_sft", *path.relative_to(ROOT).with_suffix("").parts)) for path in FILES}

# What no file of a room may import, directly or inside a function.
FORBIDDEN = {
    "lit_sft.models": ("lightning", "lit_sft.data", "lit_sft.objectives", "lit_sft.callbacks", "lit_sft.module"),
    "lit_sft.objectives": ("lightning", "lit_sft.data", "lit_sft.callbacks", "lit_sft.module", "torchmetrics"),
    "lit_sft.data": ("lit_sft.models", "lit_sft.objectives", "lit_sft.module", "lit_sft.callbacks", "lit_sft.runs"),
    "lit_sft.evaluation.metrics": ("lightning", "lit_sft"),
    "lit_sft.optim": ("lightning", "lit_sft"),
    "lit_sft.checkpoints": ("lightning", "lit_sft.module", "lit_sft.callbacks", "lit_sft.runs"),
    "lit_sft.module": ("lit_sft.callbacks", "lit_sft.runs", "lit_sft.recipes", "lit_sft.predictor"),
    "lit_sft.callbacks": ("lit_sft.recipes", "lit_sft.predictor", "lit_sft.module"),
    "lit_sft.cli": ("lit_sft.recipes",),
    "lit_sft.written_results": ("lit_sft.recipes",),
    "lit_sft.recipes": ("lightning", "torch", "lit_sft.module", "lit_sft.models", "lit_sft.callbacks"),
    "lit_sft.evaluation": (
        "lit_sft.module",
        "lit_sft.callbacks",
        "lit_sft.cli",
        "lit_sft.recipes",
    ),
    "lit_sft.errors": ("lit_sft", "torch", "lightning"),
    "lit_sft.processes": ("torch", "lightning"),  # workers of a loader import it
}
# Who joins the rooms, and by whom alone it may be imported.
JOINERS = {
    "lit_sft.cli": {"lit_sft.main", "lit_sft.recipes.run", "lit_sft.ensemble"},
    "lit_sft.main": {"lit_sft.__main__"},
}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every imported module, and ``module.name`` of each imported name, with its line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_one_way(room: str) -> None:
    members = [path for path, name in MODULES.items() if within(name, room)]
    assert members
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in members
        for name, line in imports(path)
        for banned in FORBIDDEN[room]
        if within(name, banned)
    ]
    assert wrong == []


@pytest.mark.parametrize("joiner", JOINERS)
def test_nobody_imports_what_joins_the_rooms(joiner: str) -> None:
    importers = {name for path, name in MODULES.items() for found, _ in imports(path) if within(found, joiner)}
    assert importers - {joiner} <= JOINERS[joiner]


def test_models_and_objectives_need_torch_and_nothing_else() -> None:
    for path, name in MODULES.items():
        if within(name, "lit_sft.models") or within(name, "lit_sft.objectives"):
            outside = {found.split(".")[0] for found, _ in imports(path)} - {"lit_sft", "torch", "__future__"}
            standard = {"abc", "collections", "contextlib", "dataclasses", "itertools", "math", "typing", "warnings"}
            assert outside <= standard, f"{name} imports {outside - standard}"


def test_nothing_reads_the_number_of_steps_from_the_trainer() -> None:
    """It makes Lightning forget the loaders' position on resume (its issue 20550)."""
    for path in FILES:
        used = [node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)]
        assert "estimated_stepping_batches" not in used, path


def test_files_and_functions_are_short() -> None:
    long = []
    for path in FILES:
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > 300:
            long.append(f"{path.relative_to(ROOT)}: {length} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
                if lines > 50:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert long == []


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public classes and functions that the module defines, and the public methods that its classes define."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing):
            yield name, thing
            for inner, value in vars(thing).items():
                member = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
                if not inner.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    yield f"{name}.{inner}", getattr(thing, inner)
        elif inspect.isfunction(thing):
            yield name, thing


def test_public_names_say_what_they_are() -> None:
    missing = []
    for name in MODULES.values():
        if name.endswith("__main__"):
            continue
        module = importlib.import_module(name.removesuffix(".__init__"))
        # A method that overrides one of a base class may leave the words to it: getdoc looks there.
        things = [("", module), *public(module)]
        missing += [f"{name}: {label}" for label, thing in things if not inspect.getdoc(thing)]
    assert missing == []
