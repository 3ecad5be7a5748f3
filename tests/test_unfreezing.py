"""Gradual unfreezing: which weights a training changes at which step, against a schedule written by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Command, Configs, Files
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from processes import run_ranks
from refusals import one_line
from test_ddp import exact, train
from torch import Tensor
from training import data_of, module_of, trainer_of, weights

from lit_sft.callbacks import GradualUnfreezing

pytestmark = pytest.mark.filterwarnings("ignore:GradualUnfreezing. the training ends at step")
HEIGHTS = ("classifier.", "encoder.layers.1.", "encoder.layers.0.", "encoder.embedding.")  # from the top


class Watch(Callback):
    """All weights before the first batch and after each, with the optimizer step after it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, Tensor]]] = []

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.seen.append((trainer.global_step, weights(module)))

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.on_train_start(trainer, module)
        assert {p.grad is None for p in module.parameters() if not p.requires_grad} <= {True}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Which groups have a weight that changed, and not all of them the same bits; from the top."""
    return [
        prefix
        for prefix in HEIGHTS
        if any(not torch.equal(after[name], value) for name, value in before.items() if name.startswith(prefix))
    ]


@pytest.mark.parametrize(
    ("epochs", "averaged", "options", "starts"),
    [
        (1.0, False, {}, (0, 8, 16, 24)),  # 8 batches an epoch
        (0.5, True, {"gradient_clip_val": 0.1}, (0, 4, 8, 12)),
        (0.2, False, {"accumulate_grad_batches": 3}, (0, 1, 1, 2)),  # 3 steps an epoch: 0.6, 1.2 and 1.8 of them
        (0.5, False, {"limit_train_batches": 5, "accumulate_grad_batches": 2}, (0, 2, 3, 4)),  # 3: 1.5, 3 and 4.5
        (100.0, True, {}, (0, 800, 1600, 2400)),
    ],
)
def test_a_group_is_bit_equal_until_its_step_and_then_changes_at_each(
    epochs: float,
    averaged: bool,
    options: dict[str, Any],
    starts: tuple[int, ...],
    files: Files,
    shared_cache: Path,
    tmp_path: Path,
) -> None:
    watch = Watch()
    callbacks: list[Callback] = [watch, GradualUnfreezing(epochs), *([EMAWeightAveraging()] if averaged else [])]
    module = module_of("finetune", dropout=True, optimizer=partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5))
    trainer_of(tmp_path, max_epochs=4, callbacks=callbacks, **options).fit(module, data_of(files, shared_cache))
    steps = [step for step, _ in watch.seen]
    assert steps[0] == 0
    assert len(watch.seen) > 20 or options.get("limit_train_batches")
    for (step, before), (later, after) in zip(watch.seen, watch.seen[1:], strict=False):
        training = [prefix for prefix, start in zip(HEIGHTS, starts, strict=True) if start <= step]
        assert changed(before, after) == (training if later > step else []), f"step {step}"
    assert all(parameter.requires_grad for parameter in module.net.parameters())  # as it was found


def test_what_trains_gets_the_gradient_that_it_gets_without_freezing(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    """The first step of plain SGD: the heads change as in a training of everything."""
    ends = []
    for callbacks in ([], [GradualUnfreezing()]):
        module = module_of("finetune", optimizer=partial(torch.optim.SGD, lr=0.5))
        options = {"max_steps": 1, "gradient_clip_val": None, "callbacks": callbacks}
        trainer_of(tmp_path, **options).fit(module, data_of(files, shared_cache))
        ends.append(weights(module))
    heads = [name for name in ends[0] if name.startswith("classifier.")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in heads)
    assert changed(*ends) == list(HEIGHTS[1:])


def test_two_processes_unfreeze_as_one_does(configs: Configs) -> None:
    config = exact(configs, "finetune")
    options = yaml.safe_load(config.read_text())
    given = {"class_path": "lit_sft.callbacks.GradualUnfreezing", "init_args": {"epochs": 0.4}}
    options["trainer"] |= {"callbacks": [given]}
    config.write_text(yaml.safe_dump(options))
    one = train(config, "one", 1)
    two = train(config, "two", 2, "--trainer.strategy=ddp_find_unused_parameters_true")
    assert (one - two).abs().max() < 1e-6
    moved = ((one[1:] - one[:-1]) != 0).sum(1)
    assert moved[0] < moved[-2]
    for code, written in run_ranks(2, "fit", "--config", config, "--run_dir", "refused"):
        assert code == 2, written
        assert "needs --trainer.strategy ddp_find_unused_parameters_true" in written
        assert "Traceback" not in written


def test_mistakes_are_told_in_a_line(cli: Command, configs: Configs) -> None:
    name = "--trainer.callbacks+=lit_sft.callbacks.GradualUnfreezing"
    result = cli("fit", "--config", configs.pretrain, name)
    assert result.code == 2
    assert "GradualUnfreezing is for model.stage finetune" in result.err
    result = cli("fit", "--config", configs.finetune, name, "--trainer.callbacks.epochs=0")
    assert result.code == 2
    assert result.err == "lit_sft: error: GradualUnfreezing: epochs=0.0 must be above 0\n"
    result = cli("fit", "--config", configs.finetune, name, "--model.objective=Probe")
    one_line(result, "GradualUnfreezing: the encoder stays frozen")


def test_layers_that_never_train_are_told(cli: Command, configs: Configs) -> None:
    name = "--trainer.callbacks+=lit_sft.callbacks.GradualUnfreezing"
    with pytest.warns(UserWarning, match=r"ends at step \d+, before 2 of its layers train"):
        assert cli("fit", "--config", configs.finetune, name).code == 0
