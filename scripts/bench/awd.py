"""Validation perplexity after equal minutes: this recipe, and the AWD-LSTM training loop written bare, on WikiText-2.

    python scripts/bench/awd.py bare --out scripts/results/wikitext2_awd.csv      # an hour of training each
    python scripts/bench/awd.py fit --out scripts/results/wikitext2_awd.csv

Both train the same network (the encoder's sizes and the head of ``--config``) on the same text in the same precision.
``fit`` is an ordinary ``lit_sft fit`` of the config, to the end of its epochs or of the time. ``bare`` is the loop of
Merity et al. (2018) as their public code has it: stretches of random length, SGD at a rate of 30 that is scaled by the
stretch, the gradient clipped at 0.25, weight decay of 1.2e-6, penalties on the activations, its dropouts, an epoch's
validation after each epoch and the averaged weights from where it gets no better. Nothing in it was tuned for an hour,
but it has 20 streams, and so four times the steps of the 80 that their command for WikiText-2 has. Its clock and that
of the fit stop while perplexity is measured. A line is written every quarter of the time. Run them one after the other
on a quiet machine, in one precision.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from torch import Tensor

from lit_sft.callbacks.averaging import WeightMean
from lit_sft.data.datamodule import TextDataModule
from lit_sft.main import main as lit_sft
from lit_sft.models import LMHead, LSTMEncoder, Network
from lit_sft.models.encoder import detach_state

QUARTERS = 4
LANES, BPTT, RATE, CLIP, DECAY, NONMONO, ALPHA, BETA = 20, 70, 30.0, 0.25, 1.2e-6, 5, 2.0, 1.0
DROPOUTS: dict[str, Any] = {  # the paper's for WikiText-2
    "type_dropout": 0.1,
    "embedding_dropout": 0.65,
    "hidden_dropout": 0.2,
    "output_dropout": 0.4,
    "weight_dropout": 0.5,
}


class Clock:
    """Seconds of training: it stands still while perplexity is measured, and writes a line every quarter.

    Args:
        name: of the line.
        minutes: the whole time.
        out: the CSV that grows.
        perplexity: measures, given the network.
    """

    def __init__(self, name: str, minutes: float, out: Path, perplexity: Callable[[Network], float]) -> None:
        self.name, self.limit, self.out, self.perplexity = name, 60 * minutes, out, perplexity
        self.started, self.measured, self.quarter = time.perf_counter(), 0.0, 0

    def now(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self.started - self.measured

    def measure(self, network: Network) -> float:
        """The validation perplexity, off the clock."""
        before = time.perf_counter()
        found = self.perplexity(network)
        self.measured += time.perf_counter() - before
        return found

    @property
    def due(self) -> bool:
        """Whether a quarter has ended whose line isn't written yet."""
        return self.now() >= (self.quarter + 1) * self.limit / QUARTERS

    @property
    def over(self) -> bool:
        """Whether the last quarter's line is written."""
        return self.quarter == QUARTERS

    def write(self, network: Network, step: int, tokens: int) -> None:
        """Append the line of this moment to the CSV."""
        self.quarter += 1
        row = {"loop": self.name, "minutes": round(self.now() / 60, 2), "steps": step, "tokens": tokens}
        row["val_perplexity"] = round(self.measure(network), 2)
        print(row, flush=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        new = not self.out.is_file()
        with self.out.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


def validation(data: TextDataModule, precision: str) -> Callable[[Network], float]:
    """A function that gives a network's perplexity on the validation text."""

    @torch.no_grad()
    def measured(network: Network) -> float:
        training, nll, count, state = network.training, 0.0, 0, None
        network.eval()
        for batch in data.stream_loader("val"):
            state = state or network.encoder.initial_state(len(batch.input_ids))
            with autocast(precision):
                losses, state = network.lm_nll(batch, state, network.draw_masks(*batch.input_ids.shape))
            nll, count = nll + float(losses.sum()), count + batch.num_tokens
        network.train(training)
        return math.exp(nll / count)

    return measured


def autocast(precision: str) -> torch.autocast:
    """The CPU's lower precision, where it is asked for."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")


def stretches(lanes: Tensor, random: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, float]]:
    """An epoch of the bare loop: inputs and targets (lanes, time), and the factor on the rate."""
    at = 0
    while at < lanes.shape[1] - 2:
        base = BPTT if random.random() < 0.95 else BPTT / 2
        length = min(max(5, int(random.normal(base, 5))), lanes.shape[1] - 1 - at)
        yield lanes[:, at : at + length], lanes[:, at + 1 : at + 1 + length], length / BPTT
        at += length


def bare(config: dict[str, Any], data: TextDataModule, clock: Clock, precision: str) -> None:
    """The loop of AWD-LSTM until the clock ends it."""
    torch.manual_seed(0)
    random, eos = np.random.default_rng(0), [data.tokenizer.eos_id]
    text = data.prepared.unlabeled
    flat = np.concatenate([np.concatenate([text.document(i), eos]) for i in range(len(text))]).astype(np.int64)
    lanes = torch.from_numpy(flat[: len(flat) // LANES * LANES]).view(LANES, -1)
    sizes = {k: v for k, v in config["model"]["encoder"]["init_args"].items() if not k.endswith("dropout")}
    encoder = LSTMEncoder(data.tokenizer.vocab_size, **sizes, **DROPOUTS)
    head = LMHead(encoder.embedding, encoder.output_size, config["model"].get("tie_weights_up_to", 10_000))
    network = Network(encoder, head).train()
    weights = list(network.parameters())
    optimizer: torch.optim.Optimizer = torch.optim.SGD(weights, RATE, weight_decay=DECAY)
    figures: list[float] = []
    step = tokens = 0
    clock.started = time.perf_counter()  # as the fit's, from its first step
    while True:
        state = encoder.initial_state(LANES)
        for inputs, targets, factor in stretches(lanes, random):
            for group in optimizer.param_groups:
                group["lr"] = RATE * factor
            with autocast(precision):
                masks = encoder.draw_masks(*inputs.shape)
                real = torch.ones_like(inputs, dtype=torch.bool)
                out = encoder(encoder.embed(inputs, masks), real, detach_state(state), masks)
                loss = head.nll(out.hidden.flatten(0, 1), targets.flatten()).mean()
            state, hidden, raw = out.state, out.hidden.float(), out.raw.float()
            loss = loss + ALPHA * hidden.square().mean() + BETA * (raw[:, 1:] - raw[:, :-1]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
            step, tokens = step + 1, tokens + inputs.numel()
            if clock.due:
                with averaged(optimizer):
                    clock.write(network, step, tokens)
                if clock.over:
                    return
        with averaged(optimizer):
            figure = clock.measure(network)
        if isinstance(optimizer, torch.optim.SGD) and len(figures) > NONMONO and figure > min(figures[:-NONMONO]):
            optimizer = torch.optim.ASGD(weights, RATE, t0=0, lambd=0.0, weight_decay=DECAY)
        figures.append(figure)


class averaged:
    """Within it the weights are ASGD's averages, where there are any."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.states = [(p, optimizer.state[p]["ax"]) for p in optimizer.state if "ax" in optimizer.state[p]]
        self.kept: list[Tensor] = []

    def __enter__(self) -> None:
        self.kept = [p.detach().clone() for p, _ in self.states]
        self._set([average for _, average in self.states])

    def __exit__(self, *_: object) -> None:
        self._set(self.kept)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for (weight, _), value in zip(self.states, values, strict=True):
            weight.copy_(value)


class Timed(L.Callback):
    """Ends a fit by the clock, and has it measure in between; by the averaged weights, where there are any."""

    clock: Clock

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        Timed.clock.started = time.perf_counter()
        self.tokens = 0

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        Timed.clock.measured += time.perf_counter() - self.paused

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.tokens += sum(b.num_tokens for b in batch.values())
        if not Timed.clock.due:
            return
        means = [c for c in trainer.callbacks if isinstance(c, WeightMean)]  # type: ignore[attr-defined]
        for mean in means:
            mean.on_validation_epoch_start(trainer, module)
        Timed.clock.write(module.net, trainer.global_step, self.tokens)  # type: ignore[arg-type]
        trainer.should_stop |= Timed.clock.over
        for mean in means:
            mean.on_validation_epoch_end(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not Timed.clock.over:  # the config's epochs are over before the clock's last quarter
            Timed.clock.write(module.net, trainer.global_step, self.tokens)  # type: ignore[arg-type]


def parser() -> argparse.ArgumentParser:
    """What it is called with."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("loop", choices=("bare", "fit"))
    options.add_argument("--config", type=Path, default=Path("configs/wikitext2_awd.yaml"))
    options.add_argument("--minutes", type=float, default=60.0)
    options.add_argument("--precision", default="32-true", choices=("bf16-mixed", "32-true"))
    options.add_argument("--out", type=Path, required=True)
    return options


def main() -> None:
    """Run one of the loops."""
    arguments = parser().parse_args()
    config = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    options = config["data"]
    if isinstance(options, str):
        options = yaml.safe_load((arguments.config.parent / options).read_text(encoding="utf-8"))
    data = TextDataModule(**options)
    data.prepare_data()
    data.setup()
    clock = Clock(arguments.loop, arguments.minutes, arguments.out, validation(data, arguments.precision))
    if arguments.loop == "bare":
        bare(config, data, clock, arguments.precision)
        return
    Timed.clock = clock
    command = ["fit", "--config", str(arguments.config), f"--trainer.precision={arguments.precision}"]
    command.append("--trainer.accelerator=cpu")  # as the loop
    callback = {"class_path": f"{Timed.__module__}.Timed"}
    code = lit_sft(
        [*command, "--name=bench-awd", "--trainer.callbacks+", yaml.safe_dump(callback, default_flow_style=True)]
    )
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
