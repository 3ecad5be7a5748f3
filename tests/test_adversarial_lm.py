"""The adversarially trained language model, and the language model beside a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Files
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_network import batch, build
from training import Losses, check_resumes, data_of, module_of, step_of, trainer_of, weights

from lit_sft import transfer
from lit_sft.callbacks import GradualUnfreezing, LastCheckpoint
from lit_sft.errors import UserError
from lit_sft.objectives import MLE, VAT, AdversarialMLE, AuxiliaryLM, Mixed, Supervised, adversarial_mle
from lit_sft.objectives.reading import unit


def test_the_adversarial_loss_is_mle_at_vectors_moved_by_autograd_written_out() -> None:
    network, stream = build().eval(), batch()
    given = {"unlabeled": stream}
    state = MLE()(network, given, None).state
    assert state is not None
    vectors = network.encoder.embedding(stream.input_ids).detach().requires_grad_()

    def nll(x: torch.Tensor) -> torch.Tensor:
        for layer, (h, c) in zip(network.encoder.layers, state, strict=True):  # type: ignore[call-overload]
            x, _ = layer(x, (h[None], c[None]))
        log_prob = network.lm_head.log_prob((x * stream.attention_mask[..., None]).flatten(0, 1))  # type: ignore[union-attr]
        return torch.nn.functional.nll_loss(log_prob, stream.targets.flatten(), ignore_index=-100)

    clean = nll(vectors)
    (gradient,) = torch.autograd.grad(clean, vectors)
    gradient[~stream.attention_mask] = 0.0
    norms = gradient.square().sum((1, 2), keepdim=True).sqrt()
    moved = nll(vectors + 0.8 * gradient / norms)
    loss = AdversarialMLE(norm=0.8, weight=0.5)(network, given, state)
    torch.testing.assert_close(loss.total, clean + 0.5 * moved)
    torch.testing.assert_close(loss.parts["lm"], clean)
    torch.testing.assert_close(loss.parts["adversarial_lm"], moved)
    assert moved > clean


def test_what_is_carried_on_and_counted_is_that_of_mle() -> None:
    network, given = build().train(), {"unlabeled": batch()}
    results = []
    for objective in (MLE(2.0, 1.0), AdversarialMLE(activation_penalty=2.0, temporal_penalty=1.0)):
        torch.manual_seed(3)
        results.append(objective(network, given, None))
    plain, adversarial = results
    assert plain.state is not None
    assert adversarial.state is not None
    for ours, theirs in zip(adversarial.state, plain.state, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert plain.weight == adversarial.weight
    assert torch.equal(adversarial.parts["lm"], plain.parts["lm"])
    assert set(adversarial.parts) == {*plain.parts, "adversarial_lm"}
    torch.testing.assert_close(adversarial.total, torch.stack(list(adversarial.parts.values())).sum())


def test_without_a_perturbation_both_losses_are_bit_equal_under_dropout() -> None:
    dropouts = {"embedding_dropout": 0.3, "hidden_dropout": 0.3, "weight_dropout": 0.3, "word_dropout": 0.2}
    network = build(encoder=dropouts).train()
    torch.manual_seed(3)
    parts = AdversarialMLE(norm=0.0, activation_penalty=2.0, temporal_penalty=1.0)(
        network, {"unlabeled": batch()}, None
    ).parts
    assert torch.equal(parts["adversarial_lm"], parts["lm"])
    torch.manual_seed(3)
    for name, value in MLE(2.0, 1.0)(network, {"unlabeled": batch()}, None).parts.items():
        assert torch.equal(parts[name], value)


def test_the_direction_beats_chance_by_far() -> None:
    network, given = build().eval(), {"unlabeled": batch()}
    rise = {}
    for direction in ("adversarial", "random"):
        parts = AdversarialMLE(norm=0.5, direction=direction)(network, given, None).parts  # type: ignore[arg-type]
        rise[direction] = (parts["adversarial_lm"] - parts["lm"]).item()
    assert rise["adversarial"] > 3 * abs(rise["random"])


def test_the_control_is_mle_at_vectors_moved_as_far_to_anywhere() -> None:
    network, stream = build().eval(), batch()
    torch.manual_seed(3)
    loss = AdversarialMLE(norm=0.8, weight=0.5, direction="random")(network, {"unlabeled": stream}, None)
    torch.manual_seed(3)
    vectors = network.encoder.embedding(stream.input_ids)
    move = torch.randn_like(vectors) * stream.attention_mask[..., None]
    moved = vectors + 0.8 * move / move.square().sum((1, 2), keepdim=True).sqrt()
    masks, state = network.draw_masks(4, 6), network.encoder.initial_state(4)
    clean, expected = (network.lm_nll(stream, state, masks, x)[0].sum() / 20 for x in (vectors, moved))  # 20 targets
    torch.testing.assert_close(loss.parts["adversarial_lm"], expected)
    torch.testing.assert_close(loss.total, clean + 0.5 * expected)


def test_under_bfloat16_the_direction_is_that_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    network, stream = build(lm={"tie_weights_up_to": 0, "adaptive_cutoffs": [4, 8]}).eval().float(), batch()
    directions = []
    monkeypatch.setattr(adversarial_mle, "unit", lambda *given: directions.append(unit(*given)) or directions[-1])
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            AdversarialMLE()(network, {"unlabeled": stream}, None)
    assert torch.nn.functional.cosine_similarity(*(d.flatten(1) for d in directions)).min() > 0.99


def test_above_frozen_token_vectors_the_loss_is_the_same() -> None:
    network, given = build().eval(), {"unlabeled": batch()}
    losses = []
    for trained in (True, False):
        network.encoder.embedding.weight.requires_grad_(trained)
        losses.append(AdversarialMLE()(network, given, None).total)
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("options", [{"norm": -1.0}, {"weight": -0.5}])
def test_values_out_of_range_are_told(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least 0"):
        AdversarialMLE(**options)  # type: ignore[arg-type]


def test_the_auxiliary_lm_is_mle_on_the_stream_and_carries_its_state() -> None:
    network = build().eval()
    given = {"labeled": batch(), "unlabeled": batch()}
    objective = Mixed([AuxiliaryLM(weight=0.3)])
    assert objective.batches == {"labeled", "unlabeled"}
    assert objective.heads == {"classifier", "lm"}
    lm, supervised = MLE()(network, given, None), Supervised()(network, given, None)
    loss = objective(network, given, None)
    torch.testing.assert_close(loss.total, supervised.total + 0.3 * lm.total)
    assert loss.state is not None
    assert lm.state is not None
    assert torch.equal(loss.state[0][0], lm.state[0][0])
    given["unlabeled"].first = False
    torch.testing.assert_close(objective(network, given, loss.state).parts["lm"], MLE()(network, given, lm.state).total)


MIXED = {"vat": [VAT(norm=1.0)], "lm": [AuxiliaryLM()]}


@pytest.mark.parametrize("name", MIXED)
def test_a_training_with_several_loaders_goes_on_exactly(
    name: str, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    """Epochs stated in steps; the short loader is cycled, and the long one cut."""

    def fit(saving: list[Callback], path: Path | None) -> dict[str, torch.Tensor]:
        module = module_of("finetune", dropout=True, objective=Mixed(MIXED[name], diagnose_every=2))  # type: ignore[arg-type]
        data = data_of(files, shared_cache, unlabeled=str(files.unlabeled), labels_per_class=6, max_documents=4)
        trainer = trainer_of(tmp_path, max_epochs=2, limit_train_batches=6, callbacks=saving)
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
        return weights(module)

    check_resumes(fit, tmp_path, least=10, every=3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_measured_now_and_then_is_logged_at_its_step_alone(
    accumulate: int, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    """Also where that is no step at which Lightning logs, and in a run that is resumed between two such steps."""
    found: list[dict[str, list[tuple[int, float]]]] = []
    for name in ("whole", "rest"):
        path = next((file for file in (tmp_path / "whole").glob("*.ckpt") if step_of(file) == 3), None)
        saving, log = LastCheckpoint(every_steps=1, keep=100), TensorBoardLogger(tmp_path, name=name, version="")
        saving.dirpath = str(tmp_path / name)
        options: dict[str, Any] = {"max_steps": 8, "accumulate_grad_batches": accumulate, "log_every_n_steps": 2}
        trainer = trainer_of(tmp_path, logger=log, callbacks=[saving], max_epochs=-1, **options)
        module = module_of("finetune", objective=Mixed([VAT()], diagnose_every=3))
        data = data_of(files, shared_cache, labels_per_class=10, max_documents=4)
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
        assert "train/vat_kl_ratio" in trainer.callback_metrics
        events = EventAccumulator(str(tmp_path / name)).Reload()
        tags = ("train/loss", "train/vat_kl_ratio", "train/unlabeled_share")
        found.append({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags})
    whole, rest = found
    assert [step for step, _ in whole["train/vat_kl_ratio"]] == [2, 5]
    assert {step for step, _ in whole["train/loss"]} == {1, 3, 5, 7}
    assert rest == {tag: [event for event in events if event[0] >= 3] for tag, events in whole.items()}


def test_a_run_goes_on_with_the_batches_that_its_objective_read(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    last = LastCheckpoint()
    last.dirpath = str(tmp_path)
    trainer = trainer_of(tmp_path, max_steps=3, callbacks=[last])
    trainer.fit(module_of("finetune"), data_of(files, shared_cache, unlabeled=str(files.unlabeled)))
    with pytest.raises(UserError, match="read labeled, and this one reads labeled, unlabeled_documents: go on"):
        trainer_of(tmp_path, max_steps=6).fit(
            module_of("finetune", objective=Mixed([VAT()])),
            data_of(files, shared_cache, unlabeled=str(files.unlabeled)),
            ckpt_path=tmp_path / "last.ckpt",
            weights_only=True,
        )
    # a test asks for heads alone, whatever was read in training
    last = LastCheckpoint()
    last.dirpath = str(tmp_path / "vat")
    trainer = trainer_of(tmp_path, max_steps=3, callbacks=[last])
    data = data_of(files, shared_cache, unlabeled=str(files.unlabeled))
    trainer.fit(module_of("finetune", objective=Mixed([VAT()])), data)
    tester = trainer_of(tmp_path)
    tester.test(module_of("finetune"), data, tmp_path / "vat" / "last.ckpt", weights_only=True)


@pytest.mark.filterwarnings("ignore:GradualUnfreezing. the training ends")
def test_the_share_of_a_gradient_that_no_trained_weight_has_is_none(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    """The language model's head is frozen with the layer below it, while only the classifier learns."""
    module = module_of("finetune", objective=Mixed([AuxiliaryLM()], diagnose_every=2))
    trainer = trainer_of(tmp_path, limit_train_batches=4, callbacks=[GradualUnfreezing()])
    trainer.fit(module, data_of(files, shared_cache, unlabeled=str(files.unlabeled)))
    assert trainer.callback_metrics["train/unlabeled_share"] == 0


