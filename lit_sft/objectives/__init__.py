"""Training objectives, one file each."""

from lit_sft.objectives.adversarial_mle import AdversarialMLE
from lit_sft.objectives.at import AT
from lit_sft.objectives.auxiliary_lm import AuxiliaryLM
from lit_sft.objectives.base import Loss, Objective
from lit_sft.objectives.completion import Completion
from lit_sft.objectives.entmin import EntMin
from lit_sft.objectives.mixed import Mixed
from lit_sft.objectives.mle import MLE
from lit_sft.objectives.probe import Probe
from lit_sft.objectives.sequence_autoencoder import SequenceAutoencoder
from lit_sft.objectives.supervised import Supervised
from lit_sft.objectives.term import Term
from lit_sft.objectives.vat import VAT

__all__ = [
    "AT",
    "MLE",
    "VAT",
    "AdversarialMLE",
    "AuxiliaryLM",
    "Completion",
    "EntMin",
    "Loss",
    "Mixed",
    "Objective",
    "Probe",
    "SequenceAutoencoder",
    "Supervised",
    "Term",
]
