"""Averaged weights, which are validated, saved and left in the module instead of the trained ones."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lit_sft.callbacks.one_module import OfOneModule
from lit_sft.callbacks.stopping import check_interval
from lit_sft.errors import UserError
from lit_sft.evaluation.metrics import better
from lit_sft.optim import Constant

TRAINED = "current_model_state"  # where a checkpoint keeps the weights that training goes on from; Lightning's name


class WeightMean(OfOneModule):
    """A mean of the weights, kept beside them from the moment that a subclass begins it.

    Until then nothing is averaged, copied or exchanged: validation and checkpoints use the weights as they are. (It is
    therefore no subclass of Lightning's ``WeightAveraging``, which copies the module before its weights are loaded, and
    validates and saves that copy until its first update: Lightning issue 21724.) From then on, the ``state_dict`` of a
    checkpoint is the mean, which ``init_from``, ``test`` and ``predict`` use. The trained weights are stored beside it,
    and a resumed run continues from them exactly. Buffers are not averaged: the networks here have no trained ones.

    Raises:
        UserError: in ``setup``, two such callbacks, or one beside Lightning's: each would take the other's mean for the
            trained weights.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.count = 0  # number of weights in the mean; 0 before it begins
        self._mean: list[Tensor] = []  # one per parameter of the module
        self._step = 0  # optimizer steps that were seen
        self._exchanged = False  # whether the module has the mean, and `_mean` the trained weights

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, module, stage)
        kinds = [type(c).__name__ for c in trainer.callbacks if isinstance(c, (WeightMean, WeightAveraging))]  # type: ignore[attr-defined]
        if stage == "fit" and len(kinds) > 1:
            raise UserError(f"trainer.callbacks: {' and '.join(kinds)} both average the weights: give one of them")

    def begin(self, module: L.LightningModule) -> None:
        """Begin the mean with the current weights."""
        with torch.inference_mode(False):  # tensors made in a validation could not be changed in training
            self._mean = [p.detach().clone() for p in module.parameters()]
        self.count = 1

    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Called after every optimizer step."""

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._mean = [m.to(p.device) for m, p in zip(self._mean, module.parameters(), strict=False)]
        if self._exchanged:  # a fit before this one has left the mean in the module
            self._exchange(module)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self.after_step(trainer, module)

    @torch.no_grad()
    def _add(self, module: L.LightningModule, share: float) -> None:
        """The mean becomes (1 - share) * mean + share * weights."""
        torch._foreach_lerp_(self._mean, list(module.parameters()), share)  # a kernel or two for all of them
        self.count += 1

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.count and trainer.state.fn == "fit":
            self._exchange(module)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._exchanged and trainer.state.fn == "fit":
            self._exchange(module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave the mean in the module; a checkpoint written after this still contains the trained weights."""
        if self.count and not self._exchanged:
            self._exchange(module)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Do the same if a finished run is resumed: nothing is trained then, so ``on_train_end`` is not called."""
        self.on_train_end(trainer, module)

    @torch.no_grad()
    def _exchange(self, module: L.LightningModule) -> None:
        for mean, weight in zip(self._mean, module.parameters(), strict=True):
            trained = weight.clone()
            weight.copy_(mean)
            mean.copy_(trained)
        self._exchanged = not self._exchanged

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.count:
            return
        own, kept = checkpoint["state_dict"], dict(zip(map(id, module.parameters()), self._mean, strict=True))
        names = {name: kept[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}  # tied weights: both
        other = {name: names.get(name, value) for name, value in own.items()}
        checkpoint["state_dict"], checkpoint[TRAINED] = (own, other) if self._exchanged else (other, own)

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit" and TRAINED in checkpoint:
            mean = checkpoint["state_dict"]
            self._mean = [mean[name].to(p.device, copy=True) for name, p in module.named_parameters()]
            self._exchanged = False
            module.load_state_dict(checkpoint[TRAINED])

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


class NonMonotonicAveraging(WeightMean):
    """Averages the weights once validation stops improving: NT-ASGD, with plain SGD as the optimizer.

    The trigger (Merity et al. 2018, algorithm 1) is a validation whose figure is above the best of all earlier ones
    except the last ``nonmono``. From then on, the mean is that of the weights at the trigger and after each later step.
    The learning rate remains that of optimizer and schedule; in the paper it is constant.

    Args:
        monitor: a validation figure of which less is better.
        nonmono: how many validations in a row may be no better than the best before them.

    Raises:
        ValueError: ``nonmono`` below 0; a figure of which more is better.
        UserError: a figure of the user's own whose metric says that more is better; a Trainer that logs no figure.
    """

    mode = "min"  # lets it wait for a figure that a callback of the user's own logs

    def __init__(self, monitor: str = "val/loss", nonmono: int = 5) -> None:
        super().__init__()
        if nonmono < 0:
            raise ValueError(f"nonmono={nonmono} must be at least 0")
        if better(monitor) == "max":
            raise ValueError(f"monitor={monitor} must be a figure of which less is better, such as val/loss")
        self.monitor, self.nonmono = monitor, nonmono

    def forget(self) -> None:
        super().forget()
        self.figures: list[float] = []  # of the validations up to the trigger

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, module, stage)
        if stage == "fit" and better(self.monitor, getattr(module, "metrics", None)) == "max":
            raise UserError(
                f"NonMonotonicAveraging: of monitor {self.monitor} more is better: give one such as val/loss"
            )
        if stage == "fit" and trainer.barebones:
            raise UserError(
                f"NonMonotonicAveraging waits for {self.monitor}, and Trainer(barebones=True) logs nothing: leave one "
                "of them out"
            )

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        check_interval(trainer)
        if not isinstance(getattr(module, "schedule", None), Constant | None):
            rank_zero_warn("NonMonotonicAveraging wants a constant rate: --model.schedule lit_sft.optim.Constant")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.count or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        figure = float(trainer.callback_metrics[self.monitor])
        before = self.figures[: max(len(self.figures) - self.nonmono, 0)]
        self.figures.append(figure)
        if before and figure > min(before):
            rank_zero_info(f"step {trainer.global_step}: {self.monitor} gets no better; averaging from here")
            self.begin(module)

    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.count:
            self._add(module, 1 / (self.count + 1))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "figures": list(self.figures)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.figures = list(state_dict["figures"])


class ExponentialAveraging(WeightMean):
    """An exponential moving average: after each step mean <- decay * mean + (1 - decay) * weights.

    The first 1 / (1 - decay) steps are a plain mean (Tarvainen & Valpola 2017): otherwise the initial weights, such as
    those of a new head, would dominate it during these steps.

    Args:
        decay: in [0, 1).
        start_step: optimizer steps before the average begins, with the weights at that step.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, decay: float = 0.999, start_step: int = 0) -> None:
        super().__init__()
        if not 0 <= decay < 1 or start_step < 0:
            raise ValueError(f"decay={decay} must be in [0, 1), start_step={start_step} at least 0")
        self.decay, self.start_step = decay, start_step

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        if not self.count and trainer.global_step >= self.start_step:
            self.begin(module)

    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.count:
            self._add(module, max(1 - self.decay, 1 / (self.count + 1)))
        elif trainer.global_step >= self.start_step:
            self.begin(module)
