"""Schedules against their papers' formulas by slow loops; groups and fused kernels against plain torch."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from lit_sft.models import ClassifierHead, LMHead, LSTMEncoder, Network
from lit_sft.optim import (
    Constant,
    OneCycle,
    RangeTest,
    Schedule,
    SlantedTriangular,
    WarmupCosine,
    build_optimizer,
    fuse,
)
from lit_sft.resumed_optimizer import take_options

SCHEDULES = [
    Constant(),
    WarmupCosine(),
    WarmupCosine(warmup=0.0, final=0.1),
    OneCycle(),
    OneCycle(warmup=0.0),
    SlantedTriangular(),
    SlantedTriangular(cut_frac=0.0),
    RangeTest(),
]


def curve(schedule: Schedule, total: int) -> list[float]:
    return [schedule(step, total) for step in range(total)]


@pytest.mark.parametrize(("warmup", "final", "total"), [(0.1, 0.0, 100), (0.25, 0.05, 43), (0.0, 0.2, 7)])
def test_warmup_cosine_rises_linearly_and_falls_by_the_formula(warmup: float, final: float, total: int) -> None:
    rise = int(warmup * total)
    expected = [(step + 1) / (rise + 1) for step in range(rise)]
    period = total - 1 - rise  # T_i, the last step included; eq. 5 with eta_max 1 and eta_min final
    expected += [final + (1 - final) / 2 * (1 + math.cos(math.pi * t / period)) for t in range(period + 1)]
    assert curve(WarmupCosine(warmup, final), total) == pytest.approx(expected, abs=1e-12)
    assert expected[rise] == 1.0
    assert expected[-1] == pytest.approx(final)


@pytest.mark.parametrize(("warmup", "total"), [(0.25, 100), (0.3, 39), (0.1, 11)])
def test_one_cycle_equals_torch(warmup: float, total: int) -> None:
    start_div, final_div = 25.0, 1e5
    rise = int(warmup * total)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    # Torch's rise ends at step pct_start * total - 1, and its last rate is divided by both numbers.
    reference = OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=total,
        pct_start=(rise + 1) / total,
        div_factor=start_div,
        final_div_factor=final_div / start_div,
        cycle_momentum=False,
    )
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < total:
            reference.step()
    assert curve(OneCycle(warmup, start_div, final_div), total) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("cut_frac", "ratio", "total"), [(0.1, 32.0, 100), (0.2, 10.0, 50), (0.5, 2.0, 8)])
def test_slanted_triangular_is_equation_3(cut_frac: float, ratio: float, total: int) -> None:
    expected = []
    for t in range(total):
        cut = math.floor(total * cut_frac)
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        expected.append((1 + p * (ratio - 1)) / ratio)
    assert curve(SlantedTriangular(cut_frac, ratio), total) == pytest.approx(expected, rel=1e-9)


def test_slanted_triangular_peaks_at_the_whole_step_below_its_share_and_falls_evenly() -> None:
    """Of 37 steps a tenth is 3.7, where the paper's own fall would go below the lowest rate."""
    rates = curve(SlantedTriangular(0.1, 32.0), 37)
    assert rates[:4] == pytest.approx(np.linspace(1 / 32, 1.0, 4).tolist())
    assert rates[3:] == pytest.approx(np.linspace(1.0, 1 / 32, 35)[:-1].tolist())  # the lowest, one step behind the end


@pytest.mark.parametrize(("start", "total"), [(1e-4, 200), (0.01, 7), (0.5, 2)])
def test_a_range_test_multiplies_the_rate_by_the_same_number_at_each_step(start: float, total: int) -> None:
    expected = [start]
    while len(expected) < total:
        expected.append(expected[-1] * (1 / start) ** (1 / (total - 1)))
    assert curve(RangeTest(start), total) == pytest.approx(expected, rel=1e-9)
    assert expected[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("start", [0.0, 1.0, -0.1])
def test_a_range_test_rises_from_above_nothing(start: float) -> None:
    with pytest.raises(ValueError, match="above 0 and below 1"):
        RangeTest(start)


def test_factors_are_shares_for_any_number_of_steps_and_the_last_one_stays() -> None:
    wrong = []
    for schedule, total in itertools.product(SCHEDULES, [0, 1, 2, 3, 15, 1000]):
        values = [schedule(step, total) for step in range(total + 5)]
        if not all(0.0 <= value <= 1.0 for value in values) or len(set(values[max(total - 1, 0) :])) != 1:
            wrong.append((type(schedule).__name__, total, values[:3], values[-6:]))
    assert wrong == []


def test_a_schedule_that_needs_no_total_goes_on_where_there_is_none() -> None:
    class InverseSqrt(Schedule):
        needs_total = False

        def factor(self, step: int, total_steps: int) -> float:
            return min((step + 1) / 100, math.sqrt(100 / (step + 1)))

    schedule = InverseSqrt()
    assert [schedule(step, 0) for step in (0, 10, 99, 999)] == pytest.approx([0.01, 0.11, 1.0, math.sqrt(0.1)])
    assert schedule(999, 100) == schedule(99, 100)  # a known end stays one


@pytest.mark.parametrize(
    "make", [lambda v: WarmupCosine(warmup=v), lambda v: OneCycle(warmup=v), lambda v: SlantedTriangular(cut_frac=v)]
)
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_share_out_of_range_is_rejected(make: Any, value: float) -> None:
    with pytest.raises(ValueError, match="share of the steps"):
        make(value)


@pytest.mark.parametrize("name", ["start_div", "final_div", "ratio"])
def test_no_rate_is_divided_by_zero(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} divides a rate: it is above 0, not 0"):
        (SlantedTriangular if name == "ratio" else OneCycle)(**{name: 0})


def network(tied: bool = True) -> Network:
    torch.manual_seed(0)
    encoder = LSTMEncoder(30, embedding_size=6, hidden_size=8, num_layers=2)
    head = LMHead(encoder.embedding, 8, tie_weights_up_to=30 if tied else 1)
    return Network(encoder, head, ClassifierHead(8, 3))


@pytest.mark.parametrize("tied", [True, False])
def test_groups_hold_every_parameter_once_with_rates_by_layer_and_no_decay_on_vectors(tied: bool) -> None:
    net = network(tied)
    factory = partial(torch.optim.AdamW, lr=0.5, weight_decay=0.3)
    optimizer = build_optimizer(factory, net.layer_groups(), decay=0.1)
    held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    assert held == Counter(id(p) for p in net.parameters())
    heights = {"embedding": 3, "layer1": 2, "layer2": 1, "head": 0}
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.5 * 0.1 ** heights[group["name"].removesuffix(".bias")])
        vectors = group["name"].endswith(".bias")
        assert group["weight_decay"] == (0.0 if vectors else 0.3)
        assert {p.ndim > 1 for p in group["params"]} == {not vectors}
        assert "lr_factor" not in group
    names = [group["name"] for group in optimizer.param_groups]
    assert names == ["embedding", "layer1", "layer1.bias", "layer2", "layer2.bias", "head", "head.bias"]


