"""Nearest-neighbour baseline for models that answer prompts: respond as the nearest training prompt was answered.

    python scripts/nearest.py logs/multi30k/version_0               # on the test data of the run
    python scripts/nearest.py logs/multi30k/version_0 --split val

Prompts are compared by TF-IDF of words, uni- and bigrams (sublinear; cosine), and each gets the response of the nearest
training prompt. Prints the figures of the texts as in `test`, with their 95% intervals over the documents. Needs the
extra ``baseline``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from linear import word_features
from one_line import in_one_line

from lit_sft.checkpoints import read_config, stage_folders
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.documents import Documents
from lit_sft.errors import UserError
from lit_sft.evaluation.intervals import bootstrap, figures_once
from lit_sft.evaluation.texts import TextScores

AT_ONCE = 1000  # prompts that are compared with all training prompts together


def nearest_responses(train: Documents, prompts: Sequence[str]) -> list[str]:
    """For each prompt, the response to the nearest training prompt; among equally near ones, to the first."""
    to_features = word_features()
    try:
        known = to_features.fit_transform(list(train.texts))
    except ValueError as error:  # no word in any of them
        raise UserError(f"the training prompts have nothing to compare them by ({error})") from error
    found: list[int] = []
    for first in range(0, len(prompts), AT_ONCE):
        similar = to_features.transform(prompts[first : first + AT_ONCE]) @ known.T
        found += np.asarray(similar.toarray().argmax(1)).tolist()
    return [train.responses[place] for place in found]


def measure(run: Path, split: Literal["val", "test"]) -> dict[str, tuple[float, list[float] | None]]:
    """Each figure on a split of a run's own data, and its interval."""
    options = read_config((stage_folders(run) or [run])[-1]).get("data")
    if options is None:
        raise UserError(f"{run} is no run's folder: it has no config.yaml with its data")
    data = TextDataModule(**options)
    if not data.corpus_config.pairs:
        raise UserError(f"{run} has no prompts with responses (data.response_column)")
    corpus = data.corpus
    documents = {"val": corpus.val, "test": corpus.test}[split]
    if not len(documents):
        raise UserError(f"{run} has no {split} data")
    scores = TextScores.of(nearest_responses(corpus.train, list(documents.texts)), documents.responses)
    intervals = bootstrap(scores.figures, len(documents))
    return {name: (value, intervals[name]) for name, value in figures_once(scores.figures, len(documents)).items()}


def parser() -> argparse.ArgumentParser:
    """What it is called with."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path, help="the folder of a run on prompts with responses, or of a recipe")
    options.add_argument("--split", choices=("val", "test"), default="test")
    return options


def main() -> None:
    """Print a line for each figure."""
    arguments = parser().parse_args()
    for name, (value, interval) in measure(arguments.run, arguments.split).items():
        shown = "" if interval is None else f"  [{interval[0]:.3f}, {interval[1]:.3f}]"
        print(f"{name:12} {value:.3f}{shown}")


if __name__ == "__main__":
    in_one_line(main)
