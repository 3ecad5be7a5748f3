"""What the processes of a run must agree on, and what each of them has of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from torch import Tensor

from lit_sft.errors import UserError


def steps_have_passed(trainer: Trainer, every: int) -> bool:
    """Whether the batch that ends now completes an optimizer step whose number is a multiple of ``every``."""
    return trainer.global_step % every == 0 and not trainer.fit_loop._should_accumulate()


def agreed(trainer: Trainer, wanted: bool) -> bool:
    """Whether any process is ``wanted`` to act, so that all of them save or stop at the same step.

    With several processes this is only asked every ``log_every_n_steps``, since the answer waits for the device.
    """
    if trainer.world_size == 1:
        return wanted
    if not steps_have_passed(trainer, max(1, trainer.log_every_n_steps)):  # type: ignore[attr-defined]
        return False
    return bool(trainer.strategy.reduce_boolean_decision(wanted, all=False))


def of_all_ranks(trainer: Trainer, own: dict[str, Any]) -> list[dict[str, Any]]:
    """Gather ``own`` from each process, in rank order; every process must call this function."""
    if trainer.world_size == 1:
        return [own]
    ranks: list[dict[str, Any]] = [{}] * trainer.world_size
    # Moved to the CPU first: unpickling GPU tensors would open a context on each process's device in all the others.
    torch.distributed.all_gather_object(ranks, move_data_to_device(own, torch.device("cpu")))
    return ranks


def weighted(trainer: Trainer, shares: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
    """Return this process's loss, scaled so that DDP gives the mean over all processes, and that mean, detached.

    DDP averages the gradients of n processes. If the loss l_r of process r is a mean over w_r tokens or documents, the
    mean over all is sum_r w_r l_r / sum_r w_r, so each process multiplies its l_r by n w_r / sum w.

    Args:
        trainer: its processes share the batch.
        shares: scalar l_r and scalar w_r of each term of a loss that is a sum of such means. A w_r of None weights all
            processes equally.
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
    """Return this process's part of what :func:`of_all_ranks` gathered.

    Raises:
        UserError: it was gathered from another number of processes.
    """
    if len(ranks) != trainer.world_size:
        raise UserError(
            f"the checkpoint is of a run of {len(ranks)} processes and this one has {trainer.world_size}: resume with "
            "as many, or start a new run with --model.init_from"
        )
    return ranks[trainer.global_rank]
