"""Resuming a run, or starting from its weights: checks of what must not have changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_sft.checkpoints import Checkpoint, checkpoint_in, read_config, read_entries, saved
from lit_sft.data.extension import EXTEND
from lit_sft.data.textdata import TextData
from lit_sft.data.tokenization import KINDS, Tokenizer
from lit_sft.errors import UserError
from lit_sft.measured_data import holds_out_trained
from lit_sft.runs import RECORD
from lit_sft.stored_options import class_path_of

# Options that a checkpoint's tokenizer was trained with: another value would require another tokenizer.
TOKENIZER_OPTIONS = ("vocab_size", "lowercase", "min_frequency", "replace")


def check_resumable(source: Checkpoint, config: dict[str, Any], run_data: TextData) -> None:
    """Raise a UserError if a checkpoint can't be resumed: it has another stage, tokenizer or optimizer class.

    The same if it would validate on documents that it was trained on. Text that it hasn't seen is only told.

    Args:
        source: the checkpoint.
        config: the run's options.
        run_data: the data that these describe; they have adopted ``source``.
    """
    data, stage = config["data"], config["model"]["stage"]
    if source.stage != stage:
        raise UserError(
            f"--ckpt_path {source.path} is a {source.stage} checkpoint and model.stage is {stage}: --ckpt_path resumes "
            f"the same stage; to start from its weights, use --model.init_from {source.path}"
        )
    before = source.options("data")
    given = data.get("tokenizer") in (*KINDS, EXTEND)
    for key in (*TOKENIZER_OPTIONS, "tokenizer") if given else ():
        if key in before and before[key] != data.get(key):
            raise UserError(
                f"--data.{key} {data.get(key)} conflicts with {source.path}, whose tokenizer has {before[key]}: "
                "a resumed run keeps its tokenizer"
            )
    options = source.options("model"), config["model"]
    had, asked = (str(class_path_of(o.get("optimizer")) or "").rpartition(".")[2] for o in options)
    if had and asked and had != asked:
        raise UserError(
            f"--model.optimizer {asked} can't go on with {source.path}, which keeps the state of {had}: resume with "
            f"that, or start a new run from its weights, --model.init_from {source.path}"
        )
    check_tokenizer(source, data["tokenizer"])
    if holds_out_trained(data, before):
        raise UserError(
            f"--ckpt_path {source.path}: it would validate on documents that it was trained on: leave data.val, "
            "data.val_fraction and data.split_seed as they were, or start a new run"
        )
    trains_on_others = not run_data.provenance.is_as_before("train")
    if trains_on_others or not run_data.provenance.is_as_before("val"):
        told = "the run goes on with it" if trains_on_others else "its best validation was of others"
        rank_zero_warn(f"the sources hold other text than {source.path} was fed with: {told}")


def check_tokenizer(source: Checkpoint, kind: str) -> None:
    """Raise a UserError if ``--data.tokenizer`` is a file that holds another tokenizer than the checkpoint."""
    if kind not in (*KINDS, EXTEND) and Tokenizer.from_file(kind).digest != source.tokenizer().digest:
        raise UserError(
            f"--data.tokenizer {kind} doesn't fit {source.path}: a run takes the tokenizer of the checkpoint that it "
            "starts from or goes on with; leave out --data.tokenizer, or let a new run take over the vectors of the "
            "tokens that both have: --model.remap_vocabulary true"
        )


def check_same_tokenizer(data: Sequence[Any]) -> None:
    """Raise a UserError if runs with these parsed data options can't have the same tokenizer."""
    for key in ("tokenizer", *TOKENIZER_OPTIONS):
        if len({str(options[key]) for options in data}) > 1:
            values = " and ".join(str(options[key]) for options in data)
            raise UserError(f"what it starts from has different tokenizers (data.{key} {values})")


