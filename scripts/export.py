"""Export a model as one file, with the weights, tokenizer, labels and everything needed to rebuild the network.

    python scripts/export.py logs/mine/version_0 model.ckpt

The optimizer state (twice the size of the weights), the random states and the paths of the run's data are left out.
The file can be used with ``lit_sft.load("model.ckpt").predict([...])``, ``predict`` and
``test --ckpt_path model.ckpt --data.test FILE``, and a new run can start from it (``--model.init_from model.ckpt``),
but the original run can't be resumed from it.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import torch
from one_line import in_one_line

from lit_sft.atomic import write_atomically
from lit_sft.checkpoints import read_entries, resolve
from lit_sft.data.extension import EXTEND
from lit_sft.data.tokenization import KINDS

ENTRIES = ("state_dict", "global_step", "epoch", "pytorch-lightning_version")  # what Lightning's `test` needs
PLACES = {"data": ("labeled", "unlabeled", "val", "test", "cache_dir"), "model": ("init_from",)}  # emptied


def exported(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of a checkpoint that a trained model needs."""
    config = entries["lit_sft"]["config"]
    kept: dict[str, Any] = {
        section: config.get(section, {}) | {name: None for name in places if name in config.get(section, {})}
        for section, places in PLACES.items()
    }
    if (tokenizer := kept["data"].get("tokenizer")) not in (*KINDS, EXTEND, None):
        kept["data"]["tokenizer"] = Path(tokenizer).name  # it is in the file
    kept["trainer"] = {"precision": config.get("trainer", {}).get("precision")}
    ours = {name: value for name, value in entries["lit_sft"].items() if name != "ranks"} | {"config": kept}
    return {name: entries[name] for name in ENTRIES if name in entries} | {"lit_sft": ours}


def write_exported(source: Path, target: Path) -> None:
    """Read a checkpoint, and write its exported entries."""
    buffer = io.BytesIO()
    torch.save(exported(read_entries(source)), buffer)
    write_atomically(target, buffer.getvalue())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", help="a run's folder or a checkpoint")
    options.add_argument("target", type=Path, help="the file to write")
    return options


def main() -> None:
    """Write the file."""
    arguments = parser().parse_args()
    source = resolve(arguments.run, "ckpt_path")
    write_exported(source, arguments.target)
    before, after = (path.stat().st_size / 1e6 for path in (source, arguments.target))
    print(f"{arguments.target}: {after:.1f} MB, of the {before:.1f} MB of {source}")


if __name__ == "__main__":
    in_one_line(main)
