"""The encoder: maps token ids to one hidden vector per token, with a state that can be carried on.

It makes one fused `nn.LSTM` call per layer, on dense, right-padded batches. Packed sequences would skip the
padded positions, but they don't use the fused CPU path (1.9 times slower with 25% fewer tokens). They aren't
needed either: in a left-to-right pass, padding on the right can't affect the tokens before it, and the outputs at
padded positions are set to zero at the end. Not covered: left padding, and `nn.LSTM(bidirectional=True)`, which
would see the token that a language model has to predict.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_sft.models.dropout import apply_mask, check_dropout, dropout_mask, left_out
from lit_sft.models.normalised import NormalisedEmbedding
from lit_sft.models.tails import encode_tails

# cuDNN warns that it copies the weights into one chunk: weight dropout's product is a new tensor at each call. This
# filter holds for the whole process: setting and resetting it at each call would make Python forget which warnings it
# has already given.
warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk of memory")

LSTMState = tuple[tuple[Tensor, ...], ...]
"""A tuple of tensors a layer, here (h, c), each (batch, the layer's units); batch first to select rows."""


def detach_state(state: LSTMState) -> LSTMState:
    """Detach the state from the steps that led to it: the cut of truncated BPTT."""
    return tuple(tuple(tensor.detach() for tensor in layer) for layer in state)


class EncoderOutput(NamedTuple):
    """What an encoder returns."""

    hidden: Tensor  # (batch, time, output_size), after the output mask, zero at padding
    state: LSTMState  # after the last time step (a padded row has read its padding too), not detached
    # `hidden` before the output mask, with arbitrary values at padding; None if it equals `hidden`.
    raw: Tensor | None = None


class Encoder(nn.Module, ABC):
    """The interface that a network expects of its encoder; any subclass (GRU, QRNN, ...) can be used.

    A subclass sets `vocab_size`, `output_size` and `embedding`, and draws no random numbers outside
    `draw_masks`: two calls with the same arguments give the same bits. The type of `masks` is up to the encoder.
    """

    vocab_size: int
    output_size: int
    embedding: nn.Embedding

    @abstractmethod
    def initial_state(self, batch_size: int) -> LSTMState:
        """The state before the first token, on the parameters' device."""

    @abstractmethod
    def draw_masks(self, batch_size: int, time: int) -> Any:
        """Draw the dropout masks of one pass over (`batch_size`, `time`) ids; none in eval mode."""

    @abstractmethod
    def embed(self, input_ids: Tensor, masks: Any) -> Tensor:
        """(batch, time) ids to (batch, time, embedding_size) vectors, after embedding dropout."""

    @abstractmethod
    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, state: LSTMState, masks: Any) -> EncoderOutput:
        """Encode `inputs_embeds` (batch, time, embedding_size): what `embed` returned, perturbed or not.

        `attention_mask` (batch, time) is 1 or True at tokens; padding is on the right.
        """

    def forward_tails(self, inputs_embeds: Tensor, attention_mask: Tensor, masks: Any, tail: int) -> EncoderOutput:
        """Encode whole documents as `forward` does, with a gradient into at least the last `tail` tokens of each.

        This default calls `encode_tails`, which is for an encoder that reads from left to right. Any other encoder
        must override it: call `encode_tails` for each of its directions, or raise a ValueError.
        """
        return encode_tails(self, inputs_embeds, attention_mask, self.initial_state(len(attention_mask)), masks, tail)

    @abstractmethod
    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return every parameter once, in groups from the embedding up, for learning rates by layer and unfreezing."""


@dataclass(frozen=True)
class EncoderMasks:
    """The dropout masks of one pass of an `LSTMEncoder`; None stands for no dropout at that place."""

    embedding: Tensor | None = None  # (batch, 1, embedding_size)
    hidden: tuple[Tensor | None, ...] = ()  # num_layers - 1 of (batch, 1, hidden_size), between layers
    output: Tensor | None = None  # (batch, 1, output_size)
    recurrent: tuple[Tensor | None, ...] = ()  # num_layers of (4 * a layer's units, its units), or none at all
    types: Tensor | None = None  # (vocab_size, 1)
    words: Tensor | None = None  # (batch, time, 1)


class LSTMEncoder(Encoder):
    """An embedding and a stack of LSTM layers, read left to right.

    Args:
        vocab_size: number of token ids.
        embedding_size: units of a token's vector.
        hidden_size: units of each layer.
        num_layers: LSTM layers.
        embedding_dropout: locked dropout on the token vectors.
        hidden_dropout: locked dropout between layers (so it needs two layers).
        output_dropout: locked dropout on the last layer, before any head.
        weight_dropout: dropout on the weights from a layer's last output to its gates, one mask per pass for all time
            steps and documents (DropConnect: Merity et al. 2018, section 2).
        type_dropout: words of the vocabulary left out of a whole pass, wherever they occur (Gal & Ghahramani 2016,
            section 4.2; Merity et al. 2018, section 4.3); an LM head that shares the token vectors still predicts them.
        word_dropout: single occurrences left out (Dai & Le 2015; Iyyer et al. 2015); the others stay as they are.
        normalize_embedding: token vectors of mean 0 and variance 1, see `NormalisedEmbedding`.
        last_size: units of the last layer and the output; None: `hidden_size`. If it equals `embedding_size`, a tied
            softmax needs no projection (Merity et al. 2018, section 4.5), which doesn't learn at AWD-LSTM's rate of 30.

    `type_dropout` and `word_dropout` zero a token's whole vector, special tokens included.

    Raises:
        ValueError: a size below 1 or a dropout outside [0, 1); the message names the option.
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
        weight_dropout: float = 0.0,
        type_dropout: float = 0.0,
        word_dropout: float = 0.0,
        last_size: int | None = None,
        normalize_embedding: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "embedding_size": embedding_size, "hidden_size": hidden_size}
        last = hidden_size if last_size is None else last_size
        for name, value in {**sizes, "num_layers": num_layers, "last_size": last}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.vocab_size = vocab_size
        self.output_size = last
        self.units = [hidden_size] * (num_layers - 1) + [last]  # of each layer
        self.embedding_dropout = check_dropout("embedding_dropout", embedding_dropout)
        self.hidden_dropout = check_dropout("hidden_dropout", hidden_dropout)
        self.output_dropout = check_dropout("output_dropout", output_dropout)
        self.weight_dropout = check_dropout("weight_dropout", weight_dropout)
        self.type_dropout = check_dropout("type_dropout", type_dropout)
        self.word_dropout = check_dropout("word_dropout", word_dropout)
        self.embedding = (NormalisedEmbedding if normalize_embedding else nn.Embedding)(vocab_size, embedding_size)
        shapes = pairwise([embedding_size, *self.units])
        self.layers = nn.ModuleList(nn.LSTM(inputs, units, batch_first=True) for inputs, units in shapes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the weights.

        Token vectors are small, since a tied softmax uses them as its weights and should begin near uniform.
        Each gate has Glorot input weights and orthogonal recurrent weights. The forget gate starts open (bias 1,
        Jozefowicz et al. 2015).
        """
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        for layer in self.layers:
            weights = dict(layer.named_parameters())
            for gate in weights["weight_ih_l0"].chunk(4):  # i, f, g, o: (hidden_size, input_size)
                nn.init.xavier_uniform_(gate)
            for gate in weights["weight_hh_l0"].chunk(4):  # (hidden_size, hidden_size)
                if gate.device.type == "mps":  # whose QR decomposition is missing or slow
                    gate.copy_(nn.init.orthogonal_(torch.empty(gate.shape, device="cpu")))
                else:
                    nn.init.orthogonal_(gate)
            nn.init.zeros_(weights["bias_hh_l0"])
            nn.init.zeros_(weights["bias_ih_l0"])
            nn.init.ones_(weights["bias_ih_l0"].chunk(4)[1])  # the forget gate, (hidden_size,)

    def train(self, mode: bool = True) -> LSTMEncoder:
        """Set the mode; the LSTM layers stay in train mode.

        They have no dropout of their own, so the mode doesn't affect their output. But cuDNN refuses their backward
        pass in eval mode, and adversarial losses, which need it, are measured in eval mode too.
        """
        super().train(mode)
        for layer in self.layers:
            layer.train()
        return self

    def initial_state(self, batch_size: int) -> LSTMState:
        """Zeros (h, c) for each layer, each (batch, its units)."""
        new = self.embedding.weight.new_zeros
        return tuple((new(batch_size, units), new(batch_size, units)) for units in self.units)

    def draw_masks(self, batch_size: int, time: int) -> EncoderMasks:
        """Draw the masks of one pass, on the parameters' device; all None in eval mode."""
        if not self.training:
            return EncoderMasks(hidden=(None,) * (len(self.layers) - 1))
        weight = self.embedding.weight

        def draw(p: float, *size: int) -> Tensor | None:
            return dropout_mask(p, size, weight.device, weight.dtype)

        return EncoderMasks(
            embedding=draw(self.embedding_dropout, batch_size, 1, self.embedding.embedding_dim),
            hidden=tuple(draw(self.hidden_dropout, batch_size, 1, units) for units in self.units[:-1]),
            output=draw(self.output_dropout, batch_size, 1, self.output_size),
            recurrent=tuple(draw(self.weight_dropout, 4 * units, units) for units in self.units),
            types=draw(self.type_dropout, self.vocab_size, 1),
            words=left_out(self.word_dropout, (batch_size, time, 1), weight.device, weight.dtype),
        )

    def embed(self, input_ids: Tensor, masks: EncoderMasks) -> Tensor:
        """(batch, time) ids to (batch, time, embedding_size) vectors, after dropout of words and of vectors' units."""
        vectors = self.embedding(input_ids)
        whole = masks.words  # (batch, time, 1)
        if masks.types is not None:
            whole = apply_mask(masks.types[input_ids], whole)
        return apply_mask(apply_mask(vectors, whole), masks.embedding)

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, state: LSTMState, masks: EncoderMasks
    ) -> EncoderOutput:
        """Encode `inputs_embeds` (batch, time, embedding_size) as `embed` returns them."""
        x = inputs_embeds
        dropouts = (*masks.hidden, masks.output)
        recurrent = masks.recurrent or (None,) * len(self.layers)
        last, raw = [], x
        for layer, (h, c), weights, dropout in zip(self.layers, state, recurrent, dropouts, strict=True):
            raw, h, c = _read(layer, x, h.unsqueeze(0), c.unsqueeze(0), weights)  # (batch, time, units)
            last.append((h.squeeze(0).to(state[0][0].dtype), c.squeeze(0).to(state[0][0].dtype)))
            x = apply_mask(raw, dropout)
        hidden = x * attention_mask.unsqueeze(-1).to(x.dtype)  # (batch, time, output_size)
        return EncoderOutput(hidden, tuple(last), raw)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The embedding, then each LSTM layer."""
        return [list(module.parameters()) for module in (self.embedding, *self.layers)]


def _read(layer: nn.Module, x: Tensor, h: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Run one `nn.LSTM` layer over x (batch, time, units) from h, c (1, batch, hidden_size); return output, h, c.

    `mask` (4 * hidden_size, hidden_size) is multiplied with the recurrent weights, which stay the layer's parameters. A
    wrapper that stores the product in the module, as in the paper's code, breaks once anything replaces the weights.
    """
    if x.is_cuda and torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16:
        # Under autocast torch runs cuDNN's LSTM in float16, whatever autocast's dtype, and without loss scaling small
        # gradients would be lost. In float32 cuDNN may still use tensor cores (TF32).
        with torch.autocast("cuda", enabled=False):
            return _read(layer, x.float(), h.float(), c.float(), mask)
    if mask is None:
        x, (h, c) = layer(x, (h, c))
        return x, h, c
    own = dict(layer.named_parameters())
    weights = [own["weight_ih_l0"], own["weight_hh_l0"] * mask, own["bias_ih_l0"], own["bias_hh_l0"]]
    return torch.lstm(x, (h, c), weights, True, 1, 0.0, layer.training, False, True)
