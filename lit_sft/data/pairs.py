"""Prompts with their responses: one document each in a token array, and batches that know which tokens answer.

A pair is stored as ``prompt <eos> response``. The separator is the boundary that a language model has seen between
documents, so a model pretrained on plain text needs no new token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from lit_sft.atomic import write_table
from lit_sft.data.buckets import DocumentBatch, DocumentDataset, collate, truncate
from lit_sft.data.documents import Documents
from lit_sft.data.streams import IGNORED
from lit_sft.errors import UserError

TEXTS = "texts.parquet"  # beside the token array of a split


@dataclass
class PairBatch(DocumentBatch):
    """Whole pairs, ``<eos> prompt <eos> response <eos>``, padded on the right; ``lengths`` counts all of it.

    Attributes:
        targets: int64 (batch, time), the token after each position; -100 past the end, and in place of the final
            ``<eos>`` of a truncated response, which does not end there.
        response_places: int64 (response tokens of the batch,), the positions of the responses in the flattened
            ``targets``, each with its ``<eos>`` unless truncated; computed here, to avoid waiting for a device.
        prompt_lengths: int64 (batch,), positions up to the ``<eos>`` after the prompt, both boundaries included.
        max_response_length: maximum number of response tokens kept.
    """

    targets: Tensor = None  # type: ignore[assignment]
    response_places: Tensor = None  # type: ignore[assignment]
    prompt_lengths: Tensor = None  # type: ignore[assignment]
    max_response_length: int = 0

    @property
    def response_targets(self) -> Tensor:
        """``targets`` with -100 in place of the prompt's targets as well."""
        flat = torch.full_like(self.targets, IGNORED).flatten()
        flat[self.response_places] = self.targets.flatten()[self.response_places]
        return flat.view(self.targets.shape)


class PairDataset(DocumentDataset):
    """Every pair once per epoch, in length buckets as for documents.

    Args:
        documents, options: those of :class:`DocumentDataset`. The tokens' ``prompts`` say where each response begins;
            ``max_length`` and ``truncation`` apply to the prompt.
        max_response_length: maximum number of response tokens kept, from its start.

    Raises:
        UserError: no pairs, or an unknown truncation.
    """

    def __init__(self, *documents: Any, max_response_length: int, **options: Any) -> None:
        self.max_response_length = max_response_length
        super().__init__(*documents, **options)
        self.limits = (*self.limits, max_response_length)

    def _kept_lengths(self) -> np.ndarray:
        prompts, responses = self.tokens.prompts, self.tokens.response_lengths
        kept: np.ndarray = np.minimum(prompts, self.max_length) + np.minimum(responses, self.max_response_length) + 3
        return kept

    def __getitem__(self, index: int) -> PairBatch:
        members = self._members(index)[self.rank :: self.world_size]
        parts = [self._parts(int(i)) for i in members]
        ids = [np.concatenate([prompt, [self.eos_id], response]) for prompt, response, _ in parts]
        places = members
        if not len(members):  # fewer pairs than processes: a placeholder that counts as nothing
            ids, places = [np.zeros(0, dtype=np.int64)], np.array([-1], dtype=np.int64)
        batch = collate(ids, self.eos_id, self.pad_id, None, places)
        starts = np.array([len(prompt) + 1 for prompt, _, _ in parts] or [0])  # position of the <eos> before it
        counts = np.array([len(response) + (not cut) for _, response, cut in parts] or [0])
        place, first, end = np.arange(batch.input_ids.shape[1]), starts[:, None], (starts + counts)[:, None]
        targets = batch.input_ids.roll(-1, dims=1).masked_fill(torch.from_numpy(place >= end), IGNORED)
        answers = np.flatnonzero((place >= first) & (place < end))
        fields: dict[str, Any] = {**vars(batch), "empty": not len(members)}
        fields |= {"targets": targets, "response_places": torch.from_numpy(answers)}
        fields |= {"prompt_lengths": torch.from_numpy(starts + 1), "max_response_length": self.max_response_length}
        return PairBatch(**fields)

    def _parts(self, index: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """The kept parts of a pair's prompt and response, and whether the response was truncated."""
        ids, prompt = self.tokens.document(index), int(self.tokens.prompts[index])
        response = ids[prompt + 1 :]
        kept = response[: self.max_response_length]
        return truncate(ids[:prompt], self.max_length, self.truncation), kept, len(kept) < len(response)


def write_texts(folder: Path, split: str, documents: Documents) -> None:
    """Store the prompts and responses of a split as read, for metrics that compare texts; all of them or none."""
    columns = {"prompt": list(documents.texts), "response": documents.responses}
    table = pa.table({name: pa.array(texts, pa.string()) for name, texts in columns.items()})
    write_table(folder / f"{split}-{TEXTS}", table)


def read_texts(folder: Path, split: str) -> tuple[list[str], list[str]]:
    """The prompts and the responses that :func:`write_texts` kept.

    Raises:
        UserError: they aren't there, or damaged.
    """
    path = folder / f"{split}-{TEXTS}"
    try:
        table = pa.parquet.read_table(path)
        return table.column("prompt").to_pylist(), table.column("response").to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path} ({error}): delete that folder and run again") from error


def check_answering(pairs: bool, direction: str | None) -> None:
    """Raise a UserError if responses can't be learned: there are none, or documents are read backward."""
    if not pairs:
        raise UserError("this objective learns responses to prompts: set --data.response_column")
    if direction == "backward":
        raise UserError(
            "a response is written from its first word on: leave out --data.direction backward, and start from a "
            "pretraining that reads forward"
        )
