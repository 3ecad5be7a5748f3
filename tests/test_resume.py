"""Checkpoints, resuming and starting from a pretrained run. Dropout is on: a checkpoint knows the masks to come."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import Files
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from training import Losses, PowerCut, data_of, equal, module_of, trainer_of, weights

from lit_sft.callbacks import LastCheckpoint
from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import UserError
from lit_sft.mistakes import mistake_in
from lit_sft.module import LitSFT
from lit_sft.optim import WarmupCosine
from lit_sft.random_states import go_on_drawing, random_states

STAGES = ["pretrain", "finetune"]


def every(steps: int) -> ModelCheckpoint:
    return ModelCheckpoint(filename="{step}", every_n_train_steps=steps, save_top_k=-1)


def train(stage: str, data: TextDataModule, folder: Path, callback: Any, **options: Any) -> tuple[LitSFT, Losses]:
    """A fit of 3 epochs that may end in a power cut (``stop_at``) or go on from ``ckpt_path``."""
    module = options.pop("module", None) or module_of(stage, dropout=True, schedule=WarmupCosine(0.2), layer_decay=0.7)
    seen = Losses(options.pop("stop_at", None))
    path = options.pop("ckpt_path", None)
    callback.dirpath = str(folder)
    given = {"max_epochs": 3, "gradient_clip_val": 0.5, "limit_val_batches": 1.0, "callbacks": [seen, callback]}
    trainer = trainer_of(folder, **{**given, **options})
    if seen.stop_at is None:
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    else:
        with pytest.raises(PowerCut):
            trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    return module, seen


@pytest.mark.parametrize(
    ("stage", "options"),
    [("pretrain", {"val_check_interval": 3}), ("finetune", {})],  # in the second epoch, and at the end of the first
    ids=str,
)
def test_the_last_checkpoint_written_after_a_validation_goes_on_with_the_next_batch(
    stage: str, options: dict[str, Any], files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    data = data_of(files, shared_cache)
    whole, losses = train(stage, data, tmp_path / "whole", LastCheckpoint(keep=1), **options)
    done = len(losses.values) // 3 + options.get("val_check_interval", 0)
    train(stage, data_of(files, shared_cache), tmp_path / "cut", LastCheckpoint(keep=1), stop_at=done + 2, **options)
    assert [path.name for path in (tmp_path / "cut").glob("*.ckpt")] == ["last.ckpt"]
    path = tmp_path / "cut" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == done
    data = data_of(files, shared_cache)
    resumed, rest = train(stage, data, tmp_path / "cut", LastCheckpoint(), ckpt_path=path, **options)
    assert rest.values == losses.values[done:]
    assert equal(weights(resumed), weights(whole))


def test_the_hidden_state_is_what_makes_the_difference(data: TextDataModule, tmp_path: Path) -> None:
    _, losses = train("pretrain", data, tmp_path, every(5), max_epochs=1)
    checkpoint = torch.load(tmp_path / "step=5.ckpt", weights_only=True)
    assert all(t.any() and not t.requires_grad for layer in checkpoint["lit_sft"]["ranks"][0]["state"] for t in layer)
    checkpoint["lit_sft"]["ranks"][0]["state"] = None
    torch.save(checkpoint, tmp_path / "forgot.ckpt")
    _, rest = train("pretrain", data, tmp_path, every(5), max_epochs=1, ckpt_path=tmp_path / "forgot.ckpt")
    assert rest.values[0] != losses.values[5]


def test_every_generator_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    """Those of Python and NumPy too, which a callback or an objective of the user's may draw from."""

    def drawn() -> tuple[float, ...]:
        ours = random.random(), random.gauss(), torch.rand(()).item()
        return *ours, np.random.random(), np.random.standard_normal()  # noqa: NPY002

    drawn()  # of two normal numbers that are made at once the second is left
    torch.save(random_states(), tmp_path / "states.pt")
    expected = drawn()
    drawn()
    go_on_drawing(torch.load(tmp_path / "states.pt", weights_only=True), rank=1)
    assert drawn() == expected
    fresh = []
    for rank in (0, 0, 1, 2):  # of a new run
        torch.manual_seed(3)
        go_on_drawing(None, rank)
        fresh.append(torch.rand(()).item())
    assert fresh[0] == fresh[1]
    assert len(set(fresh)) == 3


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(plain(k) and plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return value is None or isinstance(value, (str, int, float, bool, Tensor))


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_holds_plain_values_and_tensors_and_all_that_is_needed(
    stage: str, data: TextDataModule, tmp_path: Path
) -> None:
    train(stage, data, tmp_path, every(5), max_epochs=1)
    checkpoint = torch.load(tmp_path / "step=5.ckpt", weights_only=True)
    assert plain(checkpoint)
    ours = checkpoint["lit_sft"]
    assert ours["stage"] == stage
    assert ours["label_names"] == ["sea", "sky", "wood"]
    assert ours["tokenizer"] == data.tokenizer.to_json()
    own = {n.removeprefix("network.") for n in checkpoint["state_dict"]}
    assert ("lm_head.weight" in own, "classifier.linear.weight" in own) == (stage == "pretrain", stage == "finetune")


def pretrained(data: TextDataModule, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    train("pretrain", data, folder, every(5), max_epochs=1)
    path = folder / "step=5.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    return path, {name.removeprefix("network."): value for name, value in state.items()}


def test_init_from_takes_the_encoder_and_keeps_a_fresh_head(data: TextDataModule, tmp_path: Path) -> None:
    path, before = pretrained(data, tmp_path)
    optimizer = partial(torch.optim.SGD, lr=1e-9)
    fitted = []
    for source in (str(path), None):
        module = module_of("finetune", optimizer=optimizer, init_from=source)
        trainer_of(tmp_path, max_steps=1).fit(module, datamodule=data)
        fitted.append(weights(module))
    after, fresh = fitted
    assert any(name.startswith("classifier.") for name in after)
    for name, value in after.items():
        source, other = (before, fresh) if name.startswith("encoder.") else (fresh, before)
        torch.testing.assert_close(value, source[name], rtol=0, atol=1e-6)
        if name in other and other[name].any():
            assert not torch.allclose(value, other[name], atol=1e-4)


@pytest.mark.parametrize(("pooling", "taken"), [("concat", True), ("mean", False)])
def test_a_classifier_is_taken_over_as_a_whole_or_not_at_all(
    pooling: Literal["concat", "mean"],
    taken: bool,
    data: TextDataModule,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lit_sft.transfer.rank_zero_warn", told.append)
    still = partial(torch.optim.SGD, lr=1e-12)
    first = module_of("finetune", head_hidden_size=5)
    train("finetune", data, tmp_path, every(1), module=first, max_steps=1)
    start = str(tmp_path / "step=1.ckpt")
    second = module_of("finetune", head_hidden_size=5, pooling=pooling, init_from=start, optimizer=still)
    trainer_of(tmp_path, max_steps=1).fit(second, datamodule=data)
    before, after = weights(first), weights(second)
    kept = {name for name in after if name.startswith("classifier.") and close(before[name], after[name])}
    assert kept == ({name for name in after if name.startswith("classifier.")} if taken else set())
    told = [line for line in told if "classifier" in line]
    assert len(told) == (not taken)
    assert (
        taken
        or "starts fresh: classifier.linear.0.weight is (5, 12) here and (5, 36) there; give model.pool" in told[0]
    )


def close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-7)


def test_a_resumed_run_does_not_start_from_init_from_again(data: TextDataModule, tmp_path: Path) -> None:
    path, _ = pretrained(data, tmp_path / "pretrain")

    def module() -> LitSFT:
        return module_of("finetune", init_from=str(path), schedule=WarmupCosine())

    whole, _ = train("finetune", data, tmp_path / "whole", every(5), module=module())
    train("finetune", data, tmp_path / "cut", every(5), module=module(), stop_at=6)
    path.unlink()
    resumed = module()
    path = tmp_path / "cut" / "step=5.ckpt"
    train("finetune", data, tmp_path / "cut", every(5), module=resumed, ckpt_path=path)
    assert equal(weights(resumed), weights(whole))


def test_init_from_is_taken_after_a_validation_and_never_undoes_a_training(
    data: TextDataModule, tmp_path: Path
) -> None:
    path, before = pretrained(data, tmp_path)
    module = module_of("finetune", init_from=str(path), optimizer=partial(torch.optim.SGD, lr=0.5))
    trainer_of(tmp_path, limit_val_batches=1).validate(module, datamodule=data, verbose=False)
    trainer_of(tmp_path, max_steps=1).fit(module, datamodule=data)
    name = "encoder.layers.1.weight_hh_l0"
    moved = weights(module)[name]
    torch.testing.assert_close(moved, before[name], rtol=0, atol=0.05)
    module.make_optimizer = partial(torch.optim.SGD, lr=1e-12)
    trainer_of(tmp_path, max_steps=1).fit(module, datamodule=data)
    torch.testing.assert_close(weights(module)[name], moved, rtol=0, atol=1e-7)
    assert not torch.equal(moved, before[name])


def test_optimizer_options_changed_on_resume_win_and_are_told(
    data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lit_sft.module.rank_zero_info", told.append)
    train("finetune", data, tmp_path, every(5), stop_at=6)
    assert told == []
    changed = module_of(
        "finetune",
        schedule=WarmupCosine(0.2),
        layer_decay=0.7,
        optimizer=partial(torch.optim.AdamW, lr=0.002, weight_decay=0.3),
    )
    _, rest = train("finetune", data, tmp_path, every(5), module=changed, ckpt_path=tmp_path / "step=5.ckpt")
    assert rest.rates == pytest.approx([0.002 * WarmupCosine(0.2)(step, 24) for step in range(5, 24)])
    groups = changed.optimizers(use_pl_optimizer=False).param_groups
    assert {g["weight_decay"] for g in groups if not g["name"].endswith(".bias")} == {0.3}
    (line,) = told
    assert "lr of head, head.bias: 0.01 -> 0.002" in line
    assert "weight_decay of embedding, layer1, layer2, head: 0.01 -> 0.3" in line
    told.clear()
    train("finetune", data, tmp_path, every(5), ckpt_path=tmp_path / "step=5.ckpt")
    assert told == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": {"num_layers": 1}}, r"encoder\.layers\.1\.bias_hh_l0 is missing here and \(48,\) there"),
        ({"encoder": {"hidden_size": 10}}, r"encoder\.layers\.0\.bias_hh_l0 is \(40,\) here and \(48,\) there"),
    ],
)
def test_another_encoder_than_the_checkpoints_is_refused(
    options: dict[str, Any], message: str, data: TextDataModule, tmp_path: Path
) -> None:
    path, _ = pretrained(data, tmp_path)
    with pytest.raises(UserError, match=f"encoder doesn't fit .*{message}; give model.encoder the options"):
        trainer_of(tmp_path).fit(module_of("finetune", init_from=str(path), **options), datamodule=data)
    with pytest.raises(UserError, match=f"checkpoint doesn't fit the model: network\\.{message}"):
        trainer_of(tmp_path).fit(module_of("pretrain", **options), datamodule=data, ckpt_path=path, weights_only=True)


def test_another_tokenizer_than_the_checkpoints_is_refused(
    data: TextDataModule, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    path, _ = pretrained(data, tmp_path)
    other = data_of(files, shared_cache, vocab_size=290)
    other.prepare_data()  # before the module could give it its tokenizer
    other.setup()
    with pytest.raises(UserError, match="the tokenizer doesn't fit"):
        trainer_of(tmp_path).fit(module_of("finetune", init_from=str(path)), datamodule=other)


def test_memory_that_ran_out_while_restoring_is_no_damage(tmp_path: Path) -> None:
    def restore_training_state(error: Exception) -> None:  # a name that Lightning has
        raise error

    for error, told in ((RuntimeError("size"), True), (torch.OutOfMemoryError("CUDA out of memory"), False)):
        with pytest.raises(RuntimeError) as caught:
            restore_training_state(error)
        found = mistake_in(caught.value, tmp_path, tmp_path / "last.ckpt")
        assert (found is not None and "a damaged checkpoint" in str(found)) == told


def test_a_checkpoint_of_something_else_is_refused(data: TextDataModule, tmp_path: Path) -> None:
    train("finetune", data, tmp_path, every(5), max_epochs=1)
    checkpoint = torch.load(tmp_path / "step=5.ckpt", weights_only=True)
    del checkpoint["lit_sft"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="not one of lit_sft's"):
        train("finetune", data, tmp_path, every(5), ckpt_path=tmp_path / "other.ckpt")
