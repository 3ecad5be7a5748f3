"""What a run leaves behind: TensorBoard's tags, the record of the best validation, throughput, best and last."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import Files
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from toy_network import build
from training import Losses, PowerCut, data_of, module_of, trainer_of

from lit_sft.callbacks import (
    BestCheckpoint,
    EarlyStop,
    Health,
    LastCheckpoint,
    NonMonotonicAveraging,
    RunRecord,
    Throughput,
)
from lit_sft.callbacks import throughput as throughput_module
from lit_sft.callbacks.record import changed_options
from lit_sft.callbacks.stopping import check_monitors, look_after_validations
from lit_sft.errors import UserError
from lit_sft.evaluation.metrics import FIGURES
from lit_sft.evaluation.passes import Evaluation
from lit_sft.evaluation.predictions import VAL_FILE
from lit_sft.evaluation.responses import VAL_FILE as VAL_RESPONSES
from lit_sft.models import ClassifierHead
from lit_sft.optim import WarmupCosine

CONFIG = {"seed_everything": 3, "model": {"stage": "finetune", "note": "a text\nof two lines"}}


def run(stage: str, files: Files, cache: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """A logged fit and test; returns trainer, module, callbacks and the event file's reader."""
    monitor, mode = options.pop("monitor", ("val/loss", "min"))
    callbacks = {
        "losses": Losses(options.pop("stop_at", None)),
        "rates": LearningRateMonitor(logging_interval="step"),
        "throughput": Throughput(warmup=1),
        "record": RunRecord(folder, options.pop("config", CONFIG), options.pop("resumed", False)),
        "best": BestCheckpoint(monitor, mode),
        "last": LastCheckpoint(),
    }
    for name in ("best", "last"):
        callbacks[name].dirpath = str(folder / "checkpoints")
    module = options.pop("module", None) or module_of(stage, schedule=WarmupCosine(0.3))
    path = options.pop("ckpt_path", None)
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    given = {"max_epochs": 3, "limit_val_batches": 1.0, "logger": logger, "callbacks": list(callbacks.values())}
    trainer = trainer_of(folder, **{**given, **options})
    data = data_of(files, cache)
    trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    trainer.test(module, datamodule=data, verbose=False)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return {"trainer": trainer, "module": module, "events": events, **callbacks}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_event_file_holds_every_group_of_tags_and_the_config(
    stage: str, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    made = run(stage, files, shared_cache, tmp_path)
    events, seen = made["events"], made["losses"]
    tags = set(events.Tags()["scalars"])
    figures = {"loss", "perplexity", "bits_per_byte"}
    if stage == "finetune":
        figures = {"loss", "accuracy", "macro_f1", "auroc", "mcc", "ece"}
        figures |= {f"{name}/{label}" for name in ("precision", "recall") for label in ("sea", "sky", "wood")}
    rates = {"embedding", "layer1", "layer1.bias", "layer2", "layer2.bias", "head", "head.bias"}
    expected = {f"{split}/{name}" for split in ("val", "test", "test_clean") for name in figures}
    assert tags == expected | {f"lr/{name}" for name in rates} | {
        "train/loss",
        "train/grad_norm",
        "perf/tokens_per_second",
        "epoch",
    }
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(seen.values)
    assert [e.value for e in events.Scalars("lr/head")] == pytest.approx(seen.rates)
    total = len(seen.values)
    assert seen.rates == pytest.approx([0.01 * WarmupCosine(0.3)(step, total) for step in range(total)])
    validated = [event.step for event in events.Scalars("val/loss")]
    assert len(validated) == 3
    if stage == "finetune":
        assert {event.step for event in events.Tensors("val/confusion/text_summary")} <= set(validated)
    (text,) = events.Tensors("config/text_summary")
    stored = text.tensor_proto.string_val[0].decode()
    assert yaml.safe_load("\n".join(line[4:] for line in stored.splitlines())) == CONFIG
    table = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(table["_hparams_/session_start_info"]).session_start_info.hparams
    assert {name: value.string_value or value.number_value for name, value in start.items()} == {
        "seed_everything": 3,
        "model.stage": "finetune",
        "model.note": "a text\nof two lines",
    }
    shown = HParamsPluginData.FromString(table["_hparams_/experiment"]).experiment.metric_infos
    assert [info.name.tag for info in shown] == ["val/loss"]


@pytest.mark.parametrize(("accumulate", "every"), [(1, 1), (1, 3), (2, 2)])
def test_throughput_counts_real_tokens_of_all_but_the_first_steps(
    accumulate: int, every: int, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    options = {"accumulate_grad_batches": accumulate, "log_every_n_steps": every, "max_epochs": 1}
    made = run("finetune", files, shared_cache, tmp_path, **options)
    data = data_of(files, shared_cache)
    data.prepare_data()
    data.setup()
    tokens = [batch.num_tokens for batch in data.document_loader("train")]
    throughput = made["throughput"]
    assert throughput.tokens == sum(tokens[1:])
    assert throughput.tokens_per_second == pytest.approx(throughput.tokens / throughput.seconds)
    points = made["events"].Scalars("perf/tokens_per_second")
    assert 0 < len(points) <= 8 // accumulate // every
    assert all(point.value > 0 for point in points)


class Clock(Callback):
    """A second a step, 10 after it, 100 for a validation, 1000 for a save; it comes behind what measures."""

    now = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 1

    def on_train_batch_end(self, *_: Any) -> None:
        self.now += 10

    def on_validation_epoch_start(self, *_: Any) -> None:
        self.now += 100

    def on_save_checkpoint(self, *_: Any) -> None:
        self.now += 1000


@pytest.mark.parametrize("every", [1, 3, 50])
def test_throughput_is_measured_from_batch_to_batch_without_validation_and_saving(
    every: int, files: Files, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, throughput, last = Clock(), Throughput(warmup=2), LastCheckpoint(every_steps=3)
    monkeypatch.setattr(throughput_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    last.dirpath = str(tmp_path / "checkpoints")
    options = {"max_epochs": 2, "limit_val_batches": 1.0, "val_check_interval": 4, "log_every_n_steps": every}
    trainer = trainer_of(tmp_path, callbacks=[throughput, clock, last], **options)
    trainer.fit(module_of("finetune"), data_of(files, shared_cache))
    assert clock.now > 4 * 1000 + 4 * 100
    assert throughput.seconds == 11 * 14  # 16 batches


def test_a_resumed_run_counts_on_and_logs_its_own_steps_alone(
    files: Files, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, before, now = Clock(), Throughput(), Throughput(warmup=2)
    monkeypatch.setattr(throughput_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    before.tokens, before.seconds = 10**6, 5.0
    now.load_state_dict(before.state_dict())
    data = data_of(files, shared_cache)
    trainer = trainer_of(tmp_path, callbacks=[now, clock], log_every_n_steps=6)
    trainer.fit(module_of("finetune"), data)
    tokens = [batch.num_tokens for batch in data.document_loader("train")]
    assert now.tokens == 10**6 + sum(tokens[2:])
    assert now.seconds == 5.0 + 11 * 6
    # logged once, at the end of the sixth step: three from batch to batch, and a second of the last
    assert trainer.callback_metrics["perf/tokens_per_second"] == pytest.approx(sum(tokens[2:6]) / (3 * 11 + 1))


def test_tokens_of_all_processes_count_and_none_of_a_fit_that_was_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    now, throughput = [0.0], Throughput(warmup=0)
    monkeypatch.setattr(throughput_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    trainer: Any = SimpleNamespace(world_size=3, log_every_n_steps=0)
    module: Any = None
    for seconds in (2.0, 4.0):  # the first fit ends by an exception, after its batch
        throughput.on_train_start(trainer, module)
        throughput.on_train_batch_start(trainer, module, None, 0)
        now[0] += seconds
        throughput.on_train_batch_end(trainer, module, None, {"labeled": SimpleNamespace(num_tokens=5)}, 0)
        now[0] += 100.0 if seconds == 2.0 else 0.0
    throughput.on_train_end(trainer, module)
    assert (throughput.tokens, throughput.seconds) == (15, 4.0)


def test_the_record_is_of_the_best_validation_and_not_of_the_last(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    made = run("finetune", files, shared_cache, tmp_path, monitor=("val/ece", "max"), max_epochs=4)
    record = json.loads((tmp_path / "metrics.json").read_text())
    curve = [e.value for e in made["events"].Scalars("val/ece")]
    best = curve.index(max(curve))
    assert record["val"]["ece"] == pytest.approx(max(curve))
    assert record["val"]["loss"] == pytest.approx(made["events"].Scalars("val/loss")[best].value)
    checkpoint = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8 * (best + 1)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 32
    assert record["steps"] == 32
    assert record["seed"] == 3
    assert record["tokens_per_second"] > 0
    assert {"torch", "lightning", "python"} <= set(record["versions"])
    assert (tmp_path / "tokenizer.json").read_text() == made["module"].tokenizer.to_json()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG


class Validated(Callback):
    """A ``validate`` of the best checkpoint so far, while the fit goes on."""

    def __init__(self, *files: Path) -> None:
        self.files = files

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        for file in self.files if trainer.current_epoch > 0 else ():
            file.write_text(f"of epoch {trainer.current_epoch}")


@pytest.mark.parametrize(("mode", "kept"), [("max", False), ("min", True)])
def test_predictions_of_an_earlier_best_checkpoint_go(
    mode: str, kept: bool, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    best, record = BestCheckpoint("step", mode), RunRecord(tmp_path, CONFIG, False)
    best.dirpath = str(tmp_path / "checkpoints")
    files_of = [tmp_path / name for name in (VAL_FILE, VAL_RESPONSES)]
    callbacks = [Validated(*files_of), record, best]
    trainer = trainer_of(tmp_path, max_epochs=2, limit_val_batches=1.0, callbacks=callbacks)
    trainer.fit(module_of("finetune"), datamodule=data_of(files, shared_cache))
    assert [file.is_file() for file in files_of] == [kept, kept]


@pytest.mark.parametrize("monitor", [("train/loss", "max"), ("step", "min")])  # not the last one
def test_the_record_is_of_what_the_best_checkpoint_holds_whatever_chose_it(
    monitor: tuple[str, str], files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    made = run("finetune", files, shared_cache, tmp_path, monitor=monitor, max_epochs=4)
    step = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["val"]["loss"] == pytest.approx(made["events"].Scalars("val/loss")[step // 8 - 1].value)


def test_a_figure_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    record, best = RunRecord(tmp_path, CONFIG, False), BestCheckpoint("val/auroc", "max")
    best.dirpath = str(tmp_path)
    trainer: Any = SimpleNamespace(
        sanity_checking=False,
        progress_bar_callback=object(),
        global_step=1,
        current_epoch=0,
        loggers=(),
        checkpoint_callbacks=(best,),
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all=True: decision),
        is_global_zero=True,
        fast_dev_run=False,
        save_checkpoint=lambda *_: None,
    )
    for auroc in (math.nan, 0.4, math.nan, 0.3):
        trainer.callback_metrics = {"val/auroc": torch.tensor(auroc)}
        record.on_validation_end(trainer, None)  # type: ignore[arg-type]
        best._save_topk_checkpoint(trainer, best._monitor_candidates(trainer))
    assert record._best == {"val/auroc": pytest.approx(0.4)}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the checkpoint callback is another one
def test_another_monitor_after_a_resume_chooses_anew(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(PowerCut):
        run("finetune", files, shared_cache, tmp_path, stop_at=18, monitor=("val/loss", "max"))
    last, best = (tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    assert torch.load(best, weights_only=True)["global_step"] == 8
    run("finetune", files, shared_cache, tmp_path, resumed=True, ckpt_path=last, monitor=("val/loss", "min"))
    (chosen,) = [v for k, v in torch.load(best, weights_only=True)["callbacks"].items() if k.startswith("BestCheck")]
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["val"]["loss"] == pytest.approx(float(chosen["best_model_score"]))


def test_a_resumed_run_keeps_its_first_config_its_best_and_its_seconds_and_tells_what_changed(
    files: Files, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lit_sft.callbacks.record.rank_zero_info", told.append)
    with pytest.raises(PowerCut):
        run("finetune", files, shared_cache, tmp_path, stop_at=18, monitor=("val/loss", "max"))
    last = tmp_path / "checkpoints" / "last.ckpt"
    stored = torch.load(last, weights_only=True)["callbacks"]["RunRecord"]
    assert not any("changed" in line for line in told)
    changed = {**CONFIG, "model": {**CONFIG["model"], "note": "other"}}  # type: ignore[dict-item]
    options = {"resumed": True, "config": changed, "ckpt_path": last, "monitor": ("val/loss", "max")}
    run("finetune", files, shared_cache, tmp_path, **options)
    assert "resumed with changed options: model.note: a text\nof two lines -> other" in told
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["val"]["loss"] == stored["best"]["val/loss"]  # the first epoch's: it is the highest
    assert record["seconds"] > stored["seconds"] > 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG
    assert yaml.safe_load((tmp_path / "config.resume.yaml").read_text()) == changed


def test_changed_options_are_those_that_decide_a_result() -> None:
    before = {"name": "a", "trainer": {"max_epochs": 3, "logger": {"save_dir": "x"}}, "model": {"optimizer": {"lr": 1}}}
    now = {"name": "b", "trainer": {"max_epochs": 4, "logger": {"save_dir": "y"}}, "model": {"optimizer": {"lr": 2}}}
    assert changed_options(before, now) == ["trainer.max_epochs: 3 -> 4"]
    assert changed_options(before, before) == []
    assert changed_options({}, {"data": {"seed": 1}}) == ["data.seed: None -> 1"]
    for group in ("health", "saving", "checkpoint", "early_stopping"):
        assert changed_options({group: {"a": 0.0}}, {group: {"a": 7.0}}) == [f"{group}.a: 0.0 -> 7.0"]


@pytest.mark.parametrize("patience", [0, 1])
def test_a_figure_that_is_no_number_ends_a_fit_that_waits_for_it_alone(patience: int) -> None:
    stop = EarlyStop("val/auroc", patience=patience)
    assert stop._evaluate_stopping_criteria(torch.tensor(math.nan))[0] is bool(patience)


@pytest.mark.parametrize("heads", [{"lm"}, {"classifier"}, {"lm", "classifier"}])
@pytest.mark.parametrize("multilabel", [False, True])
def test_what_can_be_monitored_is_what_is_measured(heads: set[str], multilabel: bool) -> None:
    network = build(3)
    if "classifier" not in heads:
        network.classifier = None
    elif multilabel:
        network.classifier = ClassifierHead(network.encoder.output_size, 3, multilabel=True).double()
    if "lm" not in heads:
        network.lm_head = None
    evaluation = Evaluation(network, ["a", "b", "c"])
    if "classifier" in heads:
        labels = torch.tensor([[0, 1, 1], [1, 0, 0]]) if multilabel else torch.tensor([0, 2])
        evaluation.classes.update(torch.full((2, 3), 1 / 3), labels, torch.ones(2))  # type: ignore[union-attr]
    if "lm" in heads:
        evaluation.lm.update(torch.ones(2, 2), torch.ones(2, 2).long())  # type: ignore[union-attr]
    measured = set(evaluation.figures(1.0))
    for name in {*FIGURES["lm"], *FIGURES["classifier"], *FIGURES["multilabel"], "lm_loss", "lm_perplexity", *measured}:
        try:
            check_monitors([EarlyStop(f"val/{name}")], frozenset(heads), multilabel)
        except UserError:
            assert name not in measured
        else:
            assert name in measured
    for name in ("val/precision", *(name for name in measured if "/" not in name)):  # without its prefix
        with pytest.raises(UserError, match=f"no figure {name} to monitor"):
            check_monitors([EarlyStop(name)], frozenset(heads), multilabel)


def test_averaging_may_wait_for_a_figure_that_a_callback_of_the_users_logs() -> None:
    waiting = NonMonotonicAveraging(monitor="val/mine")
    check_monitors([waiting, type("Own", (Callback,), {})()], frozenset({"lm"}))
    with pytest.raises(UserError, match="no figure val/mine to monitor"):
        check_monitors([waiting], frozenset({"lm"}))


@pytest.mark.parametrize("kind", [BestCheckpoint, EarlyStop])
def test_what_is_better_follows_from_the_figure(kind: type[BestCheckpoint | EarlyStop]) -> None:
    less = [
        "val/loss",
        "val/perplexity",
        "val/bits_per_byte",
        "val/ece",
        "val/lm_loss",
        "val/lm_perplexity",
        "train/loss",
    ]
    more = ["val/accuracy", "val/macro_f1", "val/micro_f1", "val/auroc", "val/average_precision", "val/mcc"]
    more += ["val/precision/spam", "val/recall/loss"]
    assert [kind(name).mode for name in less] == ["min"] * len(less)
    assert [kind(name).mode for name in more] == ["max"] * len(more)
    assert kind("val/accuracy", "min").mode == "min"


@pytest.mark.parametrize(("figures", "stops"), [([0.6, 0.57, 0.54], True), ([0.6, 0.66, 0.72], False)])
def test_the_least_change_counts_in_the_direction_of_a_figure_of_the_users_own(
    figures: list[float], stops: bool, tmp_path: Path
) -> None:
    found = []
    for callback in (EarlyStop("val/f2", None, 2, min_delta=0.05), EarlyStop("val/f2", "max", 2, min_delta=0.05)):
        module = module_of("finetune")
        module.metrics = {"f2": SimpleNamespace(higher_is_better=True)}  # type: ignore[dict-item]
        callback.setup(trainer_of(tmp_path), module, "fit")
        found.append([callback._evaluate_stopping_criteria(torch.tensor(figure))[0] for figure in figures])
    assert found == [[False, False, stops]] * 2


def test_lightnings_own_callbacks_look_after_each_validation_unless_they_are_told_when() -> None:
    stopping = [EarlyStopping("val/loss", check_on_train_epoch_end=when) for when in (None, True, False)]
    keeping = [ModelCheckpoint(monitor="val/loss", save_on_train_epoch_end=when) for when in (None, True, False)]
    by_steps = ModelCheckpoint()  # waits for no figure
    look_after_validations([*stopping, *keeping, by_steps])
    assert [callback._check_on_train_epoch_end for callback in stopping] == [False, True, False]
    assert [callback._save_on_train_epoch_end for callback in (*keeping, by_steps)] == [False, True, False, None]


@pytest.mark.parametrize("callback", [Health(), EarlyStop(), NonMonotonicAveraging()], ids=lambda c: type(c).__name__)
def test_the_same_weights_are_never_validated_twice(
    callback: Callback, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    def fit(**options: Any) -> None:
        given = {"accumulate_grad_batches": 4, "val_check_interval": 3, "limit_val_batches": 1.0, **options}
        trainer = trainer_of(tmp_path, callbacks=[callback], **given)
        trainer.fit(module_of("finetune"), data_of(files, shared_cache))

    with pytest.raises(
        UserError, match=r"val_check_interval 3 is every 3 batches, and a step takes 4 .*give 4 or more"
    ):
        fit()
    for options in (
        {"val_check_interval": 0.5},
        {"limit_val_batches": 0},
        {"accumulate_grad_batches": 10, "val_check_interval": 1.0},
        {"limit_train_batches": 3},
    ):
        fit(**options)


def test_what_one_module_has_reached_is_no_measure_for_another(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    """As where a loop over seeds makes its list of callbacks once."""
    options: dict[str, Any] = {"max_epochs": 2, "val_check_interval": 1, "limit_val_batches": 1.0}
    again, steps = EarlyStop(patience=1), []
    for stop in (again, again, EarlyStop(patience=1)):
        trainer = trainer_of(tmp_path, callbacks=[stop], **options)
        trainer.fit(module_of("pretrain"), datamodule=data_of(files, shared_cache))
        steps.append(trainer.global_step)
    assert steps[0] == steps[1] == steps[2] > 1
