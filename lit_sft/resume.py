"""Going on with a run, or from its weights: what must be as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lit_sft.checkpoint_io import saved
from lit_sft.checkpoints import Checkpoint, read_checkpoint
from lit_sft.data.tokenization import Tokenizer
from lit_sft.errors import UserError

# What the tokenizer of a checkpoint was trained with: another value would ask for another tokenizer.
TOKENIZER_OPTIONS = ("vocab_size", "lowercase", "min_frequency")


def check_resumable(source: Checkpoint, stage: str, data: dict[str, Any]) -> None:
    """Raise a UserError where a checkpoint can't be gone on with: another stage, or another tokenizer."""
    if source.stage != stage:
        raise UserError(
            f"--ckpt_path {source.path} is a {source.stage} checkpoint and model.stage is {stage}: --ckpt_path resumes "
            f"the same stage; to start from its weights, use --model.init_from {source.path}"
        )
    before = source.config.get("data", {})
    given = data.get("tokenizer") in ("bpe", "word")
    for key in (*TOKENIZER_OPTIONS, "tokenizer") if given else ():
        if key in before and before[key] != data.get(key):
            raise UserError(
                f"--data.{key} {data.get(key)} conflicts with {source.path}, whose tokenizer has {before[key]}: "
                "a resumed run keeps its tokenizer"
            )


def check_tokenizer(source: Checkpoint, kind: str) -> None:
    """Raise a UserError where ``--data.tokenizer`` is a file that holds another tokenizer than the checkpoint."""
    if kind not in ("bpe", "word") and Tokenizer.from_file(kind).digest != source.tokenizer().digest:
        raise UserError(
            f"--data.tokenizer {kind} doesn't fit {source.path}: a run takes the tokenizer of the checkpoint that it "
            "starts from or goes on with; leave out --data.tokenizer"
        )


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """What ``--ckpt_path last`` goes on from: the newest checkpoint of a run that is whole; None where there is none.

    Raises:
        UserError: there are some, and all of them are damaged.
    """
    files = saved(folder / "checkpoints" / "last.ckpt")
    for file in files:
        try:
            found = read_checkpoint(file)
        except UserError as error:
            if file == files[-1]:
                raise
            rank_zero_warn(f"{error}; going on from the one before")
        else:
            return found
    return None
