"""Ablation of a recipe: variants that change it in one place, measured on validation data alone.

    python scripts/parts.py --parts scripts/search/pydocs_parts.yaml --out scripts/results/pydocs_parts.csv

A variant's pretraining is run once (variants that only change the fine-tuning share the recipe's), its fine-tuning for
each label count and seed. Each run appends a line to the CSV, and runs that are already in the CSV are skipped, unless
flags, configs or ``init_from`` have changed. (If the text in the files that these name has changed, start a new CSV.) A
run that ends sick is reported at the end, and tried again by the next call. Two calls with ``--only`` for different
variants may run at the same time, once the pretrainings that they share exist.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from baselines import as_flags, digest, run_network, whole_config
from contamination import data_options
from one_line import in_one_line
from report import append_line, line, read_lines, spread

from lit_sft.checkpoints import resolve
from lit_sft.errors import SickRun, UserError, nearest
from lit_sft.options import read_yaml
from lit_sft.runs import read_record, run_folder_of

FIGURES = ("perplexity", "bits_per_byte", "macro_f1", "accuracy")  # of validation; first the language model's
STAGES = ("pretrain", "finetune", "both")
Flags = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The parts file: see scripts/search/pydocs_parts.yaml.

    ``recipe``: flags of every variant beside the configs, by stage or for both; a variant's ``without`` names those of
    them that it leaves out. Options of one class add up, those of the config, too: an option that the config has is
    taken out by its value for "off". ``init_from``: the run that has the recipe's own pretraining, or a recipe's;
    without it that is run, too.
    """

    pretrain: Path
    finetune: Path
    seeds: int
    labels: dict[int | str, Flags]  # by labels a class, or "all"
    variants: dict[str, dict[str, Any]]
    recipe: dict[str, Flags] = field(default_factory=dict)
    init_from: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Parts:
        """Read the file; UserError where it isn't one."""
        content = read_yaml(path)
        if missing := [name for name in ("pretrain", "finetune", "seeds", "labels", "variants") if name not in content]:
            raise UserError(f"{path}: give {', '.join(missing)}")
        _mapping(str(path), content, [one.name for one in fields(cls)])
        _check(path, content["labels"], content.get("recipe", {}), content["variants"])
        paths: Flags = {key: Path(content[key]) for key in ("pretrain", "finetune", "init_from") if key in content}
        return cls(**content | paths)

    def flags(self, variant: str, stage: str) -> Flags:
        """A variant's flags of ``pretrain`` or ``finetune``: the recipe's, and over them its own."""
        if variant not in self.variants:
            raise UserError(f"no variant {variant!r}: there are {', '.join(map(repr, self.variants))}")
        changes = self.variants[variant]
        left_out = changes.get("without", [])
        kept = {key: value for key, value in self._own(stage).items() if key not in left_out}
        merged: Flags = kept | changes.get("both", {}) | changes.get(stage, {})
        return merged

    def is_own_pretraining(self, flags: Flags) -> bool:
        """Whether flags are those of the recipe's own pretraining."""
        return flags == self._own("pretrain")

    def config(self, variant: str) -> str:
        """A hash of everything but the flags that a variant's runs depend on: the configs and ``init_from``."""
        start = self.init_from if self.is_own_pretraining(self.flags(variant, "pretrain")) else None
        return digest([str(start) if start else whole_config(self.pretrain), whole_config(self.finetune)])

    def _own(self, stage: str) -> Flags:
        return self.recipe.get("both", {}) | self.recipe.get(stage, {})


def _check(path: Path, labels: Any, recipe: Any, variants: Any) -> None:
    """Raise a UserError for entries that no run would read: a mistyped key would leave the recipe as it is."""
    for count, flags in _mapping(f"{path}, labels", labels).items():
        if count != "all" and not isinstance(count, int):
            raise UserError(f"{path}, labels: give a number of labels a class, or all, not {count}")
        _mapping(f"{path}, labels, {count}", flags)
    for stage, flags in _mapping(f"{path}, recipe", recipe, STAGES).items():
        _mapping(f"{path}, recipe, {stage}", flags)
    its = [str(flag) for flags in recipe.values() for flag in flags]
    for variant, changes in _mapping(f"{path}, variants", variants).items():
        where = f"{path}, variants, {variant}"
        for key, flags in _mapping(where, changes, (*STAGES, "without")).items():
            if key != "without":
                _mapping(f"{where}, {key}", flags)
            elif not isinstance(flags, list):
                raise UserError(f"{where}, without: give a list of flags, not {flags!r}")
            elif absent := [str(flag) for flag in flags if flag not in its]:
                raise UserError(
                    f"{where}, without: {absent[0]} is no flag of the recipe; {nearest(absent[0], its)}".rstrip("; ")
                )


def _mapping(where: str, found: Any, known: Sequence[str] = ()) -> dict[Any, Any]:
    """Return ``found`` if it is a mapping; UserError if it isn't one, or has an unknown key."""
    if not isinstance(found, dict):
        raise UserError(f"{where}: give a mapping ({{}} is an empty one), not {found!r}")
    if known and (unknown := [str(key) for key in found if key not in known]):
        raise UserError(f"{where}: no key {unknown[0]}; {nearest(unknown[0], known)}it has {', '.join(known)}")
    return found


