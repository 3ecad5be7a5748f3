"""Dropout of recurrent weights, of words of the vocabulary and of single words, against loops written out."""

import copy
import subprocess
import sys
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_network import encoded

from lit_sft.models import EncoderMasks, LMHead, LSTMEncoder

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 0, 0, 0], [7, 9, 3, 2, 3, 8, 0]])
MASK = IDS != 0  # (3, 7)
NONE = {"embedding_dropout": 0.0, "hidden_dropout": 0.0, "output_dropout": 0.0}


def build(**options: Any) -> LSTMEncoder:
    torch.manual_seed(1)
    encoder = LSTMEncoder(**{"vocab_size": 11, "embedding_size": 5, "hidden_size": 6, "num_layers": 2, **options})
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "bias" in name:
                parameter.uniform_(-1, 1)
    return encoder.double()


def by_hand(encoder: LSTMEncoder, ids: list[int], masks: EncoderMasks, row: int) -> Tensor:
    """One document token by token, the masks multiplied where the papers say: (time, hidden_size), before the output's.

    Merity et al. 2018, section 2: h_t = o_t tanh(c_t), gates of [x_t, h_{t-1}] with U (*) M in the place of U.
    """
    outputs = []
    h, c = ([torch.zeros(layer.hidden_size).double() for layer in encoder.layers] for _ in range(2))
    for step, token in enumerate(ids):
        x = encoder.embedding.weight[token]
        if masks.types is not None:
            x = x * masks.types[token]
        if masks.words is not None:
            x = x * masks.words[row, step]
        if masks.embedding is not None:
            x = x * masks.embedding[row, 0]
        for n, layer in enumerate(encoder.layers):
            w = dict(layer.named_parameters())
            recurrent = w["weight_hh_l0"]
            if masks.recurrent and masks.recurrent[n] is not None:
                recurrent = recurrent * masks.recurrent[n]
            gates = w["weight_ih_l0"] @ x + w["bias_ih_l0"] + recurrent @ h[n] + w["bias_hh_l0"]
            i, f, g, o = gates.chunk(4)
            c[n] = f.sigmoid() * c[n] + i.sigmoid() * g.tanh()
            h[n] = o.sigmoid() * c[n].tanh()
            x = h[n]
            if n < len(encoder.layers) - 1 and masks.hidden[n] is not None:
                x = x * masks.hidden[n][row, 0]
        outputs.append(x)
    return torch.stack(outputs)


