"""Documents read whole, with a gradient through their ends only: back-propagation for text classification, BPT3C.

Howard & Ruder (2018), section 3.3: a document is read in chunks, the state goes on from one to the next, the
classifier pools over all of them, and only some chunks get a gradient. Here a batch is read once without a gradient, in
chunks, and each document's last tokens once more with one, from the state that stands before them. So memory and the
backward pass grow with the end that is asked for, and not with the document. Every document has its own end, by its own
length: the last positions of the batch would be the padding of the shorter ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lit_sft.models.encoder import Encoder, EncoderOutput, LSTMState

PARTS = 4  # chunks that the tail is as long as: the state is known where one begins


def encode_tails(
    encoder: Encoder, inputs_embeds: Tensor, attention_mask: Tensor, state: LSTMState, masks: Any, tail: int
) -> EncoderOutput:
    """As the encoder's own `forward`, with a gradient into the last `tail` tokens of each document, at least.

    The gradient begins with a chunk of `tail` / 4 tokens, rounded up: it reaches less than a chunk farther back. What a
    document has before it takes part in the forward pass alone. The values are those of `forward`, up to rounding.

    For an encoder that reads from left to right, whose `forward` takes a part of the time steps with the state from
    before them, and has no masks with a time of their own after `embed`. A batch no longer than `tail` is handed to it
    as it is.

    inputs_embeds (batch, time, embedding_size), attention_mask (batch, time). The state that is returned is that after
    a document's end and some of its padding.
    """
    time = attention_mask.shape[1]
    if time <= tail:
        whole: EncoderOutput = encoder(inputs_embeds, attention_mask, state, masks)
        return whole
    chunk = -(-tail // PARTS)
    first = (attention_mask.long().sum(1) - tail).clamp(min=0) // chunk  # (batch,): the chunk where the gradient begins
    with torch.no_grad():
        read, states = [], [state]
        for start in range(0, (time - tail) // chunk * chunk, chunk):
            part = slice(start, start + chunk)
            read.append(encoder(inputs_embeds[:, part], attention_mask[:, part], states[-1], masks))
            states.append(read[-1].state)
        rows = torch.arange(len(first), device=first.device)
        begin = tuple(
            tuple(torch.stack(same)[first, rows] for same in zip(*layers, strict=True))
            for layers in zip(*states, strict=True)
        )
    places = (first * chunk)[:, None] + torch.arange(tail + chunk - 1, device=first.device)  # (batch, window)
    inside = places.clamp(max=time - 1)
    mask = attention_mask.gather(1, inside) * (places < time).to(attention_mask.dtype)
    out: EncoderOutput = encoder(inputs_embeds[rows[:, None], inside], mask, begin, masks)

    def joined(before: list[Tensor], after: Tensor) -> Tensor:
        """(batch, time, units): without a gradient, and over it the documents' ends with theirs."""
        whole = torch.cat([*before, after.new_zeros(len(after), tail + chunk, after.shape[-1])], 1)
        index = places.unsqueeze(-1).expand(-1, -1, after.shape[-1])  # beyond `time` too, where it is cut off
        return whole.scatter(1, index, after)[:, :time]

    hidden = joined([part.hidden for part in read], out.hidden)
    raw = None if out.raw is None else joined([part.raw for part in read if part.raw is not None], out.raw)
    return out._replace(hidden=hidden, raw=raw)
