"""The table of a results CSV: mean ± standard deviation over seeds, and the paired difference from the pretrained row.

    python scripts/report.py scripts/results/pydocs.csv

If there is a ``NAME.intervals.csv`` beside the CSV, the columns are macro-F1 and error, and the intervals in brackets
are over the test documents (bootstrap), where a document's error is its mean over the seeds (a row has no intervals if
that file has none for it, or those of other runs). Otherwise the columns are macro-F1 and accuracy, and the interval of
the difference is over the seeds (Student's t).
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from one_line import in_one_line
from scipy import stats

from lit_sft.atomic import write_atomically
from lit_sft.errors import UserError

Seeds = dict[int, float]
VALS = ("full", "small")  # the validation set that chose, as scripts/baselines.py names it
ROUNDED = 0.01  # errors in percent that differ by less are those of the same runs


def paired_difference(first: Seeds, second: Seeds) -> str:
    """Mean of ``first - second`` over the seeds that both have, with its 95% interval (Student's t).

    Of one seed there is no interval, and of none no difference.
    """
    shared = sorted(set(first) & set(second))
    if not shared:
        return ""
    a, b = (np.array([figures[seed] for seed in shared]) for figures in (first, second))
    if len(shared) == 1:
        return f"{np.mean(a - b):+.1f}"
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    return f"{np.mean(a - b):+.1f} [{low:+.1f}, {high:+.1f}]"


def read_lines(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV, or none where there is no file yet.

    Raises:
        UserError: its last line was cut off.
    """
    return list(csv.DictReader(io.StringIO(_whole(path), newline="")))


def _whole(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    if text and not text.endswith("\n"):
        raise UserError(f"{path}: its last line is cut off: take it out")
    return text


def append_line(path: Path, row: dict[str, str]) -> None:
    """Append a line to a CSV, under a header if it is the first, before the next run starts; its columns stay.

    Raises:
        UserError: its last line was cut off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = _whole(path)
    columns = next(csv.reader(before.splitlines())) if before else row
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n", extrasaction="ignore")
        if not before:
            writer.writeheader()
        writer.writerow(row)


def rows_tested(path: Path) -> list[dict[str, str]]:
    """The tested runs of a CSV of scripts/baselines.py, one a cell: a line repeated counts once.

    Raises:
        UserError: there is none; the seeds of a row of the table ran with different options; or rows that stand beside
            each other did with different configs, or from different pretrainings of ``--init_from``.
    """
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    options: dict[tuple[str, ...], str] = {}
    beside: dict[tuple[str, ...], dict[str, str]] = {}
    for row in read_lines(path):
        if row.get("test_macro_f1"):
            cell = (row["val"], row["labels"], row["method"])
            config = f"config {row['config']}" if row.get("config") else ""
            ran = " ".join(part for part in (row.get("options"), row.get("start"), config) if part)
            if options.setdefault(cell, ran) != ran:
                raise UserError(
                    f"{path}: the seeds of {row['method']} with {row['labels']} labels ran with different options, "
                    f"{options[cell]} and {ran}: take the lines of one of them out"
                )
            for what in ("config", "start"):
                if not row.get(what):  # without a start: from scratch, the linear model, one of its own
                    continue
                other = beside.setdefault((*cell[:2], what), row)
                if other[what] != row[what]:
                    raise UserError(
                        f"{path}: with {row['labels']} labels {other['method']} ran with {what} {other[what]} and "
                        f"{row['method']} with {row[what]}: take the lines of one of them out"
                    )
            rows[*cell, row["seed"]] = row
    if not rows:
        raise UserError(f"{path}: no such results, or no tested row in them")
    return list(rows.values())


def read(path: Path) -> dict[tuple[str, str, str], dict[str, Seeds]]:
    """Test figures in percent by (val, labels, method), then by metric and seed."""
    found: dict[tuple[str, str, str], dict[str, Seeds]] = defaultdict(lambda: defaultdict(dict))
    for row in rows_tested(path):
        cell = found[row["val"], row["labels"], row["method"]]
        for metric in ("macro_f1", "accuracy"):
            cell[metric][int(row["seed"])] = 100 * float(row[f"test_{metric}"])
    return found


def write_figures(path: Path, fields: Sequence[str], lines: Iterable[dict[str, Any]]) -> None:
    """Write a CSV whole: numbers with five digits, which a table rounds; NaN (of one seed) as nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in lines:
        kept = {k: v for k, v in row.items() if v == v}
        writer.writerow({k: f"{v:.5f}" if isinstance(v, float) else v for k, v in kept.items()})
    write_atomically(path, text.getvalue())


def table(path: Path) -> str:
    """A Markdown table: a line for each label count and method, columns for each validation set that chose."""
    cells = read(path)
    if intervals_file(path).is_file():
        return error_table(intervals_file(path), cells)
    vals = [val for val in VALS if any(val == cell[0] for cell in cells)]
    head = ["labels a class", "method", "seeds"]
    for val in vals:
        head += [f"{title}, {val} val" for title in ("macro-F1", "accuracy", "pretrained minus it [95%]")]
    lines = [line(head), line(["---"] * len(head))]
    rows = {cell[1:3] for cell in cells}
    for labels, method in sorted(rows, key=_in_order):
        row = [labels, method, str(max(len(cells[val, labels, method]["macro_f1"]) for val in vals))]
        for val in vals:
            f1, accuracy = (cells[val, labels, method][metric] for metric in ("macro_f1", "accuracy"))
            pretrained = cells[val, labels, "pretrained"]["macro_f1"]
            compared = f1 and pretrained and method != "pretrained"
            row += [
                spread(list(f1.values())),
                spread(list(accuracy.values())),
                paired_difference(pretrained, f1) if compared else "",
            ]
        lines.append(line(row))
    return "\n".join(lines)


def intervals_file(path: Path) -> Path:
    """Where the intervals over documents of a results CSV stand."""
    return path.with_suffix(".intervals.csv")


def error_table(path: Path, figures_of: dict[tuple[str, str, str], dict[str, Seeds]]) -> str:
    """A Markdown table of an intervals CSV, errors in percent, and of the figures that :func:`read` has found.

    A line for each label count and method. Where the intervals are of other runs than the figures, as those of runs
    that are gone, or there are none, the errors are those of the figures, without them.
    """
    rows = {(row["val"], row["labels"], row["method"]): row for row in read_lines(path)}
    found = dict(figures_of)
    whole = {cell: row for cell, row in rows.items() if cell in found and _is_of(row, found[cell]["accuracy"])}
    vals = [val for val in VALS if any(val == cell[0] for cell in found)]
    head = ["labels a class", "method", "seeds"]
    for val in vals:
        of = f", {val} val" if len(vals) > 1 else ""
        head += [f"macro-F1{of}", f"error{of}", f"[95% over documents]{of}", f"pretrained minus it [95%]{of}"]
    lines = [line(head), line(["---"] * len(head))]
    for labels, method in sorted({cell[1:] for cell in found}, key=_in_order):
        cells = [(val, labels, method) for val in vals]
        shown = [labels, method, str(max(len(found[cell]["accuracy"]) for cell in cells if cell in found))]
        for cell in cells:
            own, reference = whole.get(cell), (*cell[:2], "pretrained")
            paired = reference not in found or (reference in whole and _is_from(whole[reference], own))
            shown += _error_cells(found[cell], own, paired) if cell in found else [""] * 4
        lines.append(line(shown))
    return "\n".join(lines)


def _is_of(row: dict[str, str], accuracies: Seeds) -> bool:
    """Whether a line of the intervals CSV is of these runs, and not of others that earlier options gave."""
    error = 100 - float(np.mean(list(accuracies.values())))
    return len(accuracies) == int(row["seeds"]) and abs(float(row["error"]) - error) < ROUNDED


def _is_from(reference: dict[str, str], row: dict[str, str] | None) -> bool:
    """Whether the difference in a line of the intervals CSV is from this line of ``pretrained``."""
    if row is None or not row["minus"]:
        return False
    return abs(float(reference["error"]) - float(row["error"]) - float(row["minus"])) < ROUNDED


def _error_cells(figures: dict[str, Seeds], row: dict[str, str] | None, paired: bool) -> list[str]:
    """Macro-F1, error, its interval and the difference of a line of the table.

    Args:
        figures: test figures by metric and seed.
        row: the line of the intervals CSV, if it is of these runs.
        paired: whether the difference in it is from the runs of ``pretrained`` that the table has.
    """
    f1 = spread(list(figures["macro_f1"].values()))
    if row is None:
        return [f1, spread([100 - accuracy for accuracy in figures["accuracy"].values()]), "", ""]
    given = {k: float(v) for k, v in row.items() if k.startswith(("error", "minus")) and v}
    known = {"error_std": np.nan} | given  # of one seed there is none
    return [
        f1,
        "{error:.1f} ± {error_std:.1f}".format(**known).removesuffix(" ± nan"),
        "[{error_low:.1f}, {error_high:.1f}]".format(**known),
        "{minus:+.1f} [{minus_low:+.1f}, {minus_high:+.1f}]".format(**known) if paired and "minus" in known else "",
    ]


def _in_order(row: tuple[str, str]) -> tuple[float, str]:
    return float("inf" if row[0] == "all" else row[0]), row[1]


def line(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float] | np.ndarray) -> str:
    """Mean ± standard deviation over seeds, or the one value; nothing where there is none."""
    if len(values) == 0:
        return ""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def parser() -> argparse.ArgumentParser:
    """What it is called with."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("results", type=Path, help="a CSV of scripts/baselines.py")
    return options


def main() -> None:
    """Print the table."""
    arguments = parser().parse_args()
    print(table(arguments.results))


if __name__ == "__main__":
    in_one_line(main)
