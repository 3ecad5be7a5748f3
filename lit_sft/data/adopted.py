"""What a run takes over from the checkpoint that it starts from, resumes, or evaluates."""

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
    """What a checkpoint prescribes for the data; all None for a run that starts from nothing.

    Attributes:
        tokenizer: the tokenizer of the ids that the checkpoint's embedding was trained on.
        label_names: the checkpoint's classes, in order.
        multilabel: whether a document may have any number of labels.
        fed: the record of the text that it has seen (:mod:`lit_sft.data.provenance`).
        direction: the direction in which it reads documents.
        to_extend: its tokenizer, if the data add words to it instead of using it unchanged; ``tokenizer`` is then None.
    """

    tokenizer: Tokenizer | None = None
    label_names: list[str] | None = None
    multilabel: bool | None = None
    fed: Mapping[str, Any] | None = None
    direction: Direction | None = None
    to_extend: Tokenizer | None = None

    @property
    def before(self) -> Mapping[str, Any]:
        """The record of the text that the weights and the tokenizer have seen before this run."""
        return self.fed or NOTHING

    def check_labels(self, label_names: list[str], multilabel: bool) -> None:
        """Raise a UserError if the labels of the data are not those that the checkpoint was trained with."""
        if self.label_names and label_names and label_names != self.label_names:
            raise UserError(
                f"the data have the labels {label_names}, the checkpoint {self.label_names}: "
                "map them with --data.label_names"
            )
        if self.label_names and self.multilabel not in (None, multilabel):
            have, trained = "any number of labels", "one"
            if not multilabel:
                have, trained = "one label", "any number: set data.label_separator"
            raise UserError(f"the data have {have} a document, and the checkpoint was trained with {trained}")
