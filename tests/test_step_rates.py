"""Steps at rates of their own, against a loop written by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Files
from lightning.pytorch.callbacks import Callback
from training import Losses, PowerCut, data_of, module_of, trainer_of, weights

from lit_sft.module import LitSFT
from lit_sft.objectives import AuxiliaryLM, Mixed
from lit_sft.optim import WarmupCosine, clip_gradients
from lit_sft.step_rates import scaled

SGD = partial(torch.optim.SGD, lr=2.0, weight_decay=0.01)


class AtEveryStep(Callback):
    """The rate before and after a step, and that of the step itself."""

    def __init__(self) -> None:
        self.inside: list[float] = []
        self.after: list[float] = []

    def on_train_start(self, trainer: Any, module: LitSFT) -> None:
        optimizer = trainer.optimizers[0]
        optimizer.register_step_pre_hook(lambda *_: self.inside.append(optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.after.append(trainer.optimizers[0].param_groups[0]["lr"])


def by_hand(module: LitSFT, data: Any, accumulate: int, epochs: int) -> tuple[list[float], list[float]]:
    """SGD with clipping and a schedule, each step at its mean length over bptt: its rates, and the scheduled ones."""
    loader, network, state = data.stream_loader("train"), module.net.train(), None
    total, schedule = epochs * -(-len(loader) // accumulate), WarmupCosine(0.2)
    rates, scheduled, step = [], [], 0
    parameters = list(network.parameters())
    for _ in range(epochs):
        lengths: list[int] = []
        for number, batch in enumerate(loader):
            loss = module.objective(network, {"unlabeled": batch}, state)
            state = loss.state
            first = number - number % accumulate
            (loss.total / (min(first + accumulate, len(loader)) - first)).backward()
            lengths.append(batch.input_ids.shape[1])
            if len(lengths) < accumulate and number + 1 < len(loader):
                continue
            rate = 2.0 * schedule(step, total)
            scheduled.append(rate)
            rate = rate * (sum(length / data.bptt for length in lengths) / len(lengths))
            rates.append(rate)
            clip_gradients(torch.optim.SGD(parameters, lr=1.0), 0.5, by_value=False)
            with torch.no_grad():
                for parameter in parameters:
                    decay = 0.01 if parameter.ndim > 1 else 0.0
                    parameter -= rate * (parameter.grad + decay * parameter)
                    parameter.grad = None
            lengths, step = [], step + 1
    return rates, scheduled


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rates_by_length_equal_a_loop_by_hand(
    accumulate: int, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    options = {"bptt": 24, "batch_size": 8, "random_bptt": True}
    module = module_of("pretrain", optimizer=SGD, schedule=WarmupCosine(0.2))
    seen, rates = Losses(), AtEveryStep()
    given = {"max_epochs": 2, "accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5}
    trainer = trainer_of(tmp_path, callbacks=[seen, rates], **given)
    trainer.fit(module, datamodule=data_of(files, shared_cache, **options))

    data = data_of(files, shared_cache, **options)
    data.prepare_data()
    data.setup()
    slow = module_of("pretrain", optimizer=SGD, schedule=WarmupCosine(0.2))
    slow.build(data.tokenizer, data.label_names)
    inside, scheduled = by_hand(slow, data, accumulate, 2)
    assert rates.inside == pytest.approx(inside, rel=1e-12)
    assert len(set(inside)) > len(inside) / 2
    for name, value in weights(module).items():
        torch.testing.assert_close(value, weights(slow)[name], rtol=1e-5, atol=1e-6)
    # before a step and after it the rate is the schedule's, to the bit
    assert rates.after[:-1] == seen.rates[1:]
    assert sorted(set(seen.rates)) == sorted(set(scheduled))


def test_a_stream_beside_labels_leaves_the_rate_alone(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    rates = AtEveryStep()
    module = module_of("finetune", optimizer=SGD, objective=Mixed([AuxiliaryLM()]))
    data = data_of(files, shared_cache, bptt=24, batch_size=8, random_bptt=True)
    trainer_of(tmp_path, callbacks=[rates], max_steps=6).fit(module, datamodule=data)
    assert len(set(rates.inside)) == 1


class PowerCutAfter(Callback):
    """Ends a fit after its third batch, in the middle of a step of two."""

    def on_train_batch_end(self, trainer: Any, module: LitSFT, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            raise PowerCut


def test_a_fit_that_was_broken_off_leaves_nothing_for_the_next_one(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    module, found = module_of("pretrain", optimizer=SGD), []
    for broken in (False, True):
        options = {"accumulate_grad_batches": 2, "max_steps": 3}
        if broken:
            trainer = trainer_of(tmp_path, callbacks=[PowerCutAfter()], **options)
            data = data_of(files, shared_cache, bptt=24, random_bptt=True)
            with pytest.raises(PowerCut):
                trainer.fit(module, datamodule=data)
        rates = AtEveryStep()
        trainer = trainer_of(tmp_path, callbacks=[rates], **options)
        trainer.fit(module, datamodule=data_of(files, shared_cache, bptt=24, random_bptt=True))
        found.append(rates.inside)
    assert found[0] == found[1]
    assert len(set(found[0])) == 3


def test_the_rate_is_put_back_even_after_an_exception() -> None:
    groups = [{"lr": 0.1}, {"lr": torch.tensor(0.3)}]
    tensor = groups[1]["lr"]

    def fail() -> None:
        with scaled(groups, 0.7):
            assert groups[0]["lr"] == 0.1 * 0.7
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert groups[0]["lr"] == 0.1
    assert groups[1]["lr"] is tensor
    assert tensor.item() == pytest.approx(0.3)
