"""Checks of what a recipe's stages start from, by options alone: mistakes are reported before hours of training."""

from __future__ import annotations

from dataclasses import dataclass

from jsonargparse import Namespace

from lit_sft.data.batches import Direction
from lit_sft.data.extension import EXTEND, NO_BASE, check_extendable
from lit_sft.data.pairs import check_answering
from lit_sft.errors import UserError
from lit_sft.recipes.file import Recipe, Stage
from lit_sft.resume import check_same_tokenizer
from lit_sft.starting import (
    Source,
    check_direction,
    check_same_kind,
    check_sizes,
    check_start,
    encoder_class,
    is_two_way,
    tokens_of,
)


@dataclass(frozen=True)
class Planned:
    """A stage that has not run yet, as seen by the stages that start from it.

    Attributes:
        name: the name of the stage, in words.
        options: its parsed options.
        direction: how it will read; None if that is decided by a checkpoint from outside the recipe.
        tokens: what kind of tokens it will have, as ``Tokenizer.model`` names it; None in the same case.
        vocab_size: the maximum size of its vocabulary; 0 in the same case, or if there is no limit.
    """

    name: str
    options: Namespace
    direction: Direction | None
    tokens: str | None
    vocab_size: int


def check_starts(recipe: Recipe, stages: list[Stage], options_of: dict[str, Namespace], given: bool) -> None:
    """Raise a UserError if a stage can't start from the stages before it.

    Args:
        recipe: the recipe of the stages.
        stages: the stages that are to run, in order.
        options_of: their options by name.
        given: whether a stage that starts from no other stage may start from a checkpoint that the user has named.
    """
    if len({bool(options.trainer.fast_dev_run) for options in options_of.values()}) > 1:
        raise UserError("trainer.fast_dev_run: all stages of a recipe are run dry, or none")
    planned: dict[str, Planned] = {}
    for stage in stages:
        options = options_of[stage.name]
        starts = [planned[name] for name in stage.init_from if name in planned]
        if len(starts) < len(stage.init_from):
            starts = []  # one has run already: its checkpoint is checked when this stage runs
        if options.model.init_from and (stage.from_nothing or stage.init_from):
            raise UserError(
                f"{recipe.path}: stage {stage.name} has model.init_from {options.model.init_from} in its options, and "
                f"init_from {', '.join(stage.init_from) or 'null'} in the recipe: leave one of them out"
            )
        from_scratch = stage.from_nothing or not (stage.init_from or given or options.model.init_from)
        try:
            if starts:
                _check_start(options, starts)
            elif from_scratch and options.data.tokenizer == EXTEND and not options.trainer.fast_dev_run:
                raise UserError(NO_BASE)
        except UserError as error:
            hint = "; a stage that starts from nothing has init_from: null" if starts else ""
            raise UserError(f"{recipe.path}: stage {stage.name}: {error}{hint}") from error
        planned[stage.name] = _planned(f"stage {stage.name}", options, starts, from_scratch)


def _check_start(options: Namespace, starts: list[Planned]) -> None:
    model, data, first = options.model, options.data, starts[0]
    sources = [
        Source(s.name, s.direction, is_two_way(encoder_class(s.options.model)))
        for s in starts
        if s.direction is not None
    ]
    if len(sources) == len(starts):
        check_start(encoder_class(model), sources)
        check_direction(model, data.direction, sources)
    if data.response_column is not None and model.stage == "finetune":
        check_answering(True, data.direction or first.direction)
    check_same_tokenizer([start.options.data for start in starts])
    for start in starts:
        check_sizes(model, start.options.model, start.name)
    if data.tokenizer == EXTEND:
        check_extendable(first.tokens or "WordLevel", first.name)
        if 0 < data.vocab_size < first.vocab_size:
            raise UserError(
                f"--data.vocab_size {data.vocab_size} with --data.tokenizer extend is below the {first.vocab_size} of "
                f"{first.name}: it is the limit of both together; 0 is none"
            )
    elif model.remap_vocabulary and first.tokens and tokens_of(data.tokenizer):
        check_same_kind(data.tokenizer, first.tokens, first.name)


def _planned(name: str, options: Namespace, starts: list[Planned], from_scratch: bool) -> Planned:
    data = options.data
    direction: Direction | None = data.direction
    if direction is None and (from_scratch or len(starts) > 1):
        direction = "forward"
    elif direction is None and starts:
        direction = starts[0].direction
    tokens, vocab_size = tokens_of(data.tokenizer), data.vocab_size
    if not from_scratch and not options.model.remap_vocabulary and data.tokenizer != EXTEND:
        tokens, vocab_size = (starts[0].tokens, starts[0].vocab_size) if starts else (None, 0)
    return Planned(name, options, direction, tokens, vocab_size)
