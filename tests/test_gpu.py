"""What only a CUDA device can show: the same figures as on the CPU, every precision, and a step that never waits."""

from __future__ import annotations

import copy
import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, Configs, Files, read
from torch import Tensor
from training import data_of, module_of, trainer_of

import lit_sft
from lit_sft.data.datamodule import TextDataModule
from lit_sft.models import EncoderMasks, LSTMEncoder
from lit_sft.module import LitSFT
from lit_sft.objectives import AT, VAT, AuxiliaryLM, EntMin, Mixed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
STAGES = ("pretrain", "finetune")


def loaded(
    stage: str, files: Files, cache: Path, folder: Path, dropout: bool, **options: Any
) -> tuple[LitSFT, TextDataModule]:
    """A module and its data, as they stand when a fit begins."""
    data, module = data_of(files, cache), module_of(stage, dropout=dropout, **options)
    trainer_of(folder, accelerator="gpu", max_steps=0, max_epochs=-1).fit(module, datamodule=data)
    return module, data


@pytest.mark.parametrize("stage", STAGES)
def test_loss_and_gradients_are_those_of_the_cpu(stage: str, files: Files, shared_cache: Path, tmp_path: Path) -> None:
    module, data = loaded(stage, files, shared_cache, tmp_path, dropout=False)
    network = module.net.double().cpu()
    kind, loader = next(iter(data.train_dataloader().items()))
    batch = next(iter(loader))
    found = {}
    for device in ("cpu", "cuda"):
        twin = copy.deepcopy(network).to(device)
        loss = module.objective(twin, {kind: batch.to(device)}, None).total
        loss.backward()
        found[device] = loss.item(), {n: p.grad.cpu() for n, p in twin.named_parameters() if p.grad is not None}
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=1e-9)
    for name, gradient in found["cpu"][1].items():
        torch.testing.assert_close(found["cuda"][1][name], gradient, rtol=1e-7, atol=1e-10)


def test_dropped_weights_give_the_values_and_gradients_of_the_cpu() -> None:
    torch.manual_seed(1)
    encoder = LSTMEncoder(11, 5, 6, 2, weight_dropout=0.5, type_dropout=0.2, word_dropout=0.2).double()
    ids, ones = torch.randint(11, (3, 7)), torch.ones(3, 7)
    masks = encoder.draw_masks(3, 7)

    def run(device: str, dtype: torch.dtype) -> list[Tensor]:
        twin = copy.deepcopy(encoder).to(device, dtype)
        there = moved(masks, device, dtype)
        hidden = twin(ids.to(device), ones.to(device), twin.initial_state(3), there).hidden
        hidden.square().sum().backward()
        return [t.detach().cpu().double() for t in (hidden, *(p.grad for p in twin.parameters()))]

    found = [run("cpu", torch.float64), run("cuda", torch.float64), run("cuda", torch.float32)]
    with torch.autocast("cuda", torch.bfloat16):
        half = run("cuda", torch.float32)
    for exact, double, single, rough in zip(*found, half, strict=True):
        torch.testing.assert_close(double, exact, rtol=1e-9, atol=1e-12)
        assert (single - exact).norm() <= 0.01 * exact.norm()  # cuDNN may multiply with TF32's 10 bits of mantissa
        assert (rough - exact).norm() <= 0.1 * exact.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_under_bfloat16_the_lstm_computes_in_float32_as_autocast_has_it_in_float16(dropout: float) -> None:
    encoder = LSTMEncoder(11, 5, 6, 2, weight_dropout=dropout).cuda()
    ids, ones = torch.randint(11, (3, 7), device="cuda"), torch.ones(3, 7, device="cuda")
    for autocast, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float16)):
        with torch.autocast("cuda", autocast):
            masks = encoder.draw_masks(3, 7)
            found = encoder(encoder.embed(ids, masks), ones, encoder.initial_state(3), masks)
        assert found.hidden.dtype == expected


def moved(masks: EncoderMasks, device: str, dtype: torch.dtype) -> EncoderMasks:
    def one(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(one, value))
        return None if value is None else value.to(device, dtype)

    return EncoderMasks(**{field.name: one(getattr(masks, field.name)) for field in dataclasses.fields(masks)})


@pytest.mark.parametrize("stage", STAGES)
def test_a_training_step_never_waits_for_the_device(
    stage: str, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    module, data = loaded(stage, files, shared_cache, tmp_path, dropout=True)
    module.net.to("cuda").train()
    kind, loader = next(iter(data.train_dataloader().items()))
    batches = [batch.pin_memory() for batch in loader]
    state = None
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for waiting in batches:
            batch = waiting.to("cuda")
            loss = module.objective(module.net, {kind: batch}, state)
            loss.total.backward()
            state = loss.state
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss.total)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_step_with_terms_never_waits_for_the_device(
    precision: str, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    """Directions and diagnostics too."""
    terms = [AT(), VAT(), EntMin(), AuxiliaryLM()]
    objective = Mixed(terms, diagnose_every=1)
    module, data = loaded("finetune", files, shared_cache, tmp_path, dropout=True, objective=objective)
    module.net.to("cuda").train()
    loaders = data.train_dataloader()
    batches = {kind: [batch.to("cuda") for batch in loader] for kind, loader in loaders.items()}
    state = None
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            for number in range(3):
                loss = objective(module.net, {kind: b[number % len(b)] for kind, b in batches.items()}, state)
                loss.total.backward()
                state = loss.state
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(part) for part in {**loss.parts, **loss.measured}.values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_both_stages_train_in_every_precision_and_predict_on_a_cpu(
    precision: str, cli: Command, configs: Configs, files: Files
) -> None:
    gpu = ("--trainer.accelerator=gpu", f"--trainer.precision={precision}", "--trainer.max_epochs=3")
    assert cli("fit", "--config", configs.pretrain, *gpu).code == 0
    assert cli("fit", "--config", configs.finetune, *gpu, "--model.init_from=logs/tiny-pretrain/version_0").code == 0
    run = Path("logs/tiny-finetune/version_0")
    assert read(run / "metrics.json")["val"]["macro_f1"] > 0.3  # a constant answer: 0.17; bf16 was seen to give 0.43
    assert cli("test", "--ckpt_path", run).code == 0

    # The same weights on a CPU, through predict: the labels of `test`, counted by hand.
    with files.test.open(newline="", encoding="utf-8") as file:
        texts, labels = zip(*((row["text"], row["label"]) for row in csv.DictReader(file)), strict=True)
    predicted = lit_sft.load(run, device="cpu").predict(list(texts))
    right = sum(p["label"] == y for p, y in zip(predicted, labels, strict=True)) / len(labels)
    assert right == pytest.approx(read(run / "metrics.json")["test"]["accuracy"])


def test_a_run_cut_on_the_device_goes_on_there(cli: Command, configs: Configs, begun: list[int]) -> None:
    gpu = ("--trainer.accelerator=gpu",)
    assert cli("fit", "--config", configs.pretrain, *gpu).code == 0
    record = Path("logs/tiny-pretrain/version_0/metrics.json")
    half = read(record)["steps"]
    record.unlink()
    more = ("--trainer.max_epochs=2", "--ckpt_path=last")
    assert cli("fit", "--config", configs.pretrain, *gpu, *more).code == 0
    assert begun == [0, half]
    assert read(record)["steps"] == 2 * half > 0
