"""Every option of model and objective changes the training loss; dropout changes nothing in evaluation."""

from typing import Any

import pytest
import torch
from toy_network import batch, build, loss_of

from lit_sft.objectives import MLE, Objective, Supervised

DROPOUTS = [
    ("encoder", {"embedding_dropout": 0.6}),
    ("encoder", {"hidden_dropout": 0.6}),
    ("encoder", {"output_dropout": 0.6}),
    ("encoder", {"weight_dropout": 0.6}),
    ("encoder", {"type_dropout": 0.6}),
    ("encoder", {"word_dropout": 0.6}),
]
ENCODER = [
    ("encoder", {"embedding_size": 5}),
    ("encoder", {"hidden_size": 17}),
    ("encoder", {"num_layers": 1}),
]
LM = [
    ("lm", {"tie_weights_up_to": 11, "adaptive_cutoffs": [4]}),
    ("lm", {"tie_weights_up_to": 11, "adaptive_cutoffs": [4, 8]}),
]
CLASSIFIER: list[tuple[str, dict[str, Any]]] = [
    ("classifier", {"pooling": how}) for how in ("last", "mean", "max", "attention")
]
CLASSIFIER += [("classifier", {"hidden_size": 5})]
CLASSIFIER_DROPOUT = ("classifier", {"dropout": 0.7})
PLAIN_SUPERVISED = Supervised()


@pytest.mark.parametrize(
    ("objective", "part", "options"),
    [(MLE(), *option) for option in DROPOUTS + ENCODER + LM]
    + [(PLAIN_SUPERVISED, *option) for option in [*DROPOUTS, *ENCODER, *CLASSIFIER, CLASSIFIER_DROPOUT]],
)
def test_every_option_of_the_model_changes_the_training_loss(
    objective: Objective, part: str, options: dict[str, Any]
) -> None:
    plain, other = (loss_of(objective, network, batch()).item() for network in (build(), build(**{part: options})))
    assert abs(plain - other) > 1e-6


def test_each_adaptive_cutoff_changes_the_training_loss() -> None:
    losses = [loss_of(MLE(), build(**{part: options}), batch()).item() for part, options in LM]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"class_weights": [1.0, 2.0, 3.0]}])
def test_every_option_of_the_objective_changes_the_training_loss(options: dict[str, Any], classes: int) -> None:
    if "class_weights" in options:
        options = {"class_weights": options["class_weights"][:classes]}
    plain, other = (
        loss_of(objective, build(classes, encoder={"output_dropout": 0.0}), batch(classes)).item()
        for objective in (Supervised(), Supervised(**options))
    )
    assert abs(plain - other) > 1e-5


@pytest.mark.parametrize(
    ("objective", "part", "options"),
    [(MLE(), *option) for option in DROPOUTS]
    + [(PLAIN_SUPERVISED, *option) for option in [*DROPOUTS, CLASSIFIER_DROPOUT]],
)
def test_dropout_changes_nothing_in_evaluation(objective: Objective, part: str, options: dict[str, Any]) -> None:
    networks = [build().eval(), build(**{part: options}).eval()]
    before = torch.get_rng_state()
    losses = [objective(network, {"unlabeled": batch(), "labeled": batch()}, None).total for network in networks]
    assert torch.equal(*losses)
    assert torch.equal(torch.get_rng_state(), before)
