"""Callbacks whose state belongs to the weights of one module."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import Any

import lightning as L


class OfOneModule(L.Callback, ABC):
    """Forgets its state if a fit trains another module than the last, as when one callback serves a loop over seeds.

    Several fits of one module keep the state; so does a resumed run, as Lightning loads the checkpoint's after this.
    """

    _module: weakref.ref[L.LightningModule] | None = None  # the module that the state belongs to

    @abstractmethod
    def forget(self) -> None:
        """Make the state that of a new object."""

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self._module is not None and self._module() is not module:
            self.forget()
        self._module = weakref.ref(module)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_module"}  # can't be pickled