def pretrained(parts: Parts, flags: Flags) -> Path:
    """The folder of the pretraining with these flags, run if it isn't there yet."""
    if parts.init_from is not None and parts.is_own_pretraining(flags):
        folder = run_folder_of(resolve(parts.init_from, "init_from"))
        if folder is None or "val" not in read_record(folder):
            raise UserError(f"init_from: {parts.init_from} is no finished run, and the table tells its figures")
        return folder
    config = {"config": digest(whole_config(parts.pretrain)), "data": data_options(parts.pretrain)}
    name = _name(flags | config)  # changed, it is another pretraining
    for folder in sorted(Path("logs", name).glob("version_*")):
        if (folder / "metrics.json").is_file():
            return folder
    return run_network(["--config", str(parts.pretrain), *as_flags(flags)], name, test=False)


def run(parts: Parts, variant: str, path: Path) -> list[str]:
    """Every fine-tuning of one variant that the CSV doesn't have; returns what ended sick (its loss isn't finite)."""
    sick: list[str] = []
    for labels, options in parts.labels.items():
        there = {int(row["seed"]) for row in rows_of(parts, path, variant, labels)}
        for seed in set(range(parts.seeds)) - there:
            try:
                model = pretrained(parts, parts.flags(variant, "pretrain"))
            except SickRun:
                return [f"{variant}, pretraining"]
            flags = options | parts.flags(variant, "finetune")
            flags |= {"seed_everything": seed, "model.init_from": str(model)}
            flags["data.labels_per_class"] = None if labels == "all" else labels
            arguments = ["--config", str(parts.finetune), *as_flags(flags)]
            try:
                folder = run_network(arguments, _name({"variant": variant}), test=False)
            except SickRun:
                sick.append(f"{variant}, {labels} labels, seed {seed}")
                continue
            found = read_record(model)["val"] | read_record(folder).get("val", {})
            if missing := [name for name in FIGURES if name not in found]:
                raise UserError(f"{folder}: its validation has no {' and no '.join(missing)}, which the table tells")
            row = {"variant": variant, "labels": labels, "seed": seed} | {k: found[k] for k in FIGURES}
            append_line(path, {k: str(v) for k, v in row.items()} | _ran_with(parts, variant, labels))
            shutil.rmtree(folder / "checkpoints")  # a table leaves many runs behind
    return sick


def rows_of(parts: Parts, path: Path, variant: str, labels: int | str) -> list[dict[str, str]]:
    """The CSV's lines of one variant and label count, with the flags and configs that these have now.

    (In an older file without these columns, all rows are used, since it doesn't say what they ran with.)
    """
    now = _ran_with(parts, variant, labels)
    rows = [row for row in read_lines(path) if (row["variant"], row["labels"]) == (variant, str(labels))]
    return [row for row in rows if all(row.get(column, value) == value for column, value in now.items())]


def _ran_with(parts: Parts, variant: str, labels: int | str) -> dict[str, str]:
    stages = {stage: parts.flags(variant, stage) for stage in ("pretrain", "finetune")}
    flags = json.dumps([parts.labels[labels], stages], sort_keys=True)
    return {"flags": flags, "config": parts.config(variant)}


def table(parts: Parts, path: Path) -> str:
    """A Markdown table: a line a variant, validation macro-F1 in percent, mean ± standard deviation over seeds.

    A label count that a variant has no runs of is an empty cell; a variant without any run is left out.
    """
    counts = list(parts.labels)
    heads = [f"{n} labels" + " a class" * (n != "all") for n in counts]
    head = ["variant", "perplexity", "bits per byte", *heads]
    lines = [line(head), line(["---"] * len(head))]
    for variant in parts.variants:
        cells = [rows_of(parts, path, variant, labels) for labels in counts]
        if not any(cells):
            continue
        first = next(row for cell in cells for row in cell)
        language_model = [f"{float(first[k]):.{n}f}" for k, n in (("perplexity", 1), ("bits_per_byte", 3))]
        scores = [[100 * float(row["macro_f1"]) for row in cell] for cell in cells]
        lines.append(line([variant, *language_model, *map(spread, scores)]))
    return "\n".join(lines)


def _name(flags: Flags) -> str:
    return "parts-" + hashlib.sha256(json.dumps(flags, sort_keys=True).encode()).hexdigest()[:8]


def parser() -> argparse.ArgumentParser:
    """What it is called with."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--parts", type=Path, required=True, help="YAML: configs, label counts, seeds, variants")
    options.add_argument("--out", type=Path, required=True, help="the CSV of all runs")
    options.add_argument("--only", nargs="+", metavar="VARIANT", help="these variants alone")
    return options


def main() -> None:
    """Fill the CSV, then print the table."""
    arguments = parser().parse_args()
    parts = Parts.read(arguments.parts)
    if data_options(parts.finetune).get("response_column"):
        raise UserError(f"{parts.finetune}: prompts with responses have no macro-F1, which the table tells")
    variants = arguments.only or list(parts.variants)
    for variant in variants:
        parts.config(variant)  # an unknown variant or a missing config is told before the others run
    sick = [one for variant in variants for one in run(parts, variant, arguments.out)]
    print(table(parts, arguments.out))
    if sick:
        raise SickRun(f"{arguments.out} is without runs that ended sick: {'; '.join(sick)}")


if __name__ == "__main__":
    in_one_line(main)
