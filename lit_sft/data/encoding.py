"""A corpus as token ids, a few megabytes of text at a time: memory stays flat, and no core waits.

The tokenizer uses all cores, but its results are converted to arrays on one. Therefore, while the ids of one chunk are
used, the next two are being tokenised. The size of a chunk is limited in characters too, since a tokenizer's results
take some 20 times the size of the text. A chunk ends with a document: one of 100 MB is one chunk and takes 2 GB.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from lit_sft.data.tokenization import Tokenizer

CHUNK_TEXTS = 8192
CHUNK_CHARACTERS = 2 << 20
AT_ONCE = 2
Packed = tuple[np.ndarray, np.ndarray]


def encoded(texts: Iterable[str], tokenizer: Tokenizer, dtype: np.dtype) -> Generator[Packed, None, None]:
    """For each chunk, in order, the concatenated ids of its texts, (tokens,), and their lengths, int64 (texts,)."""
    running: deque[Future[Packed]] = deque()
    workers = ThreadPoolExecutor(AT_ONCE)
    try:
        for chunk in chunks(texts):
            running.append(workers.submit(tokenizer.encode_packed, chunk, dtype))
            if len(running) > AT_ONCE:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:  # what was begun ends first: an interrupted run must not leave a thread behind
        workers.shutdown(cancel_futures=True)


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
