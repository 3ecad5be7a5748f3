"""Checkpoints and the folders that hold them: what is inside, how they are found, how they are read.

A checkpoint is self-contained: beside Lightning's own entries it holds, under ``lit_sft``, the stage, the tokenizer,
the label names, the run's options, the carried hidden state and the random states: plain values and tensors, so that
it loads with ``weights_only=True`` and nothing in it is ever executed.
"""

from __future__ import annotations

import importlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from lit_sft.checkpoint_io import saved
from lit_sft.data.tokenization import Tokenizer
from lit_sft.errors import UserError
from lit_sft.models import Encoder
from lit_sft.objectives import Objective

FORMAT = 1
NETWORK = "network."  # where the LightningModule keeps the network: the prefix of its weights


@dataclass(frozen=True)
class Checkpoint:
    """What of a checkpoint every command needs. ``config`` holds the run's options as plain values."""

    path: Path
    stage: Literal["pretrain", "finetune"]
    label_names: list[str]
    config: dict[str, Any]
    tokenizer_json: str
    state_dict: dict[str, Tensor]
    global_step: int

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the run used."""
        return Tokenizer.from_json(self.tokenizer_json, source=f"{self.path}: a damaged checkpoint: its tokenizer")

    @property
    def precision(self) -> str:
        """The Trainer's precision of the run."""
        trainer = self.config.get("trainer")
        found = trainer.get("precision") if isinstance(trainer, dict) else None
        return found if isinstance(found, str) else "32-true"

    def network_weights(self) -> dict[str, Tensor]:
        """The network's weights, named as in ``Network.state_dict()``."""
        return {n.removeprefix(NETWORK): w for n, w in self.state_dict.items() if n.startswith(NETWORK)}


def contents(
    stage: str,
    tokenizer_json: str,
    label_names: list[str],
    config: dict[str, Any],
    ranks: list[dict[str, Any]],
) -> dict[str, Any]:
    """Our part of a checkpoint: plain values and tensors.

    ``ranks``: for each process of the run its carried hidden ``state`` and its ``random`` states.
    """
    return {
        "format": FORMAT,
        "stage": stage,
        "tokenizer": tokenizer_json,
        "label_names": label_names,
        "config": config,
        "ranks": ranks,
    }


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint as data: only tensors and plain values are unpickled.

    Raises:
        UserError: no file, a damaged one, or one that this package did not write.
    """
    return checkpoint_in(read_entries(path), path)


def read_entries(path: Path) -> dict[str, Any]:
    """All that a checkpoint of this package holds: only tensors and plain values are unpickled.

    Raises:
        UserError: no file, a damaged one, or one that this package did not write.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        _check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: damaged, or it holds code and not only data; nothing of it was run") from error
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from error
    except Exception as error:  # what a damaged archive or pickle raises is in no list
        raise UserError(f"{path}: not a checkpoint, or a damaged one") from error
    ours = raw.get("lit_sft") if isinstance(raw, dict) else None
    if not isinstance(ours, dict) or ours.get("format") != FORMAT:
        raise UserError(f"{path}: a checkpoint, but not one of lit_sft's (format {FORMAT})")
    entries: dict[str, Any] = raw
    return entries


def checkpoint_in(raw: dict[str, Any], path: Path) -> Checkpoint:
    """What of a checkpoint's entries every command needs; a UserError where one is of another kind."""
    ours = raw["lit_sft"]
    values: dict[str, Any] = {key: ours.get(key) for key in ("stage", "label_names", "config")}
    values |= {"tokenizer_json": ours.get("tokenizer"), "state_dict": raw.get("state_dict")}
    values["global_step"] = raw.get("global_step", 0)
    if wrong := ", ".join(name for name, is_right in KINDS.items() if not is_right(values[name])):
        raise UserError(f"{path}: a damaged checkpoint, its {wrong} can't be used")
    return Checkpoint(path, **values)


def _check_sums(path: Path) -> None:
    """Raise a BadZipFile where the file isn't as it was written: torch looks at none of the sums that it stores."""
    with zipfile.ZipFile(path) as archive:
        # an entry that a flipped bit made a folder is read as one by torch, but not by zipfile
        if archive.testzip() is not None or any(entry.external_attr for entry in archive.infolist()):
            raise zipfile.BadZipFile("a wrong checksum")


def _plain_config(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(part, {}), dict) for part in ("data", "model"))


def _weights(value: Any) -> bool:
    named = isinstance(value, dict) and all(isinstance(n, str) and isinstance(w, Tensor) for n, w in value.items())
    return named and bool(value)


# What each entry of a checkpoint must be: the file may come from anywhere.
KINDS: dict[str, Callable[[Any], bool]] = {
    "stage": lambda value: value in ("pretrain", "finetune"),
    "label_names": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "config": _plain_config,
    "tokenizer_json": lambda value: isinstance(value, str),
    "state_dict": _weights,
    "global_step": lambda value: isinstance(value, int) and value >= 0,
}


