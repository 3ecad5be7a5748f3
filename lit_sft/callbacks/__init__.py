"""What happens beside the training steps, one callback a file."""

from lit_sft.callbacks.averaging import ExponentialAveraging, NonMonotonicAveraging
from lit_sft.callbacks.directions import DirectionCheck
from lit_sft.callbacks.health import Health
from lit_sft.callbacks.l2_start import L2Start
from lit_sft.callbacks.progress import LogProgress, TerminalProgress
from lit_sft.callbacks.record import RunRecord
from lit_sft.callbacks.saving import BestCheckpoint, LastCheckpoint, StopOnSignal
from lit_sft.callbacks.stopping import EarlyStop
from lit_sft.callbacks.throughput import Throughput
from lit_sft.callbacks.unfreezing import GradualUnfreezing

__all__ = [
    "BestCheckpoint",
    "DirectionCheck",
    "EarlyStop",
    "ExponentialAveraging",
    "GradualUnfreezing",
    "Health",
    "L2Start",
    "LastCheckpoint",
    "LogProgress",
    "NonMonotonicAveraging",
    "RunRecord",
    "StopOnSignal",
    "TerminalProgress",
    "Throughput",
]
