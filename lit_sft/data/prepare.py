"""Prepared data: a trained tokenizer and token arrays, cached by fingerprint.

There are two levels, both written under a temporary name and then renamed, so that no run sees unfinished files:
``tokenizers/KEY.json`` (named by all sources and options of the corpus, and by the tokenizer's options) and
``tokens/KEY/`` (by the corpus and the tokenizer). A run that takes its tokenizer from a checkpoint shares the
arrays of the run that made it.
Hashing every source at each start costs about a second per gigabyte; data of a changed file are never reused.
Texts are kept on disk (:mod:`lit_sft.data.texts`): memory grows with the number of documents and, while a tokenizer is
trained, with the number of distinct words, but not with the amount of text.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from lit_sft.atomic import write_atomically
from lit_sft.data.corpus import Corpus, load_corpus
from lit_sft.data.corpus_config import CorpusConfig
from lit_sft.data.extension import EXTEND, NO_BASE, extended
from lit_sft.data.labels import from_plain, label_array, to_plain
from lit_sft.data.pairs import read_texts, write_texts
from lit_sft.data.sources import expanded
from lit_sft.data.splits import sample
from lit_sft.data.texts import joined
from lit_sft.data.tokenization import KINDS, Tokenizer, TokenizerKind
from lit_sft.data.tokens import TokenArray, read_tokens, write_tokens
from lit_sft.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 8  # raise it when what a prepared folder holds changes
ARRAYS = ("unlabeled", "val", "test")
BPE_BYTES = 100_000_000  # of text to learn merges from: the library takes seven times that; IMDb is smaller


@dataclass(frozen=True)
class Prepared:
    """Token arrays of every split.

    ``unlabeled`` is the language model's text: the training documents, then the extra ones. ``multilabel``: a document
    may have several labels, or none, instead of exactly one. ``repeats`` counts repeated documents
    (:func:`lit_sft.data.repeats.count_repeats`). ``contamination`` holds the gate's counts as plain values
    (:meth:`lit_sft.data.contamination.Gate.report`; empty if nothing was compared). ``clean``, bool (test documents,),
    is True if neither training nor validation data hold a copy of the document.
    """

    tokenizer: Tokenizer
    label_names: list[str]
    train: TokenArray
    val: TokenArray
    test: TokenArray
    unlabeled: TokenArray
    notes: list[str]
    multilabel: bool
    repeats: dict[str, int]
    contamination: dict[str, Any]
    clean: np.ndarray
    folder: Path

    def pair_texts(self, split: Literal["val", "test"]) -> tuple[list[str], list[str]]:
        """The prompts and the responses of a split as they were read."""
        return read_texts(self.folder, split)


@dataclass(frozen=True)
class TokenizerOptions:
    """Options of a tokenizer that is trained here, named as in :meth:`Tokenizer.train`."""

    vocab_size: int
    lowercase: bool
    min_frequency: int
    replace: dict[str, str]

    def plain(self) -> list[Any]:
        """The options for a hash, with the replacements as a list, since their order matters."""
        return [self.vocab_size, self.lowercase, self.min_frequency, list(self.replace.items())]


class Preparation:
    """Makes and finds the prepared data of one corpus and one tokenizer choice.

    Args:
        config: the corpus.
        kind: ``bpe``, ``word``, ``whitespace``, ``extend``, or the path of a ``tokenizer.json``.
        options: of a tokenizer that is trained here.
        cache_dir: where prepared data are kept; safe to delete.
    """

    def __init__(self, config: CorpusConfig, kind: str, options: TokenizerOptions, cache_dir: Path) -> None:
        self.config, self.kind, self.options, self.cache_dir = config, kind, options, cache_dir
        self.base: Tokenizer | None = None  # for `extend`: the tokenizer of the checkpoint that a run starts from
        self._tokenizer: Tokenizer | None = None

    def read_instead(self, config: CorpusConfig) -> None:
        """Switch to another corpus, discarding what is cached of the one before."""
        self.config = config
        for known in ("digests", "fingerprint", "corpus"):
            self.__dict__.pop(known, None)

    @cached_property
    def digests(self) -> dict[str, dict[str, str]]:
        """For each option that names sources, a hash of each source's content."""
        return self.config.digests()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the corpus's options and of its sources' content."""
        return self.config.fingerprint(self.digests)

    @cached_property
    def corpus(self) -> Corpus:
        """The documents themselves, read only when something must be made from them; ``make`` releases them."""
        return load_corpus(self.config, self.cache_dir)

    def ungated(self) -> Corpus:
        """The documents as they are read, without the contamination gate, to look at labels and sizes."""
        return load_corpus(self.config, self.cache_dir, gated=False)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "corpus"}  # it has a file open

    def tokenizer(self) -> Tokenizer:
        """The given tokenizer, the cached one, or one trained on the training text (labeled and unlabeled) alone."""
        if self._tokenizer is None:
            self._tokenizer = self._find_tokenizer()
        return self._tokenizer

    def _find_tokenizer(self) -> Tokenizer:
        if self.kind not in (*KINDS, EXTEND):
            if self.options.lowercase or self.options.replace:
                log.warning("data.lowercase and data.replace are not used: %s has its own", self.kind)
            return Tokenizer.given(self.kind)
        if self.kind == EXTEND and self.base is None:
            raise UserError(NO_BASE)
        base = [self.base.digest] if self.base else []
        path = self.cache_dir / "tokenizers" / f"{_key(self.fingerprint, self.kind, *self.options.plain(), *base)}.json"
        if not path.is_file():
            corpus = self.corpus
            texts = joined(corpus.train.texts, corpus.extra.texts)
            if corpus.pairs:
                texts = joined(texts, corpus.train.responses)
            write_atomically(path, self._trained(texts).to_json())
        return Tokenizer.from_file(path)

    def _trained(self, texts: Sequence[str]) -> Tokenizer:
        chosen = sample(texts, BPE_BYTES) if self.kind == "bpe" else texts
        log.info("training a tokenizer (%s) on %s of %s documents", self.kind, len(chosen), len(texts))
        options = self.options
        if self.base is not None:
            return extended(self.base, chosen, options.vocab_size, options.min_frequency)
        return Tokenizer.train(chosen, cast(TokenizerKind, self.kind), **vars(options))

    def folder(self, tokenizer: Tokenizer) -> Path:
        """Where the token arrays of this corpus and ``tokenizer`` are kept."""
        return self.cache_dir / "tokens" / _key(self.fingerprint, tokenizer.digest)

    def make(self, tokenizer: Tokenizer) -> None:
        """Write the token arrays that don't exist yet."""
        folder = self.folder(tokenizer)
        if not all((folder / name / "meta.json").is_file() for name in ("", *ARRAYS)):
            self._write(folder, tokenizer)
        self.__dict__.pop("corpus", None)  # so that its texts take no disk space during hours of training

    def _write(self, folder: Path, tokenizer: Tokenizer) -> None:
        corpus = self.corpus
        index = corpus.label_index or None
        text = corpus.train + corpus.extra
        for name, documents in zip(ARRAYS, (text, corpus.val, corpus.test), strict=True):
            if (folder / name / "meta.json").is_file():
                continue
            pairs = corpus.train if name == "unlabeled" else documents
            responses = pairs.responses if corpus.pairs else None
            try:
                if corpus.pairs and name != "unlabeled":
                    write_texts(folder, name, documents)
                write_tokens(folder / name, documents, None if name == "unlabeled" else index, tokenizer, responses)
            except OSError as error:
                raise UserError(f"--data.cache_dir: {folder} can't be written: {error.strerror or error}") from error
        meta = {
            "label_names": corpus.label_names,
            "num_train": len(corpus.train),
            "multilabel": corpus.multilabel,
            "train_labels": to_plain(label_array(corpus.train, index)) if index and corpus.train.labels else [],
            "notes": corpus.notes,
            "repeats": corpus.repeats,
            "contamination": corpus.gate.report() if corpus.gate else {},
            "copied": np.flatnonzero(~corpus.gate.clean).tolist() if corpus.gate else [],  # test documents
        }
        write_atomically(folder / "meta.json", json.dumps(meta))

    def read(self, tokenizer: Tokenizer) -> Prepared:
        """The prepared arrays, memory-mapped; ``make`` must have run."""
        folder = self.folder(tokenizer)
        meta = _read_meta(folder)
        unlabeled = read_tokens(folder / "unlabeled")
        # The training documents are the first of the unlabeled text: one array on disk serves both.
        train = unlabeled.select(np.arange(meta["num_train"]))
        if len(meta["train_labels"]):
            train = replace(train, labels=meta["train_labels"])
        test = read_tokens(folder / "test")
        clean = np.ones(len(test), dtype=bool)
        clean[meta["copied"]] = False
        return Prepared(
            tokenizer=tokenizer,
            label_names=meta["label_names"],
            train=train,
            val=read_tokens(folder / "val"),
            test=test,
            unlabeled=unlabeled,
            notes=meta["notes"],
            multilabel=meta["multilabel"],
            repeats=meta["repeats"],
            contamination=meta["contamination"],
            clean=clean,
            folder=folder,
        )


def _read_meta(folder: Path) -> dict[str, Any]:
    """Read the metadata that ``make`` stored with the arrays; ``train_labels`` becomes an array.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        whole = isinstance(meta["num_train"], int) and all(
            isinstance(meta[name], list) for name in ("label_names", "train_labels", "notes", "copied")
        )
        whole = whole and all(isinstance(meta[name], dict) for name in ("contamination", "repeats"))
        meta["train_labels"] = from_plain(meta["train_labels"], len(meta["label_names"]), meta["multilabel"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"cannot read {folder / 'meta.json'} ({error}): delete that folder and run again") from error
    if not whole or len(meta["train_labels"]) not in (0, meta["num_train"]):
        raise UserError(f"{folder / 'meta.json'} is damaged: delete that folder and run again")
    return meta


def default_cache_dir() -> Path:
    """``LIT_SFT_CACHE``, else ``lit_sft`` in the user's cache folder.

    Raises:
        UserError: neither is named, and the user has no home folder.
    """
    if named := os.environ.get("LIT_SFT_CACHE"):
        return expanded(named)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise UserError("no home folder to keep prepared data in: give --data.cache_dir or LIT_SFT_CACHE") from error
    return expanded(Path(base) / "lit_sft")


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()[:24]
