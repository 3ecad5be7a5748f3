"""Gradients that an objective computes itself: those at the embeddings, and with them those that the step needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gradients(loss: Tensor, at: Sequence[Tensor], retain_graph: bool = False) -> tuple[Tensor, ...]:
    """The gradients of a scalar loss at tensors of one device; None at those that it was not computed from.

    Outside autocast, so that each operation goes back in the precision that it had: autocast casts the matrix products
    of a backward pass too, those of an exact forward pass among them, and float16 has no room for small gradients.
    """
    with torch.autocast(at[0].device.type, enabled=False):
        return torch.autograd.grad(loss, at, retain_graph=retain_graph, allow_unused=True)


def differentiated(loss: Tensor, at: Tensor, parameters: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute a loss's gradients now, for `at` and for the parameters, and reuse the latter in the step.

    Adversarial training needs the gradient at the embeddings before its second pass, and the parameters' in the step:
    one backward pass through the LSTM yields both. The loss that is returned has the same value, and its own backward
    pass only hands out the gradients that are there, times any factor. `loss` can still be differentiated.

    Not under float16 (`is_float16`), whose gradients need a scale that is not known here.

    Args:
        loss: scalar.
        at: what `loss` was computed from, any shape.
        parameters: those of them that are trained are the ones that the returned loss trains.

    Returns:
        The loss (scalar), and its gradient (the shape of `at`).
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    found = gradients(loss, [at, *trained], retain_graph=True)
    pairs = [(p, gradient) for p, gradient in zip(trained, found[1:], strict=True) if gradient is not None]
    known: Tensor = _Known.apply(loss.detach(), [gradient for _, gradient in pairs], *(p for p, _ in pairs))
    return known, torch.zeros_like(at) if found[0] is None else found[0]


def is_float16(x: Tensor) -> bool:
    """Whether what is computed now of `x` is in float16, which has no room for small gradients."""
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return autocast or x.dtype == torch.float16


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)  # gone after the backward pass, as an attribute would not be
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(factor * gradient for gradient in ctx.saved_tensors)
