"""What an objective is: a callable from (network, batch) to a loss and its named parts, in plain torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from lit_sft.models.encoder import LSTMState
from lit_sft.models.network import Network


@dataclass
class Loss:
    """The result of one step."""

    total: Tensor  # scalar, to be minimised
    parts: dict[str, Tensor] = field(default_factory=dict)  # detached scalars to be logged, by name; the same each step
    # scalar, what `total` is a mean over (tokens, documents): by it several processes weigh their shares of a batch,
    # which may be uneven; None weighs them alike, so that two processes train otherwise than one
    weight: Tensor | None = None
    state: LSTMState | None = None  # detached, to be handed to the next step on the same stream
    # where `total` is a sum of means over different things: each of them, and what it is a mean over
    shares: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    measured: dict[str, Tensor] = field(default_factory=dict)  # as `parts`, what not every step has


class Objective(ABC):
    """A loss by name. It declares what it needs, and what it declares is there when it is called.

    `batches`: of "unlabeled" (streams), "labeled" and "unlabeled_documents", or "pairs" (prompts with responses) alone;
    `heads`: of "lm" and "classifier".
    Options are plain arguments of `__init__`, so that they stand in the config; these two may follow from them.
    """

    batches: frozenset[str]
    heads: frozenset[str]
    step = 0  # optimizer steps before the one that the next loss is for; a training sets it

    @property
    def stage(self) -> Literal["pretrain", "finetune"]:
        """Which stage it is for: what learns labels, or responses to prompts, fine-tunes."""
        return "finetune" if "classifier" in self.heads or "pairs" in self.batches else "pretrain"

    @abstractmethod
    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        """The loss of `batch`, which has an entry for each name in `batches`.

        `state` is what the last step on the same stream returned, None at the start. Masks come from
        `network.draw_masks`, so that in eval mode no dropout is drawn. No value is read back from the device (but by an
        adaptive softmax, which waits for the sizes of its clusters).
        """

    def prepare(self, network: Network) -> None:  # noqa: B027 - may be left
        """Called when the network is built, before an optimizer is and several processes share it: what an objective
        does not train is frozen here. Raises a ValueError where the network doesn't suit it.
        """

    def see_documents(self, network: Network, documents: Iterable[Any], count: int) -> None:  # noqa: B027 - may be left
        """Called before a training of a classifier, with the weights that it starts from or goes on with.

        `documents`: all `count` training documents, each once, as batches with input_ids, attention_mask (batch, time)
        and indices (batch,), their places; the same at each call. They are made as they are asked for.
        """

    def see_counts(self, counts: Sequence[int], documents: int, multilabel: bool) -> None:  # noqa: B027 - may be left
        """Called before a training, for objectives that weigh classes by how often they occur.

        `counts`: training documents of each class; `documents`: all of them; `multilabel`: whether any number of
        classes apply to a document. Raises a ValueError where these can't be used.
        """
