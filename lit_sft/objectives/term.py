"""What a term is: a part of a fine-tuning loss, computed from readings that all terms of a step share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from lit_sft.models.encoder import LSTMState
from lit_sft.models.network import Network
from lit_sft.objectives.gradients import differentiated
from lit_sft.objectives.reading import Reading

LABELED, DOCUMENTS, STREAM = "labeled", "unlabeled_documents", "unlabeled"


class Step:
    """One training step, as its terms see it.

    Args:
        network: in train mode.
        batch: an entry for each kind of batch that a term needs.
        state: what the last step on the stream returned.
        loss: logits (batch, num_outputs) of the labeled documents -> scalar, the supervised loss.
        diagnose: whether terms are to measure themselves, which may take passes of their own.
    """

    def __init__(
        self,
        network: Network,
        batch: Mapping[str, Any],
        state: LSTMState | None,
        loss: Callable[[Tensor], Tensor],
        diagnose: bool = False,
    ) -> None:
        self.network, self.batch, self.state, self.loss, self.diagnose = network, batch, state, loss, diagnose
        self.parts: dict[str, Tensor] = {}  # detached scalars to be logged, by name
        self.measured: dict[str, Tensor] = {}  # the same of what is measured where `diagnose` asks for it
        self._readings: dict[str, Reading] = {}
        self._supervised: Tensor | None = None
        self._gradient: Tensor | None = None

    def reading(self, kind: str) -> Reading:
        """The clean pass over the documents of a kind, `LABELED` or `DOCUMENTS`: one a step, whoever asks for it."""
        if kind not in self._readings:
            self._readings[kind] = Reading.of(self.network, self.batch[kind])
        return self._readings[kind]

    @property
    def supervised(self) -> Tensor:
        """The supervised loss of the clean pass over the labeled documents, a scalar."""
        if self._supervised is None:
            self._supervised = self.loss(self.reading(LABELED).logits)
        return self._supervised

    def gradient(self) -> Tensor:
        """The gradient of `supervised` at its token vectors, (batch, time, embedding_size).

        The backward pass that it takes is the one of the step: `supervised` knows its gradients from here on.
        """
        if self._gradient is None:
            embeds, parameters = self.reading(LABELED).embeds, self.network.parameters()
            self._supervised, self._gradient = differentiated(self.supervised, embeds, parameters)
        return self._gradient


class Term(ABC):
    """A part of a loss: `weight` times what it returns, by a factor that rises from 0 to 1 in the first steps.

    `batches`: the kinds it needs beside "labeled"; `heads`: those it needs beside the classifier. Both may be set by
    `__init__`, where options decide.

    Args:
        weight: at least 0.
        ramp_steps: optimizer steps in which the factor rises; 0: it is 1 from the start.

    Raises:
        ValueError: either below 0.
    """

    name: ClassVar[str]
    batches: frozenset[str] = frozenset()
    heads: frozenset[str] = frozenset()

    def __init__(self, weight: float = 1.0, ramp_steps: int = 0) -> None:
        if not weight >= 0 or not ramp_steps >= 0:
            raise ValueError(f"weight={weight} and ramp_steps={ramp_steps} must be at least 0")
        self.weight, self.ramp_steps = weight, ramp_steps

    @abstractmethod
    def __call__(self, step: Step) -> Tensor | tuple[Tensor, Tensor]:
        """The term, a scalar to minimise, and, where it is given, the number that it is a mean over, a scalar too.

        Several processes weigh their shares by that number; without it, by the supervised loss's. No value is read back
        from the device.
        """

    def prepare(self, network: Network) -> None:  # noqa: B027 - may be left
        """Called when the network is built. Raises a ValueError where it doesn't suit the term."""

    def factor(self, number: int) -> float:
        """The weight at an optimizer step, counted from 0; the first step of a ramp has the first share of it."""
        return self.weight * (min(1.0, (number + 1) / self.ramp_steps) if self.ramp_steps else 1.0)
