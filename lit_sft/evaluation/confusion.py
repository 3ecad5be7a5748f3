"""Confusion as a table to read: in TensorBoard's text, beside the figures."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np

from lit_sft.tensorboard_text import log_text

MOST = 20  # classes in a table; of more, those with the most errors


def confusion_table(confusion: dict[str, Any], most: int = MOST) -> str:
    """Markdown of what ``Evaluation.confusion`` returns: a row a label, and its name at the start.

    Of more than ``most`` labels those with the most errors are shown, in their order.
    """
    labels, matrix = confusion["labels"], np.array(confusion["matrix"])
    columns = confusion.get("columns")
    if columns is None:  # one label a document
        errors = (
            matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
        )  # (classes,): taken for others, and others for it
    else:
        errors = matrix[:, columns.index("fp")] + matrix[:, columns.index("fn")]
    shown = np.sort(np.argsort(-errors, kind="stable")[:most])
    rows = matrix[shown] if columns is not None else matrix[np.ix_(shown, shown)]
    names = [str(labels[i]).replace("|", "\\|") for i in shown]
    head = ["label", *columns] if columns is not None else ["label \\ predicted", *names]
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [_line([name, *map(str, row)]) for name, row in zip(names, rows.tolist(), strict=True)]
    if len(shown) < len(labels):
        lines += ["", f"{len(shown)} of {len(labels)} labels, those with the most errors"]
    return "\n".join(lines)


def log_confusion(trainer: L.Trainer, module: L.LightningModule, split: str, step: int) -> None:
    """Write the table to TensorBoard as ``SPLIT/confusion``, where that is a logger and there is a classifier.

    Args:
        trainer: whose loggers.
        module: after the pass.
        split: ``val`` or ``test``.
        step: the optimizer steps of the weights; the table stands where Lightning puts the pass's figures.
    """
    confusion = module.evaluation.confusion() if trainer.loggers else None  # type: ignore[operator, union-attr]
    if confusion is not None:
        log_text(trainer, f"{split}/confusion", confusion_table(confusion), max(0, step - 1))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
