"""Forward passes over documents: one clean pass, and further ones with perturbed token vectors under the same masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_sft.models.encoder import EncoderOutput
from lit_sft.models.heads import at_least_float32
from lit_sft.models.network import Masks, Network
from lit_sft.models.twoway import TwoWayEncoder
from lit_sft.objectives.gradients import gradients


@dataclass
class Reading:
    """The clean pass over a batch of documents. All later passes through it use the same dropout masks.

    Redrawing dropout changes a prediction more than a small perturbation does, so comparing the clean pass with a pass
    under other masks would measure mostly noise; this interface doesn't offer such a pass.
    """

    network: Network
    documents: Any  # input_ids, attention_mask (batch, time), labels, indices (batch,)
    masks: Masks
    embeds: Tensor  # (batch, time, embedding_size): the token vectors after dropout, where perturbations are added
    encoded: EncoderOutput
    logits: Tensor  # (batch, num_outputs)

    @classmethod
    def of(cls, network: Network, documents: Any) -> Reading:
        """Run the clean pass over the documents, with newly drawn masks."""
        masks = network.draw_masks(*documents.input_ids.shape)
        embeds = network.encoder.embed(documents.input_ids, masks.encoder)
        encoded = network.encode(documents, None, masks, embeds)
        logits = network.logits(encoded.hidden, documents.attention_mask, masks)
        return cls(network, documents, masks, embeds, encoded, logits)

    def free(self) -> None:
        """Detach the clean pass's results, which frees its activations: no gradient goes back through it any more.

        `embeds` keep their graph, which is small: gradients of perturbed passes go through it to the token vectors.
        """
        self.encoded = EncoderOutput(self.encoded.hidden.detach(), (), None)
        self.logits = self.logits.detach()

    def perturbed(self, perturbation: Tensor, exact: bool = False) -> Tensor:
        """Logits (batch, num_outputs) with `perturbation` (batch, time, embedding_size) added to the token vectors.

        `exact`: with autocast disabled, in the parameters' own precision.
        """
        with torch.autocast(self.embeds.device.type, enabled=False) if exact else nullcontext():
            embeds = self.embeds + perturbation.to(self.embeds.dtype)
            encoded = self.network.encode(self.documents, None, self.masks, embeds)
            return self.network.logits(encoded.hidden, self.documents.attention_mask, self.masks)

    def exact_logits(self) -> Tensor:
        """The clean logits, detached, in the precision of `perturbed(exact=True)`: under autocast, by a second pass."""
        if not torch.is_autocast_enabled(self.embeds.device.type):
            return self.logits.detach()
        with torch.no_grad():
            return self.perturbed(torch.zeros_like(self.embeds), exact=True)

    def steepest(self, value: Callable[[Tensor], Tensor], start: Tensor, exact: bool) -> Tensor:
        """The direction in which `value`, a scalar of the logits, rises fastest from the perturbation `start`.

        Of norm 1 for each document; `start` and the result (batch, time, embedding_size), `exact` as in `perturbed`.
        """
        moved = start.detach().requires_grad_()
        (gradient,) = gradients(value(self.perturbed(moved, exact)), [moved])
        return unit(gradient, self.reach)

    @property
    def reach(self) -> Tensor:
        """bool (batch, time, 1): the tokens that a perturbation may move, all of a document's except the last.

        The last token is the end of the document. Miyato et al.'s code leaves it out for VAT as well, but not for AT
        (and in a bidirectional network it gives each direction its own perturbation, of the full norm). A
        `TwoWayEncoder` also leaves out the first token, at which its backward half ends. Under BPT3C
        (`backprop_tokens`) only tokens of the tail may move, since the others have no gradient.
        """
        mask: Tensor = self.documents.attention_mask.bool()
        reach = mask & ~ends(mask)
        if isinstance(self.network.encoder, TwoWayEncoder):  # its backward half ends at the first token
            reach = reach & torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
        if (tail := self.network.backprop_tokens) is not None:
            from_end = mask.flip(1).long().cumsum(1).flip(1)  # (batch, time): tokens from here on
            reach = reach & (from_end <= tail)
        return reach.unsqueeze(-1)

    @staticmethod
    def check(network: Network) -> None:
        """Raise a ValueError if `reach` would exclude tokens that have a gradient in one half of the encoder."""
        if network.backprop_tokens is not None and isinstance(network.encoder, TwoWayEncoder):
            raise ValueError(
                "AT and VAT don't go with backprop_tokens in a TwoWayEncoder, whose two halves have their gradients at "
                "two ends of a document: leave out backprop_tokens, or make it one direction"
            )

    @property
    def counted(self) -> Tensor:
        """bool (batch,): False for the placeholder of a process that gets no document of a small batch."""
        counted: Tensor = self.documents.indices >= 0
        return counted


def ends(mask: Tensor) -> Tensor:
    """Marks the last token of each document in a mask, bool (batch, time); an empty row has none."""
    return mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)


def mean_over(values: Tensor, readings: Sequence[Reading]) -> tuple[Tensor, Tensor]:
    """Mean of values (documents of all readings,) over documents, 0 where there is none; and their number."""
    counted = torch.cat([reading.counted for reading in readings]).to(values.dtype)
    count = counted.sum()
    return (values * counted).sum() / count.clamp(min=1), count


def unit(direction: Tensor, reach: Tensor) -> Tensor:
    """`direction` (batch, time, size), zeroed outside `reach` (batch, time, 1) and scaled to L2 norm 1 per document.

    A direction of zero stays zero. The result is at least float32.
    """
    direction = at_least_float32(direction) * reach
    largest = direction.abs().amax((1, 2), keepdim=True)  # scale by this first: squares of tiny gradients underflow
    direction = direction / largest.clamp(min=torch.finfo(direction.dtype).tiny)
    norm = direction.square().sum((1, 2), keepdim=True).sqrt()  # (batch, 1, 1), at least 1 unless the direction is 0
    return direction / norm.clamp(min=0.5)


def random_unit(reach: Tensor, like: Tensor) -> Tensor:
    """A direction drawn uniformly within `reach` (batch, time, 1), of norm 1 per document, with the shape of `like`."""
    return unit(torch.randn_like(at_least_float32(like)), reach)
