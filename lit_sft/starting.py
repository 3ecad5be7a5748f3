"""What a run starts from: nothing, one run, or a forward and a backward language model."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_sft.checkpoints import Checkpoint, read_checkpoint, resolve
from lit_sft.data.adopted import Adopted
from lit_sft.data.fed import together
from lit_sft.errors import UserError
from lit_sft.models import TwoWayEncoder

InitFrom = list[str] | str | None


def names_in(given: InitFrom) -> list[str]:
    """The runs or checkpoints that an option names: a list, or one text with commas between them."""
    if isinstance(given, str):
        return [given] if Path(given).exists() else [name.strip() for name in given.split(",")]
    return list(given or [])


def read_sources(init_from: InitFrom) -> list[Checkpoint]:
    """The checkpoints that a run starts from: none, one, or two, the forward one first.

    Raises:
        UserError: one that isn't there or is damaged; several that don't go together.
    """
    sources = [read_checkpoint(resolve(name, "init_from")) for name in names_in(init_from)]
    if len(sources) < 2:
        return sources
    if len(sources) > 2:
        raise UserError(
            f"--model.init_from names {len(sources)} runs: give one, or a forward and a backward pretraining"
        )
    first, second = sources
    if first.direction == second.direction:
        raise UserError(
            f"--model.init_from: {first.path} and {second.path} both read {first.direction}: one of two must be "
            "pretrained with --data.direction backward"
        )
    if first.tokenizer().digest != second.tokenizer().digest:
        raise UserError(
            f"--model.init_from: {first.path} and {second.path} have different tokenizers: pretrain one of them with "
            "--data.tokenizer RUN/tokenizer.json of the other"
        )
    return sources if first.direction == "forward" else [second, first]


def adopted_from(sources: Sequence[Checkpoint]) -> Adopted:
    """What the data of a run take over from what it starts from; of two, documents are read forward."""
    if len(sources) == 1:
        return sources[0].adopted(labels=False)
    return Adopted(sources[0].tokenizer(), fed=together(source.fed for source in sources), direction="forward")


def check_start(encoder: type, sources: Sequence[Checkpoint]) -> None:
    """Raise a UserError where an encoder of this class can't start from these checkpoints, whatever their shapes."""
    paths = " and ".join(str(source.path) for source in sources)
    two_way = [is_two_way(source) for source in sources]
    if len(sources) == 2:
        if not issubclass(encoder, TwoWayEncoder):
            raise UserError(
                f"--model.init_from names two runs, {paths}: that is for --model.encoder TwoWayEncoder, "
                f"and {encoder.__name__} starts from one"
            )
        if any(two_way):
            raise UserError(f"--model.init_from {sources[two_way.index(True)].path} reads both ways: give it alone")
    elif sources and issubclass(encoder, TwoWayEncoder) and not two_way[0]:
        raise UserError(
            f"--model.init_from {paths} reads {sources[0].direction} only: TwoWayEncoder starts from two pretrainings, "
            "--model.init_from FORWARD,BACKWARD"
        )


def is_two_way(source: Checkpoint) -> bool:
    """Whether a checkpoint's encoder has a stack for each direction."""
    return any(name.startswith("encoder.backward_stack.") for name in source.network_weights())


def check_direction(model: Any, given: str | None, sources: Sequence[Checkpoint]) -> None:
    """Raise a UserError where ``--data.direction`` can't be followed.

    Args:
        model: the options of the model, as parsed.
        given: the option; None where it isn't given.
        sources: the checkpoint that the run goes on with or measures, or those that it starts from.
    """
    if issubclass(encoder_class(model), TwoWayEncoder):
        if model.stage == "pretrain":
            raise UserError(
                "TwoWayEncoder can't be pretrained, as it sees what is to be predicted: pretrain two LSTMEncoders, "
                "with --data.direction forward and backward"
            )
        if given == "backward":
            raise UserError("TwoWayEncoder reads both ways by itself: leave out --data.direction backward")
    elif sources and given not in (None, sources[0].direction):
        raise UserError(
            f"--data.direction {given} contradicts {sources[0].path}, which reads {sources[0].direction}: a run takes "
            "the direction of the checkpoint that it starts from or goes on with; leave out --data.direction"
        )


def encoder_class(model: Any) -> type:
    """The class that the parsed option ``encoder`` of the model names."""
    module, _, name = str(model.encoder.class_path).rpartition(".")
    found = getattr(importlib.import_module(module), name)
    return found if isinstance(found, type) else object
