"""Objectives of the user's own: their weights, the figures that they log, what they are told."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import module_of, trainer_of

from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import UserError
from lit_sft.objectives import MLE, Completion, Loss, Mixed, Objective, SequenceAutoencoder, Supervised
from lit_sft.objectives.term import Step, Term


class Loose(Supervised):
    """Weights that no optimizer would see."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(3, 3)


class LooseTerm(Term):
    name = "loose"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def __call__(self, step: Step) -> Tensor:
        return self.scale * step.supervised


class Attached(Supervised):
    """Weights that no evaluation would know."""

    def prepare(self, network: Any) -> None:
        network.projection = nn.Linear(3, 3)


class Teacher(Supervised):
    """A copy of the network that isn't trained is no mistake, nor is the network itself."""

    def prepare(self, network: Any) -> None:
        self.network, self.teacher = network, copy.deepcopy(network).requires_grad_(False)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Loose(), "Loose.projection has weights that would not be trained"),
        (Mixed([LooseTerm()]), r"LooseTerm.scale has weights .* \(a term can't have weights\)"),
        (Attached(), "Attached adds projection to the network"),
    ],
)
def test_weights_that_would_be_lost_are_told(
    objective: Supervised, message: str, data: TextDataModule, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        trainer_of(tmp_path, max_steps=1).fit(module_of("finetune", objective=objective), datamodule=data)


@pytest.mark.parametrize("kind", [MLE, SequenceAutoencoder, Supervised, Completion])
def test_a_module_that_is_an_objective_is_initialised_as_any_other(kind: type[Objective]) -> None:
    """The objective's own __init__ hands on to that of nn.Module: one call of super() is enough."""

    class Own(kind, nn.Module):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            super().__init__()
            self.projection = nn.Linear(3, 3)

    assert {name for name, _ in Own().named_parameters()} == {"projection.weight", "projection.bias"}


def test_a_teacher_is_no_mistake(data: TextDataModule, tmp_path: Path) -> None:
    trainer_of(tmp_path, max_steps=1).fit(module_of("finetune", objective=Teacher()), datamodule=data)


class Named(Supervised):
    """One part, of a name of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.seen: set[tuple[int, ...]] = set()

    def __call__(self, network: Any, batch: Any, state: Any) -> Loss:
        self.seen.add(self.special_ids)
        loss = super().__call__(network, batch, state)
        return Loss(loss.total, {self.name: torch.tensor(7.0)}, loss.weight)


def test_a_single_part_is_logged(data: TextDataModule, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=1)
    objective = Named("penalty")
    trainer.fit(module_of("finetune", objective=objective), datamodule=data)
    assert objective.seen == {data.tokenizer.special_ids}
    assert trainer.callback_metrics["train/penalty"] == 7.0
    assert trainer.callback_metrics["train/loss"] != 7.0


def test_a_part_with_the_name_of_another_figure_is_told(data: TextDataModule, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its part 'loss' has the name of another figure"):
        trainer_of(tmp_path, max_steps=1).fit(module_of("finetune", objective=Named("loss")), datamodule=data)
