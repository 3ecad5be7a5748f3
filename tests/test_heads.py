"""Heads against probabilities, pools and layers written out by hand."""

import copy
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_sft.models import ClassifierHead, LMHead
from lit_sft.models.heads import Pooling, pool, pooled_size

LENGTHS = [5, 1, 3]
MASK = torch.arange(5) < torch.tensor(LENGTHS).unsqueeze(1)  # (3, 5)
POOLINGS = get_args(Pooling)


def tied(embedding_size: int = 4, hidden_size: int = 6) -> LMHead:
    head = LMHead(nn.Embedding(9, embedding_size), hidden_size).double()
    assert head.tied
    nn.init.normal_(head.bias)
    return head


def adaptive() -> LMHead:
    return LMHead(nn.Embedding(20, 4), 32, tie_weights_up_to=0, adaptive_cutoffs=[5, 11]).double()


def adaptive_by_hand(head: LMHead, hidden: Tensor) -> Tensor:
    """Probabilities (tokens, 20) from the weights: five common ids, then clusters of six and of nine."""
    w = dict(head.adaptive.named_parameters())
    common = hidden @ w["head.weight"].T + w["head.bias"]  # (tokens, 5 + 2)
    common = common.exp() / common.exp().sum(-1, keepdim=True)
    parts = [common[:, :5]]
    for cluster in range(2):
        scores = hidden @ w[f"tail.{cluster}.0.weight"].T @ w[f"tail.{cluster}.1.weight"].T
        inside = scores.exp() / scores.exp().sum(-1, keepdim=True)
        parts.append(common[:, 5 + cluster : 6 + cluster] * inside)
    return torch.cat(parts, -1)


@pytest.mark.parametrize("sizes", [(4, 6), (6, 6)])
def test_the_tied_softmax_equals_cross_entropy_by_hand(sizes: tuple[int, int]) -> None:
    head = tied(*sizes)
    hidden, targets = torch.randn(7, 6).double(), torch.randint(9, (7,))
    x = hidden
    if sizes[0] != sizes[1]:
        w = dict(head.projection.named_parameters())
        x = hidden @ w["weight"].T + w["bias"]
    scores = x @ head.weight.T + head.bias
    probabilities = scores.exp() / scores.exp().sum(-1, keepdim=True)
    nll = head.nll(hidden, targets)
    torch.testing.assert_close(nll, -probabilities[torch.arange(7), targets].log())
    torch.testing.assert_close(nll, F.cross_entropy(scores, targets, reduction="none"))
    torch.testing.assert_close(head.log_prob(hidden), probabilities.log())


def test_the_adaptive_softmax_equals_its_probabilities_by_hand() -> None:
    head = adaptive()
    assert not head.tied
    hidden, targets = torch.randn(40, 32).double(), torch.arange(40) % 20
    probabilities = adaptive_by_hand(head, hidden)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(40).double())
    log_prob = head.log_prob(hidden)
    torch.testing.assert_close(log_prob, probabilities.log())
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(40).double())
    torch.testing.assert_close(head.nll(hidden, targets), -probabilities[torch.arange(40), targets].log())


def test_the_adaptive_gradient_is_that_of_its_full_distribution() -> None:
    head = adaptive()
    hidden, targets = torch.randn(40, 32).double().requires_grad_(), torch.arange(40) % 20
    inputs = [hidden, *head.parameters()]
    fast = torch.autograd.grad(head.nll(hidden, targets).sum(), inputs)
    slow = torch.autograd.grad(-adaptive_by_hand(head, hidden)[torch.arange(40), targets].log().sum(), inputs)
    for got, expected in zip(fast, slow, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [tied, adaptive])
