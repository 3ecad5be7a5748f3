"""Locked masks: their values, their axis, and what draws them."""

import pytest
import torch

from lit_sft.models.dropout import apply_mask, check_dropout, dropout_mask


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_mask_is_zero_with_probability_p_and_keeps_the_mean(p: float) -> None:
    mask = dropout_mask(p, (400, 1, 500))
    assert mask is not None
    assert mask.shape == (400, 1, 500)
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    # 200,000 draws: five standard deviations of a share
    assert (mask == 0).double().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / 200_000) ** 0.5)
    assert mask.mean().item() == pytest.approx(1.0, abs=5 * (p / (1 - p) / 200_000) ** 0.5)


def test_a_mask_differs_over_documents_and_over_units() -> None:
    mask = dropout_mask(0.5, (64, 1, 64))
    assert mask is not None
    kept = mask.squeeze(1) > 0  # (64, 64)
    assert len(kept.unique(dim=0)) == 64
    assert len(kept.unique(dim=1).T) == 64
    for dim in (0, 1):  # no document and no unit is dropped or kept as a whole: sixty-four fair coins
        assert kept.double().mean(dim).min() > 0.15
        assert kept.double().mean(dim).max() < 0.85


def test_one_mask_serves_all_time_steps() -> None:
    mask = dropout_mask(0.5, (8, 1, 16))
    dropped = apply_mask(torch.ones(8, 5, 16), mask)
    assert torch.equal(dropped, dropped[:, :1].expand(8, 5, 16))
    assert (dropped == 0).any()
    assert (dropped == 2).any()


def test_no_dropout_is_no_mask_and_draws_no_number() -> None:
    before = torch.get_rng_state()
    assert dropout_mask(0.0, (8, 1, 16)) is None
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(8, 5, 16)
    assert apply_mask(x, None) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_mask_is_applied_in_the_dtype_of_the_activations(dtype: torch.dtype) -> None:
    mask = dropout_mask(0.5, (8, 1, 16), dtype=torch.float32)
    assert apply_mask(torch.ones(8, 5, 16, dtype=dtype), mask).dtype == dtype


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_dropout_outside_its_range_is_rejected_by_name(p: float) -> None:
    with pytest.raises(ValueError, match=r"output_dropout=.* less than 1"):
        check_dropout("output_dropout", p)
