"""Options outside the parser: reading config files, finding single options, explaining errors, Trainer checks."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import Path as ParsedPath

from lit_sft.errors import UserError, nearest, one_line

GROUPS = ("data", "model", "trainer", "checkpoint", "early_stopping", "saving", "health")

UNKNOWN = re.compile(r"unrecognized arguments: --([\w.+-]+)|does not accept option '([\w.+-]+)'")
UNKNOWN_IN_CLASS = re.compile(
    r"(?:.*class_path '([\w.]+)'.*?)?Option '([\w.]+)' is not accepted(?:.*?class_path='([\w.]+)')?"
)
NO_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'|No module named|dot import path string: (\S+)")
NOT_SUBCLASS = re.compile(
    r"(?:Expected '|Import path )(?:([\w.]+)'? )?(?:to be|does not correspond to) a subclass of (?:<class ')?([\w.]+)"
)
CLASS_PATH = re.compile(r"given class_path '([\w.]+)'")
REQUIRED = re.compile(r"the following arguments are required: ([\w, ]+\w)")
EXPECTED = re.compile(r"Expected an? (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\])")
VALUE = re.compile(r"(?:Got|Given) value: ([^\[{(]{1,80}?)\.?(?= - | Got value|$)")
REASON = re.compile(r"Errors: - (.+?)(?: - (?:Expected an?|Not a valid subclass) .*| Given value type.*)?$")

# Lightning's callbacks that can't work here, and why.
UNFIT = {
    "GradientAccumulationScheduler": "changes the number of steps, which schedules count before it begins: use "
    "--trainer.accumulate_grad_batches",
    "StochasticWeightAveraging": "copies the model before its network is built, and averages nothing: use "
    "lit_sft.callbacks.ExponentialAveraging or NonMonotonicAveraging",
    "LearningRateFinder": "puts its own schedule in the place of the model's: use scripts/lr_range.py",
}


def _open(path: str, mode: str = "r") -> IO[Any]:
    """Open a file as the parser does, but read text as UTF-8, like :func:`read_yaml`, whatever the locale."""
    return Path(path).open(mode, encoding=None if "b" in mode else "utf-8")


sys.modules[ParsedPath.__module__].open = _open  # type: ignore[attr-defined] # the parser has no setting for it


def values_of(arguments: list[str], *names: str) -> list[str]:
    """Return all values given to an option on the command line, as ``--name value`` or ``--name=value``, in order."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(*names, dest="values", action="append", default=[])
    try:
        return list(parser.parse_known_args(arguments)[0].values)
    except ArgumentError:
        return []  # an option without its value: the main parser reports it


def without(arguments: list[str], name: str) -> list[str]:
    """Return the command line without an option, the options nested in it (``NAME.…``), and their values."""
    kept, is_value = [], False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        named = not is_value and (option == name or option.startswith(f"{name}."))
        if not named and not is_value:
            kept.append(argument)
        is_value = named and not equals
    return kept


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a file given to ``--config``.

    Raises:
        UserError: it isn't a file, isn't YAML, or a group in it holds something else than options.
    """
    if not path.is_file():
        raise UserError(f"--config {path}: {'not a file' if path.exists() else 'no such file'}")
    content = read_yaml(path)
    for group in GROUPS:
        if not isinstance(content.get(group, {}), (dict, str)):
            raise UserError(f"{path}: {group} must hold options, not {content[group]!r}")
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, or nothing; raise a UserError if it holds anything else."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from error
    if not isinstance(content, dict | None):
        raise UserError(f"{path}: a config is a mapping of options, not a {type(content).__name__}")
    return content or {}


def reason(error: BaseException) -> str:
    """Return why a class refused its options, without the text that the parser adds."""
    message = one_line(error)
    found = REASON.search(message)
    return found[1] if found else message


def explain(error: ArgumentError | SyntaxError, options: Iterable[str]) -> UserError:
    """Turn an error of jsonargparse into a UserError of one line.

    Args:
        error: its message has several lines, lists the types that were tried, and suggests no option.
        options: the dotted names of all options of the command.
    """
    message = one_line(error)
    if unknown := UNKNOWN.search(message):
        wrong = unknown[1] or unknown[2]
        if wrong == "stages":
            return UserError("--stages is an option of recipes: --config must name a YAML file with stages:")
        if (stage := wrong.split(".")[0]) in ("pretrain", "finetune"):
            return UserError(
                f"{wrong}: options of one stage are for a recipe, and this command is of a stage alone: give it a "
                f"config without `{stage}:`, and flags without `--{stage}.`"
            )
        known = [name for name in options if not name.endswith(".help")]
        return UserError(
            f"no option {wrong}; {nearest(wrong, known).strip() or 'see --help for the options there are'}"
        )
    keys = list(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
    option = ".".join(keys)
    if failed := _failed_import(error):
        return UserError(f"--{option} {failed}" if keys else failed)
    if not keys:
        return UserError(message)
    if inner := UNKNOWN_IN_CLASS.search(message):
        return UserError(_unknown_in_class(option, inner[2], inner[1] or inner[3]))
    found = VALUE.search(message)
    value = found[1].strip("'\" ") if found else ""
    return UserError(_refused(option, value, message))


def _unknown_in_class(option: str, wrong: str, class_path: str | None) -> str:
    known = [name for name in _init_options(class_path) if name != wrong]
    hint = nearest(wrong, known).strip() or (f"it has {', '.join(known)}" if known else "see --help")
    return f"no option {option}.{wrong}" + (f" of {class_path}" if class_path else "") + f"; {hint}"


def _refused(option: str, value: str, message: str) -> str:
    """Explain why the value of an existing option is wrong."""
    if "is abstract" in message:
        return f"--{option}: name its class first, as in --{option} CLASS"
    if wrong := NOT_SUBCLASS.search(message):
        return f"--{option} {wrong[1] or value}: not a subclass of {wrong[2]}"
    given = CLASS_PATH.search(message)
    if missing := REQUIRED.search(message):
        return f"--{option}{f' {given[1]}' if given else ''}: give its {missing[1]}"
    expected = [kind or choices for kind, choices in EXPECTED.findall(message)]
    absent = NO_CLASS.search(message)
    if absent and not {"int", "float"} & set(expected):
        module, name = absent[1], absent[2] or absent[3] or value or (given[1] if given else "")
        hint = nearest(name, _names_in(module) if module else _subclasses(message)).strip()
        full = f"{module}.{name}" if module else name
        return f"--{option} {full}: no such class; {hint or 'give its full path, as in package.module.Class'}"
    if expected:
        kinds = " or ".join(dict.fromkeys(e.replace("NoneType", "null") for e in expected))
        choices = re.findall(r"'([^']+)'", " ".join(expected))
        return f"{f'--{option} {value}'.strip()}: expected {kinds}; {nearest(value, choices)}".strip(" ;")
    rest = re.sub(r'.*Parser key "[^"]+": ', "", message)
    return f"--{option}: {rest}"


def _failed_import(error: BaseException | None) -> str | None:
    """Explain an error in a module that the parser has found but can't import; None for any other error."""
    while error is not None:
        places = list(traceback.walk_tb(error.__traceback__))
        for (frame, _), after in zip(places, [*places[1:], None], strict=True):
            own = frame.f_code.co_filename  # the parser's file, if it is import_object
            in_module = after[0].f_code.co_filename != own if after else isinstance(error, SyntaxError)
            if frame.f_code.co_name == "import_object" and in_module:
                last, line = places[-1]
                where = f" ({Path(last.f_code.co_filename).name}, line {line})" if after else ""  # SyntaxError says it
                kind = type(error).__name__
                return f"{frame.f_locals['name']}: its module can't be imported: {kind}: {one_line(error)}{where}"
        error = error.__cause__ or error.__context__
    return None


