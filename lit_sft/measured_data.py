"""What ``validate`` and ``test`` measure: a run's own data, or others, which are never taken for these."""

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

# Which documents are measured, what a network sees of them, and in what text their copies are looked for.
MEASURED = (
    *("test", "text_column", "label_column", "header", "encoding", "separator", "label_pattern", "label_separator"),
    *("label_names", "max_length", "truncation", "labeled", "unlabeled", "val", "remove_test_copies"),
    *("response_column", "max_response_length"),
)
# batch_size, since the number of streams decides where each begins (of documents it changes no figure), and num_beams,
# which changes the responses
TESTED = (*MEASURED, "batch_size", "num_beams")
ADDED = {"max_response_length": 200}  # what older configs lack
# Which documents a validation measures: they may be held out of the labeled ones.
VALIDATED = (*MEASURED, "val_fraction", "split_seed", "val_labels_per_class")
# What decides which text there is: the same in a run and its test, or no copies are looked for.
TEXT = [name for name in TESTED if name not in ("max_length", "max_response_length", "truncation", "batch_size")]
HELD_OUT = ("labeled", "val", "val_fraction", "split_seed")


def check_measured(source: Checkpoint, config: Namespace, command: str) -> None:
    """Raise a UserError where a checkpoint can't be measured by these options of ``test`` or ``validate``.

    It is of another stage, answers prompts where it should classify (or the reverse), or has another pooling; its
    training read copies of test documents that are to be left out now; or documents would be held out that it was
    trained on.
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
    own = same_data(config.data, before, ("labeled", "unlabeled", "val", "test"))  # else no copies are looked for
    if command == "test" and own and config.data.remove_test_copies and not before.get("remove_test_copies"):
        raise UserError(
            f"--data.remove_test_copies true is for a training, and that of {source.path} went without: it may have "
            "read copies of test documents, which a test can count, and not undo; leave it out"
        )
    if command == "validate" and not config.data.val and config.data.labeled not in (PYDOCS, [PYDOCS]):
        text = ["labeled"] if config.data.labeled else ["labeled", "unlabeled"]
        if same_data(config.data, before, text) and not same_data(config.data, before, HELD_OUT):
            raise UserError(
                f"other documents would be held out than in the run of {source.path}, which was trained on them: leave "
                "data.val, data.val_fraction and data.split_seed out, or give --data.val other data"
            )


def choose_measured(source: Checkpoint, config: Namespace, command: str, data: TextData) -> bool:
    """Leave unread what the model wasn't trained on; returns whether it is measured on its run's own data.

    Copies of test documents are looked for in what it was trained on, or nowhere.

    Args:
        source: what is measured.
        config: the options, as parsed.
        command: ``validate`` or ``test``.
        data: what these options name, not prepared yet; it has adopted ``source``.

    Raises:
        UserError: the documents were a part of the run's text, which has changed; a source that isn't there.
    """
    split: Literal["val", "test"] = "test" if command == "test" else "val"
    if not (config.data[split] or config.data.labeled or config.data.unlabeled):  # as that of scripts/export.py
        raise UserError(f"{source.path} names no data: give --data.{split} a file")
    before = source.options("data")
    if not same_data(config.data, before, TEXT):
        if not config.data[split]:
            return False
        own_size = config.data.val_labels_per_class == before.get("val_labels_per_class")
        if not same_data(config.data, before, ["val"]) and own_size:  # which was not meant for these
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
    """Whether validation and test read text in streams, whose number ``data.batch_size`` is then."""
    return "lm" in objective.heads and "pairs" not in objective.batches


def is_whole(trainer: Namespace, command: str) -> bool:
    """Whether these options of the Trainer leave no batch of a ``validate`` or ``test`` out."""
    limit = trainer.limit_test_batches if command == "test" else trainer.limit_val_batches
    return (limit is None or (isinstance(limit, float) and limit == 1)) and not trainer.overfit_batches


def same_data(data: Any, other: dict[str, Any], options: Iterable[str]) -> bool:
    """Whether these data options, as mappings, have the same values in both; two ways to write a path are one."""
    pairs = [[ADDED.get(k) if one.get(k) is None else one.get(k) for one in (data, other)] for k in options]
    return all(_located(one) == _located(two) for one, two in pairs)


def _located(value: Any) -> Any:
    """A path made absolute, so that two ways to write it are one, and keys as JSON has them; anything else as it is."""
    if isinstance(value, dict):
        return {str(key): name for key, name in value.items()}
    if isinstance(value, list):
        return [_located(v) for v in value]
    if isinstance(value, str):
        with contextlib.suppress(OSError):  # in a folder that this user may not look into, or longer than a path can be
            return str(Path(value).resolve()) if Path(value).exists() else value
    return value
