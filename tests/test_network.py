"""The network: encoder and heads joined, padded batches against single documents, masks, layer groups."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_sft.models import (
    ClassifierHead,
    Encoder,
    EncoderOutput,
    LMHead,
    LSTMEncoder,
    LSTMState,
    Masks,
    Network,
)
from lit_sft.models.dropout import apply_mask, dropout_mask
from lit_sft.models.heads import Pooling
from lit_sft.objectives import MLE, Supervised


@dataclass
class Batch:
    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    labels: Tensor
    first: bool = True

    def row(self, number: int) -> "Batch":
        """One document, without padding."""
        length = int(self.attention_mask[number].sum())
        cut = [t[number : number + 1, :length] for t in (self.input_ids, self.attention_mask, self.targets)]
        return Batch(cut[0], cut[1], cut[2], self.labels[number : number + 1])


def batch() -> Batch:
    lengths = torch.tensor([6, 2, 4, 1])
    mask = torch.arange(6) < lengths.unsqueeze(1)  # (4, 6)
    ids, targets = (torch.randint(1, 12, (4, 6)) for _ in range(2))
    return Batch(ids.where(mask, 0), mask, targets.where(mask, -100), torch.tensor([0, 2, 1, 2]))


def build(pooling: Pooling = "concat", tied: bool = True, **options: Any) -> Network:
    encoder = LSTMEncoder(12, 4, 16, **{"num_layers": 2, **options})
    adaptive: dict[str, Any] = {"tie_weights_up_to": 0, "adaptive_cutoffs": [4, 8]}
    lm = LMHead(encoder.embedding, 16, **({} if tied else adaptive))
    return Network(encoder, lm, ClassifierHead(16, 3, pooling, hidden_size=5)).double()


def select(masks: Masks, row: int) -> Masks:
    """The masks of one document of a batch."""

    def one(mask: Tensor | None) -> Tensor | None:
        return None if mask is None else mask[row : row + 1]

    encoder = masks.encoder
    hidden = tuple(one(mask) for mask in encoder.hidden)
    return Masks(type(encoder)(one(encoder.embedding), hidden, one(encoder.output)), one(masks.classifier))


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "concat", "attention"])
@pytest.mark.parametrize("training", [True, False])
def test_padding_never_changes_logits_pools_or_gradients(pooling: Pooling, training: bool) -> None:
    network, documents = build(pooling).train(training), batch()
    masks = network.draw_masks(4, 6)
    logits = network.classify(documents, masks)
    alone = torch.cat([network.classify(documents.row(row), select(masks, row)) for row in range(4)])
    torch.testing.assert_close(logits, alone, rtol=0, atol=1e-12)
    pools = torch.cat([network.pooled(documents.row(row), select(masks, row)) for row in range(4)])
    torch.testing.assert_close(network.pooled(documents, masks), pools, rtol=0, atol=1e-12)
    compare_gradients(network, logits, alone)


@pytest.mark.parametrize("tied", [True, False])
def test_padding_never_changes_the_language_model(tied: bool) -> None:
    network, stream = build(tied=tied), batch()
    masks = network.draw_masks(4, 6)
    nll, _ = network.lm_nll(stream, network.encoder.initial_state(4), masks)
    assert nll.shape == (4, 6)
    assert (nll[~stream.attention_mask] == 0).all()
    start = network.encoder.initial_state(1)
    rows = [network.lm_nll(stream.row(row), start, select(masks, row))[0] for row in range(4)]
    alone = torch.cat(rows, 1).squeeze(0)  # (tokens,)
    torch.testing.assert_close(nll[stream.attention_mask], alone, rtol=0, atol=1e-12)
    compare_gradients(network, nll[stream.attention_mask], alone)


def compare_gradients(network: Network, got: Tensor, expected: Tensor) -> None:
    weights = torch.randn_like(got)
    parameters = list(network.parameters())
    pairs = [torch.autograd.grad((weights * x).sum(), parameters, allow_unused=True) for x in (got, expected)]
    assert sum(gradient is not None for gradient in pairs[0]) > 4
    for a, b in zip(*pairs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_the_same_masks_give_the_same_bits_from_ids_and_from_embeds(training: bool) -> None:
    network, documents = build().float().train(training), batch()
    masks, state = network.draw_masks(4, 6), network.encoder.initial_state(4)
    before = torch.get_rng_state()
    embeds = network.encoder.embed(documents.input_ids, masks.encoder)
    first = [network.classify(documents, masks), network.lm_nll(documents, state, masks)[0]]
    again = [network.classify(documents, masks), network.lm_nll(documents, state, masks)[0]]
    moved = [
        network.classify(documents, masks, embeds + 0),
        network.lm_nll(documents, state, masks, embeds + 0)[0],
    ]
    for a, b, c in zip(first, again, moved, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(network.classify(documents, network.draw_masks(4, 6)), first[0]) is not training


@pytest.mark.parametrize("training", [True, False])
def test_a_perturbation_of_the_embeds_has_a_gradient_in_both_modes(training: bool) -> None:
    network, documents = build().train(training), batch()
    masks = network.draw_masks(4, 6)
    embeds = network.encoder.embed(documents.input_ids, masks.encoder).detach().requires_grad_()
    loss = network.classify(documents, masks, embeds).square().sum()
    (gradient,) = torch.autograd.grad(loss, embeds)
    assert (gradient[documents.attention_mask] != 0).any(-1).all()
    assert (gradient[~documents.attention_mask] == 0).all()
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_layer_groups_hold_every_parameter_once(tied: bool) -> None:
    network = build(tied=tied)
    groups = network.layer_groups()
    flat = [id(parameter) for group in groups for parameter in group]
    assert len(flat) == len(set(flat))
    assert set(flat) == {id(parameter) for parameter in network.parameters()}
    assert len(groups) == 4
    assert all(groups)
    assert groups[0] == [network.encoder.embedding.weight]
    assert network.lm_head is not None
    assert network.classifier is not None
    assert set(map(id, groups[-1])) == set(map(id, network.classifier.parameters()))
    lm_head = set(map(id, network.lm_head.parameters())) - {id(network.encoder.embedding.weight)}
    assert lm_head <= set(map(id, groups[-2]))  # with the layer that it was pretrained on


def test_groups_that_leave_out_or_repeat_a_parameter_are_rejected_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = build()
    whole = network.encoder.layer_groups()
    for groups in (whole[:-1], [*whole, whole[-1]]):
        monkeypatch.setattr(network.encoder, "layer_groups", lambda groups=groups: groups)
        with pytest.raises(ValueError, match=r"LSTMEncoder .*layers\.1\.weight_ih_l0"):
            network.layer_groups()


def test_a_missing_head_is_named() -> None:
    encoder = LSTMEncoder(12, 4, 16)
    network, documents = Network(encoder), batch()
    masks = network.draw_masks(4, 6)
    with pytest.raises(ValueError, match="no language-model head"):
        network.lm_nll(documents, encoder.initial_state(4), masks)
    with pytest.raises(ValueError, match="no classifier"):
        network.classify(documents, masks)
    assert network.pooled(documents, masks).shape == (4, 16)
    assert len(network.layer_groups()) == 2


class GRUEncoder(Encoder):
    """Another encoder: one GRU layer, its state (h,), its masks a plain dict."""

    def __init__(self, vocab_size: int, size: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.vocab_size, self.output_size, self.dropout = vocab_size, size, dropout
        self.embedding = nn.Embedding(vocab_size, size, padding_idx=0)
        self.gru = nn.GRU(size, size, batch_first=True)

    def initial_state(self, batch_size: int) -> LSTMState:
        return ((self.embedding.weight.new_zeros(batch_size, self.output_size),),)

    def draw_masks(self, batch_size: int, time: int) -> dict[str, Tensor | None]:
        size, dtype = (batch_size, 1, self.output_size), self.embedding.weight.dtype
        return {"input": dropout_mask(self.dropout, size, dtype=dtype) if self.training else None}

    def embed(self, input_ids: Tensor, masks: dict[str, Tensor | None]) -> Tensor:
        return apply_mask(self.embedding(input_ids), masks["input"])

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, state: LSTMState, masks: dict[str, Tensor | None]
    ) -> EncoderOutput:
        hidden, h = self.gru(inputs_embeds, state[0][0].unsqueeze(0))
        return EncoderOutput(hidden * attention_mask.unsqueeze(-1), ((h.squeeze(0),),))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        return [list(self.embedding.parameters()), list(self.gru.parameters())]


def test_another_encoder_drops_in() -> None:
    encoder = GRUEncoder(12, 8)
    network = Network(encoder, LMHead(encoder.embedding, 8), ClassifierHead(8, 3)).double()
    example = batch()
    first = MLE()(network, {"unlabeled": example}, None)
    assert first.state is not None
    assert [tuple(h.shape) for h in first.state[0]] == [(4, 8)]
    example.first = False
    total = MLE()(network, {"unlabeled": example}, first.state).total
    total = total + Supervised()(network, {"labeled": example}, None).total
    total.backward()
    assert all(parameter.grad is not None for group in network.layer_groups() for parameter in group)
    network.eval()
    alone = [network.classify(example.row(row), network.draw_masks(1, 6)) for row in range(4)]
    torch.testing.assert_close(network.classify(example, network.draw_masks(4, 6)), torch.cat(alone))


def test_the_gradient_is_that_of_finite_differences() -> None:
    network, documents = build("mean"), batch()
    masks, state = network.draw_masks(4, 6), network.encoder.initial_state(4)
    embeds = network.encoder.embed(documents.input_ids, masks.encoder).detach().requires_grad_()

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        return network.classify(documents, masks, x), network.lm_nll(documents, state, masks, x)[0]

    assert torch.autograd.gradcheck(run, embeds)


def test_backprop_tokens_leaves_a_language_model_its_state_and_its_whole_gradient() -> None:
    """That of the loss beside a classifier: the option is for whole documents, which begin without a state."""
    network, stream, found = build().eval(), batch(), []
    stream.first = False
    state = MLE()(network, {"unlabeled": stream}, None).state
    for tail in (None, 2):
        network.backprop_tokens = tail
        loss = MLE()(network, {"unlabeled": stream}, state).total
        found.append([loss, *torch.autograd.grad(loss, list(network.encoder.parameters()))])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("tied", [True, False])
def test_half_precision_stays_near_full_precision(tied: bool) -> None:
    network, example = build(tied=tied).float(), batch()
    masks, state = network.draw_masks(4, 6), network.encoder.initial_state(4)

    def run() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        network.zero_grad()
        logits, (nll, _) = network.classify(example, masks), network.lm_nll(example, state, masks)
        (nll.mean() + logits.float().square().mean()).backward()
        return logits, nll, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    logits, nll, gradients = run()
    with torch.autocast("cpu", torch.bfloat16):
        half_logits, half_nll, half_gradients = run()
    assert nll.dtype == half_nll.dtype == torch.float32
    torch.testing.assert_close(half_logits.float(), logits, rtol=0.05, atol=0.02)
    torch.testing.assert_close(half_nll, nll, rtol=0.02, atol=0.02)
    for name, gradient in gradients.items():
        off = (half_gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-3)
        assert off < 0.1, name
