"""A trained model on new text: ``lit_sft.load`` in Python, ``predict`` on the command line."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from lit_sft.checkpoints import Checkpoint, read_checkpoint, resolve
from lit_sft.data.batches import Direction
from lit_sft.data.buckets import DocumentBatch, DocumentDataset, Truncation
from lit_sft.data.readers import iter_rows
from lit_sft.data.tokens import TokenArray
from lit_sft.errors import UserError, nearest
from lit_sft.models import Encoder
from lit_sft.module import LitSFT
from lit_sft.objectives import MLE, Objective, Supervised
from lit_sft.options import one_line
from lit_sft.stored_options import own_class, stored_config
from lit_sft.thresholds import applying

TEXTS_AT_ONCE = 2048  # sorted by length together; memory stays at this many, whatever the input's size
TOKENS_AT_ONCE = 16_384
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # a run in one of these is tested in it, too


class Predictor:
    """A trained model with its tokenizer and label names. Made by :func:`load`."""

    def __init__(self, module: LitSFT, data: dict[str, Any], device: torch.device, precision: str = "32-true") -> None:
        self.module = module.to(device).eval()
        self.device = device
        self.autocast_to = MIXED.get(precision)
        if device.type == "cpu" and self.autocast_to == torch.float16:
            self.autocast_to = None  # the CPU has no float16 LSTM
        self.max_length = int(data.get("max_length") or 400)
        self.truncation: Truncation = data.get("truncation") or "head"
        self.direction: Direction = data.get("direction") or "forward"

    @property
    def label_names(self) -> list[str]:
        """The classes, in the order of the model's outputs."""
        return self.module.label_names

    def predict(self, texts: Sequence[str]) -> list[dict[str, Any] | None]:
        """The label and all probabilities of each text, in their order; None for a blank text.

        Returns:
            ``{"label": name, "probabilities": {name: probability, ...}}`` for each text; of a multi-label model
            ``{"labels": [name, ...], "probabilities": {...}}`` with the labels whose probability reaches their
            threshold, which was chosen in validation.

        Raises:
            UserError: the checkpoint is of pretraining and has no classifier.
        """
        return list(self.predict_iter(texts))

    def predict_iter(self, texts: Iterable[str | None]) -> Iterator[dict[str, Any] | None]:
        """As :meth:`predict`, over an input of any length: memory doesn't grow with it."""
        if self.module.net.classifier is None:
            raise UserError("a pretraining checkpoint can't classify: predict needs a fine-tuned one")
        for probabilities in self._in_order(texts, self._probabilities):
            if probabilities is None:
                yield None
                continue
            by_name = dict(zip(self.label_names, probabilities.tolist(), strict=True))
            thresholds = self.module.evaluation.thresholds
            if thresholds is None:
                yield {"label": self.label_names[int(probabilities.argmax())], "probabilities": by_name}
                continue
            chosen = applying(probabilities, thresholds).tolist()
            labels = [name for name, applies in zip(self.label_names, chosen, strict=True) if applies]
            yield {"labels": labels, "probabilities": by_name}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Document vectors, float32 of shape (texts, units): pooled as for the classifier; NaN for a blank text."""
        rows = list(self._in_order(texts, self._vectors))
        vectors = np.full((len(rows), next((len(row) for row in rows if row is not None), 0)), np.nan, np.float32)
        for vector, row in zip(vectors, rows, strict=True):
            if row is not None:
                vector[:] = row.numpy()
        return vectors

    @torch.inference_mode()
    def _in_order(
        self, texts: Iterable[str | None], compute: Callable[[DocumentBatch], Tensor]
    ) -> Iterator[Tensor | None]:
        """A row of ``compute``'s result for each text: a chunk is batched by length, then put back in order."""
        tokenizer = self.module.tokenizer
        assert tokenizer is not None
        source = iter(texts)
        while chunk := list(islice(source, TEXTS_AT_ONCE)):
            filled = [i for i, text in enumerate(chunk) if text is not None and text.strip()]
            rows: list[Tensor | None] = [None] * len(chunk)
            if filled:
                ids = tokenizer.encode_batch([str(chunk[i]) for i in filled])
                dataset = DocumentDataset(
                    TokenArray.from_ids(ids),
                    tokenizer.eos_id,
                    tokenizer.pad_id,
                    self.max_length,
                    self.truncation,
                    TOKENS_AT_ONCE,
                    TEXTS_AT_ONCE,
                    seed=0,
                    shuffle=False,
                    direction=self.direction,
                )
                for index in range(len(dataset)):
                    batch = dataset[index].to(self.device)
                    with torch.autocast(self.device.type, self.autocast_to, enabled=self.autocast_to is not None):
                        result = compute(batch)
                    for position, row in zip(batch.indices.tolist(), result.cpu(), strict=True):
                        rows[filled[position]] = row
            yield from rows

    def _probabilities(self, batch: DocumentBatch) -> Tensor:
        network = self.module.net
        return network.class_probabilities(network.classify(batch, network.draw_masks(*batch.input_ids.shape)))

    def _vectors(self, batch: DocumentBatch) -> Tensor:
        return self.module.net.pooled(batch, self.module.net.draw_masks(*batch.input_ids.shape)).float()


