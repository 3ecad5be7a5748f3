"""Runs that go wrong stop at the step, name it, and can be gone on with; a healthy one isn't touched."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from planted import BATCHES, Seen, SickGradient, documents_of, planted, same
from training import equal, module_of, trainer_of, weights

from lit_sft.callbacks import BestCheckpoint, Health, LastCheckpoint
from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import SickRun, UserError
from lit_sft.mistakes import mistake_in
from lit_sft.module import LitSFT


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are read as from a GPU: later."""
    monkeypatch.setattr("lit_sft.callbacks.health.is_ready", lambda value: False)


def fit(module: LitSFT, data: TextDataModule, folder: Path, *callbacks: Callback, **options: Any) -> L.Trainer:
    """Three epochs, each with a validation and ``last.ckpt``."""
    last = LastCheckpoint()
    last.dirpath = str(folder)
    path = options.pop("ckpt_path", None)
    given = {"max_epochs": 3, "limit_val_batches": 1.0, "callbacks": [*callbacks, last]}
    trainer = trainer_of(folder, **{**given, **options})
    trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    return trainer


def named(numbers: list[int]) -> str:
    """How a message names these documents, as a regular expression."""
    more = f" and {len(numbers) - 4} more" if numbers[4:] else ""
    return ", ".join(rf"{n} \([^)]+\)" for n in numbers[:4]) + more + ";"


def is_finite(state: dict[str, Any]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values())


# ---- a loss or a gradient that isn't finite


@pytest.mark.parametrize("same_module", [False, True])
def test_the_error_of_a_fit_is_not_raised_in_the_next(same_module: bool, data: TextDataModule, tmp_path: Path) -> None:
    health, module = Health(), module_of("pretrain", objective=planted("pretrain", [2], math.nan))
    with pytest.raises(SickRun):
        fit(module, data, tmp_path / "a", health, max_epochs=1)
    again = module if same_module else module_of("pretrain")
    fit(again, data, tmp_path / "b", health, max_epochs=1, num_sanity_val_steps=1)
    assert is_finite(weights(again))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("sick", ["loss", "norm of the gradient"])
