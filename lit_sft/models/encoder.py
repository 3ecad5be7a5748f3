"""The encoder: token ids to one hidden vector a token, with a state that can be carried on.

The choice: one fused `nn.LSTM` call a layer on dense, right-padded batches. Packed sequences would skip the
padded positions, but leave the fused CPU path (1.9 times slower with 25% fewer tokens), and reading left to
right a padded position can't reach the tokens before it: what it computes is set to zero at the end. Not
covered: left padding, and `nn.LSTM(bidirectional=True)`, which would see the token that a language model has
to predict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_sft.models.dropout import apply_mask, check_dropout, locked_mask

LSTMState = tuple[tuple[Tensor, ...], ...]
"""A tuple of tensors a layer, here (h, c), each (batch, hidden_size); batch first to select rows."""


def detach_state(state: LSTMState) -> LSTMState:
    """The same state with no gradient into the steps that led to it: the cut of truncated BPTT."""
    return tuple(tuple(tensor.detach() for tensor in layer) for layer in state)


class EncoderOutput(NamedTuple):
    """What an encoder returns."""

    hidden: Tensor  # (batch, time, output_size), after the output mask, zero at padding
    state: LSTMState  # after the last time step (a padded row has read its padding too), not detached


class Encoder(nn.Module, ABC):
    """The signature that a network asks of its encoder; a subclass of any kind (GRU, QRNN, ...) drops in.

    A subclass sets `vocab_size`, `output_size` and `embedding`, and draws no random number outside
    `draw_masks`: two calls with the same arguments give the same bits. The kind of `masks` is the encoder's
    own affair.
    """

    vocab_size: int
    output_size: int
    embedding: nn.Embedding

    @abstractmethod
    def initial_state(self, batch_size: int) -> LSTMState:
        """The state before the first token, on the parameters' device."""

    @abstractmethod
    def draw_masks(self, batch_size: int) -> Any:
        """Draw the dropout masks of one pass over `batch_size` documents or lanes; none in eval mode."""

    @abstractmethod
    def embed(self, input_ids: Tensor, masks: Any) -> Tensor:
        """(batch, time) ids to (batch, time, embedding_size) vectors, after embedding dropout."""

    @abstractmethod
    def forward(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor,
        state: LSTMState,
        masks: Any,
        inputs_embeds: Tensor | None = None,
    ) -> EncoderOutput:
        """Encode ids (batch, time), or in their place `inputs_embeds`: what `embed` returned, perturbed or
        not.

        `attention_mask` (batch, time) is 1 or True at tokens; padding is on the right.
        """

    @abstractmethod
    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Every parameter once, in groups from the embedding up: for rates by layer, and unfreezing."""


@dataclass(frozen=True)
class EncoderMasks:
    """The dropout masks of one pass of an `LSTMEncoder`; None stands for no dropout at that place."""

    embedding: Tensor | None = None  # (batch, 1, embedding_size)
    hidden: tuple[Tensor | None, ...] = ()  # num_layers - 1 of (batch, 1, hidden_size), between layers
    output: Tensor | None = None  # (batch, 1, hidden_size)


class LSTMEncoder(Encoder):
    """An embedding and a stack of LSTM layers, read left to right.

    Args:
        vocab_size: number of token ids.
        embedding_size: units of a token's vector.
        hidden_size: units of each layer, and of the output.
        num_layers: LSTM layers.
        embedding_dropout: locked dropout on the token vectors.
        hidden_dropout: locked dropout between layers (so it needs two).
        output_dropout: locked dropout on the last layer, before any head.

    Raises:
        ValueError: a size below 1 or a dropout outside [0, 1), by the option's name.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int = 256,
        hidden_size: int = 384,
        num_layers: int = 1,
        embedding_dropout: float = 0.1,
        hidden_dropout: float = 0.2,
        output_dropout: float = 0.2,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "embedding_size": embedding_size, "hidden_size": hidden_size}
        for name, value in {**sizes, "num_layers": num_layers}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.vocab_size = vocab_size
        self.output_size = hidden_size
        self.embedding_dropout = check_dropout("embedding_dropout", embedding_dropout)
        self.hidden_dropout = check_dropout("hidden_dropout", hidden_dropout)
        self.output_dropout = check_dropout("output_dropout", output_dropout)
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        inputs = [embedding_size] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.LSTM(size, hidden_size, batch_first=True) for size in inputs)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start weights.

        Small token vectors, since a tied softmax reads them as its weights and should begin near uniform;
        each gate's input weights by Glorot, its recurrent ones orthogonal; the forget gate open (bias 1,
        Jozefowicz et al. 2015).
        """
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        for layer in self.layers:
            weights = dict(layer.named_parameters())
            for gate in weights["weight_ih_l0"].chunk(4):  # i, f, g, o: (hidden_size, input_size)
                nn.init.xavier_uniform_(gate)
            for gate in weights["weight_hh_l0"].chunk(4):  # (hidden_size, hidden_size)
                nn.init.orthogonal_(gate)
            nn.init.zeros_(weights["bias_hh_l0"])
            nn.init.zeros_(weights["bias_ih_l0"])
            nn.init.ones_(weights["bias_ih_l0"].chunk(4)[1])  # the forget gate, (hidden_size,)

    def train(self, mode: bool = True) -> LSTMEncoder:
        """Set the mode; the LSTM layers stay in train mode.

        They have no dropout of their own, so nothing they compute changes; but cuDNN refuses their backward
        pass in eval mode, and adversarial losses are measured there too.
        """
        super().train(mode)
        for layer in self.layers:
            layer.train()
        return self

    def initial_state(self, batch_size: int) -> LSTMState:
        """Zeros (h, c) for each layer, each (batch, hidden_size)."""
        size = (batch_size, self.output_size)
        weight = self.embedding.weight
        return tuple((weight.new_zeros(size), weight.new_zeros(size)) for _ in self.layers)

    def draw_masks(self, batch_size: int) -> EncoderMasks:
        """Draw the masks of one pass, on the parameters' device; all None in eval mode."""
        between = len(self.layers) - 1
        if not self.training:
            return EncoderMasks(hidden=(None,) * between)
        weight = self.embedding.weight

        def draw(p: float, units: int) -> Tensor | None:
            return locked_mask(p, (batch_size, units), weight.device, weight.dtype)

        return EncoderMasks(
            embedding=draw(self.embedding_dropout, self.embedding.embedding_dim),
            hidden=tuple(draw(self.hidden_dropout, self.output_size) for _ in range(between)),
            output=draw(self.output_dropout, self.output_size),
        )

    def embed(self, input_ids: Tensor, masks: EncoderMasks) -> Tensor:
        """(batch, time) ids to (batch, time, embedding_size) vectors, after embedding dropout."""
        return apply_mask(self.embedding(input_ids), masks.embedding)

    def forward(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor,
        state: LSTMState,
        masks: EncoderMasks,
        inputs_embeds: Tensor | None = None,
    ) -> EncoderOutput:
        """Encode ids (batch, time), or `inputs_embeds` (batch, time, embedding_size) as `embed` returns them.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`.
        """
        if input_ids is not None and inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, masks)
        elif inputs_embeds is None or input_ids is not None:
            raise ValueError("give either input_ids or inputs_embeds")
        x = inputs_embeds  # (batch, time, embedding_size)
        dropouts = (*masks.hidden, masks.output)
        last = []
        for layer, (h, c), dropout in zip(self.layers, state, dropouts, strict=True):
            x, (h, c) = layer(x, (h.unsqueeze(0), c.unsqueeze(0)))  # (batch, time, hidden_size)
            last.append((h.squeeze(0).to(state[0][0].dtype), c.squeeze(0).to(state[0][0].dtype)))
            x = apply_mask(x, dropout)
        hidden = x * attention_mask.unsqueeze(-1).to(x.dtype)  # (batch, time, hidden_size)
        return EncoderOutput(hidden, tuple(last))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The embedding, then each LSTM layer."""
        return [list(module.parameters()) for module in (self.embedding, *self.layers)]
