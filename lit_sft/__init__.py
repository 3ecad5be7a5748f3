"""Pretrain an LSTM on unlabeled text, fine-tune it on a few labels or on responses to prompts, measure it honestly."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Ensemble", "LitSFT", "Predictor", "TextDataModule", "load"]
HOMES = {"LitSFT": "lit_sft.module", "TextDataModule": "lit_sft.data.datamodule"}  # of the others: predictor


def __getattr__(name: str) -> Any:
    """``lit_sft.load`` and the others, imported when first asked for: importing the package stays fast."""
    if name in __all__:
        return getattr(import_module(HOMES.get(name, "lit_sft.predictor")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
