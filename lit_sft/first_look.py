"""What a fit shows its network and its objective of the training data, before the first step."""

from __future__ import annotations

import torch

from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.textdata import TextData
from lit_sft.errors import UserError
from lit_sft.models import Network
from lit_sft.models.normalised import NormalisedEmbedding
from lit_sft.objectives import Objective


def see_frequencies(network: Network, data: TextData) -> None:
    """Show normalised embeddings how often each token occurs in what is trained on."""
    for part in network.modules():
        if isinstance(part, NormalisedEmbedding):
            part.see_counts(torch.from_numpy(data.token_counts))


def see_documents(objective: Objective, network: Network, data: TextDataModule) -> None:
    """Show an objective of labeled documents how many of each class there are, and the documents.

    Raises:
        UserError: an option of the objective that doesn't go with these.
    """
    if "classifier" not in objective.heads:
        return
    try:
        objective.see_counts(data.label_counts.tolist(), len(data.train), network.multilabel)
    except ValueError as error:
        raise UserError(f"model.objective: {error}") from error
    device = next(network.parameters()).device
    objective.see_documents(network, (batch.to(device) for batch in data.train_documents()), len(data.train))