def _init_options(class_path: str | None) -> list[str]:
    """Return a class's options, also those taken as ``**options``, but not required ones, which the program passes."""
    module, _, name = (class_path or "").rpartition(".")
    parser = ArgumentParser()
    try:
        taken = parser.add_class_arguments(getattr(importlib.import_module(module), name), fail_untyped=False)
    except (ImportError, AttributeError, ValueError):
        return []
    given = {action.dest for action in parser._actions if action.required}
    return [option for option in taken if option not in given]


def _names_in(module: str) -> list[str]:
    return [name for name in dir(importlib.import_module(module)) if name[0].isupper()]


def _subclasses(message: str) -> list[str]:
    """Return the names of all classes that the message mentions, and of their known subclasses."""
    found: list[str] = []
    for path in re.findall(r"[\w.]+\.[A-Z]\w+", message):
        module, _, name = path.rpartition(".")
        try:
            waiting = [getattr(importlib.import_module(module), name)]
        except (ImportError, AttributeError):
            continue
        while waiting:
            kind = waiting.pop()
            found.append(kind.__name__)
            waiting += kind.__subclasses__() if isinstance(kind, type) else []
    return found


def check_trainer(trainer: Any, command: str) -> None:
    """Raise a UserError for Trainer options that can't work, although Lightning accepts them silently."""
    split = {"validate": "val", "test": "test"}.get(command)
    if split and trainer[f"limit_{split}_batches"] == 0:
        raise UserError(f"--trainer.limit_{split}_batches 0: there is nothing to measure")
    callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    names = [str(getattr(callback, "class_path", "")).rpartition(".")[2] for callback in callbacks]
    precision, accelerator = str(trainer.precision), str(trainer.accelerator)
    check_everywhere(precision, trainer.reload_dataloaders_every_n_epochs, names)
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    if precision in ("16", "16-mixed") and on_cpu:
        raise UserError(
            f"--trainer.precision {precision} needs a GPU: the CPU has no float16 LSTM; use 32-true or bf16-mixed"
        )
    if trainer.use_distributed_sampler:
        raise UserError("--trainer.use_distributed_sampler must stay false: the data module shares the batches out")
    if not isinstance(trainer.val_check_interval, int | float | None):
        raise UserError(
            f"--trainer.val_check_interval {trainer.val_check_interval}: a run that validates by the clock can't be "
            "resumed exactly, and of several processes each has its own: give it in batches, or as a share of an epoch"
        )
    for name, least in (("accumulate_grad_batches", 1), ("gradient_clip_val", 0)):
        if trainer[name] is not None and trainer[name] < least:
            raise UserError(f"--trainer.{name} {trainer[name]} must be at least {least}")


def check_everywhere(precision: str, reload_every: int, callbacks: Iterable[str]) -> None:
    """Make the checks of :func:`check_trainer` that a Trainer created in Python needs, too.

    Args:
        precision: the Trainer's.
        reload_every: its ``reload_dataloaders_every_n_epochs``.
        callbacks: class names of its callbacks.
    """
    if precision in ("bf16-true", "16-true"):
        raise UserError(
            f"--trainer.precision {precision} also sums up the figures of a validation in half precision, and the best "
            f"checkpoint is chosen by them: use {precision.replace('true', 'mixed')}"
        )
    if reload_every:
        raise UserError("--trainer.reload_dataloaders_every_n_epochs must stay 0: each epoch is drawn anew in any case")
    for name in callbacks:
        if name in UNFIT:
            raise UserError(f"trainer.callbacks: {name} {UNFIT[name]}")