@pytest.mark.parametrize("stage", BATCHES)
def test_a_number_that_is_not_finite_stops_the_run_and_a_lower_rate_goes_on(
    stage: str, sick: str, accumulate: int, data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lit_sft.module.rank_zero_info", told.append)
    rng = random.Random(f"{stage} {sick} {accumulate}")
    at, value = rng.randrange(BATCHES[stage], 3 * BATCHES[stage]), rng.choice([math.nan, math.inf])
    options = {"objective": planted(stage, [at], value)} if sick == "loss" else {}
    module, seen = module_of(stage, **options), Seen()
    callbacks = [seen, Health()] if sick == "loss" else [seen, SickGradient(at, value), Health()]
    with pytest.raises(SickRun) as error:
        fit(module, data, tmp_path, *callbacks, accumulate_grad_batches=accumulate)

    epoch, batch = divmod(at, BATCHES[stage])
    of_epoch = -(-BATCHES[stage] // accumulate)
    window = batch // accumulate
    batches = [batch]
    if sick != "loss":  # told when the last batch of the step is in
        batches = [b for b in range(BATCHES[stage]) if b // accumulate == window]
    message = str(error.value)
    assert message.startswith(f"step {epoch * of_epoch + window} (epoch {epoch}, batch {batches[-1]}): the {sick} is ")
    assert "nan" in message or "inf" in message
    documents = named(documents_of(data, stage, epoch, batches))
    assert re.search(f"; {'un' if stage == 'pretrain' else ''}labeled documents {documents}", message)
    assert f"{tmp_path}/last.ckpt keeps the weights after {epoch * of_epoch} steps: go on" in message
    assert message.endswith("go on with --ckpt_path last and a lower --model.optimizer.lr (now 0.01)")

    first = epoch * BATCHES[stage] + window * accumulate  # the batch that the sick step began with
    assert equal(weights(module), seen.weights[first])
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert is_finite(stored["state_dict"])
    assert stored["global_step"] == epoch * of_epoch

    again = module_of(stage, optimizer=partial(torch.optim.AdamW, lr=0.002))
    path = tmp_path / "last.ckpt"
    trainer = fit(again, data, tmp_path, Health(), accumulate_grad_batches=accumulate, ckpt_path=path)
    assert trainer.global_step == 3 * of_epoch
    assert told == ["resumed with changed options: lr: 0.01 -> 0.002"]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("sick", ["loss", "norm of the gradient"])
def test_on_a_device_it_is_told_later_and_nothing_bad_is_kept(
    sick: str, fused: bool, data: TextDataModule, tmp_path: Path, waits: None
) -> None:
    options = {"objective": planted("finetune", [11], math.nan)} if sick == "loss" else {}
    module, seen = module_of("finetune", optimizer=partial(torch.optim.AdamW, lr=0.01, fused=fused), **options), Seen()
    callbacks = [seen, Health()] if sick == "loss" else [seen, SickGradient(11, math.nan), Health()]
    with pytest.raises(SickRun, match=rf"^step 11 \(epoch 1, batch 3\): the {sick} is nan; labeled documents") as error:
        fit(module, data, tmp_path, *callbacks, log_every_n_steps=5, gradient_clip_val=1.0)
    assert re.search(named(documents_of(data, "finetune", 1, [3])), str(error.value))
    assert len(seen.weights) == 15  # it was read when 15 steps were done
    assert equal(seen.weights[12], seen.weights[11]) is fused  # else they are all NaN
    assert same(seen.optimizer[12], seen.optimizer[11]) is fused
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert is_finite(stored["state_dict"])
    assert stored["global_step"] == 8


def test_on_a_device_it_is_told_before_a_checkpoint(data: TextDataModule, tmp_path: Path, waits: None) -> None:
    each = ModelCheckpoint(str(tmp_path), "{step}", every_n_train_steps=1, save_top_k=-1)
    module = module_of("finetune", objective=planted("finetune", [4], math.nan))
    with pytest.raises(SickRun, match=r"^step 4 "):
        fit(module, data, tmp_path, each, Health(), log_every_n_steps=50)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [f"step={n}.ckpt" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("options", [{}, {"log_every_n_steps": 0}, {"limit_val_batches": 0}], ids=str)
def test_on_a_device_the_last_steps_are_looked_at_too(
    options: dict[str, Any], data: TextDataModule, tmp_path: Path, waits: None
) -> None:
    module = module_of("pretrain", objective=planted("pretrain", [10], math.inf))
    with pytest.raises(SickRun, match=r"^step 10 \(epoch 0, batch 10\): the loss is inf; .*no checkpoint yet"):
        fit(module, data, tmp_path, Health(), max_epochs=1, **{"log_every_n_steps": 50, **options})
    assert not list(tmp_path.glob("*.ckpt"))


def test_weights_that_are_not_finite_are_never_saved(data: TextDataModule, tmp_path: Path) -> None:
    class Overflow(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == 16:
                module.net.encoder.layers[1].bias_hh_l0.data[2] = math.inf

    message = r"^step 16: encoder\.layers\.1\.bias_hh_l0 isn't finite any more; .*after 8 steps"
    with pytest.raises(SickRun, match=message):
        fit(module_of("finetune"), data, tmp_path, Overflow(), Health())
    assert is_finite(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])


@pytest.mark.parametrize("stage", BATCHES)
def test_a_healthy_run_is_the_same_with_and_without(
    stage: str, data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = []
    for number, health in enumerate([None, Health(), Health(collapse_patience=0), Health(50.0, 6)]):
        if number == 2:
            monkeypatch.setattr("lit_sft.callbacks.health.is_ready", lambda value: False)
        module = module_of(stage, dropout=True)
        torch.manual_seed(5)
        fit(module, data, tmp_path / str(number), *([health] if health else []), gradient_clip_val=0.2)
        after.append(weights(module))
    assert all(equal(after[0], other) for other in after[1:])


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("limit", "algorithm"), [(None, None), (0.1, "norm"), (0.01, "value")])
def test_clipping_is_lightnings_and_the_norm_from_before_it_is_logged(
    limit: float | None, algorithm: str | None, accumulate: int, data: TextDataModule, tmp_path: Path
) -> None:
    class Lightnings(LitSFT):
        configure_gradient_clipping = L.LightningModule.configure_gradient_clipping

    class Norms(Callback):
        def __init__(self) -> None:
            self.expected: list[float] = []
            self.logged: list[float] = []

        def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
            gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
            self.expected.append(torch.cat(gradients).norm().item())

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if len(self.logged) < len(self.expected):
                self.logged.append(float(trainer.callback_metrics["train/grad_norm"]))

    norms, after = Norms(), []
    options = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    for kind, callbacks in ((LitSFT, [norms]), (Lightnings, [])):
        module = module_of("finetune")
        module.__class__ = kind
        folder = tmp_path / kind.__name__
        fit(module, data, folder, *callbacks, **options, accumulate_grad_batches=accumulate, max_epochs=2)
        after.append(weights(module))
    assert equal(*after)
    assert len(norms.logged) == 2 * -(-8 // accumulate)
    assert norms.logged == pytest.approx(norms.expected)


class InFloat32(MixedPrecision):
    """The gradient scaler of ``16-mixed``; a CPU has no LSTM in float16."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu"))

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        yield


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler:UserWarning")  # the first step is skipped
@pytest.mark.parametrize("sick", [True, False])
def test_gradients_that_are_never_finite_stop_a_run_whose_scaler_skips_them(
    sick: bool, data: TextDataModule, tmp_path: Path, waits: None
) -> None:
    gradients = [SickGradient(batch, math.inf) for batch in range(40 if sick else 0)]
    message = r"^step 30: gradients have not been finite for so long that their scale .* 6\.1e-05; .*after 24 steps"
    options = {"max_epochs": 5, "plugins": [InFloat32()], "log_every_n_steps": 10}
    with pytest.raises(SickRun, match=message) if sick else nullcontext():
        fit(module_of("finetune"), data, tmp_path, *gradients, Health(collapse_patience=0), **options)


def test_a_fused_optimizer_that_unscales_for_itself_cannot_be_clipped(data: TextDataModule, tmp_path: Path) -> None:
    def kernels(limit: float | None, **options: bool) -> list[bool]:
        module = module_of("finetune", optimizer=partial(torch.optim.AdamW, lr=0.01, **options))
        given = {"max_steps": 1, "gradient_clip_val": limit, "plugins": [InFloat32()]}
        trainer = fit(module, data, tmp_path, Health(), **given)
        return [group["fused"] for group in trainer.optimizers[0].param_groups]

    with pytest.raises(RuntimeError) as caught:
        kernels(1.0, fused=True)
    told = str(mistake_in(caught.value, tmp_path, None))
    assert "leave it out (the fused kernel is used anyway), or give --trainer.gradient_clip_val null" in told
    for fused in (kernels(None, fused=True), kernels(1.0)):
        assert fused == [True] * len(fused)


# ---- collapse to one class


class Dominating(Callback):
    """A bias of the classifier that no document can outweigh, from this step on."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step > self.start:
            module.net.classifier.linear.bias.data[1] = 100.0


@pytest.mark.parametrize(("patience", "epochs"), [(1, 1), (3, 3), (0, 5)])
def test_a_collapse_to_one_class_stops_the_run(
    patience: int, epochs: int, data: TextDataModule, tmp_path: Path
) -> None:
    module = module_of("finetune")
    callbacks = (Dominating(), Health(collapse_patience=patience))
    if patience == 0:
        assert fit(module, data, tmp_path, *callbacks, max_epochs=5).current_epoch == epochs
        return
    message = rf"^step {8 * epochs}: a collapse to one class: in {patience} validations in a row "
    message += r"nearly every document was taken for 'sky' \(val/loss \d"
    with pytest.raises(SickRun, match=message + r".*; start again with a lower --model\.optimizer\.lr \(now 0\.01\)"):
        fit(module, data, tmp_path, *callbacks, max_epochs=5)
    assert (tmp_path / "last.ckpt").is_file() is (epochs > 1)  # the validation that ends the run saves nothing


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_without_figures_no_collapse_is_looked_for(data: TextDataModule, tmp_path: Path) -> None:
    for stage, patience in (("finetune", 3), ("finetune", 0), ("pretrain", 3)):
        trainer = L.Trainer(
            accelerator="cpu",
            barebones=True,
            max_steps=1,
            val_check_interval=1,
            limit_val_batches=1,
            default_root_dir=tmp_path,
            callbacks=[Health(collapse_patience=patience)],
        )
        if stage == "finetune" and patience:
            with pytest.raises(UserError, match=r"a collapse in figures .*: give it collapse_patience=0"):
                trainer.fit(module_of(stage), datamodule=data)
        else:
            trainer.fit(module_of(stage), datamodule=data)


def test_after_a_collapse_the_best_checkpoint_before_it_is_named(data: TextDataModule, tmp_path: Path) -> None:
    best = BestCheckpoint()
    best.dirpath = str(tmp_path)
    message = rf"go on from {tmp_path}/best\.ckpt \(after 16 steps\) with a lower --model\.optimizer\.lr"
    with pytest.raises(SickRun, match=rf"^step 40: .*{message}"):
        fit(module_of("finetune"), data, tmp_path, Dominating(16), Health(), best, max_epochs=9)


@pytest.mark.parametrize(
    ("validations", "stops"),  # (the label that is nearly always predicted, loss, AUROC); guessing has a loss of 1.0986
    [
        ([("sea", 1.3, 0.9), ("sea", 1.25, 0.9), ("sea", 1.22, 0.9)], 3),  # worse than guessing
        ([("sea", 1.1, 0.5), ("sea", 1.1, 0.58), ("sea", 1.095, 0.5)], 3),  # no better
        ([("sea", 1.1018, 0.8), ("sea", 1.0967, 0.9), ("sea", 1.0967, 0.95), ("sea", 1.0967, 0.95)], None),  # it ranks
        ([("sea", 1.1, 0.5), ("sea", 1.08, 0.5), ("sea", 1.06, 0.5), ("sea", 1.04, 0.5)], None),  # its loss falls
        ([("sea", 1.1, 0.5), ("sea", 1.08, 0.5), *[("sea", 1.08, 0.5)] * 3], 5),  # and falls no further
        ([("sea", 1.3, 0.5), ("sea", 1.3, 0.5), (None, 1.3, 0.5), ("sea", 1.3, 0.5), ("sea", 1.3, 0.5)], None),
        ([("sea", 1.3, 0.5), ("sea", 1.3, 0.5), ("sky", 1.3, 0.5)], 3),
        ([(None, 0.5, 0.9), ("sea", 1.0986, 0.5), ("sea", 1.0986, 0.5), ("sea", 1.0986, 0.5)], 4),
        ([("sea", math.nan, 0.5)] * 3, 3),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_a_model_that_has_only_begun_to_learn_has_not_collapsed(
    validations: list[tuple[str | None, float, float]], stops: int | None, resumed: bool
) -> None:
    health, stopped = Health(), None
    trainer: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"), sanity_checking=False, checkpoint_callbacks=[])
    trainer.optimizers = [SimpleNamespace(param_groups=[{"initial_lr": 0.1}])]
    for number, (label, loss, auroc) in enumerate(validations, start=1):
        metrics = SimpleNamespace(collapsed_to=lambda label=label: label, guessing=math.log(3))
        trainer.global_step, trainer.callback_metrics = number, {"val/loss": loss, "val/auroc": auroc}
        module: Any = SimpleNamespace(evaluation=SimpleNamespace(classes=metrics), label_names=["sea", "sky", "wood"])
        try:
            health.on_validation_end(trainer, module)
        except SickRun:
            stopped = number
            break
        if resumed:
            state, health = health.state_dict(), Health()
            health.load_state_dict(state)
    assert stopped == stops
