"""The LSTM encoder: padding, carried states, masks and their rates. (test_weight_dropout.py has it against a loop.)"""

import math
from typing import Any

import pytest
import torch
from toy_network import encoded

from lit_sft.models import LSTMEncoder
from lit_sft.models.encoder import detach_state

LENGTHS = [7, 1, 4, 6]
IDS = torch.tensor(
    [[(5 * row + 3 * step) % 10 + 1 if step < n else 0 for step in range(7)] for row, n in enumerate(LENGTHS)]
)
MASK = IDS != 0  # (4, 7)


def build(**options: Any) -> LSTMEncoder:
    sizes = {"vocab_size": 11, "embedding_size": 5, "hidden_size": 6, "num_layers": 2}
    torch.manual_seed(1)
    encoder = LSTMEncoder(
        **{**sizes, "embedding_dropout": 0.4, "hidden_dropout": 0.4, "output_dropout": 0.4, **options}
    )
    with torch.no_grad():  # biases that are zero at the start would hide a mistake
        for name, parameter in encoder.named_parameters():
            if "bias" in name:
                parameter.uniform_(-1, 1)
    return encoder.double()


def test_hidden_is_zero_at_padding_and_blind_to_what_stands_there() -> None:
    encoder = build()
    masks = encoder.draw_masks(4, 7)
    hidden = encoded(encoder, IDS, MASK, encoder.initial_state(4), masks).hidden
    assert (hidden[~MASK] == 0).all()
    assert (hidden[MASK] != 0).any(-1).all()
    junk = encoded(encoder, IDS.where(MASK, 9), MASK, encoder.initial_state(4), masks).hidden
    assert torch.equal(hidden, junk)


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_state_carried_over_two_chunks_equals_one_long_chunk(cut: int) -> None:
    encoder = build()
    ids = torch.randint(1, 11, (3, 7))
    ones = torch.ones_like(ids)
    masks = encoder.draw_masks(3, 7)
    whole, end, _ = encoded(encoder, ids, ones, encoder.initial_state(3), masks)
    first, middle, _ = encoded(encoder, ids[:, :cut], ones[:, :cut], encoder.initial_state(3), masks)
    second, last, _ = encoded(encoder, ids[:, cut:], ones[:, cut:], middle, masks)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-12)
    for got, expected in zip(sum(last, ()), sum(end, ()), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert all(tensor.requires_grad for layer in middle for tensor in layer)
    assert not any(tensor.requires_grad for layer in detach_state(middle) for tensor in layer)


def test_rows_of_a_state_can_be_selected() -> None:
    encoder = build().eval()
    ids = torch.randint(1, 11, (3, 5))
    ones = torch.ones_like(ids)
    state = encoded(encoder, ids, ones, encoder.initial_state(3), encoder.draw_masks(3, 5)).state
    assert [[tuple(tensor.shape) for tensor in layer] for layer in state] == [[(3, 6), (3, 6)]] * 2
    rows = torch.tensor([2, 0])
    selected = tuple(tuple(tensor[rows] for tensor in layer) for layer in state)
    some = encoded(encoder, ids[rows], ones[rows], selected, encoder.draw_masks(2, 5)).hidden
    full = encoded(encoder, ids, ones, state, encoder.draw_masks(3, 5)).hidden
    torch.testing.assert_close(some, full[rows], rtol=0, atol=1e-12)


def test_masks_stand_at_their_places_with_their_own_rates() -> None:
    masks = build(num_layers=3, embedding_dropout=0.1, hidden_dropout=0.5, output_dropout=0.7).draw_masks(4000, 7)
    assert masks.embedding is not None
    assert masks.output is not None
    drawn = [masks.embedding, *(m for m in masks.hidden if m is not None), masks.output]
    assert [tuple(mask.shape) for mask in drawn] == [(4000, 1, 5), (4000, 1, 6), (4000, 1, 6), (4000, 1, 6)]
    assert [round((mask == 0).double().mean().item(), 1) for mask in drawn] == [0.1, 0.5, 0.5, 0.7]
    assert not torch.equal(drawn[1], drawn[2])


def test_lstm_layers_can_run_backward_in_evaluation() -> None:
    encoder = build().eval()
    assert not encoder.training
    assert not encoder.embedding.training
    assert all(layer.training for layer in encoder.layers)  # cuDNN's backward pass asks for it
    assert all(layer.dropout == 0 for layer in encoder.layers)


def test_every_parameter_is_in_one_layer_group_from_the_bottom_up() -> None:
    encoder = build(num_layers=3)
    groups = encoder.layer_groups()
    assert [len(group) for group in groups] == [1, 4, 4, 4]
    assert groups[0][0] is encoder.embedding.weight
    flat = [id(parameter) for group in groups for parameter in group]
    assert sorted(flat) == sorted(map(id, encoder.parameters()))


def test_start_weights_have_an_open_forget_gate_orthogonal_recurrence_and_glorots_range_in_each_gate() -> None:
    encoder = LSTMEncoder(11, 5, 6)
    weights = dict(encoder.layers[0].named_parameters())
    bias = weights["bias_ih_l0"] + weights["bias_hh_l0"]
    assert bias.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12
    for gate in weights["weight_hh_l0"].chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6))
    ranges = [(gate, math.sqrt(6 / (5 + 6))) for gate in weights["weight_ih_l0"].chunk(4)]  # by inputs and units
    for weight, bound in [*ranges, (encoder.embedding.weight, 0.1)]:
        assert 0.8 * bound < weight.abs().max() <= bound


def test_no_id_is_padding_by_itself_since_the_mask_says_what_is() -> None:
    encoder = LSTMEncoder(11, 5, 6)
    encoded(
        encoder, torch.tensor([[0, 4]]), torch.ones(1, 2), encoder.initial_state(1), encoder.draw_masks(1, 2)
    ).hidden.sum().backward()
    gradient = encoder.embedding.weight.grad
    assert gradient is not None
    assert (gradient[0] != 0).any()


@pytest.mark.parametrize(
    ("option", "value"),
    [("vocab_size", 0), ("embedding_size", 0), ("hidden_size", -1), ("num_layers", 0)]
    + [(f"{what}_dropout", 1.0) for what in ("embedding", "hidden", "output", "weight", "type", "word")],
)
def test_an_option_out_of_range_is_rejected_by_name(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}={value}"):
        LSTMEncoder(**{"vocab_size": 11, option: value})  # type: ignore[arg-type]
