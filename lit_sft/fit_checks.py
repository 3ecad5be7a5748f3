"""Check that a fit's options go together before any text is read; in a recipe, before any earlier stage has run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_sft.building import NEEDS_LABELS, check_stage
from lit_sft.callbacks import BestCheckpoint, EarlyStop, Health, LastCheckpoint
from lit_sft.callbacks.stopping import check_monitors
from lit_sft.data.pairs import check_answering
from lit_sft.data.textdata import TextData
from lit_sft.errors import UserError
from lit_sft.mistakes import refusal_in
from lit_sft.module import LitSFT
from lit_sft.objectives import Objective
from lit_sft.optim import build_optimizer
from lit_sft.starting import encoder_class


def check_fit(options: Namespace, data: TextData) -> None:
    """Raise a UserError if objective, stage, data options and monitored figures don't go together.

    The content of the data is not looked at.

    Args:
        options: the parsed options of the fit.
        data: the data that the options name.
    """
    monitored = None
    try:
        module = _module(options.model)
        given = options.trainer.callbacks or []
        callbacks = given if isinstance(given, list) else [given]
        if all(_class_path(callback).startswith(("lit_sft.", "lightning.")) for callback in callbacks):
            # A callback of the user's own may log the monitored figure: this is then checked once it is built.
            groups = (group.clone(with_meta=False) for group in (options.checkpoint, options.early_stopping))
            monitored = [kind(**vars(group)) for kind, group in zip((BestCheckpoint, EarlyStop), groups, strict=True)]
        for kind, group in ((LastCheckpoint, options.saving), (Health, options.health)):
            kind(**vars(group.clone(with_meta=False)))
    except (ValueError, MisconfigurationException) as error:  # a class refuses an option's value
        raise refusal_in(error) from error
    objective = module.objective
    check_stage(objective, module.stage)
    if "pairs" in objective.batches:
        check_answering(data.corpus_config.pairs, options.data.direction)
    elif "classifier" in objective.heads and (data.corpus_config.pairs or not data.corpus_config.labeled):
        raise UserError(NEEDS_LABELS)
    if monitored:
        _check_monitored(monitored, objective, module.metrics)
    if encoder_class(options.model).__module__.startswith("lit_sft."):
        _check_network(module)


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


def _module(model: Namespace) -> LitSFT:
    """Build a module from the model options, as the command line will; it has no network yet."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LitSFT, "model")
    built: LitSFT = parser.instantiate(Namespace(model=model.clone())).model
    return built


def _check_network(module: LitSFT) -> None:
    """Raise a UserError if the network or the optimizer refuses an option.

    Both are built for a try, without memory for weights. The size of the vocabulary isn't known yet: the one used is so
    small that the weights are tied, or just fits the cutoffs. (An encoder of the user's own may need the right one.)
    """
    cutoffs = module.blueprint.adaptive_cutoffs
    vocab_size = max(cutoffs or [0]) + 1
    blueprint = replace(module.blueprint, tie_weights_up_to=0 if cutoffs else vocab_size)
    what = "model"
    try:
        with torch.device("meta"):
            network = blueprint.build(module.objective, vocab_size, 2, multilabel=False)
            what = "model.optimizer"
            build_optimizer(module.make_optimizer, network.layer_groups(), module.layer_decay)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error
    except RuntimeError:
        return  # an objective or optimizer of the user's own needs real weights


def _class_path(callback: Any) -> str:
    return str(callback.class_path) if isinstance(callback, Namespace) else type(callback).__module__
