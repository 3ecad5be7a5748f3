"""Heads: a language model's next-token loss, pooling over a document's tokens, and a classifier.

Under autocast, losses are computed in float32, the matrix products before them in the lower precision. Not
covered: sampled softmax, whose loss gives no perplexity.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_sft.models.dropout import apply_mask, check_dropout, dropout_mask

IGNORE_INDEX = -100
Pooling = Literal["last", "mean", "max", "concat", "attention"]


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 when it is in half precision; else `x` itself."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def num_outputs(num_classes: int, multilabel: bool = False) -> int:
    """Number of logits per document: one per class, but only one (that of class 1) for two exclusive classes."""
    return 1 if num_classes == 2 and not multilabel else num_classes


def class_probabilities(logits: Tensor, multilabel: bool = False) -> Tensor:
    """Logits (batch, num_outputs) -> probabilities (batch, num_classes), at least float32.

    Each row sums to 1; with `multilabel`, each class has an independent sigmoid instead.
    """
    logits = at_least_float32(logits)
    if multilabel:
        return logits.sigmoid()  # (batch, num_classes)
    if logits.shape[-1] > 1:
        return logits.softmax(-1)  # (batch, num_classes)
    return torch.cat([-logits, logits], dim=-1).sigmoid()  # (batch, 2)


class LMHead(nn.Module):
    """Next-token probabilities.

    With a vocabulary of up to `tie_weights_up_to` tokens: a full softmax whose weights are the token vectors
    (Press & Wolf 2017; Inan et al. 2017), after a linear projection if hidden and embedding size differ. With a
    larger one: an adaptive softmax (Grave et al. 2017), which puts rare tokens into clusters with smaller vectors.
    It needs ids sorted by falling frequency, as tokenizers roughly assign them.

    Args:
        embedding: the encoder's embedding, (vocab_size, embedding_size).
        hidden_size: units of the encoder's output.
        tie_weights_up_to: the largest vocabulary with a tied full softmax.
        adaptive_cutoffs: first token id of each tail cluster; None chooses those of 2,000, 8,000 and
            32,000 that are at most half of the vocabulary.
        loss_chunk: number of tokens whose logits `nll` holds in memory at once; the backward pass recomputes them
            chunk by chunk. The loss is the same, the softmax takes a third more time. None: all tokens at once.

    Raises:
        ValueError: cutoffs that do not rise between 1 and vocab_size - 1, or a loss_chunk below 1.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        hidden_size: int,
        tie_weights_up_to: int = 10_000,
        adaptive_cutoffs: list[int] | None = None,
        loss_chunk: int | None = None,
    ) -> None:
        super().__init__()
        if loss_chunk is not None and loss_chunk < 1:
            raise ValueError(f"loss_chunk={loss_chunk} must be at least 1")
        self.loss_chunk = loss_chunk
        vocab_size, embedding_size = embedding.weight.shape
        self.vocab_size = vocab_size
        self.tied = vocab_size <= tie_weights_up_to
        if self.tied:
            self.weight = embedding.weight  # (vocab_size, embedding_size), one parameter with the encoder's
            self.bias = nn.Parameter(torch.zeros(vocab_size))
            same = hidden_size == embedding_size
            self.projection = nn.Identity() if same else nn.Linear(hidden_size, embedding_size)
        else:
            cutoffs = _cutoffs(vocab_size) if adaptive_cutoffs is None else list(adaptive_cutoffs)
            if not cutoffs or any(a >= b for a, b in zip([0, *cutoffs], [*cutoffs, vocab_size], strict=True)):
                raise ValueError(f"adaptive_cutoffs={cutoffs} must rise between 1 and {vocab_size - 1}")
            self.adaptive = nn.AdaptiveLogSoftmaxWithLoss(hidden_size, vocab_size, cutoffs, head_bias=True)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood in nats of each target.

        hidden (tokens, hidden_size), targets (tokens,) int64 -> (tokens,) at least float32; 0, with a
        gradient of 0, where the target is -100.
        """
        size = self.loss_chunk
        if size is None or len(hidden) <= size:
            return self._nll(hidden, targets)
        chunks = zip(hidden.split(size), targets.split(size), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self._nll(*chunk) for chunk in chunks])
        # Nothing in `_nll` is random, so no random state needs to be kept for the recomputation.
        return torch.cat(
            [checkpoint(self._nll, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        )

    def _nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return _token_nll(self._logits(hidden), targets) if self.tied else self._adaptive_nll(hidden, targets)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """hidden (tokens, hidden_size) -> log-probabilities (tokens, vocab_size), at least float32."""
        if self.tied:
            return at_least_float32(self._logits(hidden)).log_softmax(-1)
        with torch.autocast(hidden.device.type, enabled=False):
            log_prob: Tensor = self.adaptive.log_prob(at_least_float32(hidden))
        return log_prob

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(self.projection(hidden), self.weight, self.bias)  # (tokens, vocab_size)

    def _adaptive_nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """As `nn.AdaptiveLogSoftmaxWithLoss.forward`, with ignored targets, in float32 under autocast.

        -log p = -log p(cluster) - log p(token | cluster); a cluster with no target still gets its gradient of 0.
        """
        bounds = self.adaptive.cutoffs  # first id of each tail cluster, then vocab_size
        clusters = [(targets >= low) & (targets < high) for low, high in pairwise(bounds)]
        choice = targets  # (tokens,): an id of the shortlist, or the cluster's index after it
        for place, inside in enumerate(clusters, start=bounds[0]):
            choice = choice.masked_fill(inside, place)
        nll = _token_nll(self.adaptive.head(hidden), choice)  # (tokens,)
        for low, inside, tail in zip(bounds, clusters, self.adaptive.tail, strict=False):
            rows = inside.nonzero().squeeze(1)  # (tokens of this cluster,)
            nll = nll.index_add(0, rows, _token_nll(tail(hidden[rows]), targets[rows] - low))
        return nll


def _token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    # Directly from the logits: log_softmax and a gather would keep one more (tokens, vocab_size) tensor.
    return F.cross_entropy(at_least_float32(logits), targets, ignore_index=IGNORE_INDEX, reduction="none")


def _cutoffs(vocab_size: int) -> list[int]:
    fitting = [cutoff for cutoff in (2_000, 8_000, 32_000) if 2 * cutoff <= vocab_size]
    return fitting or [max(1, vocab_size // 4)]


def pooled_size(hidden_size: int, how: Pooling) -> int:
    """Units of what `pool` returns."""
    return 3 * hidden_size if how == "concat" else hidden_size


def pool(hidden: Tensor, attention_mask: Tensor, how: Pooling, query: Tensor | None = None) -> Tensor:
    """Pool the vectors of a document's tokens into one vector; padding (on the right) is ignored.

    `how` is "last" (the last token), "mean" or "max" (over tokens), "concat" = [last, max, mean] (Howard & Ruder
    2018), or "attention": a mean weighted by softmax(hidden . query). A row without tokens gives zeros, provided
    that `hidden` is zero at padding.

    hidden (batch, time, size), attention_mask (batch, time), query (size,) -> (batch, size), or (batch, 3 * size).
    """
    tokens = attention_mask.bool().unsqueeze(-1)  # (batch, time, 1)
    if how == "concat":
        parts: Sequence[Pooling] = ("last", "max", "mean")
        return torch.cat([pool(hidden, attention_mask, part) for part in parts], dim=-1)  # (batch, 3 * size)
    if how == "last":
        last = tokens.sum(1, keepdim=True).clamp(min=1) - 1  # (batch, 1, 1)
        return hidden.gather(1, last.expand(-1, 1, hidden.shape[-1])).squeeze(1)  # (batch, size)
    if how == "mean":
        return hidden.masked_fill(~tokens, 0.0).sum(1) / tokens.sum(1).clamp(min=1)  # (batch, size)
    if how == "max":
        highest = hidden.masked_fill(~tokens, -torch.inf).amax(1)  # (batch, size)
        return highest.masked_fill(~tokens.any(1), 0.0)
    if how == "attention":
        if query is None:
            raise ValueError("pooling by attention needs a query")
        scores = at_least_float32((hidden * query).sum(-1, keepdim=True))  # (batch, time, 1)
        weights = scores.masked_fill(~tokens, torch.finfo(scores.dtype).min).softmax(1)  # (batch, time, 1)
        return (hidden * weights.to(hidden.dtype)).sum(1)  # (batch, size)
    raise ValueError(f"pooling={how!r} is none of {', '.join(get_args(Pooling))}")


class ClassifierHead(nn.Module):
    """Pooling, dropout, and a linear layer, or two with a ReLU between.

    No batch norm: it would couple the documents of a batch, and adversarial passes would change its
    statistics.

    Args:
        input_size: units of the encoder's output.
        num_outputs: logits per document (one for two classes, see the function `num_outputs`).
        pooling: last, mean, max, concat or attention; see `pool`.
        dropout: share of the pooled units set to zero in training.
        hidden_size: units of the hidden layer; 0 for none.
        multilabel: whether any number of classes may apply to a document instead of exactly one.

    Raises:
        ValueError: an unknown pooling, a dropout outside [0, 1), a negative hidden_size.
    """

    def __init__(
        self,
        input_size: int,
        num_outputs: int,
        pooling: Pooling = "concat",
        dropout: float = 0.4,
        hidden_size: int = 0,
        multilabel: bool = False,
    ) -> None:
        super().__init__()
        self.multilabel = multilabel
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling={pooling!r} is none of {', '.join(get_args(Pooling))}")
        if hidden_size < 0:
            raise ValueError(f"hidden_size={hidden_size} must be at least 0")
        self.pooling: Pooling = pooling
        self.dropout = check_dropout("dropout", dropout)
        self.pooled_size = pooled_size(input_size, pooling)
        self.query: nn.Parameter | None = None
        if pooling == "attention":
            self.query = nn.Parameter(torch.randn(input_size) / input_size**0.5)  # (input_size,)
        self.linear: nn.Module
        if hidden_size == 0:
            self.linear = nn.Linear(self.pooled_size, num_outputs)
        else:
            between = nn.Linear(self.pooled_size, hidden_size)
            self.linear = nn.Sequential(between, nn.ReLU(), nn.Linear(hidden_size, num_outputs))

    def draw_mask(self, batch_size: int) -> Tensor | None:
        """Draw the dropout mask of one pass, (batch, pooled_size); None in eval mode or without dropout."""
        if not self.training:
            return None
        weight = next(self.linear.parameters())
        return dropout_mask(self.dropout, (batch_size, self.pooled_size), weight.device, weight.dtype)

    def pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """hidden (batch, time, input_size), attention_mask (batch, time) -> (batch, pooled_size)."""
        return pool(hidden, attention_mask, self.pooling, self.query)

    def forward(self, hidden: Tensor, attention_mask: Tensor, mask: Tensor | None) -> Tensor:
        """hidden (batch, time, input_size), attention_mask (batch, time) -> (batch, num_outputs)."""
        return self.of_pooled(self.pool(hidden, attention_mask), mask)

    def of_pooled(self, pooled: Tensor, mask: Tensor | None) -> Tensor:
        """What `pool` returned, (batch, pooled_size) -> logits (batch, num_outputs)."""
        logits: Tensor = self.linear(apply_mask(pooled, mask))  # (batch, num_outputs)
        return logits
