"""The table of a results CSV: mean ± standard deviation over seeds, and the paired difference from the pretrained row.

python scripts/report.py scripts/results/pydocs.csv
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

Seeds = dict[int, float]


def paired_interval(first: Seeds, second: Seeds) -> tuple[float, float, float]:
    """Mean of ``first - second`` over the seeds that both have, and its 95% interval (Student's t)."""
    shared = sorted(set(first) & set(second))
    differences = np.array([first[seed] - second[seed] for seed in shared])
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return mean, mean - half, mean + half


def read(path: Path) -> dict[tuple[str, str, str], dict[str, Seeds]]:
    """Test figures in percent by (val, labels, method), then by metric and seed; a line repeated counts once."""
    found: dict[tuple[str, str, str], dict[str, Seeds]] = defaultdict(lambda: defaultdict(dict))
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["test_macro_f1"]:
                cell = found[row["val"], row["labels"], row["method"]]
                for metric in ("macro_f1", "accuracy"):
                    cell[metric][int(row["seed"])] = 100 * float(row[f"test_{metric}"])
    return found


def table(path: Path) -> str:
    """A Markdown table: a line for each validation set, label count and method."""
    cells = read(path)
    lines = [
        "| validation | labels a class | method | seeds | macro-F1 | accuracy | pretrained minus it, macro-F1 [95%] |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (val, labels, method), metrics in cells.items():
        f1, accuracy = metrics["macro_f1"], metrics["accuracy"]
        pretrained = cells.get((val, labels, "pretrained"))
        difference = ""
        if pretrained is not None and method != "pretrained":
            mean, low, high = paired_interval(pretrained["macro_f1"], f1)
            difference = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
        lines.append(
            f"| {val} | {labels} | {method} | {len(f1)} | {_spread(f1)} | {_spread(accuracy)} | {difference} |"
        )
    return "\n".join(lines)


def _spread(seeds: Seeds) -> str:
    values = list(seeds.values())
    spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.1f} ± {spread:.1f}"


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
