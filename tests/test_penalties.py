"""Penalties on activations against loops over documents, steps and units."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from toy_network import Batch, batch, build, encoded

from lit_sft.models import Network
from lit_sft.objectives import MLE, Objective, Supervised

DROPOUT = {"encoder": {"output_dropout": 0.5, "hidden_dropout": 0.3, "embedding_dropout": 0.2}}


def by_hand(network: Network, example: Batch, rows: list[int]) -> tuple[float, float]:
    """AR's and TAR's means (Merity et al. 2018, section 4.6), of some rows of a batch, in plain Python."""
    torch.manual_seed(2)
    masks = network.draw_masks(4, 6).encoder
    output, below = masks.output, replace(masks, output=None)
    raw = encoded(network.encoder, example.input_ids, torch.ones(4, 6), network.encoder.initial_state(4), below).hidden
    squares, changes = [], []
    for row in rows:
        steps = raw[row].tolist()[: int(example.attention_mask[row].sum())]
        for number, step in enumerate(steps):
            for unit, value in enumerate(step):
                factor = 1.0 if output is None else output[row, 0, unit].item()
                squares.append((value * factor) ** 2)
                if number > 0:
                    changes.append((value - steps[number - 1][unit]) ** 2)
    return sum(squares) / len(squares), sum(changes) / len(changes)


def parts(objective: Objective, network: Network, example: Batch) -> tuple[float, dict[str, float]]:
    torch.manual_seed(2)
    loss = objective(network, {"unlabeled": example, "labeled": example}, None)
    assert not any(value.requires_grad for value in loss.parts.values())
    return loss.total.item(), {name: value.item() for name, value in loss.parts.items()}


@pytest.mark.parametrize("options", [{}, DROPOUT], ids=["plain", "dropout"])
@pytest.mark.parametrize("kind", [MLE, Supervised])
def test_penalties_are_those_of_a_loop_over_real_tokens(kind: type, options: dict[str, Any]) -> None:
    network, example = build(**options), batch()
    squares, changes = by_hand(network, example, [0, 1, 2, 3])
    name = "lm" if kind is MLE else "supervised"
    alone, plain = parts(kind(), network, example)
    assert plain == {name: alone}
    total, both = parts(kind(activation_penalty=2.0, temporal_penalty=0.5), network, example)
    assert both.keys() == {name, "activation_penalty", "temporal_penalty"}
    assert both[name] == alone  # what is reported stays free of penalties
    assert both["activation_penalty"] == pytest.approx(2.0 * squares, rel=1e-12)
    assert both["temporal_penalty"] == pytest.approx(0.5 * changes, rel=1e-12)
    assert total == pytest.approx(sum(both.values()), rel=1e-12)
    assert squares > 1e-5
    assert changes > 1e-5


def test_documents_without_a_label_are_not_penalised() -> None:
    network, example = build(), batch()
    example.labels = torch.tensor([0, -1, 2, -1])
    squares, changes = by_hand(network, example, [0, 2])
    _, found = parts(Supervised(activation_penalty=1.0, temporal_penalty=1.0), network, example)
    assert found["activation_penalty"] == pytest.approx(squares, rel=1e-12)
    assert found["temporal_penalty"] == pytest.approx(changes, rel=1e-12)


@pytest.mark.parametrize("objective", [MLE(1.0, 2.0), Supervised(activation_penalty=1.0, temporal_penalty=2.0)])
def test_what_stands_at_padding_changes_neither_loss_nor_gradient(objective: Objective) -> None:
    found = []
    for junk in (0, 9):
        network, example = build(), batch()
        example.input_ids = example.input_ids.where(example.attention_mask, junk)
        torch.manual_seed(2)
        loss = objective(network, {"unlabeled": example, "labeled": example}, None).total
        loss.backward()
        found.append([loss, *(p.grad for p in network.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("objective", [MLE(1.0, 1.0), Supervised(activation_penalty=1.0, temporal_penalty=1.0)])
def test_a_batch_of_nothing_gives_zero_and_gradients_of_zero(objective: Objective) -> None:
    network, example = build(), batch()
    example.attention_mask = torch.zeros(4, 6)
    example.targets, example.labels = torch.full((4, 6), -100), torch.full((4,), -1)
    loss = objective(network, {"unlabeled": example, "labeled": example}, None)
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert all((p.grad == 0).all() for p in network.parameters() if p.grad is not None)


def test_one_step_has_no_change_to_penalise() -> None:
    network, example = build(), batch().steps(0, 1)
    assert parts(MLE(0.0, 1.0), network, example)[1]["temporal_penalty"] == 0.0


def test_penalties_are_computed_in_float32_under_autocast() -> None:
    network, example = build().float(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        half = MLE(2.0, 1.0)(network.eval(), {"unlabeled": example}, None)
    full = MLE(2.0, 1.0)(network, {"unlabeled": example}, None)
    for name, value in full.parts.items():
        assert half.parts[name].dtype == torch.float32
        torch.testing.assert_close(half.parts[name], value, rtol=0.03, atol=1e-4)


@pytest.mark.parametrize(("option", "value"), [("activation_penalty", -1.0), ("temporal_penalty", float("nan"))])
def test_a_strength_below_zero_is_rejected_by_name(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}={value}"):
        MLE(**{option: value})