def resolve(run_or_checkpoint: str | Path, purpose: Literal["init_from", "ckpt_path"]) -> Path:
    """The checkpoint file that a user means by a file, a stage's folder or a recipe's folder.

    A stage's folder stands for its best checkpoint (else its last); a recipe's folder for the best of its pretraining
    (``init_from``) or of its last stage (``ckpt_path``).

    Raises:
        UserError: nothing there, or a folder without checkpoints.
    """
    path = Path(run_or_checkpoint)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such run or checkpoint (from --{'model.' * (purpose == 'init_from')}{purpose})")
    stages = stage_folders(path)
    if stages and purpose == "init_from":
        stages = [folder for folder in stages if stage_of(folder) == "pretrain"]
    folder = stages[-1] if stages else path
    for name in ("best.ckpt", "last.ckpt"):
        if files := saved(folder / "checkpoints" / name):
            return files[0]
    raise UserError(f"{folder}: no checkpoint in this folder (looked for checkpoints/best.ckpt and last.ckpt)")


def stage_folders(run: Path) -> list[Path]:
    """The stages' folders of a recipe's run, in the recipe's order; empty for the folder of a single stage."""
    stages = read_config(run).get("stages") or []
    return [run / stage["name"] for stage in stages if (run / stage["name"]).is_dir()]


def stage_of(folder: Path) -> str | None:
    """``pretrain`` or ``finetune``, as the folder's ``config.yaml`` says."""
    stage = read_config(folder).get("model", {}).get("stage")
    return stage if isinstance(stage, str) else None


def read_config(folder: Path) -> dict[str, Any]:
    """A run folder's ``config.yaml``; empty where there is none.

    Raises:
        UserError: the file is not YAML.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    return config if isinstance(config, dict) else {}


# What of a stranger's config is followed: plain values of our own options. The optimizer is not: only a fit needs it;
# nor what belongs to the machine: seed, cache and worker processes.
MODEL_OPTIONS = ("stage", "pooling", "head_dropout", "head_hidden_size", "tie_weights_up_to")
CLASS_OPTIONS = {"encoder": Encoder, "objective": Objective}
LOCAL_DATA_OPTIONS = ("seed", "cache_dir", "num_workers")
OWN_PACKAGE = "lit_sft."


def stored_config(checkpoint: Checkpoint, named: dict[str, str], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The checkpoint's data and model options, to build its model from: plain values, and classes of this package.

    Args:
        checkpoint: whose options.
        named: the class that the user's own config or flag names, by option; where it isn't the checkpoint's, the
            checkpoint's is left out.
        without: class options that are not wanted.

    Raises:
        UserError: a class outside the package that the user did not name.
    """
    model = checkpoint.config.get("model", {})
    chosen = {key: _plain(model[key]) for key in MODEL_OPTIONS if key in model}
    for key in CLASS_OPTIONS:
        spec = model.get(key)
        if spec is None or key in without:
            continue
        if named.get(key) not in (None, _class_path(spec)):
            continue
        chosen[key] = _class_spec(checkpoint.path, key, spec, named.get(key))
    data = {k: _plain(v) for k, v in checkpoint.config.get("data", {}).items() if k not in LOCAL_DATA_OPTIONS}
    return {"data": data, "model": chosen, "trainer": {"precision": checkpoint.precision}}


def own_class(name: str, base: type) -> type | None:
    """The class of this package that a name stands for; None for any other name, which is not imported."""
    module, _, short = name.rpartition(".")
    if not name.startswith(OWN_PACKAGE):
        return None
    try:
        found = getattr(importlib.import_module(module), short, None)
    except ImportError:
        return None
    if isinstance(found, type) and issubclass(found, base) and found.__module__.startswith(OWN_PACKAGE):
        return found
    return None


def _class_path(spec: Any) -> Any:
    return spec.get("class_path") if isinstance(spec, dict) else spec


def _class_spec(path: Path, key: str, spec: Any, named: str | None) -> dict[str, Any]:
    """A class and its options as the parser takes them.

    The options are numbers and plain words: a string that the parser could take for another class, or for the
    file of one, is refused like the class itself.
    """
    name = _class_path(spec)
    options = spec.get("init_args") or {} if isinstance(spec, dict) else {}
    if not isinstance(name, str) or not (name == named or own_class(name, CLASS_OPTIONS[key])):
        raise UserError(
            f"{path}: its {key} is {str(name)[:200]}, code outside this package, and is not followed on a checkpoint's "
            f"word; if you trust it, add --model.{key} with its name"
        )
    if not isinstance(options, dict) or not _harmless(options):
        raise UserError(
            f"{path}: its {key} has an option that could name code, and is not followed on a checkpoint's word; "
            f"if you trust it, give the options of --model.{key} yourself"
        )
    return {"class_path": name, "init_args": options}


def _harmless(value: Any) -> bool:
    """Whether a value is made of numbers and plain words alone: no dotted name, no path, no nested class."""
    if isinstance(value, dict):
        return "class_path" not in value and all(isinstance(k, str) and _harmless(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_harmless, value))
    return value is None or isinstance(value, (bool, int, float)) or bool(re.fullmatch(r"[\w -]*", str(value)))


def _plain(value: Any) -> Any:
    """The value without anything that a parser could take for a class."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k != "class_path"}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
