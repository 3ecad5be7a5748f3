"""A recipe's own ``metrics.json``, made of its stages' records."""

from __future__ import annotations

from typing import Any

from lit_sft.runs import package_versions

TEST_KEYS = ("test", "test_interval", "test_clean", "test_clean_interval")  # what a test adds to a record
RECORD_KEYS = {*TEST_KEYS, "val", "contamination", "seed", "seconds", "versions"}  # a stage of that name would hide one


def joined_record(stages: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The record of a recipe: the last stage's test (or validation), and each stage's validation and speed by its name.

    ``stages``: names and records, in order. ``seconds`` are those of their fits, including the time before a resume.
    """
    last = stages[-1][1]
    split = "test" if "test" in last else "val"
    record: dict[str, Any] = {key: last[key] for key in (split, *TEST_KEYS, "contamination") if key in last}
    for name, stage in stages:
        figures = {f"val_{k}": v for k, v in stage["val"].items() if "/" not in k}
        record[name] = {**figures, "tokens_per_second": stage["tokens_per_second"], "seconds": stage["seconds"]}
        if stage.get("contamination") != record.get("contamination"):  # it read other text
            record[name]["contamination"] = stage.get("contamination")
    seconds = sum(stage["seconds"] for _, stage in stages)
    return record | {"seed": last["seed"], "seconds": seconds, "versions": package_versions()}
