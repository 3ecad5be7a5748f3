"""What a run takes over from the checkpoint that it starts from, goes on with, or measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_sft.data.batches import Direction
from lit_sft.data.provenance import NOTHING
from lit_sft.data.tokenization import Tokenizer
from lit_sft.errors import UserError


@dataclass(frozen=True)
class Adopted:
    """A checkpoint's side of the data; all None for a run that starts from nothing.

    Attributes:
        tokenizer: whose ids its embedding knows.
        label_names: its classes in their order.
        multilabel: whether its documents have any number of labels.
        fed: what it was fed with (:mod:`lit_sft.data.provenance`).
        direction: how it reads documents.
        to_extend: its tokenizer, where the data take more words into it, and not as it is (``tokenizer`` is None).
    """

    tokenizer: Tokenizer | None = None
    label_names: list[str] | None = None
    multilabel: bool | None = None
    fed: Mapping[str, Any] | None = None
    direction: Direction | None = None
    to_extend: Tokenizer | None = None

    @property
    def before(self) -> Mapping[str, Any]:
        """What the weights and the tokenizer have been fed with before this run."""
        return self.fed or NOTHING

    def check_labels(self, label_names: list[str], multilabel: bool) -> None:
        """Raise a UserError where the labels of the data are not those that the checkpoint was trained with."""
        if self.label_names and label_names and label_names != self.label_names:
            raise UserError(
                f"the data have the labels {label_names}, the checkpoint {self.label_names}: "
                "map them with --data.label_names"
            )
        if self.label_names and self.multilabel not in (None, multilabel):
            raise UserError(_other_kind(multilabel))


def _other_kind(multilabel: bool) -> str:
    if multilabel:
        return "the data have any number of labels a document, and the checkpoint was trained with one"
    return (
        "the data have one label a document, and the checkpoint was trained with any number: set data.label_separator"
    )
