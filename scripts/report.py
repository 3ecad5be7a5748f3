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
VALS = ("full", "small")  # the validation set that chose, as scripts/baselines.py names it


def paired_difference(first: Seeds, second: Seeds) -> str:
    """Mean of ``first - second`` over the seeds that both have, with its 95% interval (Student's t)."""
    shared = sorted(set(first) & set(second))
    a, b = (np.array([figures[seed] for seed in shared]) for figures in (first, second))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    return f"{np.mean(a - b):+.1f} [{low:+.1f}, {high:+.1f}]"


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
    """A Markdown table: a line for each label count and method, columns for each validation set that chose."""
    cells = read(path)
    vals = [val for val in VALS if any(val == cell[0] for cell in cells)]
    head = ["labels a class", "method", "seeds"]
    for val in vals:
        head += [f"{title}, {val} val" for title in ("macro-F1", "accuracy", "pretrained minus it [95%]")]
    lines = [_line(head), _line(["---"] * len(head))]
    rows = {cell[1:] for cell in cells}
    for labels, method in sorted(rows, key=lambda row: (float("inf" if row[0] == "all" else row[0]), row[1])):
        row = [labels, method, str(max(len(cells[val, labels, method]["macro_f1"]) for val in vals))]
        for val in vals:
            f1, accuracy = (cells[val, labels, method][metric] for metric in ("macro_f1", "accuracy"))
            pretrained = cells[val, labels, "pretrained"]["macro_f1"]
            compared = f1 and pretrained and method != "pretrained"
            row += [_spread(f1), _spread(accuracy), paired_difference(pretrained, f1) if compared else ""]
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(seeds: Seeds) -> str:
    values = list(seeds.values())
    if not values:
        return ""
    spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.1f} ± {spread:.1f}"


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
