"""Label efficiency: the crossing of a curve in closed form, intervals that hold it, and the picture."""

import math
from pathlib import Path

import numpy as np
import pytest
from baselines import FIELDS
from curve import curves, draw, equivalent, labels_for, table
from report import append_line
from scipy import stats

COUNTS = np.array([10, 100, 1000])


@pytest.mark.parametrize(
    ("error", "labels"),
    [(40.0, 10.0), (20 * 2**0.5, 10**1.5), (20 * 2**0.25, 10**1.75), (20.0, 100.0), (10.0, 10**2.5), (5.0, 1000.0)],
)
def test_a_crossing_lies_on_the_power_law_between_two_points(error: float, labels: float) -> None:
    assert labels_for(error, COUNTS, np.array([40.0, 20.0, 5.0])) == pytest.approx(labels)


def test_beyond_the_curve_the_number_is_only_bounded() -> None:
    assert labels_for(9.9, COUNTS, np.array([40.0, 20.0, 10.0])) == np.inf
    assert labels_for(41.0, COUNTS, np.array([40.0, 20.0, 10.0])) == 0.0


@pytest.mark.parametrize("last", [70, 100, 110, 170, 220])
def test_an_error_at_the_curves_last_point_is_that_number_of_labels(last: int) -> None:
    """And not infinity, where the exponential of the logarithm lies above it."""
    assert np.exp(np.log(last)) > last
    assert labels_for(10.0, np.array([20, last]), np.array([20.0, 10.0])) == last


def test_the_first_crossing_counts_where_the_curve_rises_again() -> None:
    assert labels_for(20.0, COUNTS, np.array([30.0, 20.0, 25.0])) == pytest.approx(100.0)


def test_an_interval_has_no_width_without_a_spread_and_holds_the_crossing_with_one() -> None:
    other = {10: np.full(5, 40.0), 100: np.full(5, 20.0), 1000: np.full(5, 10.0)}
    assert equivalent(np.full(5, 25.0), other) == pytest.approx((10 * 1.6 ** (1 / math.log10(2)),) * 3)
    errors = np.array([24.0, 25.0, 26.0, 25.5, 24.5])
    mean, low, high = equivalent(errors, other)
    ends = stats.t.interval(0.95, 4, errors.mean(), stats.sem(errors))  # the curve itself has no spread
    assert mean == pytest.approx(labels_for(25.0, COUNTS, np.array([40.0, 20.0, 10.0])))
    expected = [labels_for(end, COUNTS, np.array([40.0, 20.0, 10.0])) for end in reversed(ends)]
    assert [low, high] == pytest.approx(expected, rel=0.02)


def test_the_table_and_the_picture_of_a_csv(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "set.csv"
    errors = {"pretrained": {"5": 30.0, "all": 8.0}, "scratch": {"5": 40.0, "50": 20.0, "all": 10.0}}
    for method, counts in errors.items():
        for labels, error in counts.items():
            for seed in range(2):
                row = dict.fromkeys(FIELDS, "") | {"method": method, "labels": labels, "val": "full", "seed": str(seed)}
                append_line(path, row | {"test_macro_f1": "0.5", "test_accuracy": str(1 - error / 100)})
        append_line(path, dict.fromkeys(FIELDS, "") | {"method": method, "labels": "5", "val": "full", "seed": "0"})
    found = curves(path, classes=2, everything=1000)
    assert list(found["scratch"]) == [10, 100, 1000]
    lines = table(found, "scratch").splitlines()
    assert lines[0] == "| labels | pretrained | scratch | worth so many labels of scratch [95%] |"
    assert lines[2] == "| 10 | 30.0 ± 0.0 | 40.0 ± 0.0 | 26 [26, 26] |"
    assert lines[3] == "| 1,000 | 8.0 ± 0.0 | 10.0 ± 0.0 | > 1,000 [> 1,000, > 1,000] |"
    draw(found, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
