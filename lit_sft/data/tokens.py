"""The token array: all documents of a set, tokenised once, on disk and mapped into memory."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from lit_sft.data.documents import Documents, bytes_of, content_keys
from lit_sft.data.encoding import encoded
from lit_sft.data.labels import NO_LABEL, label_array
from lit_sft.data.tokenization import Tokenizer
from lit_sft.errors import UserError

ABANDONED = 24 * 3600  # seconds: nobody writes a file for so long without a change to the folder
COUNTED_AT_ONCE = 1 << 20  # tokens: bincount takes 8 bytes for each
_PER_DOCUMENT = ("lengths", "labels", "keys", "num_bytes")
_OF_PAIRS = ("prompts", "response_bytes")


@dataclass
class TokenArray:
    """Documents as token ids, one after another in ``tokens``; the data sets add the boundary tokens.

    Attributes:
        tokens: uint16 (vocabularies up to 65,536) or uint32, shape (all tokens,), usually memory-mapped.
        starts: int64 (documents,), where each document begins in ``tokens``.
        lengths: int64 (documents,), its number of tokens.
        labels: int64 (documents,), class index, -1 without a label; multi-label: uint8 (documents, classes), 1 where
            the label applies.
        keys: uint64 (documents,), content key of the text.
        num_bytes: int64 (documents,), length of the text in UTF-8, for bits per byte; of a pair, of both its texts.
        prompts: int64 (documents,), for documents ``prompt <eos> response`` the number of tokens before that ``<eos>``,
            -1 for other text; of shape (0,) if there are no pairs at all.
        response_bytes: int64 (documents,), length of the response in UTF-8, 0 for other text; (0,) likewise.
        path: the file behind ``tokens``; a pickled array carries this instead of the corpus.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    num_bytes: np.ndarray
    path: Path | None = None
    prompts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    response_bytes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def from_ids(
        cls, documents: Sequence[Sequence[int] | np.ndarray], labels: Sequence[int] | None = None
    ) -> TokenArray:
        """An array in memory of ready token ids; keys are the documents' numbers, bytes are unknown (0)."""
        lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
        return cls(
            tokens=np.concatenate([np.zeros(0, np.uint32), *[np.asarray(d, dtype=np.uint32) for d in documents]]),
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            labels=np.full(len(lengths), NO_LABEL) if labels is None else np.array(labels, dtype=np.int64),
            keys=np.arange(len(lengths), dtype=np.uint64),
            num_bytes=np.zeros_like(lengths),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents together, boundaries not counted."""
        return int(self.lengths.sum())

    def document(self, index: int) -> np.ndarray:
        """Token ids of one document, shape (tokens,): a view, not a copy."""
        start = self.starts[index]
        return self.tokens[start : start + self.lengths[index]]

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """How often each token occurs in all of ``tokens``, whichever documents are selected, int64 (vocab_size,)."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for first in range(0, len(self.tokens), COUNTED_AT_ONCE):
            counts += np.bincount(self.tokens[first : first + COUNTED_AT_ONCE], minlength=vocab_size)
        return counts

    def select(self, indices: np.ndarray | Sequence[int]) -> TokenArray:
        """The documents at ``indices``, in that order; the tokens themselves are shared."""
        chosen = np.asarray(indices, dtype=np.int64)
        columns = ("starts", *_PER_DOCUMENT, *(_OF_PAIRS if len(self.prompts) else ()))
        return replace(self, **{name: getattr(self, name)[chosen] for name in columns})

    @property
    def response_lengths(self) -> np.ndarray:
        """Tokens of each pair's response, int64 (documents,)."""
        lengths: np.ndarray = self.lengths - self.prompts - 1
        return lengths

    def bytes_per_target(self, responses: bool = False) -> float:
        """UTF-8 bytes per target of a language model (tokens and ends); ``responses``: of the responses alone."""
        if responses:
            return int(self.response_bytes.sum()) / max(int((self.response_lengths + 1).sum()), 1)
        return int(self.num_bytes.sum()) / max(self.num_tokens + len(self), 1)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.path is not None:  # a worker process maps the file again; the corpus is never copied
            state["tokens"] = self.tokens.dtype
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["path"] is not None:
            state = {**state, "tokens": _map_file(state["path"], state["tokens"])}
        self.__dict__.update(state)


def write_tokens(
    folder: Path,
    documents: Documents,
    label_index: Mapping[str, int] | None,
    tokenizer: Tokenizer,
    responses: Sequence[str] | None = None,
) -> TokenArray:
    """Tokenise ``documents`` into ``folder`` and return the array, mapped from there.

    Text is tokenised and written a few megabytes at a time, so memory stays flat. The folder gets its name
    only when it is complete; if another process has created it in the meantime, that one is used.

    Args:
        folder: a new folder; its parents are created.
        documents: with labels or without.
        label_index: class index of each label name; None leaves all documents without a label.
        tokenizer: its digest is noted in the folder.
        responses: the responses to the first documents, which are prompts; None if there are no prompts.

    Raises:
        ValueError: more responses than documents.
        UserError: a label that ``label_index`` does not know.
    """
    labels = label_array(documents, label_index)
    if responses is not None and len(responses) > len(documents):
        raise ValueError(f"{len(responses)} responses to {len(documents)} documents")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    unfinished.mkdir()
    try:
        dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        lengths, prompts = _write_ids(unfinished / "tokens.bin", documents.texts, responses or (), tokenizer, dtype)
        columns = {
            "lengths": lengths,
            "labels": labels,
            "keys": content_keys(documents.texts),
            "num_bytes": bytes_of(documents.texts),
        }
        if responses is not None:
            answered = np.pad(bytes_of(responses), (0, len(documents) - len(responses)))
            columns |= {"num_bytes": columns["num_bytes"] + answered, "prompts": prompts, "response_bytes": answered}
        for name, column in columns.items():
            with _synced(unfinished / f"{name}.npy") as file:
                np.save(file, column)
        about = {"dtype": dtype.str, "tokens": int(lengths.sum()), "tokenizer": tokenizer.digest}
        with _synced(unfinished / "meta.json") as file:
            file.write(json.dumps(about).encode())
        try:
            unfinished.rename(folder)
        except OSError:
            if not (folder / "meta.json").is_file():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return read_tokens(folder)


def _remove_abandoned(folder: Path) -> None:
    """Remove what a process that was killed while writing ``folder`` has left, once it is a day old."""
    for path in folder.parent.glob(f"{folder.name}.*.tmp"):
        with suppress(OSError):  # another process may remove it, too
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def read_tokens(folder: Path) -> TokenArray:
    """The array ``write_tokens`` left in ``folder``, its tokens mapped, not read.

    Raises:
        UserError: the folder is missing or incomplete.
    """
    try:
        about = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        dtype, expected = np.dtype(about["dtype"]), about["tokens"]
        if dtype.kind != "u":
            raise ValueError(f"tokens of type {dtype}")
        names = (*_PER_DOCUMENT, *(_OF_PAIRS if (folder / "prompts.npy").is_file() else ()))
        columns = {name: _load_column(folder / f"{name}.npy") for name in names}
        tokens = _map_file(folder / "tokens.bin", dtype)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"cannot read token cache {folder} ({error}): delete that folder and run again") from error
    lengths = columns["lengths"]
    same_length = all(len(column) == len(lengths) for column in columns.values())
    if not same_length or not len(tokens) == expected == lengths.sum():
        raise UserError(f"token cache {folder} is damaged (sizes differ): delete that folder and run again")
    path = folder / "tokens.bin"
    return TokenArray(tokens=tokens, starts=np.cumsum(lengths) - lengths, path=path, **columns)


