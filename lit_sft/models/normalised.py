"""Token vectors of a fixed scale, so that a model can't make a perturbation small by making its vectors large."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6


class NormalisedEmbedding(nn.Embedding):
    """Vectors with mean 0 and variance 1 in each unit, over the tokens of the training text.

    Miyato et al. (2017), equation 1: v_k = (w_k - E) / sqrt(1e-6 + Var) with E = sum_j f_j w_j, f_j the frequency of
    token j, and Var = sum_j f_j (w_j - E)^2.

    `weight` holds the w: these are trained, and the gradient goes through E and Var. (Overwriting them with the v at
    each step would leave the optimizer with the moments of other weights.) A module that shares `weight` shares the w.

    `frequencies` (num_embeddings,) sum to 1 and are part of the state dict; they are uniform until `see_counts`.
    """

    frequencies: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.register_buffer("frequencies", torch.full((num_embeddings,), 1.0 / num_embeddings))

    def see_counts(self, counts: Tensor) -> None:
        """Set the frequencies from the token counts of the training text, (num_embeddings,)."""
        self.frequencies.copy_(counts / counts.sum())

    def forward(self, input_ids: Tensor) -> Tensor:
        """ids of any shape -> (*shape, embedding_dim)."""
        mean, scale = moments(self.weight, self.frequencies)
        return (F.embedding(input_ids, self.weight) - mean) / scale


def moments(weight: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (size,), of rows (tokens, size) weighted by their frequencies (tokens,)."""
    with torch.autocast(weight.device.type, enabled=False):
        frequencies = frequencies.to(weight.dtype)
        mean = frequencies @ weight
        return mean, (EPSILON + frequencies @ (weight - mean).square()).sqrt()


def folded(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Convert the weights of an encoder without normalisation, so that the same encoder with it computes the same.

    Normalisation subtracts the mean from the vectors and divides them by the standard deviation. To make up for it, the
    first layer's input weights are multiplied by the standard deviation, and their product with the mean is added to
    its bias. (This is exact only without dropout of the token vectors: a dropped vector is 0, which used to stand for
    no vector and now stands for the mean one.) Weights that contain frequencies already are left as they are.

    Args:
        weights: named as in `network`.
        network: its embeddings have the frequencies of the training text.
    """
    found = dict(weights)
    for name, part in network.named_modules():
        if not isinstance(part, NormalisedEmbedding) or f"{name}.weight" not in found or f"{name}.frequencies" in found:
            continue
        frequencies = found[f"{name}.frequencies"] = part.frequencies.detach().cpu()
        mean, scale = moments(found[f"{name}.weight"], frequencies)
        layer = f"{name.removesuffix('embedding')}layers.0"
        into = found[f"{layer}.weight_ih_l0"]  # (4 * units, embedding_size)
        found[f"{layer}.bias_ih_l0"] = found[f"{layer}.bias_ih_l0"] + into @ mean
        found[f"{layer}.weight_ih_l0"] = into * scale
    return found
