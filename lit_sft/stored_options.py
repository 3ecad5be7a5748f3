"""Select the options from which a checkpoint's model is built: a file from a stranger must not name code to run."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from lit_sft.checkpoints import Checkpoint
from lit_sft.errors import UserError
from lit_sft.models import Encoder
from lit_sft.objectives import MLE, Completion, Objective, Supervised

# Of a stranger's config, only plain values of our own options and the encoder are used. Objective, optimizer and
# schedule are not, since only a fit needs them; nor are options of the run or machine: seed, cache, worker processes.
MODEL_OPTIONS = (
    *("stage", "pooling", "head_dropout", "head_hidden_size", "tie_weights_up_to", "adaptive_cutoffs", "loss_chunk"),
    "num_beams",
)
LOCAL_DATA_OPTIONS = ("seed", "cache_dir", "num_workers")
OWN_PACKAGE = "lit_sft."


def stored_config(checkpoint: Checkpoint, encoder: Any = None, metrics: bool = True) -> dict[str, Any]:
    """Return the data and model options to build a checkpoint's model from: plain values, an encoder of this package.

    Args:
        checkpoint: provides the options.
        encoder: the class that the user's own config or flag names, with or without its options; it may be outside the
            package. If it isn't the checkpoint's class, the checkpoint's encoder is left out.
        metrics: whether to include the run's own metrics.

    Raises:
        UserError: an encoder outside this package that the user did not name, a metric outside torchmetrics, or an
            option of either that could name code.
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
    """Return an objective with the heads that the checkpoint has weights of; the checkpoint's own objective isn't used.

    Evaluation and prediction need only an objective's heads and kinds of batches.
    """
    parts = {name.split(".", 1)[0] for name in checkpoint.network_weights()}
    if "classifier" not in parts:
        return Completion() if checkpoint.stage == "finetune" else MLE()
    objective = Supervised()
    if "lm_head" in parts:
        objective.heads = frozenset({"lm", "classifier"})
    return objective


def own_encoder(name: str) -> type[Encoder] | None:
    """Return this package's encoder with this class path; None for any other class path, which isn't imported."""
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
    """Return the class path in an option that names a class, with or without the class's options."""
    return spec.get("class_path") if isinstance(spec, dict) else spec


def _options(spec: Any) -> dict[Any, Any]:
    options = spec.get("init_args") if isinstance(spec, dict) else None
    return options if isinstance(options, dict) else {}


def _encoder_spec(path: Path, spec: Any, given: Any) -> dict[str, Any]:
    """Return a checkpoint's encoder and its options in the parser's format; ``given`` is the user's own encoder option.

    Options may be numbers and plain words. A string that the parser could take for a class, or for a file that names
    one, is refused like an unknown class, unless the user's own config or flag gives the same value.
    """
    name, options, own = class_path_of(spec), _options(spec), _options(given)
    if not isinstance(name, str) or not (name == class_path_of(given) or own_encoder(name)):
        raise UserError(
            f"{path}: its encoder is {str(name)[:200]}, code outside this package, and is not followed on a "
            "checkpoint's word; if you trust it, add --model.encoder with its name, or in Python encoder=Class"
        )
    strange = [key for key, value in options.items() if not _harmless({key: value})]
    for key in strange:
        if key not in own or not _same(own[key], options[key]):
            option = str(key)[:200]
            raise UserError(
                f"{path}: its encoder's option {option} could name code, and is not followed on a checkpoint's word; "
                f"if you trust it, give the same value yourself: --model.encoder.{option} VALUE, or in Python "
                f"encoder=partial(Class, {option}=VALUE)"
            )
    return {"class_path": name, "init_args": {k: v for k, v in options.items() if k not in strange}}


def _same(given: Any, stored: Any) -> bool:
    """Whether a value is the stored one. A function or class is stored as its path, which is not imported here."""
    module, _, name = str(stored).rpartition(".")
    named = callable(given) and getattr(sys.modules.get(module), "__dict__", {}).get(name) is given
    return named or str(given) == str(stored)


def _metric_specs(path: Path, metrics: Any) -> dict[str, Any]:
    """Return a run's own metrics in the parser's format: classification metrics of torchmetrics with plain options."""
    import torchmetrics  # takes as long as torch to import, and a prediction doesn't need it

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
    """Whether a value consists of numbers and plain words: no dotted name, no path, no class."""
    if isinstance(value, dict):
        return "class_path" not in value and all(isinstance(k, str) and _harmless(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_harmless, value))
    return value is None or isinstance(value, (bool, int, float)) or bool(re.fullmatch(r"[\w -]*", str(value)))


def _plain(value: Any) -> Any:
    """Return the value without anything that a parser could take for a class."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k != "class_path"}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
