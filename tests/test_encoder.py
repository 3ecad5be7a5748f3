"""The LSTM encoder against a cell written out, document by document, without padding."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_sft.models import EncoderMasks, LSTMEncoder
from lit_sft.models.encoder import detach_state

LENGTHS = [7, 1, 4, 6]
IDS = torch.tensor(
    [[(5 * row + 3 * step) % 10 + 1 if step < n else 0 for step in range(7)] for row, n in enumerate(LENGTHS)]
)
MASK = IDS != 0  # (4, 7)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


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


def lstm_by_hand(encoder: LSTMEncoder, ids: list[int], masks: EncoderMasks, row: int) -> Tensor:
    """One document, token by token, by the LSTM's equations: (time, hidden_size)."""
    dropouts = [*masks.hidden, masks.output]
    size = encoder.output_size
    states = [(torch.zeros(size).double(), torch.zeros(size).double()) for _ in encoder.layers]
    outputs = []
    for token in ids:
        x = encoder.embedding.weight[token]
        if masks.embedding is not None:
            x = x * masks.embedding[row, 0]
        for number, layer in enumerate(encoder.layers):
            w = dict(layer.named_parameters())
            h, c = states[number]
            gates = w["weight_ih_l0"] @ x + w["bias_ih_l0"] + w["weight_hh_l0"] @ h + w["bias_hh_l0"]
            i, f, g, o = gates[:size], gates[size : 2 * size], gates[2 * size : 3 * size], gates[3 * size :]
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states[number] = (h, c)
            dropout = dropouts[number]
            x = h if dropout is None else h * dropout[row, 0]
        outputs.append(x)
    return torch.stack(outputs)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_equals_a_loop_over_documents_and_tokens(num_layers: int, training: bool) -> None:
    encoder = build(num_layers=num_layers).train(training)
    masks = encoder.draw_masks(4, 7)
    hidden = encoder(IDS, MASK, encoder.initial_state(4), masks).hidden
    assert hidden.shape == (4, 7, 6)
    for row, length in enumerate(LENGTHS):
        expected = lstm_by_hand(encoder, IDS[row, :length].tolist(), masks, row)
        torch.testing.assert_close(hidden[row, :length], expected, rtol=0, atol=1e-12)


def test_hidden_is_zero_at_padding_and_blind_to_what_stands_there() -> None:
    encoder = build()
    masks = encoder.draw_masks(4, 7)
    hidden = encoder(IDS, MASK, encoder.initial_state(4), masks).hidden
    assert (hidden[~MASK] == 0).all()
    assert (hidden[MASK] != 0).any(-1).all()
    junk = encoder(IDS.where(MASK, 9), MASK, encoder.initial_state(4), masks).hidden
    assert torch.equal(hidden, junk)


def test_padding_never_changes_gradients() -> None:
    encoder = build()
    masks = encoder.draw_masks(4, 7)
    weights = torch.randn(4, 7, 6).double()
    hidden = encoder(IDS, MASK, encoder.initial_state(4), masks).hidden
    gradients = torch.autograd.grad((weights * hidden).sum(), list(encoder.parameters()))
    loss = torch.zeros(()).double()
    for row, length in enumerate(LENGTHS):
        alone = lstm_by_hand(encoder, IDS[row, :length].tolist(), masks, row)
        loss = loss + (weights[row, :length] * alone).sum()
    for got, expected in zip(gradients, torch.autograd.grad(loss, list(encoder.parameters())), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_state_carried_over_two_chunks_equals_one_long_chunk(cut: int) -> None:
    encoder = build()
    ids = torch.randint(1, 11, (3, 7))
    ones = torch.ones_like(ids)
    masks = encoder.draw_masks(3, 7)
    whole, end, _ = encoder(ids, ones, encoder.initial_state(3), masks)
    first, middle, _ = encoder(ids[:, :cut], ones[:, :cut], encoder.initial_state(3), masks)
    second, last, _ = encoder(ids[:, cut:], ones[:, cut:], middle, masks)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-12)
    for got, expected in zip(sum(last, ()), sum(end, ()), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert all(tensor.requires_grad for layer in middle for tensor in layer)
    assert not any(tensor.requires_grad for layer in detach_state(middle) for tensor in layer)


def test_rows_of_a_state_can_be_selected() -> None:
    encoder = build().eval()
    ids = torch.randint(1, 11, (3, 5))
    ones = torch.ones_like(ids)
    state = encoder(ids, ones, encoder.initial_state(3), encoder.draw_masks(3, 5)).state
    assert [[tuple(tensor.shape) for tensor in layer] for layer in state] == [[(3, 6), (3, 6)]] * 2
    rows = torch.tensor([2, 0])
    selected = tuple(tuple(tensor[rows] for tensor in layer) for layer in state)
    some = encoder(ids[rows], ones[rows], selected, encoder.draw_masks(2, 5)).hidden
    full = encoder(ids, ones, state, encoder.draw_masks(3, 5)).hidden
    torch.testing.assert_close(some, full[rows], rtol=0, atol=1e-12)


def test_the_same_masks_give_the_same_bits_and_forward_draws_nothing() -> None:
    encoder = build().float()
    masks = encoder.draw_masks(4, 7)
    before = torch.get_rng_state()
    first = encoder(IDS, MASK, encoder.initial_state(4), masks)
    second = encoder(IDS, MASK, encoder.initial_state(4), masks)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.hidden, second.hidden)
    assert all(torch.equal(a, b) for a, b in zip(sum(first.state, ()), sum(second.state, ()), strict=True))
    other = encoder(IDS, MASK, encoder.initial_state(4), encoder.draw_masks(4, 7))
    assert not torch.equal(first.hidden, other.hidden)