def test_the_rate_may_be_the_optimizers_default_and_frozen_parameters_are_left_out() -> None:
    net = network()
    net.encoder.embedding.weight.requires_grad_(False)
    optimizer = build_optimizer(torch.optim.Adagrad, net.layer_groups(), decay=1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}
    assert all(p is not net.encoder.embedding.weight for group in optimizer.param_groups for p in group["params"])


class Counting(torch.optim.SGD):
    """Keeps state in its groups, as Prodigy and schedule-free optimizers do."""

    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.0) -> None:
        super().__init__(params, lr=lr, momentum=momentum)
        for group in self.param_groups:
            group["k"] = 0


def test_what_an_optimizer_counts_in_its_groups_is_no_option() -> None:
    optimizer = Counting([nn.Parameter(torch.zeros(2))])
    LambdaLR(optimizer, lambda step: 1.0)
    fresh = [{k: v for k, v in optimizer.param_groups[0].items() if k != "params"} | {"momentum": 0.5}]
    optimizer.param_groups[0]["k"] = 9
    assert take_options(LambdaLR(optimizer, lambda step: 1.0), fresh) == ["momentum: 0 -> 0.5"]
    assert optimizer.param_groups[0]["k"] == 9


def test_the_step_count_of_an_optimizer_that_becomes_fused_goes_to_its_device() -> None:
    """A checkpoint's optimizer that wasn't fused has it on the CPU."""
    weight = nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = torch.optim.AdamW([weight, nn.Parameter(torch.zeros(2))], foreach=True)
    optimizer.state[weight]["step"] = torch.tensor(5.0)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    fresh = [{k: v for k, v in optimizer.param_groups[0].items() if k != "params"} | {"fused": True, "foreach": None}]
    assert set(take_options(scheduler, fresh)) == {"fused: None -> True", "foreach: True -> None"}
    assert optimizer.state[weight]["step"].device.type == "meta"
    assert len(optimizer.state) == 1


@pytest.mark.parametrize("factory", [torch.optim.AdamW, torch.optim.Adagrad])
def test_the_fused_kernel_is_used_and_takes_the_same_steps(factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network().double()
    twin = copy.deepcopy(net)
    fused = build_optimizer(partial(factory, lr=0.05), net.layer_groups(), 0.5)
    plain = build_optimizer(partial(factory, lr=0.05, foreach=False), twin.layer_groups(), 0.5)
    assert all(group["fused"] for group in fused.param_groups)
    assert not any(group["fused"] for group in plain.param_groups)
    name = f"_fused_{factory.__name__.lower()}_"
    calls = []
    kernel = getattr(torch, name)
    monkeypatch.setattr(torch, name, lambda *a, **k: calls.append(1) or kernel(*a, **k))
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        for one, other in zip(net.parameters(), twin.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator, dtype=torch.float64)
            other.grad = one.grad.clone()
        fused.step()
        plain.step()
    assert len(calls) == 20 * len(fused.param_groups)
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "choice", [{"fused": False}, {"foreach": True}, {"foreach": False}, {"differentiable": True}], ids=str
)
def test_the_users_choice_of_kernel_stays(choice: dict[str, bool]) -> None:
    optimizer = fuse(torch.optim.AdamW([nn.Parameter(torch.zeros(2))], **choice))
    (group,) = optimizer.param_groups
    assert not group["fused"]
    assert all(group[name] == value for name, value in choice.items())


def test_an_optimizer_without_a_fused_kernel_is_left_alone() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = fuse(torch.optim.RMSprop([parameter], lr=0.1))
    assert "fused" not in optimizer.param_groups[0]
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert (parameter < 1).all()


def test_fused_in_the_groups_leaves_gradient_scaling_to_the_trainer() -> None:
    optimizer = fuse(torch.optim.AdamW([nn.Parameter(torch.zeros(2))]))
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
