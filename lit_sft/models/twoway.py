"""Two encoders side by side: one reads a document from its start, the other from its end.

Each can be pretrained as a language model of its direction (`data.direction`), which gives a classifier that was
pretrained in both directions. ULMFiT instead averages the predictions of two classifiers (Howard & Ruder 2018, section
3.3). Not covered: layers that read the other stack's output, as in `nn.LSTM(bidirectional=True)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_sft.models.encoder import Encoder, EncoderMasks, EncoderOutput, LSTMEncoder, LSTMState


@dataclass(frozen=True)
class TwoWayMasks:
    """The dropout masks of one pass of a `TwoWayEncoder`, drawn separately for each stack."""

    forward: EncoderMasks
    backward: EncoderMasks


class TwoWayEncoder(Encoder):
    """A forward and a backward stack, with token vectors of their own, for whole documents.

    `hidden` is [forward half, backward half], each in its own reading order: at step t the backward stack reads
    token length - 1 - t. So the last step of a document holds both stacks' final outputs, and a maximum or mean over
    steps is one over tokens. The output of `embed` is in token order in both halves, so that a perturbation of it
    moves both vectors of the same token.

    The state has the layers of both stacks, the forward ones first. It must be that of a document's start: a document
    can't be read in stretches.

    Args:
        vocab_size: number of token ids.
        options: options of each stack, see `LSTMEncoder`.

    Raises:
        ValueError: as `LSTMEncoder`.
    """

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__()
        self.forward_stack = LSTMEncoder(vocab_size, **options)
        self.backward_stack = LSTMEncoder(vocab_size, **options)
        self.vocab_size = vocab_size
        self.output_size = 2 * self.forward_stack.output_size

    @property
    def embedding(self) -> nn.Embedding:  # type: ignore[override]  # two modules, and no third name for one of them
        """The forward stack's embedding."""
        return self.forward_stack.embedding

    def check_heads(self, language_model: bool, pooling: str | None) -> None:
        """Raise a ValueError that says what to do if this encoder can't serve one of the heads."""
        if language_model:
            raise ValueError(
                "TwoWayEncoder has seen what a language model would have to predict: pretrain two LSTMEncoders, with "
                "--data.direction forward and backward, and give both runs to --model.init_from"
            )
        if pooling == "attention":
            raise ValueError(
                "pooling=attention weighs tokens, and the two halves of TwoWayEncoder read them in two orders: use "
                "last, mean, max or concat"
            )

    def initial_state(self, batch_size: int) -> LSTMState:
        """Zeros for each layer, the forward stack's first."""
        return (*self.forward_stack.initial_state(batch_size), *self.backward_stack.initial_state(batch_size))

    def draw_masks(self, batch_size: int, time: int) -> TwoWayMasks:
        """Draw each stack's masks of one pass; each stack leaves out words of its own, too."""
        return TwoWayMasks(*(s.draw_masks(batch_size, time) for s in (self.forward_stack, self.backward_stack)))

    def embed(self, input_ids: Tensor, masks: TwoWayMasks) -> Tensor:
        """(batch, time) ids to (batch, time, 2 * embedding_size): a token's vector in either stack, side by side."""
        forward = self.forward_stack.embed(input_ids, masks.forward)
        return torch.cat([forward, self.backward_stack.embed(input_ids, masks.backward)], dim=-1)

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, state: LSTMState, masks: TwoWayMasks
    ) -> EncoderOutput:
        """Encode `inputs_embeds` (batch, time, 2 * embedding_size) as `embed` returns them."""
        ahead, back = _as_read(inputs_embeds, attention_mask)
        layers = len(self.forward_stack.layers)
        return _side_by_side(
            self.forward_stack(ahead, attention_mask, state[:layers], masks.forward),
            self.backward_stack(back, attention_mask, state[layers:], masks.backward),
        )

    def forward_tails(
        self, inputs_embeds: Tensor, attention_mask: Tensor, masks: TwoWayMasks, tail: int
    ) -> EncoderOutput:
        """As `forward`, with a gradient into the tokens that each stack reads last: a document's end, and its start."""
        ahead, back = _as_read(inputs_embeds, attention_mask)
        return _side_by_side(
            self.forward_stack.forward_tails(ahead, attention_mask, masks.forward, tail),
            self.backward_stack.forward_tails(back, attention_mask, masks.backward, tail),
        )

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Both embeddings, then the layers of one height together."""
        stacks = (self.forward_stack.layer_groups(), self.backward_stack.layer_groups())
        return [forward + backward for forward, backward in zip(*stacks, strict=True)]


def _as_read(inputs_embeds: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Each stack's token vectors in its reading order, (batch, time, embedding_size)."""
    ahead, back = inputs_embeds.chunk(2, dim=-1)
    return ahead, back.gather(1, backward_order(attention_mask).unsqueeze(-1).expand_as(back))


def _side_by_side(forward: EncoderOutput, backward: EncoderOutput) -> EncoderOutput:
    """Concatenate the units of the two halves, and the states of their layers."""
    assert forward.raw is not None
    assert backward.raw is not None
    hidden = torch.cat([forward.hidden, backward.hidden], dim=-1)  # (batch, time, output_size), as the next
    raw = torch.cat([forward.raw, backward.raw], dim=-1)
    return EncoderOutput(hidden, forward.state + backward.state, raw)


def backward_order(attention_mask: Tensor) -> Tensor:
    """The index of the token that the backward stack reads at each step, int64 (batch, time); padding stays in place.

    `attention_mask` (batch, time) is 1 or True at tokens, which are on the left.
    """
    lengths = attention_mask.long().sum(1, keepdim=True)  # (batch, 1)
    steps = torch.arange(attention_mask.shape[1], device=attention_mask.device)  # (time,)
    return torch.where(steps < lengths, lengths - 1 - steps, steps)
