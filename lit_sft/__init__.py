"""Pretrain an LSTM on unlabeled text, fine-tune it on a few labels, measure it honestly."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Ensemble", "Predictor", "load"]


def __getattr__(name: str) -> Any:
    """``lit_sft.load`` and ``lit_sft.Predictor``, imported when first asked for: importing the package stays fast."""
    if name in __all__:
        from lit_sft import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
