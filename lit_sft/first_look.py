"""Before the first step of a fit: load the network's start weights, show it and its objective the training data."""

from __future__ import annotations

import torch

from lit_sft.checkpoints import InitFrom
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.extension import EXTEND
from lit_sft.errors import UserError
from lit_sft.models import Network
from lit_sft.models.normalised import NormalisedEmbedding
from lit_sft.objectives import Objective
from lit_sft.starting import adopted_from, read_sources
from lit_sft.transfer import load_pretrained


def start_network(
    network: Network, data: TextDataModule, init_from: InitFrom, remap_vocabulary: bool, label_names: list[str]
) -> None:
    """Set the token frequencies of a new network's normalised embeddings, and load ``init_from`` if it is given."""
    for part in network.modules():
        if isinstance(part, NormalisedEmbedding):
            part.see_counts(torch.from_numpy(data.token_counts))
    if init_from:
        remap, sources = remap_vocabulary or data.preparation.kind == EXTEND, read_sources(init_from)
        data.serve(adopted_from(sources, remap=True))  # their direction: the tokenizer may be another
        load_pretrained(network, sources, data.tokenizer, remap, label_names)


def see_documents(objective: Objective, network: Network, data: TextDataModule) -> None:
    """Show an objective that classifies the number of documents of each class, and the documents themselves.

    Raises:
        UserError: an option of the objective doesn't go with them.
    """
    if "classifier" not in objective.heads:
        return
    try:
        objective.see_counts(data.label_counts.tolist(), len(data.train), network.multilabel)
    except ValueError as error:
        raise UserError(f"model.objective: {error}") from error
    device = next(network.parameters()).device
    objective.see_documents(network, (batch.to(device) for batch in data.train_documents()), len(data.train))
