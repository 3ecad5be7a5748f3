"""Training through the Trainer against hand-written loops; schedules, groups and evaluation as they really run."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Files, labeled_rows, write_csv
from torch import Tensor, nn
from training import Losses, data_of, equal, module_of, trainer_of, weights

from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import UserError
from lit_sft.models.heads import class_probabilities
from lit_sft.module import LitSFT
from lit_sft.objectives import Supervised
from lit_sft.optim import OneCycle, SlantedTriangular, WarmupCosine

CLIP = 0.5


def streams(data: TextDataModule, epoch: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of an epoch, each (lanes, lane length), by lists of Python."""
    array, eos = data.prepared.unlabeled, data.tokenizer.eos_id
    text = [eos]
    for i in np.random.default_rng((data.seed, epoch)).permutation(len(array)):
        text += [*array.document(int(i)).tolist(), eos]
    length = math.ceil((len(text) - 1) / data.batch_size)
    inputs, targets = text[:-1], text[1:]
    missing = length * data.batch_size - len(inputs)
    inputs, targets = inputs + [data.tokenizer.pad_id] * missing, targets + [-100] * missing
    return torch.tensor(inputs).view(-1, length), torch.tensor(targets).view(-1, length)


def truncated_bptt(module: LitSFT, data: TextDataModule, epochs: int, steps: int) -> tuple[list[float], Tensor]:
    """Losses and the last embedding of language-model training as a plain loop, in float64, with clipping."""
    start = {name: value.double() for name, value in weights(module).items()}
    embedding = nn.Parameter(start["encoder.embedding.weight"])
    lstm = nn.LSTM(8, 12, num_layers=2, batch_first=True, dtype=torch.float64)
    renamed = {name.replace("l0", f"l{i}"): i for i in (0, 1) for name, _ in lstm.named_parameters() if "l0" in name}
    lstm.load_state_dict({n: start[f"encoder.layers.{i}.{n[:-1]}0"] for n, i in renamed.items()})
    projection = nn.Linear(12, 8, dtype=torch.float64)
    projection.load_state_dict({n: start[f"lm_head.projection.{n}"] for n in ("weight", "bias")})
    bias = nn.Parameter(start["lm_head.bias"])
    parameters = [embedding, bias, *lstm.parameters(), *projection.parameters()]
    decays = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1}]
    decays += [{"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(decays, lr=0.01, foreach=False)
    losses: list[float] = []
    for epoch in range(epochs):
        inputs, targets = streams(data, epoch)
        state = None
        for begin in range(0, inputs.shape[1], data.bptt):
            x, y = (t[:, begin : begin + data.bptt] for t in (inputs, targets))
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * WarmupCosine(0.2)(len(losses), steps)
            hidden, state = lstm(F.embedding(x, embedding), state)
            state = tuple(s.detach() for s in state)
            logits = projection(hidden) @ embedding.T + bias
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            losses.append(loss.item())
    return losses, embedding.detach()


def test_language_model_training_equals_a_hand_written_loop_over_two_epochs(
    data: TextDataModule, tmp_path: Path
) -> None:
    optimizer = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    module = module_of("pretrain", optimizer=optimizer, schedule=WarmupCosine(0.2))
    data.prepare_data()
    data.setup()
    module.build(data.tokenizer, data.label_names)
    batches = len(data.stream_loader("train"))
    assert batches > 4
    expected, embedding = truncated_bptt(module, data, 2, 2 * batches)
    seen = Losses()
    trainer_of(tmp_path, max_epochs=2, precision="64-true", gradient_clip_val=CLIP, callbacks=[seen]).fit(
        module, datamodule=data
    )
    assert seen.values == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(module.net.encoder.embedding.weight, embedding, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_batch_can_be_learnt_by_heart(stage: str, data: TextDataModule, tmp_path: Path) -> None:
    data.bptt = 24
    units = {"hidden_size": 48, "embedding_size": 24, "num_layers": 1}
    module = module_of(stage, encoder=units, optimizer=partial(torch.optim.Adam, lr=0.03))
    seen = Losses()
    steps = 120 if stage == "pretrain" else 40
    trainer_of(tmp_path, max_epochs=steps, overfit_batches=1, callbacks=[seen]).fit(module, datamodule=data)
    assert seen.values[0] > 1.0
    assert max(seen.values[-5:]) < 0.05
    if stage == "finetune":
        batch = next(iter(data.document_loader("train")))
        guess = class_probabilities(module.net.classify(batch, module.net.eval().draw_masks(*batch.input_ids.shape)))
        assert torch.equal(guess.argmax(1), batch.labels)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 8),
        ({"max_epochs": 3}, 24),
        ({"accumulate_grad_batches": 3}, 3),
        ({"accumulate_grad_batches": 3, "max_epochs": 2, "limit_train_batches": 4}, 4),
        ({"limit_train_batches": 5}, 5),
        ({"limit_train_batches": 0.4}, 3),
        ({"limit_train_batches": 99}, 8),
        ({"max_steps": 5}, 5),
        ({"max_steps": 11, "max_epochs": -1}, 11),
        ({"max_steps": 99}, 8),
        ({"overfit_batches": 2, "max_epochs": 2}, 4),
        ({"overfit_batches": 0.5}, 4),
        ({"overfit_batches": 99}, 8),
        ({"fast_dev_run": 2}, 2),
    ],
    ids=str,
)
def test_the_number_of_steps_is_known_beforehand(
    options: dict[str, Any], expected: int, data: TextDataModule, tmp_path: Path
) -> None:
    data.max_tokens = 512  # two batches of validation: half of them is one
    module = module_of("finetune", schedule=WarmupCosine(warmup=0.3))
    seen = Losses()
    trainer = trainer_of(tmp_path, callbacks=[seen], **options)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == module.total_steps() == expected
    rates = [0.01 * module.schedule(step, expected) for step in range(expected)]
    every = options.get("accumulate_grad_batches", 1)
    if every == 1:
        assert seen.rates == pytest.approx(rates)
    assert set(seen.rates) == set(rates)


