"""What the processes of a run must agree on, and what each of them has of its own."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_sft.errors import UserError


def agreed(trainer: Trainer, wanted: bool) -> bool:
    """Whether any process wants it, so that all of them save, or stop, at the same step."""
    if trainer.world_size == 1:
        return wanted
    return bool(trainer.strategy.reduce_boolean_decision(wanted, all=False))


def of_all_ranks(trainer: Trainer, own: dict[str, Any]) -> list[dict[str, Any]]:
    """``own`` of each process, in the order of ranks; every process must call it."""
    if trainer.world_size == 1:
        return [own]
    ranks: list[dict[str, Any]] = [{}] * trainer.world_size
    torch.distributed.all_gather_object(ranks, own)
    return ranks


def of_this_rank(trainer: Trainer, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """This process's part of what :func:`of_all_ranks` gave.

    Raises:
        UserError: it was of another number of processes.
    """
    if len(ranks) != trainer.world_size:
        raise UserError(
            f"the checkpoint is of a run of {len(ranks)} processes and this one has {trainer.world_size}: resume with "
            "as many, or start a new run with --model.init_from"
        )
    return ranks[trainer.global_rank]