def read_resumable(path: Path) -> Checkpoint:
    """Read a checkpoint as :func:`read_checkpoint` does, and check that it has everything that resuming a run needs.

    Lightning would silently ignore much of what is missing.

    Raises:
        UserError: also if a part is missing, as in a file with weights only.
    """
    entries = read_entries(path)
    found = checkpoint_in(entries, path)
    parts = {**entries["lit_sft"], **entries}
    if wrong := ", ".join(name for name, is_right in NEEDED.items() if not is_right(parts.get(name))):
        raise UserError(
            f"{path}: a run can't go on from it, its {wrong} can't be used or isn't there; to start a new run from "
            f"its weights: --model.init_from {path}"
        )
    found.tokenizer()
    return found


def _loops(value: Any) -> bool:
    progress = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.automatic_optimization.optim_progress")
    fit = value.get("fit_loop") if isinstance(value, dict) else None
    return isinstance(fit, dict) and all(isinstance(fit.get(name), dict) for name in progress)


def _optimizers(value: Any) -> bool:
    only = value[0] if isinstance(value, list) and len(value) == 1 else None
    return isinstance(only, dict) and isinstance(only.get("state"), dict) and isinstance(only.get("param_groups"), list)


def _states(value: Any) -> bool:
    """Whether no state is missing or empty: Lightning saves no empty states, and ignores those that it finds."""
    return isinstance(value, dict) and bool(value) and all(isinstance(s, dict) and s for s in value.values())


def _ranks(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_rank, value))


def _rank(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("random"), dict) or "state" not in value:
        return False
    state, generators = value["state"] or (), {"python", "numpy", "torch", "cuda"}
    layers = isinstance(state, (list, tuple)) and all(isinstance(layer, (list, tuple)) for layer in state)
    tensors = layers and all(isinstance(tensor, Tensor) for layer in state for tensor in layer)
    return tensors and generators <= set(value["random"])


# A check of each entry that only a resumed run needs; some are Lightning's, some this package's.
NEEDED: dict[str, Callable[[Any], bool]] = {
    "global_step": lambda value: isinstance(value, int),
    "loops": _loops,
    "optimizer_states": _optimizers,
    "lr_schedulers": lambda value: isinstance(value, list) and len(value) == 1 and _states(dict(enumerate(value))),
    "callbacks": _states,
    "TextDataModule": _states,  # the position in the data
    "ranks": _ranks,  # the carried hidden state and the random states
}


def check_folder(folder: Path, new: bool = False) -> None:
    """Raise a UserError if a stage can't train in this folder because it holds a finished run or a recipe's run.

    ``new``: whether a new run starts there, which would overwrite the checkpoints of an unfinished run: refused, too.
    """
    if (folder / RECORD).is_file():
        raise UserError(
            f"--run_dir {folder} holds a finished run: give another folder, or leave it out (to train it further, "
            f"--ckpt_path {folder / 'checkpoints' / 'last.ckpt'} and more epochs)"
        )
    if new and saved(folder / "checkpoints" / "last.ckpt"):
        raise UserError(
            f"--run_dir {folder} holds a run that isn't finished: go on with it, --ckpt_path last, or give another "
            "folder"
        )
    if "stages" in read_config(folder):
        raise UserError(
            f"{folder} holds the run of a recipe: go on with it by that, fit --config RECIPE.yaml --ckpt_path last, or "
            "give another --name or --run_dir"
        )


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the checkpoint that ``--ckpt_path last`` resumes: the newest undamaged one; None if there is none at all.

    Raises:
        UserError: all checkpoints are damaged, or :func:`check_folder` refuses the folder.
    """
    check_folder(folder)
    errors: list[str] = []
    for file in saved(folder / "checkpoints" / "last.ckpt"):
        try:
            found = read_resumable(file)
        except UserError as error:
            errors.append(str(error))
            continue
        for line in errors:
            rank_zero_warn(f"{line}; going on from the one before")
        return found
    if errors:
        raise UserError(f"--ckpt_path last: no checkpoint to go on from: {'; '.join(errors)}")
    return None
