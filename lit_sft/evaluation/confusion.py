"""The confusion matrix as a Markdown table, shown under TensorBoard's Text tab."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np

from lit_sft.tensorboard_text import log_text

MOST = 20  # classes in a table; if there are more, those with the most errors are shown


def confusion_table(confusion: dict[str, Any], most: int = MOST) -> str:
    """The result of ``Evaluation.confusion`` as a Markdown table: one row per label, starting with its name.

    If there are more than ``most`` labels, those with the most errors are shown, in their original order.
    """
    labels, matrix = confusion["labels"], np.array(confusion["matrix"])
    columns = confusion.get("columns")
    if columns is None:  # one label a document
        errors = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()  # taken for others, and others for it
    else:
        errors = matrix[:, columns.index("fp")] + matrix[:, columns.index("fn")]
    shown = np.sort(np.argsort(-errors, kind="stable")[:most])
    names = [str(labels[i]).replace("|", "\\|") for i in shown]
    if columns is None:
        head, rows = ["label \\ predicted", *names], matrix[np.ix_(shown, shown)]
    else:
        head, rows = ["label", *columns], matrix[shown]
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [_line([name, *map(str, row)]) for name, row in zip(names, rows.tolist(), strict=True)]
    if len(shown) < len(labels):
        lines += ["", f"{len(shown)} of {len(labels)} labels, those with the most errors"]
    return "\n".join(lines)


def log_confusion(trainer: L.Trainer, module: L.LightningModule, split: str, step: int) -> None:
    """Write the table to TensorBoard as ``SPLIT/confusion``, if TensorBoard is a logger and there is a classifier.

    Args:
        trainer: the trainer whose loggers are written to.
        module: the module, after its validation or test pass.
        split: ``val`` or ``test``.
        step: optimizer steps of the weights; the table is logged at the step of the pass's other figures.
    """
    confusion = module.evaluation.confusion() if trainer.loggers else None  # type: ignore[operator, union-attr]
    if confusion is not None:
        log_text(trainer, f"{split}/confusion", confusion_table(confusion), max(0, step - 1))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
