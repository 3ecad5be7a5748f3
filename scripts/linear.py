"""TF-IDF + logistic regression on a data module's own labels: the baseline of compare.py and baselines.py."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer

from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.tokens import TokenArray
from lit_sft.data.words import WITHOUT_BLANKS
from lit_sft.errors import UserError, one_line
from lit_sft.evaluation.predictions import FILE, Predictions
from lit_sft.runs import RECORD, write_record

# Words as in scikit-learn, of two letters or more, except that marks (vowel signs, accents) belong to their word, and
# that each letter is a word in scripts without blanks between words, such as Chinese and Thai.
_MARKS = "".join(point for point in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(point)[0] == "M")
OPTIONS = ("C", "class_weight", "min_df", "unlabeled", "components")
_LETTERS = "".join(f"{chr(first)}-{chr(last)}" for first, last in WITHOUT_BLANKS)
WORD = rf"(?=\w)[{_LETTERS}][{_MARKS}]*|(?:[^\W{_LETTERS}]|[{_MARKS}]){{2,}}"
_FITTED: dict[tuple[Any, ...], Pipeline] = {}  # the last one of all training text, which all seeds share


def linear_model(
    data: TextDataModule, options: dict[str, Any], folder: Path | None = None, splits: Sequence[str] = ("val", "test")
) -> dict[str, float]:
    """TF-IDF (uni- and bigrams, sublinear) + logistic regression on the data module's own labels.

    Args:
        data: the data module, after setup; its low-shot subsets of train and validation are used.
        options: ``C`` (inverse strength of the regularisation), ``class_weight``, and those of :func:`fitted_features`.
        folder: where to write the test predictions, in the same format as a network's, and the seed; None: nowhere.
        splits: the splits to measure, "val" and "test" or one of them.
    """
    if data.multilabel:
        raise UserError("the linear model needs one label a document, and the data have any number of them")
    corpus, prepared = data.corpus, data.prepared
    chosen = {
        "train": corpus.train.select(low_shot_positions(prepared.train, data.train)),
        "val": corpus.val.select(low_shot_positions(prepared.val, data.val)),
        "test": corpus.test,
    }
    model = LogisticRegression(C=options["C"], max_iter=1000, class_weight=options.get("class_weight"))
    texts = {split: [data.tokenizer.normalized(t) for t in chosen[split].texts] for split in ("train", *splits)}
    try:
        to_features, of_train = fitted_features(data, options, texts["train"])
        model.fit(of_train, chosen["train"].labels)
    except ValueError as error:  # no word in any text, more components than words, or one class alone
        raise UserError(f"TF-IDF + logistic regression with {options}: {one_line(error)}") from error
    figures = {}
    for split in splits:
        features, labels = to_features.transform(texts[split]), chosen[split].labels
        predicted = model.predict(features)
        figures[f"{split}_macro_f1"] = float(f1_score(labels, predicted, average="macro"))
        figures[f"{split}_accuracy"] = float(accuracy_score(labels, predicted))
        if split == "test" and folder is not None:
            write_record(folder / RECORD, {"seed": data.seed})
            linear_predictions(data, model, features).write(folder / FILE)
    return figures


def word_features(min_df: int = 1) -> TfidfVectorizer:
    """TF-IDF of words, uni- and bigrams, not fitted yet."""
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=min_df, token_pattern=WORD)


def fitted_features(data: TextDataModule, options: dict[str, Any], labeled: Sequence[str]) -> tuple[Pipeline, Any]:
    """TF-IDF of uni- and bigrams, fitted to the labeled or all training texts; and the labeled texts' features.

    Args:
        data: the data module, after setup.
        options: ``min_df``; ``unlabeled``, true to fit words and their weights to all training text, which a language
            model reads as well; ``components``, the number of directions to project them on (latent semantic analysis,
            Deerwester et al. 1990).
        labeled: the labeled training texts, normalized.
    """
    min_df, components = options.get("min_df", 1), options.get("components")
    steps: list[Any] = [word_features(min_df)]
    if components:
        steps += [TruncatedSVD(components, random_state=0), Normalizer()]
    found = make_pipeline(*steps)
    if not options.get("unlabeled"):
        return found, found.fit_transform(labeled)
    key = (data.preparation.config.fingerprint(), data.tokenizer.digest, min_df, components)
    if key not in _FITTED:
        found.fit([data.tokenizer.normalized(text) for text in chain(data.corpus.train.texts, data.corpus.extra.texts)])
        _FITTED.clear()  # they are large, and the seeds of a point follow one another
        _FITTED[key] = found
    return _FITTED[key], _FITTED[key].transform(labeled)


def linear_predictions(data: TextDataModule, model: LogisticRegression, features: Any) -> Predictions:
    """A fitted linear model's predictions in the format of a network's; ``features`` are those of the test documents.

    A class without training documents has the probability 0.
    """
    test, names = data.prepared.test, data.label_names
    probabilities = np.zeros((len(test), len(names)))
    probabilities[:, [names.index(label) for label in model.classes_]] = model.predict_proba(features)
    labels = np.asarray(test.labels)
    return Predictions(
        label_names=names,
        documents=np.arange(len(test)),
        keys=np.asarray(test.keys),
        labels=labels,
        predicted=np.array([names.index(label) for label in model.predict(features)]),
        losses=-np.log(probabilities[np.arange(len(test)), labels].clip(1e-12)),
        probabilities=probabilities,
        clean=data.test_is_clean,
    )


def low_shot_positions(whole: TokenArray, part: TokenArray) -> np.ndarray:
    """Positions of a subset's documents in the whole, matched by their start in the token array and their key."""
    place = {(int(s), int(k)): i for i, (s, k) in enumerate(zip(whole.starts, whole.keys, strict=True))}
    return np.array([place[int(s), int(k)] for s, k in zip(part.starts, part.keys, strict=True)], dtype=np.int64)
