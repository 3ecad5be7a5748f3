"""The LightningDataModule: token arrays in, loaders of streams and of length-bucketed documents out."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import lightning as L
import numpy as np

from lit_sft.data.adopted import Adopted
from lit_sft.data.buckets import DocumentBatch, DocumentDataset
from lit_sft.data.loader import StatefulLoader
from lit_sft.data.pairs import PairDataset, check_answering
from lit_sft.data.provenance import Provenance
from lit_sft.data.streams import StreamDataset
from lit_sft.data.textdata import Split, TextData
from lit_sft.data.tokens import TokenArray
from lit_sft.errors import UserError

MakesDocuments = Callable[..., DocumentDataset]
APART = 2**32  # added to a seed; larger than any that a user gives
# What loaders read when they are made: options that may be set after the constructor, as Lightning's Tuner does.
READ_BY_LOADERS = (
    "max_length",
    "max_response_length",
    "truncation",
    "batch_size",
    "bptt",
    "random_bptt",
    "max_tokens",
    "max_documents",
    "max_unlabeled_documents",
    "seed",
    "num_workers",
)


class TextDataModule(TextData, L.LightningDataModule):
    """Unlabeled text as contiguous streams, labeled documents in length-bucketed batches.

    The objective of a run declares which kinds of batches it reads: ``unlabeled``, ``labeled``, ``unlabeled_documents``
    (the text of the streams in such batches), or several; or ``pairs``, prompts with their responses. The options are
    those of :class:`lit_sft.data.textdata.TextData`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given = inspect.signature(TextData).bind(*args, **kwargs)
        self._training: dict[str, StatefulLoader] = {}
        self._positions: dict[str, Any] = {}
        self._served: Adopted | None = None  # the model that is using the data now

    def plain_options(self) -> dict[str, Any]:
        """The constructor's options as in a config, with the present values of those that may be set later."""
        self._given.apply_defaults()
        now = {name: getattr(self, name) for name in ("direction", *READ_BY_LOADERS)}
        options: dict[str, Any] = json.loads(json.dumps(self._given.arguments | now, default=str))  # a path is a text
        return options

    def prepare_data(self) -> None:
        """As in the base class, with the tokenizer of the model that the module starts from."""
        self._start_as_module()
        super().prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """As in the base class, with the tokenizer of the model that the module starts from; loaders start anew."""
        self._start_as_module()
        super().setup(stage)
        self._positions = {}  # stale after a fit that ended before it made loaders; Lightning restores them later

    def _start_as_module(self) -> None:
        """Adopt what the module starts from or evaluates; on the command line that has been done before."""
        if self.trainer is None or self._prepared is not None or self._adopted != Adopted():
            return
        module: Any = self.trainer.lightning_module
        self.adopt(module.adopted(self.preparation.kind))
        splits: dict[Any, Literal["val", "test"]] = {"validate": "val", "test": "test"}
        split, config = splits.get(self.trainer.state.fn), self.corpus_config
        if split and self._adopted.tokenizer and not (config.labeled or config.unlabeled):
            self.read_only(split)

    def handed_on(self, with_labels: bool) -> Adopted:
        """What other data must adopt for a model trained on these data; ``with_labels``: the model is a classifier."""
        found = Adopted(self.tokenizer, fed=self.fed, direction=self.direction)
        return replace(found, label_names=self.label_names, multilabel=self.multilabel) if with_labels else found

    def serve(self, model: Adopted) -> None:
        """Use these data, as set up, for ``model`` from now on: :attr:`provenance` includes what it has seen before.

        Raises:
            UserError: the model's tokenizer, direction or labels differ from those of the data.
        """
        other = "tokenizer" if model.tokenizer and model.tokenizer.digest != self.tokenizer.digest else None
        if model.direction not in (None, self.direction):
            other = "direction"
        if other is not None:
            raise UserError(
                f"these data were set up with another {other} than the model or checkpoint has: make a new "
                "TextDataModule, which takes over that of its model; LitSFT.load_from_checkpoint makes a checkpoint's"
            )
        model.check_labels(self.label_names, self.multilabel)
        self._served = model

    @property
    def provenance(self) -> Provenance:
        """As in the base class, but for the model that uses the data now, which may have seen other text before."""
        found = super().provenance
        return replace(found, before=self._served.fed) if self._served and self._served.fed else found

    def stream_loader(self, split: Split) -> StatefulLoader:
        """Contiguous streams of the split's text; ``train`` is all unlabeled text, documents reshuffled each epoch."""
        array = _not_empty(self.prepared.unlabeled if split == "train" else self._array(split), split)
        shuffle = self._is_shuffled(split)
        streams = StreamDataset(
            array,
            eos_id=self.tokenizer.eos_id,
            pad_id=self.tokenizer.pad_id,
            batch_size=self.batch_size,
            bptt=self.bptt,
            seed=self.seed,
            shuffle=shuffle,
            direction=self.direction,
            random_bptt=self.random_bptt and shuffle,  # fixed in evaluation, and where the same batches are repeated
        )
        return self._loader(streams)

    def document_loader(self, split: Split) -> StatefulLoader:
        """Length-bucketed batches of the split's labeled documents, shuffled in training only."""
        if not self.label_names:
            raise UserError("fine-tuning needs labels: give --data.labeled a file with a label column")
        return self._split_loader(split, DocumentDataset)

    def unlabeled_document_loader(self) -> StatefulLoader:
        """Length-bucketed batches of all training text, its labels left out, in an order of their own."""
        array, shuffle = _not_empty(self.prepared.unlabeled, "train"), self._is_shuffled("train")
        return self._loader(self._documents(array, self.max_unlabeled_documents, shuffle, seed=self.seed + APART))

    def pair_loader(self, split: Split) -> StatefulLoader:
        """Length-bucketed batches of the split's prompts with their responses, shuffled in training only."""
        check_answering(self.corpus_config.pairs, self.direction)
        return self._split_loader(split, partial(PairDataset, max_response_length=self.max_response_length))

    def _split_loader(self, split: Split, kind: MakesDocuments) -> StatefulLoader:
        array, shuffle = _not_empty(self._array(split), split), self._is_shuffled(split)
        most = self.max_documents if split == "train" else self.max_tokens  # evaluation has no such cap
        return self._loader(self._documents(array, most, shuffle, kind=kind))

    def train_documents(self) -> Iterator[DocumentBatch]:
        """Every training document once, in batches that are the same at each call and in each process."""
        dataset = self._documents(self.train, self.max_tokens, shuffle=False)
        yield from (dataset[index] for index in range(len(dataset)))

    def _documents(
        self,
        array: TokenArray,
        max_documents: int,
        shuffle: bool,
        seed: int | None = None,
        kind: MakesDocuments = DocumentDataset,
    ) -> DocumentDataset:
        return kind(
            array,
            eos_id=self.tokenizer.eos_id,
            pad_id=self.tokenizer.pad_id,
            max_length=self.max_length,
            truncation=self.truncation,
            max_tokens=self.max_tokens,
            max_documents=max_documents,
            seed=self.seed if seed is None else seed,
            shuffle=shuffle,
            direction=self.direction,
        )

    def train_dataloader(self) -> dict[str, StatefulLoader]:
        """A loader for each kind of batch that the objective needs; after ``load_state_dict`` they go on from there.

        A checkpoint holds the positions of the loaders that Lightning requests, not of those made for inspection.
        """
        loaders = self._train_loaders()
        if self.trainer is not None and self.trainer.training:
            for kind, position in self._positions.items():
                if kind in loaders:
                    loaders[kind].load_state_dict(position)
            self._training, self._positions = loaders, {}
        return loaders

    def train_batches(self) -> int:
        """Batches of a training epoch: as many as the longest loader has."""
        return max(len(loader) for loader in self._train_loaders().values())

    def _train_loaders(self) -> dict[str, StatefulLoader]:
        loaders: dict[str, Callable[[], StatefulLoader]] = {
            "unlabeled": partial(self.stream_loader, "train"),
            "labeled": partial(self.document_loader, "train"),
            "unlabeled_documents": self.unlabeled_document_loader,
            "pairs": partial(self.pair_loader, "train"),
        }
        return {kind: loaders[kind]() for kind in sorted(self._objective().batches)}

    def state_dict(self) -> dict[str, Any]:
        """The positions of the training loaders.

        Lightning stores this too, but doesn't load it from a checkpoint taken after the last batch of an epoch: the
        next one would repeat the order of the first.
        """
        return {kind: loader.state_dict() for kind, loader in self._training.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the positions for the loaders that ``train_dataloader`` makes next; only a fit uses them.

        Raises:
            UserError: the checkpoint's objective read other batches than this one does.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return  # Lightning calls this for every command
        before, now = set(state_dict), set(self._objective().batches)
        if before and before != now:
            names = [", ".join(sorted(kinds)) for kinds in (before, now)]
            raise UserError(
                f"the checkpoint's objective read {names[0]}, and this one reads {names[1]}: go on with the same, or "
                "start a new run from its weights, --model.init_from"
            )
        self._positions = state_dict

    def val_dataloader(self) -> list[StatefulLoader]:
        return self._evaluation_loaders("val")

    def test_dataloader(self) -> list[StatefulLoader]:
        return self._evaluation_loaders("test")

    def _evaluation_loaders(self, split: Split) -> list[StatefulLoader]:
        """One loader for each head of the model: streams for the language model, documents for the classifier.

        A model that answers prompts has one loader, of pairs.
        """
        if self.reads_pairs:
            return [self.pair_loader(split)]
        loaders = {"lm": self.stream_loader, "classifier": self.document_loader}
        return [loaders[head](split) for head in sorted(self._objective().heads)]

    @property
    def reads_pairs(self) -> bool:
        """Whether the objective of the Trainer's module reads prompts with responses."""
        return "pairs" in self._objective().batches

    def bytes_per_target(self, split: Split, chosen: np.ndarray | None = None) -> float:
        """UTF-8 bytes of a split's documents per predicted token or document end; for pairs, of the responses alone.

        0, meaning unknown, if a response is truncated: its loss covers only a part of its bytes.

        ``chosen``: bool (documents,), count these documents alone.
        """
        array, pairs = self._array(split), self.trainer is not None and self.reads_pairs
        array = array if chosen is None else array.select(np.flatnonzero(chosen))
        if pairs and (array.response_lengths > self.max_response_length).any():
            return 0.0
        return array.bytes_per_target(responses=pairs)

    def _objective(self) -> Any:
        if self.trainer is None:
            raise RuntimeError("loaders that follow the objective need a Trainer; see stream_loader, document_loader")
        return self.trainer.lightning_module.objective

    def _is_shuffled(self, split: Split) -> bool:
        """Whether batches are shuffled: in training, unless the Trainer repeats the same ones (``overfit_batches``)."""
        repeats = self.trainer is not None and bool(self.trainer.overfit_batches)  # type: ignore[attr-defined]
        return split == "train" and not repeats

    def _loader(self, dataset: StreamDataset | DocumentDataset) -> StatefulLoader:
        if self.trainer is not None and self.trainer.world_size > 1:
            dataset.shard(self.trainer.global_rank, self.trainer.world_size)
            if self.trainer._accelerator_connector.use_distributed_sampler:  # available nowhere else
                raise UserError(
                    "give the Trainer use_distributed_sampler=False: the data module shares the batches out itself"
                )
        pinned = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return StatefulLoader(dataset, self.num_workers, pinned, self._epoch_ends_here)

    def _epoch_ends_here(self) -> bool:
        return self.trainer is not None and self.trainer.is_last_batch


def _not_empty(array: TokenArray, split: Split) -> TokenArray:
    if len(array) == 0:
        option = {"train": "labeled", "val": "val_fraction", "test": "test"}[split]
        raise UserError(f"there are no {split} documents: set --data.{option}")
    return array
