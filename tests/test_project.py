"""The project's own files agree: requirements and pins, versions, extras, scripts."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lit_sft
from lit_sft.main import main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
REQUIREMENTS = [
    requirement
    for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    if (requirement := Requirement(line)).name != PROJECT["name"]
]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def pinned_version(requirement: Requirement) -> Version:
    (pin,) = pins()[canonicalize_name(requirement.name)].specifier
    return Version(pin.version)


def test_every_requirement_is_pinned_within_its_range() -> None:
    assert [str(r) for r in REQUIREMENTS if pinned_version(r) not in r.specifier] == []


def test_every_pin_is_one_exact_version_of_any_build() -> None:
    for name, requirement in pins().items():
        (pin,) = requirement.specifier
        assert pin.operator == "==", name
        assert "*" not in pin.version, name
        assert Version(pin.version).local is None, f"{name}: a local version shuts out the other builds"


@pytest.mark.skipif(sys.platform == "win32", reason="the pins are those of Linux and macOS")
def test_what_the_requirements_bring_is_pinned_too() -> None:
    seen: set[tuple[str, str]] = set()
    todo = list(REQUIREMENTS)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        try:
            brought = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue  # of an extra that isn't installed here
        if name.startswith(("nvidia-", "cuda-", "triton")):
            continue  # a CUDA build of torch pins them itself
        assert name in pins()
        for extra in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            todo += [r for r in brought if r.marker is None or r.marker.evaluate({"extra": extra})]
    assert len(seen) > len(REQUIREMENTS)


def test_the_version_is_the_same_everywhere() -> None:
    assert lit_sft.__version__ == PROJECT["version"] == metadata.version(PROJECT["name"])


def test_the_console_script_is_the_command_line() -> None:
    (entry,) = metadata.entry_points(group="console_scripts", name="lit_sft")
    assert entry.load() is main


def test_a_console_script_finds_the_users_modules_as_python_m_does(tmp_path: Path) -> None:
    """A script's own folder takes the place on the path that python -m gives to the current one.

    The parser changes to a config's folder while it reads the config.
    """
    script, mine = tmp_path / "bin" / "lit_sft", tmp_path / "mine"
    for folder in (script.parent, mine / "configs"):
        folder.mkdir(parents=True)
    script.write_text("from lit_sft.main import main\nraise SystemExit(main())\n")
    (mine / "my_objective.py").write_text("from lit_sft.objectives import MLE\n\nclass Mine(MLE): ...\n")
    (mine / "configs" / "mine.yaml").write_text("model: {objective: my_objective.Mine}\n")
    shown = ["fit", "--config", "configs/mine.yaml", "--print_config"]
    for command in ([str(script)], ["-m", "lit_sft"]):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, *command, *shown], cwd=mine, env=environment, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        assert "class_path: my_objective.Mine" in result.stdout


def test_the_oldest_python_is_the_one_that_the_tools_check_for() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert tools["mypy"]["python_version"] == oldest
    assert tools["ruff"]["target-version"] == "py" + oldest.replace(".", "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_bash_and_executable(script: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    result = subprocess.run([bash, "-n", str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


def test_the_extras_that_scripts_and_workflow_install_exist() -> None:
    files = [*SCRIPTS, *(ROOT / ".github" / "workflows").glob("*.yml")]
    named = {e for path in files for e in re.findall(r"\bsetup\.sh (\w+)", path.read_text(encoding="utf-8"))}
    assert {"baseline", "test", "dev"} <= named <= set(EXTRAS)
