"""What one trained model and several together can do with texts; and texts of any number, some at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from lit_sft.errors import UserError
from lit_sft.evaluation.thresholds import applying

TEXTS_AT_ONCE = 2048  # sorted by length together; memory stays at this many, whatever the input's size,
CHARACTERS_AT_ONCE = 16 << 20  # or at fewer texts, where they are far longer than usual


class TextClassifier(ABC):
    """What :func:`load` makes: texts in, labels and probabilities out."""

    @property
    @abstractmethod
    def label_names(self) -> list[str]:
        """The classes, in the order of the probabilities."""

    @property
    @abstractmethod
    def thresholds(self) -> list[float] | None:
        """From which probability on each label applies; None where a document has one label, the most probable."""

    @abstractmethod
    def probabilities(self, texts: Iterable[str | None]) -> Iterator[Tensor | None]:
        """The probability of each class, (classes,) on the CPU, of each text in order; None for a blank one."""

    def predict(self, texts: Sequence[str | None]) -> list[dict[str, Any] | None]:
        """The label and all probabilities of each text, in their order; None for a blank text, or for None.

        Returns:
            ``{"label": name, "probabilities": {name: probability, ...}}`` for each text; of a multi-label model
            ``{"labels": [name, ...], "probabilities": {...}}`` with the labels whose probability reaches their
            threshold, which was chosen in validation; of a model that answers prompts ``{"response": text}``.

        Raises:
            UserError: a checkpoint is of pretraining and has no classifier; what is given is no list of texts.
        """
        return list(self.predict_iter(texts))

    def predict_iter(self, texts: Iterable[str | None]) -> Iterator[dict[str, Any] | None]:
        """As :meth:`predict`, over an input of any length: memory doesn't grow with it."""
        names, thresholds = self.label_names, self.thresholds
        for probabilities in self.probabilities(texts):
            if probabilities is None:
                yield None
                continue
            by_name = dict(zip(names, probabilities.tolist(), strict=True))
            if thresholds is None:
                yield {"label": names[int(probabilities.argmax())], "probabilities": by_name}
                continue
            chosen = applying(probabilities, thresholds).tolist()
            yield {"labels": [n for n, applies in zip(names, chosen, strict=True) if applies], "probabilities": by_name}


def in_chunks(texts: Iterable[str | None]) -> Iterator[list[str | None]]:
    """Some texts at a time, taken as they are asked for."""
    if isinstance(texts, (str, bytes, Mapping)):  # whose characters or keys would pass for texts
        raise UserError(f"give a list of texts, not {'a dict' if isinstance(texts, Mapping) else 'one text'}")
    if hasattr(texts, "columns"):  # whose names would
        raise UserError("give one column of a table, such as table['text'], not all of it")
    chunk: list[str | None] = []
    size = 0
    for place, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            what = f"text {place} of the list is of type {type(text).__name__}"
            raise UserError(f"{what}, not str: decode bytes, and give None where a text is missing")
        chunk.append(text)
        size += len(text or "")
        if len(chunk) == TEXTS_AT_ONCE or size >= CHARACTERS_AT_ONCE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
