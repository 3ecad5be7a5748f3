"""Run ``validate`` or ``test`` for several checkpoints, then for the ensemble that averages their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_sft.checkpoints import read_checkpoint, resolve
from lit_sft.cli import LitCLI
from lit_sft.errors import UserError
from lit_sft.evaluation.mean_predictions import mean_predictions
from lit_sft.evaluation.metrics import ClassificationMetrics
from lit_sft.evaluation.multilabel import MultilabelMetrics
from lit_sft.evaluation.predictions import Predictions
from lit_sft.evaluation.tested import OwnFigures, tested_by
from lit_sft.evaluation.thresholds import ONE_KIND, column_order
from lit_sft.measured_data import TESTED
from lit_sft.options import values_of, without
from lit_sft.runs import numbered, package_versions, run_name, told, write_record
from lit_sft.stored_network import has_own_encoder
from lit_sft.stored_options import objective_of
from lit_sft.written_results import logged_figures, read_in_part


@dataclass(frozen=True)
class Member:
    """The results of one checkpoint of the ensemble.

    Attributes:
        checkpoint: its file.
        folder: its run's folder; None if the file is not in a run folder, or if nothing is to be written.
        predictions: its predictions, in the order of the documents.
        figures: its figures, by name.
        thresholds: the probability from which each label is predicted; None if a document has one label.
        contamination: the contamination gate's report (:mod:`lit_sft.data.contamination`) for its training text.
        data: the data options that it was evaluated with.
        own: computes the user's own figures from predictions; None if there are none.
    """

    checkpoint: Path
    folder: Path | None
    predictions: Predictions
    figures: dict[str, float]
    thresholds: list[float] | None
    contamination: dict[str, Any]
    data: dict[str, Any]
    own: OwnFigures | None


class MemberCLI(LitCLI):
    """Runs ``validate`` or ``test`` for one checkpoint and writes nothing; the results are in :attr:`member`."""

    member: Member

    def after_instantiate_classes(self) -> None:
        """Raise a UserError if there are several processes: each would run the command from its first member again."""
        super().after_instantiate_classes()
        if self.trainer.world_size > 1:
            raise UserError("an ensemble is measured in one process: --trainer.devices 1")

    def after_validate(self) -> None:
        """Keep the results in :attr:`member`."""
        self._keep(self.model.validated, None)

    def after_test(self) -> None:
        """Keep the results in :attr:`member`."""
        dry = self.trainer.fast_dev_run or read_in_part(self.trainer)  # type: ignore[attr-defined, arg-type]
        self._keep(self.model.tested.predictions, None if dry else self.folder)

    def _keep(self, predictions: Predictions, folder: Path | None) -> None:
        assert self.source is not None
        self.member = Member(
            self.source.path,
            folder,
            predictions,
            logged_figures(self.trainer, "val" if self.subcommand == "validate" else "test"),  # type: ignore[arg-type]
            self.model.evaluation.thresholds,
            self.prepared_data.contamination,
            self.config_dump["data"],
            None if self.model.evaluation.own is None else self.model.evaluation.own.of,
        )


def measure_ensemble(arguments: list[str], checkpoints: Sequence[str]) -> None:
    """Run ``validate`` or ``test`` for each checkpoint, then evaluate the mean of their probabilities.

    The figures of a test are written to the first checkpoint's run folder, as ``test-ensemble.json`` or, with
    ``--name``, ``test-ensemble-NAME.json``; a number is added if the file exists. The predictions are written to a
    Parquet file of the same name.

    Args:
        arguments: the command and its options, which apply to each member, except ``--ckpt_path``. ``--model.encoder``
            applies only to members whose encoder is outside this package.
        checkpoints: at least two runs or checkpoint files.

    Raises:
        UserError: a mistake in one of the members, or members with different documents or labels.
    """
    names, members = values_of(arguments, "--name"), []
    stem = f"test-ensemble-{run_name(None, names[-1])}" if names else "test-ensemble"
    for number, (path, known) in enumerate(zip(checkpoints, _checked_members(checkpoints), strict=True), 1):
        rank_zero_info(f"== member {number} of {len(checkpoints)}: {path}")
        its = without(arguments, "--model.encoder") if known else arguments  # the user's class is for the others
        command = MemberCLI([*its, "--ckpt_path", path, "--trainer.logger", "false"])
        members.append(command.member)
    predictions, thresholds = mean_predictions([m.predictions for m in members], [m.thresholds for m in members])
    figures, confusion = _figures(predictions, thresholds)
    own = members[0].own  # the predictions have the class order of this member
    record = tested_by(figures if own is None else figures | own(predictions), predictions, own).record()
    if arguments[0] == "validate":
        measured = {"val": record["test"], "val_interval": record["test_interval"]}
        rank_zero_info(f"validation of the ensemble: {told(measured, 'val')}")
        return
    record["test_confusion"] = confusion
    if thresholds is not None:
        record["thresholds"] = dict(zip(predictions.label_names, thresholds, strict=True))
    record["contamination"] = _contamination(members)
    record["members"] = [{"checkpoint": str(m.checkpoint), "test": _main(m.figures)} for m in members]
    record["data"] = {key: members[0].data.get(key) for key in TESTED}
    rank_zero_info(f"test of the ensemble: {told(record)}")
    folder = members[0].folder
    if folder is None:
        return
    file = next(free for free in numbered(folder, stem) if not free.exists())
    predictions.write(file.with_suffix(".parquet"))
    write_record(file, record | {"versions": package_versions()})
    rank_zero_info(f"wrote {file}")


def _checked_members(checkpoints: Sequence[str]) -> list[bool]:
    """Check, before any evaluation, that all can be averaged; return whether each one's encoder is of this package.

    Raises:
        UserError: a checkpoint has no classifier, or other labels than the first one, or another number a document.
    """
    found = [read_checkpoint(resolve(path, "ckpt_path")) for path in checkpoints]
    for one in found:
        if one.stage == "pretrain" or "classifier" not in objective_of(one).heads:
            kind = "a pretraining checkpoint" if one.stage == "pretrain" else "a model that answers prompts"
            raise UserError(f"{one.path}: {kind} can't classify: an ensemble needs fine-tuned classifiers")
        column_order(found[0].label_names, one.label_names)
        if one.multilabel != found[0].multilabel:
            raise UserError(ONE_KIND)
    return [has_own_encoder(one) for one in found]


def _figures(predictions: Predictions, thresholds: list[float] | None) -> tuple[dict[str, float], dict[str, Any]]:
    """Return all figures of the predictions and the confusion matrix, computed by the code for a single model."""
    names = predictions.label_names
    metrics: ClassificationMetrics | MultilabelMetrics
    if thresholds is None:
        metrics = ClassificationMetrics(names)
    else:
        metrics = MultilabelMetrics(names)
        metrics.thresholds = thresholds
    columns = (predictions.probabilities, predictions.labels, predictions.losses)
    metrics.update(*map(torch.from_numpy, columns))
    return metrics.compute(), metrics.confusion()


def _contamination(members: Sequence[Member]) -> dict[str, Any]:
    """Return the report that all members share; if they differ, all reports, and whether any is transductive."""
    found = [member.contamination for member in members]
    if all(one == found[0] for one in found):
        return found[0]
    why = list(dict.fromkeys(reason for one in found for reason in one.get("why", [])))
    return {"transductive": any(one.get("transductive") for one in found), "why": why, "members": found}


def _main(figures: dict[str, float]) -> dict[str, float]:
    """Return the figures without those of single classes."""
    return {name: value for name, value in figures.items() if "/" not in name}
