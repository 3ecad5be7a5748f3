"""What a run starts from (nothing, one run, or a forward and a backward language model), and whether it can."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lit_sft.checkpoints import Checkpoint, InitFrom, names_in, read_checkpoint, resolve
from lit_sft.data.adopted import Adopted
from lit_sft.data.batches import Direction
from lit_sft.data.extension import EXTEND, check_extendable
from lit_sft.data.provenance import together
from lit_sft.data.textdata import TextData
from lit_sft.data.tokenization import KINDS, Tokenizer
from lit_sft.errors import UserError
from lit_sft.models import LSTMEncoder, TwoWayEncoder
from lit_sft.resume import TOKENIZER_OPTIONS, check_tokenizer

SIZES = ("embedding_size", "hidden_size", "num_layers", "last_size")  # an encoder's options that decide shapes


@dataclass(frozen=True)
class Source:
    """A run that is started from, resumed or evaluated: its name, its direction, and whether it reads both ways."""

    name: str
    direction: Direction
    two_way: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Source:
        """Describe a checkpoint; its weights show whether it has a stack for each direction."""
        two_way = any(name.startswith("encoder.backward_stack.") for name in checkpoint.network_weights())
        return cls(str(checkpoint.path), checkpoint.direction, two_way)


def read_sources(init_from: InitFrom) -> list[Checkpoint]:
    """Read the checkpoints that a run starts from, and sort those that read backward to the end.

    Raises:
        UserError: one of them doesn't exist or is damaged, or they have different tokenizers.
    """
    sources = [read_checkpoint(resolve(name, "init_from")) for name in names_in(init_from)]
    for other in sources[1:]:
        if other.tokenizer().digest != sources[0].tokenizer().digest:
            raise UserError(
                f"--model.init_from: {sources[0].path} and {other.path} have different tokenizers: pretrain one of "
                "them with --data.tokenizer RUN/tokenizer.json of the other"
            )
    return sorted(sources, key=lambda source: source.direction == "backward")


def start_from(config: Any, data: TextData) -> Checkpoint | None:
    """Return the checkpoint (of two the first) that a new run starts from, if any; ``data`` take over its tokenizer.

    Args:
        config: the parsed options of a fit; ``init_from`` is replaced by the checkpoints' paths.
        data: the run's data, not prepared yet.

    Raises:
        UserError: no such run, or one that this run can't start from.
    """
    sources, kind = read_sources(config.model.init_from), data.preparation.kind
    if not sources:
        if kind == EXTEND and config.trainer.fast_dev_run:
            data.preparation.kind = "word"  # in a recipe's dry run the stage before has left no checkpoint
        return None
    paths = [str(source.path) for source in sources]
    config.model.init_from = paths if len(paths) > 1 else paths[0]
    known = [Source.of(source) for source in sources]
    check_start(encoder_class(config.model), known)
    if kind == EXTEND:
        check_extendable(sources[0].tokenizer().model, paths[0])
    elif config.model.remap_vocabulary:
        check_same_kind(kind, sources[0].tokenizer().model, paths[0])
    else:
        check_tokenizer(sources[0], kind)
        _tell_unused(sources[0], config.data)
    check_direction(config.model, config.data.direction, known)
    data.adopt(adopted_from(sources, kind == EXTEND, config.model.remap_vocabulary))
    return sources[0]


def _tell_unused(source: Checkpoint, data: Any) -> None:
    """Report data options that ask for another tokenizer than that of ``source``, which is used instead.

    Options at their default are not reported: the user may not have given them. Nothing is reported if the tokenizer of
    ``source`` was extended, since its run's options are not those of the tokenizer that it extended.
    """
    kind, before = tokens_of(data.tokenizer), source.options("data")
    if kind is None or before.get("tokenizer") == EXTEND:
        return
    known = inspect.signature(TextData).parameters
    names = [k for k in ("tokenizer", *TOKENIZER_OPTIONS) if data[k] not in (known[k].default, before.get(k))]
    if names:
        ways = "pretrain with it" + (", or --model.remap_vocabulary true" if kind == source.tokenizer().model else "")
        asked = ", ".join(f"data.{name} {data[name]}" for name in names)
        rank_zero_info(f"{asked}: not used, as the tokenizer of {source.path} is; for one of its own: {ways}")


def adopted_from(sources: Sequence[Checkpoint], extend: bool = False, remap: bool = False) -> Adopted:
    """Return what a run's data take over from the checkpoints it starts from; with two, documents are read forward.

    ``extend``: the data add words to the checkpoint's tokenizer; ``remap``: they have a tokenizer of their own.
    """
    if not sources:
        return Adopted()
    found = sources[0].adopted(labels=False)
    if len(sources) > 1:
        found = replace(found, fed=together(source.fed for source in sources), direction="forward")
    if extend:
        return replace(found, tokenizer=None, to_extend=found.tokenizer)
    return replace(found, tokenizer=None) if remap else found


def tokens_of(kind: str) -> str | None:
    """Return the kind of tokens (see :attr:`Tokenizer.model`) of a value of ``data.tokenizer``; None for a file."""
    return "BPE" if kind == "bpe" else "WordLevel" if kind in (*KINDS, EXTEND) else None


def check_same_kind(kind: str, theirs: str, source: str) -> None:
    """Raise a UserError if the tokens of ``data.tokenizer`` and those of ``source`` are of different kinds."""
    own = tokens_of(kind) or Tokenizer.from_file(kind).model
    if own != theirs:
        raise UserError(
            f"--model.remap_vocabulary: --data.tokenizer {kind} is {own} and that of {source} is {theirs}, whose "
            "tokens are other parts of words: give --data.tokenizer of its kind"
        )


def check_start(encoder: type, sources: Sequence[Source]) -> None:
    """Raise a UserError if an encoder of this class can't start from these runs; shapes are not compared."""
    names = " and ".join(source.name for source in sources)
    if len(sources) > 2:
        raise UserError(f"init_from names {len(sources)} runs: give one, or a forward and a backward pretraining")
    if len(sources) == 2:
        if not is_two_way(encoder):
            raise UserError(
                f"init_from names two runs, {names}: that is for --model.encoder TwoWayEncoder, and "
                f"{encoder.__name__} starts from one"
            )
        if both := ", ".join(source.name for source in sources if source.two_way):
            raise UserError(f"init_from: {both} reads both ways already: start from it alone")
        if sources[0].direction == sources[1].direction:
            raise UserError(
                f"init_from: {names} both read {sources[0].direction}: TwoWayEncoder starts from one that was "
                "pretrained with --data.direction forward, and one with backward"
            )
    elif sources and is_two_way(encoder) and not sources[0].two_way:
        raise UserError(
            f"init_from: {names} reads {sources[0].direction} only: TwoWayEncoder starts from two pretrainings, "
            "--model.init_from FORWARD,BACKWARD"
        )
    elif sources and sources[0].two_way and issubclass(encoder, LSTMEncoder):
        raise UserError(f"init_from: {names} reads both ways: give --model.encoder TwoWayEncoder")


