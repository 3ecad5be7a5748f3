"""What of a checkpoint its model is built from again: a stranger's file is data, and names no code to run."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from lit_sft.checkpoints import Checkpoint
from lit_sft.errors import UserError
from lit_sft.models import Encoder
from lit_sft.objectives import MLE, Completion, Objective, Supervised

# What of a stranger's config is followed: plain values of our own options, and the encoder. Objective, optimizer and
# schedule are not: only a fit needs them; nor what belongs to the machine: seed, cache and worker processes.
MODEL_OPTIONS = (
    *("stage", "pooling", "head_dropout", "head_hidden_size", "tie_weights_up_to", "adaptive_cutoffs", "loss_chunk"),
    "num_beams",
)
LOCAL_DATA_OPTIONS = ("seed", "cache_dir", "num_workers")
OWN_PACKAGE = "lit_sft."


def stored_config(checkpoint: Checkpoint, encoder: Any = None, metrics: bool = True) -> dict[str, Any]:
    """The checkpoint's data and model options, to build its model from: plain values, and an encoder of this package.

    Args:
        checkpoint: whose options.
        encoder: the class that the user's own config or flag names, alone or with its options, which may lie outside
            the package; where it isn't the checkpoint's, the checkpoint's is left out.
        metrics: whether the run's own metrics are wanted.

    Raises:
        UserError: an encoder or metric outside the package and torchmetrics that the user did not name.
    """
    model = checkpoint.options("model")
    chosen = {key: _plain(model[key]) for key in MODEL_OPTIONS if key in model}
    spec = model.get("encoder")
    if spec is not None and (encoder is None or class_path_of(encoder) == class_path_of(spec)):
        chosen["encoder"] = _encoder_spec(checkpoint.path, spec, encoder)
    if metrics and model.get("metrics"):
        chosen["metrics"] = _metric_specs(checkpoint.path, model["metrics"])
    data = {k: _plain(v) for k, v in checkpoint.options("data").items() if k not in LOCAL_DATA_OPTIONS}
    return {"data": data, "model": chosen, "trainer": {"precision": checkpoint.precision}}


def objective_of(checkpoint: Checkpoint) -> Objective:
    """An objective that asks for the heads that the checkpoint has weights of; its own is not needed, nor looked at.

    Evaluation and prediction ask an objective for no more than its heads.
    """
    parts = {name.split(".", 1)[0] for name in checkpoint.network_weights()}
    if "classifier" not in parts:
        return Completion() if checkpoint.stage == "finetune" else MLE()
    objective = Supervised()
    if "lm_head" in parts:
        objective.heads = frozenset({"lm", "classifier"})
    return objective


def own_encoder(name: str) -> type[Encoder] | None:
    """The encoder of this package that a name stands for; None for any other name, which is not imported."""
    module, _, short = name.rpartition(".")
    if not name.startswith(OWN_PACKAGE):
        return None
    try:
        found = getattr(importlib.import_module(module), short, None)
    except ImportError:
        return None
    if isinstance(found, type) and issubclass(found, Encoder) and found.__module__.startswith(OWN_PACKAGE):
        return found
    return None


def class_path_of(spec: Any) -> Any:
    """The name of the class that an option names, with its options or alone."""
    return spec.get("class_path") if isinstance(spec, dict) else spec


def _options(spec: Any) -> dict[Any, Any]:
    options = spec.get("init_args") if isinstance(spec, dict) else None
    return options if isinstance(options, dict) else {}


def _encoder_spec(path: Path, spec: Any, given: Any) -> dict[str, Any]:
    """A checkpoint's encoder and its options as the parser takes them, where the user gives ``given``.

    The options are numbers and plain words: a string that the parser could take for another class, or for the file of
    one, is refused like the class itself, unless the user's own config or flag says the same.
    """
    name, options, own = class_path_of(spec), _options(spec), _options(given)
    if not isinstance(name, str) or not (name == class_path_of(given) or own_encoder(name)):
        raise UserError(
            f"{path}: its encoder is {str(name)[:200]}, code outside this package, and is not followed on a "
            "checkpoint's word; if you trust it, add --model.encoder with its name"
        )
    strange = [key for key, value in options.items() if not _harmless({key: value})]
    for key in strange:
        if key not in own or str(own[key]) != str(options[key]):
            raise UserError(
                f"{path}: its encoder's option {str(key)[:200]} could name code, and is not followed on a checkpoint's "
                "word; if you trust it, give the same value to --model.encoder yourself"
            )
    return {"class_path": name, "init_args": {k: v for k, v in options.items() if k not in strange}}


def _metric_specs(path: Path, metrics: Any) -> dict[str, Any]:
    """A run's own metrics as the parser takes them: classification metrics of torchmetrics, with plain options."""
    import torchmetrics  # takes as long as torch to import, and a prediction measures nothing

    chosen = {}
    for name, spec in metrics.items() if isinstance(metrics, dict) else ():
        module, _, short = str(class_path_of(spec)).rpartition(".")
        options = _options(spec)
        known = isinstance(spec, dict) and module in ("torchmetrics", "torchmetrics.classification")
        known = known and short in torchmetrics.classification.__all__
        if not known or spec.get("init_args", options) not in (options, None) or not _harmless(options):
            raise UserError(
                f"{path}: its metric {str(name)[:200]} is {str(class_path_of(spec))[:200]}, code outside this package "
                "or with an option that could name code, and is not followed on a checkpoint's word; if you trust it, "
                "give --model.metrics as in its run, or leave them out: --model.metrics '{}'"
            )
        chosen[str(name)] = {"class_path": f"torchmetrics.classification.{short}", "init_args": options}
    return chosen


def _harmless(value: Any) -> bool:
    """Whether a value is made of numbers and plain words: no dotted name, no path, no class."""
    if isinstance(value, dict):
        return "class_path" not in value and all(isinstance(k, str) and _harmless(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_harmless, value))
    return value is None or isinstance(value, (bool, int, float)) or bool(re.fullmatch(r"[\w -]*", str(value)))


def _plain(value: Any) -> Any:
    """The value without anything that a parser could take for a class."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k != "class_path"}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