@pytest.mark.parametrize("epochs", [-1, 0])
def test_a_fit_without_an_end_or_steps_is_refused_when_the_schedule_needs_them(
    epochs: int, data: TextDataModule, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, max_epochs=epochs)
    with pytest.raises(UserError, match=r"OneCycle needs a number of steps above 0: set --trainer\.max_epochs"):
        trainer.fit(module_of("finetune", schedule=OneCycle()), datamodule=data)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_validation_in_mid_epoch_does_not_change_training(stage: str, data: TextDataModule, tmp_path: Path) -> None:
    after: list[dict[str, Tensor]] = []
    for options in ({"limit_val_batches": 0}, {"limit_val_batches": 1.0, "val_check_interval": 2}):
        module = module_of(stage, dropout=True)
        torch.manual_seed(3)
        trainer_of(tmp_path, max_epochs=2, **options).fit(module, datamodule=data)
        after.append(weights(module))
    assert equal(*after)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_bfloat16_stays_near_float32(stage: str, data: TextDataModule, tmp_path: Path) -> None:
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        seen = Losses()
        module = module_of(stage)
        trainer_of(tmp_path, precision=precision, callbacks=[seen]).fit(module, datamodule=data)
        losses.append(seen.values)
        assert all(p.dtype == torch.float32 for p in module.parameters())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_layers_below_learn_at_their_own_rate(data: TextDataModule, tmp_path: Path) -> None:
    moved = []
    for decay in (1.0, 0.1):
        module = module_of("finetune", optimizer=partial(torch.optim.SGD, lr=0.5), layer_decay=decay)
        data.prepare_data()
        data.setup()
        module.build(data.tokenizer, data.label_names)
        before = weights(module)
        trainer_of(tmp_path, max_steps=1).fit(module, datamodule=data)
        moved.append({name: value - before[name] for name, value in weights(module).items()})
    for name, step in moved[0].items():
        below = 0 if "classifier" in name else 3 if "embedding" in name else 2 - int(name.split(".")[2])
        torch.testing.assert_close(moved[1][name], step * 0.1**below, rtol=1e-3, atol=1e-7)
        assert step.any()


