"""Dropout with explicit masks: locked (variational) dropout, and masks of any other shape.

A locked mask serves all time steps of a document (Gal & Ghahramani 2016, "A Theoretically Grounded Application of
Dropout in Recurrent Neural Networks", section 4). Masks are drawn by a function of their own and handed to
the forward pass as plain tensors, so that an objective can run the network twice under the same masks;
`nn.LSTM(dropout=...)` and `F.dropout` draw anew at each call (and at each time step), which makes an
adversarial direction mostly noise.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_dropout(name: str, p: float) -> float:
    """Return `p`, the share of units set to zero; a ValueError names the option when it is not in [0, 1)."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{name}={p} must be at least 0 and less than 1")
    return float(p)


def left_out(
    p: float,
    size: tuple[int, ...],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    """Draw a mask that drops whole tokens: 0 with probability `p`, else 1 (the tokens that stay are not scaled up).

    Returns None when `p` is 0, without drawing a random number.
    """
    return None if p == 0.0 else torch.empty(size, device=device, dtype=dtype).bernoulli_(1.0 - p)


def dropout_mask(
    p: float,
    size: tuple[int, ...],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    """Draw a mask of any shape: 0 with probability `p`, else 1 / (1 - p), which preserves the mean.

    With `size` (batch, 1, units) the mask is locked: it serves all time steps. Returns None when `p` is 0, without
    drawing a random number.
    """
    mask = left_out(p, size, device, dtype)
    return None if mask is None else mask.div_(1.0 - p)


def apply_mask(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` times `mask` in the dtype of `x`; `x` itself when there is no mask."""
    return x if mask is None else x * mask.to(x.dtype)