def test_embeds_take_the_place_of_ids_bit_for_bit() -> None:
    encoder = build().float()
    masks = encoder.draw_masks(4, 7)
    embeds = encoder.embed(IDS, masks)
    assert embeds.shape == (4, 7, 5)
    by_ids = encoder(IDS, MASK, encoder.initial_state(4), masks).hidden
    by_embeds = encoder(None, MASK, encoder.initial_state(4), masks, inputs_embeds=embeds).hidden
    assert torch.equal(by_ids, by_embeds)


@pytest.mark.parametrize("both", [True, False])
def test_neither_or_both_of_ids_and_embeds_are_rejected(both: bool) -> None:
    encoder = build()
    masks = encoder.draw_masks(4, 7)
    embeds = encoder.embed(IDS, masks) if both else None
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        encoder(IDS if both else None, MASK, encoder.initial_state(4), masks, embeds)


def test_masks_stand_at_their_places_with_their_own_rates() -> None:
    masks = build(num_layers=3, embedding_dropout=0.1, hidden_dropout=0.5, output_dropout=0.7).draw_masks(4000, 7)
    assert masks.embedding is not None
    assert masks.output is not None
    drawn = [masks.embedding, *(m for m in masks.hidden if m is not None), masks.output]
    assert [tuple(mask.shape) for mask in drawn] == [(4000, 1, 5), (4000, 1, 6), (4000, 1, 6), (4000, 1, 6)]
    assert [round((mask == 0).double().mean().item(), 1) for mask in drawn] == [0.1, 0.5, 0.5, 0.7]
    assert not torch.equal(drawn[1], drawn[2])


def test_nothing_is_dropped_in_evaluation() -> None:
    encoder = build().eval()
    before = torch.get_rng_state()
    masks = encoder.draw_masks(4, 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert masks == EncoderMasks(None, (None,), None)
    none = build(embedding_dropout=0.0, hidden_dropout=0.0, output_dropout=0.0).train()
    hidden = [e(IDS, MASK, e.initial_state(4), e.draw_masks(4, 7)).hidden for e in (encoder, none)]
    assert torch.equal(hidden[0], hidden[1])


def test_lstm_layers_can_run_backward_in_evaluation() -> None:
    encoder = build().eval()
    assert not encoder.training
    assert not encoder.embedding.training
    assert all(layer.training for layer in encoder.layers)  # cuDNN's backward pass asks for it
    assert all(layer.dropout == 0 for layer in encoder.layers)


def test_the_gradient_is_that_of_finite_differences() -> None:
    encoder = build(embedding_size=3, hidden_size=2)
    masks = encoder.draw_masks(4, 7)
    embeds = encoder.embed(IDS, masks).detach().requires_grad_()
    start = tuple(tuple(torch.randn(4, 2).double().requires_grad_() for _ in range(2)) for _ in range(2))

    def run(embeds: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        hidden, end, _ = encoder(None, MASK, (state[:2], state[2:]), masks, embeds)
        return hidden, *sum(end, ())

    assert torch.autograd.gradcheck(run, (embeds, *sum(start, ())))


def test_every_parameter_is_in_one_layer_group_from_the_bottom_up() -> None:
    encoder = build(num_layers=3)
    groups = encoder.layer_groups()
    assert [len(group) for group in groups] == [1, 4, 4, 4]
    assert groups[0][0] is encoder.embedding.weight
    flat = [id(parameter) for group in groups for parameter in group]
    assert sorted(flat) == sorted(map(id, encoder.parameters()))


def test_start_weights_have_an_open_forget_gate_and_orthogonal_recurrence() -> None:
    encoder = LSTMEncoder(11, 5, 6)
    weights = dict(encoder.layers[0].named_parameters())
    bias = weights["bias_ih_l0"] + weights["bias_hh_l0"]
    assert bias.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12
    for gate in weights["weight_hh_l0"].chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6))


def test_no_id_is_padding_by_itself_since_the_mask_says_what_is() -> None:
    encoder = LSTMEncoder(11, 5, 6)
    encoder(
        torch.tensor([[0, 4]]), torch.ones(1, 2), encoder.initial_state(1), encoder.draw_masks(1, 2)
    ).hidden.sum().backward()
    gradient = encoder.embedding.weight.grad
    assert gradient is not None
    assert (gradient[0] != 0).any()


def test_half_precision_stays_near_and_its_state_stays_float32() -> None:
    encoder = build().float()
    masks = encoder.draw_masks(4, 7)
    full = encoder(IDS, MASK, encoder.initial_state(4), masks)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(IDS, MASK, encoder.initial_state(4), masks)
        again = encoder(IDS, MASK, half.state, masks)
    assert all(tensor.dtype == torch.float32 for tensor in sum(half.state, ()) + sum(again.state, ()))
    torch.testing.assert_close(half.hidden.float(), full.hidden, rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("option", "value"),
    [("vocab_size", 0), ("embedding_size", 0), ("hidden_size", -1), ("num_layers", 0)]
    + [(name, value) for name in ("embedding_dropout", "hidden_dropout", "output_dropout") for value in (-0.1, 1.0)],
)
def test_an_option_out_of_range_is_rejected_by_name(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}={value}"):
        LSTMEncoder(**{"vocab_size": 11, option: value})  # type: ignore[arg-type]
