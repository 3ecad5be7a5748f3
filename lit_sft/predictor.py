"""Apply one or several trained models to new text: ``lit_sft.load``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from lit_sft.checkpoints import Checkpoint, read_checkpoint, resolve
from lit_sft.data.batches import Direction
from lit_sft.data.buckets import DocumentBatch, DocumentDataset, Truncation, truncate
from lit_sft.data.encoding import chunks
from lit_sft.data.tokens import TokenArray
from lit_sft.errors import UserError, first_line
from lit_sft.evaluation.thresholds import ONE_KIND, column_order, mean_thresholds
from lit_sft.models import Encoder, Network
from lit_sft.models.generation import respond
from lit_sft.stored_network import has_own_encoder, stored_blueprint, stored_network
from lit_sft.text_classifier import TEXTS_AT_ONCE, TextClassifier, in_chunks

TOKENS_AT_ONCE = 16_384
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # used for prediction, too, if the run used it


class Predictor(TextClassifier):
    """A trained model with its tokenizer and, if it is a classifier, its label names. Made by :func:`load`.

    Args:
        network: encoder and heads, with the checkpoint's weights.
        checkpoint: provides everything else: tokenizer, labels, thresholds, precision, how documents are read.
        device: where to run.
    """

    def __init__(self, network: Network, checkpoint: Checkpoint, device: torch.device) -> None:
        self.network, self.tokenizer = network.to(device).eval(), checkpoint.tokenizer()
        self.device = device
        self.autocast_to = MIXED.get(checkpoint.precision)
        if device.type == "cpu" and self.autocast_to == torch.float16:
            self.autocast_to = None  # the CPU has no float16 LSTM
        data = checkpoint.options("data")
        self.max_length = data.get("max_length") or 400
        self.truncation: Truncation = data.get("truncation") or "head"
        self.direction: Direction = checkpoint.direction
        self.responds = checkpoint.stage == "finetune" and network.classifier is None
        self.max_new_tokens = data.get("max_response_length") or 200
        self.num_beams = checkpoint.num_beams
        self.label_names, self.thresholds = list(checkpoint.label_names), checkpoint.thresholds

    def probabilities(self, texts: Iterable[str | None]) -> Iterator[Tensor | None]:
        """As in the base class.

        Raises:
            UserError: the model has no classifier: it is pretrained only, or answers prompts.
        """
        if self.network.classifier is None:
            if self.responds:
                raise UserError("a model that answers prompts can't classify: ask it by respond or predict")
            raise UserError("a pretraining checkpoint can't classify: predict needs a fine-tuned one")
        return self._in_order(texts, self._probabilities)

    def predict_iter(self, texts: Iterable[str | None]) -> Iterator[dict[str, Any] | None]:
        """As in the base class; a model that answers prompts gives ``{"response": text}`` for each text."""
        if not self.responds:
            yield from super().predict_iter(texts)
            return
        for response in self.respond_iter(texts):
            yield None if response is None else {"response": response}

    def respond(
        self, prompts: Sequence[str | None], max_new_tokens: int | None = None, num_beams: int | None = None
    ) -> list[str | None]:
        """Return the response to each prompt that the beam search finds most likely; None for a blank prompt.

        Args:
            prompts: in any order and of any length; they are truncated as in the run.
            max_new_tokens: maximum number of tokens in a response; by default the run's ``data.max_response_length``.
            num_beams: beams of the search; by default the run's ``model.num_beams``.

        Raises:
            UserError: the checkpoint was not fine-tuned on prompts with responses, or a number is below 1.
        """
        return list(self.respond_iter(prompts, max_new_tokens, num_beams))

    def respond_iter(
        self, prompts: Iterable[str | None], max_new_tokens: int | None = None, num_beams: int | None = None
    ) -> Iterator[str | None]:
        """Like :meth:`respond`, for an input of any length: memory doesn't grow with it."""
        if not self.responds:
            raise UserError("this checkpoint can't answer: respond needs one fine-tuned on prompts with responses")
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        beams = self.num_beams if num_beams is None else num_beams
        if min(limit, beams) < 1:
            raise UserError(f"max_new_tokens {limit} and num_beams {beams} must be at least 1")

        eos, *never = self.tokenizer.special_ids

        def compute(batch: DocumentBatch) -> Tensor:
            return respond(self.network, batch, batch.lengths, eos, limit, beams, never)

        found = self._in_order(prompts, compute)
        return (None if ids is None else self.tokenizer.decode(ids[ids >= 0].tolist()).strip() for ids in found)

    def encode(self, texts: Sequence[str | None]) -> np.ndarray:
        """Return document vectors, float32 (texts, units): the classifier's pooling, else the mean; NaN if blank."""
        rows = list(self._in_order(texts, self._vectors))
        classifier = self.network.classifier
        units = self.network.encoder.output_size if classifier is None else classifier.pooled_size
        vectors = np.full((len(rows), units), np.nan, np.float32)
        for vector, row in zip(vectors, rows, strict=True):
            if row is not None:
                vector[:] = row.numpy()
        return vectors

    @torch.inference_mode()
    def _in_order(
        self, texts: Iterable[str | None], compute: Callable[[DocumentBatch], Tensor]
    ) -> Iterator[Tensor | None]:
        """Yield ``compute``'s row for each text, in order, None if blank; a chunk's texts are batched by length."""
        tokenizer = self.tokenizer
        for chunk in in_chunks(texts):
            filled = [(place, text) for place, text in enumerate(chunk) if text and text.strip()]
            rows: list[Tensor | None] = [None] * len(chunk)
            if filled:
                ids = [
                    truncate(all_ids, self.max_length, self.truncation).copy()  # a view would keep all ids
                    for some in chunks(text for _, text in filled)
                    for all_ids in tokenizer.encode_batch(some)
                ]
                dataset = DocumentDataset(
                    TokenArray.from_ids(ids),
                    eos_id=tokenizer.eos_id,
                    pad_id=tokenizer.pad_id,
                    max_length=self.max_length,
                    truncation=self.truncation,
                    max_tokens=TOKENS_AT_ONCE,
                    max_documents=TEXTS_AT_ONCE,
                    seed=0,
                    shuffle=False,
                    direction=self.direction,
                )
                for index in range(len(dataset)):
                    batch = dataset[index]
                    positions = batch.indices.tolist()  # before the batch is moved: reading from a device waits for it
                    with torch.autocast(self.device.type, self.autocast_to, enabled=self.autocast_to is not None):
                        result = compute(batch.to(self.device))
                    for position, row in zip(positions, result.cpu(), strict=True):
                        rows[filled[position][0]] = row
            yield from rows

    def _probabilities(self, batch: DocumentBatch) -> Tensor:
        network = self.network
        return network.class_probabilities(network.classify(batch, network.draw_masks(*batch.input_ids.shape)))

    def _vectors(self, batch: DocumentBatch) -> Tensor:
        return self.network.pooled(batch, self.network.draw_masks(*batch.input_ids.shape)).float()


