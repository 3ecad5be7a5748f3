"""Checks that a Trainer suits the module; on the command line, most are made before the Trainer exists."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import UserError
from lit_sft.evaluation_steps import NO_PREDICT
from lit_sft.options import check_everywhere


def checked_data(trainer: Any) -> TextDataModule:
    """Return the Trainer's data module after checking that the module can work with the Trainer.

    Raises:
        UserError: the Trainer predicts, has no data module, or has a strategy, option or callback that can't work.
    """
    if trainer.state.fn == "predict":
        raise UserError(NO_PREDICT)
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise UserError(
            f"LitSFT clips and averages whole weights, and {type(trainer.strategy).__name__} may split them: use one "
            "device, or strategy ddp"
        )
    if not isinstance(trainer.datamodule, TextDataModule):
        raise UserError(
            "LitSFT takes its vocabulary and labels from a TextDataModule, or a subclass of it: give datamodule=, not "
            "dataloaders"
        )
    callbacks = [kind.__name__ for callback in trainer.callbacks for kind in type(callback).__mro__]
    check_everywhere(trainer.precision, trainer.reload_dataloaders_every_n_epochs, callbacks)
    return trainer.datamodule
