"""The language model's loss in chunks is the loss of all tokens at once, and its logits never exist at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Files
from test_heads import adaptive, tied
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_network import batch, build, loss_of
from training import data_of, module_of, trainer_of, weights

from lit_sft.models import LMHead
from lit_sft.objectives import MLE

Found = tuple[Tensor, list[Tensor]]


def targets_of(head: LMHead, tokens: int) -> Tensor:
    """Every token in turn, some ignored, and the rare ones of the last clusters far behind the others."""
    return torch.arange(tokens).remainder(head.vocab_size).masked_fill(torch.arange(tokens) % 5 == 3, -100)


def loss_and_gradients(head: LMHead, hidden: Tensor, targets: Tensor, chunk: int | None) -> Found:
    head.loss_chunk = chunk
    hidden = hidden.detach().requires_grad_()
    nll = head.nll(hidden, targets)
    scales = torch.linspace(0.5, 2.0, len(nll), dtype=nll.dtype)
    return nll.detach(), list(torch.autograd.grad((nll * scales).sum(), [hidden, *head.parameters()]))


@pytest.mark.parametrize("make", [tied, partial(tied, 6, 6), adaptive])
@pytest.mark.parametrize("chunk", [1, 2, 7, 22, 23, 24])
def test_values_and_gradients_are_those_of_all_tokens_at_once(make: Callable[[], LMHead], chunk: int) -> None:
    head = make()
    size = 32 if not head.tied else 6
    hidden, targets = torch.randn(23, size, dtype=torch.float64), targets_of(head, 23)
    nll, gradients = loss_and_gradients(head, hidden, targets, None)
    found, found_gradients = loss_and_gradients(head, hidden, targets, chunk)
    torch.testing.assert_close(found, nll, rtol=0, atol=1e-12)
    for one, other in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(head.nll(hidden, targets), nll, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [tied, adaptive])
def test_under_autocast_the_second_time_is_as_the_first(make: Callable[[], LMHead]) -> None:
    head = make().float()
    size = 32 if not head.tied else 6
    hidden, targets = torch.randn(23, size), targets_of(head, 23)
    with torch.autocast("cpu", torch.bfloat16):
        nll, gradients = loss_and_gradients(head, hidden.bfloat16(), targets, None)
        found, found_gradients = loss_and_gradients(head, hidden.bfloat16(), targets, 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, nll, rtol=1e-3, atol=1e-3)
    for one, other in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


class Largest(TorchDispatchMode):
    """The most elements of a tensor that is made, forward or backward."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("options", [{}, {"tie_weights_up_to": 0, "adaptive_cutoffs": [400]}], ids=["tied", "adaptive"])
def test_the_logits_of_all_tokens_never_exist(options: dict[str, Any]) -> None:
    head = LMHead(nn.Embedding(500, 4), 4, **options)
    hidden, targets = torch.randn(64, 4), targets_of(head, 64)
    made = {}
    for chunk in (None, 8):
        with Largest() as largest:
            loss_and_gradients(head, hidden, targets, chunk)
        made[chunk] = largest.elements
    assert made[None] >= 64 * 400
    assert made[8] <= 8 * 500  # more than any weight has


def test_the_objective_is_the_same_down_to_the_embedding() -> None:
    losses = []
    for options in ({}, {"loss_chunk": 5}):
        network = build(lm=options)
        loss = loss_of(MLE(), network, batch())
        loss.backward()
        losses.append([loss.detach(), *(p.grad for p in network.parameters() if p.grad is not None)])
    assert len(losses[0]) > 8
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tie_weights_up_to", [300, 0])
def test_a_training_ends_with_the_same_weights(
    tie_weights_up_to: int, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    ends = []
    for chunk in (None, 50):
        module = module_of("pretrain", dropout=True, tie_weights_up_to=tie_weights_up_to, loss_chunk=chunk)
        trainer = trainer_of(tmp_path, max_epochs=2, precision="64-true", limit_val_batches=1.0)
        trainer.fit(module, data_of(files, shared_cache))
        ends.append({**weights(module), "val": trainer.callback_metrics["val/loss"]})
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-9)


def test_a_chunk_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="loss_chunk=0 must be at least 1"):
        LMHead(nn.Embedding(9, 4), 4, loss_chunk=0)
