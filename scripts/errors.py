"""List the documents that a run gets most wrong, i.e. those with the highest loss, with their source, row and text.

    python scripts/errors.py logs/mine/version_0                           # of the test data, which `test` has measured
    python scripts/errors.py logs/mine/version_0 --split val --top 50      # of the validation data, after `validate`
    python scripts/errors.py logs/mine/version_0/test-other.parquet        # of a test of other data
    python scripts/errors.py logs/mine/version_0 --top 0 --json > all.jsonl    # every document, a JSON object a line

A run is given as its folder, a recipe's folder, or a predictions file. Rows are numbered as in lit_sft's error
messages: from 1, counting a file's header and blank rows. The run's sources are read again, so call this from the
folder where the run was started. A document is looked up by its text, and listed with every row that has this text.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from one_line import in_one_line

from lit_sft.checkpoints import read_config
from lit_sft.data.corpus_config import HUB_SPLITS, PYDOCS
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.pydocs import corpus_file, load_pydocs
from lit_sft.data.readers import iter_rows, open_source, row_options
from lit_sft.data.texts import text_key
from lit_sft.errors import UserError
from lit_sft.evaluation.predictions import FILE, VAL_FILE, Predictions, read_predictions
from lit_sft.runs import read_record
from lit_sft.written_results import predictions_file


class Place(NamedTuple):
    """A row of a source."""

    source: str
    row: int
    text: str


def data_of(file: Path) -> TextDataModule:
    """The data that a predictions file belongs to: its run's, or those named in the record of a test on other data.

    Raises:
        UserError: if neither is found.
    """
    record = (
        read_config(file.parent) if file.name in (FILE, VAL_FILE) else read_record(file.parent, f"{file.stem}.json")
    )
    if not isinstance(options := record.get("data"), dict):
        raise UserError(f"{file}: neither a run's config.yaml nor a test's record beside it names its data")
    return TextDataModule(**{name: value for name, value in options.items() if name != "num_beams"})


def places(data: TextDataModule, split: str) -> Iterator[Place]:
    """Every row of the sources that a split's documents come from, blank ones left out."""
    config = data.corpus_config
    option = split if getattr(config, split) else "labeled"  # validation may be held out, and pydocs has its own splits
    for source in getattr(config, option):
        if source == PYDOCS:
            load_pydocs(data.preparation.cache_dir)
            file = corpus_file(data.preparation.cache_dir)
            rows = ((row, str(file)) for row in iter_rows(file, text_column="text", labels=False))
        else:
            options = row_options(source, True, **config.read_options)  # with labels: only classifiers have predictions
            opened, _ = open_source(source, options, config.classes, HUB_SPLITS[option])
            rows = ((row, its_options.name) for row, its_options in opened)
        yield from (Place(name, row.number, row.text) for row, name in rows if row.text and row.text.strip())


def worst(predictions: Predictions, top: int) -> Predictions:
    """The ``top`` documents of the highest loss, the highest first; 0: all."""
    return predictions.select(np.argsort(-predictions.losses, kind="stable")[: top or None])


def shown(predictions: Predictions, rows: Iterable[Place]) -> list[dict[str, Any]]:
    """Each document as plain values, with the rows that have its text.

    Raises:
        UserError: if no row has the text of a document.
    """
    found: dict[int, list[Place]] = {key: [] for key in predictions.keys.tolist()}
    for place in rows:
        key = int.from_bytes(text_key(place.text.encode("utf-8", "surrogatepass")), "little")
        if key in found:
            found[key].append(place)
    if missing := sum(not found[key] for key in predictions.keys.tolist()):
        raise UserError(f"{missing} of {len(predictions)} documents are not in the sources: have these changed since?")
    names = predictions.label_names
    columns = (predictions.keys, predictions.losses, predictions.labels, predictions.predicted)
    return [
        {
            "loss": loss,
            "label": _named(label, names),
            "predicted": _named(predicted, names),
            "probabilities": dict(zip(names, probabilities.tolist(), strict=True)),
            "rows": [{"source": place.source, "row": place.row} for place in found[key]],
            "text": found[key][0].text,
        }
        for key, loss, label, predicted, probabilities in zip(
            *(column.tolist() for column in columns), predictions.probabilities, strict=True
        )
    ]


def _named(label: int | list[int], names: Sequence[str]) -> str | list[str]:
    """The name of a class; multi-label: the names of the labels that apply."""
    if isinstance(label, int):
        return names[label]
    return [name for name, applies in zip(names, label, strict=True) if applies]


def told(document: dict[str, Any]) -> str:
    """A document formatted for reading: its source and row, its label and prediction, and its text."""
    where = "; ".join(f"{row['source']}, row {row['row']}" for row in document["rows"])
    sides = [f"loss {document['loss']:.3f}"]
    for what in ("label", "predicted"):
        names = document[what] if isinstance(document[what], list) else [document[what]]
        each = ", ".join(f"{name} {document['probabilities'][name]:.3f}" for name in names)
        sides.append(f"{what}: {each or 'none'}")
    text = textwrap.fill(document["text"], 100, initial_indent="    ", subsequent_indent="    ")
    return f"{where}\n  {' | '.join(sides)}\n{text}\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path, help="a run's folder, a recipe's, or a predictions file")
    options.add_argument("--split", choices=("val", "test"), default="test")
    options.add_argument("--top", type=int, default=20, help="how many documents; 0: all")
    options.add_argument("--json", action="store_true", help="a JSON object a line")
    return options


def main() -> None:
    """Print the documents."""
    options = parser().parse_args()
    file = predictions_file(options.run)
    if options.split == "val" and options.run.is_dir():
        file = file.with_name(VAL_FILE)
    if options.split == "val" and file.name != VAL_FILE:
        raise UserError(f"{file} isn't a {VAL_FILE}: for --split val give that file, or the run's folder")
    chosen = worst(read_predictions(file), options.top)
    for document in shown(chosen, places(data_of(file), "val" if file.name == VAL_FILE else "test")):
        print(json.dumps(document, ensure_ascii=False) if options.json else told(document))


if __name__ == "__main__":
    in_one_line(main)
