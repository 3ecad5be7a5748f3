"""Tokens a second of each part of a training step, and what the framework adds to a loop written bare.

    python scripts/bench/throughput.py                              # configs/imdb's language model and classifier
    python scripts/bench/throughput.py --precision 32-true --steps 20

The text is made up: words drawn by Zipf's law, documents as long as IMDb's, so nothing is to be fetched. Parts are
measured one by one on ready batches, by the median step. For the overhead, a bare loop and `lit_sft fit` take turns
with the same model, batches, optimizer and precision, and each pair gives a ratio: seconds of the same steps, the first
ones left out. The fit is an ordinary run with the default callbacks, in a folder that is deleted. Run it on a quiet
machine, with the allocator settings of scripts/quickstart.sh: they are set here where they aren't.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from allocator import SETTINGS
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_sft.data.datamodule import TextDataModule
from lit_sft.main import main as lit_sft
from lit_sft.models import ClassifierHead, LMHead, LSTMEncoder, Network
from lit_sft.objectives import AT, MLE, VAT, AdversarialMLE, Mixed, Objective, Probe, Supervised

WORDS, DOCUMENTS, MEAN_LENGTH = 30_000, 6_000, 240
WARMUP = 5
MIXED = {"bf16-mixed": torch.bfloat16, "32-true": None}


class StepTimes(Callback):
    """When each training step began."""

    starts: list[float] = []  # noqa: RUF012 - of the last fit, which builds its callbacks itself

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        StepTimes.starts = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        StepTimes.starts.append(time.perf_counter())


def write_corpus(folder: Path) -> dict[str, Any]:
    """Made-up labeled documents as a Parquet file; the data options that read it as configs/data/imdb.yaml does."""
    import pyarrow as pa
    from pyarrow import parquet

    random = np.random.default_rng(0)
    lengths = np.maximum(random.gamma(2.0, MEAN_LENGTH / 2, DOCUMENTS).astype(int), 10)
    ranks = 1 / np.arange(1, WORDS + 1)
    drawn = random.choice(WORDS, lengths.sum(), p=ranks / ranks.sum())
    texts = [" ".join(f"w{n}" for n in part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]
    table = pa.table({"text": texts, "label": random.integers(0, 2, DOCUMENTS)})
    parquet.write_table(table, folder / "documents.parquet")
    given = yaml.safe_load(Path("configs/data/imdb.yaml").read_text(encoding="utf-8"))
    for key in ("unlabeled", "test", "remove_test_copies"):
        del given[key]
    return {
        **given,
        "labeled": str(folder / "documents.parquet"),
        "cache_dir": str(folder / "cache"),
        "min_frequency": 1,
    }


def network_of(config: dict[str, Any], vocab_size: int, head: str) -> Network:
    """The network of a config under configs/imdb."""
    encoder = LSTMEncoder(vocab_size, **config["model"]["encoder"]["init_args"])
    if head == "lm":
        return Network(encoder, LMHead(encoder.embedding, encoder.output_size))
    return Network(encoder, None, ClassifierHead(encoder.output_size, 1, dropout=config["model"]["head_dropout"]))


class Loop:
    """A training loop written bare: objective, backward pass, clipping, optimizer.

    Args:
        objective: what is minimised.
        network: what is trained, by fused AdamW.
        kind: of the batches, as the objective names them.
        dtype: of autocast; None for none.
    """

    def __init__(self, objective: Objective, network: Network, kind: str, dtype: torch.dtype | None) -> None:
        self.objective, self.network, self.kind, self.dtype = objective, network.train(), kind, dtype
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-3, fused=True)
        self.state: Any = None

    def forward(self, batch: Any) -> torch.Tensor:
        """The loss."""
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
            loss = self.objective(self.network, {self.kind: batch}, self.state)
        self.state = loss.state
        return loss.total

    def step(self, batch: Any) -> None:
        """One whole step."""
        total = self.forward(batch)
        self.optimizer.zero_grad()
        total.backward()
        self.update()

    def update(self) -> None:
        """Clipping and the optimizer."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 0.25)
        self.optimizer.step()


def median_seconds(run: Callable[[Any], None], batches: list[Any]) -> float:
    """Median seconds of a call, the first ones left out."""
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARMUP:])


def show(name: str, batches: list[Any], seconds: float) -> None:
    """Print a line: what takes so many seconds a batch."""
    tokens = statistics.median(batch.num_tokens for batch in batches)
    print(f"  {name:<44}{tokens / seconds:10,.0f} tokens/s   {1000 * seconds:8.1f} ms", flush=True)


def lm_parts(data: TextDataModule, config: dict[str, Any], steps: int, dtype: torch.dtype | None) -> None:
    """Print tokens a second of each part of pretraining."""
    stream, count = data.stream_loader("train").dataset, steps + WARMUP
    seconds = median_seconds(lambda i: stream[i], list(range(count)))
    streams = [stream[i] for i in range(count)]
    print("language model")
    show("a batch of streams is made", streams, seconds)
    loop = Loop(MLE(), network_of(config, data.tokenizer.vocab_size, "lm"), "unlabeled", dtype)
    encoder, head = loop.network.encoder, loop.network.lm_head
    assert head is not None
    hidden = torch.randn(streams[0].targets.numel(), encoder.output_size, requires_grad=True)

    def encode(batch: Any) -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            masks = encoder.draw_masks(*batch.input_ids.shape)
            embeds = encoder.embed(batch.input_ids, masks)
            out = encoder(embeds, batch.attention_mask, encoder.initial_state(len(embeds)), masks)
        out.hidden.float().sum().backward()

    def softmax(batch: Any) -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            nll = head.nll(hidden, batch.targets.flatten())
        nll.sum().backward()

    show("encoder, forward and backward", streams, median_seconds(encode, streams))
    show("adaptive softmax, forward and backward", streams, median_seconds(softmax, streams))
    show("clipping and fused AdamW", streams, median_seconds(lambda _: loop.update(), streams))
    show("the whole step", streams, median_seconds(loop.step, streams))
    adversarial = Loop(AdversarialMLE(), loop.network, "unlabeled", dtype)
    show("adversarially trained, the whole step", streams, median_seconds(adversarial.step, streams))


