"""What happens beside the training steps, one callback a file."""

from lit_sft.callbacks.health import Health
from lit_sft.callbacks.record import RunRecord
from lit_sft.callbacks.stopping import BestCheckpoint, EarlyStop, LastCheckpoint
from lit_sft.callbacks.throughput import Throughput

__all__ = ["BestCheckpoint", "EarlyStop", "Health", "LastCheckpoint", "RunRecord", "Throughput"]
