"""Build a network from options: an encoder for a vocabulary, and the heads that an objective needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from lit_sft.errors import UserError
from lit_sft.models import ClassifierHead, Encoder, LMHead, Network
from lit_sft.models.dropout import check_dropout
from lit_sft.models.heads import Pooling, num_outputs
from lit_sft.objectives import Objective

PARTS = {"encoder", "lm_head", "classifier"}  # of a network
NEEDS_LABELS = (
    "fine-tuning needs labeled data: give --data.labeled a file with a label column; prompts with responses "
    "(data.response_column) are for --model.objective Completion"
)


@dataclass(frozen=True)
class Blueprint:
    """The options of :class:`lit_sft.module.LitSFT` that a network is built from, with the same defaults."""

    make_encoder: Callable[[int], Encoder]
    pooling: Pooling = "concat"
    head_dropout: float = 0.4
    head_hidden_size: int = 0
    backprop_tokens: int | None = None
    tie_weights_up_to: int = 10_000
    adaptive_cutoffs: list[int] | None = None
    loss_chunk: int | None = None

    def build(self, objective: Objective, vocab_size: int, num_classes: int, multilabel: bool) -> Network:
        """Build the network with the heads that the objective needs.

        Args:
            objective: the objective that the network is trained with.
            vocab_size: the tokenizer's vocabulary size.
            num_classes: number of labels; ignored without a classifier.
            multilabel: whether a document may have any number of labels.

        Raises:
            ValueError: an option is out of range, or doesn't go with the objective.
        """
        check_dropout("head_dropout", self.head_dropout)
        encoder = self.make_encoder(vocab_size)
        lm_head = classifier = None
        if "lm" in objective.heads:
            options = (self.tie_weights_up_to, self.adaptive_cutoffs, self.loss_chunk)
            lm_head = LMHead(encoder.embedding, encoder.output_size, *options)
        if "classifier" in objective.heads:
            classifier = ClassifierHead(
                encoder.output_size,
                num_outputs(num_classes, multilabel),
                pooling=self.pooling,
                dropout=self.head_dropout,
                hidden_size=self.head_hidden_size,
                multilabel=multilabel,
            )
        network = Network(encoder, lm_head, classifier, self.backprop_tokens)
        objective.prepare(network)
        _check_weights(objective, network)
        return network

    def plain(self) -> dict[str, Any]:
        """Return the options as in a config. An encoder that is a function is left out, since a config can't name it.

        Raises:
            UserError: an option of the encoder can't be stored in a checkpoint, such as a function.
        """
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "make_encoder"}
        encoder = self.make_encoder if isinstance(self.make_encoder, partial) else partial(self.make_encoder)
        kind, given = encoder.func, encoder.keywords
        if isinstance(kind, type) and not encoder.args:
            _, *known = inspect.signature(kind).parameters.values()  # all but vocab_size
            init_args: dict[str, Any] = {}
            for name, value in ({option.name: option.default for option in known} | given).items():
                try:
                    init_args[name] = _plain(value)
                except TypeError as error:
                    if name in given:  # a default, or what stands for none, is there again when the class is built
                        raise UserError(
                            f"the encoder's option {name} is {value!r}, and a checkpoint holds numbers, texts and "
                            "lists of them: let a class of your own take a name in its place"
                        ) from error
            options["encoder"] = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": init_args}
        return options


def _check_weights(objective: Objective, network: Network) -> None:
    """Raise a ValueError if the objective has weights that would not be trained, or not be found in a checkpoint."""
    if added := {name.partition(".")[0] for name, _ in network.named_parameters()} - PARTS:
        raise ValueError(
            f"{type(objective).__name__} adds {min(added)} to the network, which is an encoder with heads: an "
            "objective with weights of its own keeps them itself, as an nn.Module"
        )
    known = {id(parameter) for parameter in network.parameters()}
    for part in (objective, *getattr(objective, "terms", ())):
        for name, value in () if part is objective and isinstance(part, nn.Module) else vars(part).items():
            weights = value.parameters() if isinstance(value, nn.Module) else [value]
            if any(isinstance(w, nn.Parameter) and w.requires_grad and id(w) not in known for w in weights):
                kind = type(part).__name__
                raise ValueError(
                    f"{kind}.{name} has weights that would not be trained: make them require no gradient, or make an "
                    f"objective with them, `class {kind}(..., nn.Module)` (a term can't have weights)"
                )


def _plain(value: Any) -> Any:
    """Convert an option to what YAML and a checkpoint can hold; a TypeError if it can't be converted."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(type(value).__name__)


def check_stage(objective: Objective, stage: str) -> None:
    """Raise a UserError if the objective belongs to the other stage."""
    if objective.stage != stage:
        named = f"model.objective {type(objective).__name__}"
        raise UserError(f"model.stage {stage} doesn't go with {named}; in a recipe, --STAGE.{named} is for one stage")


def check_stage_and_labels(objective: Objective, stage: str, num_labels: int, multilabel: bool) -> None:
    """Raise a UserError if the objective belongs to the other stage, or a classifier has too few labels."""
    check_stage(objective, stage)
    if "classifier" in objective.heads and num_labels < (1 if multilabel else 2):
        raise UserError(NEEDS_LABELS)
