"""What the processes of a run must agree on, and what each of them has of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from torch import Tensor

from lit_sft.errors import UserError


def agreed(trainer: Trainer, wanted: bool) -> bool:
    """Whether any process wants it, so that all of them save, or stop, at the same step.

    Several processes are asked every ``log_every_n_steps`` only, since the answer waits for the device.
    """
    if trainer.world_size == 1:
        return wanted
    if trainer.global_step % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
        return False
    return bool(trainer.strategy.reduce_boolean_decision(wanted, all=False))


def of_all_ranks(trainer: Trainer, own: dict[str, Any]) -> list[dict[str, Any]]:
    """``own`` of each process, in the order of ranks; every process must call it."""
    if trainer.world_size == 1:
        return [own]
    ranks: list[dict[str, Any]] = [{}] * trainer.world_size
    # From the CPU: unpickled on its own device, each process's state would open a context there in all the others.
    torch.distributed.all_gather_object(ranks, move_data_to_device(own, torch.device("cpu")))
    return ranks


def weighted(trainer: Trainer, shares: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
    """A process's loss as its share of the mean over all of them, and that mean, detached.

    DDP averages the gradients of n processes. With the loss l_r of process r a mean over w_r tokens or documents, the
    mean over all is sum_r w_r l_r / sum_r w_r: so each takes n w_r / sum w times its l_r.

    Args:
        trainer: whose processes share the batch.
        shares: of a loss that is a sum of such means: scalar l_r and scalar w_r of each; None: all count alike.
    """
    losses = torch.stack([loss for loss, _ in shares])  # (shares,)
    if trainer.world_size == 1:
        total = losses.sum()
        return total, total.detach()
    own = torch.stack([loss.new_ones(()) if w is None else w.to(losses.dtype) for loss, w in shares])
    sums = torch.stack([own, own * losses.detach()])
    torch.distributed.all_reduce(sums)
    whole = sums[0].clamp(min=torch.finfo(sums.dtype).tiny)
    return (losses * (trainer.world_size * own / whole)).sum(), (sums[1] / whole).sum()


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
