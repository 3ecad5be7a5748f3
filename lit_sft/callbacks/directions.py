"""Warns when adversarial directions are no better than random ones, which are a costly kind of noise."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

RATIO = "train/vat_kl_ratio"
LEAST = 3.0


class DirectionCheck(L.Callback):
    """Warns once per fit if, at a validation, ``train/vat_kl_ratio`` is below 3.

    The KL of a correct direction is thousands of times that of a random one of the same norm. A ratio near 1 has three
    possible causes: ``xi`` is too small for the precision; ``norm`` is so large that the model is flat there; or the
    classifier has learned nothing yet and is flat everywhere. The number is read from the device at a validation, which
    waits for the device anyway.
    """

    def __init__(self) -> None:
        self._told = False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._told = False

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        ratio: Any = trainer.callback_metrics.get(RATIO)
        if self._told or ratio is None or trainer.state.fn != "fit" or float(ratio) >= LEAST:
            return
        self._told = True
        rank_zero_warn(
            f"step {trainer.global_step}: {RATIO} is {float(ratio):.2f}: the adversarial direction is hardly better "
            "than a random one (a right one has hundreds and more); try a larger xi, a smaller norm, or wait until the "
            "classifier has learned something (ramp_steps)"
        )