@pytest.mark.parametrize(
    "options",
    [
        {"weight_dropout": 0.5, **NONE},
        {"type_dropout": 0.5, **NONE},
        {"word_dropout": 0.5, **NONE},
        {"embedding_dropout": 0.4, "hidden_dropout": 0.4, "output_dropout": 0.4, "num_layers": 3},
        {"weight_dropout": 0.3, "type_dropout": 0.3, "word_dropout": 0.3, "num_layers": 3},
        {"weight_dropout": 0.3, "num_layers": 3, "last_size": 4},
        {"weight_dropout": 0.3, "num_layers": 1, "last_size": 4},
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_a_loop_over_time(options: dict[str, float]) -> None:
    encoder = build(**options)
    torch.manual_seed(4)
    masks = encoder.draw_masks(3, 7)
    out = encoded(encoder, IDS, MASK, encoder.initial_state(3), masks)
    size = options.get("last_size", 6)
    factor = torch.ones(3, 1, size).double() if masks.output is None else masks.output
    torch.testing.assert_close(out.hidden, out.raw * factor * MASK.unsqueeze(-1), rtol=0, atol=1e-15)
    weights = torch.randn(3, 7, size).double()
    loss = torch.zeros(()).double()
    for row, length in enumerate(MASK.sum(1).tolist()):
        alone = by_hand(encoder, IDS[row, :length].tolist(), masks, row)
        torch.testing.assert_close(out.raw[row, :length], alone, rtol=0, atol=1e-12)
        loss = loss + (weights[row, :length] * alone * factor[row]).sum()
    parameters = list(encoder.parameters())
    got = torch.autograd.grad((weights * out.hidden).sum(), parameters)
    for one, expected in zip(got, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-11)


def test_a_dropped_weight_has_no_gradient_and_a_kept_one_has() -> None:
    encoder = build(weight_dropout=0.5)
    masks = encoder.draw_masks(3, 7)
    encoded(encoder, IDS, MASK, encoder.initial_state(3), masks).hidden.square().sum().backward()
    for layer, mask in zip(encoder.layers, masks.recurrent, strict=True):
        gradient = layer.weight_hh_l0.grad
        assert mask is not None
        assert torch.equal(gradient == 0, mask == 0)
        assert 0.3 < (mask == 0).double().mean() < 0.7
        assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(masks.recurrent[0], masks.recurrent[1])


def test_each_pass_draws_a_new_mask_and_the_same_one_gives_the_same_bits() -> None:
    encoder = build(weight_dropout=0.5, type_dropout=0.2, word_dropout=0.2, **NONE).float()
    masks = [encoder.draw_masks(3, 7) for _ in range(2)]
    before = torch.get_rng_state()
    first, again, other = (encoded(encoder, IDS, MASK, encoder.initial_state(3), masks[i]).hidden for i in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("how", ["to", "load_state_dict", "deepcopy", "eval and back"])
def test_weights_are_still_dropped_after(how: str) -> None:
    encoder = build(weight_dropout=0.5, **NONE)
    names = list(encoder.state_dict())
    if how == "to":
        encoder.to(torch.float32).to("cpu").to(torch.float64)
    elif how == "load_state_dict":
        encoder.load_state_dict({name: value + 0.01 for name, value in encoder.state_dict().items()})
    elif how == "deepcopy":
        encoder = copy.deepcopy(encoder)
    else:
        encoder.eval().train()
    masks = encoder.draw_masks(3, 7)
    dropped = encoded(encoder, IDS, MASK, encoder.initial_state(3), masks)
    plain = encoded(encoder, IDS, MASK, encoder.initial_state(3), replace(masks, recurrent=()))
    torch.testing.assert_close(dropped.raw[0], by_hand(encoder, IDS[0].tolist(), masks, 0), rtol=0, atol=1e-12)
    assert torch.equal(dropped.raw[:, 0], plain.raw[:, 0])  # the first step has no output to come back
    assert (dropped.raw[:, 1:] != plain.raw[:, 1:]).all(-1).any(-1).all()
    assert list(encoder.state_dict()) == names == list(build().state_dict())
    assert sum(len(group) for group in encoder.layer_groups()) == 9


def test_without_the_masks_the_bits_are_those_of_an_encoder_without_the_options() -> None:
    encoder, plain = build(weight_dropout=0.5, type_dropout=0.5, word_dropout=0.5).eval(), build().eval()
    masks = encoder.draw_masks(3, 7)
    assert masks == EncoderMasks(None, (None,), None, (), None, None)
    hidden = [encoded(e, IDS, MASK, e.initial_state(3), e.draw_masks(3, 7)).hidden for e in (encoder, plain)]
    assert torch.equal(*hidden)
    torch.manual_seed(3)
    expected = build().train().draw_masks(3, 7)
    torch.manual_seed(3)
    torch.testing.assert_close(build(weight_dropout=0.0).draw_masks(3, 7).output, expected.output, rtol=0, atol=0)


def test_a_mask_of_ones_gives_the_bits_of_the_module_itself() -> None:
    encoder = build(**NONE).float()
    ones = tuple(torch.ones_like(layer.weight_hh_l0) for layer in encoder.layers)
    state = encoder.initial_state(3)
    masked = encoded(encoder, IDS, MASK, state, EncoderMasks(hidden=(None,), recurrent=ones))
    plain = encoded(encoder, IDS, MASK, state, EncoderMasks(hidden=(None,)))
    assert torch.equal(masked.hidden, plain.hidden)
    assert all(torch.equal(a, b) for a, b in zip(sum(masked.state, ()), sum(plain.state, ()), strict=True))


def test_a_dropped_word_of_the_vocabulary_is_dropped_wherever_it_occurs() -> None:
    encoder = build(type_dropout=0.5, **NONE)
    torch.manual_seed(2)
    vectors = encoder.embed(IDS, encoder.draw_masks(3, 7))
    whole = (vectors == 0).all(-1)  # (3, 7)
    assert torch.equal(whole, (vectors == 0).any(-1))
    for token in IDS.unique():
        assert len(whole[token == IDS].unique()) == 1
    assert 0 < whole.double().mean() < 1
    kept = ~whole
    torch.testing.assert_close(vectors[kept], 2 * encoder.embedding.weight[IDS[kept]])


def test_single_words_are_dropped_occurrence_by_occurrence() -> None:
    encoder = build(word_dropout=0.25, **NONE)
    ids = torch.full((40, 50), 3)
    vectors = encoder.embed(ids, encoder.draw_masks(40, 50))
    whole = (vectors == 0).all(-1)
    assert torch.equal(whole, (vectors == 0).any(-1))
    assert whole.double().mean().item() == pytest.approx(0.25, abs=0.05)
    assert len(whole.unique(dim=0)) == 40
    torch.testing.assert_close(vectors[~whole], encoder.embedding.weight[3].expand((~whole).sum(), 5))


def test_what_cudnn_says_of_the_product_s_memory_is_not_told() -> None:
    said = "RNN module weights are not part of single contiguous chunk of memory. This means they need to be compacted"
    code = f"import warnings, lit_sft.models; warnings.simplefilter('error', append=True); warnings.warn({said!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bf16_stays_near_full_precision_and_no_warning_is_given() -> None:
    encoder = build(weight_dropout=0.4, type_dropout=0.2, word_dropout=0.2).float()
    masks = encoder.draw_masks(3, 7)
    full = encoded(encoder, IDS, MASK, encoder.initial_state(3), masks)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        half = encoded(encoder, IDS, MASK, encoder.initial_state(3), masks)
        half.hidden.float().sum().backward()
    assert half.hidden.dtype == torch.bfloat16
    assert all(tensor.dtype == torch.float32 for tensor in sum(half.state, ()))
    torch.testing.assert_close(half.hidden.float(), full.hidden, rtol=0, atol=0.05)
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_locked_dropout_is_the_same_at_all_steps_and_differs_over_documents() -> None:
    encoder = build(embedding_dropout=0.5, hidden_dropout=0.0, output_dropout=0.5, embedding_size=32, hidden_size=32)
    ids = torch.full((5, 9), 4)
    ones = torch.ones_like(ids)
    masks = encoder.draw_masks(5, 9)
    vectors = encoder.embed(ids, masks) == 0
    hidden = encoded(encoder, ids, ones, encoder.initial_state(5), masks).hidden == 0
    for dropped in (vectors, hidden):
        assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
        assert len(dropped[:, 0].unique(dim=0)) == 5


def test_a_last_layer_of_the_embeddings_size_needs_no_projection_to_a_tied_softmax() -> None:
    encoder = build(num_layers=3, last_size=5)
    assert [layer.weight_hh_l0.shape for layer in encoder.layers] == [(24, 6), (24, 6), (20, 5)]
    assert isinstance(LMHead(encoder.embedding, encoder.output_size).projection, torch.nn.Identity)
    with pytest.raises(ValueError, match="last_size=0 must be at least 1"):
        build(last_size=0)