def load(
    run_or_checkpoint: str | Path,
    encoder: Callable[..., Encoder] | None = None,
    device: str | torch.device | None = None,
) -> Predictor:
    """Load a trained model from a run's folder or a checkpoint file.

    Args:
        run_or_checkpoint: a file, a stage's folder (its best checkpoint) or a recipe's (the best of its last stage).
        encoder: the encoder where it isn't one of this package: its class, which gets the vocabulary size and the
            options in the checkpoint, or a function of the vocabulary size.
        device: where to run; by default a GPU if there is one.

    Raises:
        UserError: no checkpoint there, a damaged one, one whose encoder is code outside this package, or no such
            device.
    """
    checkpoint = read_checkpoint(resolve(run_or_checkpoint, "ckpt_path"))
    module = build_module(checkpoint, encoder)
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return Predictor(module, checkpoint.config.get("data", {}), chosen, checkpoint.precision)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that isn't there
        raise UserError(f"device {device}: {str(error).splitlines()[0]}") from error


def build_module(checkpoint: Checkpoint, encoder: Callable[..., Encoder] | None = None) -> LitSFT:
    """The checkpoint's module with its weights, from plain values; nothing outside this package is imported.

    Its objective is not needed: which heads there are, the weights tell.
    """
    is_class = isinstance(encoder, type)
    named = {"encoder": _class_path_in(checkpoint)} if is_class else {}
    without = ("objective",) if is_class or encoder is None else ("objective", "encoder")
    options = stored_config(checkpoint, named, without)["model"]
    spec = options.pop("encoder", None)
    if spec is not None:
        kind: Any = encoder or own_class(spec["class_path"], Encoder)
        encoder = partial(kind, **spec["init_args"])
    if encoder is not None:
        options["encoder"] = encoder
    try:
        module = LitSFT(**options, objective=_heads_of(checkpoint))
        network = module.build(checkpoint.tokenizer(), checkpoint.label_names, checkpoint.multilabel)
        network.load_state_dict(checkpoint.network_weights())
        module.evaluation.thresholds = checkpoint.thresholds
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{checkpoint.path}: can't be built from its own options: {one_line(error)}") from error
    return module


class _BothHeads(Supervised):
    heads = frozenset({"lm", "classifier"})


def _heads_of(checkpoint: Checkpoint) -> Objective:
    """An objective that asks for the heads that the checkpoint has weights of."""
    found = {name.split(".", 1)[0] for name in checkpoint.network_weights()}
    if "classifier" not in found:
        return MLE()
    return _BothHeads() if "lm_head" in found else Supervised()


def predict_command(arguments: list[str]) -> None:
    """``predict``: a document a line, or CSV, TSV, JSONL, Parquet in; a JSON line out for each input row.

    Raises:
        UserError: a mistake in an option, the checkpoint or the input; a half-written output file is removed.
    """
    options = _parser().parse_args(arguments)
    predictor = load(options.ckpt_path, options.encoder and _class(options.encoder), options.device)
    rows = iter_rows(
        sys.stdin.buffer if options.input == "-" else options.input,
        text_column=options.text_column,
        encoding=options.encoding,
        header=not options.no_header,
        separator=options.separator,
        labels=False,
        format=options.format,
    )
    with _output(options.output) as output:
        for prediction in predictor.predict_iter(row.text for row in rows):
            output.write(json.dumps(prediction, ensure_ascii=False) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lit_sft predict",
        allow_abbrev=False,
        exit_on_error=False,
        description="Label documents: a JSON line out for each row in, null for a blank one. "
        "Input files are txt (a document a line), csv, tsv, jsonl or parquet by their suffix, with .gz behind it too, "
        "or FORMAT:FILE for these and for file (a document), label_text, fasttext and wikitext.",
    )
    parser.add_argument("--ckpt_path", required=True, help="a run's folder or a checkpoint file")
    parser.add_argument("--input", required=True, help="a file, or - for standard input")
    parser.add_argument("--output", required=True, help="a file for JSON lines, or - for standard output")
    formats = ("txt", "csv", "tsv", "jsonl", "file", "fasttext", "wikitext")
    parser.add_argument("--format", choices=formats, help="of standard input (default: txt)")
    parser.add_argument("--text_column", help='the column that holds the text (default: "text")')
    parser.add_argument("--no_header", action="store_true", help="CSV and TSV columns are named 0, 1, and so on")
    parser.add_argument("--encoding", default="utf-8")
    parser.add_argument("--separator", help="between label and text of a label_text file (default: a tab)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--model.encoder", dest="encoder", help="the encoder's class, where it is one of your own")

    def refuse(message: str) -> Any:
        wrong = re.search(r"unrecognized arguments: --([\w.]+)", message)
        hint = nearest(wrong[1], [name.lstrip("-") for name in parser._option_string_actions]) if wrong else ""
        raise UserError(f"predict: {message}; {hint}see python -m lit_sft predict --help")

    parser.error = refuse  # type: ignore[method-assign, assignment]
    return parser


def _class(path: str) -> Any:
    """The class that the user names."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--model.encoder {path}: no such class ({error})") from error


def _class_path_in(checkpoint: Checkpoint) -> str:
    spec = checkpoint.config.get("model", {}).get("encoder")
    return str(spec.get("class_path") if isinstance(spec, dict) else spec)


@contextmanager
def _output(name: str) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name only when it is complete."""
    if name == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    path = Path(name)
    special = path.exists() and not path.is_file()  # /dev/null, a pipe: written to, never replaced
    temporary = path if special else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        file = temporary.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {name}: can't be written: {error.strerror}") from error
    try:
        with file:
            yield file
        if not special:
            temporary.replace(path)
    except BaseException:
        if not special:
            temporary.unlink()
        raise
