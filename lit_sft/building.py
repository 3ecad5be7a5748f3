"""From options to a network: an encoder for a vocabulary, and the heads that an objective needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lit_sft.models import ClassifierHead, Encoder, LMHead, Network
from lit_sft.models.dropout import check_dropout
from lit_sft.models.heads import Pooling, num_outputs
from lit_sft.objectives import Objective, Supervised


@dataclass(frozen=True)
class ClassifierOptions:
    """The options of :class:`lit_sft.module.LitSFT` that only a classifier has."""

    pooling: Pooling
    dropout: float
    hidden_size: int
    backprop_tokens: int | None


class LMHeadOptions(NamedTuple):
    """The options of :class:`lit_sft.models.LMHead` that are options of a run."""

    tie_weights_up_to: int
    adaptive_cutoffs: list[int] | None
    loss_chunk: int | None


@dataclass(frozen=True)
class Blueprint:
    """What of the options of :class:`lit_sft.module.LitSFT` a network is built from."""

    make_encoder: Callable[[int], Encoder]
    classifier: ClassifierOptions
    lm_head: LMHeadOptions

    def build(self, objective: Objective, vocab_size: int, num_classes: int, multilabel: bool) -> Network:
        """The network with the heads that the objective needs.

        Args:
            objective: whose loss is trained.
            vocab_size: of the tokenizer.
            num_classes: labels; of no account without a classifier.
            multilabel: a document has any number of them.

        Raises:
            ValueError: an option out of range, or one that the objective can't do with.
        """
        check_dropout("head_dropout", self.classifier.dropout)
        encoder = self.make_encoder(vocab_size)
        lm_head = classifier = None
        if "lm" in objective.heads:
            lm_head = LMHead(encoder.embedding, encoder.output_size, *self.lm_head)
        if "classifier" in objective.heads:
            if isinstance(objective, Supervised):
                objective.check_classes(num_classes)
            classifier = ClassifierHead(
                encoder.output_size,
                num_outputs(num_classes, multilabel),
                pooling=self.classifier.pooling,
                dropout=self.classifier.dropout,
                hidden_size=self.classifier.hidden_size,
                multilabel=multilabel,
            )
        network = Network(encoder, lm_head, classifier, self.classifier.backprop_tokens)
        objective.prepare(network)
        return network
