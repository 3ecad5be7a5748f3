"""Callbacks whose state belongs to the weights of one module."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import Any

import lightning as L


class OfOneModule(L.Callback, ABC):
    """Forgets its state where a fit trains another module than the one before: the same object, in a loop over seeds.

    Several fits of one module go on with it; so does a resumed run, as Lightning hands it the checkpoint's after this.
    """

    _module: weakref.ref[L.LightningModule] | None = None  # whose the state is

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
        return {name: value for name, value in self.__dict__.items() if name != "_module"}  # no pickle takes it
