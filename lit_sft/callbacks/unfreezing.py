"""Gradual unfreezing: a fine-tuning that starts at the top of the network."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lit_sft.errors import UserError
from lit_sft.optim import steps_of_fit


class GradualUnfreezing(Callback):
    """Fine-tune the heads first, then one layer more every ``epochs``, from the top (Howard & Ruder 2018, section 3.3).

    The groups are those of ``Network.layer_groups()``. A frozen group requires no gradient: the backward pass ends
    above it, and the optimizer skips it, with its weight decay and moments. Its dropout stays active. Which groups
    train depends on the optimizer step alone, so a resumed run needs no state. The schedule still counts the
    steps of the whole training.

    Args:
        epochs: how long until the next group joins, in epochs, rounded to optimizer steps.

    Raises:
        ValueError: ``epochs`` is not above 0.
    """

    def __init__(self, epochs: float = 1.0) -> None:
        if not epochs > 0:
            raise ValueError(f"GradualUnfreezing: epochs={epochs} must be above 0")
        self.epochs = epochs
        self._groups: list[list[nn.Parameter]] = []  # from the top; without what was frozen before
        self._starts: list[int] = []  # the optimizer step from which on each of them trains

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Refuse a pretraining, and several processes that would wait for the gradients of frozen weights.

        Raises:
            UserError: with what to do.
        """
        if stage != "fit":
            return
        if module.stage != "finetune":
            raise UserError("GradualUnfreezing is for model.stage finetune: a language model trains all its layers")
        if isinstance(trainer.strategy, SingleDeviceStrategy) or _passes_over_unused(trainer.strategy):
            return
        raise UserError(
            "GradualUnfreezing with several processes needs --trainer.strategy ddp_find_unused_parameters_true: "
            "else these wait for the gradients of frozen weights"
        )

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Freeze all groups that don't train at this step; not earlier, as the optimizer leaves out frozen weights.

        Raises:
            UserError: the encoder is frozen for good.
        """
        own = [[p for p in group if p.requires_grad] for group in reversed(module.net.layer_groups())]  # type: ignore[operator, union-attr]
        self._groups = [group for group in own if group]
        if len(self._groups) < 2:
            raise UserError("GradualUnfreezing: the encoder stays frozen (model.objective): leave the callback out")
        limits = (trainer.limit_train_batches, trainer.accumulate_grad_batches)
        steps = steps_of_fit(trainer.datamodule.train_batches(), *limits, max_epochs=1, max_steps=-1)  # type: ignore[attr-defined]
        self._starts = [round(height * self.epochs * steps) for height in range(len(self._groups))]
        rank_zero_info(f"GradualUnfreezing: heads from the start, a layer more at steps {self._starts[1:]}")
        total: int = module.total_steps()  # type: ignore[operator]
        if late := sum(start >= total > 0 for start in self._starts):
            rank_zero_warn(f"GradualUnfreezing: the training ends at step {total}, before {late} of its layers train")
        self._freeze(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the next group join when its step has come."""
        self._freeze(trainer.global_step)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Leave the module as it was, for another training in this process."""
        for group in self._groups:
            _set(group, True)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """As at the end."""
        self.on_train_end(trainer, module)

    def _freeze(self, step: int) -> None:
        for group, start in zip(self._groups, self._starts, strict=True):
            _set(group, step >= start)


def _set(group: list[nn.Parameter], trains: bool) -> None:
    for parameter in group:
        parameter.requires_grad_(trains)


def _passes_over_unused(strategy: Any) -> bool:
    """Whether processes share gradients by DDP, which detects parameters without gradients at each step."""
    return isinstance(strategy, DDPStrategy) and bool(strategy._ddp_kwargs.get("find_unused_parameters"))
