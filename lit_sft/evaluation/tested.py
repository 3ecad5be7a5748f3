"""Results of a test, computed from each document's: the figures of its clean part, and all intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Trainer

from lit_sft.data.datamodule import TextDataModule
from lit_sft.evaluation.intervals import Interval, bootstrap, figures_once
from lit_sft.evaluation.passes import Evaluation
from lit_sft.evaluation.predictions import Predictions, gathered, predictions_in
from lit_sft.evaluation.responses import Responses, responses_in
from lit_sft.evaluation.text_losses import text_losses
from lit_sft.evaluation.weighted import Figures, weighted_figures
from lit_sft.evaluation.weighted_multilabel import weighted_multilabel_figures
from lit_sft.ranks import of_all_ranks


@dataclass(frozen=True)
class Part:
    """The ``count`` documents that one head was measured on, and their figures under any weighting.

    ``figures`` maps weights, float64 (count, weightings), to each figure (weightings,) by its name. ``drawn`` does the
    same for resamples, with NaN for undefined values that ``figures`` sets to 0 by convention.
    """

    count: int
    figures: Callable[[np.ndarray], Figures]
    drawn: Callable[[np.ndarray], Figures]


Parts = Mapping[str, Part]  # by the prefix of the figures' names
OwnFigures = Callable[[Predictions], dict[str, float]]


@dataclass(frozen=True)
class Tested:
    """A test's figures, and the results that they were computed from.

    Attributes:
        figures: figures of the full test set, by their names.
        whole: the documents of the full test set, by head.
        clean: the same without copies of training documents: ``whole`` itself if there are no copies; empty if that was
            not checked, or nothing is left.
        predictions: the classifier's predictions.
        own: computes the user's own figures from predictions; ``figures`` includes those of the full test set.
        responses: the responses of a model that answers prompts.
    """

    figures: dict[str, float]
    whole: Parts
    clean: Parts = field(default_factory=dict)
    predictions: Predictions | None = None
    own: OwnFigures | None = None
    responses: Responses | None = None

    @cached_property
    def clean_figures(self) -> dict[str, float]:
        """The figures of the clean part: ``figures`` itself if the full set is clean, empty if that is unknown."""
        if self.clean is self.whole:
            return self.figures
        once = {prefix: figures_once(part.figures, part.count) for prefix, part in self.clean.items()}
        known = {f"{prefix}{name}": value for prefix, found in once.items() for name, value in found.items()}
        predictions = self.predictions
        if self.own is None or predictions is None or predictions.clean is None or not known:
            return known
        return known | self.own(predictions.select(predictions.clean))

    def record(self) -> dict[str, Any]:
        """``test`` and ``test_interval``; if there is a clean part, ``test_clean`` and ``test_clean_interval`` too."""
        found: dict[str, Any] = {"test": self.figures, "test_interval": _intervals(self.whole)}
        if self.clean:
            same = self.clean is self.whole
            found["test_clean"] = self.clean_figures
            found["test_clean_interval"] = found["test_interval"] if same else _intervals(self.clean)
        return found


def _intervals(parts: Parts) -> dict[str, Interval]:
    found = {prefix: bootstrap(part.drawn, part.count) for prefix, part in parts.items()}
    return {f"{prefix}{name}": interval for prefix, by_name in found.items() for name, interval in by_name.items()}


@dataclass(frozen=True)
class Kept:
    """The results of a finished pass, gathered from all processes.

    Attributes:
        rows: results of the documents, by head, then by column.
        data: the data module that was read.
        label_names: the classes.
        thresholds: see :func:`predictions_in`.
    """

    rows: dict[str, dict[str, np.ndarray]]
    data: TextDataModule
    label_names: list[str]
    thresholds: Sequence[float] | None

    @classmethod
    def of(cls, trainer: Trainer, evaluation: Evaluation, label_names: list[str]) -> Kept:
        """Gather the results at the end of a pass; every process must call this."""
        ranks = of_all_ranks(trainer, {head: collector.rows() for head, collector in evaluation.kept.items()})
        rows = {head: gathered([rank[head] for rank in ranks]) for head in evaluation.kept}
        return cls(rows, trainer.datamodule, label_names, evaluation.thresholds)  # type: ignore[attr-defined]

    def documents(self, split: Literal["val", "test"]) -> Predictions | Responses | None:
        """A classifier's predictions, or the responses of a model that answers prompts; None for other models."""
        data, rows = self.data, self.rows
        flags = data.test_is_clean if split == "test" else None
        if "generated" in rows.get("lm", {}):
            texts, bytes_per_target = data.prepared.pair_texts(split), data.bytes_per_target(split)
            return responses_in(rows["lm"], data.tokenizer, texts, bytes_per_target, flags)
        if documents := rows.get("classifier"):
            keys = (data.test if split == "test" else data.val).keys
            return predictions_in(documents, self.label_names, self.thresholds, np.asarray(keys), flags)
        return None


def tested_in(kept: Kept, figures: dict[str, float], own: OwnFigures | None) -> Tested:
    """The results of a test.

    Args:
        kept: the gathered results of its pass.
        figures: figures of the full test set, over all processes.
        own: computes the user's own figures from predictions.
    """
    data, found = kept.data, kept.documents("test")

    def parts(flags: np.ndarray | None) -> Parts:
        """The parts for the documents of a mask (documents of the split,), or for all."""
        chosen = None if flags is None or found is None else flags[found.documents]
        if isinstance(found, Responses):
            some = found if chosen is None else found.select(chosen, data.bytes_per_target("test", flags))
            return {"": Part(len(some), some.figures, some.figures)}
        made = {}
        if found is not None:
            made[""] = _classifier_part(found if chosen is None else found.select(chosen))
        if rows := kept.rows.get("lm"):
            prefix = "" if found is None else "lm_"  # as the evaluation names them
            losses = text_losses(rows, flags, data.bytes_per_target("test", flags))
            made[prefix] = Part(len(losses), losses.figures, losses.figures)
        return made

    whole = parts(None)
    clean = _clean(whole, data.test_is_clean, parts)
    if isinstance(found, Responses):
        return Tested(figures | found.scored(), whole, clean, responses=found)
    return Tested(figures, whole, clean, found, own)


def _clean(whole: Parts, flags: np.ndarray | None, select: Callable[[np.ndarray], Parts]) -> Parts:
    """The ``clean`` attribute of :class:`Tested`; ``flags``: bool (documents,), None if unknown."""
    if flags is None or flags.all():
        return {} if flags is None else whole
    chosen = select(flags)
    return chosen if all(part.count for part in chosen.values()) else {}


def tested_by(figures: dict[str, float], predictions: Predictions, own: OwnFigures | None) -> Tested:
    """A test's results from a classifier's predictions alone; ``figures``: their figures, including ``own``'s."""
    parts = {"": _classifier_part(predictions)}
    clean = _clean(parts, predictions.clean, lambda flags: {"": _classifier_part(predictions.select(flags))})
    return Tested(figures, parts, clean, predictions, own)


def _classifier_part(predictions: Predictions) -> Part:
    figures = weighted_multilabel_figures if predictions.multilabel else weighted_figures
    return Part(len(predictions), partial(figures, predictions), partial(figures, predictions, undefined=math.nan))
