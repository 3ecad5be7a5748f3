"""Build a checkpoint's network from its own plain options; without Lightning, so that ``load`` is fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch

from lit_sft.building import Blueprint, check_stage_and_labels
from lit_sft.checkpoints import Checkpoint
from lit_sft.errors import UserError, one_line
from lit_sft.models import Encoder, LSTMEncoder, Network
from lit_sft.objectives import Objective
from lit_sft.stored_options import class_path_of, objective_of, own_encoder, stored_config

# Options of LitSFT: those that weights don't depend on and a user may choose, and those that a checkpoint has decided.
CHOSEN = ("head_dropout", "backprop_tokens", "loss_chunk")
DECIDED = (
    *("stage", "init_from", "remap_vocabulary"),
    *("pooling", "head_hidden_size", "tie_weights_up_to", "adaptive_cutoffs"),
)


def stored_blueprint(checkpoint: Checkpoint, encoder: Callable[..., Encoder] | None = None) -> Blueprint:
    """Return the blueprint of the checkpoint's network; nothing outside this package is imported.

    Args:
        checkpoint: provides the options.
        encoder: replaces the checkpoint's encoder: a class, which gets the checkpoint's options, a ``partial`` of one,
            whose own options come first, or a function of the vocabulary size.

    Raises:
        UserError: an encoder outside the package that ``encoder`` doesn't replace, an option that could name code and
            that it doesn't give, or a name in place of a class.
    """
    if encoder is not None and not callable(encoder):
        raise UserError(f"encoder {encoder!r}: import the class and give it itself, encoder=Class")
    kind: Any = encoder
    own: dict[str, Any] = {}
    if isinstance(encoder, partial) and not encoder.args:
        kind, own = encoder.func, encoder.keywords
    named = {"class_path": _encoder_name(checkpoint) if isinstance(kind, type) else "a function", "init_args": own}
    # "a function" equals no class path, so that the checkpoint's encoder is left out, together with its options
    options = stored_config(checkpoint, None if encoder is None else named, metrics=False)["model"]
    spec = options.get("encoder")
    make: Callable[..., Encoder] = encoder or LSTMEncoder
    if spec is not None:
        kind = kind or own_encoder(spec["class_path"])
        make = partial(kind, **{**spec["init_args"], **own})
    known = [one.name for one in fields(Blueprint)]
    return Blueprint(make, **{name: options[name] for name in known if name in options})


def take_out_lightnings(options: dict[str, Any]) -> None:
    """Remove Lightning's arguments of ``load_from_checkpoint``; raise a UserError for values that aren't supported."""
    for name, done in (("hparams_file", None), ("strict", True), ("weights_only", True)):
        if options.pop(name, None) not in (None, done):
            raise UserError(
                "load_from_checkpoint: a checkpoint has its options in it, and is read whole and as data: leave out "
                "hparams_file, strict=False and weights_only=False"
            )


def with_options(blueprint: Blueprint, options: Mapping[str, Any]) -> Blueprint:
    """Return the blueprint with those options of ``LitSFT`` that a user may choose (``CHOSEN``).

    Raises:
        UserError: an option that the checkpoint has decided (``DECIDED``).
    """
    if decided := ", ".join(name for name in DECIDED if name in options):
        raise UserError(f"load_from_checkpoint: {decided}: this is the checkpoint's own: leave it out")
    return replace(blueprint, **{name: options[name] for name in CHOSEN if name in options})


def stored_network(checkpoint: Checkpoint, blueprint: Blueprint, objective: Objective | None = None) -> Network:
    """Build the network with the checkpoint's weights and the objective's heads (default: those in the checkpoint).

    Raises:
        UserError: no network can be built from the options, or the weights don't fit it.
    """
    objective, labels = objective or objective_of(checkpoint), len(checkpoint.label_names)
    check_stage_and_labels(objective, checkpoint.stage, labels, checkpoint.multilabel)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # as in training, whatever the default is now
    try:
        network = blueprint.build(objective, checkpoint.tokenizer().vocab_size, labels, checkpoint.multilabel)
        network.load_state_dict(checkpoint.network_weights())
    except (RuntimeError, TypeError, ValueError) as error:
        if "encoder" not in checkpoint.options("model") and blueprint.make_encoder is LSTMEncoder:
            raise UserError(
                f"{checkpoint.path}: it doesn't say which encoder it has, since a function made it: give that again, "
                "lit_sft.load(…, encoder=…)"
            ) from error
        raise UserError(f"{checkpoint.path}: can't be built from its own options: {one_line(error)}") from error
    finally:
        torch.set_default_dtype(default)
    return network


def has_own_encoder(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's encoder is one of this package, so that the user need not give its class."""
    return own_encoder(_encoder_name(checkpoint)) is not None


def _encoder_name(checkpoint: Checkpoint) -> str:
    return str(class_path_of(checkpoint.options("model").get("encoder")))
