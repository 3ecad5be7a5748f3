"""A table of tested runs, row by row: errors with their intervals, the difference from one row, and what they cost.

    python scripts/table.py --out scripts/results/imdb_full.csv --reference plain \\
        'TF-IDF=logs/baselines-imdb-tfidf-all/version_0' 'plain=logs/imdb-finetune/version_*'

A row is NAME=RUN, where RUN is as scripts/paired.py takes it: a run's folder, a recipe's, a predictions file, or a
pattern whose runs are the seeds of one method. All must have been tested on the same documents. The intervals are over
documents (bootstrap). ``seconds`` is the wall-clock time of the runs, and ``pretrain_seconds`` that of the language
models that they started from, including any slowdown by other load; ``tokens_per_second`` is the fine-tuning speed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from one_line import in_one_line
from paired import error_intervals, paths_named, side
from report import line, write_figures

from lit_sft.checkpoints import names_in, read_config, stage_folders
from lit_sft.errors import UserError
from lit_sft.runs import read_record
from lit_sft.written_results import predictions_file

FIELDS = (
    *("row", "seeds", "documents", "val_error", "error", "error_std", "error_low", "error_high"),
    *("minus", "minus_low", "minus_high", "seconds", "pretrain_seconds", "tokens_per_second", "run"),
)


def costs(run: Path) -> dict[str, float]:
    """Seconds of a run and of the language models that it started from, its speed, and its validation error.

    Empty for what has no record of a fit: the linear model, an ensemble's predictions.
    """
    stages = stage_folders(run) if run.is_dir() else []
    folder = stages[-1] if stages else run
    record = read_record(folder)
    if "seconds" not in record:
        return {}
    found = {key: record[key] for key in ("seconds", "tokens_per_second")}
    if "accuracy" in record.get("val", {}):  # a fit may end before its first validation
        found["val_error"] = 100 * (1 - record["val"]["accuracy"])
    before = seconds_before(folder)
    return found if before is None else found | {"pretrain_seconds": before}


def seconds_before(folder: Path) -> float | None:
    """Total seconds of the runs that a run started from, directly or indirectly; None if one no longer exists."""
    runs = [folder]
    for run in runs:  # which grows meanwhile
        for name in names_in(read_config(run).get("model", {}).get("init_from")):
            start = Path(name).parent.parent  # of RUN/checkpoints/best.ckpt
            if not (start / "metrics.json").is_file():
                return None
            if start not in runs:  # two models may have started from one
                runs.append(start)
    return float(sum(read_record(run)["seconds"] for run in runs[1:]))


def rows_of(named: dict[str, str], reference: str) -> list[dict[str, Any]]:
    """The lines of the table, in the order of ``named``: a run or a pattern for each row's name."""
    runs = {name: side(pattern) for name, pattern in named.items()}
    figures = error_intervals(runs, reference)
    lines = []
    for name, pattern in named.items():
        paths = map(Path, paths_named(pattern))
        spent = [cost for path in paths if predictions_file(path).is_file() and (cost := costs(path))]
        known = set.intersection(*map(set, spent)) if spent else set()
        means = {key: float(np.mean([cost[key] for cost in spent])) for key in known}
        count = {"seeds": len(runs[name]), "documents": len(runs[name][0])}
        # error_intervals subtracts from the reference; here the sign is the row's own: below zero is fewer errors
        minus = {"minus": "minus", "minus_low": "minus_high", "minus_high": "minus_low"}
        turned = {key: -figures[name][of] for key, of in minus.items() if of in figures[name]}
        lines.append({"row": name, **count, **means, **figures[name], **turned, "run": pattern})
    return lines


def table(lines: list[dict[str, Any]], reference: str) -> str:
    """The lines as a Markdown table."""
    head = [
        "",
        "seeds",
        "validation error",
        "test error",
        "[95%]",
        f"minus {reference} [95%]",
        "minutes",
        "LM's minutes",
    ]
    shown = [line(head), line(["---"] * len(head))]
    for row in lines:
        spread = f" ± {row['error_std']:.1f}" if row["seeds"] > 1 else ""
        interval = f"[{row['error_low']:.2f}, {row['error_high']:.2f}]"
        cells = [row["row"], str(row["seeds"]), _number(row, "val_error", 1), f"{row['error']:.2f}{spread}", interval]
        cells.append("{minus:+.2f} [{minus_low:+.2f}, {minus_high:+.2f}]".format(**row) if "minus" in row else "")
        cells += [_number(row, key, 1, 60) for key in ("seconds", "pretrain_seconds")]
        shown.append(line(cells))
    return "\n".join(shown)


def _number(row: dict[str, Any], key: str, digits: int, over: float = 1.0) -> str:
    return f"{row[key] / over:.{digits}f}" if key in row else ""


def split_name(row: str) -> tuple[str, str]:
    """Split NAME=RUN; as either may contain a "=", it is split at the first one that an existing path follows."""
    parts = row.split("=")
    ways = [("=".join(parts[:at]), "=".join(parts[at:])) for at in range(1, len(parts))]
    return next((way for way in ways if paths_named(way[1])), (ways or [("", row)])[0])


def parser() -> argparse.ArgumentParser:
    """What it is called with."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("rows", nargs="+", metavar="NAME=RUN")
    options.add_argument("--reference", required=True, help="the row that the others are compared with")
    options.add_argument("--out", type=Path, required=True, help="the CSV")
    return options


def main() -> None:
    """Write the CSV and print the table."""
    arguments = parser().parse_args()
    named = dict(map(split_name, arguments.rows))
    if arguments.reference not in named or "" in named or len(named) < len(arguments.rows):
        raise UserError("rows are NAME=RUN, each name once, and --reference is the name of one of them")
    lines = rows_of(named, arguments.reference)
    write_figures(arguments.out, FIELDS, lines)
    print(table(lines, arguments.reference))


if __name__ == "__main__":
    in_one_line(main)