def test_ignored_targets_count_nothing(make: Any) -> None:
    head = make()
    hidden = torch.randn(6, 6 if head.tied else 32).double().requires_grad_()
    targets = torch.tensor([1, -100, 8, -100, 0, -100])
    nll = head.nll(hidden, targets)
    assert nll.shape == (6,)
    assert (nll[1::2] == 0).all()
    assert (nll[::2] > 0).all()
    torch.testing.assert_close(nll[::2], head.nll(hidden[::2], targets[::2]))
    (gradient,) = torch.autograd.grad(nll.sum(), hidden)
    assert (gradient[1::2] == 0).all()
    assert (gradient[::2] != 0).any(-1).all()


@pytest.mark.parametrize("make", [tied, adaptive])
def test_a_batch_of_ignored_targets_gives_zero_and_gradients_of_zero(make: Any) -> None:
    head = make()
    hidden = torch.randn(6, 6 if head.tied else 32).double()
    nll = head.nll(hidden, torch.full((6,), -100))
    nll.sum().backward()
    assert (nll == 0).all()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()


def test_the_tie_survives_loading_copying_and_conversion() -> None:
    embedding = nn.Embedding(9, 4)
    model = nn.ModuleDict({"embedding": embedding, "head": LMHead(embedding, 6)})
    model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
    for same in (model, copy.deepcopy(model), copy.deepcopy(model).double()):
        assert same["head"].weight is same["embedding"].weight
        assert sum(p is same["head"].weight for p in same.parameters()) == 1


def test_the_vocabulary_decides_between_tied_and_adaptive() -> None:
    assert LMHead(nn.Embedding(100, 2), 8, tie_weights_up_to=100).tied
    assert not LMHead(nn.Embedding(100, 2), 8, tie_weights_up_to=99).tied
    assert LMHead(nn.Embedding(10_000, 2), 8).tied
    assert LMHead(nn.Embedding(10_001, 2), 16).adaptive.cutoffs == [2_000, 10_001]
    assert LMHead(nn.Embedding(30_000, 2), 16).adaptive.cutoffs == [2_000, 8_000, 30_000]
    assert LMHead(nn.Embedding(80_000, 2), 64).adaptive.cutoffs == [2_000, 8_000, 32_000, 80_000]


@pytest.mark.parametrize("cutoffs", [[], [0, 5], [5, 5], [7, 3], [20], [5, 25]])
def test_cutoffs_that_do_not_rise_within_the_vocabulary_are_rejected(cutoffs: list[int]) -> None:
    with pytest.raises(ValueError, match="adaptive_cutoffs"):
        LMHead(nn.Embedding(20, 4), 32, tie_weights_up_to=0, adaptive_cutoffs=cutoffs)


@pytest.mark.parametrize("make", [tied, adaptive])
def test_half_precision_gives_a_float32_loss_that_stays_near(make: Any) -> None:
    head = make().float()
    hidden, targets = torch.randn(12, 6 if head.tied else 32), torch.arange(12) % 9
    full = head.nll(hidden, targets)
    with torch.autocast("cpu", torch.bfloat16):
        half = head.nll(hidden.bfloat16(), targets)
        log_prob = head.log_prob(hidden.bfloat16())
    assert full.dtype == half.dtype == log_prob.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.02, atol=0.05)
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(12))


def pool_by_hand(tokens: Tensor, how: str, query: Tensor) -> Tensor:
    """One document without padding, tokens (time, size)."""
    last, mean = tokens[-1], sum(tokens) / len(tokens)
    highest = torch.stack([max(column) for column in tokens.T])
    scores = torch.stack([token.dot(query).exp() for token in tokens])
    attention = sum(token * score / scores.sum() for token, score in zip(tokens, scores, strict=True))
    pools = {"last": last, "mean": mean, "max": highest, "attention": attention}
    pools["concat"] = torch.cat([last, highest, mean])
    return torch.as_tensor(pools[how])


