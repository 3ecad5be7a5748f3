"""Print the contamination gate's counts for the data of a config, and the seconds that counting takes.

    python scripts/contamination.py configs/data/imdb.yaml
    python scripts/contamination.py labeled=train.tsv test=test.tsv header=false text_column=0 label_column=1

Every source is read again, without the cache. Options (YAML values) override the config's.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from pathlib import Path
from typing import Any

import yaml
from one_line import in_one_line

from lit_sft.data.corpus import load_corpus
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.textdata import TextData
from lit_sft.errors import UserError, nearest, one_line
from lit_sft.options import GROUPS, read_yaml


def data_options(path: Path) -> dict[str, Any]:
    """The data options of a config: its ``data`` mapping, the file that ``data`` names, or the config itself.

    Raises:
        UserError: if it is a recipe, whose stages may have different data options, or has no mapping of options.
    """
    content = read_yaml(path)
    if "stages" in content:
        raise UserError(f"{path} is a recipe: give the config of one of its stages")
    if "data" not in content and {*GROUPS, "seed_everything"} & set(content):
        return {}
    options = content.get("data", content) or {}
    if isinstance(options, str):
        return data_options(path.parent / options)
    if not isinstance(options, dict):
        raise UserError(f"{path}: data must hold options, not {options!r}")
    return with_names(options)


def with_names(options: dict[str, Any]) -> dict[str, Any]:
    """Options as the data module takes them: names of columns, which are numbers without a header, become strings.

    Raises:
        UserError: if the data module has no such option.
    """
    known = list(inspect.signature(TextData).parameters)
    for name in options:
        if name not in known:
            raise UserError(f"no option data.{name}; {nearest(str(name), known).strip() or 'see fit --help'}")
    columns = ("text_column", "label_column", "response_column")
    return {name: str(value) if name in columns and value is not None else value for name, value in options.items()}


def options_of(arguments: list[str]) -> dict[str, Any]:
    """The data options from config files and ``name=value`` arguments; later ones override earlier ones.

    Raises:
        UserError: a value is not YAML, and for the reasons of :func:`data_options`.
    """
    options: dict[str, Any] = {}
    for argument in arguments:
        name, is_option, value = argument.partition("=")
        try:
            options |= {name: yaml.safe_load(value)} if is_option else data_options(Path(argument))
        except yaml.YAMLError as error:
            raise UserError(f"{argument}: not valid YAML, quote it for YAML too: {one_line(error)}") from error
    return with_names(options)


def count(options: dict[str, Any]) -> dict[str, Any]:
    """The gate's report, with the seconds for reading and splitting, and the extra seconds for gate and duplicates.

    Raises:
        UserError: if there are no test documents.
    """
    preparation = TextDataModule(**options).preparation
    started = time.perf_counter()
    preparation.ungated()
    read = time.perf_counter()
    corpus = load_corpus(preparation.config, preparation.cache_dir)
    ended = time.perf_counter()
    if corpus.gate is None:
        raise UserError("there are no test documents: set test=FILE")
    seconds = {"reading": read - started, "gate": ended - read - (read - started)}
    return {**corpus.gate.report(), "seconds": {name: round(value, 1) for name, value in seconds.items()}}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("given", nargs="+", metavar="CONFIG|NAME=VALUE", help="a config, or a data option")
    return options


def main() -> None:
    """Print the report."""
    print(json.dumps(count(options_of(parser().parse_args().given)), indent=2))


if __name__ == "__main__":
    in_one_line(main)
