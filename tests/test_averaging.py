"""Averaged weights against lists of all weights, and what of them is validated, saved and gone on from."""

from __future__ import annotations

import pickle
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Command, Configs, Files, read
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from refusals import one_line
from torch import Tensor
from training import Losses, data_of, equal, module_of, trainer_of, weights

from lit_sft import load
from lit_sft.callbacks import BestCheckpoint, ExponentialAveraging, LastCheckpoint, NonMonotonicAveraging
from lit_sft.callbacks.averaging import TRAINED
from lit_sft.errors import UserError
from lit_sft.optim import WarmupCosine

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed from")
SGD = partial(torch.optim.SGD, lr=8.0)


class Watch(Callback):
    """The trained weights after each step, and the figure and step of each validation."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.losses: list[float] = []
        self.steps: list[int] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.weights.append(weights(module))

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step == len(self.weights):
            self.weights.append(weights(module))

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["val/loss"]))
        self.steps.append(trainer.global_step)


def train(files: Files, cache: Path, folder: Path, averaging: Callback | None, **options: Any) -> dict[str, Any]:
    watch, seen = Watch(), Losses()
    saving: list[Any] = [BestCheckpoint(), LastCheckpoint(every_steps=1, keep=100)]
    for callback in saving:
        callback.dirpath = str(folder)
    callbacks = [*([averaging] if averaging else []), watch, seen, *saving]
    given = {"max_epochs": 3, "limit_val_batches": 1.0, "val_check_interval": 3, "gradient_clip_val": 0.25}
    path = options.pop("ckpt_path", None)
    trainer = trainer_of(folder, callbacks=callbacks, **{**given, **options})
    module = module_of("pretrain", dropout=True, optimizer=SGD)
    trainer.fit(module, datamodule=data_of(files, cache), ckpt_path=path, weights_only=True)
    return {"watch": watch, "losses": seen.values, "module": module, "folder": folder}


@pytest.fixture(scope="module")
def plain(files: Files, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three epochs without any average, which never changes what is trained."""
    return train(files, shared_cache, tmp_path_factory.mktemp("plain"), None)


def saved(folder: Path, name: str) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / f"{name}.ckpt", weights_only=True)
    return checkpoint


def network(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}


def mean_of(all_weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([w[name].double() for w in all_weights]).mean(0).float() for name in all_weights[0]}


def exponential(all_weights: list[dict[str, Tensor]], decay: float, start_step: int = 0) -> list[dict[str, Tensor]]:
    """The moving average after each step, by its recursion; the weights themselves before it begins."""
    mean, means = None, []
    for step, now in enumerate(all_weights):
        if step >= start_step:
            share = max(1 - decay, 1 / (step - start_step + 1))  # at first all weights count alike
            mean = now if mean is None else {n: (1 - share) * w + share * now[n] for n, w in mean.items()}
        means.append(now if mean is None else mean)
    return means


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)


def measured(state: dict[str, Tensor], files: Files, cache: Path, folder: Path) -> float:
    """The validation loss of these weights, in a module and a Trainer of their own."""
    module, trainer, data = module_of("pretrain"), trainer_of(folder, limit_val_batches=1.0), data_of(files, cache)
    data.prepare_data()
    data.setup()
    module.build(data.tokenizer, data.label_names)
    module.net.load_state_dict(state)
    return float(trainer.validate(module, datamodule=data, verbose=False)[0]["val/loss"])


# the trigger


def trigger_by_the_paper(figures: list[float], n: int) -> int | None:
    """Algorithm 1 of Merity et al. 2018, its loop over checks t alone: the first at which averaging begins."""
    logs: list[float] = []
    for t, v in enumerate(figures):
        if t > n and v > min(logs[0 : t - n]):
            return t
        logs.append(v)
    return None


