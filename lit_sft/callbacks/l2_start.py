"""A pull towards the pretrained weights, in place of weight decay's towards zero."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_sft.callbacks.one_module import OfOneModule
from lit_sft.errors import UserError
from lit_sft.optim import unscales


class L2Start(OfOneModule):
    """L2-SP (Li et al. 2018, eq. 2): strength / 2 * ||w - w0||^2 over the encoder's weights, w0 those of ``init_from``.

    Its gradient, strength * (w - w0), is added once a step, before clipping, so that the loss is reported without it;
    frozen weights are not changed. Every checkpoint stores w0, for resumed runs. Heads mostly start from nothing: the
    optimizer's ``weight_decay`` pulls their weights to zero, but the encoder's too; leave it 0 for the paper's L2-SP.
    An optimizer that rescales gradients (Adam) rescales this one too: there ``strength`` is not the paper's alpha.

    Args:
        strength: alpha of the paper, at least 0.

    Raises:
        ValueError: a strength below 0.
        UserError: at the start of a fit, a new run without ``init_from``, a resumed run without w0, an encoder that
            is frozen as a whole, or 16-mixed with an optimizer that unscales gradients itself.
    """

    def __init__(self, strength: float = 0.01) -> None:
        if not strength >= 0:
            raise ValueError(f"strength={strength} must be at least 0")
        self.strength = strength
        self.forget()

    def forget(self) -> None:
        self._start: dict[str, Tensor] = {}  # the encoder's weights by name

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        dry = trainer.fast_dev_run  # type: ignore[attr-defined]  # in a recipe's dry run no stage has a start
        if not (module.init_from or trainer.ckpt_path or dry):  # a resumed run has w0 in its checkpoint
            raise UserError("L2Start draws weights to those of model.init_from: give it, or leave the callback out")
        if not any(parameter.requires_grad for parameter in _encoder(module).parameters()):
            raise UserError("L2Start: the encoder is frozen and stays as it was anyway: leave the callback out")

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if any(unscales(optimizer, trainer.precision_plugin) for optimizer in trainer.optimizers):
            raise UserError("L2Start: under 16-mixed an optimizer with fused: true hides its gradients: leave it out")
        weights = dict(_encoder(module).named_parameters())
        if not self._start:
            if trainer.ckpt_path:
                raise UserError("L2Start: the run to go on with was begun without it: there are no start weights")
            self._start = {name: p.detach().clone() for name, p in weights.items()}
        self._start = {name: start.to(weights[name].device) for name, start in self._start.items()}

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer) -> None:
        for name, weight in _encoder(module).named_parameters():
            if weight.grad is not None:
                weight.grad.add_(weight - self._start[name], alpha=self.strength)

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start} if self._start else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = dict(state_dict["start"])


def _encoder(module: L.LightningModule) -> torch.nn.Module:
    encoder: torch.nn.Module = module.net.encoder  # type: ignore[union-attr, assignment]
    return encoder
