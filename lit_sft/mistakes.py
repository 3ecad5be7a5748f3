"""Turn exceptions of Lightning or the system that are a user's mistake into a UserError."""

from __future__ import annotations

import signal
import traceback
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_sft.checkpoint_io import what_now
from lit_sft.errors import UserError, no_room, one_line
from lit_sft.options import reason

# The functions that restore a checkpoint's entries: an error in one of these is a fault of the file, not the program.
RESTORING = {"_restore_modules_and_callbacks", "restore_training_state", "go_on_drawing", "take_options"}

# When an option's class is built, these indicate a bug in the class and never a wrong value, although jsonargparse
# reports them as one.
BUGS = (NameError, AttributeError, LookupError)


def refusal_in(error: ValueError | MisconfigurationException) -> UserError:
    """Return a UserError for a class that refuses an option's value; re-raise the error if it is a bug in the class."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, BUGS):
        raise error
    return UserError(("trainer: " if isinstance(error, MisconfigurationException) else "") + reason(error))


def mistake_in(
    error: Exception | SystemExit, folder: Path | None, source: Path | None
) -> UserError | SystemExit | None:
    """Return a UserError for an exception of the Trainer; None if it is no user's mistake, or a UserError already.

    For an end by a signal, return a SystemExit with the shell's code: Lightning ends with 0 on SIGTERM, 1 on Ctrl-C.

    Args:
        error: the exception, of any type.
        folder: the run's folder.
        source: the checkpoint that was resumed, started from or measured.
    """
    if isinstance(error, SystemExit):
        by_key = error.code == 1 and isinstance(error.__context__, KeyboardInterrupt)
        number = signal.SIGTERM if isinstance(error, SIGTERMException) else signal.SIGINT if by_key else None
        return None if number is None else SystemExit(128 + number)
    if isinstance(error, UserError):
        return None
    if full := no_room(error):
        now = "make room" if folder is None else what_now(folder / "checkpoints")
        return UserError(f"{full.filename or folder or 'a file'}: can't be written: {full.strerror}; {now}")
    if isinstance(error, MisconfigurationException):
        return UserError(reason(error))
    # Lightning's messages for an interval longer than an epoch, and for inconsistent numbers of processes
    if isinstance(error, ValueError) and ("val_check_interval" in str(error) or str(error).startswith("You set `")):
        return UserError(f"trainer: {reason(error)}")
    if isinstance(error, RuntimeError) and "Early stopping conditioned on" in str(error):  # a figure that isn't logged
        return UserError(reason(error))
    if isinstance(error, RuntimeError) and "does not allow for gradient clipping" in str(error):
        return UserError(
            "model.optimizer: under 16-mixed fused: true hides the gradients from clipping: leave it out (the fused "
            "kernel is used anyway), or give --trainer.gradient_clip_val null"
        )
    if isinstance(error, torch.OutOfMemoryError):
        return None  # not a damaged checkpoint, even during a restore
    frames = traceback.walk_tb(error.__traceback__)
    if source is not None and any(frame.f_code.co_name in RESTORING for frame, _ in frames):
        what = f"{type(error).__name__}: {one_line(error)[:200]}"
        return UserError(f"{source}: a damaged checkpoint, or one of other versions: what it holds is refused ({what})")
    return None
