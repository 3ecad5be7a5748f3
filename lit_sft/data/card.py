"""The data card: what a run is about to learn from, in a dozen lines, so that a mistake in the data is seen at once.

All figures come from the token arrays and from what was counted when they were made, not from the texts: a card takes
well under a second for 20 million tokens, at every start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lit_sft.data.buckets import DocumentDataset
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.labels import label_counts
from lit_sft.data.tokens import TokenArray

PERCENTILES = (5, 50, 95)
TOP_LABELS = 8
STRANGE, STRANGE_FROM = 2.5, 0.03  # unknown tokens in test: above this multiple of val's share, and above this share
FEW_DOCUMENTS, FEW_TOKENS = 50, 10_000  # of validation: an accuracy on 50 documents has a standard error up to 7 points
AT_ONCE = 1 << 22  # tokens compared at a time
REPEATS = {
    "train": "in train",
    "unlabeled": "in unlabeled",
    "val": "in val",
    "test": "in test",
    "val_in_train": "of val in train",
    "test_in_val": "of test in val",
}


@dataclass(frozen=True)
class SplitCard:
    """Figures of one split.

    Attributes:
        name: ``train``, ``val``, ``test``, or ``text``: everything that a language model learns from.
        documents, tokens: their numbers, not counting boundaries.
        lengths: tokens per document: the percentiles 5, 50 and 95 (lengths of real documents, not interpolated), and
            the maximum.
        unknown: share of unknown tokens.
        truncated: share of documents longer than ``max_length``; None for text that no classifier reads.
        cut: share of all tokens that truncation removes; None likewise.
        bytes_per_token: UTF-8 bytes of the texts divided by the number of tokens.
        labels: documents of each label, int64 (classes,); empty without labels.
    """

    name: str
    documents: int
    tokens: int
    lengths: tuple[int, int, int, int]
    unknown: float
    truncated: float | None
    cut: float | None
    bytes_per_token: float
    labels: np.ndarray


@dataclass(frozen=True)
class DataCard:
    """Figures of all splits that have documents.

    Attributes:
        splits: the figures of each.
        label_names: the classes; empty if nothing is classified.
        max_length: tokens that the classifier reads of a document; None if nothing is classified.
        vocabulary: entries of the tokenizer.
        padding: padding as a share of the positions in a training epoch of documents; None without such batches.
        repeats: documents with the words of another one (:func:`lit_sft.data.repeats.count_repeats`).
        cut_pairs: the shares of prompts and responses that are truncated, a line for each split of pairs.
    """

    splits: list[SplitCard]
    label_names: list[str]
    max_length: int | None
    vocabulary: int
    padding: float | None
    repeats: dict[str, int]
    cut_pairs: list[str] = field(default_factory=list)

    def rows(self) -> list[list[str]]:
        """The table as text, header first; the columns about a classifier are left out if there is none."""
        head = ["split", "documents", "tokens", "length 5%", "50%", "95%", "longest", "unknown", "bytes/token"]
        rows = [head + [f"over {self.max_length}", "tokens cut"] * (self.max_length is not None)]
        for split in self.splits:
            numbers = [split.documents, split.tokens, *split.lengths]
            row = [split.name, *(f"{n:,}" for n in numbers), _percent(split.unknown), f"{split.bytes_per_token:.2f}"]
            rows.append(row + [_percent(split.truncated), _percent(split.cut)] * (self.max_length is not None))
        return rows

    def notes(self) -> list[str]:
        """The notes below the table, one line each."""
        lines = [
            f"labels of {split.name}: {_labels(split.labels, self.label_names)}"
            for split in self.splits
            if len(split.labels)
        ]
        lines += self.cut_pairs
        val = next((split for split in self.splits if split.name == "val"), None)
        if val is not None and val.documents < FEW_DOCUMENTS and val.tokens < FEW_TOKENS:
            lines.append(
                f"{val.documents:,} documents and {val.tokens:,} tokens of validation choose little but by chance: "
                "give data.val, or a larger data.val_fraction"
            )
        repeated = [f"{count:,} {REPEATS[name]}" for name, count in self.repeats.items() if count]
        unknown = {split.name: split.unknown for split in self.splits}
        # Compared with val, which is not learned from either: a vocabulary of all words has no unknown ones in train.
        if unknown.get("test", 0.0) > max(STRANGE * unknown.get("val", 1.0), STRANGE_FROM):
            lines.append(
                f"{_percent(unknown['test'])} of the tokens of test are unknown, and {_percent(unknown['val'])} "
                "of those of val: was its text prepared in another way?"
            )
        lines.append(f"documents that repeat the words of another: {', '.join(repeated) or 'none'}")
        padding = "" if self.padding is None else f"; padding of the training batches: {_percent(self.padding)}"
        return [*lines, f"vocabulary: {self.vocabulary:,} entries{padding}"]

    def text(self) -> str:
        """The card for a terminal."""
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(["data:", *lines, *self.notes()])

    def markdown(self) -> str:
        """The card for TensorBoard."""
        head, *rows = self.rows()
        table = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
        return "\n".join([*table, "", *(f"- {note}" for note in self.notes())])


def data_card(data: TextDataModule, classifies: bool, pairs: bool = False) -> DataCard:
    """The card of prepared data.

    Args:
        data: after ``setup``.
        classifies: whether the run reads labeled documents in batches.
        pairs: whether it reads prompts with responses.
    """
    max_length = data.max_length if classifies else None
    names = data.label_names if classifies else []
    arrays = {"train": data.train, "val": data.val, "test": data.test, "text": data.prepared.unlabeled}
    if not (classifies or pairs):
        del arrays["train"]
    elif len(data.prepared.unlabeled) == len(data.train):
        del arrays["text"]  # the same documents
    splits = [
        split_card(name, array, data.tokenizer.unk_id, *((None, 0) if name == "text" else (max_length, len(names))))
        for name, array in arrays.items()
        if len(array)
    ]
    loader = data.document_loader if classifies else data.pair_loader if pairs else None
    batches = None if loader is None else loader("train").dataset
    padding = batches.padding_share() if isinstance(batches, DocumentDataset) else None
    cut = [_cut_pairs(split.name, arrays[split.name], data) for split in splits if pairs and split.name != "text"]
    return DataCard(splits, names, max_length, data.tokenizer.vocab_size, padding, data.prepared.repeats, cut)


def _cut_pairs(name: str, array: TokenArray, data: TextDataModule) -> str:
    """A line with the shares of a split's prompts and responses that are longer than the part kept of them."""
    prompts = (array.prompts > data.max_length).mean()
    responses = (array.response_lengths > data.max_response_length).mean()
    return (
        f"cut in {name}: {_percent(float(prompts))} of the prompts (over {data.max_length} tokens), "
        f"{_percent(float(responses))} of the responses (over {data.max_response_length})"
    )


