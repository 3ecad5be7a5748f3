"""Learning rates: schedules in optimizer steps, discriminative parameter groups, fused optimizers.

A schedule is a plain function of (step, total steps) to a factor on the optimizer's own rate. The total is counted by
the module from the loader's length and never read from ``trainer.estimated_stepping_batches``, which makes Lightning
build the loaders early and forget their state on resume (Lightning issue 20550).
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Size, Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Schedule(ABC):
    """A learning-rate schedule: ``schedule(step, total_steps)`` is the factor on the optimizer's rate.

    ``step`` counts optimizer steps from 0 to ``total_steps - 1``; later steps get the last factor. A total of 0 is one
    that isn't known (``trainer.max_epochs -1``), which only a schedule without ``needs_total`` is asked with.
    """

    needs_total = True  # whether the factor depends on the number of steps

    def __call__(self, step: int, total_steps: int) -> float:
        if total_steps > 0 or self.needs_total:
            step = min(step, max(total_steps - 1, 0))
        return self.factor(step, max(total_steps, 1))

    @abstractmethod
    def factor(self, step: int, total_steps: int) -> float:
        """The factor at ``step``, which is below ``total_steps``."""


class Constant(Schedule):
    """The optimizer's rate throughout."""

    needs_total = False

    def factor(self, step: int, total_steps: int) -> float:
        return 1.0


class WarmupCosine(Schedule):
    """Linear warmup, then a half cosine down to ``final`` (Loshchilov & Hutter 2017, eq. 5, without restarts).

    Args:
        warmup: the share of all steps that warm up, in [0, 1).
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

    Of the rate alone: momentum stays.

    Args:
        warmup: the share of all steps that rise, in [0, 1).
        start_div: the first rate is the optimizer's divided by this.
        final_div: the last rate is the optimizer's divided by this.
    """

    def __init__(self, warmup: float = 0.25, start_div: float = 25.0, final_div: float = 1e5) -> None:
        _check_share("warmup", warmup)
        self.warmup, self.start_div, self.final_div = warmup, start_div, final_div

    def factor(self, step: int, total_steps: int) -> float:
        rise = int(self.warmup * total_steps)
        if step < rise:
            return _cosine(1 / self.start_div, 1.0, step / rise)
        return _cosine(1.0, 1 / self.final_div, (step - rise) / max(total_steps - 1 - rise, 1))


class SlantedTriangular(Schedule):
    """A short linear rise, a long linear fall (ULMFiT: Howard & Ruder 2018, eq. 3).

    Args:
        cut_frac: the share of all steps that rise, in [0, 1); one step at least.
        ratio: how much smaller the lowest rate is than the highest.
    """

    def __init__(self, cut_frac: float = 0.1, ratio: float = 32.0) -> None:
        _check_share("cut_frac", cut_frac)
        self.cut_frac, self.ratio = cut_frac, ratio

    def factor(self, step: int, total_steps: int) -> float:
        cut = max(math.floor(total_steps * self.cut_frac), 1)
        # The paper's fall, cut * (1 / cut_frac - 1), is total - cut where cut needs no rounding.
        p = step / cut if step < cut else 1 - (step - cut) / max(total_steps - cut, 1)
        return (1 + p * (self.ratio - 1)) / self.ratio


class RangeTest(Schedule):
    """Exponentially up from ``start`` to 1 at the last step: at which rates does the loss fall, and where does it grow?

    For a short run with the highest rate as the optimizer's (Smith 2017, section 3.3, where the rise is linear;
    exponential as in fastai's ``lr_find``). ``scripts/lr_range.py`` makes it.

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


def build_optimizer(
    factory: Callable[[list[dict[str, Any]]], Optimizer], layers: list[list[nn.Parameter]], decay: float
) -> Optimizer:
    """The optimizer with discriminative rates: its own for the top layer, ``decay`` times the one above below.

    (Howard & Ruder 2018 divide by 2.6, a ``decay`` of 0.38.)

    Raises:
        ValueError: a ``decay`` of 0 or less, or an option that the optimizer refuses.
    """
    if decay <= 0:
        raise ValueError(f"layer_decay={decay} must be above 0")
    optimizer = factory(parameter_groups(layers, decay))
    for group in optimizer.param_groups:  # only now the rate is known: it is an option, or a default, of the optimizer
        group["lr"] = group["lr"] * group.pop("lr_factor")
    return fuse(optimizer)


def parameter_groups(layers: list[list[nn.Parameter]], decay: float) -> list[dict[str, Any]]:
    """Optimizer groups by layer. Biases and other vectors get no weight decay; frozen parameters are left out.

    Args:
        layers: the parameters of each layer from the bottom (embedding) to the top (head), as
            :meth:`Network.layer_groups` returns them.
        decay: the factor from a layer to the one below; 1 gives all layers one rate.

    Returns:
        Groups in the optimizer's format, from the bottom to the top. A group's ``name`` is that of its layer
        (``embedding``, ``layer1``, ..., ``head``), with ``.bias`` added for the part without weight decay; its
        ``lr_factor`` is its share of the top layer's rate.
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
    """Let the optimizer use its fused kernel, where it has one and the user chose none (5 times faster on CPU).

    Set on the groups and not through the constructor: an optimizer *constructed* as fused unscales its gradients
    itself, and Lightning then refuses gradient clipping under 16-mixed.
    """
    if "fused" not in inspect.signature(type(optimizer)).parameters:
        return optimizer
    defaults = optimizer.defaults
    if any(parameter.device.type != "cpu" for parameter in optimizer.state):
        return optimizer  # Adagrad has its step counts by now, and on the CPU, where a fused kernel can't have them
    chosen = any(defaults.get(name) is not None for name in ("fused", "foreach"))  # False is a choice too
    if chosen or defaults.get("differentiable") or defaults.get("capturable"):
        return optimizer
    for group in optimizer.param_groups:
        group["fused"] = True
    return optimizer


