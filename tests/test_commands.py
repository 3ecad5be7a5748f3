"""Every command that the READMEs, configs, search files and scripts show parses; ``fit`` is in test_configs.py."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from baselines import plans_in
from conftest import Trained
from contamination import options_of
from readmes import READMES, ROOT, commands
from test_configs import CONFIGS, Parsed, ParseOnly, header

from lit_sft.errors import UserError
from lit_sft.predict_command import _parser as parser_of_predict

SCRIPTS = sorted([*ROOT.glob("scripts/*.py"), *ROOT.glob("scripts/bench/*.py")])


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], ModuleType]:
    """A script as a module of its own; those of ``bench`` import each other."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
        spec.loader.exec_module(module)
        return module

    return load


def texts() -> dict[str, str]:
    """All that shows commands, by its name."""
    found = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in READMES}
    for path in (*(ROOT / name for name in CONFIGS), *ROOT.glob("scripts/search/*.yaml")):
        found[path.relative_to(ROOT).as_posix()] = header(path.read_text(encoding="utf-8"))
    return found


def test_every_command_of_a_script_parses(
    script: Callable[[Path], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    modules = {path.relative_to(ROOT).as_posix(): script(path) for path in SCRIPTS}
    shown = texts() | {name: module.__doc__ or "" for name, module in modules.items()}
    calls = [(place, call) for place, text in shown.items() for call in commands(text, r"(scripts/\S+\.py)")]
    assert {call[0] for _, call in calls} == {name for name, module in modules.items() if hasattr(module, "main")}
    wrong = []
    for place, (name, *arguments) in calls:
        try:
            parse_script(name, modules[name], arguments)
        except (SystemExit, UserError, AssertionError) as error:
            wrong.append((place, name, arguments, str(error)))
    assert wrong == []


def test_the_size_of_a_process_is_its_own_and_not_that_of_the_one_that_starts_it(
    script: Callable[[Path], ModuleType],
) -> None:
    here = b"1" * (200 << 20)
    size = script(ROOT / "scripts" / "bench" / "predict.py").peak_bytes([sys.executable, "-c", "x = b'1' * (30 << 20)"])
    assert 30 << 20 < size < len(here)


def test_the_size_of_a_saved_checkpoint_is_that_of_this_run(
    script: Callable[[Path], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = script(ROOT / "scripts" / "bench" / "checkpoints.py")
    monkeypatch.chdir(tmp_path)

    def fit(arguments: list[str]) -> int:
        (flag,) = (argument for argument in arguments if argument.startswith("--run_dir="))
        write(Path(flag.partition("=")[2]), 2)
        module.Trainer.fit(None)
        module.LastCheckpoint.save(None, None)
        return 0

    def write(run: Path, size: int) -> None:
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "last.ckpt").write_bytes(b"1" * (size << 20))

    write(Path("logs/bench-checkpoints/version_0"), 5)  # of a larger model, earlier
    monkeypatch.setattr(module, "lit_sft", fit)
    monkeypatch.setattr(module.Trainer, "fit", lambda trainer: None)
    monkeypatch.setattr(module.LastCheckpoint, "save", lambda callback, trainer: None)
    monkeypatch.setattr(sys, "argv", ["checkpoints.py"])
    module.main()
    assert ", 1 saves of 2 MiB, " in capsys.readouterr().out


def parse_script(name: str, module: ModuleType, arguments: list[str]) -> None:
    """What a script does first with its arguments."""
    if name == "scripts/contamination.py":
        assert options_of(module.parser().parse_args(arguments).given)
    elif name == "scripts/kill.py":
        _, flags = module.parser().parse_known_args(arguments)
        assert all("." in flag for flag in flags if flag.startswith("--"))  # which go to every stage
    elif name == "scripts/lr_range.py":
        _, flags = module.parser().parse_known_args(arguments)  # which go to `fit`
        configs = [Path(value) for flag, value in itertools.pairwise(flags) if flag == "--config"]
        assert all(path.is_file() or path.stem == "mine" for path in configs)
        assert all("." in flag for flag in flags if flag.startswith("--") and flag != "--config")
    elif name == "scripts/bench/allocator.py":
        assert arguments == []
    else:
        options = module.parser().parse_args(arguments)
        for path in (value for value in vars(options).values() if isinstance(value, Path)):
            assert path.is_file() or not path.is_relative_to("configs"), path
        if name == "scripts/baselines.py":
            plans = plans_in(options.search, options.labels)
            assert set(options.methods or ()) <= {method for plan in plans for method in plan.grids}
            assert all(path.is_file() or path.stem == "mine" for path in options.config)


def test_every_test_and_prediction_parses(
    trained: Trained, example: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """With a checkpoint that there is, in place of the reader's."""
    example("my_objective.py")
    program = r"-m lit_sft (validate|test|predict) "
    calls = [(place, call) for place, text in texts().items() for call in commands(text, program)]
    assert {call[0] for _, call in calls} >= {"test", "predict"}
    wrong = []
    for place, call in calls:
        if call[0] == "predict":
            try:
                parser_of_predict().parse_args(call[1:])
            except UserError as error:
                wrong.append((place, call, str(error)))
            continue
        try:
            place_of_path = call.index("--ckpt_path") + 1
            ParseOnly([*call[:place_of_path], str(trained.finetune), *call[place_of_path + 1 :]])
        except Parsed:
            continue
        except (UserError, ValueError) as error:
            wrong.append((place, call, str(error)))
    assert wrong == []
