"""What ``validate`` and ``test`` measure: a run's own data, or others, which are never taken for these."""

from __future__ import annotations

from typing import Literal

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_warn

from lit_sft.checkpoints import Checkpoint
from lit_sft.data.corpus_config import PYDOCS
from lit_sft.data.textdata import TextData
from lit_sft.errors import UserError
from lit_sft.runs import TESTED, VALIDATED, same_data
from lit_sft.stored_options import objective_of

# What decides which text there is: the same in a run and its test, or no copies are looked for.
TEXT = [name for name in TESTED if name not in ("max_length", "max_response_length", "truncation", "batch_size")]
HELD_OUT = ("labeled", "val", "val_fraction", "split_seed")


def check_measured(source: Checkpoint, config: Namespace, command: str) -> None:
    """Raise a UserError where a checkpoint can't be measured by these options of ``test`` or ``validate``.

    It is of another stage, or another network; copies of test documents are to be left out, which it was trained with;
    or documents held out that it was trained on.
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
    pooling = source.config.get("model", {}).get("pooling")
    if stage == "finetune" and pooling not in (None, config.model.pooling):
        raise UserError(
            f"--model.pooling {config.model.pooling} makes another network of {source.path}, which was trained with "
            f"{pooling}: leave model.pooling out"
        )
    before = source.config.get("data", {})
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
    before = source.config.get("data", {})
    if not same_data(config.data, before, TEXT):
        if not config.data[split]:
            return False
        own_size = config.data.val_labels_per_class == before.get("val_labels_per_class")
        if not same_data(config.data, before, ["val"]) and own_size:  # which was not meant for these
            config.data.val_labels_per_class = data.val_labels_per_class = None
    elif data.food.is_as_before(split):
        sizes = ["batch_size"] if "lm" in objective_of(source).heads else []  # of streams, which a classifier has not
        options = TESTED if split == "test" else VALIDATED
        return same_data(config.data, before, [*(name for name in options if name != "batch_size"), *sizes])
    elif not config.data[split]:
        raise UserError(
            f"the sources hold other text than {source.path} was trained on, and its {split} documents were a part of "
            f"that: give --data.{split} a file"
        )
    else:
        rank_zero_warn(f"the sources hold other text than {source.path} was fed with: this {command} is of other data")
    data.read_only(split)
    return False


def is_whole(trainer: Namespace, command: str) -> bool:
    """Whether these options of the Trainer leave no batch of a ``validate`` or ``test`` out."""
    limit = trainer.limit_test_batches if command == "test" else trainer.limit_val_batches
    return (limit is None or (isinstance(limit, float) and limit == 1)) and not trainer.overfit_batches
