"""Base class of objectives: callables from (network, batch, state) to a loss and its named parts, in plain torch."""

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
    parts: dict[str, Tensor] = field(default_factory=dict)  # detached scalars to log; the same names at every step
    # scalar, the number of things that `total` is a mean over (tokens, documents). Several processes weight their
    # shares of a batch, which may be uneven, by it. None weights them equally: two processes then train unlike one
    weight: Tensor | None = None
    state: LSTMState | None = None  # detached, to be handed to the next step on the same stream
    # if `total` is a sum of means over different things: each mean, and the number that it is taken over
    shares: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    measured: dict[str, Tensor] = field(default_factory=dict)  # like `parts`, for values that only some steps compute


class Objective(ABC):
    """Base class of losses. An objective declares the batches and heads it needs, and is called with all of them.

    `batches`: a subset of "unlabeled" (streams), "labeled" and "unlabeled_documents"; or only "pairs" (prompts with
    responses). `heads`: a subset of "lm" and "classifier".
    Options are plain arguments of `__init__`, so that the config records them; both attributes may depend on them.
    One with weights of its own is an `nn.Module`, too, as in `class Contrastive(Supervised, nn.Module)`: they are
    trained at the top layer's rate, saved, and left out where the network alone is used.
    """

    batches: frozenset[str]
    heads: frozenset[str]
    step = 0  # optimizer steps completed so far; set by the training loop before each loss
    special_ids = (0, 0, 0)  # ids of the tokenizer's <eos>, <pad> and <unk>; set before the first loss

    @property
    def stage(self) -> Literal["pretrain", "finetune"]:
        """The stage that it belongs to: "finetune" if it learns labels or responses to prompts, else "pretrain"."""
        return "finetune" if "classifier" in self.heads or "pairs" in self.batches else "pretrain"

    @abstractmethod
    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        """Compute the loss of `batch`, which has an entry for each name in `batches`.

        `state` is the state returned by the previous step on the same stream, None at the start. Dropout masks must
        come from `network.draw_masks`, which draws none in eval mode. No value may be read back from the device (an
        adaptive softmax is the exception: it waits for the sizes of its clusters).
        """

    def prepare(self, network: Network) -> None:  # noqa: B027 - may be left
        """Called once the network is built, before the optimizer is created and the network is wrapped for several
        processes. Freeze here what the objective does not train. Raises a ValueError if the network doesn't suit it.
        """

    def see_documents(self, network: Network, documents: Iterable[Any], count: int) -> None:  # noqa: B027 - may be left
        """Called before a classifier is trained, with its initial or resumed weights.

        `documents`: all `count` training documents, each once, as batches with input_ids, attention_mask (batch, time)
        and indices (batch,), their positions in the training set; the same at each call. Batches are made lazily.
        """

    def see_counts(self, counts: Sequence[int], documents: int, multilabel: bool) -> None:  # noqa: B027 - may be left
        """Called before training, for objectives that weight classes by their frequency.

        `counts`: number of training documents of each class; `documents`: number of training documents in all;
        `multilabel`: whether any number of classes may apply to a document. Raises a ValueError if the counts can't be
        used.
        """
