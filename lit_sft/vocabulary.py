"""Convert weights from one vocabulary to another, row by token, like fastai's ``match_embeds`` for ULMFiT.

A token in both vocabularies keeps its row exactly; a new one gets the mean of all rows, in the embedding and in the LM
head, and the mean bias. So in every context, a new token's logit is the mean of the old ones, and its probability is at
most their mean probability (Jensen): N new tokens reduce the log-probability of each of the V old ones by at most
log(1 + N / V). (The lowest bias would reduce it less. But that is the bias of padding, which is never predicted, and
new words would start just as improbable.)

An adaptive softmax has a row for each token of its shortlist and of each cluster. The row is kept if the token is in
the same one in both vocabularies; else it is the mean row there, and the bound holds with the sizes within the cluster.
A head of another kind than the checkpoint's starts fresh.
"""

from __future__ import annotations

from itertools import accumulate
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
    """Return a checkpoint's weights with the rows of ``network``'s vocabulary, without an LM head of another kind.

    Args:
        weights: the checkpoint's weights, named as in ``network``.
        network: the network for the run's vocabulary.
        tokenizer: the run's tokenizer.
        source: the checkpoint.

    Raises:
        UserError: the two tokenizers have different kinds of tokens, which can't be compared.
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
    found = {n: w for n, w in weights.items() if not n.startswith(HEAD)}
    for name in _embeddings(network):
        rows, frequencies = f"encoder.{name}.weight", f"encoder.{name}.frequencies"
        if rows in found and len(found[rows]) == theirs.vocab_size:
            found[rows] = taken(found[rows], places)
        if frequencies in found:
            kept = torch.where(places < 0, 0.0, found[frequencies][places.clamp(min=0)])  # new ones: 0, scale stays
            found[frequencies] = kept / kept.sum().clamp(min=torch.finfo(kept.dtype).tiny)
    head = {n: w for n, w in weights.items() if n.startswith(HEAD)}
    if head and network.lm_head is not None:
        found |= _remapped_head(head, network, places)
    return found


def places_of(own: Tokenizer, theirs: Tokenizer) -> Tensor:
    """Map each id of one vocabulary to the same token's id in another, or -1 if it has none: int64 (own entries,)."""
    places = torch.full((own.vocab_size,), -1, dtype=torch.long)
    for token, place in own.entries.items():
        places[place] = theirs.entries.get(token, -1)
    return places


def taken(rows: Tensor, places: Tensor) -> Tensor:
    """Take ``rows`` (n, ...) at ``places``, int64 (m,), and the mean of all rows where a place is -1: (m, ...)."""
    chosen = rows[places.clamp(min=0)]
    unknown = (places < 0).view(-1, *[1] * (rows.ndim - 1))
    return torch.where(unknown, rows.mean(0, keepdim=True), chosen)


def cutoffs_of(weights: Weights) -> list[int] | None:
    """Return the first id of each adaptive-softmax cluster, then the vocabulary's size; None without such a head."""
    if f"{ADAPTIVE}head.weight" not in weights:
        return None
    sizes: list[int] = []
    while (name := f"{ADAPTIVE}tail.{len(sizes)}.1.weight") in weights:
        sizes.append(len(weights[name]))
    return list(accumulate(sizes, initial=len(weights[f"{ADAPTIVE}head.weight"]) - len(sizes)))


def keep_head(model: Any, source: Checkpoint, vocab_size: int) -> None:
    """Set the options of the LM head so that it keeps its kind and clusters although the vocabulary has grown.

    Args:
        model: the run's parsed model options, changed in place; ``adaptive_cutoffs`` stays if it is given.
        source: the checkpoint that the run starts from or resumes.
        vocab_size: the run's vocabulary size.
    """
    weights = source.network_weights()
    if cutoffs := cutoffs_of(weights):
        model.tie_weights_up_to = min(model.tie_weights_up_to, vocab_size - 1)
        model.adaptive_cutoffs = model.adaptive_cutoffs or cutoffs[:-1]
    elif f"{HEAD}bias" in weights:
        model.tie_weights_up_to = max(model.tie_weights_up_to, vocab_size)


def _embeddings(network: Network) -> list[str]:
    """Return the names of the encoder's embeddings with a row for each token; a two-way encoder has two."""
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
    """Convert the clusters that both heads have; if this head has more clusters, those are taken from ``fresh``."""
    clusters = min(len(theirs), len(own)) - 1
    found: Weights = {}
    for kind in ("weight", "bias"):
        rows = head[f"{ADAPTIVE}head.{kind}"]
        shortlist = taken(rows[: theirs[0]], _within(places[: own[0]], 0, theirs[0]))
        behind = rows[theirs[0] : theirs[0] + clusters]
        extra = len(own) - 1 - clusters  # clusters that only this head has: their rows are the mean of the others
        found[f"{ADAPTIVE}head.{kind}"] = torch.cat(
            [shortlist, behind, behind.mean(0, keepdim=True).expand(extra, *behind.shape[1:])]
        )
    for number in range(clusters):
        name = f"{ADAPTIVE}tail.{number}"
        inside = _within(places[own[number] : own[number + 1]], theirs[number], theirs[number + 1])
        found[f"{name}.0.weight"] = head[f"{name}.0.weight"]
        found[f"{name}.1.weight"] = taken(head[f"{name}.1.weight"], inside)
    return fresh | found


def _within(places: Tensor, low: int, high: int) -> Tensor:
    """Return the places minus ``low``; -1 for those outside [low, high)."""
    return torch.where((places >= low) & (places < high), places - low, -1)
