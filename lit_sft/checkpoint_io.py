"""How a checkpoint gets onto the disk: whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer

from lit_sft.checkpoints import older, saved
from lit_sft.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, syncs it to the disk, then renames: a reader finds the old file or the new one.

    ``storage_options={"keep": k}`` keeps the last ``k`` of a name: the one before ``last.ckpt`` is ``last-1.ckpt``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """As Lightning's.

        Raises:
            UserError: it can't be written (a full disk, a quota, no permission); what was there stays.
        """
        if "://" in str(path):  # a remote folder, whose files appear at once by themselves
            super().save_checkpoint(checkpoint, path)
            return
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed run leaves is written over
        buffer = io.BytesIO()  # torch's writer ends the process where the disk is full
        torch.save(checkpoint, buffer)
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


def check_unused(trainer: Trainer, path: Path) -> None:
    """Raise a UserError where a fit begins that would write over the last checkpoint of one before."""
    if saved(path) and not trainer.ckpt_path and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise UserError(
            f"{path} is of a fit before this one, which begins anew and would write over it: go on from it with "
            f"ckpt_path={str(path)!r} (of 'last' Lightning asks its own callbacks alone), or give another "
            "default_root_dir"
        )


def what_now(folder: Path) -> str:
    """What to do when a run ended because its files can't be written, by whether it has a checkpoint to go on from."""
    if saved(folder / "last.ckpt"):
        return "the checkpoints before it are kept: make room, then go on with --ckpt_path last"
    return "there is no checkpoint to go on from yet: make room, then start again"


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; not every system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
