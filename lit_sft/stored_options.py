"""The options in a checkpoint, to build its model from: a stranger's file is data, and names no code to run."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from lit_sft.checkpoints import Checkpoint
from lit_sft.errors import UserError
from lit_sft.models import Encoder
from lit_sft.objectives import Objective, Term

# What of a stranger's config is followed: plain values of our own options. The optimizer is not: only a fit needs it;
# nor what belongs to the machine: seed, cache and worker processes.
MODEL_OPTIONS = (
    *("stage", "pooling", "head_dropout", "head_hidden_size", "tie_weights_up_to", "adaptive_cutoffs", "loss_chunk"),
)
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
        if named.get(key) not in (None, class_path_of(spec)):
            continue
        if key == "objective" and key in named and not _harmless(_options(spec)):
            continue  # terms of the user's own: they are given again, and only say which heads there are
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


def class_path_of(spec: Any) -> Any:
    """The name of the class that an option names, with its options or alone."""
    return spec.get("class_path") if isinstance(spec, dict) else spec


def _options(spec: Any) -> Any:
    return (spec.get("init_args") or {}) if isinstance(spec, dict) else {}


def _class_spec(path: Path, key: str, spec: Any, named: str | None) -> dict[str, Any]:
    """A class and its options as the parser takes them.

    The options are numbers and plain words: a string that the parser could take for another class, or for the
    file of one, is refused like the class itself.
    """
    name = class_path_of(spec)
    options = _options(spec)
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
    """Whether a value is made of numbers, plain words and terms of ours: no other dotted name, no path, no class."""
    if isinstance(value, dict):
        own = "class_path" not in value or own_class(str(value["class_path"]), Term) is not None
        # a word in the place of a term, or of all of them, would be the name of a file that says what they are
        terms = value.get("terms", [])
        own = own and isinstance(terms, list) and all(isinstance(t, dict) and "class_path" in t for t in terms)
        return own and all(isinstance(k, str) and (k == "class_path" or _harmless(v)) for k, v in value.items())
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
