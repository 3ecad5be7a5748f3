"""Which losses stand out from earlier ones."""

from __future__ import annotations

import math
from collections import deque
from statistics import median


class SpikeFilter:
    """Accepts a loss up to ``median + factor * spread`` of the last ``window`` accepted losses.

    The spread is 1.4826 times the median distance from the median, which is the standard deviation if losses are normal
    (Hampel 1974). Unlike mean and standard deviation, median and spread are not moved by the spike that is to be found.
    The spread is at least a hundredth of the median. Until the window is full, every loss is accepted.
    """

    def __init__(self, factor: float, window: int) -> None:
        self.factor = factor
        self.losses: deque[float] = deque(maxlen=window)

    def limit(self) -> float:
        """The highest loss that would be accepted now."""
        if len(self.losses) < (self.losses.maxlen or 0):
            return math.inf
        middle = median(self.losses)
        spread = 1.4826 * median(abs(loss - middle) for loss in self.losses)
        return middle + self.factor * max(spread, 0.01 * abs(middle))

    def accepts(self, loss: float) -> bool:
        """Whether ``loss`` is no spike; if so, it joins the window."""
        accepted = loss <= self.limit()
        if accepted:
            self.losses.append(loss)
        return accepted
