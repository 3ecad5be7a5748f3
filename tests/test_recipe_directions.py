"""Recipes whose last stage starts from two: pretrained forward and backward, then one classifier on both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Configs, Fit, read
from refusals import one_line

from lit_sft.checkpoints import read_checkpoint

RUN = Path("logs/tiny/version_0")
ENCODER = {"class_path": "lit_sft.models.TwoWayEncoder", "init_args": {"embedding_size": 8, "hidden_size": 12}}
Stages = list[dict[str, Any]]


def two_ways() -> Stages:
    short = {"config": "tiny/pretrain.yaml", "trainer": {"limit_train_batches": 4}}
    return [
        {"name": "ahead", **short},
        {"name": "back", **short, "init_from": None, "data": {"direction": "backward"}},
        {
            "name": "tuned",
            "config": "tiny/finetune.yaml",
            "init_from": ["back", "ahead"],
            "model": {"encoder": ENCODER},
        },
    ]


def write(configs: Configs, stages: Stages) -> None:
    configs.recipe.write_text(yaml.safe_dump({"stages": stages}))


def start_of(command: list[str]) -> str | None:
    return command[command.index("--model.init_from") + 1] if "--model.init_from" in command else None


def test_responses_after_a_backward_pretraining_are_refused_before_it_runs(
    fit_recipe: Fit, calls: list[list[str]], configs: Configs, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [json.dumps({"prompt": f"say {i}", "response": f"it is {i}"}) for i in range(40)]
    pairs.write_text("\n".join(rows))
    data = {"labeled": str(pairs), "text_column": "prompt", "response_column": "response", "label_column": None}
    both = {"labeled": str(pairs), "val": None, "test": None, "unlabeled": None, **data}
    objective = {"class_path": "lit_sft.objectives.Completion"}
    back = {"name": "back", "config": "tiny/pretrain.yaml", "data": {**both, "direction": "backward"}}
    answer = {"name": "answer", "config": "tiny/finetune.yaml", "data": both, "model": {"objective": objective}}
    write(configs, [back, answer])
    one_line(fit_recipe(), "stage answer: a response is written from its first word on")
    assert calls == []


def test_a_stage_starts_from_two_that_ran_before_it(fit_recipe: Fit, calls: list[list[str]], configs: Configs) -> None:
    write(configs, two_ways())
    result = fit_recipe()
    assert result.code == 0, result.err
    starts = [start_of(command) for command in calls]
    ends = [str(RUN / name / "checkpoints/best.ckpt") for name in ("back", "ahead")]
    assert starts == [None, None, json.dumps(ends), None]
    assert "loaded 10 tensors, 2 start fresh" in result.log
    directions = {name: read_checkpoint(RUN / name / "checkpoints/best.ckpt").direction for name in ("ahead", "back")}
    assert directions == {"ahead": "forward", "back": "backward"}
    record = read(RUN / "metrics.json")
    assert {"ahead", "back", "tuned", "test"} <= set(record)

    shutil.rmtree(RUN / "tuned")
    (RUN / "metrics.json").unlink()
    assert fit_recipe("--ckpt_path", "last").code == 0
    assert [start_of(command) for command in calls] == [json.dumps(ends), None]

    # one stage alone starts from the newest that there are; what the user names wins
    assert fit_recipe("--stages", "tuned").code == 0
    assert start_of(calls[0]) == json.dumps([str(RUN / name) for name in ("back", "ahead")])
    assert fit_recipe("--stages", "tuned", "--model.init_from", f"{RUN / 'ahead'},{RUN / 'back'}").code == 0
    assert start_of(calls[0]) == json.dumps(ends[::-1])
    assert fit_recipe("--stages", "back,tuned").code == 0
    assert start_of(calls[0]) is None
    assert start_of(calls[1]) == json.dumps(["logs/tiny/version_3/back/checkpoints/best.ckpt", str(RUN / "ahead")])
    assert read_checkpoint(Path("logs/tiny/version_3/tuned/checkpoints/best.ckpt")).direction == "forward"


def change(place: int, **options: Any) -> Any:
    def changed(stages: Stages) -> Stages:
        stages[place] |= options
        return stages

    return changed


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            lambda stages: [stages[0], {**stages[1], "init_from": "ahead"}],
            ("stage back", "contradicts stage ahead", "null"),
        ),
        (change(1, data={}), ("stage tuned", "stage back and stage ahead both read forward")),
        (
            change(2, model={}),
            ("stage tuned", "that is for --model.encoder TwoWayEncoder, and LSTMEncoder starts from one"),
        ),
        (change(2, init_from="back"), ("stage back reads backward only", "starts from two pretrainings")),
        (change(2, init_from=["back", "ahead", "ahead"]), ("names 3 runs",)),
        (change(2, init_from=["back", "nothing"]), ("names no earlier stage: 'nothing'",)),
        (change(2, data={"direction": "backward"}), ("reads both ways by itself",)),
        (change(0, model={"encoder": ENCODER}), ("TwoWayEncoder can't be pretrained",)),
        (
            change(1, data={"direction": "backward", "vocab_size": 280}),
            ("different tokenizers (data.vocab_size 280 and 300)",),
        ),
    ],
)
def test_what_does_not_go_together_is_told_before_the_first_stage_runs(
    changed: Any, words: tuple[str, ...], fit_recipe: Fit, calls: list[list[str]], configs: Configs
) -> None:
    write(configs, changed(two_ways()))
    result = fit_recipe()
    one_line(result, *words)
    assert calls == []
    assert not Path("logs").exists()
