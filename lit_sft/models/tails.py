"""Read whole documents with a gradient through their ends only: back-propagation for text classification, BPT3C.

Howard & Ruder (2018), section 3.3: a document is read in chunks, the state is carried from each chunk to the next, the
classifier pools over all of them, and only some chunks get a gradient. Here a batch is read once in chunks without a
gradient. Then the last tokens of each document are read again with one, starting from the state before them. So memory
and the cost of the backward pass grow with the length of this tail, not of the document. Each document's tail ends at
its own length: the last positions of the batch are padding in the shorter documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lit_sft.models.encoder import Encoder, EncoderOutput, LSTMState

PARTS = 4  # chunks per tail; the state is known at the start of each chunk


def encode_tails(
    encoder: Encoder, inputs_embeds: Tensor, attention_mask: Tensor, state: LSTMState, masks: Any, tail: int
) -> EncoderOutput:
    """Encode as the encoder's `forward` does, with a gradient into at least the last `tail` tokens of each document.

    The gradient starts at the boundary of a chunk of `tail` / 4 tokens (rounded up), so it reaches less than one chunk
    beyond the tail. Earlier tokens take part in the forward pass only. The values equal those of `forward`, up to
    rounding.

    The encoder must read from left to right, its `forward` must accept a stretch of the time steps with the state from
    before them, and no mask used after `embed` may have a time dimension. A batch no longer than `tail` is passed
    to `forward` unchanged.

    inputs_embeds (batch, time, embedding_size), attention_mask (batch, time). The returned state is the one after the
    document's end and some of its padding.
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
        """Overwrite the outputs without a gradient with those of the tails: (batch, time, units)."""
        whole = torch.cat([*before, after.new_zeros(len(after), tail + chunk, after.shape[-1])], 1)
        index = places.unsqueeze(-1).expand(-1, -1, after.shape[-1])  # beyond `time` too, where it is cut off
        return whole.scatter(1, index, after)[:, :time]

    hidden = joined([part.hidden for part in read], out.hidden)
    raw = None if out.raw is None else joined([part.raw for part in read if part.raw is not None], out.raw)
    return out._replace(hidden=hidden, raw=raw)
