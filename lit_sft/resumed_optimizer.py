"""A resumed run's optimizer: options of the config, state of the checkpoint."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Size, Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def take_options(scheduler: LambdaLR, fresh: list[dict[str, Any]]) -> list[str]:
    """Give a resumed optimizer's groups the options of the run's config, and the learning rate of the current step.

    What else an optimizer keeps in its groups, such as the counts of Prodigy and schedule-free ones, is state: it stays
    as the checkpoint has it.

    Args:
        scheduler: as restored from the checkpoint; its optimizer's groups still have the checkpoint's options.
        fresh: the options of each group according to the config; ``initial_lr``, which a scheduler adds, is the rate.

    Returns:
        The changes, such as ``lr: 0.01 -> 0.002`` or, if only some groups change, ``weight_decay of head: 0 -> 0.1``.

    Raises:
        ValueError: the checkpoint's optimizer state doesn't fit the weights.
    """
    optimizer = scheduler.optimizer
    _check_state(optimizer)
    changed: dict[tuple[str, str], list[str]] = {}
    known, groups = _options(optimizer), optimizer.param_groups
    for index, (group, options) in enumerate(zip(groups, fresh, strict=True)):
        for key, value in options.items():
            if key in known and group.get(key) != value:
                change = f"{_short(group.get(key))} -> {_short(value)}"
                changed.setdefault((key.removeprefix("initial_"), change), []).append(str(options.get("name", index)))
                group[key] = value
        scheduler.base_lrs[index] = group["initial_lr"]
        group["lr"] = group["initial_lr"] * scheduler.lr_lambdas[index](scheduler.last_epoch)
        for weight in group["params"] if group.get("fused") else ():  # whose kernel reads its step count on the device
            if isinstance(step := optimizer.state.get(weight, {}).get("step"), Tensor):
                optimizer.state[weight]["step"] = step.to(weight.device)
    return [
        f"{key}: {change}" if len(names) == len(groups) else f"{key} of {', '.join(names)}: {change}"
        for (key, change), names in changed.items()
    ]


def _options(optimizer: Optimizer) -> set[str]:
    """Return the options that its groups may have; not ``lr``, which is computed from ``initial_lr``."""
    parameters = inspect.signature(type(optimizer)).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return ({*parameters, *(optimizer.defaults if takes_any else ())} | {"initial_lr", "name"}) - {"lr"}


def _check_state(optimizer: Optimizer) -> None:
    """Raise a ValueError if a state's shape doesn't fit its weight: torch's kernels would silently read beyond its end.

    Only torch's own optimizers are checked: others may keep anything in their state.
    """
    if not type(optimizer).__module__.startswith("torch.optim"):
        return
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and not _spreads(value.shape, weight.shape):
                shapes = f"{name} is {tuple(value.shape)} for a weight of {tuple(weight.shape)}"
                raise ValueError(f"the checkpoint's optimizer state doesn't fit the model: {shapes}")


def _spreads(shape: Size, over: Size) -> bool:
    """Whether ``shape`` is a scalar's, or equals ``over`` except for sizes of 1 (Adafactor's rows and columns)."""
    return not shape or (len(shape) == len(over) and all(n in (1, m) for n, m in zip(shape, over, strict=True)))


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
