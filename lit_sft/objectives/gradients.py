"""Gradients that an objective computes itself: at the embeddings and, in the same pass, those that the step needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gradients(loss: Tensor, at: Sequence[Tensor], retain_graph: bool = False) -> tuple[Tensor, ...]:
    """The gradients of a scalar loss at tensors on one device; None for a tensor that the loss doesn't depend on.

    Computed with autocast disabled, so that each operation's backward uses the precision of its forward. Autocast would
    also cast the matrix products of the backward pass, even those of a full-precision forward pass, and small gradients
    underflow in float16.
    """
    with torch.autocast(at[0].device.type, enabled=False):
        return torch.autograd.grad(loss, at, retain_graph=retain_graph, allow_unused=True)


def differentiated(loss: Tensor, at: Tensor, parameters: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute a loss's gradients now, for `at` and for the parameters, and reuse the latter in the step.

    Adversarial training needs the gradient at the embeddings before its second pass, and the parameters' gradients in
    the step: one backward pass through the LSTM yields both. The returned loss has the same value; its own backward
    pass only returns the stored gradients, times the incoming factor. `loss` can still be differentiated.

    Not for float16 (`is_float16`): its gradients need the loss scale, which is not known here.

    Args:
        loss: scalar.
        at: a tensor of any shape that `loss` was computed from.
        parameters: the returned loss has gradients for those that require one and that `loss` depends on.

    Returns:
        The loss (scalar), and its gradient (the shape of `at`).
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    found = gradients(loss, [at, *trained], retain_graph=True)
    pairs = [(p, gradient) for p, gradient in zip(trained, found[1:], strict=True) if gradient is not None]
    known: Tensor = _Known.apply(loss.detach(), [gradient for _, gradient in pairs], *(p for p, _ in pairs))
    return known, torch.zeros_like(at) if found[0] is None else found[0]


def is_float16(x: Tensor) -> bool:
    """Whether computations on `x` now run in float16, in which small gradients underflow."""
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return autocast or x.dtype == torch.float16


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)  # unlike an attribute, freed after the backward pass
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(factor * gradient for gradient in ctx.saved_tensors)
