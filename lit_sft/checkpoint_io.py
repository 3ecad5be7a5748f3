"""Write checkpoints atomically: a checkpoint appears complete or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer

from lit_sft.checkpoints import older, saved
from lit_sft.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, syncs it to the disk, then renames it: a reader finds the old file or the new one.

    ``storage_options={"keep": k}`` keeps the last ``k`` files of a name: the one before ``last.ckpt`` becomes
    ``last-1.ckpt``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._read_back = False  # whether the first checkpoint was found to be readable: the others are like it

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint, with the arguments of Lightning's method.

        Raises:
            UserError: it can't be written (a full disk, a quota, no permission), or could not be read, since it holds
                more than data; existing checkpoints stay.
        """
        if "://" in str(path):  # in a remote folder, files appear complete anyway
            super().save_checkpoint(checkpoint, path)
            return
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")  # always the same: a killed run's is overwritten
        buffer = io.BytesIO()  # torch's own writer ends the process when the disk is full
        torch.save(checkpoint, buffer)
        if not self._read_back and not _is_data(buffer):
            raise UserError(_not_data(checkpoint))
        self._read_back = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            kept = [path, *(older(path, age) for age in range(1, (storage_options or {}).get("keep", 1)))]
            for newer, place in reversed(list(pairwise(kept))):
                if newer.is_file():
                    newer.replace(place)
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise UserError(f"{path}: can't be written: {error.strerror or error}; {what_now(path.parent)}") from error


def _is_data(buffer: io.BytesIO) -> bool:
    """Whether a saved object can be read as data, as checkpoints are: tensors, numbers, texts, and lists and dicts."""
    buffer.seek(0)
    try:
        torch.load(buffer, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


def _not_data(checkpoint: dict[str, Any]) -> str:
    """Say which part of a checkpoint could not be read."""
    callbacks = {f"callback {key}": state for key, state in checkpoint.get("callbacks", {}).items()}
    wrong = []
    for name, part in {**checkpoint, **callbacks}.items():
        buffer = io.BytesIO()
        torch.save(part, buffer)
        if not _is_data(buffer):
            wrong.append(name)
    return (
        f"the checkpoint could not be read again: {wrong[-1] if wrong else 'it'} holds more than tensors, numbers, "
        "texts, lists and dicts: convert it in state_dict(), such as NumPy's numbers by float()"
    )


def check_unused(trainer: Trainer, path: Path) -> None:
    """Raise a UserError if a fit that starts anew would overwrite the last checkpoint of an earlier one."""
    if saved(path) and not trainer.ckpt_path and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise UserError(
            f"{path} is of a fit before this one, which begins anew and would write over it: go on from it with "
            f"ckpt_path={str(path)!r} (of 'last' Lightning asks its own callbacks alone), or give another "
            "default_root_dir"
        )


def what_now(folder: Path) -> str:
    """What to do when a run's files can't be written, depending on whether it has a checkpoint to resume from."""
    if saved(folder / "last.ckpt"):
        return "the checkpoints before it are kept: make room, then go on with --ckpt_path last"
    return "there is no checkpoint to go on from yet: make room, then start again"


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, on systems that allow a folder to be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
