"""Text generation: the response to a prompt that a language model finds most likely, by beam search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_sft.models.encoder import LSTMState
from lit_sft.models.network import Network, TokenBatch

AT_ONCE = 1 << 25  # log-probabilities in memory at once: the larger the vocabulary, the fewer prompts per batch


@torch.no_grad()
def respond(
    network: Network,
    prompts: TokenBatch,
    lengths: Tensor,
    eos_id: int,
    max_new_tokens: int,
    num_beams: int = 1,
    never: Sequence[int] = (),
) -> Tensor:
    """Generate a response to each prompt: the most likely one that the beam search finds.

    At each step the search keeps the `num_beams` most likely unfinished responses, until `num_beams` have ended
    (Sutskever et al. 2014, section 3.2, except that the beam keeps its width). It returns the ended one with the
    highest log-probability per token, `<eos>` included: by the sum, the shortest would win (Wu et al. 2016, section 7,
    with an exponent of 1). With one beam the search is greedy. If fewer than `num_beams` have ended after
    `max_new_tokens`, the most likely unfinished response is a candidate, too. Prompts whose search is over stay in the
    batch until all searches are over.

    Args:
        network: in eval mode, with a language-model head.
        prompts: ids (batch, time), padded on the right, each up to the `<eos>` that its response follows.
        lengths: (batch,), at least 1: positions of each prompt, including the boundary tokens; later ones aren't read.
        eos_id: the token that ends a response.
        max_new_tokens: maximum number of tokens in a response.
        num_beams: number of unfinished responses that are kept.
        never: ids that are never generated, whatever their probability: the unknown word, padding.

    Returns:
        int64 (batch, max_new_tokens): the ids of each response, filled up with -1.

    Raises:
        ValueError: `num_beams` or `max_new_tokens` below 1, or a network without a language-model head.
    """
    if min(num_beams, max_new_tokens) < 1:
        raise ValueError(f"num_beams={num_beams} and max_new_tokens={max_new_tokens} must be at least 1")
    if network.lm_head is None:
        raise ValueError("this network has no language-model head")
    rows = max(1, AT_ONCE // (num_beams * network.lm_head.vocab_size))
    some = zip(prompts.input_ids.split(rows), lengths.split(rows), strict=True)
    searches = (_Beams(*_read(network, *one), eos_id, max_new_tokens, num_beams, never) for one in some)
    return torch.cat([search.run(network) for search in searches])


def _read(network: Network, input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, LSTMState]:
    """Return the log-probabilities after each prompt, (batch, vocab_size), and the state at that position.

    Only prompts of equal length are read together, since a padded prompt's final state is the one after its padding.
    """
    order, rows, states = [], [], []
    for length in lengths.unique().tolist():
        chosen = (lengths == length).nonzero().squeeze(1)  # (rows of this length,)
        log_p, state = _step(network, input_ids[chosen, :length], None)
        order.append(chosen)
        rows.append(log_p)
        states.append(state)
    places = torch.cat(order).argsort()
    layers = (zip(*layer, strict=True) for layer in zip(*states, strict=True))  # of each tensor the parts by length
    return torch.cat(rows)[places], tuple(tuple(torch.cat(parts)[places] for parts in layer) for layer in layers)


def _step(network: Network, ids: Tensor, state: LSTMState | None) -> tuple[Tensor, LSTMState]:
    """Read ids (rows, time) from a state on; return next-token log-probabilities (rows, vocab_size) and the state."""
    assert network.lm_head is not None
    masks: Any = network.draw_masks(*ids.shape)  # all None: nothing is dropped in eval mode
    embeds = network.encoder.embed(ids, masks.encoder)
    state = network.encoder.initial_state(len(ids)) if state is None else state
    encoded = network.encoder(embeds, torch.ones_like(ids), state, masks.encoder)
    return network.lm_head.log_prob(encoded.hidden[:, -1]), encoded.state


class _Beams:
    """The state of the search: `beams` unfinished responses per prompt, and the best response that has ended."""

    def __init__(
        self, log_p: Tensor, state: LSTMState, eos_id: int, limit: int, beams: int, never: Sequence[int]
    ) -> None:
        batch, vocabulary = log_p.shape
        self.beams, self.eos_id, self.limit, self.never = beams, eos_id, limit, list(never)
        self.tokens = log_p.new_full((batch, beams, limit), -1, dtype=torch.long)
        self.scores = log_p.new_full((batch, beams), -torch.inf)  # log-probabilities
        self.scores[:, 0] = 0.0  # one empty beginning, which the first step extends to several
        self.log_p = log_p.repeat_interleave(beams, 0).view(batch, beams, vocabulary)  # of each next token
        self.state = _rows(state, torch.arange(batch, device=log_p.device).repeat_interleave(beams))
        self.ended = log_p.new_zeros((batch,), dtype=torch.long)  # how many have ended
        self.best = log_p.new_full((batch,), -torch.inf)  # the best of these, by log-probability a token
        self.responses = self.tokens[:, 0].clone()  # its tokens, (batch, limit)

    def run(self, network: Network) -> Tensor:
        """The best response of each prompt."""
        for step in range(self.limit):
            parents, ids = self._choose(step)
            if step + 1 == self.limit or bool((self.ended >= self.beams).all()):
                break
            self.state = _rows(self.state, parents)
            log_p, self.state = _step(network, ids.view(-1, 1), self.state)
            self.log_p = log_p.view(*ids.shape, -1)
        cut = (self.ended < self.beams) & (self.scores[:, 0] / self.limit > self.best)  # (batch,)
        return torch.where(cut.unsqueeze(1), self.tokens[:, 0], self.responses)

    def _choose(self, step: int) -> tuple[Tensor, Tensor]:
        """Extend the beams by one token; a response that ends counts only if it is among the `beams` best candidates.

        Returns:
            The row of the state that each new beam continues, (batch * beams,), and its token (batch, beams).
        """
        scores = self.scores.unsqueeze(-1) + self.log_p  # (batch, beams, vocab_size)
        scores[..., self.never] = -torch.inf
        batch, beams, vocabulary = scores.shape
        scores, places = scores.flatten(1).topk(2 * beams)  # `beams` of these go on: a beam ends in one way only
        parents, ids = places // vocabulary, places % vocabulary  # (batch, 2 * beams), the most likely first
        ending = ids == self.eos_id
        self._keep_ended(scores[:, :beams].masked_fill(~ending[:, :beams], -torch.inf), parents[:, :beams], step)
        chosen = ending.to(torch.int8).argsort(dim=1, stable=True)[:, :beams]  # those that don't end, in order
        self.scores, parents, ids = (x.gather(1, chosen) for x in (scores, parents, ids))
        self.tokens = self.tokens.gather(1, parents.unsqueeze(-1).expand_as(self.tokens))
        self.tokens[..., step] = ids
        first = torch.arange(batch, device=ids.device).unsqueeze(1) * beams
        return (first + parents).flatten(), ids

    def _keep_ended(self, scores: Tensor, parents: Tensor, step: int) -> None:
        """Keep the best response that ends at this step, unless a prompt's search is over; arguments (batch, beams)."""
        scores = scores.masked_fill((self.ended >= self.beams).unsqueeze(1), -torch.inf)
        self.ended = self.ended + (scores > -torch.inf).sum(1)
        score, place = (scores / (step + 1)).max(1)  # (batch,)
        parent = parents.gather(1, place.unsqueeze(1)).unsqueeze(-1)  # (batch, 1, 1)
        tokens = self.tokens.gather(1, parent.expand(-1, 1, self.limit)).squeeze(1)  # (batch, limit)
        better = score > self.best
        self.responses = torch.where(better.unsqueeze(1), tokens, self.responses)
        self.best = torch.where(better, score, self.best)


def _rows(state: LSTMState, rows: Tensor) -> LSTMState:
    return tuple(tuple(tensor[rows] for tensor in layer) for layer in state)