def split_card(name: str, array: TokenArray, unk_id: int, max_length: int | None, classes: int) -> SplitCard:
    """The figures of a split that has documents."""
    lengths = array.lengths
    total = max(array.num_tokens, 1)
    spread = np.percentile(lengths, PERCENTILES, method="inverted_cdf").astype(int).tolist()
    over = None if max_length is None else np.maximum(lengths - max_length, 0)
    return SplitCard(
        name=name,
        documents=len(array),
        tokens=array.num_tokens,
        lengths=(*spread, int(lengths.max())),
        unknown=sum(_counts(array, unk_id)) / total,
        truncated=None if over is None else float((over > 0).mean()),
        cut=None if over is None else int(over.sum()) / total,
        bytes_per_token=int(array.num_bytes.sum()) / total,
        labels=label_counts(np.asarray(array.labels), classes) if classes else np.zeros(0, dtype=np.int64),
    )


def _counts(array: TokenArray, token: int) -> Iterator[int]:
    """Yield partial counts of ``token`` in the documents; documents adjacent in the array are scanned together."""
    order = np.argsort(array.starts, kind="stable")
    starts, ends = array.starts[order], (array.starts + array.lengths)[order]
    breaks = np.flatnonzero(starts[1:] != ends[:-1]) + 1
    for first, last in zip(starts[np.append(0, breaks)], ends[np.append(breaks - 1, len(ends) - 1)], strict=True):
        for begin in range(int(first), int(last), AT_ONCE):
            yield int(np.count_nonzero(array.tokens[begin : min(begin + AT_ONCE, int(last))] == token))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _labels(counts: np.ndarray, names: Sequence[str]) -> str:
    """The counts by name, in the order of the classes; of many labels, the most frequent."""
    if len(names) <= TOP_LABELS + 2:
        return ", ".join(f"{name} {count:,}" for name, count in zip(names, counts.tolist(), strict=True))
    order = np.argsort(-counts, kind="stable")
    top = ", ".join(f"{names[i]} {counts[i]:,}" for i in order[:TOP_LABELS].tolist())
    least = int(order[-1])
    return f"{top}, {len(names) - TOP_LABELS} more, the least {names[least]} {counts[least]:,}"
