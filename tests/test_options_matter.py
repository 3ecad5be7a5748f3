"""Every option of model, objective and schedule changes a training through the Trainer; none is decoration.

The options are those of the signatures: a new one without a value here fails.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Files
from training import Losses, data_of, module_of, trainer_of

from lit_sft.models import ClassifierHead, LMHead, LSTMEncoder, TwoWayEncoder
from lit_sft.module import LitSFT
from lit_sft.objectives import (
    AT,
    MLE,
    VAT,
    AdversarialMLE,
    AuxiliaryLM,
    Completion,
    EntMin,
    Mixed,
    Objective,
    Probe,
    SequenceAutoencoder,
    Supervised,
    Term,
)
from lit_sft.optim import Constant, OneCycle, RangeTest, SlantedTriangular, WarmupCosine

STEPS = 6
Change = tuple[str, dict[str, Any]]  # the stage that is trained, and what the module is made with


def both(name: str, value: Any) -> list[Change]:
    return [(stage, {"encoder": {name: value}}) for stage in ("pretrain", "finetune")]


def finetune(**options: Any) -> list[Change]:
    return [("finetune", options)]


def term(kind: type[Term], **options: Any) -> dict[str, Any]:
    return {"objective": Mixed([kind(**options)], diagnose_every=0)}


CHANGES: dict[type, dict[str, list[Change]]] = {
    LSTMEncoder: {
        "embedding_size": both("embedding_size", 9),
        "hidden_size": both("hidden_size", 13),
        "num_layers": both("num_layers", 1),
        "embedding_dropout": both("embedding_dropout", 0.5),
        "hidden_dropout": both("hidden_dropout", 0.5),
        "output_dropout": both("output_dropout", 0.5),
        "weight_dropout": both("weight_dropout", 0.5),
        "type_dropout": both("type_dropout", 0.5),
        "word_dropout": both("word_dropout", 0.5),
        "last_size": both("last_size", 8),
        "normalize_embedding": both("normalize_embedding", True),
    },
    LMHead: {
        "tie_weights_up_to": [("pretrain", {"tie_weights_up_to": 299})],
        "adaptive_cutoffs": [("pretrain", {"tie_weights_up_to": 0, "adaptive_cutoffs": [30]})],
        "loss_chunk": [],  # the same loss by another way: test_loss_chunk.py
    },
    ClassifierHead: {
        "pooling": [change for how in ("last", "mean", "max", "attention") for change in finetune(pooling=how)],
        "dropout": finetune(head_dropout=0.5),
        "hidden_size": finetune(head_hidden_size=5),
    },
    MLE: {
        "activation_penalty": [("pretrain", {"objective": MLE(activation_penalty=2.0)})],
        "temporal_penalty": [("pretrain", {"objective": MLE(temporal_penalty=2.0)})],
        "reset_probability": [("pretrain", {"objective": MLE(reset_probability=1.0)})],
    },
    Supervised: {
        "label_smoothing": finetune(objective=Supervised(label_smoothing=0.2)),
        "class_weights": finetune(objective=Supervised(class_weights=[1.0, 3.0, 0.2])),
        "activation_penalty": finetune(objective=Supervised(activation_penalty=2.0)),
        "temporal_penalty": finetune(objective=Supervised(temporal_penalty=2.0)),
    },
    Probe: {
        "label_smoothing": finetune(objective=Probe(label_smoothing=0.2)),
        "class_weights": finetune(objective=Probe(class_weights=[1.0, 3.0, 0.2])),
    },
    AdversarialMLE: {
        "norm": [("pretrain", {"objective": AdversarialMLE(norm=0.1)})],
        "weight": [("pretrain", {"objective": AdversarialMLE(weight=0.5)})],
        "direction": [("pretrain", {"objective": AdversarialMLE(direction="random")})],
        "activation_penalty": [("pretrain", {"objective": AdversarialMLE(activation_penalty=2.0)})],
        "temporal_penalty": [("pretrain", {"objective": AdversarialMLE(temporal_penalty=2.0)})],
        "reset_probability": [("pretrain", {"objective": AdversarialMLE(reset_probability=1.0)})],
    },
    SequenceAutoencoder: {
        "activation_penalty": [("pretrain", {"objective": SequenceAutoencoder(activation_penalty=2.0)})],
        "temporal_penalty": [("pretrain", {"objective": SequenceAutoencoder(temporal_penalty=2.0)})],
    },
    Completion: {
        "completion_only": finetune(objective=Completion(completion_only=False)),
        "activation_penalty": finetune(objective=Completion(activation_penalty=2.0)),
        "temporal_penalty": finetune(objective=Completion(temporal_penalty=2.0)),
    },
    Mixed: {
        "terms": finetune(objective=Mixed([EntMin()])),
        "diagnose_every": [],  # what is logged: test_terms.py
        "label_smoothing": finetune(objective=Mixed([AT()], label_smoothing=0.2)),
        "class_weights": finetune(objective=Mixed([AT()], class_weights=[1.0, 3.0, 0.2])),
        "activation_penalty": finetune(objective=Mixed([AT()], activation_penalty=2.0)),
        "temporal_penalty": finetune(objective=Mixed([AT()], temporal_penalty=2.0)),
    },
    AT: {
        "norm": finetune(**term(AT, norm=0.1)),
        "direction": finetune(**term(AT, direction="random")),
        "weight": finetune(**term(AT, weight=0.5)),
        "ramp_steps": finetune(**term(AT, ramp_steps=3)),
    },
    VAT: {
        "norm": finetune(**term(VAT, norm=0.1)),
        "xi": finetune(**term(VAT, xi=10.0)),
        "power_steps": finetune(**term(VAT, power_steps=2)),
        "unlabeled": finetune(**term(VAT, unlabeled=False)),
        "direction": finetune(**term(VAT, direction="random")),
        "weight": finetune(**term(VAT, weight=0.5)),
        "ramp_steps": finetune(**term(VAT, ramp_steps=3)),
    },
    EntMin: {
        "unlabeled": finetune(**term(EntMin, unlabeled=False)),
        "weight": finetune(**term(EntMin, weight=0.5)),
        "ramp_steps": finetune(**term(EntMin, ramp_steps=3)),
    },
    AuxiliaryLM: {
        "reset_probability": finetune(**term(AuxiliaryLM, reset_probability=1.0)),
        "weight": finetune(**term(AuxiliaryLM, weight=0.5)),
        "ramp_steps": finetune(**term(AuxiliaryLM, ramp_steps=3)),
    },
    WarmupCosine: {
        "warmup": finetune(schedule=WarmupCosine(warmup=0.5)),
        "final": finetune(schedule=WarmupCosine(final=0.5)),
    },
    OneCycle: {
        "warmup": finetune(schedule=OneCycle(warmup=0.5)),
        "start_div": finetune(schedule=OneCycle(start_div=2.0)),
        "final_div": finetune(schedule=OneCycle(final_div=2.0)),
    },
    SlantedTriangular: {
        "cut_frac": finetune(schedule=SlantedTriangular(cut_frac=0.5)),
        "ratio": finetune(schedule=SlantedTriangular(ratio=2.0)),
    },
    RangeTest: {"start": finetune(schedule=RangeTest(start=0.5))},
    LitSFT: {
        "stage": [("pretrain", {})],
        "init_from": [],  # in test_resume.py, which has a checkpoint to start from
        "remap_vocabulary": [],  # in test_extend.py, as it needs one too
        "encoder": both("num_layers", 1),
        "pooling": finetune(pooling="mean"),
        "head_dropout": finetune(head_dropout=0.5),
        "head_hidden_size": finetune(head_hidden_size=5),
        "tie_weights_up_to": [("pretrain", {"tie_weights_up_to": 299})],
        "adaptive_cutoffs": [("pretrain", {"tie_weights_up_to": 0, "adaptive_cutoffs": [30]})],
        "loss_chunk": [],  # the same loss by another way: test_loss_chunk.py
        "objective": finetune(objective=Supervised(label_smoothing=0.2)),
        "optimizer": finetune(optimizer=partial(torch.optim.AdamW, lr=0.02)),
        "schedule": finetune(schedule=WarmupCosine()),
        "layer_decay": finetune(layer_decay=0.5),
        "backprop_tokens": finetune(backprop_tokens=5),
        "num_beams": [],  # of the search in evaluation: test_responses.py
        "metrics": [],  # it trains nothing: test_own_metrics.py
    },
}
CHANGES[TwoWayEncoder] = {
    name: finetune(encoder={"kind": TwoWayEncoder, **changes[-1][1]["encoder"]})
    for name, changes in CHANGES[LSTMEncoder].items()
}
# What the network itself hands to its parts: sizes, the shared embedding and the kind of labels.
WIRING = {"vocab_size", "embedding", "input_size", "num_outputs", "multilabel"}
# What an option is compared with, where it isn't the module without any.
OF_KIND: dict[type, dict[str, Any]] = {
    **{kind: {"schedule": kind()} for kind in (WarmupCosine, OneCycle, SlantedTriangular, RangeTest)},
    **{kind: {"objective": kind()} for kind in (Probe, AdversarialMLE, SequenceAutoencoder, Completion)},
    **{kind: term(kind) for kind in (AT, VAT, EntMin, AuxiliaryLM)},
    TwoWayEncoder: {"encoder": {"kind": TwoWayEncoder}},
    Mixed: term(AT),
}
BASES: dict[tuple[type, str], dict[str, Any]] = {
    **{(kind, name): base for kind, base in OF_KIND.items() for name in CHANGES[kind]},
    (LMHead, "adaptive_cutoffs"): {"tie_weights_up_to": 0},
    (LitSFT, "adaptive_cutoffs"): {"tie_weights_up_to": 0},
}
CASES = [
    pytest.param(stage, BASES.get((kind, name), {}), change, id=f"{kind.__name__}-{name}-{stage}-{i}")
    for kind, options in CHANGES.items()
    for name, changes in options.items()
    for i, (stage, change) in enumerate(changes)
]


@pytest.mark.parametrize("kind", CHANGES, ids=lambda kind: kind.__name__)
def test_every_option_of_the_signature_is_here(kind: type) -> None:
    own = kind.__init__ is not object.__init__ and kind.__init__ is not Objective.__init__
    names = set(inspect.signature(kind).parameters) - WIRING if own else set()
    if kind is TwoWayEncoder:  # it hands its options to both stacks
        assert names == {"options"}
        names = set(inspect.signature(LSTMEncoder).parameters) - WIRING
    if kind is LMHead:
        names -= {"hidden_size"}  # the encoder's
    assert set(CHANGES[kind]) == names


@pytest.fixture(scope="module")
def losses(files: Files, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[float]]:
    """The losses of a short training; the same options twice are trained once."""
    known: dict[str, list[float]] = {}

    def train(stage: str, **options: Any) -> list[float]:
        if (key := f"{stage} {options}") not in known:
            seen = Losses()
            trainer = trainer_of(tmp_path_factory.mktemp("run"), max_epochs=2, max_steps=STEPS, callbacks=[seen])
            pairs = {"response_column": "label"} if isinstance(options.get("objective"), Completion) else {}
            trainer.fit(module_of(stage, **options), datamodule=data_of(files, shared_cache, **pairs))
            known[key] = seen.values
        return known[key]

    return train


@pytest.mark.parametrize(("stage", "base", "change"), CASES)
def test_every_option_changes_the_training(
    stage: str, base: dict[str, Any], change: dict[str, Any], losses: Callable[..., list[float]]
) -> None:
    plain, other = losses(stage, **base), losses(stage, **change)
    assert len(plain) == len(other) == STEPS
    if change:
        assert max(abs(a - b) for a, b in zip(plain, other, strict=True)) > 1e-5
    else:
        assert abs(plain[0] - losses("finetune")[0]) > 0.1


def test_the_same_options_give_the_same_training(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    for stage in ("pretrain", "finetune"):
        runs = [Losses(), Losses()]
        for seen in runs:
            trainer = trainer_of(tmp_path, max_steps=STEPS, callbacks=[seen])
            trainer.fit(module_of(stage, dropout=True), datamodule=data_of(files, shared_cache))
        assert runs[0].values == runs[1].values


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        *[
            (stage, {"encoder": {name: 0.5}})
            for stage in ("pretrain", "finetune")
            for name in inspect.signature(LSTMEncoder).parameters
            if "dropout" in name
        ],
        ("finetune", {"head_dropout": 0.5}),
        ("finetune", {"objective": Supervised(0.3, [1.0, 2.0, 3.0], 2.0, 1.0)}),
        ("pretrain", {"objective": MLE(2.0, 1.0, 0.5)}),
        ("pretrain", {"objective": AdversarialMLE(2.0)}),
        ("finetune", {"objective": Mixed([AT(), VAT(), EntMin()])}),
        ("finetune", {"schedule": Constant(), "layer_decay": 0.1, "backprop_tokens": 5}),
    ],
    ids=lambda value: re.sub(r"<[\w.]+\.(\w+) object at \w+>", r"\1", str(value)),  # the same in every process
)
def test_what_only_training_needs_changes_nothing_in_evaluation(
    stage: str, change: dict[str, Any], files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    figures = []
    for options in ({}, change):
        trainer = trainer_of(tmp_path, limit_val_batches=1.0)
        module = module_of(stage, **options)
        figures.append(trainer.validate(module, datamodule=data_of(files, shared_cache), verbose=False))
    assert figures[0] == figures[1]
