"""Learning rates: schedules in optimizer steps, discriminative parameter groups, fused optimizers.

A schedule maps (step, total steps) to a factor on the optimizer's learning rate. The module computes the total from the
loader's length and never reads ``trainer.estimated_stepping_batches``, which makes Lightning build the loaders early
and forget their state on resume (Lightning issue 20550).
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer


class Schedule(ABC):
    """A learning-rate schedule: ``schedule(step, total_steps)`` is the factor on the optimizer's rate.

    ``step`` counts optimizer steps from 0 to ``total_steps - 1``; later steps get the last factor. A total of 0 means
    that it is unknown (``trainer.max_epochs -1``); only schedules without ``needs_total`` get it.
    """

    needs_total = True  # whether the factor depends on the number of steps

    def __call__(self, step: int, total_steps: int) -> float:
        if total_steps > 0 or self.needs_total:
            step = min(step, max(total_steps - 1, 0))
        return float(self.factor(step, max(total_steps, 1)))  # a checkpoint can't hold NumPy's numbers

    @abstractmethod
    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor at ``step`` < ``total_steps`` (an unknown total is given as 1 and is no limit)."""


class Constant(Schedule):
    """A constant learning rate: the optimizer's."""

    needs_total = False

    def factor(self, step: int, total_steps: int) -> float:
        return 1.0


class WarmupCosine(Schedule):
    """Linear warmup, then a half cosine down to ``final`` (Loshchilov & Hutter 2017, eq. 5, without restarts).

    Args:
        warmup: share of all steps in which the rate rises, in [0, 1).
        final: the factor at the last step.
    """

    def __init__(self, warmup: float = 0.05, final: float = 0.0) -> None:
        _check_share("warmup", warmup)
        self.warmup, self.final = warmup, final

    def factor(self, step: int, total_steps: int) -> float:
        rise = int(self.warmup * total_steps)
        if step < rise:
            return (step + 1) / (rise + 1)
        progress = (step - rise) / max(total_steps - 1 - rise, 1)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class OneCycle(Schedule):
    """Cosine up from ``1 / start_div``, cosine down to ``1 / final_div`` (Smith & Topin 2018; fastai's defaults).

    Only the learning rate changes; momentum is constant.

    Args:
        warmup: share of all steps in which the rate rises, in [0, 1).
        start_div: the first rate is the optimizer's divided by this.
        final_div: the last rate is the optimizer's divided by this.
    """

    def __init__(self, warmup: float = 0.25, start_div: float = 25.0, final_div: float = 1e5) -> None:
        _check_share("warmup", warmup)
        _check_divisors(start_div=start_div, final_div=final_div)
        self.warmup, self.start_div, self.final_div = warmup, start_div, final_div

    def factor(self, step: int, total_steps: int) -> float:
        rise = int(self.warmup * total_steps)
        if step < rise:
            return _cosine(1 / self.start_div, 1.0, step / rise)
        return _cosine(1.0, 1 / self.final_div, (step - rise) / max(total_steps - 1 - rise, 1))


class SlantedTriangular(Schedule):
    """A short linear rise, a long linear fall (ULMFiT: Howard & Ruder 2018, eq. 3).

    Args:
        cut_frac: share of all steps in which the rate rises, in [0, 1); at least one step.
        ratio: the highest rate divided by the lowest.
    """

    def __init__(self, cut_frac: float = 0.1, ratio: float = 32.0) -> None:
        _check_share("cut_frac", cut_frac)
        _check_divisors(ratio=ratio)
        self.cut_frac, self.ratio = cut_frac, ratio

    def factor(self, step: int, total_steps: int) -> float:
        cut = max(math.floor(total_steps * self.cut_frac), 1)
        # The paper's length of the fall, cut * (1 / cut_frac - 1), is total - cut if cut needs no rounding.
        p = step / cut if step < cut else 1 - (step - cut) / max(total_steps - cut, 1)
        return (1 + p * (self.ratio - 1)) / self.ratio


class RangeTest(Schedule):
    """Exponential rise from ``start`` to 1 at the last step, to find out at which rates the loss falls or grows.

    For a short run whose optimizer has the highest rate to be tried (Smith 2017, section 3.3, with a linear rise;
    exponential as in fastai's ``lr_find``). ``scripts/lr_range.py`` runs it.

    Args:
        start: the factor at the first step, above 0 and below 1.
    """

    def __init__(self, start: float = 1e-4) -> None:
        if not 0 < start < 1:
            raise ValueError(f"start is the first share of the rate, above 0 and below 1, not {start}")
        self.start = start

    def factor(self, step: int, total_steps: int) -> float:
        return math.pow(self.start, 1 - step / max(total_steps - 1, 1))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} is a share of the steps, from 0 to below 1, not {value}")


def _check_divisors(**given: float) -> None:
    for name, value in given.items():
        if value <= 0:
            raise ValueError(f"{name} divides a rate: it is above 0, not {value}")


