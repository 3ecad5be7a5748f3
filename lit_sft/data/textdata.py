"""Named sources in, token arrays of every split out."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_sft.data.adopted import Adopted
from lit_sft.data.batches import Direction
from lit_sft.data.contamination import told
from lit_sft.data.corpus import Corpus
from lit_sft.data.corpus_config import CorpusConfig, Sources
from lit_sft.data.labels import label_array, label_counts
from lit_sft.data.prepare import Preparation, Prepared, TokenizerOptions, default_cache_dir
from lit_sft.data.provenance import Provenance
from lit_sft.data.sources import expanded
from lit_sft.data.splits import low_shot
from lit_sft.data.tokenization import Tokenizer
from lit_sft.data.tokens import TokenArray
from lit_sft.errors import UserError

Split = Literal["train", "val", "test"]


class TextData:
    """The documents that a user names, prepared; :class:`lit_sft.data.datamodule.TextDataModule` makes batches of them.

    Args:
        labeled: labeled training data: ``pydocs``, or sources: a file (CSV, TSV, JSONL, Parquet, also with a further
            ``.gz``), ``FORMAT:FILE`` if the suffix doesn't show the format (``label_text``, ``fasttext``), a folder
            of files, a folder with a folder of text files for each class, or ``hf:NAME[:CONFIG][:SPLIT]``.
        unlabeled: more text for the language model, which reads the labeled training documents in any case; text files
            are a document a line, ``file:PATH`` is a document a file, ``wikitext:FILE`` the articles of WikiText.
        val: validation data; without it a seeded part of ``labeled`` is held out, with all labels that have two texts.
        test: test data: only ``test`` evaluates on it; a fit counts its copies in the other data, or leaves them out.
        text_column, label_column: columns of the text ("text", or the only column of strings) and the label ("label").
        response_column: column of the response to the prompt in ``text_column``; such data have no labels.
        header: whether CSV and TSV files start with column names; without them columns are "0", "1", and so on.
        encoding: of text, CSV, TSV and JSONL files.
        separator: the string between label and text in ``label_text`` files, a tab by default.
        label_pattern: a regular expression that finds the label in the file's label field: its first group, or its
            whole match if it has no group.
        label_separator: splits the labels of multi-label data; a list in JSONL and Parquet needs none.
        label_names: maps labels as written in the files to names; its order is the order of the classes.
        val_fraction: the share of the training documents held out if ``val`` is not given.
        remove_test_copies: leave copies of test documents, exact and near, out of all other data, labeled,
            unlabeled and ``val``, before any other step. Copies are counted and reported in any case.
        split_seed: draws the held-out part; separate from ``seed``, so that runs of several seeds share it.
        tokenizer: ``bpe`` (byte-level), ``word``, ``whitespace`` (for text that was tokenised before: a newline is an
            ``<eos>``, ``<unk>`` the unknown word), or the path of a ``tokenizer.json``. A run with ``init_from`` or
            ``ckpt_path`` takes the checkpoint's. ``extend`` adds the words of this training text to the
            tokenizer of ``init_from``, whose lower-casing and replacements stay.
        vocab_size: maximum number of entries of a tokenizer trained here (0: all words), or of an extended one, its old
            entries included; bpe learns from at most 100 MB.
        lowercase, replace: a tokenizer trained here lower-cases the text, after replacing the matches of regular
            expressions by strings.
        min_frequency: a merge (bpe) or word below this count gets no entry.
        direction: ``backward`` reads every document from its last token to its first, for a language model that
            predicts each token from those after it, and a classifier on top of it. By default that of the checkpoint
            that the run starts from or resumes, else ``forward``.
        max_length: maximum number of tokens that are read of a document (by the classifier), or of a prompt.
        max_response_length: maximum number of tokens that are learned of a response, or generated for one.
        truncation: which tokens of a longer one are kept: its ``head``, ``tail``, or half from each (``head_tail``).
        batch_size: streams read side by side in pretraining, over all processes.
        bptt: tokens of each stream in a batch: gradients stop there, the hidden state goes on.
        random_bptt: draw that length anew for each training batch, around ``bptt``, and scale its step's rate by it.
        max_tokens: padded tokens in a batch of documents, at most.
        max_documents: documents in a training batch, at most, over all processes; evaluation has no such cap.
        max_unlabeled_documents: the same for unlabeled ones, where the objective reads both in one step.
        labels_per_class: train on this many documents of each class, drawn by ``seed``; a larger subset contains the
            smaller ones. Multi-label: the union of the documents drawn for each label.
        val_labels_per_class: the same for validation, drawn by ``split_seed``.
        seed: order of documents and batches, and the low-shot subset. The command line sets it to ``seed_everything``.
        num_workers: loader processes; 0 is fastest for text in memory-mapped arrays.
        cache_dir: where prepared data are kept (default: ``LIT_SFT_CACHE``, else the user's cache folder).
    """

    def __init__(
        self,
        labeled: Sources = "pydocs",
        unlabeled: Sources = None,
        val: Sources = None,
        test: Sources = None,
        text_column: str | None = None,
        label_column: str | None = None,
        response_column: str | None = None,
        header: bool = True,
        encoding: str = "utf-8",
        separator: str | None = None,
        label_pattern: str | None = None,
        label_separator: str | None = None,
        label_names: dict[str, str] | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        remove_test_copies: bool = False,
        tokenizer: str = "bpe",
        vocab_size: int = 8000,
        lowercase: bool = False,
        min_frequency: int = 2,
        direction: Direction | None = None,
        replace: dict[str, str] | None = None,
        max_length: int = 400,
        max_response_length: int = 200,
        truncation: Literal["head", "tail", "head_tail"] = "head",
        batch_size: int = 32,
        bptt: int = 64,
        random_bptt: bool = False,
        max_tokens: int = 8192,
        max_documents: int = 32,
        max_unlabeled_documents: int = 32,
        labels_per_class: int | None = None,
        val_labels_per_class: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.corpus_config = CorpusConfig.of(
            labeled,
            unlabeled,
            val,
            test,
            label_names,
            text_column=text_column,
            label_column=label_column,
            response_column=response_column,
            header=header,
            encoding=encoding,
            separator=separator,
            label_pattern=label_pattern,
            label_separator=label_separator,
            val_fraction=val_fraction,
            split_seed=split_seed,
            remove_test_copies=remove_test_copies,
        )
        positive = {"max_length": max_length, "batch_size": batch_size, "bptt": bptt, "min_frequency": min_frequency}
        documents = {"max_documents": max_documents, "max_unlabeled_documents": max_unlabeled_documents}
        _check_at_least(1, **positive, **documents, max_tokens=max_tokens, max_response_length=max_response_length)
        _check_at_least(0, num_workers=num_workers)
        cache = expanded(cache_dir) if cache_dir else default_cache_dir()
        replace = {str(pattern): by for pattern, by in (replace or {}).items()}  # YAML may read one as a number
        options = TokenizerOptions(vocab_size, lowercase, min_frequency, replace)
        self.preparation = Preparation(self.corpus_config, tokenizer, options, cache)
        self.direction: Direction = direction or "forward"
        self.max_length, self.truncation, self.max_response_length = max_length, truncation, max_response_length
        self.batch_size, self.bptt, self.random_bptt = batch_size, bptt, random_bptt
        self.max_tokens, self.max_documents = max_tokens, max_documents
        self.max_unlabeled_documents = max_unlabeled_documents
        self.labels_per_class, self.val_labels_per_class = labels_per_class, val_labels_per_class
        self.seed, self.num_workers = seed, num_workers
        self._adopted = Adopted()
        self._prepared: Prepared | None = None

    def adopt(self, adopted: Adopted) -> None:
        """Use a checkpoint's tokenizer, instead of a new one, and its direction and labels; before ``prepare_data``."""
        self._adopted, self.preparation.base = adopted, adopted.to_extend
        self.direction = adopted.direction or self.direction

    def read_only(self, split: Literal["val", "test"]) -> None:
        """Read no other sources, to evaluate a model on this split; call it after ``adopt``."""
        names = self._adopted.label_names or []
        self.corpus_config = self.corpus_config.measuring(split, names)
        self.preparation.read_instead(self.corpus_config)

    def check_sources(self) -> None:
        """Raise a UserError where a named source isn't there."""
        self.preparation.fingerprint  # noqa: B018 - reads every source once

    def check_documents(self) -> None:
        """Raise a UserError where a source can't be read, its labels don't fit, or are fewer than asked for."""
        corpus = self.preparation.ungated()
        for option, documents in (("labels_per_class", corpus.train), ("val_labels_per_class", corpus.val)):
            labels = label_array(documents, corpus.label_index or None)
            self._chosen(option, labels, np.zeros(len(labels), dtype=np.uint64), 0, corpus.label_names)

    def prepare_data(self) -> None:
        """Train the tokenizer and write the token arrays, unless the cache has them."""
        self.preparation.make(self._adopted.tokenizer or self.preparation.tokenizer())

    def setup(self, stage: str | None = None) -> None:
        """Map the token arrays and draw the low-shot subsets; the second call does nothing."""
        if self._prepared is not None:
            return
        prepared = self.preparation.read(self._adopted.tokenizer or self.preparation.tokenizer())
        for note in prepared.notes:
            rank_zero_warn(note)
        self._adopted.check_labels(prepared.label_names, prepared.multilabel)
        self._prepared = prepared
        self.train = self._subset("labels_per_class", prepared.train, self.seed)
        self.val = self._subset("val_labels_per_class", prepared.val, self.corpus_config.split_seed)
        self.test = prepared.test
        rank_zero_info(
            f"documents: {len(self.train)} train, {len(self.val)} val, {len(self.test)} test, "
            f"{len(prepared.unlabeled)} unlabeled of {prepared.unlabeled.num_tokens:,} tokens; "
            f"{prepared.tokenizer.vocab_size} vocabulary entries, {len(prepared.label_names)} labels"
        )
        found = self.contamination
        if "exact" in found:
            rank_zero_info(told(found))
        if found.get("transductive"):
            rank_zero_warn(f"transductive: {'; '.join(found['why'])}: the test's figures are not those of new text")

    def _subset(self, option: str, array: TokenArray, seed: int) -> TokenArray:
        """The low-shot subset that an option asks for; the whole array if the option is not given."""
        chosen = self._chosen(option, np.asarray(array.labels), np.asarray(array.keys), seed, self.label_names)
        return array if chosen is None else array.select(chosen)

    def _chosen(
        self, option: str, labels: np.ndarray, keys: np.ndarray, seed: int, names: list[str]
    ) -> np.ndarray | None:
        per_class = getattr(self, option)
        if per_class is not None and self.corpus_config.pairs:
            raise UserError(f"--data.{option} {per_class}: prompts with responses have no classes: leave it out")
        if per_class is None or not names or len(labels) == 0:
            return None
        try:
            return low_shot(labels, keys, per_class, seed, names)
        except UserError as error:
            raise UserError(f"--data.{option} {per_class}: {error}") from error

    @property
    def prepared(self) -> Prepared:
        """The token arrays; a RuntimeError before ``setup``."""
        if self._prepared is None:
            raise RuntimeError("the data module is not set up: call prepare_data() and setup() first")
        return self._prepared

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the token arrays were made with."""
        return self.prepared.tokenizer

    @property
    def label_names(self) -> list[str]:
        """Names of the classes in their order; none for a corpus without labels."""
        return self.prepared.label_names

    @property
    def multilabel(self) -> bool:
        """Whether a document may have several labels, or none, in place of exactly one."""
        return self.prepared.multilabel

    @property
    def label_counts(self) -> np.ndarray:
        """How many training documents (of the low-shot subset, where one is drawn) have each label, (classes,)."""
        return label_counts(np.asarray(self._array("train").labels), len(self.label_names))

    @property
    def token_counts(self) -> np.ndarray:
        """How often each token occurs in all training text, the documents' ends included: int64 (vocabulary,)."""
        text = self.prepared.unlabeled
        counts = text.token_counts(self.tokenizer.vocab_size)
        counts[self.tokenizer.eos_id] += len(text)
        return counts

    @property
    def contamination(self) -> dict[str, Any]:
        """What the contamination gate found, as plain values; empty where there was nothing to compare.

        ``transductive`` says whether the test split was training text of this run or an earlier one, ``why`` how.
        """
        found = self.prepared.contamination
        why = [*found.get("why", []), *self.provenance.reasons()]
        return {**found, "transductive": bool(why), "why": why} if found or len(self.test) else {}

    @property
    def fed(self) -> dict[str, Any]:
        """A record of the text that this run's checkpoints have seen, plain values (:mod:`lit_sft.data.provenance`)."""
        return self.provenance.plain(self.contamination.get("transductive", False))

    @property
    def provenance(self) -> Provenance:
        """The provenance of a run that reads these sources."""
        config, digests = self.corpus_config, self.preparation.digests
        only_measured = config.only is not None
        return Provenance(digests, config.remove_test_copies, self._adopted.before, only_measured)

    @property
    def test_is_clean(self) -> np.ndarray | None:
        """bool (test documents,): no copy is in training or validation data; None if the gate could not compare."""
        return self.prepared.clean if "clean_documents" in self.prepared.contamination else None

    @property
    def corpus(self) -> Corpus:
        """The documents as text, for baselines that read text."""
        return self.preparation.corpus

    def _array(self, split: Split) -> TokenArray:
        self.prepared  # noqa: B018 - raises where setup was forgotten
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def _check_at_least(least: int, **options: int) -> None:
    wrong = ", ".join(f"--data.{name} {value}" for name, value in options.items() if value < least)
    if wrong:
        raise UserError(f"must be {least} or more: {wrong}")
