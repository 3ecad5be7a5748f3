"""The interface that a trained model and an ensemble share; and reading any number of texts in chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from lit_sft.errors import UserError
from lit_sft.evaluation.thresholds import applying

TEXTS_AT_ONCE = 2048  # texts in a chunk, which is sorted by length; memory doesn't grow beyond a chunk
CHARACTERS_AT_ONCE = 16 << 20  # a chunk ends earlier if its texts have this many characters


class TextClassifier(ABC):
    """The interface of what :func:`load` returns: texts in, labels and probabilities out.

    Attributes:
        label_names: the classes, in the order of the probabilities.
        thresholds: the probability from which each label is predicted; None if a document has one label.
    """

    label_names: list[str]
    thresholds: list[float] | None

    @abstractmethod
    def probabilities(self, texts: Iterable[str | None]) -> Iterator[Tensor | None]:
        """Yield the class probabilities, (classes,) on the CPU, of each text in order; None for a blank text."""

    def predict(self, texts: Sequence[str | None]) -> list[dict[str, Any] | None]:
        """Predict the label and all probabilities of each text, in order; None for a blank text, or for None.

        Returns:
            ``{"label": name, "probabilities": {name: probability, ...}}`` for each text. A multi-label model returns
            ``{"labels": [name, ...], "probabilities": {...}}``, with the labels whose probability reaches the
            threshold chosen in validation; a model that answers prompts returns ``{"response": text}``.

        Raises:
            UserError: the model is only pretrained and has no classifier, or the argument isn't a list of texts.
        """
        return list(self.predict_iter(texts))

    def predict_iter(self, texts: Iterable[str | None]) -> Iterator[dict[str, Any] | None]:
        """Like :meth:`predict`, for an input of any length: memory doesn't grow with it."""
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
    """Yield lists of texts, read from the input when they are needed; raise a UserError for anything but texts."""
    if isinstance(texts, (str, bytes, Mapping)):  # their characters or keys would be taken for texts
        raise UserError(f"give a list of texts, not {'a dict' if isinstance(texts, Mapping) else 'one text'}")
    if hasattr(texts, "columns"):  # their names would
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
