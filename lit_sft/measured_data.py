"""The data that ``validate`` and ``test`` evaluate on: the run's own or other data, and how the two are told apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_warn

from lit_sft.checkpoints import Checkpoint
from lit_sft.data.corpus_config import PYDOCS
from lit_sft.data.textdata import TextData
from lit_sft.errors import UserError
from lit_sft.objectives import Objective
from lit_sft.stored_options import objective_of

# Options that decide which documents are evaluated, what a network sees of them, and where copies of them are searched.
MEASURED = (
    *("test", "text_column", "label_column", "header", "encoding", "separator", "label_pattern", "label_separator"),
    *("label_names", "max_length", "truncation", "labeled", "unlabeled", "val", "remove_test_copies"),
    *("response_column", "max_response_length"),
)
# Also batch_size, since the number of streams decides where each begins (for documents it changes no figure), and
# num_beams, which changes the responses.
TESTED = (*MEASURED, "batch_size", "num_beams")
ADDED = {"max_response_length": 200}  # the values used for options that older configs lack
# A validation also depends on the options by which its documents are held out of the labeled ones.
VALIDATED = (*MEASURED, "val_fraction", "split_seed", "val_labels_per_class")
# Options that decide which text is read: copies are searched only if a run and its test have the same.
TEXT = [name for name in TESTED if name not in ("max_length", "max_response_length", "truncation", "batch_size")]
HELD_OUT = ("labeled", "val", "val_fraction", "split_seed")


def check_measured(source: Checkpoint, config: Namespace, command: str) -> None:
    """Raise a UserError if a checkpoint can't be evaluated with these options of ``test`` or ``validate``.

    That is so if it has another stage or pooling, or answers prompts instead of classifying (or the reverse); if
    ``remove_test_copies`` is set now but was not set in its training; or if the documents held out for validation would
    differ from those of its run, and so include documents that it was trained on.
    """
    if source.stage != (stage := config.model.stage):
        raise UserError(
            f"--ckpt_path {source.path} is a {source.stage} checkpoint and model.stage is {stage}: leave model.stage "
            "out, or give the config of its run"
        )
    heads, pairs = objective_of(source).heads, config.data.response_column is not None
    if stage == "finetune" and ("classifier" in heads) == pairs:
        kind, do = ("a classifier", "leave out") if pairs else ("a model that answers prompts", "give")
        raise UserError(f"--ckpt_path {source.path} is {kind}: {do} --data.response_column")
    pooling = source.options("model").get("pooling")
    if stage == "finetune" and pooling not in (None, config.model.pooling):
        raise UserError(
            f"--model.pooling {config.model.pooling} makes another network of {source.path}, which was trained with "
            f"{pooling}: leave model.pooling out"
        )
    before = source.options("data")
    own = same_data(config.data, before, ("labeled", "unlabeled", "val", "test"))  # else no copies are searched
    if command == "test" and own and config.data.remove_test_copies and not before.get("remove_test_copies"):
        raise UserError(
            f"--data.remove_test_copies true is for a training, and that of {source.path} went without: it may have "
            "read copies of test documents, which a test can count, and not undo; leave it out"
        )
    if command == "validate" and holds_out_others(config.data, before):
        raise UserError(
            f"other documents would be held out than in the run of {source.path}, which was trained on them: leave "
            "data.val, data.val_fraction and data.split_seed out, or give --data.val other data"
        )


def holds_out_others(data: Any, before: dict[str, Any]) -> bool:
    """Whether these data options hold out other documents of the same text for validation than those of ``before``."""
    if data["val"] or has_own_splits(data):
        return False
    text = ["labeled"] if data["labeled"] else ["labeled", "unlabeled"]
    return same_data(data, before, text) and not same_data(data, before, HELD_OUT)


def holds_out_trained(data: Any, before: dict[str, Any]) -> bool:
    """Whether a run that was trained with the data options ``before`` and goes on with these may validate on that text.

    It may if other documents would be held out, or if ``val`` names training text. (Text that is new keeps the held-out
    documents of the old where they are: they are drawn by their hashes.)
    """
    if not before or has_own_splits(data):
        return False
    if data["val"] and not same_data(data, before, ["val"]):
        return not _sources(data, "val").isdisjoint(_sources(before, "labeled", "unlabeled"))
    return not data["val"] and not same_data(data, before, ("val", "val_fraction", "split_seed"))


def has_own_splits(data: Any) -> bool:
    """Whether these data options name a corpus with validation and test documents of its own."""
    return data["labeled"] in (PYDOCS, [PYDOCS])


def _sources(data: Any, *options: str) -> set[str]:
    given = [_located(data[option]) for option in options]
    return {source for value in given for source in (value if isinstance(value, list) else [value]) if source}


def choose_measured(source: Checkpoint, config: Namespace, command: str, data: TextData) -> bool:
    """Return whether a model is evaluated on its run's own data; leave out training text that is not its run's.

    If the options name other text than the run's, or its sources have changed, a split with sources of its own is read
    alone: copies of its documents must not be searched in text that the model wasn't trained on.

    Args:
        source: the checkpoint that is evaluated.
        config: the parsed options.
        command: ``validate`` or ``test``.
        data: the data that these options name, not prepared yet; they have adopted ``source``.

    Raises:
        UserError: no data are named; a source doesn't exist; or the documents were a part of text that has changed.
    """
    split: Literal["val", "test"] = "test" if command == "test" else "val"
    if not (config.data[split] or config.data.labeled or config.data.unlabeled):  # as a file of scripts/export.py
        raise UserError(f"{source.path} names no data: give --data.{split} a file")
    before = source.options("data")
    if not same_data(config.data, before, TEXT):
        if not config.data[split]:
            return False
        own_size = config.data.val_labels_per_class == before.get("val_labels_per_class")
        if not same_data(config.data, before, ["val"]) and own_size:  # it was not meant for these data
            config.data.val_labels_per_class = data.val_labels_per_class = None
    elif data.provenance.is_as_before(split):
        options = TESTED if split == "test" else [*VALIDATED, "batch_size"]
        streams = reads_streams(objective_of(source))
        return same_data(config.data, before, [name for name in options if streams or name != "batch_size"])
    elif not config.data[split]:
        raise UserError(
            f"the sources hold other text than {source.path} was trained on, and its {split} documents were a part of "
            f"that: give --data.{split} a file"
        )
    else:
        rank_zero_warn(f"the sources hold other text than {source.path} was fed with: this {command} is of other data")
    data.read_only(split)
    return False


def reads_streams(objective: Objective) -> bool:
    """Whether validation and test read text as streams; ``data.batch_size`` is then the number of streams."""
    return "lm" in objective.heads and "pairs" not in objective.batches


def is_whole(trainer: Namespace, command: str) -> bool:
    """Whether ``validate`` or ``test`` reads all batches with these options of the Trainer."""
    limit = trainer.limit_test_batches if command == "test" else trainer.limit_val_batches
    return (limit is None or (isinstance(limit, float) and limit == 1)) and not trainer.overfit_batches


def same_data(data: Any, other: dict[str, Any], options: Iterable[str]) -> bool:
    """Whether these data options have the same values in both mappings, however paths and lists of one are written."""
    pairs = [[ADDED.get(k) if one.get(k) is None else one.get(k) for one in (data, other)] for k in options]
    return all(_located(one) == _located(two) for one, two in pairs)


def _located(value: Any) -> Any:
    """Make different spellings equal: paths absolute, a list of one its value, and keys strings, as in JSON."""
    if isinstance(value, dict):
        return {str(key): name for key, name in value.items()}
    if isinstance(value, list):
        located = [_located(v) for v in value]
        return located[0] if len(located) == 1 else located
    if isinstance(value, str):
        with contextlib.suppress(OSError):  # no permission for its folder, or too long for a path
            return str(Path(value).resolve()) if Path(value).exists() else value
    return value
