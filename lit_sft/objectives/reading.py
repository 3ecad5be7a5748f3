"""Documents as the network reads them: once as they are, and again with their token vectors moved, masks the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_sft.models.encoder import EncoderOutput
from lit_sft.models.heads import at_least_float32
from lit_sft.models.network import Masks, Network
from lit_sft.models.twoway import TwoWayEncoder


@dataclass(frozen=True)
class Reading:
    """The clean pass over a batch of documents. What is asked of it later runs under its masks, and never under others.

    Redrawn dropout alone moves a prediction more than a small perturbation does, so that what a second pass with masks
    of its own compares is mostly noise; here there is no way to ask for one.
    """

    network: Network
    documents: Any  # input_ids, attention_mask (batch, time), labels, indices (batch,)
    masks: Masks
    embeds: Tensor  # (batch, time, embedding_size): the token vectors after dropout, where perturbations are added
    encoded: EncoderOutput
    logits: Tensor  # (batch, num_outputs)

    @classmethod
    def of(cls, network: Network, documents: Any) -> Reading:
        """Read the documents under masks drawn here."""
        masks = network.draw_masks(*documents.input_ids.shape)
        embeds = network.encoder.embed(documents.input_ids, masks.encoder)
        encoded = network.encode(documents, None, masks, embeds)
        logits = network.logits(encoded.hidden, documents.attention_mask, masks)
        return cls(network, documents, masks, embeds, encoded, logits)

    def perturbed(self, perturbation: Tensor, exact: bool = False) -> Tensor:
        """Logits (batch, num_outputs) with `perturbation` (batch, time, embedding_size) added to the token vectors.

        `exact`: in the parameters' own precision, whatever autocast there is.
        """
        with torch.autocast(self.embeds.device.type, enabled=False) if exact else nullcontext():
            embeds = self.embeds + perturbation.to(self.embeds.dtype)
            encoded = self.network.encode(self.documents, None, self.masks, embeds)
            return self.network.logits(encoded.hidden, self.documents.attention_mask, self.masks)

    def exact_logits(self) -> Tensor:
        """The clean logits as `perturbed` with `exact` has them, detached: under autocast from a pass of their own."""
        if not torch.is_autocast_enabled(self.embeds.device.type):
            return self.logits.detach()
        with torch.no_grad():
            return self.perturbed(torch.zeros_like(self.embeds), exact=True)

    @property
    def reach(self) -> Tensor:
        """bool (batch, time, 1): the tokens that a perturbation may move: all of a document's but the last one.

        The last is its end, which Miyato et al.'s code leaves out for VAT, too (there AT moves it as well; and in a
        network of two directions each has a perturbation of its own, of the full norm). In a `TwoWayEncoder` the first
        is left out as well, at which its backward half ends. Under BPT3C
        (`backprop_tokens`) those of the tail alone, since no gradient tells what moving the others would do.
        """
        mask: Tensor = self.documents.attention_mask.bool()
        reach = mask & ~ends(mask)
        if isinstance(self.network.encoder, TwoWayEncoder):  # whose backward half ends at the first token
            reach = reach & torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
        if (tail := self.network.backprop_tokens) is not None:
            from_end = mask.flip(1).long().cumsum(1).flip(1)  # (batch, time): tokens from here on
            reach = reach & (from_end <= tail)
        return reach.unsqueeze(-1)

    @staticmethod
    def check(network: Network) -> None:
        """Raise a ValueError where `reach` would leave out of one half of the encoder what has a gradient in it."""
        if network.backprop_tokens is not None and isinstance(network.encoder, TwoWayEncoder):
            raise ValueError(
                "AT and VAT don't go with backprop_tokens in a TwoWayEncoder, whose two halves have their gradients at "
                "two ends of a document: leave out backprop_tokens, or make it one direction"
            )

    @property
    def counted(self) -> Tensor:
        """bool (batch,): which rows are documents, and not what stands for none where several processes share few."""
        counted: Tensor = self.documents.indices >= 0
        return counted


def ends(mask: Tensor) -> Tensor:
    """The last token of each document, bool (batch, time), of its mask; there is none in an empty row."""
    return mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)


def mean_over(values: Tensor, readings: Sequence[Reading]) -> tuple[Tensor, Tensor]:
    """Mean of values (documents of all readings,) over documents, 0 where there is none; and their number."""
    counted = torch.cat([reading.counted for reading in readings]).to(values.dtype)
    count = counted.sum()
    return (values * counted).sum() / count.clamp(min=1), count


def unit(direction: Tensor, reach: Tensor) -> Tensor:
    """`direction` (batch, time, size) cut to `reach` (batch, time, 1), each document's of L2 norm 1 over its tokens.

    A document whose direction is zero keeps zero. At least float32.
    """
    direction = at_least_float32(direction) * reach
    largest = direction.abs().amax((1, 2), keepdim=True)  # first by this: squares of tiny gradients are no longer there
    direction = direction / largest.clamp(min=torch.finfo(direction.dtype).tiny)
    norm = direction.square().sum((1, 2), keepdim=True).sqrt()  # (batch, 1, 1), at least 1 where there is anything
    return direction / norm.clamp(min=0.5)


def random_unit(reach: Tensor, like: Tensor) -> Tensor:
    """A direction drawn evenly from all that `reach` (batch, time, 1) allows, of norm 1, shaped as `like`."""
    return unit(torch.randn_like(at_least_float32(like)), reach)
