"""The responses that a model has generated in a test or validation, with their references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from lit_sft.atomic import write_table
from lit_sft.data.tokenization import Tokenizer
from lit_sft.evaluation.intervals import figures_once
from lit_sft.evaluation.text_losses import TextLosses
from lit_sft.evaluation.texts import TextScores
from lit_sft.evaluation.weighted import Figures

FILE = "responses.parquet"
VAL_FILE = "val-responses.parquet"


@dataclass(frozen=True)
class Responses:
    """The responses to the prompts of a split, in its order.

    Attributes:
        prompts, references: the prompts and responses in the data.
        texts: the generated responses.
        losses: losses of the references' tokens, one row per reference.
        documents: int64 (documents,), positions in the split.
        clean: bool (documents,), True if no copy of the prompt was trained on; None if that was not checked.
        scores: scores of the texts against the references.
    """

    prompts: list[str]
    references: list[str]
    texts: list[str]
    losses: TextLosses
    documents: np.ndarray
    clean: np.ndarray | None
    scores: TextScores

    def __len__(self) -> int:
        return len(self.documents)

    def figures(self, weights: np.ndarray) -> Figures:
        """Every figure, each (weightings,), under weights float64 (documents, weightings)."""
        return self.losses.figures(weights) | self.scores.figures(weights)

    def scored(self) -> dict[str, float]:
        """The figures of the texts alone, by their names."""
        return figures_once(self.scores.figures, len(self))

    def select(self, chosen: np.ndarray, bytes_per_target: float) -> Responses:
        """The documents of a mask (documents,); ``bytes_per_target`` is that of their references."""
        places = np.flatnonzero(chosen).tolist()
        texts = {name: [getattr(self, name)[i] for i in places] for name in ("prompts", "references", "texts")}
        losses = TextLosses(self.losses.nll[chosen], self.losses.targets[chosen], bytes_per_target)
        scores = TextScores(self.scores.counts[chosen], self.scores.means[chosen])
        clean = None if self.clean is None else self.clean[chosen]
        return Responses(**texts, losses=losses, documents=self.documents[chosen], clean=clean, scores=scores)

    def write(self, path: Path) -> None:
        """Write a Parquet file, whole or not at all: ``document``, ``prompt``, ``reference``, ``response``, ``loss``
        (nats a token of the reference) and ``clean`` (null: not checked).
        """
        loss = self.losses.nll / np.maximum(self.losses.targets, 1)
        columns = {
            "document": pa.array(self.documents, pa.int64()),
            "prompt": pa.array(self.prompts, pa.string()),
            "reference": pa.array(self.references, pa.string()),
            "response": pa.array(self.texts, pa.string()),
            "loss": pa.array(loss, pa.float32()),
            "clean": pa.nulls(len(self), pa.bool_()) if self.clean is None else pa.array(self.clean, pa.bool_()),
        }
        write_table(path, pa.table(columns))


def responses_in(
    rows: dict[str, np.ndarray],
    tokenizer: Tokenizer,
    texts: tuple[Sequence[str], Sequence[str]],
    bytes_per_target: float,
    clean: np.ndarray | None,
) -> Responses:
    """Collected rows in the order of the split.

    Args:
        rows: ``documents``, ``generated`` (ids, -1 after the end), and the sums ``nll`` and ``targets``.
        tokenizer: decodes the generated ids.
        texts: the prompts and the references of the whole split.
        bytes_per_target: UTF-8 bytes of the references divided by their number of targets.
        clean: bool (documents of the split,), or None.
    """
    order = np.argsort(rows["documents"])
    places = rows["documents"][order]
    written = [tokenizer.decode(ids[ids >= 0]).strip() for ids in rows["generated"][order]]
    prompts, references = ([column[place] for place in places.tolist()] for column in texts)
    losses = TextLosses(rows["nll"][order], rows["targets"][order], bytes_per_target)
    clean = None if clean is None else clean[places]
    return Responses(prompts, references, written, losses, places, clean, TextScores.of(written, references))
