"""A network of a few units and a batch for it, for the tests of objectives."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lit_sft.models import ClassifierHead, Encoder, EncoderOutput, LMHead, LSTMEncoder, LSTMState, Network
from lit_sft.models.heads import num_outputs
from lit_sft.objectives import Objective


@dataclass
class Batch:
    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    labels: Tensor
    first: bool = False
    indices: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.indices is None:
            self.indices = torch.arange(len(self.labels))

    def steps(self, start: int, stop: int) -> "Batch":
        cut = [t[:, start:stop] for t in (self.input_ids, self.attention_mask, self.targets)]
        return Batch(cut[0], cut[1], cut[2], self.labels)


def batch(classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(5)
    ids, targets = (torch.randint(1, 12, (4, 6), generator=generator) for _ in range(2))
    mask = torch.arange(6) < torch.tensor([[6], [6], [3], [5]])
    return Batch(ids.where(mask, 0), mask, targets.where(mask, -100), torch.arange(4) % classes)


def build(classes: Any = 3, **options: Any) -> Network:
    """A small network; `options` by the name of the part that takes them: encoder, lm, classifier."""
    torch.manual_seed(1)
    encoder = LSTMEncoder(12, **{"embedding_size": 4, "hidden_size": 16, "num_layers": 2, **options.get("encoder", {})})
    lm = LMHead(encoder.embedding, encoder.output_size, **options.get("lm", {}))
    classifier = ClassifierHead(encoder.output_size, num_outputs(classes), **options.get("classifier", {}))
    return Network(encoder, lm, classifier).double()


def encoded(encoder: Encoder, ids: Tensor, mask: Tensor, state: LSTMState, masks: Any) -> EncoderOutput:
    """What the encoder makes of ids (batch, time)."""
    output: EncoderOutput = encoder(encoder.embed(ids, masks), mask, state, masks)
    return output


def squares_of(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The means of AWD-LSTM's two penalties over documents (time, units): of the squares, and of those of changes."""
    changes = [(after - before).square() for row in rows for before, after in pairwise(row)]
    return torch.cat([row.flatten() for row in rows]).square().mean(), torch.cat(changes).mean()


def loss_of(objective: Objective, network: Network, batch: Batch, state: LSTMState | None = None) -> Tensor:
    torch.manual_seed(2)
    return objective(network, {"unlabeled": batch, "labeled": batch, "unlabeled_documents": batch}, state).total
