"""Compare a finished recipe's test result with training from scratch and TF-IDF + logistic regression on its labels.

    python scripts/compare.py logs/quickstart/version_0 --scratch configs/quickstart/scratch.yaml
    python scripts/compare.py logs/mine/version_0 --scratch configs/own/scratch.yaml

The from-scratch network takes data options, tokenizer, seed, encoder class, encoder sizes and precision from the run,
and all else from its config. It is trained once, for a first look; scripts/baselines.py makes a table with seeds and
intervals.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from baselines import as_flags, run_network
from linear import linear_model
from one_line import in_one_line

from lit_sft.checkpoints import stage_folders
from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import UserError
from lit_sft.runs import read_record
from lit_sft.starting import SIZES
from lit_sft.stored_options import own_encoder

INVERSE_STRENGTHS = (1, 3, 10, 30, 100)  # of the linear model's regularisation, chosen on validation


def compare(run: Path, scratch: Path) -> dict[str, dict[str, float]]:
    """Test figures of the three rows, which share their labels, tokens and validation data."""
    finetune = (stage_folders(run) or [run])[-1]
    config = yaml.safe_load((finetune / "config.yaml").read_text(encoding="utf-8"))
    record = read_record(finetune)
    if "test" not in record:
        raise UserError(f"{finetune} was not tested: run it again with --data.test FILE")
    if "bleu" in record["test"]:
        raise UserError(f"{finetune} answers prompts: scripts/nearest.py has the row to compare it with")
    if "micro_f1" in record["test"]:
        raise UserError(f"{finetune} gives a document any number of labels, and the linear model one")
    rows: dict[str, dict[str, float]] = {"pretrained": record["test"]}
    seed, options = config["seed_everything"], {k: v for k, v in config["data"].items() if k != "seed"}
    options["tokenizer"] = str(finetune / "tokenizer.json")  # an earlier stage may have chosen it
    with tempfile.TemporaryDirectory() as temporary:
        same_data = Path(temporary) / "data.yaml"
        same_data.write_text(yaml.safe_dump({"data": options}, sort_keys=False), encoding="utf-8")
        arguments = ["--config", str(scratch), "--config", str(same_data), f"--seed_everything={seed}"]
        arguments += [f"--trainer.precision={config['trainer']['precision'] or 'null'}", *encoder_of(config)]
        arguments.append("--model.init_from=null")  # whatever the config says
        folder = run_network(arguments, f"{run.resolve().parent.name}-scratch", test=True)
    rows["from scratch"] = read_record(folder)["test"]
    data = TextDataModule(**options, seed=seed)
    data.prepare_data()
    data.setup()
    tried = {c: linear_model(data, {"C": c, "min_df": 1}, splits=("val",)) for c in INVERSE_STRENGTHS}
    best = max(tried, key=lambda c: tried[c]["val_macro_f1"])
    rows["TF-IDF + LR"] = linear_model(data, {"C": best, "min_df": 1}, splits=("test",))
    return rows


def encoder_of(config: dict[str, Any]) -> list[str]:
    """A run's encoder as flags: its class and sizes; if it is user code, all options, as any may be a size."""
    encoder = config["model"]["encoder"]
    name, options = encoder["class_path"], encoder.get("init_args") or {}
    if own_encoder(name) is None:
        return as_flags({"model.encoder": encoder})
    sizes = {f"model.encoder.{key}": options[key] for key in SIZES if key in options}
    return as_flags({"model.encoder": name} | sizes)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path, help="the folder of a finished recipe")
    options.add_argument("--scratch", type=Path, required=True, help="the fine-tuning config of the from-scratch row")
    return options


def main() -> None:
    """Print the rows."""
    arguments = parser().parse_args()
    rows = compare(arguments.run, arguments.scratch)
    print(f"\n{'test':<16}macro-F1  accuracy")
    for name, figures in rows.items():
        f1, accuracy = (100 * figures.get(k, figures.get(f"test_{k}", np.nan)) for k in ("macro_f1", "accuracy"))
        print(f"{name:<16}{f1:8.1f}  {accuracy:8.1f}")


if __name__ == "__main__":
    in_one_line(main)
