"""Training objectives, one file each."""

from lit_sft.objectives.base import Loss, Objective
from lit_sft.objectives.mle import MLE
from lit_sft.objectives.probe import Probe
from lit_sft.objectives.supervised import Supervised

__all__ = ["MLE", "Loss", "Objective", "Probe", "Supervised"]
