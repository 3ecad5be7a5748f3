"""Weight decay towards the pretrained weights, against a loop written by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Files
from training import Losses, data_of, equal, module_of, trainer_of, weights

from lit_sft.callbacks import L2Start, LastCheckpoint
from lit_sft.errors import UserError

SGD = partial(torch.optim.SGD, lr=0.5)


@pytest.fixture(scope="module")
def pretrained(files: Files, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pretrained")
    trainer = trainer_of(folder)
    trainer.fit(module_of("pretrain"), datamodule=data_of(files, shared_cache))
    trainer.save_checkpoint(folder / "end.ckpt")
    return str(folder / "end.ckpt")


def train(
    source: str | None, strength: float | None, files: Files, cache: Path, folder: Path, **options: Any
) -> tuple[Any, Losses]:
    seen, saving = Losses(), LastCheckpoint(every_steps=1, keep=100)
    saving.dirpath = str(folder / "checkpoints")
    callbacks = [*([] if strength is None else [L2Start(strength)]), seen, saving]
    path = options.pop("ckpt_path", None)
    dropout = options.pop("dropout", False)
    trainer = trainer_of(folder, callbacks=callbacks, **{"max_steps": 12, "max_epochs": -1, **options})
    module = module_of("finetune", init_from=source, optimizer=SGD, dropout=dropout)
    trainer.fit(module, datamodule=data_of(files, cache), ckpt_path=path, weights_only=True)
    return module, seen


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (2, 0.05)])
def test_the_pull_equals_a_penalty_in_the_loss_of_a_loop_by_hand(
    accumulate: int, clip: float | None, pretrained: str, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    module, seen = train(pretrained, 0.3, files, shared_cache, tmp_path, **options)
    start = {
        name.removeprefix("network."): value
        for name, value in torch.load(pretrained, weights_only=True)["state_dict"].items()
        if name.startswith("network.encoder.")
    }
    data = data_of(files, shared_cache)
    data.prepare_data()
    data.setup()
    slow = module_of("finetune")
    slow.build(data.tokenizer, data.label_names)
    slow.net.load_state_dict(start, strict=False)
    network, loader, step, losses = slow.net, data.document_loader("train"), 0, []
    while step < 12:
        for number, batch in enumerate(loader):
            logits = network.classify(batch, network.draw_masks(*batch.input_ids.shape))
            loss = F.cross_entropy(logits, batch.labels)
            losses.append(loss.item())
            (loss / accumulate).backward()
            if (number + 1) % accumulate:
                continue
            named = dict(network.named_parameters())
            (0.3 / 2 * sum((named[name] - w0).square().sum() for name, w0 in start.items())).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= 0.5 * parameter.grad
                    parameter.grad = None
            step += 1
            if step == 12:
                break
    assert seen.values == pytest.approx([loss / accumulate for loss in losses], rel=1e-4)  # free of the penalty
    for name, value in weights(module).items():
        torch.testing.assert_close(value, weights(slow)[name], rtol=1e-4, atol=1e-5)


def test_a_resumed_run_is_drawn_to_the_same_weights(
    pretrained: str, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    whole, seen = train(pretrained, 0.3, files, shared_cache, tmp_path / "whole", dropout=True)
    paths = sorted((tmp_path / "whole" / "checkpoints").glob("last-*.ckpt"))
    for path in paths[::3]:
        step = torch.load(path, weights_only=True)["global_step"]
        folder = tmp_path / str(step)
        rest, then = train(None, 0.3, files, shared_cache, folder, dropout=True, ckpt_path=path)
        assert then.values == seen.values[step:]
        assert equal(weights(rest), weights(whole))


def test_a_second_module_is_drawn_to_its_own_start(
    pretrained: str, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    other, pull = str(tmp_path / "other.ckpt"), L2Start(1.0)
    trainer = trainer_of(tmp_path, max_epochs=2)
    trainer.fit(module_of("pretrain"), datamodule=data_of(files, shared_cache))
    trainer.save_checkpoint(other)
    for source in (pretrained, other):
        trainer = trainer_of(tmp_path, callbacks=[pull], max_steps=1)
        trainer.fit(module_of("finetune", init_from=source), datamodule=data_of(files, shared_cache))
        start = torch.load(source, weights_only=True)["state_dict"]
        assert all(torch.equal(w0, start[f"network.encoder.{name}"]) for name, w0 in pull.state_dict()["start"].items())


def test_frozen_weights_are_left_alone(pretrained: str, files: Files, shared_cache: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=4, max_epochs=-1, callbacks=[L2Start(1.0)])
    module = module_of("finetune", init_from=pretrained, optimizer=SGD)
    data = data_of(files, shared_cache)
    data.prepare_data()
    data.setup()
    module.build(data.tokenizer, data.label_names)
    module.net.encoder.embedding.requires_grad_(False)
    trainer.fit(module, datamodule=data)
    assert module.net.encoder.embedding.weight.grad is None
    module.net.encoder.requires_grad_(False)
    with pytest.raises(UserError, match="the encoder is frozen"):
        trainer_of(tmp_path, max_steps=4, callbacks=[L2Start(1.0)]).fit(module, datamodule=data)


def test_it_needs_weights_to_start_from(pretrained: str, files: Files, shared_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"L2Start draws weights to those of model\.init_from"):
        train(None, 0.3, files, shared_cache, tmp_path)
    train(None, 0.3, files, shared_cache, tmp_path, fast_dev_run=True)  # as a dry recipe's stage, which has none
    train(pretrained, None, files, shared_cache, tmp_path, max_steps=2)
    with pytest.raises(UserError, match="begun without it"):
        train(pretrained, 0.3, files, shared_cache, tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
