"""What preparing data costs beside its tokenizer, how soon a second start has its first batch, and what 1 GB takes.

    python scripts/bench/prepare.py                                # all three, with IMDb in data/imdb/
    python scripts/bench/prepare.py --parts memory --gigabytes 4

speed: from Parquet files to token arrays in an empty cache, beside the tokenizer alone: training on the same texts, in
a list in memory already, then tokenising all of them by the library's own call, in the same chunks. The contamination
gate is measured within the preparation, and told apart. start: a fresh process, its imports done; the
sources are hashed, as always. memory: the largest resident size of a fresh process that prepares a text file of reviews
in which 3 words of 100 are replaced by random ones, so that its vocabulary goes on growing as the file does.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import yaml

from lit_sft.data import corpus
from lit_sft.data.contamination import through_gate
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.encoding import chunks
from lit_sft.data.tokenization import Tokenizer

CONFIG = Path(__file__).parents[2] / "configs" / "data" / "imdb.yaml"
TOKENIZERS: dict[str, dict[str, Any]] = {
    "word": {"tokenizer": "word", "vocab_size": 30_000, "lowercase": True},
    "bpe": {"tokenizer": "bpe", "vocab_size": 8_000, "lowercase": False},
}
LETTERS = np.frombuffer(b"etaoinshrdlucmfwyp", dtype=np.uint8)


def parser() -> argparse.ArgumentParser:
    """What it is called with."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data/imdb"), help="where IMDb's Parquet files are")
    options.add_argument(
        "--parts", nargs="+", choices=("speed", "start", "memory"), default=("speed", "start", "memory")
    )
    options.add_argument("--kinds", nargs="+", choices=TOKENIZERS, default=list(TOKENIZERS))
    options.add_argument("--gigabytes", type=float, default=1.0)
    options.add_argument("--child", help=argparse.SUPPRESS)
    return options


def main() -> None:
    """Measure what is asked for and print it."""
    arguments = parser().parse_args()
    if arguments.child:
        return child(**json.loads(arguments.child))
    options = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    for split in ("labeled", "unlabeled", "test"):
        options[split] = str(arguments.data / Path(options[split]).name)
    with tempfile.TemporaryDirectory() as folder:
        for kind in arguments.kinds:
            its = {**options, **TOKENIZERS[kind], "cache_dir": f"{folder}/{kind}"}
            if "speed" in arguments.parts:
                speed(kind, its)
            if "start" in arguments.parts:
                TextDataModule(**its).prepare_data()
                found = in_a_process(its, batch=True)
                print(f"{kind}: second start, from set-up to the first batches: {found['seconds']:.2f} s", flush=True)
        if "memory" in arguments.parts:
            path = Path(folder, "large.txt")
            size = write_large(path, review_texts(options), int(1e9 * arguments.gigabytes))
            for kind in arguments.kinds:
                its = {"labeled": None, "unlabeled": str(path), "cache_dir": f"{folder}/large-{kind}"}
                memory(kind, size, its | TOKENIZERS[kind])


def speed(kind: str, options: dict[str, Any]) -> None:
    """Print the seconds of the tokenizer alone and of the whole preparation."""
    texts = review_texts(options)
    training = [*texts["labeled"], *texts["unlabeled"]]
    names = {"kind": kind, "vocab_size": options["vocab_size"], "lowercase": options["lowercase"]}
    tokenizer, train = timed(lambda: Tokenizer.train(training, **names))  # type: ignore[arg-type]
    _, tokenise = timed(lambda: encode([*training, *texts["test"]], tokenizer))
    gates = [np.zeros(2)]

    def timed_gate(*arguments: Any, **options: Any) -> Any:
        found, seconds = timed(lambda: through_gate(*arguments, **options))
        gates.append(seconds)
        return found

    with patch.object(corpus, "through_gate", timed_gate):
        _, whole = timed(TextDataModule(**options).prepare_data)
    alone, gate = train + tokenise, np.sum(gates, axis=0)
    rest = whole - gate
    wall, cpu = rest / alone
    parts = f"training {train[0]:.1f}, tokenising {tokenise[0]:.1f}"
    print(
        f"{kind}: the tokenizer alone {alone[0]:.1f} s ({parts}); prepared in "
        f"{rest[0]:.1f} s, {wall:.2f} times that, {cpu:.2f} times its CPU seconds (these tell more on a busy machine); "
        f"{gate[0]:.1f} s of contamination gate",
        flush=True,
    )


def encode(texts: list[str], tokenizer: Tokenizer) -> None:
    """Tokenise all texts by the library's own call, and drop what comes of it."""
    for chunk in chunks(texts):
        tokenizer._tokenizer.encode_batch_fast(chunk, add_special_tokens=False)


def memory(kind: str, size: int, options: dict[str, Any]) -> None:
    """Print the largest resident size of a process that prepares ``size`` bytes of text."""
    found = in_a_process(options, batch=False)
    peak, imports = found["peak"] / 1e9, found["imports"] / 1e9
    print(
        f"{kind}: {size / 1e9:.2f} GB of text prepared in {found['seconds']:.0f} s with {peak:.2f} GB resident, "
        f"{imports:.2f} of them the imports'",
        flush=True,
    )


def in_a_process(options: dict[str, Any], batch: bool) -> dict[str, float]:
    """What :func:`child` prints."""
    argument = json.dumps({"options": options, "batch": batch})
    done = subprocess.run([sys.executable, __file__, "--child", argument], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(options: dict[str, Any], batch: bool) -> None:
    """Prepare data in this process, and print seconds and bytes."""
    imports = peak_bytes()
    started = time.perf_counter()
    data = TextDataModule(**options)
    data.prepare_data()
    if batch:
        data.setup()
        next(iter(data.stream_loader("train")))
        next(iter(data.document_loader("train")))
    print(json.dumps({"seconds": time.perf_counter() - started, "peak": peak_bytes(), "imports": imports}))


def peak_bytes() -> int:
    """The largest resident size of this process so far. On Linux ru_maxrss has in it what the starting process had."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def review_texts(options: dict[str, Any]) -> dict[str, list[str]]:
    """The texts of each source."""
    sources = {split: options[split] for split in ("labeled", "unlabeled", "test")}
    return {split: pq.read_table(path, columns=["text"])["text"].to_pylist() for split, path in sources.items()}


def write_large(path: Path, texts: dict[str, list[str]], size: int) -> int:
    """A review a line, up to ``size`` bytes, three words of a hundred replaced by random letters; returns its bytes."""
    random = np.random.default_rng(0)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for text in cycle([text for part in texts.values() for text in part]):
            line = " ".join(changed(text.replace("\n", " ").split(" "), random)) + "\n"
            file.write(line)
            written += len(line.encode())
            if written >= size:
                return written
    raise AssertionError("cycle has no end")


def changed(words: list[str], random: np.random.Generator) -> Iterator[str]:
    """The words, some of them replaced."""
    replaced = random.random(len(words)) < 0.03
    new = iter(LETTERS[random.integers(0, len(LETTERS), (int(replaced.sum()), 9))])
    return (next(new).tobytes().decode() if change else word for word, change in zip(words, replaced, strict=True))


def timed(call: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What a call returns, and how long it took: seconds and CPU seconds of all threads, (2,)."""
    before = np.array([time.perf_counter(), time.process_time()])
    found = call()
    return found, np.array([time.perf_counter(), time.process_time()]) - before


if __name__ == "__main__":
    main()