def check_sizes(model: Any, before: Any, source: str) -> None:
    """Raise a UserError if the encoders of two runs differ in size; only this package's encoders are compared.

    Args:
        model: the run's parsed model options.
        before: the same of the run that it starts from, which ``source`` names.
    """
    if not {encoder_class(model), encoder_class(before)} <= {LSTMEncoder, TwoWayEncoder}:
        return
    own, theirs = (dict(vars(options.encoder.init_args)) for options in (model, before))
    for sizes in (own, theirs):
        sizes["last_size"] = sizes["last_size"] or sizes["hidden_size"]
    if wrong := [f"{name} {own[name]} here and {theirs[name]} there" for name in SIZES if own[name] != theirs[name]]:
        raise UserError(
            f"the encoder doesn't fit {source}: {', '.join(wrong)}; give model.encoder the options of the pretraining"
        )


def is_two_way(encoder: type) -> bool:
    """Whether an encoder of this class has a stack for each direction."""
    return issubclass(encoder, TwoWayEncoder)


def check_direction(model: Any, given: str | None, sources: Sequence[Source]) -> None:
    """Raise a UserError if ``--data.direction`` doesn't suit the encoder or the sources, or TwoWayEncoder the stage.

    Args:
        model: the parsed model options.
        given: the option's value; None if it isn't given.
        sources: the runs that the run resumes, evaluates or starts from.
    """
    if is_two_way(encoder_class(model)):
        if model.stage == "pretrain":
            raise UserError(
                "TwoWayEncoder can't be pretrained, as it sees what is to be predicted: pretrain two LSTMEncoders, "
                "with --data.direction forward and backward"
            )
        if given == "backward":
            raise UserError("TwoWayEncoder reads both ways by itself: leave out --data.direction backward")
    elif sources and given not in (None, sources[0].direction):
        raise UserError(
            f"--data.direction {given} contradicts {sources[0].name}, which reads {sources[0].direction}: a run takes "
            "the direction of the checkpoint that it starts from or goes on with; leave out --data.direction"
        )


def encoder_class(model: Any) -> type:
    """Import the class that the parsed model option ``encoder`` names; ``object`` if it isn't a class."""
    path = getattr(model.encoder, "class_path", None)
    if path is None:
        raise UserError(f"--model.encoder {model.encoder}: give a class, whose options a checkpoint can hold")
    module, _, name = str(path).rpartition(".")
    found = getattr(importlib.import_module(module), name)
    return found if isinstance(found, type) else object
