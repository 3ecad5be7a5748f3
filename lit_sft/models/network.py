"""The network: an encoder with the heads that a stage needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lit_sft.models.encoder import Encoder, EncoderOutput, LSTMState
from lit_sft.models.heads import ClassifierHead, LMHead, class_probabilities, pool
from lit_sft.models.twoway import TwoWayEncoder


class TokenBatch(Protocol):
    """What every batch has: right-padded ids."""

    input_ids: Tensor  # (batch, time) int64
    attention_mask: Tensor  # (batch, time), 1 or True at tokens


class TargetBatch(TokenBatch, Protocol):
    """A batch for the language model."""

    targets: Tensor  # (batch, time) int64, the next token; -100 = ignored


@dataclass(frozen=True)
class Masks:
    """The dropout masks of one pass; the same masks twice give the same bits twice."""

    encoder: Any  # as the encoder's draw_masks returns them
    classifier: Tensor | None = None  # (batch, pooled_size)


class Network(nn.Module):
    """An encoder with a language-model head, a classifier, or both. Only `draw_masks` is random.

    `inputs_embeds` (batch, time, embedding_size) replaces the batch's ids in the methods that take it. It is what
    `encoder.embed` returned under the same masks (so after embedding dropout), perturbed or not.

    Args:
        encoder, lm_head, classifier: the parts; only the heads that a stage needs.
        backprop_tokens: number of tokens at the end of a document that the classifier's gradient goes through (up to a
            quarter more), although the whole document is read (BPT3C; `encode_tails`); None: all of them. It has no
            effect on a batch that is no longer than this, or without gradients.

    Raises:
        ValueError: `backprop_tokens` below 1, or a head that the encoder can't serve.
    """

    def __init__(
        self,
        encoder: Encoder,
        lm_head: LMHead | None = None,
        classifier: ClassifierHead | None = None,
        backprop_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if backprop_tokens is not None and backprop_tokens < 1:
            raise ValueError(f"backprop_tokens={backprop_tokens} must be at least 1")
        self.backprop_tokens = backprop_tokens
        if isinstance(encoder, TwoWayEncoder):
            encoder.check_heads(lm_head is not None, None if classifier is None else classifier.pooling)
        self.encoder = encoder
        self.lm_head = lm_head
        self.classifier = classifier

    def draw_masks(self, batch_size: int, time: int) -> Masks:
        """Draw the dropout masks of one pass over (`batch_size`, `time`) ids; none in eval mode."""
        classifier = None if self.classifier is None else self.classifier.draw_mask(batch_size)
        return Masks(self.encoder.draw_masks(batch_size, time), classifier)

    def encode(
        self, batch: TokenBatch, state: LSTMState | None, masks: Masks, inputs_embeds: Tensor | None = None
    ) -> EncoderOutput:
        """Encode a batch, for `nll` and `logits`; without a `state`, from the start of the text."""
        if inputs_embeds is None:
            inputs_embeds = self.encoder.embed(batch.input_ids, masks.encoder)
        mask, tail = batch.attention_mask, self.backprop_tokens
        if state is None:
            if tail is not None and tail < mask.shape[1] and torch.is_grad_enabled():
                return self.encoder.forward_tails(inputs_embeds, mask, masks.encoder, tail)
            state = self.encoder.initial_state(len(mask))
        encoded: EncoderOutput = self.encoder(inputs_embeds, mask, state, masks.encoder)
        return encoded

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """hidden (batch, time, output_size), targets (batch, time) -> negative log-likelihoods as in `lm_nll`."""
        if self.lm_head is None:
            raise ValueError("this network has no language-model head")
        return self.lm_head.nll(hidden.flatten(0, 1), targets.flatten()).view(targets.shape)  # (batch, time)

    def logits(self, hidden: Tensor, attention_mask: Tensor, masks: Masks) -> Tensor:
        """hidden (batch, time, output_size), attention_mask (batch, time) -> logits (batch, num_outputs)."""
        if self.classifier is None:
            raise ValueError("this network has no classifier")
        logits: Tensor = self.classifier(hidden, attention_mask, masks.classifier)
        return logits

    def lm_nll(
        self, batch: TargetBatch, state: LSTMState, masks: Masks, inputs_embeds: Tensor | None = None
    ) -> tuple[Tensor, LSTMState]:
        """Return each target's negative log-likelihood in nats, (batch, time), 0 if ignored, and the new state."""
        encoded = self.encode(batch, state, masks, inputs_embeds)
        return self.nll(encoded.hidden, batch.targets), encoded.state

    def classify(self, batch: TokenBatch, masks: Masks, inputs_embeds: Tensor | None = None) -> Tensor:
        """Logits of each document, (batch, num_outputs)."""
        encoded = self.encode(batch, None, masks, inputs_embeds)
        return self.logits(encoded.hidden, batch.attention_mask, masks)

    @property
    def multilabel(self) -> bool:
        """Whether any number of classes may apply to a document instead of exactly one."""
        return self.classifier is not None and self.classifier.multilabel

    def class_probabilities(self, logits: Tensor) -> Tensor:
        """What `classify` returned -> probabilities (batch, num_classes), at least float32.

        They sum to 1, unless the data are multi-label.
        """
        return class_probabilities(logits, self.multilabel)

    def pooled(self, batch: TokenBatch, masks: Masks) -> Tensor:
        """Return a vector for each document: the classifier's pooling, or the mean over tokens without a classifier."""
        hidden = self.encode(batch, None, masks).hidden  # (batch, time, output_size)
        if self.classifier is None:
            return pool(hidden, batch.attention_mask, "mean")  # (batch, output_size)
        return self.classifier.pool(hidden, batch.attention_mask)  # (batch, pooled_size)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return every parameter exactly once: the encoder's groups from the bottom up, then the heads' own parameters.

        A tied weight belongs to the embedding's group. If there is a classifier too, the language-model head joins the
        group of the encoder's top layer: both were pretrained together, and a new head's rate would undo that.

        Raises:
            ValueError: the encoder's groups leave out or repeat a parameter; the message names it.
        """
        groups = [list(group) for group in self.encoder.layer_groups()]
        grouped = [id(parameter) for group in groups for parameter in group]
        wrong = [name for name, p in self.encoder.named_parameters() if grouped.count(id(p)) != 1]
        if wrong:
            kind = type(self.encoder).__name__
            raise ValueError(f"layer_groups() of {kind} must hold these once: {', '.join(wrong)}")
        taken = set(grouped)
        if self.lm_head is not None and self.classifier is not None:  # pretrained with the top layer
            own = [p for p in self.lm_head.parameters() if id(p) not in taken]
            groups[-1] += own
            taken |= set(map(id, own))
        heads = [p for p in self.parameters() if id(p) not in taken]
        return [*groups, heads] if heads else groups
