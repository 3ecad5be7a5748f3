"""Save and restore the states of all random generators, as tensors and plain values that a checkpoint can hold."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, those of CUDA devices and of MPS included."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the global state is saved
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore what :func:`random_states` returned; a CUDA device without a saved state is left unchanged."""
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state.cpu(), device)
    if states.get("mps") and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"][0].cpu())


def go_on_drawing(states: dict[str, Any] | None, rank: int) -> None:
    """Restore a resumed process's states; in a new run, seed each process differently, so that dropout masks differ."""
    if states is not None:
        set_random_states(states)
    elif rank > 0:
        torch.manual_seed(torch.initial_seed() + rank)
