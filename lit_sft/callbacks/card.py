"""The data card at the start of a fit."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from lit_sft.data.card import data_card
from lit_sft.tensorboard_text import log_text


class ShowData(L.Callback):
    """Tells the data card (:mod:`lit_sft.data.card`), to TensorBoard too; with ``fast_dev_run`` as well."""

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        card = data_card(trainer.datamodule, "labeled" in module.objective.batches)  # type: ignore
        rank_zero_info(card.text())
        log_text(trainer, "data", card.markdown())
