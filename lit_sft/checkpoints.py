"""Checkpoints and the folders that hold them: what is inside, how they are found, how they are read.

A checkpoint is self-contained: beside Lightning's own entries it holds, under ``lit_sft``, the stage, the tokenizer,
the label names, the run's options, the carried hidden state and the random states: plain values and tensors, so that
it loads with ``weights_only=True`` and nothing in it is ever executed.
"""

from __future__ import annotations

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml
from torch import Tensor

from lit_sft.data.adopted import Adopted
from lit_sft.data.batches import Direction
from lit_sft.data.provenance import NOTHING, is_fed
from lit_sft.data.sources import expanded
from lit_sft.data.tokenization import Tokenizer
from lit_sft.errors import UserError
from lit_sft.options import read_yaml

FORMAT = 1
InitFrom = list[str] | str | None  # the runs or checkpoints that an option names
NETWORK = "network."  # where the LightningModule keeps the network: the prefix of its weights


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a checkpoint that every command needs. ``config`` holds the run's options as plain values.

    ``multilabel``: a document may have any number of labels; each applies from its probability in ``thresholds`` on.
    ``fed``: the data that weights and tokenizer were made from (:mod:`lit_sft.data.provenance`).
    """

    path: Path
    stage: Literal["pretrain", "finetune"]
    label_names: list[str]
    config: dict[str, Any]
    tokenizer_json: str
    state_dict: dict[str, Tensor]
    global_step: int
    multilabel: bool = False
    thresholds: list[float] | None = None
    fed: dict[str, Any] = field(default_factory=lambda: NOTHING)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the run used."""
        return Tokenizer.from_json(self.tokenizer_json, source=f"{self.path}: a damaged checkpoint: its tokenizer")

    def options(self, group: Literal["data", "model"]) -> dict[str, Any]:
        """The run's options of a group; empty if the checkpoint has none."""
        return dict(self.config.get(group, {}))

    @property
    def direction(self) -> Direction:
        """How the run read documents."""
        return self.options("data").get("direction") or "forward"  # older checkpoints lack it

    def adopted(self, labels: bool = True) -> Adopted:
        """What another run's data take over from this one; with ``labels``, also the classes if it is a classifier."""
        found = Adopted(self.tokenizer(), fed=self.fed, direction=self.direction)
        if not labels or self.stage == "pretrain":
            return found
        return replace(found, label_names=self.label_names or None, multilabel=self.multilabel)

    @property
    def num_beams(self) -> int:
        """The beams of the run's search for responses; 1 for older checkpoints, which lack the option."""
        return self.options("model").get("num_beams") or 1

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
    multilabel: bool,
    thresholds: list[float] | None,
    fed: dict[str, Any],
    config: dict[str, Any],
    ranks: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return this package's part of a checkpoint: plain values and tensors.

    ``ranks``: the carried hidden ``state`` and the ``random`` states of each process of the run.
    """
    return {
        "format": FORMAT,
        "stage": stage,
        "tokenizer": tokenizer_json,
        "label_names": label_names,
        "multilabel": multilabel,
        "thresholds": thresholds,
        "fed": fed,
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
    """Read all entries of a checkpoint of this package: only tensors and plain values are unpickled.

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
    except Exception as error:  # a damaged archive or pickle may raise anything
        raise UserError(f"{path}: not a checkpoint, or a damaged one") from error
    ours = raw.get("lit_sft") if isinstance(raw, dict) else None
    if not isinstance(ours, dict) or ours.get("format") != FORMAT:
        raise UserError(f"{path}: a checkpoint, but not one of lit_sft's (format {FORMAT})")
    entries: dict[str, Any] = raw
    return entries


def checkpoint_in(raw: dict[str, Any], path: Path) -> Checkpoint:
    """Take what every command needs from a checkpoint's entries; raise a UserError if one of them is invalid."""
    ours = raw["lit_sft"]
    values: dict[str, Any] = {key: ours.get(key) for key in ("stage", "label_names", "config")}
    values |= {"tokenizer_json": ours.get("tokenizer"), "state_dict": raw.get("state_dict")}
    values["global_step"] = raw.get("global_step", 0)
    values["multilabel"] = ours.get("multilabel", False)  # older checkpoints never are
    values["thresholds"] = ours.get("thresholds")
    values["fed"] = ours.get("fed", NOTHING)
    if wrong := ", ".join(name for name, is_right in KINDS.items() if not is_right(values[name])):
        raise UserError(f"{path}: a damaged checkpoint, its {wrong} can't be used")
    if values["thresholds"] is not None and len(values["thresholds"]) != len(values["label_names"]):
        raise UserError(f"{path}: a damaged checkpoint, its thresholds can't be used")
    return Checkpoint(path, **values)


def _check_sums(path: Path) -> None:
    """Raise a BadZipFile if the file has changed since it was written: torch stores checksums but never checks them."""
    with zipfile.ZipFile(path) as archive:
        # A flipped bit can mark an entry as a folder: torch then reads it as one, zipfile doesn't.
        if archive.testzip() is not None or any(entry.external_attr for entry in archive.infolist()):
            raise zipfile.BadZipFile("a wrong checksum")


