"""The supervised loss and any other terms, weighted: adversarial training, entropy minimisation, and the like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_sft.models.encoder import LSTMState
from lit_sft.models.network import Network
from lit_sft.objectives.base import Loss
from lit_sft.objectives.divergence import log_probabilities
from lit_sft.objectives.gradients import gradients
from lit_sft.objectives.reading import Reading, mean_over
from lit_sft.objectives.supervised import Supervised
from lit_sft.objectives.term import DOCUMENTS, LABELED, Step, Term

SCALE = 1024.0
# Other figures logged under train/, whose names no term may have.
TAKEN = (
    "loss",
    "supervised",
    "activation_penalty",
    "temporal_penalty",
    "unlabeled_share",
    "grad_norm",
    "skipped_batches",
)


class Mixed(Supervised):
    """L = supervised + sum_i weight_i ramp_i term_i, over batches of labeled and of unlabeled documents side by side.

    With `AT`, `VAT` and `EntMin` this is L_mixed of Sachan et al. (2019); with a single term, it is that term's method.
    All terms of a step share one clean pass over each batch, and its masks.

    If unlabeled documents are read, an epoch is as long as the longer of the two sets: set its length in steps, with
    `trainer.limit_train_batches`.

    Every `diagnose_every` steps it logs: "unlabeled_share", the gradient norm of the terms that read unlabeled text,
    divided by the sum of that norm and the norm of the rest (near 1, labels no longer count); "predicted_0" and so on,
    the share of the unlabeled documents that each class is predicted for; and the terms' own diagnostics.

    Args:
        terms: the terms to add to the supervised loss.
        diagnose_every: optimizer steps between diagnoses; 0: never.
        label_smoothing, class_weights, activation_penalty, temporal_penalty: as in `Supervised`.

    Raises:
        ValueError: as `Supervised`; if two terms have the same name, or a term has the name of another figure.
    """

    def __init__(
        self,
        terms: list[Term],
        diagnose_every: int = 50,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced", "sqrt"] | list[float] | None = None,
        activation_penalty: float = 0.0,
        temporal_penalty: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing, class_weights, activation_penalty, temporal_penalty)
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise ValueError(f"terms are {', '.join(names)}: give each of them once")
        if taken := [name for name in names if name in TAKEN or name.startswith("predicted_")]:
            raise ValueError(f"a term is named {taken[0]}, under which another figure is logged: give it another name")
        self.terms, self.diagnose_every = terms, diagnose_every
        self.batches = frozenset({LABELED}).union(*(term.batches for term in terms))
        self.heads = frozenset({"classifier"}).union(*(term.heads for term in terms))

    def prepare(self, network: Network) -> None:
        for term in self.terms:
            term.prepare(network)

    def __call__(self, network: Network, batch: Mapping[str, Any], state: LSTMState | None) -> Loss:
        """`batch` has "labeled", as in `Supervised`, and an entry for each other kind in `batches`."""
        documents = batch[LABELED]
        diagnose = self.diagnose_every > 0 and (self.step + 1) % self.diagnose_every == 0
        frees = not (self.penalties.on or any(term.through_clean for term in self.terms))
        step = Step(network, batch, state, lambda logits: self.loss(logits, documents.labels), diagnose, frees)
        reading = step.reading(LABELED)
        found = [term(step) for term in self.terms]  # first, since they may compute the supervised loss's gradients
        loss = self.of_reading(reading, step.supervised)
        loss.shares = [(loss.total, loss.weight)]
        unlabeled: list[Tensor] = []  # by what the terms read
        rest = [loss.total]
        for term, value in zip(self.terms, found, strict=True):
            value, count = value if isinstance(value, tuple) else (value, loss.weight)
            loss.parts[term.name] = value.detach()
            value = term.factor(self.step) * value
            loss.shares.append((value, count))
            (unlabeled if term.batches else rest).append(value)
        if diagnose and unlabeled:
            step.measured["unlabeled_share"] = share_of_gradient(sum_of(unlabeled), sum_of(rest), network.parameters())
        if diagnose and DOCUMENTS in self.batches and not network.multilabel:
            step.measured |= predicted_shares(step.reading(DOCUMENTS))
        loss.total, loss.state = sum_of([*rest, *unlabeled]), step.state
        loss.parts |= step.parts
        loss.measured = step.measured
        return loss


def sum_of(values: list[Tensor]) -> Tensor:
    """Sum of scalars."""
    return torch.stack(values).sum()


def share_of_gradient(part: Tensor, rest: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """||grad part|| / (||grad part|| + ||grad rest||) over the trainable parameters, a scalar.

    Both losses are scaled by `SCALE`, which cancels out: in float16 the gradients of a small loss would underflow.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    norms = []
    for loss in (part, rest):
        found = gradients(SCALE * loss, trained, retain_graph=True) if loss.requires_grad else []
        squares = [g.float().square().sum() for g in found if g is not None]  # empty if all it depends on is frozen
        norms.append(torch.stack([*squares, loss.new_zeros((), dtype=torch.float32)]).sum().sqrt())
    return norms[0] / (norms[0] + norms[1]).clamp(min=1e-30)


def predicted_shares(reading: Reading) -> dict[str, Tensor]:
    """The share of the documents that each class is predicted for, by "predicted_CLASS"."""
    classes = log_probabilities(reading.logits.detach(), False)[:, 0]  # (batch, num_classes)
    given = F.one_hot(classes.argmax(-1), classes.shape[-1]).to(classes.dtype)
    shares = (mean_over(column, [reading])[0] for column in given.unbind(1))
    return {f"predicted_{number}": share for number, share in enumerate(shares)}
