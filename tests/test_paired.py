"""The paired test and its intervals, against scipy's on the same predictions; and what isn't compared."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from one_line import in_one_line
from paired import clean_parts, compared, intervals, main, mcnemar, randomisation, side
from scipy import stats
from sklearn.metrics import f1_score

from lit_sft.errors import UserError
from lit_sft.evaluation.intervals import percentiles
from lit_sft.evaluation.predictions import FILE, Predictions

SIZE, CLASSES = 90, 3


def run(accuracy: float, seed: int, size: int = SIZE) -> Predictions:
    """A run on the one test set, which is right about a document in ``accuracy`` of the cases."""
    labels = np.random.default_rng(0).choice(CLASSES, size, p=[0.6, 0.3, 0.1])
    random = np.random.default_rng((1, seed))
    predicted = np.where(random.random(size) < accuracy, labels, random.integers(CLASSES, size=size))
    probabilities = np.where(np.eye(CLASSES)[predicted] == 1, 0.8, 0.1)
    losses = -np.log(probabilities[np.arange(size), labels]) + random.random(size)
    keys = np.arange(size, dtype=np.uint64)
    return Predictions(["a", "b", "c"], np.arange(size), keys, labels, predicted, losses, probabilities)


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Held to scikit-learn's, and quicker, as it is called thousands of times."""
    confusion = np.bincount(labels * CLASSES + predicted, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    met = confusion.sum(0) + confusion.sum(1)
    return float(np.mean(2 * confusion.diagonal()[met > 0] / met[met > 0]))


def test_the_reference_is_right() -> None:
    one = run(0.7, 3)
    assert macro_f1(one.labels, one.predicted) == pytest.approx(f1_score(one.labels, one.predicted, average="macro"))


def test_accuracy_is_tested_by_the_binomial_of_the_documents_right_in_one_run_alone() -> None:
    a, b = run(0.8, 1), run(0.6, 2)
    p, only_a, only_b = mcnemar(a, b)
    right_a, right_b = a.predicted == a.labels, b.predicted == b.labels
    assert (only_a, only_b) == ((right_a & ~right_b).sum(), (right_b & ~right_a).sum())
    n, k = only_a + only_b, min(only_a, only_b)
    assert p == pytest.approx(2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert mcnemar(a, a) == (1.0, 0, 0)


@pytest.mark.parametrize(("a", "b"), [(0.8, 0.6), (0.7, 0.68)])
def test_randomisation_equals_scipys_permutation_of_samples(a: float, b: float) -> None:
    """Within four standard errors: 4,000 tosses here, 2,000 there, where the smaller tail is estimated and doubled."""
    one, other = run(a, 3), run(b, 4)
    found = randomisation([one], [other], number=4000)

    def expected(x: np.ndarray, y: np.ndarray, statistic: object) -> float:
        options = {"permutation_type": "samples", "vectorized": False, "n_resamples": 2000, "rng": 0}
        return float(stats.permutation_test((x, y), statistic, **options).pvalue)  # type: ignore[arg-type]

    labels, predicted, losses = one.labels, (one.predicted, other.predicted), (one.losses, other.losses)
    for name, p in {
        "macro_f1": expected(*predicted, lambda x, y: macro_f1(labels, x) - macro_f1(labels, y)),
        "loss": expected(*losses, lambda x, y: x.mean() - y.mean()),
    }.items():
        error = math.sqrt(max(p * (1 - p), 1e-3) / 4000 + p * (2 - p) / 2000)
        assert found[name] == pytest.approx(p, abs=4 * error)


def test_the_interval_of_the_difference_equals_scipys_paired_bootstrap() -> None:
    """Each border within 0.35 standard errors: 2,000 resamples move one by 0.06."""
    a, b = run(0.8, 1), run(0.6, 2)
    found = intervals([a], [b])
    labels = a.labels
    for name, statistic in {
        "accuracy": lambda i: (a.predicted[i] == labels[i]).mean() - (b.predicted[i] == labels[i]).mean(),
        "loss": lambda i: a.losses[i].mean() - b.losses[i].mean(),
    }.items():
        everything = (np.arange(SIZE),)
        expected = stats.bootstrap(
            everything, statistic, method="percentile", vectorized=False, n_resamples=2000, rng=0
        )
        over_documents, over_both = found[name]
        assert over_documents == pytest.approx(list(expected.confidence_interval), abs=0.35 * expected.standard_error)
        assert over_both == over_documents  # one seed a side


def test_seeds_are_drawn_apart_from_documents_and_from_each_other() -> None:
    a, b = [run(accuracy, seed) for seed, accuracy in enumerate((0.5, 0.9, 0.7))], [run(0.6, 9), run(0.8, 10)]
    over_documents, over_both = intervals(a, b)["macro_f1"]
    random = np.random.default_rng(5)
    drawn = []
    for _ in range(1000):
        i = random.integers(SIZE, size=SIZE)
        means = []
        for runs in (a, b):
            chosen = [runs[j] for j in random.integers(len(runs), size=len(runs))]
            means.append(np.mean([macro_f1(r.labels[i], r.predicted[i]) for r in chosen]))
        drawn.append(means[0] - means[1])
    assert over_both == pytest.approx(percentiles(np.array(drawn)), abs=0.45 * np.std(drawn))
    assert over_both is not None
    assert over_documents is not None
    assert over_both[0] < over_documents[0] < over_documents[1] < over_both[1]


def test_the_table_tells_both_sides_and_what_was_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, accuracy in (("good", 0.9), ("bad", 0.5)):
        for seed in range(2):
            run(accuracy, seed).write(tmp_path / name / f"version_{seed}" / FILE)
    (tmp_path / "bad" / "version_2").mkdir()
    sides = [str(tmp_path / name / "version_*") for name in ("good", "bad")]
    monkeypatch.setattr(sys, "argv", ["paired.py", *sides])
    main()
    left_out, *lines = capsys.readouterr().out.splitlines()
    assert left_out.endswith("1 of 3 runs were not tested, and are left out")
    assert lines[0] == f"{SIZE} documents; runs: 2 of A, 2 of B"
    accuracy = np.mean([(run(0.9, seed).predicted == run(0.9, seed).labels).mean() for seed in range(2)])
    assert lines[2].startswith(f"accuracy  {accuracy:>9.4f}")
    assert all(line.endswith("0.0001") for line in lines[2:])
    one = compared([run(0.9, 0)], [run(0.5, 0)])
    assert "right in one run alone" in one
    assert "and over seeds" not in one
    assert compared([run(0.9, 0)], [run(0.5, 0), run(0.5, 1)]).splitlines()[2].endswith(" -")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": np.arange(SIZE, dtype=np.uint64)[::-1]}, "tested on different documents (90 of 90 differ)"),
        ({"documents": np.arange(SIZE) + 1}, "tested on different documents"),
        ({"label_names": ["a", "c", "b"]}, "the runs have the labels ['a', 'b', 'c'] and ['a', 'c', 'b']"),
        ({"labels": np.zeros(SIZE, dtype=np.int64)}, "documents differ between the runs"),
    ],
)
def test_runs_of_different_tests_are_refused_in_one_line(
    change: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(0.8, 1).write(tmp_path / "a" / FILE)
    replace(run(0.8, 1), **change).write(tmp_path / "b" / FILE)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "argv", ["paired.py", str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(SystemExit) as refused:
        in_one_line(main)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_run_that_is_not_there_or_not_tested_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run"):
        side(str(tmp_path / "absent*"))
    (tmp_path / "untested").mkdir()
    with pytest.raises(UserError, match="a test of the run writes it"):
        side(str(tmp_path / "untested"))
    run(0.8, 1, 40).write(tmp_path / "run-1" / FILE)
    run(0.8, 1, 50).write(tmp_path / "run-2" / FILE)
    with pytest.raises(UserError, match="40 and 50 documents"):
        side(str(tmp_path / "run-*"))


def test_a_folder_with_brackets_is_itself_and_no_pattern(tmp_path: Path) -> None:
    for name, seed in (("run[01]", 2), ("run0", 3)):
        (tmp_path / name).mkdir()
        run(0.7, seed).write(tmp_path / name / FILE)
    (only,) = side(str(tmp_path / "run[01]"))
    assert (only.predicted == run(0.7, 2).predicted).all()


def test_runs_of_one_seed_are_no_two_seeds_of_a_method(tmp_path: Path) -> None:
    for version, seed in enumerate((0, 1, 1)):  # a search that chose other options has run the last one
        run(0.8, version).write(tmp_path / f"version_{version}" / FILE)
        (tmp_path / f"version_{version}" / "metrics.json").write_text(json.dumps({"seed": seed}))
    assert len(side(str(tmp_path / "version_[01]"))) == 2
    with pytest.raises(UserError, match=r"version_\*: seed 1 was tested twice, in .*version_1 and .*version_2: name"):
        side(str(tmp_path / "version_*"))


def test_the_clean_part_is_what_no_run_has_seen() -> None:
    a, b = run(0.8, 1), run(0.6, 2)
    seen_a, seen_b = np.arange(SIZE) < 10, np.arange(SIZE) >= 80
    (one,), (other,) = clean_parts([replace(a, clean=~seen_a)], [replace(b, clean=~seen_b)])
    assert one.documents.tolist() == other.documents.tolist() == list(range(10, 80))
    with pytest.raises(UserError, match="isn't known"):
        clean_parts([a], [replace(b, clean=~seen_b)])
    with pytest.raises(UserError, match="of every test document some run has seen a copy"):
        clean_parts([replace(a, clean=seen_b)], [replace(b, clean=~seen_b)])