def build_optimizer(
    factory: Callable[[list[dict[str, Any]]], Optimizer], layers: list[list[nn.Parameter]], decay: float
) -> Optimizer:
    """Build the optimizer with discriminative rates: each layer's is ``decay`` times the rate of the layer above it.

    The top layer has the optimizer's own rate. (Howard & Ruder 2018 divide by 2.6, a ``decay`` of 0.38.)

    Raises:
        ValueError: a ``decay`` of 0 or less, or an option that the optimizer refuses.
    """
    if decay <= 0:
        raise ValueError(f"layer_decay={decay} must be above 0")
    optimizer = factory(parameter_groups(layers, decay))
    for group in optimizer.param_groups:  # the rate, an option or a default of the optimizer, is known only now
        group["lr"] = group["lr"] * group.pop("lr_factor")
        # A checkpoint can't hold NumPy's numbers.
        group |= {name: value.item() for name, value in group.items() if isinstance(value, np.generic)}
    return fuse(optimizer)


def parameter_groups(layers: list[list[nn.Parameter]], decay: float) -> list[dict[str, Any]]:
    """Group parameters by layer. Biases and other vectors get no weight decay; frozen parameters are left out.

    Args:
        layers: parameters of each layer from the bottom (embedding) to the top (head).
        decay: factor on the rate from each layer to the layer below; 1 gives all layers the same rate.

    Returns:
        Groups in the optimizer's format, from the bottom to the top. A group's ``name`` is that of its layer
        (``embedding``, ``layer1``, ..., ``head``), with ``.bias`` added for the part without weight decay; its
        ``lr_factor`` is its rate divided by the top layer's.
    """
    groups: list[dict[str, Any]] = []
    names = ["embedding", *(f"layer{i}" for i in range(1, len(layers) - 1)), "head"]
    for height, (name, parameters) in enumerate(zip(names, layers, strict=True), start=1):
        factor = decay ** (len(layers) - height)
        trainable = [p for p in parameters if p.requires_grad]
        matrices, vectors = [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]
        if matrices:
            groups.append({"params": matrices, "lr_factor": factor, "name": name})
        if vectors:
            groups.append({"params": vectors, "lr_factor": factor, "name": f"{name}.bias", "weight_decay": 0.0})
    return groups


def fuse(optimizer: Optimizer) -> Optimizer:
    """Use the optimizer's fused kernel if it has one and the user chose no kernel (5 times faster on CPU).

    The option is set on the groups, not in the constructor: an optimizer *constructed* as fused unscales its gradients
    itself, and Lightning then refuses gradient clipping under 16-mixed.
    """
    if "fused" not in inspect.signature(type(optimizer)).parameters:
        return optimizer
    defaults = optimizer.defaults
    if any(parameter.device.type != "cpu" for parameter in optimizer.state):
        return optimizer  # Adagrad has already made its step counts, on the CPU: a fused GPU kernel can't use them
    chosen = any(defaults.get(name) is not None for name in ("fused", "foreach"))  # False is a choice too
    if chosen or defaults.get("differentiable") or defaults.get("capturable"):
        return optimizer
    for group in optimizer.param_groups:
        group["fused"] = True
    return optimizer


def unscales(optimizer: Optimizer, precision: Any) -> bool:
    """Whether the optimizer unscales the gradients itself, instead of Lightning's ``precision`` plugin before it."""
    return getattr(precision, "scaler", None) is not None and getattr(optimizer, "_step_supports_amp_scaling", False)


def clip_gradients(optimizer: Optimizer, limit: float, by_value: bool) -> Tensor | None:
    """Clip the gradients of an optimizer's parameters; return their norm before clipping, or None without gradients.

    Clipping by norm needs this norm anyway. Nothing is read back from the device.

    Args:
        optimizer: the parameters of all its groups are clipped together.
        limit: the largest norm, or absolute value; 0 clips nothing.
        by_value: clip each value separately instead of the norm.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not parameters:
        return None
    norm = get_total_norm([p.grad for p in parameters])
    if limit > 0 and by_value:
        clip_grad_value_(parameters, limit)
    elif limit > 0:
        clip_grads_with_norm_(parameters, limit, norm)
    return norm


def steps_of_fit(
    batches: int, limit: float | int | None, accumulate: int, max_epochs: int | None, max_steps: int
) -> int:
    """Return the number of optimizer steps of a whole fit; 0 if nothing limits it.

    Args:
        batches: batches per epoch.
        limit: the Trainer's ``limit_train_batches``: a number or a share. Lightning puts ``overfit_batches`` here, too.
        accumulate: batches per optimizer step.
        max_epochs, max_steps: the Trainer's; -1 means no limit.
    """
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))
    ends = [max_steps]
    if max_epochs is not None and max_epochs >= 0:
        ends.append(max_epochs * -(-batches // accumulate))
    return min((end for end in ends if end >= 0), default=0)
