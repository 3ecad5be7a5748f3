"""What a user should know at the start of a fit: the data card, and a precision that is slow here."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from lit_sft.data.card import data_card
from lit_sft.environment import SLOW, bfloat16_slowness
from lit_sft.tensorboard_text import log_text


class ShowData(L.Callback):
    """Logs the data card (:mod:`lit_sft.data.card`), also to TensorBoard, and also with ``fast_dev_run``.

    It also reports if bfloat16 was requested and this CPU, which has no instructions for it, is slow with it.
    """

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        batches = module.objective.batches  # type: ignore[union-attr]
        card = data_card(trainer.datamodule, "labeled" in batches, "pairs" in batches)  # type: ignore
        rank_zero_info(card.text())
        log_text(trainer, "data", card.markdown())
        on_cpu = trainer.strategy.root_device.type == "cpu"
        if on_cpu and trainer.precision.startswith("bf16") and (slowness := bfloat16_slowness()) > SLOW:
            rank_zero_info(
                f"--trainer.precision {trainer.precision} is slow here: a matrix product takes this CPU {slowness:.1f} "
                "times as long as in 32-true"
            )
