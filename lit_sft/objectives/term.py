"""Base class of terms: parts of a fine-tuning loss, computed from clean passes that all terms of a step share."""

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
        state: the state returned by the previous step on the stream.
        loss: logits (batch, num_outputs) of the labeled documents -> scalar, the supervised loss.
        diagnose: whether terms should compute diagnostics of themselves, which may take extra passes.
        frees: whether a clean pass is freed as soon as the supervised loss doesn't need it, since nothing else
            back-propagates through it (see `Term.through_clean`).
    """

    def __init__(
        self,
        network: Network,
        batch: Mapping[str, Any],
        state: LSTMState | None,
        loss: Callable[[Tensor], Tensor],
        diagnose: bool = False,
        frees: bool = False,
    ) -> None:
        self.network, self.batch, self.state, self.loss = network, batch, state, loss
        self.diagnose, self.frees = diagnose, frees
        self.parts: dict[str, Tensor] = {}  # detached scalars to be logged, by name
        self.measured: dict[str, Tensor] = {}  # the same, for the diagnostics of steps with `diagnose`
        self._readings: dict[str, Reading] = {}
        self._supervised: Tensor | None = None
        self._gradient: Tensor | None = None

    def reading(self, kind: str) -> Reading:
        """The clean pass over the documents of a kind, `LABELED` or `DOCUMENTS`, made once per step and then shared."""
        if kind not in self._readings:
            self._readings[kind] = Reading.of(self.network, self.batch[kind])
            if self.frees and kind != LABELED:
                self._readings[kind].free()
        return self._readings[kind]

    @property
    def supervised(self) -> Tensor:
        """The supervised loss of the clean pass over the labeled documents, a scalar."""
        if self._supervised is None:
            self._supervised = self.loss(self.reading(LABELED).logits)
        return self._supervised

    def gradient(self) -> Tensor:
        """The gradient of `supervised` at its token vectors, (batch, time, embedding_size).

        The backward pass also computes the parameters' gradients of `supervised`, which then keeps them for the step:
        its own backward pass costs nothing more.
        """
        if self._gradient is None:
            embeds, parameters = self.reading(LABELED).embeds, self.network.parameters()
            self._supervised, self._gradient = differentiated(self.supervised, embeds, parameters)
            if self.frees:
                self.reading(LABELED).free()
        return self._gradient


class Term(ABC):
    """A part of a loss: the value it returns, times `weight`, times a factor that rises to 1 in the first steps.

    `batches`: the kinds of batches it needs in addition to "labeled"; `heads`: the heads it needs in addition to the
    classifier. `__init__` may set either, if they depend on options. `through_clean`: whether its gradient goes through
    what `Step.reading` returns (apart from `embeds`); if no term's does, the memory of these passes is freed early. A
    subclass of AT or VAT that goes back through them sets it to True.

    Args:
        weight: at least 0.
        ramp_steps: optimizer steps over which the factor rises linearly; 0: it is 1 from the start.

    Raises:
        ValueError: if either is below 0.
    """

    name: ClassVar[str]
    batches: frozenset[str] = frozenset()
    heads: frozenset[str] = frozenset()
    through_clean: bool = True

    def __init__(self, weight: float = 1.0, ramp_steps: int = 0) -> None:
        if not weight >= 0 or not ramp_steps >= 0:
            raise ValueError(f"weight={weight} and ramp_steps={ramp_steps} must be at least 0")
        self.weight, self.ramp_steps = weight, ramp_steps

    @abstractmethod
    def __call__(self, step: Step) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the term, a scalar to minimise; optionally also the number that it is a mean over, a scalar too.

        Several processes weight their shares by that number, or by the supervised loss's if none is returned. No value
        may be read back from the device.
        """

    def prepare(self, network: Network) -> None:  # noqa: B027 - may be left
        """Called once the network is built. Raises a ValueError if the network doesn't suit the term."""

    def factor(self, number: int) -> float:
        """The weight at an optimizer step `number`, from 0; step 0 of a ramp has 1 / ramp_steps of the full weight."""
        return self.weight * (min(1.0, (number + 1) / self.ramp_steps) if self.ramp_steps else 1.0)