def _write_ids(
    path: Path, texts: Sequence[str], responses: Sequence[str], tokenizer: Tokenizer, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Write all ids to ``path``, raw, with a progress bar on a terminal; ``responses`` belong to the first texts.

    Returns:
        The number of tokens of each document, and of its prompt, -1 if it has none; both int64 (documents,).
    """
    # Prompts and responses are tokenised alternately: of the first texts 2i is a prompt and 2i + 1 its response.
    lengths, written, pairs = [np.zeros(0, dtype=np.int64)], 0, 2 * len(responses)
    apart = chain(chain.from_iterable(zip(texts, responses, strict=False)), islice(texts, len(responses), None))
    chunks, console = encoded(apart if responses else texts, tokenizer, dtype), Console(stderr=True)
    bar = Progress(console=console, disable=not console.is_terminal)
    with _synced(path) as file, bar, closing(chunks):
        task = bar.add_task("tokenizing", total=len(texts) + len(responses))
        for ids, some_lengths in chunks:
            places = written + np.arange(len(some_lengths))
            ends = np.cumsum(some_lengths)[(places < pairs) & (places % 2 == 0)]  # of prompts
            file.write(np.insert(ids, ends, tokenizer.eos_id).tobytes() if len(ends) else ids.tobytes())
            lengths.append(some_lengths)
            written += len(some_lengths)
            bar.advance(task, len(some_lengths))
    each = np.concatenate(lengths)
    prompts = np.concatenate([each[:pairs:2], np.full(len(each) - pairs, -1)])
    return np.concatenate([each[:pairs:2] + 1 + each[1:pairs:2], each[pairs:]]), prompts


@contextmanager
def _synced(path: Path) -> Iterator[Any]:
    """A new binary file that is on the disk when the block ends: the rename must not overtake its content."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _load_column(path: Path) -> np.ndarray:
    """Load the integers of all documents; pickles and archives, which NumPy would also load, are refused."""
    with path.open("rb") as file:
        column: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    axes = (1, 2) if path.stem == "labels" else (1,)
    if column.ndim not in axes or column.dtype.kind not in "iu":
        raise ValueError(f"{path.name} holds {column.ndim} axes of {column.dtype}")
    return column


def _map_file(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype=dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))  # plain ndarray: the subclass is slow to slice