@pytest.mark.parametrize("nonmono", [0, 1, 2, 5])
def test_the_trigger_is_that_of_the_papers_algorithm(nonmono: int) -> None:
    class Trainer:
        sanity_checking, global_step = False, 0
        state = type("State", (), {"fn": "fit"})

    checked = NonMonotonicAveraging(nonmono=nonmono)
    checked.on_validation_end(type("Sanity", (Trainer,), {"sanity_checking": True})(), torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    assert checked.figures == []
    draw, triggers = random.Random(3), set()
    for _ in range(200):
        slope = draw.uniform(-0.5, 0.1)
        figures = [10 + slope * t + draw.choice([0.0, draw.gauss(0, 1)]) for t in range(12)]
        callback, module, begun = NonMonotonicAveraging(nonmono=nonmono), torch.nn.Linear(1, 1), None
        for t, figure in enumerate(figures):
            Trainer.callback_metrics = {"val/loss": torch.tensor(figure, dtype=torch.float64)}  # type: ignore[attr-defined]
            callback.on_validation_end(Trainer(), module)  # type: ignore[arg-type]
            if begun is None and callback.count:
                begun = t
        assert begun == trigger_by_the_paper(figures, nonmono)
        triggers.add(begun)
    assert len(triggers) > 3


# the mean


def test_the_mean_is_that_of_all_weights_since_the_trigger_and_is_what_is_validated_saved_and_left(
    plain: dict[str, Any], files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    averaging = NonMonotonicAveraging(nonmono=1)
    run = train(files, shared_cache, tmp_path / "run", averaging)
    watch, folder = run["watch"], run["folder"]
    assert run["losses"] == plain["losses"]
    check = trigger_by_the_paper(watch.losses, 1)
    assert check is not None
    begin, end = watch.steps[check], len(watch.weights) - 1
    assert 3 < begin < end - 3
    assert averaging.figures == watch.losses[: check + 1] == plain["watch"].losses[: check + 1]
    paths = sorted(folder.glob("last*.ckpt"))
    assert len(paths) > end / 2
    for path in paths:
        checkpoint = saved(folder, path.stem)
        step = checkpoint["global_step"]
        trained = checkpoint.get(TRAINED, checkpoint["state_dict"])
        assert (TRAINED in checkpoint) == (step >= begin)
        close(network(trained), watch.weights[step])
        close(network(checkpoint["state_dict"]), mean_of(watch.weights[min(step, begin) : step + 1]))
    for step, loss in zip(watch.steps, watch.losses, strict=True):
        expected = mean_of(watch.weights[min(step, begin) : step + 1])
        assert loss == pytest.approx(measured(expected, files, shared_cache, tmp_path / "other"), rel=1e-5)
    best = watch.steps[watch.losses.index(min(watch.losses))]
    assert best > begin
    close(network(saved(folder, "best")["state_dict"]), mean_of(watch.weights[begin : best + 1]))
    close(weights(run["module"]), mean_of(watch.weights[begin:]))
    assert averaging.count == len(watch.weights) - begin


def test_the_exponential_average_is_the_recursion_from_its_first_step_on(
    plain: dict[str, Any], files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    run = train(files, shared_cache, tmp_path / "run", ExponentialAveraging(0.7, 5), max_epochs=1)
    watch = run["watch"]
    assert run["losses"] == plain["losses"][: len(run["losses"])]
    means = exponential(watch.weights, 0.7, 5)
    close(weights(run["module"]), means[-1])
    assert watch.steps == [3, 6, 9]
    for step, loss in zip(watch.steps, watch.losses, strict=True):
        assert loss == pytest.approx(measured(means[step], files, shared_cache, tmp_path / "other"), rel=1e-5)
    # Lightning issue 21724: until then the start weights would be validated and saved
    assert watch.losses[0] == plain["watch"].losses[0]
    assert watch.losses[1] != plain["watch"].losses[1]


def test_a_step_of_several_batches_counts_once(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    averaging = ExponentialAveraging(0.7)
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "val_check_interval": 1.0, "max_epochs": 1}
    run = train(files, shared_cache, tmp_path, averaging, **options)
    steps = len(run["watch"].weights) - 1
    assert steps == -(-len(run["losses"]) // 2) > 3
    assert averaging.count == steps + 1
    close(weights(run["module"]), exponential(run["watch"].weights, 0.7)[-1])


def test_lightnings_own_average_validates_the_start_weights_before_its_start_step(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    """Its issue 21724. When this fails, it is mended: then the README's warning can go."""
    averaging = EMAWeightAveraging(decay=0.7, update_starting_at_step=5)
    watch = train(files, shared_cache, tmp_path / "run", averaging, max_epochs=1)["watch"]
    for step, loss in zip(watch.steps, watch.losses, strict=True):
        assert (loss == pytest.approx(measured(watch.weights[0], files, shared_cache, tmp_path), rel=1e-5)) == (
            step < 5
        )


# resume


@pytest.mark.parametrize("kind", [partial(NonMonotonicAveraging, nonmono=1), partial(ExponentialAveraging, 0.7, 5)])
def test_a_run_resumed_before_and_after_averaging_begins_ends_the_same(
    kind: Any, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    whole = train(files, shared_cache, tmp_path / "whole", kind())
    end = saved(tmp_path / "whole", "last")
    assert TRAINED in end
    paths = sorted((tmp_path / "whole").glob("last-*.ckpt"), key=lambda path: int(path.stem[5:]))
    kinds = set()
    for path in paths[::4]:
        checkpoint = torch.load(path, weights_only=True)
        kinds.add(TRAINED in checkpoint)
        folder = tmp_path / f"from-{checkpoint['global_step']}"
        rest = train(files, shared_cache, folder, kind(), ckpt_path=path)
        assert rest["losses"] == whole["losses"][checkpoint["global_step"] :]
        again = saved(folder, "last")
        for key in ("state_dict", TRAINED):
            assert all(torch.equal(again[key][name], value) for name, value in end[key].items())
        assert again["callbacks"][kind.func.__qualname__] == end["callbacks"][kind.func.__qualname__]
    assert kinds == {True, False}


def test_a_finished_run_goes_on_from_the_trained_weights(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"val_check_interval": 1.0, "check_val_every_n_epoch": 100}  # nothing saved but the end
    kind = partial(ExponentialAveraging, 0.7)
    whole = train(files, shared_cache, tmp_path / "whole", kind(), max_epochs=2, **options)
    half = train(files, shared_cache, tmp_path / "half", kind(), max_epochs=1, **options)
    last = half["folder"] / "last.ckpt"
    rest = train(files, shared_cache, tmp_path / "rest", kind(), max_epochs=2, ckpt_path=last, **options)
    assert half["losses"] + rest["losses"] == whole["losses"]
    close(weights(rest["module"]), weights(whole["module"]))
    again = train(files, shared_cache, tmp_path / "again", kind(), max_epochs=1, ckpt_path=last, **options)
    assert again["losses"] == []
    assert equal(weights(again["module"]), weights(half["module"]))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 on torch 2.13
def test_a_falling_rate_is_told_to_leave_a_mean_nothing_to_do(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=1, callbacks=[NonMonotonicAveraging()])
    with pytest.warns(UserWarning, match=r"wants a constant rate: --model\.schedule"):
        trainer.fit(module_of("pretrain", schedule=WarmupCosine()), datamodule=data_of(files, shared_cache))


def test_a_trainer_that_logs_nothing_is_refused_where_a_figure_is_waited_for(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    options = {"barebones": True, "log_every_n_steps": None, "limit_val_batches": 1}
    trainer = trainer_of(tmp_path, callbacks=[NonMonotonicAveraging()], **options)
    with pytest.raises(UserError, match=r"waits for val/loss, and Trainer\(barebones=True\) logs nothing"):
        trainer.fit(module_of("pretrain"), datamodule=data_of(files, shared_cache))


@pytest.mark.parametrize("other", [NonMonotonicAveraging, EMAWeightAveraging])
def test_two_averages_are_refused(other: Any, files: Files, shared_cache: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, callbacks=[ExponentialAveraging(), other()])
    with pytest.raises(UserError, match=f"ExponentialAveraging and {other.__name__} both average"):
        trainer.fit(module_of("pretrain"), datamodule=data_of(files, shared_cache))


def test_an_average_of_one_module_is_no_start_of_another(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    """As where a loop over seeds makes its list of callbacks once."""
    kinds: list[Any] = [partial(NonMonotonicAveraging, nonmono=0), partial(ExponentialAveraging, 0.7)]
    options: dict[str, Any] = {"max_epochs": 2, "val_check_interval": 1}
    for number, kind in enumerate(kinds):
        alone, again = kind(), kind()
        fresh = train(files, shared_cache, tmp_path / f"fresh{number}", alone, **options)
        train(files, shared_cache, tmp_path / f"first{number}", again, **options)
        second = train(files, shared_cache, tmp_path / f"second{number}", again, **options)
        assert alone.count == again.count > 1
        assert second["losses"] == fresh["losses"]
        assert equal(weights(second["module"]), weights(fresh["module"]))


def test_a_second_fit_of_the_same_module_goes_on_with_its_average(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    averaging, module, seen = ExponentialAveraging(0.7), module_of("pretrain", optimizer=SGD), [Watch(), Watch()]
    for watch in seen:
        trainer = trainer_of(tmp_path, callbacks=[averaging, watch], max_steps=3)
        trainer.fit(module, datamodule=data_of(files, shared_cache))
    assert equal(seen[1].weights[0], seen[0].weights[-1])
    assert averaging.count == 7  # the start and six steps
    assert pickle.loads(pickle.dumps(averaging)).count == 7


# the command line


def test_what_a_config_averages_is_measured_loaded_and_fine_tuned(cli: Command, configs: Configs) -> None:
    options = yaml.safe_load(configs.pretrain.read_text())
    averaging = {"class_path": "lit_sft.callbacks.ExponentialAveraging", "init_args": {"decay": 0.9}}
    options["trainer"]["callbacks+"] = [averaging]
    configs.pretrain.write_text(yaml.safe_dump(options))
    done = cli("fit", "--config", configs.pretrain)
    assert done.code == 0, done.err
    run = Path("logs/tiny-pretrain/version_0")
    checkpoint = saved(run / "checkpoints", "best")
    mean, trained = (network(checkpoint[key]) for key in ("state_dict", TRAINED))
    assert not equal(mean, trained)
    assert equal(load(run, device="cpu").network.state_dict(), mean)
    (loss,) = re.findall(r"val/loss\s+│\s+([\d.]+)", cli("validate", "--ckpt_path", run).out)
    assert float(loss) == pytest.approx(read(run / "metrics.json")["val"]["loss"])
    still = ("--model.optimizer.lr", "1e-12", "--trainer.max_steps", "1", "--run_dir", "tuned")
    assert cli("fit", "--config", configs.finetune, "--model.init_from", run, *still).code == 0
    tuned = network(saved(Path("tuned/checkpoints"), "last")["state_dict"])
    encoder = {name: weight for name, weight in mean.items() if name.startswith("encoder.")}
    close({name: tuned[name] for name in encoder}, encoder)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        ({"class_path": "NonMonotonicAveraging", "init_args": {"nonmono": -1}}, "nonmono=-1 must be at least 0"),
        ({"class_path": "NonMonotonicAveraging", "init_args": {"monitor": "val/los"}}, "no figure val/los to monitor"),
        ({"class_path": "NonMonotonicAveraging", "init_args": {"monitor": "val/mcc"}}, "of which less is better"),
        ({"class_path": "ExponentialAveraging", "init_args": {"decay": 1.0}}, "decay=1.0 must be in [0, 1)"),
        ({"class_path": "L2Start", "init_args": {"strength": -0.5}}, "strength=-0.5 must be at least 0"),
        ({"class_path": "L2Start"}, "L2Start draws weights to those of model.init_from"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_told_in_one_line(callback: dict[str, Any], message: str, cli: Command, configs: Configs) -> None:
    options = yaml.safe_load(configs.finetune.read_text())
    options["trainer"]["callbacks+"] = [{**callback, "class_path": f"lit_sft.callbacks.{callback['class_path']}"}]
    configs.finetune.write_text(yaml.safe_dump(options))
    done = cli("fit", "--config", configs.finetune)
    one_line(done, message)