def unscales(optimizer: Optimizer, precision: Any) -> bool:
    """Whether the optimizer unscales gradients itself, and not Lightning's ``precision`` plugin before all others."""
    return getattr(precision, "scaler", None) is not None and getattr(optimizer, "_step_supports_amp_scaling", False)


def clip_gradients(optimizer: Optimizer, limit: float, by_value: bool) -> Tensor | None:
    """Clip the gradients of an optimizer's parameters and return their norm from before; None where there are none.

    The norm is what clipping by norm needs anyway. Nothing is read back from the device.

    Args:
        optimizer: its parameters are meant, all groups together.
        limit: of the norm, or of each value; 0 clips nothing.
        by_value: clip each value by itself and not the norm.
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


def take_options(scheduler: LambdaLR, fresh: list[dict[str, Any]]) -> list[str]:
    """Give the groups of a resumed optimizer the options of the run's config, and the rate of the step they stand at.

    Args:
        scheduler: where its checkpoint left it; the groups of its optimizer still have the checkpoint's options.
        fresh: the options of each group as the config makes them; a scheduler has put the rate into ``initial_lr``.

    Returns:
        What changed, as in ``lr: 0.01 -> 0.002`` or, for some of the groups, ``weight_decay of head: 0 -> 0.1``.

    Raises:
        ValueError: the checkpoint's optimizer state doesn't fit the weights.
    """
    _check_state(scheduler.optimizer)
    changed: dict[tuple[str, str], list[str]] = {}
    groups = scheduler.optimizer.param_groups
    for index, (group, options) in enumerate(zip(groups, fresh, strict=True)):
        for key, value in options.items():
            if key != "lr" and group.get(key) != value:  # lr itself is what the scheduler makes of the rate
                change = f"{_short(group.get(key))} -> {_short(value)}"
                changed.setdefault((key.removeprefix("initial_"), change), []).append(str(options.get("name", index)))
                group[key] = value
        scheduler.base_lrs[index] = group["initial_lr"]
        group["lr"] = group["initial_lr"] * scheduler.lr_lambdas[index](scheduler.last_epoch)
    return [
        f"{key}: {change}" if len(names) == len(groups) else f"{key} of {', '.join(names)}: {change}"
        for (key, change), names in changed.items()
    ]


def _check_state(optimizer: Optimizer) -> None:
    """torch's kernels take a state of another shape without a word, and read beyond its end.

    Other optimizers are left alone: they may keep anything.
    """
    if not type(optimizer).__module__.startswith("torch.optim"):
        return
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and not _spreads(value.shape, weight.shape):
                shapes = f"{name} is {tuple(value.shape)} for a weight of {tuple(weight.shape)}"
                raise ValueError(f"the checkpoint's optimizer state doesn't fit the model: {shapes}")


def _spreads(shape: Size, over: Size) -> bool:
    """Whether a tensor of a shape is as large as another, or is broadcast over it (Adafactor's rows and columns)."""
    return not shape or (len(shape) == len(over) and all(n in (1, m) for n, m in zip(shape, over, strict=True)))


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def steps_of_fit(
    batches: int, limit: float | int | None, accumulate: int, max_epochs: int | None, max_steps: int
) -> int:
    """Optimizer steps of a whole fit; 0 where nothing limits it.

    Args:
        batches: of an epoch.
        limit: the Trainer's ``limit_train_batches``: a number (``overfit_batches`` too ends here), or a share.
        accumulate: batches a step.
        max_epochs, max_steps: the Trainer's; -1 is no limit.
    """
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))
    ends = [max_steps]
    if max_epochs is not None and max_epochs >= 0:
        ends.append(max_epochs * -(-batches // accumulate))
    return min((end for end in ends if end >= 0), default=0)
