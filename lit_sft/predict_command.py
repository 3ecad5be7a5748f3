"""``predict`` on the command line: documents in, JSON lines out."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from jsonargparse import ArgumentParser

from lit_sft.checkpoints import names_in
from lit_sft.data.readers import STREAM_ROWS, iter_rows
from lit_sft.errors import UserError, nearest
from lit_sft.options import explain, without
from lit_sft.predictor import Ensemble, Predictor, load
from lit_sft.text_classifier import CHARACTERS_AT_ONCE, TEXTS_AT_ONCE

MOMENT = 0.01  # seconds to wait for more input: long enough for a process that writes without a pause


def predict_command(arguments: list[str]) -> None:
    """Run ``predict``: read one document per line, or CSV, TSV, JSONL, Parquet; write a JSON line for each input row.

    Up to ``TEXTS_AT_ONCE`` rows are predicted together; fewer if they are very long, or if standard input has no more
    at the moment. So a single line is answered before the next one is waited for, and a file read through a pipe takes
    no longer than otherwise. But if it isn't clear which column of a CSV or TSV holds the text (``--text_column`` tells
    it), up to 1,024 rows are read first.

    Raises:
        UserError: a mistake in an option, the checkpoint or the input; a half-written output file is removed.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if unknown := without(rest, "--model.encoder"):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for name, stream in (("input", sys.stdin), ("output", sys.stdout)):
        if getattr(options, name) == "-" and stream is None:
            raise UserError(f"--{name} -: standard {name} is closed; give a file")
    paths = names_in(options.ckpt_path)
    one_or_more = paths if len(paths) > 1 else paths[0]
    predictor = load(one_or_more, _encoder(options.encoder, rest), options.device)
    _set_search(predictor, options)
    texts: list[str | None] = []  # not predicted yet
    characters = 0  # in these texts
    with _output(options.output) as output:

        def answer() -> None:
            nonlocal characters
            for prediction in predictor.predict_iter(texts):
                output.write(json.dumps(prediction, ensure_ascii=False) + "\n")
            output.flush()
            texts.clear()
            characters = 0

        rows = iter_rows(
            cast(BinaryIO, _Filtered(sys.stdin.buffer, answer)) if options.input == "-" else options.input,
            text_column=options.text_column,
            encoding=options.encoding,
            header=not options.no_header,
            separator=options.separator,
            labels=False,
            format=options.format,
        )
        try:
            for row in rows:
                texts.append(row.text)
                characters += len(row.text or "")
                if len(texts) == TEXTS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
                    answer()
            answer()
        except _Unanswered as failed:
            raise failed.error from None


class _Unanswered(Exception):
    """Carries a writing error out of a read of the input, where it would be taken for a reading error."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Filtered:
    """Standard input as bytes; before it waits for more, the rows read so far are answered.

    Args:
        stream: standard input.
        answer: called whenever no input is available. Readers ask for bytes only if they have no complete row left in
            their buffers.
    """

    def __init__(self, stream: BinaryIO, answer: Callable[[], None]) -> None:
        self._stream, self._answer = stream, answer

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, as soon as any are available."""
        if not self._ready():
            try:
                self._answer()
            except OSError as error:
                raise _Unanswered(error) from error
        return cast(io.BufferedReader, self._stream).read1(size)

    def _ready(self) -> bool:
        try:
            return bool(select.select([self._stream], [], [], MOMENT)[0])
        except io.UnsupportedOperation:  # not a system file: reading doesn't wait
            return True
        except OSError:  # Windows, which can't tell: reading may wait
            return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lit_sft predict",
        allow_abbrev=False,
        exit_on_error=False,
        description="Label documents, or answer prompts: a JSON line out for each row in, null for a blank one. "
        "Input files are txt (a document a line), csv, tsv, jsonl or parquet by their suffix, with .gz behind it too, "
        "or FORMAT:FILE for these and for file (a document), label_text, fasttext and wikitext.",
    )
    parser.add_argument("--ckpt_path", required=True, help="a run's folder or a checkpoint file; A,B: the mean of both")
    parser.add_argument("--input", required=True, help="a file, or - for standard input, answered as it comes")
    parser.add_argument("--output", required=True, help="a file for JSON lines, or - for standard output")
    parser.add_argument("--format", choices=list(STREAM_ROWS), help="of standard input (default: txt)")
    parser.add_argument("--text_column", help='the column that holds the text (default: "text")')
    parser.add_argument("--no_header", action="store_true", help="CSV and TSV columns are named 0, 1, and so on")
    parser.add_argument("--encoding", default="utf-8")
    parser.add_argument("--separator", help="between label and text of a label_text file (default: a tab)")
    parser.add_argument("--num_beams", type=int, help="of the search for a response (default: the run's)")
    parser.add_argument("--max_new_tokens", type=int, help="of a response (default: the run's max_response_length)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--model.encoder",
        dest="encoder",
        help="the encoder's class, where it is one of your own; --model.encoder.NAME: its option that could name code",
    )

    def refuse(message: str) -> Any:
        wrong = re.search(r"unrecognized arguments: --([\w.]+)", message)
        hint = nearest(wrong[1], [name.lstrip("-") for name in parser._option_string_actions]) if wrong else ""
        raise UserError(f"predict: {message}; {hint}see python -m lit_sft predict --help")

    parser.error = refuse  # type: ignore[method-assign, assignment]
    return parser


def _set_search(predictor: Predictor | Ensemble, options: argparse.Namespace) -> None:
    """Set the options of the search for responses that the user gives.

    Raises:
        UserError: the model answers no prompts, or a number below 1.
    """
    for name in ("num_beams", "max_new_tokens"):
        if (value := getattr(options, name)) is None:
            continue
        if not (isinstance(predictor, Predictor) and predictor.responds):
            raise UserError(f"--{name} is for a model that answers prompts")
        if value < 1:
            raise UserError(f"--{name} {value} must be at least 1")
        setattr(predictor, name, value)


def _encoder(path: str | None, flags: list[str]) -> Any:
    """Import the encoder class that the user names, with the options in ``--model.encoder.NAME VALUE``, if any.

    Raises:
        UserError: there is no such class or option, a value of another type, or options without a class.
    """
    kind = None if path is None else _class(path)
    if not flags:
        return kind
    if not isinstance(kind, type):
        raise UserError(f"{flags[0]}: name the encoder's class, too, as in --model.encoder CLASS")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "model.encoder", skip={1}, instantiate=False, fail_untyped=False)
    for action in parser._actions:
        action.required = False  # the checkpoint has the others
    try:
        given = parser.instantiate(parser.parse_args(flags, defaults=False))
    except (argparse.ArgumentError, SyntaxError) as error:  # SyntaxError: in a module that an option names
        raise explain(error, [name.lstrip("-") for name in parser._option_string_actions]) from error
    return partial(kind, **vars(given["model.encoder"]))


def _class(path: str) -> Any:
    """Import the encoder class that the user names; raise a UserError if it doesn't exist."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: a path, which begins with a dot
        raise UserError(f"--model.encoder {path}: no such class ({error})") from error


@contextmanager
def _output(name: str) -> Iterator[TextIO]:
    """Open standard output, or a file that gets its name only when it is complete."""
    if name == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as for a file, regardless of the locale
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
