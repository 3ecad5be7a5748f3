"""What a trained model costs where it is used: its size, how soon it answers, a document at a time and many together.

    python scripts/bench/predict.py logs/mine/version_0 --input documents.txt   # a document a line

start: a fresh process of `predict` that answers one document, imports included, and its largest resident size.
alone: documents one after the other, as a service would get them. together: all of them by one call, beside the LSTM
layers alone on random vectors in the same padded batches, which is what no Python around them can be faster than.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lit_sft
from lit_sft.checkpoints import resolve
from lit_sft.data.buckets import DocumentBatch
from lit_sft.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
from export import write_exported

SIZED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def parser() -> argparse.ArgumentParser:
    """What it is called with."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", help="a run's folder or a checkpoint of a classifier")
    options.add_argument("--input", type=Path, required=True, help="a text file, a document a line")
    options.add_argument("--documents", type=int, default=1000, help="so many of its lines")
    options.add_argument("--threads", type=int, default=1)
    return options


def main() -> None:
    """Measure and print it."""
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    lines = arguments.input.read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if line.strip()][: arguments.documents]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.ckpt")
        write_exported(resolve(arguments.run, "ckpt_path"), model)
        start(model, texts[0], arguments.threads)
        predictor = lit_sft.load(model, device="cpu")
    count = sum(parameter.numel() for parameter in predictor.network.parameters())
    print(f"parameters: {count / 1e6:.1f}M")
    predictor.predict(texts[:8])  # what is slow once
    seconds = [seconds_of(partial(predictor.predict, [text])) for text in texts[:200]]
    middle, high = 1000 * np.quantile(seconds, [0.5, 0.95])
    print(f"alone: {middle:.1f} ms a document in the median, 95% within {high:.1f} ms ({len(seconds)} documents)")
    together(predictor, texts)


def start(model: Path, text: str, threads: int) -> None:
    """A fresh process that answers one document."""
    command = [sys.executable, "-m", "lit_sft", "predict", "--ckpt_path", str(model), "--input", "-", "--output", "-"]
    options: dict[str, Any] = {"env": {**os.environ, "OMP_NUM_THREADS": str(threads)}, "input": text + "\n"}
    size = peak_bytes(command, **options) / 2**20  # the files are in memory then
    run = partial(subprocess.run, command, stdout=subprocess.DEVNULL, text=True, check=True, **options)
    seconds = min(seconds_of(run) for _ in range(3))
    print(f"file: {model.stat().st_size / 1e6:.1f} MB; start to the first answer: {seconds:.1f} s, {size:.0f} MiB")


def peak_bytes(command: list[str], **options: Any) -> int:
    """The largest resident size of a command's process.

    A small process starts it: on Linux ru_maxrss has in it what the starting process had, and this one has torch.
    """
    wrapped = [sys.executable, "-c", SIZED, *command]
    done = subprocess.run(wrapped, stdout=subprocess.PIPE, text=True, check=True, **options)
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def together(predictor: lit_sft.Predictor, texts: list[str]) -> None:
    """All documents by one call, and the LSTM layers alone in the same batches."""
    shapes: list[tuple[int, int]] = []
    compute: Callable[[DocumentBatch], torch.Tensor] = predictor._probabilities

    def seen(batch: DocumentBatch) -> torch.Tensor:
        shapes.append((len(batch.input_ids), batch.input_ids.shape[1]))
        return compute(batch)

    predictor._probabilities = seen  # type: ignore[method-assign]
    predictor.predict(texts)
    predictor._probabilities = compute  # type: ignore[method-assign]
    layers: Any = getattr(predictor.network.encoder, "layers", None)
    if layers is None:
        raise UserError("only an LSTMEncoder's layers can be timed alone")
    kind = predictor.autocast_to  # that of the run, in which the whole is computed, too
    autocast = partial(torch.autocast, predictor.device.type, kind, enabled=kind is not None)
    vectors = [torch.randn(*shape, layers[0].input_size) for shape in shapes]
    with autocast():
        bare = min(seconds_of(lambda: through(layers, vectors)) for _ in range(3))
    whole = min(seconds_of(lambda: predictor.predict(texts)) for _ in range(3))
    print(
        f"together: {len(texts) / whole:.0f} documents a second, {sum(b * t for b, t in shapes) / whole:,.0f} tokens; "
        f"the LSTM layers alone take {bare / whole:.0%} of the time"
    )


@torch.inference_mode()
def through(layers: Any, batches: list[torch.Tensor]) -> None:
    """Every batch through the layers."""
    for vectors in batches:
        for layer in layers:
            vectors, _ = layer(vectors)


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


if __name__ == "__main__":
    main()
