"""A corpus as token ids, a few megabytes of text at a time: memory stays flat, and no core waits.

The tokenizer uses all cores, but its results are converted to arrays on one. Therefore, while the ids of one chunk are
used, the next two are being tokenised. The size of a chunk is limited in characters too, since a tokenizer's results
take some 20 times the size of the text. A chunk ends with a document: one of 100 MB is one chunk and takes 2 GB.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from lit_sft.data.tokenization import Tokenizer

CHUNK_TEXTS = 8192
CHUNK_CHARACTERS = 2 << 20
AT_ONCE = 2
T = TypeVar("T")
R = TypeVar("R")
Packed = Generator[tuple[np.ndarray, np.ndarray], None, None]


def encoded(texts: Iterable[str], tokenizer: Tokenizer, dtype: np.dtype) -> Packed:
    """For each chunk, in order, the concatenated ids of its texts, (tokens,), and their lengths, int64 (texts,)."""
    return _ahead(lambda chunk: tokenizer.encode_packed(chunk, dtype), chunks(texts))


def chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in their order, as lists that are short and not too large."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        if chunk and (len(chunk) == CHUNK_TEXTS or size + len(text) > CHUNK_CHARACTERS):
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield chunk


def _ahead(call: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    """Yield ``call(item)`` for each item in order; up to ``AT_ONCE`` later calls run while a result is used."""
    running: deque[Future[R]] = deque()
    workers = ThreadPoolExecutor(AT_ONCE)
    try:
        for item in items:
            running.append(workers.submit(call, item))
            if len(running) > AT_ONCE:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:  # what was begun ends first: an interrupted run must not leave a thread behind
        workers.shutdown(cancel_futures=True)
