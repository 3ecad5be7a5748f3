"""The predictions of a test or validation, document by document: gathered from all processes and kept in a file.

``scripts/paired.py`` compares such files; ``scripts/errors.py`` shows the documents, with the rows they come from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from lit_sft.atomic import write_table
from lit_sft.errors import UserError
from lit_sft.evaluation.thresholds import chosen

FILE = "predictions.parquet"
VAL_FILE = "val-predictions.parquet"
LABEL_NAMES = b"lit_sft.label_names"  # in the file's metadata, as JSON: the order of its probabilities
COLUMNS = ("document", "key", "label", "predicted", "loss", "probabilities", "clean")


@dataclass(frozen=True)
class Predictions:
    """What a model says of each document of a test or validation set.

    Attributes:
        label_names: the classes, in the order of the probabilities.
        documents: int64 (documents,), the position of each document in the prepared split, ascending, from 0. It is not
            a row number of a file: blank rows have been dropped, and validation data may be held out, or a subset.
        keys: uint64 (documents,), content key of each document's text.
        labels: int64 (documents,), class of each document; multi-label: uint8 (documents, classes), 1 where a label
            applies.
        predicted: predictions, in the format of ``labels``.
        losses: float (documents,), nats.
        probabilities: float (documents, classes).
        clean: bool (documents,), True if no copy of the document was trained on; None if that was not checked.
    """

    label_names: list[str]
    documents: np.ndarray
    keys: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    losses: np.ndarray
    probabilities: np.ndarray
    clean: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def multilabel(self) -> bool:
        """Whether a document may have several labels, or none."""
        return self.labels.ndim == 2

    def select(self, chosen: np.ndarray) -> Predictions:
        """The documents at ``chosen``: positions, or a mask (documents,)."""
        columns = ("documents", "keys", "labels", "predicted", "losses", "probabilities")
        clean = None if self.clean is None else self.clean[chosen]
        return replace(self, clean=clean, **{name: getattr(self, name)[chosen] for name in columns})

    def write(self, path: Path) -> None:
        """Write a Parquet file, whole or not at all.

        The columns are ``document`` (not a row number of a file, see ``documents``), ``key`` (content key of the text,
        by which its row in the source can be found), ``label`` and ``predicted`` (names; multi-label: lists of names),
        ``loss``, ``probabilities`` (a list in the order of the label names in the metadata) and ``clean`` (null: not
        checked).

        Raises:
            UserError: if the folder can't be written to.
        """
        table = pa.table(
            {
                "document": pa.array(self.documents, pa.int64()),
                "key": pa.array(self.keys, pa.uint64()),
                "label": self._named(self.labels),
                "predicted": self._named(self.predicted),
                "loss": pa.array(self.losses, pa.float32()),
                "probabilities": _lists(self.probabilities),
                "clean": pa.nulls(len(self), pa.bool_()) if self.clean is None else pa.array(self.clean, pa.bool_()),
            },
            metadata={LABEL_NAMES: json.dumps(self.label_names).encode()},
        )
        write_table(path, table)

    def _named(self, classes: np.ndarray) -> pa.Array:
        """Class numbers (documents,), or flags (documents, classes), as names."""
        if classes.ndim == 1:
            return pa.array([self.label_names[i] for i in classes.tolist()], pa.string())
        names = [[name for name, on in zip(self.label_names, row, strict=True) if on] for row in classes.tolist()]
        return pa.array(names, pa.list_(pa.string()))


def read_predictions(path: Path) -> Predictions:
    """The predictions that :meth:`Predictions.write` left in a file.

    Raises:
        UserError: no such file, or another kind of file.
    """
    try:
        table = pa.parquet.read_table(path)
        if "response" in table.column_names:
            raise UserError(f"{path} holds responses to prompts, and no predictions of labels")
        names = json.loads(table.schema.metadata[LABEL_NAMES])
        columns = {name: table.column(name).combine_chunks() for name in COLUMNS}
        clean = columns["clean"]
        return Predictions(
            names,
            columns["document"].to_numpy(),
            columns["key"].to_numpy(),
            _numbered(columns["label"], names),
            _numbered(columns["predicted"], names),
            columns["loss"].to_numpy(),
            columns["probabilities"].flatten().to_numpy().reshape(len(table), len(names)),
            None if clean.null_count else clean.to_numpy(zero_copy_only=False),
        )
    except FileNotFoundError as error:
        if (written := path.with_name(path.name.replace("predictions", "responses"))).exists():
            raise UserError(f"{path}: its model answers prompts and labels nothing: see {written}") from error
        raise UserError(f"{path}: no such file: a test of the run writes it, validate {VAL_FILE}") from error
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a predictions file, or a damaged one: {error}") from error


class Collector:
    """Collects the results of a pass batch by batch, until the rows of all processes are gathered."""

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []  # left on the device: copying at each step would wait for it

    def add(self, **columns: Tensor) -> None:
        """Keep a batch: columns of equal length, with the same names in every call."""
        self._batches.append(columns)

    def rows(self) -> dict[str, np.ndarray]:
        """The rows that this process has collected, by column; empty if it was given no batch."""
        names = self._batches[0] if self._batches else {}
        return {name: torch.cat([batch[name] for batch in self._batches]).cpu().numpy() for name in names}


def gathered(ranks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The rows of all processes' collectors, one process after another; empty where none has any."""
    parts = [rows for rows in ranks if rows]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def predictions_in(
    rows: dict[str, np.ndarray],
    label_names: list[str],
    thresholds: Sequence[float] | None,
    keys: np.ndarray,
    clean: np.ndarray | None,
) -> Predictions:
    """Collected rows in the order of the test data.

    Args:
        rows: ``documents``, ``labels``, ``losses`` and ``probabilities``, as :class:`Predictions` has them.
        label_names: the classes.
        thresholds: the probability from which each label is predicted; None if a document has one label.
        keys: uint64 (documents of the test data,).
        clean: bool (documents of the test data,), or None.
    """
    order = np.argsort(rows["documents"])
    columns: dict[str, Any] = {name: column[order] for name, column in rows.items()}
    places = columns["documents"]
    columns["predicted"] = chosen(torch.from_numpy(columns["probabilities"]), thresholds).numpy()
    columns["labels"] = columns["labels"].astype(columns["predicted"].dtype)
    assert (np.diff(places) > 0).all(), "a document was tested twice"  # the processes share none
    return Predictions(label_names, keys=keys[places], clean=None if clean is None else clean[places], **columns)


def _lists(rows: np.ndarray) -> pa.Array:
    """An array (documents, classes) as a column of lists of float32."""
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(offsets, pa.array(rows.astype(np.float32).ravel()))


def _numbered(column: pa.Array, names: list[str]) -> np.ndarray:
    """The inverse of naming classes: int64 (documents,), or uint8 (documents, classes)."""
    place: dict[str | None, int] = {name: i for i, name in enumerate(names)}
    if not pa.types.is_list(column.type):
        return np.array([place[name] for name in column.to_pylist()], dtype=np.int64)
    flags = np.zeros((len(column), len(names)), dtype=np.uint8)
    for row, applying in zip(flags, column.to_pylist(), strict=True):
        row[[place[name] for name in applying]] = 1
    return flags