def classifier_parts(data: TextDataModule, config: dict[str, Any], steps: int, dtype: torch.dtype | None) -> None:
    """Print tokens a second of each part of a fine-tuning."""
    documents, count = data.document_loader("train").dataset, steps + WARMUP
    seconds = median_seconds(lambda i: documents[i], list(range(count)))
    labeled = [documents[i] for i in range(count)]
    print("classifier")
    show("a batch of documents is made", labeled, seconds)
    loop = Loop(Supervised(), network_of(config, data.tokenizer.vocab_size, "classifier"), "labeled", dtype)
    show("the whole step", labeled, median_seconds(loop.step, labeled))
    for term in (AT(), VAT(unlabeled=False)):
        adversarial = Loop(Mixed([term], diagnose_every=0), loop.network, "labeled", dtype)
        show(f"with {term.name.upper()}, the whole step", labeled, median_seconds(adversarial.step, labeled))
    loop.network.backprop_tokens = 100
    show("gradients through the last 100 tokens alone", labeled, median_seconds(loop.step, labeled))
    loop.network.backprop_tokens = None
    probe = Probe()
    probe.prepare(loop.network)
    started = time.perf_counter()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        probe.see_documents(loop.network, labeled, len(data.train))
    show("frozen encoder, which reads documents once", labeled, (time.perf_counter() - started) / count)
    frozen = Loop(probe, loop.network, "labeled", dtype)
    show("frozen encoder, the steps after that", labeled, median_seconds(frozen.step, labeled))


def overhead(
    data: TextDataModule, options: dict[str, Any], folder: Path, precision: str, steps: int, pairs: int
) -> None:
    """Print the ratio of a fit's seconds to the bare loop's, of each pair and their median."""
    config = yaml.safe_load(Path("configs/imdb/pretrain.yaml").read_text(encoding="utf-8"))
    stream, count = data.stream_loader("train").dataset, steps + WARMUP
    (folder / "data.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    (folder / "pretrain.yaml").write_text(yaml.safe_dump({**config, "data": "data.yaml"}), encoding="utf-8")
    callbacks = [{"class_path": f"{StepTimes.__module__}.StepTimes"}]
    (folder / "times.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": callbacks}}), encoding="utf-8")
    command = ["fit", "--config", str(folder / "pretrain.yaml"), "--config", str(folder / "times.yaml")]
    command += [f"--trainer.max_steps={count + 1}", f"--trainer.precision={precision}"]
    command.append("--trainer.limit_val_batches=0")
    ratios = []
    for pair in range(pairs):
        torch.manual_seed(pair)
        network = network_of(config, data.tokenizer.vocab_size, "lm")
        loop = Loop(MLE(**config["model"]["objective"]["init_args"]), network, "unlabeled", MIXED[precision])
        marks = []
        for index in range(count + 1):
            marks.append(time.perf_counter())
            loop.step(stream[index])
        bare = marks[-1] - marks[WARMUP]
        del loop, network
        if code := lit_sft([*command, f"--run_dir={folder / f'run{pair}'}"]):
            raise SystemExit(code)
        fit = StepTimes.starts[count] - StepTimes.starts[WARMUP]
        ratios.append(fit / bare)
        print(f"  pair {pair + 1}: bare {bare:.2f} s, fit {fit:.2f} s, ratio {ratios[-1]:.3f}", flush=True)
    print(f"framework's overhead: {100 * (statistics.median(ratios) - 1):.1f}% (median of {pairs} pairs)")


def parser() -> argparse.ArgumentParser:
    """What it is called with."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--precision", default="bf16-mixed", choices=list(MIXED))
    options.add_argument("--steps", type=int, default=30, help="that are measured")
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("--only", choices=("parts", "overhead"))
    return options


def main() -> None:
    """Measure parts, then the overhead."""
    if any(os.environ.get(name) != value for name, value in SETTINGS.items()) and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})  # read when a process starts
    arguments = parser().parse_args()
    configs = {
        stage: yaml.safe_load(Path(f"configs/imdb/{stage}.yaml").read_text(encoding="utf-8"))
        for stage in ("pretrain", "finetune")
    }
    with tempfile.TemporaryDirectory() as name:
        options = write_corpus(Path(name))
        data = TextDataModule(**options)
        data.prepare_data()
        data.setup()
        if arguments.only != "overhead":
            lm_parts(data, configs["pretrain"], arguments.steps, MIXED[arguments.precision])
            classifier_parts(data, configs["finetune"], arguments.steps, MIXED[arguments.precision])
        if arguments.only != "parts":
            overhead(data, options, Path(name), arguments.precision, arguments.steps, arguments.pairs)


if __name__ == "__main__":
    main()