class Ensemble(TextClassifier):
    """Several trained models whose class probabilities are averaged. Made by :func:`load`.

    They may differ in all but their set of labels: tokenizer, direction, length, precision, order of the labels (the
    ensemble uses the first model's). Thresholds of multi-label models are averaged, too.

    Raises:
        UserError: models with different labels, single-label and multi-label models, or a model without a classifier.
    """

    def __init__(self, members: Sequence[Predictor]) -> None:
        self.members = list(members)
        if other := [member for member in members if member.network.classifier is None]:
            kind = "a model that answers prompts" if other[0].responds else "a pretraining checkpoint"
            raise UserError(f"{kind} can't classify: an ensemble is of fine-tuned classifiers")
        self.label_names = self.members[0].label_names
        self._columns = [column_order(self.label_names, member.label_names) for member in members]
        if len({member.thresholds is None for member in members}) > 1:
            raise UserError(ONE_KIND)
        self.thresholds = mean_thresholds([member.thresholds for member in members], self._columns)

    def probabilities(self, texts: Iterable[str | None]) -> Iterator[Tensor | None]:
        """The mean of the models' probabilities, as in the base class."""
        for chunk in in_chunks(texts):  # shared by all members, so that none reads ahead
            for rows in zip(*(member.probabilities(chunk) for member in self.members), strict=True):
                found = [row[order] for row, order in zip(rows, self._columns, strict=True) if row is not None]
                yield torch.stack(found).double().mean(0).float() if found else None


@overload
def load(
    run_or_checkpoint: str | Path,
    encoder: Callable[..., Encoder] | None = None,
    device: str | torch.device | None = None,
) -> Predictor: ...


@overload
def load(
    run_or_checkpoint: list[Any] | tuple[Any, ...],
    encoder: Callable[..., Encoder] | None = None,
    device: str | torch.device | None = None,
) -> Ensemble: ...


def load(
    run_or_checkpoint: str | Path | list[Any] | tuple[Any, ...],
    encoder: Callable[..., Encoder] | None = None,
    device: str | torch.device | None = None,
) -> Predictor | Ensemble:
    """Load a trained model from a run's folder or a checkpoint file, or several as an ensemble.

    Args:
        run_or_checkpoint: a file, a stage's folder (its best checkpoint) or a recipe's (the best of its last stage); a
            list of these gives an ensemble.
        encoder: the encoder, if it is outside this package: its class, which is called with the vocabulary size and
            the checkpoint's options; ``partial(Class, NAME=VALUE)``, to give some of these (required of those that
            could name code); or a function of the vocabulary size. In a list, only models that need it get it.
        device: where to run; by default a GPU if there is one.

    Raises:
        UserError: no checkpoint, a damaged one, or one with an encoder outside this package that ``encoder`` doesn't
            give; no such device; or models that can't form an ensemble.
    """
    if not isinstance(run_or_checkpoint, (str, Path)):
        if not run_or_checkpoint:
            raise UserError("load needs one checkpoint at least")
        members = [read_checkpoint(resolve(member, "ckpt_path")) for member in run_or_checkpoint]
        return Ensemble([_load(m, None if has_own_encoder(m) else encoder, device) for m in members])
    return _load(read_checkpoint(resolve(run_or_checkpoint, "ckpt_path")), encoder, device)


def _load(
    checkpoint: Checkpoint, encoder: Callable[..., Encoder] | None, device: str | torch.device | None
) -> Predictor:
    network = stored_network(checkpoint, stored_blueprint(checkpoint, encoder))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return Predictor(network, checkpoint, torch.device(device))
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that isn't there
        raise UserError(f"device {device}: {first_line(error)}") from error