@pytest.mark.parametrize("how", POOLINGS)
@pytest.mark.parametrize("as_int", [True, False])
def test_pooling_equals_a_loop_over_documents_without_padding(how: Pooling, as_int: bool) -> None:
    hidden, query = torch.randn(3, 5, 4).double().requires_grad_(), torch.randn(4).double()
    mask = MASK.long() if as_int else MASK
    pooled = pool(hidden, mask, how, query)
    expected = torch.stack([pool_by_hand(hidden[row, :n], how, query) for row, n in enumerate(LENGTHS)])
    torch.testing.assert_close(pooled, expected)
    assert pooled.shape[1] == pooled_size(4, how)
    weights = torch.randn_like(pooled)
    got, slow = (torch.autograd.grad((weights * x).sum(), hidden)[0] for x in (pooled, expected))
    torch.testing.assert_close(got, slow)
    assert (got[~MASK] == 0).all()


@pytest.mark.parametrize("how", POOLINGS)
def test_what_stands_at_padding_never_changes_the_pool(how: Pooling) -> None:
    hidden, query = torch.randn(3, 5, 4), torch.randn(4)
    clean = pool(hidden, MASK, how, query)
    for junk in (1e4, -1e4):
        torch.testing.assert_close(pool(hidden.masked_fill(~MASK.unsqueeze(-1), junk), MASK, how, query), clean)
    longer = pool(F.pad(hidden, (0, 0, 0, 3)), F.pad(MASK, (0, 3)), how, query)
    torch.testing.assert_close(longer, clean)


@pytest.mark.parametrize("how", POOLINGS)
def test_a_row_without_tokens_gives_zeros_and_no_nan(how: Pooling) -> None:
    hidden = torch.zeros(2, 3, 4).requires_grad_()
    pooled = pool(hidden, torch.tensor([[1, 1, 0], [0, 0, 0]]), how, torch.randn(4))
    assert (pooled[1] == 0).all()
    pooled.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("how", POOLINGS)
@pytest.mark.parametrize("hidden_size", [0, 7])
def test_the_classifier_equals_its_layers_by_hand(how: Pooling, hidden_size: int) -> None:
    head = ClassifierHead(4, 3, how, dropout=0.5, hidden_size=hidden_size).double()
    hidden, mask = torch.randn(3, 5, 4).double(), head.draw_mask(3)
    assert mask is not None
    assert mask.shape == (3, head.pooled_size)
    query = torch.zeros(4) if head.query is None else head.query
    layers = [module for module in head.linear.modules() if isinstance(module, nn.Linear)]
    for row, length in enumerate(LENGTHS):
        x = pool_by_hand(hidden[row, :length], how, query.double()) * mask[row]
        for number, layer in enumerate(layers):
            x = layer.weight @ (x.clamp(min=0) if number else x) + layer.bias
        torch.testing.assert_close(head(hidden, MASK, mask)[row], x)
    assert len(layers) == (2 if hidden_size else 1)


def test_the_classifier_drops_nothing_in_evaluation_or_at_a_rate_of_zero() -> None:
    evaluated, undropped = ClassifierHead(4, 3).eval(), ClassifierHead(4, 3, dropout=0.0)
    hidden = torch.randn(3, 5, 4)
    before = torch.get_rng_state()
    for head in (evaluated, undropped):
        assert head.draw_mask(3) is None
        head(hidden, MASK, None)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("option", "value"), [("pooling", "middle"), ("dropout", 1.0), ("dropout", -0.5), ("hidden_size", -1)]
)
def test_an_option_out_of_range_is_rejected_by_name(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option}="):
        ClassifierHead(4, 3, **{option: value})


def test_attention_without_a_query_and_an_unknown_pooling_are_rejected() -> None:
    with pytest.raises(ValueError, match="query"):
        pool(torch.randn(3, 5, 4), MASK, "attention")
    with pytest.raises(ValueError, match="'middle' is none of last, mean, max, concat, attention"):
        pool(torch.randn(3, 5, 4), MASK, "middle")  # type: ignore[arg-type]
