"""Weights of one vocabulary for another: rows by token, as fastai's ``match_embeds`` has them for ULMFiT.

A token that both vocabularies have keeps its row to the bit; a new one gets the mean of all rows, in the embedding and
in the LM head, and the mean bias. So at each place a new token's logit is the mean of the old ones, its probability at
most their mean (Jensen), and N new tokens take at most log(1 + N / V) off the log-probability of any of the V old ones.
(The lowest bias would take less, but it is that of padding, which is never predicted: new words would start there.)

An adaptive softmax has a row for each token of its shortlist and of each cluster: it is kept where the token stands in
the same one in both, else it is the mean of that cluster's, which bounds the loss by the cluster's size. A head of
another kind than the checkpoint's starts fresh.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_sft.checkpoints import Checkpoint
from lit_sft.data.tokenization import Tokenizer
from lit_sft.errors import UserError
from lit_sft.models import Network

HEAD = "lm_head."
ADAPTIVE = f"{HEAD}adaptive."
Weights = dict[str, Tensor]


def remapped(weights: Weights, network: Network, tokenizer: Tokenizer, source: Checkpoint) -> Weights:
    """A checkpoint's weights with the rows of ``network``'s vocabulary, as far as its heads are of one kind.

    Args:
        weights: the checkpoint's, named as in ``network``.
        network: with the run's own vocabulary.
        tokenizer: of the run.
        source: the checkpoint.

    Raises:
        UserError: the tokens are of two kinds, so that none can be compared.
    """
    theirs = source.tokenizer()
    if theirs.model != tokenizer.model:
        raise UserError(f"the tokens of {source.path} are {theirs.model} and those here {tokenizer.model}")
    places = places_of(tokenizer, theirs)
    known = int((places >= 0).sum())
    rank_zero_info(
        f"vocabulary: {known} entries of {source.path} are known here, {len(places) - known} start from the mean, "
        f"{theirs.vocab_size - known} are left behind"
    )
    embeddings = {f"encoder.{name}.weight" for name in _embeddings(network)}
    found = {n: w for n, w in weights.items() if not n.startswith(HEAD)}
    found |= {n: taken(w, places) for n, w in found.items() if n in embeddings and len(w) == theirs.vocab_size}
    for name in _embeddings(network):
        if (frequencies := found.get(name := f"encoder.{name}.frequencies")) is not None:
            kept = torch.where(places < 0, 0.0, frequencies[places.clamp(min=0)])  # none is new: scaled as before
            found[name] = kept / kept.sum().clamp(min=torch.finfo(kept.dtype).tiny)
    head = {n: w for n, w in weights.items() if n.startswith(HEAD)}
    if head and network.lm_head is not None:
        found |= _remapped_head(head, network, places)
    return found


def places_of(own: Tokenizer, theirs: Tokenizer) -> Tensor:
    """For each id of one vocabulary the same token's id in another, -1 where that has none: int64 (own entries,)."""
    places = torch.full((own.vocab_size,), -1, dtype=torch.long)
    for token, place in own.entries.items():
        places[place] = theirs.entries.get(token, -1)
    return places


def taken(rows: Tensor, places: Tensor) -> Tensor:
    """``rows`` (n, ...) at ``places``, int64 (m,); the mean of all rows where that is -1: (m, ...)."""
    chosen = rows[places.clamp(min=0)]
    unknown = (places < 0).view(-1, *[1] * (rows.ndim - 1))
    return torch.where(unknown, rows.mean(0, keepdim=True), chosen)


def cutoffs_of(weights: Weights) -> list[int] | None:
    """First id of each cluster of an adaptive softmax, then the vocabulary's size; None for another head, or none."""
    if f"{ADAPTIVE}head.weight" not in weights:
        return None
    sizes: list[int] = []
    while (name := f"{ADAPTIVE}tail.{len(sizes)}.1.weight") in weights:
        sizes.append(len(weights[name]))
    cutoffs = [len(weights[f"{ADAPTIVE}head.weight"]) - len(sizes)]
    for size in sizes:
        cutoffs.append(cutoffs[-1] + size)
    return cutoffs


def keep_head(model: Any, source: Checkpoint, vocab_size: int) -> None:
    """Set the options of the LM head so that a vocabulary that has grown keeps the checkpoint's kind and clusters.

    Args:
        model: the run's parsed options of the model; ``adaptive_cutoffs`` that are given stay.
        source: what it starts from, or goes on with.
        vocab_size: of the run.
    """
    weights = source.network_weights()
    if cutoffs := cutoffs_of(weights):
        model.tie_weights_up_to = min(model.tie_weights_up_to, vocab_size - 1)
        model.adaptive_cutoffs = model.adaptive_cutoffs or cutoffs[:-1]
    elif f"{HEAD}bias" in weights:
        model.tie_weights_up_to = max(model.tie_weights_up_to, vocab_size)


def _embeddings(network: Network) -> list[str]:
    """Names of the encoder's embeddings that have a row a token: a two-way encoder has two."""
    size = network.encoder.vocab_size
    modules = network.encoder.named_modules()
    return [name for name, part in modules if isinstance(part, nn.Embedding) and part.num_embeddings == size]


def _remapped_head(head: Weights, network: Network, places: Tensor) -> Weights:
    assert network.lm_head is not None
    cutoffs = cutoffs_of(head)
    if network.lm_head.tied is not (cutoffs is None):
        kinds = ("tied", "adaptive") if cutoffs is None else ("adaptive", "tied")
        rank_zero_info(
            f"vocabulary: the LM head starts fresh, as the checkpoint's is {kinds[0]} and this one {kinds[1]}"
        )
        return {}
    if cutoffs is None:
        by_token = {f"{HEAD}weight", f"{HEAD}bias"}
        return {name: taken(w, places) if name in by_token else w for name, w in head.items()}
    fresh = {f"{HEAD}{name}": weight for name, weight in network.lm_head.state_dict().items()}
    return _remapped_adaptive(head, cutoffs, fresh, network.lm_head.adaptive.cutoffs, places)


def _remapped_adaptive(head: Weights, theirs: list[int], fresh: Weights, own: list[int], places: Tensor) -> Weights:
    """The clusters that both have, and ``fresh`` ones of this head where it has more."""
    clusters = min(len(theirs), len(own)) - 1
    found: Weights = {}
    for kind in ("weight", "bias"):
        rows = head[f"{ADAPTIVE}head.{kind}"]
        shortlist = taken(rows[: theirs[0]], _within(places[: own[0]], 0, theirs[0]))
        behind = rows[theirs[0] : theirs[0] + clusters]
        extra = len(own) - 1 - clusters  # of clusters that only this head has: the mean of the others
        found[f"{ADAPTIVE}head.{kind}"] = torch.cat(
            [shortlist, behind, behind.mean(0, keepdim=True).expand(extra, *behind.shape[1:])]
        )
    for number in range(clusters):
        name = f"{ADAPTIVE}tail.{number}"
        inside = _within(places[own[number] : own[number + 1]], theirs[number], theirs[number + 1])
        found[f"{name}.0.weight"] = head[f"{name}.0.weight"]
        found[f"{name}.1.weight"] = taken(head[f"{name}.1.weight"], inside)
    for number in range(clusters, len(own) - 1):
        found |= {name: weight for name, weight in fresh.items() if name.startswith(f"{ADAPTIVE}tail.{number}.")}
    return found


def _within(places: Tensor, low: int, high: int) -> Tensor:
    """Places counted from ``low``; -1 for those outside of [low, high)."""
    return torch.where((places >= low) & (places < high), places - low, -1)
