"""``hf:NAME[:CONFIG][:SPLIT]``: a data set of the Hugging Face hub, or a local folder in the hub's layout.

Read through the library ``datasets`` (the extra ``hub``). A local folder is streamed; a data set of the hub is
downloaded once and then read from the library's own cache, without a network too.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

from lit_sft.data.columnar import BATCH_ROWS, column_values, columns_in, decoded
from lit_sft.data.label_fields import label_of
from lit_sft.data.rows import Row, RowOptions
from lit_sft.data.sources import Source, expanded
from lit_sft.errors import UserError, one_line

PROBE_SECONDS = 5.0
_answers: dict[str, tuple[float, bool]] = {}  # by the hub's address: time of the last probe, and whether it answered
T = TypeVar("T")


@dataclass(frozen=True)
class HubData:
    """One split of a data set: ``source`` is as the user names it; ``folder``: a local one's path, None on the hub."""

    source: str
    name: str
    folder: Path | None
    config: str | None
    split: str
    builder: Any

    @property
    def version(self) -> str:
        """Commit, configuration and split of a data set on the hub; for a local folder only the latter two."""
        return f"{self.builder.hash if self.folder is None else ''} {self.config} {self.split}"


def open_hub(source: Source, default_split: str) -> HubData:
    """Find a data set; nothing of its data is read yet.

    Args:
        source: ``NAME``, ``NAME:CONFIG``, ``NAME:SPLIT`` or ``NAME:CONFIG:SPLIT``; an empty CONFIG is the default one.
        default_split: the split where none is named.

    Raises:
        UserError: ``datasets`` is not installed, there is no such data set or configuration, or no network.
    """
    datasets = _library()
    name, extras = _taken_apart(source.place)
    folder = expanded(name)
    if folder.is_file():
        raise UserError(f"{source.name}: is a file; write {name}")
    local = folder.resolve() if folder.is_dir() else None
    place = name if local is None else str(local)
    with _reachable(datasets, local is not None):
        config, split, builder = _tried(source.name, lambda: _builder(datasets, place, extras))
    return HubData(source.name, name, local, config or None, split or default_split, builder)


def _builder(datasets: Any, place: str, extras: list[str]) -> tuple[str, str, Any]:
    """Configuration, split and builder; a single word after the name is a configuration if one is named so."""
    if len(extras) == 1:
        with contextlib.suppress(ValueError):  # no such configuration
            return extras[0], "", datasets.load_dataset_builder(place, extras[0] or None)
        extras = ["", extras[0]]
    config, split = extras or ["", ""]
    return config, split, datasets.load_dataset_builder(place, config or None)


def _taken_apart(place: str) -> tuple[str, list[str]]:
    """The name, and up to two words behind it; a folder's own colons belong to its name."""
    for count in range(3):
        name, *extras = place.rsplit(":", count)
        if expanded(name).is_dir():
            return name, extras
    name, *extras = place.split(":", 2)
    return name, extras


def hub_rows(data: HubData, options: RowOptions) -> Iterator[Row]:
    """The rows of a split in order. ClassLabel numbers become names; -1 and None mean no label."""
    dataset = _dataset(data)
    features = dataset.features or {}
    tables = iter(dataset.with_format("arrow").iter(batch_size=BATCH_ROWS))
    columns: tuple[str, str | None] | None = None
    number = 0
    while (table := _tried(data.source, lambda: next(tables, None))) is not None:
        columns = columns or columns_in(table.schema, options)
        yield from _table_rows(table, columns, _class_names(features.get(columns[1])), number, options)
        number += table.num_rows


def _table_rows(
    table: Any, columns: tuple[str, str | None], names: list[str] | None, before: int, options: RowOptions
) -> Iterator[Row]:
    values = zip(*(column_values(table, name) for name in columns), strict=True)
    for number, (text, value) in enumerate(values, start=before + 1):
        value = decoded(value, number, options) if names is None else _named(value, names, number, options)
        yield Row(number, decoded(text, number, options), label_of(value, number, options))


def _dataset(data: HubData) -> Any:
    builder = data.builder
    if data.folder is not None:
        splits = _tried(data.source, builder.as_streaming_dataset)
    else:
        with _reachable(_library(), False):
            _tried(data.source, builder.download_and_prepare)
            splits = dict.fromkeys(builder.info.splits or {})
    if data.split not in splits:
        known = ", ".join(splits)
        raise UserError(f"{data.source}: no split {data.split!r}; there are: {known}; write hf:{data.name}:SPLIT")
    return splits[data.split] or _tried(data.source, lambda: builder.as_dataset(split=data.split))


def _class_names(feature: Any) -> list[str] | None:
    """The names of a ClassLabel's numbers, or of a list of them."""
    feature = getattr(feature, "feature", feature)
    return getattr(feature, "names", None)


def _named(value: Any, names: list[str], number: int, options: RowOptions) -> Any:
    if isinstance(value, list):
        return [_named(part, names, number, options) for part in value]
    if value is None or value == -1:
        return None
    if not 0 <= value < len(names):
        raise options.error(number, f"class {value} of {len(names)}")
    return names[value]


def _library() -> Any:
    """Import ``datasets`` with logging off, and without progress bars unless stderr is a terminal."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise UserError(
            "hf: sources need the library datasets: pip install 'lit_sft[hub]', or give local files"
        ) from error
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # it logs what it also raises
    if not (sys.stderr and sys.stderr.isatty()):
        datasets.disable_progress_bars()
    return datasets


@contextlib.contextmanager
def _reachable(datasets: Any, local: bool) -> Iterator[None]:
    """Go offline if the hub can't be reached: only the library's cache is left, and retries would take minutes."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or (not local and not _hub_answers(datasets.config.HF_ENDPOINT))
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _hub_answers(endpoint: str) -> bool:
    """Whether the hub can be reached; asked once a minute."""
    asked, answer = _answers.get(endpoint, (-math.inf, False))
    if time.monotonic() - asked > 60:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PROBE_SECONDS).close()
            answer = True
        except urllib.error.HTTPError:
            answer = True
        except urllib.error.URLError as error:  # it answered, if Python's own certificates are missing (macOS)
            answer = isinstance(error.reason, ssl.SSLCertVerificationError)
        except (OSError, ValueError, HTTPException):  # the last: an answer that isn't HTTP
            answer = False
        _answers[endpoint] = (time.monotonic(), answer)
    return answer


def _tried(source: str, call: Callable[[], T]) -> T:
    """Turn the exceptions of ``datasets`` and the libraries below it, of any kind, into a UserError."""
    try:
        return call()
    except UserError:
        raise
    except Exception as error:
        what = one_line(error)[:200]
        if isinstance(error, ConnectionError):
            what = (
                "the Hugging Face hub can't be reached, and its data are not in the cache; give local files "
                "(--data.labeled FILE) or a local folder in the hub's layout (hf:FOLDER)"
            )
        raise UserError(f"{source}: {what}") from error
