"""Text from a language model: what it holds the most likely response to a prompt, by beam search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_sft.models.encoder import LSTMState
from lit_sft.models.network import Network, TokenBatch

AT_ONCE = 1 << 25  # log-probabilities: of a large vocabulary few prompts are answered together


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
    """The responses to prompts, each the most likely one that the search finds.

    The search keeps the `num_beams` most likely beginnings at each step, until as many have ended (as Sutskever et al.
    2014, section 3.2, but that the beam keeps its width); of these the one of the highest log-probability a token,
    `<eos>` included, is the response: by the sum the shortest would win (Wu et al. 2016, section 7, with an exponent
    of 1). With one beam it is greedy. Where fewer have ended within `max_new_tokens`, the most likely beginning counts
    as one more. Prompts whose search is over are computed on until it is for all.

    Args:
        network: in eval mode, with a language-model head.
        prompts: ids (batch, time), padded on the right, each up to the `<eos>` that its response follows.
        lengths: (batch,), at least 1: positions of each prompt, the boundaries included; what is behind isn't read.
        eos_id: ends a response.
        max_new_tokens: of a response, at most.
        num_beams: beginnings that are kept.
        never: ids that are not written, whatever their probability: the unknown word, padding.

    Returns:
        int64 (batch, max_new_tokens): the ids, and -1 from the end of a response on.

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
    """The log-probabilities after each prompt, (batch, vocab_size), and the state there.

    Prompts of one length are read together: an LSTM's last state is that after the padding.
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
    """Read ids (rows, time) on from a state: log-probabilities of the next token (rows, vocab_size), and the state."""
    assert network.lm_head is not None
    masks: Any = network.draw_masks(*ids.shape)  # all None: nothing is dropped in eval mode
    embeds = network.encoder.embed(ids, masks.encoder)
    state = network.encoder.initial_state(len(ids)) if state is None else state
    encoded = network.encoder(embeds, torch.ones_like(ids), state, masks.encoder)
    return network.lm_head.log_prob(encoded.hidden[:, -1]), encoded.state


class _Beams:
    """The search's beginnings, `beams` a prompt."""

    def __init__(
        self, log_p: Tensor, state: LSTMState, eos_id: int, limit: int, beams: int, never: Sequence[int]
    ) -> None:
        batch, vocabulary = log_p.shape
        self.beams, self.eos_id, self.limit, self.never = beams, eos_id, limit, list(never)
        self.tokens = log_p.new_full((batch, beams, limit), -1, dtype=torch.long)
        self.scores = log_p.new_full((batch, beams), -torch.inf)  # log-probabilities
        self.scores[:, 0] = 0.0  # one beginning, of which the first step makes several
        self.log_p = log_p.repeat_interleave(beams, 0).view(batch, beams, vocabulary)  # of what goes on from them
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
        """Go on with the most likely beginnings; what ends is a response where it is as likely as one of these.

        Returns:
            Which row of the state each one goes on from, (batch * beams,), and its token (batch, beams).
        """
        scores = self.scores.unsqueeze(-1) + self.log_p  # (batch, beams, vocab_size)
        scores[..., self.never] = -torch.inf
        batch, beams, vocabulary = scores.shape
        scores, places = scores.flatten(1).topk(2 * beams)  # so many go on at least, since each can end in one way
        parents, ids = places // vocabulary, places % vocabulary  # (batch, 2 * beams), the most likely first
        ending = ids == self.eos_id
        self._keep_ended(scores[:, :beams].masked_fill(~ending[:, :beams], -torch.inf), parents[:, :beams], step)
        chosen = ending.to(torch.int8).argsort(dim=1, stable=True)[:, :beams]  # those that go on, in their order
        self.scores, parents, ids = (x.gather(1, chosen) for x in (scores, parents, ids))
        self.tokens = self.tokens.gather(1, parents.unsqueeze(-1).expand_as(self.tokens))
        self.tokens[..., step] = ids
        first = torch.arange(batch, device=ids.device).unsqueeze(1) * beams
        return (first + parents).flatten(), ids

    def _keep_ended(self, scores: Tensor, parents: Tensor, step: int) -> None:
        """Keep the best of what ends at this step, scores and parents (batch, beams), where the search still looks."""
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
