"""Whether a fit's options go together, told before any text is read: in a recipe, before the stages ahead have run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_sft.building import NEEDS_LABELS, check_stage
from lit_sft.callbacks import BestCheckpoint, EarlyStop
from lit_sft.callbacks.stopping import check_monitors
from lit_sft.data.pairs import check_answering
from lit_sft.data.textdata import TextData
from lit_sft.errors import UserError
from lit_sft.mistakes import refusal_in
from lit_sft.objectives import MLE, Objective, Supervised


def check_fit(options: Namespace, data: TextData) -> None:
    """Raise a UserError where objective, stage, data and what is monitored don't go together.

    What the data hold is not looked at.

    Args:
        options: of the fit, as parsed.
        data: what they name.
    """
    model, monitored = options.model, None
    try:
        objective = _objective(model)
        given = options.trainer.callbacks or []
        callbacks = given if isinstance(given, list) else [given]
        if all(_class_path(callback).startswith(("lit_sft.", "lightning.")) for callback in callbacks):
            # else one of the user's own may log what is monitored: that is looked at when it is built
            groups = (group.clone(with_meta=False) for group in (options.checkpoint, options.early_stopping))
            monitored = [kind(**vars(group)) for kind, group in zip((BestCheckpoint, EarlyStop), groups, strict=True)]
    except (ValueError, MisconfigurationException) as error:  # an option's value that its class refuses
        raise refusal_in(error) from error
    check_stage(objective, model.stage)
    if "pairs" in objective.batches:
        check_answering(data.corpus_config.pairs, options.data.direction)
    elif "classifier" in objective.heads and (data.corpus_config.pairs or not data.corpus_config.labeled):
        raise UserError(NEEDS_LABELS)
    if monitored:
        _check_monitored(monitored, objective, model.metrics or {})


def _check_monitored(callbacks: list[Any], objective: Objective, own: Mapping[str, Any]) -> None:
    """Raise a UserError where a figure is there neither with one label a document nor with any number of them."""
    refused = []
    for multilabel in (False, True):  # which of the two the documents tell
        try:
            check_monitors(callbacks, objective.heads, multilabel, own)
        except UserError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]


def _objective(model: Namespace) -> Objective:
    """The objective that the options of a model name, as the module will have it."""
    if model.objective is None:
        return MLE() if model.stage == "pretrain" else Supervised()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    built: Objective = parser.instantiate(Namespace(objective=model.objective.clone())).objective
    return built


def _class_path(callback: Any) -> str:
    return str(callback.class_path) if isinstance(callback, Namespace) else type(callback).__module__