def test_a_head_that_fits_in_part_starts_fresh_and_is_told(
    files: Files, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of the pretrained softmax beside fresh clusters would be worse than an even guess."""
    told: list[str] = []
    monkeypatch.setattr(transfer, "rank_zero_warn", told.append)
    trainer = trainer_of(tmp_path)
    trainer.fit(module_of("pretrain", tie_weights_up_to=100, adaptive_cutoffs=[50]), data_of(files, shared_cache))
    trainer.save_checkpoint(tmp_path / "lm.ckpt")

    def begin(**options: Any) -> None:
        trainer = trainer_of(tmp_path, max_steps=1)
        module = module_of("finetune", objective=Mixed([AuxiliaryLM()]), init_from=str(tmp_path / "lm.ckpt"), **options)
        trainer.fit(module, data_of(files, shared_cache))

    begin(tie_weights_up_to=100, adaptive_cutoffs=[50])
    assert told == []
    for options in ({}, {"tie_weights_up_to": 100, "adaptive_cutoffs": [80]}):
        begin(**options)
    assert [line.split("lm.ckpt ")[1].split(":")[0] for line in told] == ["starts fresh"] * 2


def test_an_epoch_is_as_long_as_the_longer_loader_or_stated_in_steps(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    counts = {}
    for limit in (1.0, 3):
        seen = Losses()
        trainer = trainer_of(tmp_path, limit_train_batches=limit, callbacks=[seen])
        data = data_of(files, shared_cache, unlabeled=str(files.unlabeled), max_unlabeled_documents=5)
        trainer.fit(module_of("finetune", objective=Mixed([VAT(norm=1.0)])), datamodule=data)
        counts[limit] = len(seen.values)
        loaders = {kind: len(loader) for kind, loader in trainer.train_dataloader.items()}  # type: ignore[union-attr]
    assert counts[1.0] == max(loaders.values()) > min(loaders.values())
    assert counts[3] == 3
    assert sum(len(batch.lengths) for batch in data.unlabeled_document_loader()) == len(data.prepared.unlabeled)
