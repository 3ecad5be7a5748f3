"""Check that a fit's options go together before any text is read; in a recipe, before any earlier stage has run."""

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
    """Raise a UserError if objective, stage, data options and monitored figures don't go together.

    The content of the data is not looked at.

    Args:
        options: the parsed options of the fit.
        data: the data that the options name.
    """
    model, monitored = options.model, None
    try:
        objective = _objective(model)
        given = options.trainer.callbacks or []
        callbacks = given if isinstance(given, list) else [given]
        if all(_class_path(callback).startswith(("lit_sft.", "lightning.")) for callback in callbacks):
            # A callback of the user's own may log the monitored figure: this is then checked once it is built.
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
    """Raise a UserError if a monitored figure exists neither for single-label nor for multi-label documents."""
    refused = []
    for multilabel in (False, True):  # only the documents decide which of the two
        try:
            check_monitors(callbacks, objective.heads, multilabel, own)
        except UserError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]


def _objective(model: Namespace) -> Objective:
    """Build the objective that the model options name, as the module will."""
    if model.objective is None:
        return MLE() if model.stage == "pretrain" else Supervised()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    built: Objective = parser.instantiate(Namespace(objective=model.objective.clone())).objective
    return built


def _class_path(callback: Any) -> str:
    return str(callback.class_path) if isinstance(callback, Namespace) else type(callback).__module__
