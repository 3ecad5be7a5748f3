"""A recipe's own ``metrics.json``, made of its stages' records, and the line that tells a result."""

from __future__ import annotations

from typing import Any

from lit_sft.runs import package_versions

TEST_KEYS = ("test", "test_interval", "test_clean", "test_clean_interval")  # what a test adds to a record
RECORD_KEYS = {*TEST_KEYS, "val", "contamination", "seed", "seconds", "versions"}  # a stage of that name would hide one
MAIN = ("accuracy", "macro_f1", "perplexity", "loss")  # the figures that are told in one line


def joined_record(stages: list[tuple[str, dict[str, Any]]], seconds: float) -> dict[str, Any]:
    """The record of a recipe: the last stage's test (or validation), and each stage's validation and speed by its name.

    Args:
        stages: names and records, in order.
        seconds: of the whole recipe.
    """
    last = stages[-1][1]
    split = "test" if "test" in last else "val"
    record: dict[str, Any] = {key: last[key] for key in (split, *TEST_KEYS, "contamination") if key in last}
    for name, stage in stages:
        figures = {f"val_{k}": v for k, v in stage["val"].items() if "/" not in k}
        record[name] = {**figures, "tokens_per_second": stage["tokens_per_second"], "seconds": stage["seconds"]}
        if stage.get("contamination") != record.get("contamination"):  # it read other text
            record[name]["contamination"] = stage.get("contamination")
    return record | {"seed": last["seed"], "seconds": seconds, "versions": package_versions()}


def told(record: dict[str, Any], split: str = "test") -> str:
    """A record's main figures and their intervals in one line, as in ``accuracy 0.853 [0.839, 0.867], loss ...``.

    Those of the clean part follow where it is not the full set.
    """
    intervals = record.get(f"{split}_interval") or {}
    parts = []
    for name in MAIN:
        if record[split].get(name) is not None:
            interval = intervals.get(name)
            around = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            parts.append(f"{name} {record[split][name]:.3f}{around}")
    line = ", ".join(parts)
    clean = record.get("test_clean", record[split])
    if split == "test" and any(clean.get(name) != record[split].get(name) for name in MAIN):
        line += f"; without copies of training documents: {told(record, 'test_clean')}"
    return line