@pytest.mark.filterwarnings("ignore:transductive")  # one file serves as all three splits
@pytest.mark.parametrize("classes", [2, 3])
def test_evaluation_drops_nothing_and_equals_a_loop_over_documents(
    classes: int, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    rows = [row for row in labeled_rows(8, 5) if classes == 3 or row[1] != "wood"]
    path = str(write_csv(tmp_path / "few.csv", rows))
    data = data_of(files, shared_cache, labeled=path, val=path, test=path)
    weighted = Supervised(label_smoothing=0.2, class_weights=[1.0, 2.0, 0.5][:classes])
    module = module_of("finetune", dropout=True, objective=weighted)
    trainer = trainer_of(tmp_path, max_epochs=3, limit_val_batches=1.0)
    trainer.fit(module, datamodule=data)
    (figures,) = trainer.validate(module, datamodule=data, verbose=False)
    (again,) = trainer.validate(module, datamodule=data, verbose=False)
    (test,) = trainer.test(module, datamodule=data, verbose=False)
    assert again == figures
    assert {name.replace("test/", "val/"): value for name, value in test.items()} == pytest.approx(figures)
    losses, hits = [], []
    module.eval()
    dataset = data.document_loader("val").dataset
    for i in range(len(data.val)):
        ids = [dataset.eos_id, *data.val.document(i)[:32].tolist(), dataset.eos_id]
        hidden = F.embedding(torch.tensor([ids]), module.net.encoder.embedding.weight)
        for layer in module.net.encoder.layers:
            hidden, _ = layer(hidden)
        pooled = torch.cat([hidden[:, -1], hidden.amax(1), hidden.mean(1)], 1)
        logits = module.net.classifier.linear(pooled)
        full = logits if classes > 2 else torch.cat([torch.zeros(1, 1), logits], 1)
        label = torch.tensor([int(data.val.labels[i])])
        losses.append(F.cross_entropy(full, label).item())
        hits.append(full.argmax(1).item() == label.item())
    assert figures["val/loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert figures["val/accuracy"] == pytest.approx(np.mean(hits))


def test_the_validation_perplexity_is_that_of_one_pass_over_the_text(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    data = data_of(files, shared_cache, batch_size=1, bptt=16)
    module = module_of("pretrain", dropout=True)
    trainer = trainer_of(tmp_path, limit_val_batches=1.0, limit_train_batches=3)
    trainer.fit(module, datamodule=data)
    (figures,) = trainer.validate(module, datamodule=data, verbose=False)
    eos = data.tokenizer.eos_id
    text = [eos, *(t for i in range(len(data.val)) for t in (*data.val.document(i).tolist(), eos))]
    module.eval()
    hidden = F.embedding(torch.tensor([text[:-1]]), module.net.encoder.embedding.weight)
    for layer in module.net.encoder.layers:
        hidden, _ = layer(hidden)
    loss = F.cross_entropy(module.net.lm_head.log_prob(hidden[0]), torch.tensor(text[1:])).item()
    assert figures["val/loss"] == pytest.approx(loss, rel=1e-4)
    assert figures["val/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    size = sum(len(text.encode()) for text in data.corpus.val.texts)
    assert figures["val/bits_per_byte"] == pytest.approx(loss * (len(text) - 1) / math.log(2) / size, rel=1e-4)


@pytest.mark.parametrize("schedule", [OneCycle(), SlantedTriangular()], ids=lambda s: type(s).__name__)
def test_layers_keep_their_ratio_under_a_schedule(schedule: Any, data: TextDataModule, tmp_path: Path) -> None:
    module = module_of("pretrain", schedule=schedule, layer_decay=0.5)
    trainer = trainer_of(tmp_path, max_steps=4)
    trainer.fit(module, datamodule=data)
    rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}
    top = 0.01 * schedule(4, 4)
    expected = {"embedding": 0.125, "layer1": 0.25, "layer1.bias": 0.25, "layer2": 0.5, "layer2.bias": 0.5}
    assert rates == pytest.approx({n: f * top for n, f in {**expected, "head": 1.0, "head.bias": 1.0}.items()})
