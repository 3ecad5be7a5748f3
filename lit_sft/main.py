"""``python -m lit_sft COMMAND``: run the command, report mistakes in one line."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
import threading
import traceback
from pathlib import Path

from lit_sft.errors import NOT_ALLOWED, UserError, nearest, no_room

USAGE = """usage: python -m lit_sft COMMAND [options]

  fit       --config configs/quickstart.yaml              train: one stage, or a recipe's stages one after the other
            --config … --model.init_from RUN_OR_CKPT      start from pretrained weights
            --config … --ckpt_path last                   resume the newest unfinished run
            --config … --name NAME --stages A,B           where it goes, logs/NAME; some of a recipe's stages
  validate  --ckpt_path RUN_OR_CKPT [--config …]          measure on the validation data
  test      --ckpt_path RUN_OR_CKPT [--config …]          measure on the test data
  predict   --ckpt_path RUN_OR_CKPT --input FILE_OR_- --output FILE_OR_-   a document a line in, JSON lines out
            (validate, test, predict: --ckpt_path A,B averages the class probabilities of several)
  env                                                     versions, devices, precision: to paste into a bug report

COMMAND --help lists a command's options; fit --config FILE --print_config shows their values.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 2 a user's mistake, 3 a sick run, 130 Ctrl-C, 141 broken pipe.

    Mistakes and sick runs are reported in one line on stderr. Bugs are not caught: a bug report needs their traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    encoding = "utf-8" if any(a.startswith("--print_config") for a in arguments) else None  # as configs are read
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a label that it can't spell must not lose what was measured
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    if argv is None and not sys.flags.safe_path:
        # python -m finds the user's modules in the current folder, a script doesn't. Its full path, since the parser
        # changes to the folder of each config that it reads
        sys.path.insert(0, str(Path.cwd()))
    debug = os.environ.get("LIT_SFT_DEBUG", "") not in ("", "0")
    try:
        _run(arguments)
    except (UserError, argparse.ArgumentError) as error:
        if debug:
            traceback.print_exc()
        print(f"lit_sft: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else UserError.exit_code
    except KeyboardInterrupt:
        print("lit_sft: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has stopped, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        full = no_room(error)
        known = full or (error if error.errno in NOT_ALLOWED and error.filename else None)
        if known is None or debug:
            raise
        what = f"{known.filename or 'a file'}: can't be {'written' if full else 'read or written'}: {known.strerror}"
        print(f"lit_sft: error: {what}", file=sys.stderr)
        return UserError.exit_code
    return 0


def _run(arguments: list[str]) -> None:
    # Imports are inside the branches: printing the usage needs no torch, whose import takes a second.
    command = arguments[0] if arguments else None
    if command in (None, "-h", "--help"):
        print(USAGE, end="")
    elif command == "env":
        from lit_sft.environment import report

        print(report())
    elif command == "predict":
        from lit_sft.predict_command import predict_command

        predict_command(arguments[1:])
    elif command in ("fit", "validate", "test"):
        _quiet()
        from lit_sft.recipes.file import recipe_in
        from lit_sft.recipes.run import run_recipe

        recipe = recipe_in(arguments) if command == "fit" else None
        if recipe is not None:
            run_recipe(recipe, arguments[1:])
            return
        from lit_sft.checkpoints import names_in
        from lit_sft.options import values_of

        paths = values_of(arguments, "--ckpt_path")
        if command != "fit" and paths and len(names_in(paths[-1])) > 1:
            from lit_sft.ensemble import measure_ensemble

            measure_ensemble(arguments, names_in(paths[-1]))
            return
        from lit_sft.cli import LitCLI

        LitCLI(arguments)
    else:
        known = ("fit", "validate", "test", "predict", "env")
        raise UserError(f"no command {command!r}: {nearest(str(command), known)}python -m lit_sft --help lists them")


def _tells(record: logging.LogRecord) -> bool:
    """Whether a log line of Lightning's is useful: neither an advertisement nor a repetition of the config."""
    return not re.match(r"💡 Tip|Seed set to|TPU available|SLURM auto-requeueing", record.getMessage())


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    """Report a thread's exception, except a full disk in TensorBoard's writer: the run gets that when it logs again."""
    if no_room(ended.exc_value) is None:
        threading.__excepthook__(ended)


def _quiet() -> None:
    """Suppress messages that don't help a user: Lightning's advertisements, and its notes on its own internals."""
    import warnings

    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_tells)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _thread_ended
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # without our file, line and code
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # a resumed run
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")  # logs are kept
    warnings.filterwarnings("ignore", message="The dirpath has changed from")  # resumed in a new folder
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*WeightAveraging callback with a model that overrides.*")  # no shards
    warnings.filterwarnings("ignore", message="`training_step` returned `None`")  # a skipped spike, which is reported
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
