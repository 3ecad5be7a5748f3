"""The search for a response: against a slow one that keeps lists, against all responses there are, and alone or not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lit_sft.models import LMHead, LSTMEncoder, Network, generation
from lit_sft.models.generation import respond

EOS = 2


@dataclass
class Prompts:
    input_ids: Tensor
    attention_mask: Tensor


def network_of(vocabulary: int = 9, tied: bool = True, seed: int = 0) -> Network:
    """A network in float64 whose predictions differ from token to token, as those of a trained one do."""
    torch.manual_seed(seed)
    encoder = LSTMEncoder(vocabulary, 5, 7, num_layers=2)
    head = LMHead(encoder.embedding, encoder.output_size, tie_weights_up_to=100 if tied else 0)
    network = Network(encoder, head).double().eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            size = 0.0 if "bias" in name else 2.0 if "embedding" in name else 3.0 / math.sqrt(parameter.shape[-1])
            parameter.copy_(torch.randn_like(parameter) * size)
    return network


def prompts_of(lengths: list[int], vocabulary: int = 9) -> tuple[Prompts, Tensor]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, vocabulary, (len(lengths), max(lengths) + 2), generator=generator)  # junk behind their ends
    known = torch.tensor(lengths)
    return Prompts(ids, torch.arange(ids.shape[1]) < known[:, None]), known


def log_probabilities(network: Network, ids: list[int]) -> list[float]:
    """Of the token after ``ids``, read anew from the first."""
    assert network.lm_head is not None
    row = torch.tensor([ids])
    masks = network.draw_masks(*row.shape)
    encoded = network.encode(Prompts(row, torch.ones_like(row)), None, masks)
    found: list[float] = network.lm_head.log_prob(encoded.hidden[0, -1:])[0].tolist()
    return found


def slow(network: Network, prompt: list[int], limit: int, beams: int, never: Sequence[int] = ()) -> list[int]:
    """Beam search as it is told in words: beginnings as lists, each read from its first token at every step."""
    beginnings: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for _ in range(limit):
        grown = [
            (score + log_p, [*tokens, token])
            for score, tokens in beginnings
            for token, log_p in enumerate(log_probabilities(network, prompt + tokens))
            if token not in never
        ]
        grown.sort(key=lambda pair: -pair[0])
        for score, tokens in grown[:beams]:
            if tokens[-1] == EOS and len(ended) < beams:
                ended.append((score / len(tokens), tokens[:-1]))
        if len(ended) >= beams:
            break
        beginnings = [pair for pair in grown if pair[1][-1] != EOS][:beams]
    if len(ended) < beams:
        score, tokens = beginnings[0]
        ended.append((score / len(tokens), tokens))
    return max(ended)[1]


def lists(responses: Tensor) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in responses]


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 3, 10])
def test_responses_are_those_of_a_slow_search(beams: int, tied: bool, seed: int) -> None:
    network = network_of(tied=tied, seed=seed)
    prompts, lengths = prompts_of([3, 1, 5, 3, 2])
    found = respond(network, prompts, lengths, EOS, 6, beams)
    expected = [
        slow(network, prompts.input_ids[row, :length].tolist(), 6, beams) for row, length in enumerate(lengths.tolist())
    ]
    assert found.shape == (5, 6)
    assert lists(found) == expected
    assert len({*map(tuple, expected)}) > 1


def test_one_beam_takes_the_most_likely_token_until_the_end() -> None:
    network = network_of(seed=1)
    prompts, lengths = prompts_of([2, 4])
    for row, response in enumerate(lists(respond(network, prompts, lengths, EOS, 8))):
        ids = prompts.input_ids[row, : lengths[row]].tolist()
        for token in [*response, EOS][:8]:
            log_p = log_probabilities(network, ids)
            assert log_p.index(max(log_p)) == token
            ids.append(token)


def test_enough_beams_find_the_best_response_there_is() -> None:
    """With a beam for every beginning nothing is cut off: the best of all responses, by log-probability a token."""
    vocabulary, limit = 4, 3
    network = network_of(vocabulary, seed=3)
    prompts, lengths = prompts_of([2, 3], vocabulary)
    for row, found in enumerate(lists(respond(network, prompts, lengths, EOS, limit, vocabulary**limit))):
        prompt = prompts.input_ids[row, : lengths[row]].tolist()
        scores = {}
        others = [token for token in range(vocabulary) if token != EOS]
        for size in range(limit + 1):
            for tokens in itertools.product(others, repeat=size):
                ids, written = list(prompt), (*tokens, EOS)[:limit]  # those of the limit's length are cut
                total = 0.0
                for token in written:
                    total += log_probabilities(network, ids)[token]
                    ids.append(token)
                scores[tokens] = total / len(written)
        assert tuple(found) == max(scores, key=lambda tokens: scores[tokens])


def test_a_response_is_the_same_alone_and_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(seed=2)
    prompts, lengths = prompts_of([3, 6, 2, 6, 1, 4])
    together = respond(network, prompts, lengths, EOS, 7, 3)
    for row in range(6):
        one = Prompts(prompts.input_ids[row : row + 1], prompts.attention_mask[row : row + 1])
        assert respond(network, one, lengths[row : row + 1], EOS, 7, 3).tolist() == together[row : row + 1].tolist()
    monkeypatch.setattr(generation, "AT_ONCE", 2 * 3 * 9)  # two prompts at a time
    assert respond(network, prompts, lengths, EOS, 7, 3).tolist() == together.tolist()


def test_what_is_never_written_leaves_its_place_in_the_beam_to_others() -> None:
    network = network_of(seed=10)
    prompts, lengths = prompts_of([3, 1, 5, 3, 2])
    plain = {token for row in lists(respond(network, prompts, lengths, EOS, 6, 2)) for token in row}
    banned = sorted(plain)[:3]
    expected = [
        slow(network, prompts.input_ids[row, :length].tolist(), 6, 2, banned)
        for row, length in enumerate(lengths.tolist())
    ]
    assert lists(respond(network, prompts, lengths, EOS, 6, 2, banned)) == expected
    assert any(expected)


def test_a_beginning_that_is_cut_counts_beside_what_has_ended() -> None:
    """One short response ends, an unlikely one; what goes on is likelier by the token when the limit comes."""
    network = network_of(seed=1)
    assert network.lm_head is not None
    prompts, lengths = prompts_of([2])
    likely, unlikely = torch.full((7,), -9.0), torch.full((7,), -9.0)
    likely[[3, EOS]] = torch.tensor([-0.1, -4.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network.lm_head, "log_prob", lambda hidden: likely.expand(len(hidden), -1))
        assert lists(respond(network, prompts, lengths, EOS, 2, num_beams=3)) == [[3, 3]]
        unlikely[[3, EOS]] = torch.tensor([-5.0, -4.0])
        patch.setattr(network.lm_head, "log_prob", lambda hidden: unlikely.expand(len(hidden), -1))
        assert lists(respond(network, prompts, lengths, EOS, 2, num_beams=3)) == [[]]


def test_nothing_is_learned_and_no_limit_below_one() -> None:
    network = network_of()
    prompts, lengths = prompts_of([2])
    assert not respond(network, prompts, lengths, EOS, 3).requires_grad
    for limit, beams in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            respond(network, prompts, lengths, EOS, limit, beams)
    with pytest.raises(ValueError, match="no language-model head"):
        respond(Network(network.encoder), prompts, lengths, EOS, 3)
