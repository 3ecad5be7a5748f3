"""Networks in plain torch: an encoder, heads, and what joins them."""

from lit_sft.models.encoder import Encoder, EncoderMasks, EncoderOutput, LSTMEncoder, LSTMState
from lit_sft.models.heads import ClassifierHead, LMHead
from lit_sft.models.network import Masks, Network
from lit_sft.models.twoway import TwoWayEncoder

__all__ = [
    "ClassifierHead",
    "Encoder",
    "EncoderMasks",
    "EncoderOutput",
    "LMHead",
    "LSTMEncoder",
    "LSTMState",
    "Masks",
    "Network",
    "TwoWayEncoder",
]