def _plain_config(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(value.get(part, {}), dict) for part in ("data", "model")):
        return False
    data, model = value.get("data", {}), value.get("model", {})
    numbers = [data.get("max_length"), data.get("max_response_length"), model.get("num_beams")]
    right = all(number is None or (isinstance(number, int) and number > 0) for number in numbers)
    return right and data.get("direction") in (None, *get_args(Direction))


def _thresholds(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(t, float) and 0 <= t <= 1 for t in value))


def _weights(value: Any) -> bool:
    named = isinstance(value, dict) and all(isinstance(n, str) and isinstance(w, Tensor) for n, w in value.items())
    return named and bool(value)


# A check of each entry of a checkpoint, since the file may come from anywhere.
KINDS: dict[str, Callable[[Any], bool]] = {
    "stage": lambda value: value in ("pretrain", "finetune"),
    "label_names": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "config": _plain_config,
    "tokenizer_json": lambda value: isinstance(value, str),
    "state_dict": _weights,
    "global_step": lambda value: isinstance(value, int) and value >= 0,
    "multilabel": lambda value: isinstance(value, bool),
    "thresholds": _thresholds,
    "fed": is_fed,
}


def resolve(run_or_checkpoint: str | Path, purpose: Literal["init_from", "ckpt_path"]) -> Path:
    """The checkpoint file that a user means by a file, a stage's folder or a recipe's folder.

    A stage's folder stands for its best checkpoint (else its last); a recipe's folder for the best of its pretraining
    (``init_from``) or of its last stage (``ckpt_path``).

    Raises:
        UserError: an empty name, nothing there, or a folder without checkpoints.
    """
    option = f"--{'model.' * (purpose == 'init_from')}{purpose}"
    if not str(run_or_checkpoint).strip():  # as of an unset variable of the shell: it would be the current folder
        raise UserError(f"{option}: an empty name: give a run or a checkpoint, or leave the option out")
    path = expanded(run_or_checkpoint)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such run or checkpoint (from {option})")
    stages = stage_folders(path)
    if stages and purpose == "init_from":
        stages = [folder for folder in stages if stage_of(folder) == "pretrain"]
    folder = stages[-1] if stages else path
    for name in ("best.ckpt", "last.ckpt"):
        if files := saved(folder / "checkpoints" / name):
            return files[0]
    raise UserError(f"{folder}: no checkpoint in this folder (looked for checkpoints/best.ckpt and last.ckpt)")


def older(path: Path, age: int) -> Path:
    """The name of the checkpoint that was saved ``age`` saves before ``path``."""
    return path.with_name(f"{path.stem}-{age}{path.suffix}")


def saved(path: Path) -> list[Path]:
    """The existing files of a checkpoint and the ones saved before it, from newest to oldest."""
    numbers = {path: 0}
    for file in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        age = file.stem.removeprefix(f"{path.stem}-")
        if age.isdigit():
            numbers[file] = int(age)
    return sorted((file for file in numbers if file.is_file()), key=numbers.__getitem__)


def names_in(given: InitFrom | PathLike[str]) -> list[str]:
    """The runs or checkpoints that an option names: a list, a YAML list in a string, or names separated by commas.

    A ``PathLike``, which can only be given in Python, is a single name.

    Raises:
        UserError: a string that names none, or has nothing between two commas.
    """
    if isinstance(given, PathLike):
        return [fspath(given)]
    if not isinstance(given, str):
        return list(given or [])
    with contextlib.suppress(OSError):  # raised if the string is too long for a path
        if given and Path(given).exists():  # the path of no name is the current folder
            return [given]
    listed: Any = given.split(",")
    if given.startswith("[") and given.endswith("]"):
        listed = []
        with contextlib.suppress(yaml.YAMLError):
            listed = yaml.safe_load(given)
    names = [str(name).strip() for name in listed if not isinstance(name, (dict, list))]
    if not all(names) or not names or len(names) < len(listed):
        raise UserError(f"{given!r} is no list of runs or checkpoints: name one, or several as A,B")
    return names


def stage_folders(run: Path) -> list[Path]:
    """The stages' folders of a recipe's run, in the recipe's order; empty for the folder of a single stage."""
    stages = read_config(run).get("stages") or []
    return [run / stage["name"] for stage in stages if (run / stage["name"]).is_dir()]


def stage_of(folder: Path) -> str | None:
    """``pretrain`` or ``finetune``, as the folder's ``config.yaml`` says."""
    stage = read_config(folder).get("model", {}).get("stage")
    return stage if isinstance(stage, str) else None


def read_config(folder: Path) -> dict[str, Any]:
    """A run folder's ``config.yaml``; empty if there is none.

    Raises:
        UserError: the file is not YAML, or not a mapping.
    """
    path = folder / "config.yaml"
    return read_yaml(path) if path.is_file() else {}
