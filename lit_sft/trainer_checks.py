"""What a Trainer must be for the module; of one that the command line has made, most was told before it was."""

from __future__ import annotations

from typing import Any

from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import UserError
from lit_sft.evaluation_steps import NO_PREDICT
from lit_sft.options import check_everywhere


def checked_data(trainer: Any) -> TextDataModule:
    """The data of a Trainer, which has what the module can work with.

    Raises:
        UserError: it predicts, has no data module, or an option or callback that the module can't be trained with.
    """
    if trainer.state.fn == "predict":
        raise UserError(NO_PREDICT)
    if trainer.datamodule is None:
        raise UserError(
            "LitSFT takes its vocabulary and labels from a TextDataModule: give datamodule=, not dataloaders"
        )
    callbacks = [kind.__name__ for callback in trainer.callbacks for kind in type(callback).__mro__]
    check_everywhere(trainer.precision, trainer.reload_dataloaders_every_n_epochs, callbacks)
    data: TextDataModule = trainer.datamodule
    return data
