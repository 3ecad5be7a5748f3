"""Label efficiency: each method's error by number of labels, as a picture and as the equivalent labels from scratch.

    python scripts/curve.py scripts/results/imdb.csv --classes 2      # writes scripts/results/imdb.curve.png

Reads a CSV of scripts/baselines.py. For each label count of the pretrained rows, the table gives the number of labels
that the from-scratch rows (or another ``--method``) need for the same mean error, interpolated between the two measured
points around it, linearly in the logarithms of error and labels (learning curves are about power laws, Hestness et al.
2017). Its 95% interval is over the seeds of both methods, whose mean errors are drawn from Student's t distributions;
there is none with one seed. If the curve never has this error, the table gives only a bound (``>``, ``<``).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from one_line import in_one_line
from report import line, rows_tested, spread

from lit_sft.errors import UserError

Curve = dict[int, np.ndarray]  # errors in percent, one a seed, by the number of labels in all
DRAWS = 10_000
LEAST = 1e-3  # percent: an error of 0 has no logarithm


def curves(path: Path, classes: int, everything: int, val: str = "full") -> dict[str, Curve]:
    """Each method's test errors.

    Args:
        path: the CSV.
        classes: the number of classes, since the CSV's label counts are per class.
        everything: the number of labels that ``all`` stands for.
        val: the validation set by which the options were chosen.
    """
    found: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows_tested(path):
        if row["val"] == val:
            count = everything if row["labels"] == "all" else classes * int(row["labels"])
            found[row["method"]][count][row["seed"]] = 100 * (1 - float(row["test_accuracy"]))
    return {
        method: {n: np.array(list(seeds.values())) for n, seeds in sorted(counts.items())}
        for method, counts in found.items()
    }


def labels_for(error: float, counts: np.ndarray, errors: np.ndarray) -> float:
    """The number of labels at which a curve reaches an error: infinite if it never does, 0 if it starts below.

    counts (points,), ascending, and the curve's errors at them (points,). If the curve is not monotonic, the first
    crossing counts.
    """
    below = np.flatnonzero(errors <= error)
    if len(below) == 0:
        return np.inf
    after = int(below[0])
    if after == 0:
        return float(counts[0]) if errors[0] == error else 0.0
    before, there, goal = np.log(np.maximum([errors[after - 1], errors[after], error], LEAST))
    share = (before - goal) / (before - there)
    low, high = np.log(counts[after - 1]), np.log(counts[after])
    return min(float(np.exp(low + share * (high - low))), float(counts[after]))  # a rounding error would be beyond it


def equivalent(pretrained: np.ndarray, other: Curve, seed: int = 0) -> tuple[float, float, float]:
    """The number of labels at which another method's curve has the same mean error as these seeds; its 95% interval."""
    counts = np.array(list(other))
    means = np.array([errors.mean() for errors in other.values()])
    random = np.random.default_rng(seed)

    def drawn(errors: np.ndarray) -> float:
        if len(errors) == 1:
            return float(errors[0])
        deviation = errors.std(ddof=1) / np.sqrt(len(errors))
        return float(errors.mean() + deviation * random.standard_t(len(errors) - 1))

    several = [
        labels_for(drawn(pretrained), counts, np.array([drawn(errors) for errors in other.values()]))
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(several, [0.025, 0.975], method="nearest")  # doesn't interpolate towards infinity
    return labels_for(float(pretrained.mean()), counts, means), float(low), float(high)


def table(found: dict[str, Curve], method: str) -> str:
    """A Markdown table: a line for each label count of the pretrained rows."""
    others = [name for name in found if name != "pretrained"]
    lines = [line(["labels", "pretrained", *others, f"worth so many labels of {method} [95%]"])]
    lines.append(line(["---"] * (len(others) + 3)))
    most = max(found[method])
    for count, errors in found["pretrained"].items():
        row = [f"{count:,}", spread(errors)]
        row += [spread(found[name][count]) if count in found[name] else "" for name in others]
        shown = [_labels(number, min(found[method]), most) for number in equivalent(errors, found[method])]
        lines.append(line([*row, shown[0] + (f" [{shown[1]}, {shown[2]}]" if len(errors) > 1 else "")]))
    return "\n".join(lines)


def _labels(number: float, least: int, most: int) -> str:
    if number > most:
        return f"> {most:,}"
    return f"{number:,.0f}" if number >= least else f"< {least:,}"


def draw(found: dict[str, Curve], path: Path) -> None:
    """The picture: mean errors over the number of labels, with their standard deviations over seeds."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("the picture needs matplotlib: pip install -c constraints.txt -e '.[plot]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for method, curve in found.items():
        means = [errors.mean() for errors in curve.values()]
        spreads = [errors.std(ddof=1) if len(errors) > 1 else 0.0 for errors in curve.values()]
        axes.errorbar(list(curve), means, spreads, marker="o", markersize=4, capsize=3, label=method)
    axes.set(xscale="log", xlabel="labels", ylabel="test error, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("results", type=Path, help="a CSV of scripts/baselines.py")
    options.add_argument("--classes", type=int, required=True, help="how many there are")
    options.add_argument("--all", type=int, default=0, help="how many labels 'all' is; 0 leaves these rows out")
    options.add_argument("--method", default="scratch", help="whose labels are counted")
    options.add_argument("--out", type=Path, help="the picture (default: beside the CSV, as NAME.curve.png)")
    return options


def main() -> None:
    """Draw, and print the table."""
    arguments = parser().parse_args()
    found = curves(arguments.results, arguments.classes, arguments.all)
    found = {name: {n: errors for n, errors in curve.items() if n > 0} for name, curve in found.items()}
    if missing := {"pretrained", arguments.method} - {name for name, curve in found.items() if curve}:
        raise UserError(f"{arguments.results} has no tested rows of {', '.join(sorted(missing))}")
    draw(found, arguments.out or arguments.results.with_suffix(".curve.png"))
    print(table(found, arguments.method))


if __name__ == "__main__":
    in_one_line(main)
