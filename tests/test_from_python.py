"""A training that is written in Python, without the command line: its checkpoints are those of any run."""

import copy
import runpy
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, Files
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.tuner import Tuner
from torch import nn
from training import data_of, equal, module_of, trainer_of, weights

import lit_sft
from lit_sft.building import Blueprint
from lit_sft.checkpoints import read_checkpoint
from lit_sft.errors import UserError
from lit_sft.models import Encoder, LSTMEncoder, TwoWayEncoder
from lit_sft.optim import Schedule

SMALL = partial(LSTMEncoder, embedding_size=8, hidden_size=12)
TEXTS = ["the whale near a reef", "moss under the oak", "one comet above"]


def fitted(path: Path, module: lit_sft.LitSFT, data: lit_sft.TextDataModule, **options: object) -> Path:
    trainer = trainer_of(path.parent, **options)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(path)
    return path


def test_a_checkpoint_of_a_trainer_alone_is_loaded_with_its_options(tmp_path: Path, files: Files) -> None:
    encoder = {"output_dropout": 0.5, "num_layers": 1}
    module = module_of("finetune", encoder=encoder, pooling="max", head_hidden_size=5)
    data = data_of(files, tmp_path / "cache", max_length=7, truncation="tail", labeled=files.train)  # a path, too
    path = fitted(tmp_path / "c.ckpt", module, data)

    loaded = lit_sft.load(path)
    assert (loaded.max_length, loaded.truncation, loaded.network.classifier.pooling) == (7, "tail", "max")
    assert loaded.network.encoder.output_dropout == 0.5  # what no weight's shape tells
    kept = module.net.state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in loaded.network.state_dict().items())
    config = read_checkpoint(path).config
    assert config["data"]["bptt"] == 128  # given
    assert config["data"]["val_fraction"] == 0.1  # as it is by default
    assert config["model"]["encoder"]["init_args"]["embedding_dropout"] == 0.0


def test_a_fine_tuning_takes_the_tokenizer_and_the_weights_of_what_it_starts_from(tmp_path: Path, files: Files) -> None:
    cache = tmp_path / "cache"
    start = fitted(tmp_path / "lm.ckpt", module_of("pretrain"), data_of(files, cache, direction="backward"))
    module = module_of("finetune", init_from=str(start))
    data = data_of(files, cache, tokenizer="word", vocab_size=0)  # not used: the checkpoint's is
    path = fitted(tmp_path / "c.ckpt", module, data, max_steps=1)

    before, after = read_checkpoint(start), read_checkpoint(path)
    assert after.tokenizer_json == before.tokenizer_json
    assert after.direction == "backward"
    weight = "encoder.embedding.weight"
    moved = (after.network_weights()[weight] - before.network_weights()[weight]).abs().max()
    assert 0 < moved <= 0.011  # one step of AdamW at 0.01
    assert set(before.fed["digests"]) <= set(after.fed["digests"])


@pytest.mark.parametrize("use", ["validate", "test"])
def test_what_is_measured_before_a_fit_is_what_the_fit_starts_from(
    use: str, tmp_path: Path, files: Files, shared_cache: Path
) -> None:
    start = fitted(tmp_path / "lm.ckpt", module_of("pretrain"), data_of(files, shared_cache), max_epochs=2)

    def measured(module: lit_sft.LitSFT) -> Any:
        trainer = trainer_of(tmp_path, limit_val_batches=1.0)
        return getattr(trainer, use)(module, datamodule=data_of(files, shared_cache), verbose=False)

    module = module_of("pretrain", init_from=start)  # a path, too
    assert measured(module) == measured(lit_sft.LitSFT.load_from_checkpoint(start))
    for one in (module, other := module_of("pretrain", init_from=str(start))):
        trainer_of(tmp_path, max_steps=2).fit(one, datamodule=data_of(files, shared_cache))
    assert equal(weights(module), weights(other))
    before = measured(module)
    assert measured(module) == before  # the start is not loaded once more
    assert before != measured(lit_sft.LitSFT.load_from_checkpoint(start))


class WithLayer(lit_sft.LitSFT):
    """A subclass with weights beside the network's."""

    def __init__(self, *args: Any, size: int = 3, **options: Any) -> None:
        super().__init__(*args, **options)
        self.own = nn.Linear(size, 1)


class OtherSchedule(lit_sft.LitSFT):
    """A subclass whose schedule the module would not know of."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_layer_of_a_subclass_is_loaded_with_the_network(tmp_path: Path, files: Files, shared_cache: Path) -> None:
    module, data = WithLayer("finetune", encoder=SMALL), data_of(files, shared_cache)
    path = fitted(tmp_path / "c.ckpt", module, data, max_steps=1)
    loaded = WithLayer.load_from_checkpoint(path)
    assert torch.equal(loaded.own.weight, module.own.weight)
    lit_sft.LitSFT.load_from_checkpoint(path)  # does without
    with pytest.raises(UserError, match=r"fit WithLayer: own.weight is \(1, 4\) here and \(1, 3\) there"):
        WithLayer.load_from_checkpoint(path, size=4)
    fresh, options = WithLayer("finetune", encoder=SMALL), {"ckpt_path": path, "weights_only": True}
    trainer_of(tmp_path).test(fresh, datamodule=data_of(files, shared_cache), verbose=False, **options)
    assert torch.equal(fresh.own.weight, module.own.weight)


def test_loading_takes_the_options_of_a_training_and_refuses_those_of_the_checkpoint(
    tmp_path: Path, files: Files, shared_cache: Path
) -> None:
    module = module_of("finetune", pooling="max")
    path = fitted(tmp_path / "c.ckpt", module, data_of(files, shared_cache), max_steps=1)
    loaded = lit_sft.LitSFT.load_from_checkpoint(path, head_dropout=0.25, backprop_tokens=5)
    assert (loaded.blueprint.head_dropout, loaded.net.backprop_tokens) == (0.25, 5)
    assert loaded.net.classifier is not None
    assert (loaded.net.classifier.dropout, loaded.net.classifier.pooling) == (0.25, "max")
    for wrong in ({"pooling": "mean"}, {"stage": "finetune"}, {"init_from": "lm.ckpt"}):
        with pytest.raises(UserError, match=f"load_from_checkpoint: {next(iter(wrong))}: this is the checkpoint's own"):
            lit_sft.LitSFT.load_from_checkpoint(path, **wrong)
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        module.load_from_checkpoint(path)


def test_lightning_s_own_way_of_loading_gives_the_module_back(tmp_path: Path, files: Files) -> None:
    """Its weights, and with them the tokenizer and the labels, which the data take over as from any run."""
    cache = tmp_path / "cache"
    path = fitted(tmp_path / "c.ckpt", module_of("finetune", pooling="max"), data_of(files, cache), max_epochs=3)
    other = {"tokenizer": "word", "vocab_size": 0}  # not used
    found, again = lit_sft.LitSFT.load_from_checkpoint(path), trainer_of(tmp_path)
    (loaded,) = again.test(found, datamodule=data_of(files, cache, **other), verbose=False)
    whole = trainer_of(tmp_path)
    module = module_of("finetune", pooling="max")
    (resumed,) = whole.test(module, datamodule=data_of(files, cache), ckpt_path=path, weights_only=True, verbose=False)
    assert loaded == resumed
    assert loaded["test/accuracy"] > 0.4

    theirs = {"strict": True, "weights_only": True, "hparams_file": None}  # what Lightning's own takes
    assert lit_sft.LitSFT.load_from_checkpoint(path, map_location="meta", **theirs).device.type == "meta"
    for wrong in ({"strict": False}, {"weights_only": False}, {"hparams_file": "hparams.yaml"}):
        with pytest.raises(UserError, match="has its options in it, and is read whole and as data"):
            lit_sft.LitSFT.load_from_checkpoint(path, **wrong)

    start = {name: weight.clone() for name, weight in found.net.state_dict().items()}
    optimizer = partial(torch.optim.SGD, lr=1e-6)
    going_on = lit_sft.LitSFT.load_from_checkpoint(path, optimizer=optimizer)
    after = fitted(tmp_path / "more.ckpt", going_on, data_of(files, cache, **other), max_steps=1)
    moved = read_checkpoint(after).network_weights()
    assert read_checkpoint(after).tokenizer_json == read_checkpoint(path).tokenizer_json
    assert all((moved[name] - start[name]).abs().max() < 1e-4 for name in start)
    assert any((moved[name] != start[name]).any() for name in start)
    (tmp_path / "two.csv").write_text("text,label\n" + "the oak,tree\nthe owl,bird\n" * 30)
    others = dict.fromkeys(("labeled", "val", "test"), str(tmp_path / "two.csv"))
    with pytest.raises(UserError, match="the data have the labels"):
        trainer_of(tmp_path).test(found, datamodule=data_of(files, cache, **others))


def test_data_that_were_set_up_for_one_model_serve_no_other(tmp_path: Path, files: Files) -> None:
    """Its ids would be other tokens, its classes others, its documents begin at the other end."""
    cache, trainer = tmp_path / "cache", trainer_of(tmp_path)
    data = data_of(files, cache)
    first = fitted(tmp_path / "first.ckpt", module_of("finetune"), data, max_steps=1)
    names = {"sea": "water", "sky": "air", "wood": "land"}
    others = {
        "tokenizer": {"vocab_size": 290},
        "direction": {"direction": "backward"},
        "labels": {"label_names": names},
    }
    for other, options in others.items():
        path = fitted(tmp_path / f"{other}.ckpt", module_of("finetune"), data_of(files, cache, **options), max_steps=1)
        with pytest.raises(UserError, match=f"(another|have the) {other}"):
            trainer.test(lit_sft.LitSFT.load_from_checkpoint(path), datamodule=data, verbose=False)
    trainer.test(lit_sft.LitSFT.load_from_checkpoint(first), datamodule=data, verbose=False)

    start = fitted(tmp_path / "lm.ckpt", module_of("pretrain"), data_of(files, cache), max_steps=1)
    read_backward = data_of(files, cache, direction="backward")
    read_backward.prepare_data()
    read_backward.setup()
    with pytest.raises(UserError, match="another direction"):
        trainer_of(tmp_path).fit(module_of("finetune", init_from=str(start)), datamodule=read_backward)


@pytest.mark.filterwarnings("ignore:transductive")
def test_a_checkpoint_that_is_saved_after_a_test_of_other_data_is_of_its_own(tmp_path: Path, files: Files) -> None:
    trainer, module = trainer_of(tmp_path, max_steps=3), module_of("finetune")
    trainer.fit(module, datamodule=data_of(files, tmp_path / "cache"))
    for name in ("before", "after"):
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        other = data_of(files, tmp_path / "cache", max_length=5, truncation="tail", labeled=str(files.test), val=None)
        trainer.test(module, datamodule=other, verbose=False)
    before, after = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("before", "after"))
    for part in ("config", "fed"):
        assert after["lit_sft"][part] == before["lit_sft"][part]
    assert before["TextDataModule"]["labeled"]["served"] == 3
    assert after["TextDataModule"] == before["TextDataModule"]
    assert lit_sft.load(tmp_path / "after.ckpt").max_length == 32
    assert copy.deepcopy(module)._data is None


def test_an_option_that_is_set_after_the_constructor_is_that_of_the_checkpoint(tmp_path: Path, files: Files) -> None:
    data = data_of(files, tmp_path / "cache")
    data.max_length, data.max_documents = 6, 5  # Lightning's Tuner sets sizes like this
    path = fitted(tmp_path / "c.ckpt", module_of("finetune"), data, max_steps=1)
    config = read_checkpoint(path).config["data"]
    assert (config["max_length"], config["max_documents"], config["batch_size"]) == (6, 5, 4)
    assert lit_sft.load(path).max_length == 6


@pytest.mark.filterwarnings("ignore:transductive")
def test_data_that_are_set_up_already_learn_what_their_model_was_fed_with(tmp_path: Path, files: Files) -> None:
    cache, module, fed = tmp_path / "cache", module_of("finetune"), {}
    reads_test = data_of(files, cache, labeled=str(files.test), val=None, test=None)
    start = fitted(tmp_path / "start.ckpt", module, reads_test, max_steps=1)
    (tmp_path / "tok.json").write_text(reads_test.tokenizer.to_json(), encoding="utf-8")
    data = data_of(files, cache, tokenizer=str(tmp_path / "tok.json"))
    data.prepare_data()
    data.setup()
    assert not data.contamination["transductive"]
    started, loaded = module_of("finetune", init_from=str(start)), lit_sft.LitSFT.load_from_checkpoint(start)
    for name, model in {"init": started, "load": loaded, "same": module, "none": module_of("finetune")}.items():
        fed[name] = read_checkpoint(fitted(tmp_path / f"{name}.ckpt", model, data, max_steps=1)).fed["transductive"]
        assert data.contamination["transductive"] == fed[name]
    assert fed == {"init": True, "load": True, "same": True, "none": False}
    started.trainer.save_checkpoint(tmp_path / "late.ckpt")
    assert read_checkpoint(tmp_path / "late.ckpt").fed["transductive"]  # though the data serve another model now

    tested, trainer = module_of("finetune"), trainer_of(tmp_path)
    trainer.test(tested, datamodule=data, ckpt_path=start, weights_only=True, verbose=False)
    for model in (started, tested):
        new = data_of(files, cache)
        trainer.test(model, datamodule=new, verbose=False)
        assert any("text of the run that the weights come from" in why for why in new.contamination["why"])


def test_a_loaded_model_is_measured_on_new_data_alone(tmp_path: Path, files: Files) -> None:
    cache = tmp_path / "cache"
    path = fitted(tmp_path / "c.ckpt", module_of("finetune"), data_of(files, cache), max_steps=2)
    trainer = trainer_of(tmp_path, limit_val_batches=1.0)
    nothing = dict.fromkeys(("labeled", "unlabeled", "val", "test"))
    for split, measure in (("test", trainer.test), ("val", trainer.validate)):
        alone = data_of(files, cache, **nothing | {split: str(getattr(files, split))})
        found = [
            measure(lit_sft.LitSFT.load_from_checkpoint(path), datamodule=data, verbose=False)[0]
            for data in (alone, data_of(files, cache))
        ]
        assert found[0] == {name: found[1][name] for name in found[0]}
        assert f"{split}/accuracy" in found[0]


@pytest.mark.filterwarnings("ignore:transductive")
def test_new_data_take_over_the_tokenizer_and_the_history_of_a_model_that_was_just_trained(
    tmp_path: Path, files: Files
) -> None:
    module, data = module_of("finetune"), data_of(files, tmp_path / "cache", direction="backward")
    fitted(tmp_path / "c.ckpt", module, data, max_steps=1)
    new = data_of(files, tmp_path / "cache", tokenizer="word", vocab_size=0)
    found = [trainer_of(tmp_path).test(module, datamodule=one, verbose=False) for one in (data, new)]
    assert found[0] == found[1]
    assert new.tokenizer.digest == data.tokenizer.digest
    assert new.direction == "backward"
    seen = data_of(files, tmp_path / "cache", labeled=str(files.val), val=None, test=str(files.train))
    trainer_of(tmp_path).test(module, datamodule=seen, verbose=False)
    assert any("text of the run that the weights come from" in why for why in seen.contamination["why"])


def test_a_checkpoint_that_means_other_tokens_or_classes_is_no_ckpt_path(tmp_path: Path, files: Files) -> None:
    """Though every weight has the right shape."""
    cache, options = tmp_path / "cache", {"ckpt_path": tmp_path / "c.ckpt", "weights_only": True}
    path = fitted(tmp_path / "c.ckpt", module_of("finetune"), data_of(files, cache), max_steps=1)
    text = files.train.read_text(encoding="utf-8")
    (tmp_path / "other.csv").write_text(text.replace("the", "thy"), encoding="utf-8")
    size = read_checkpoint(path).tokenizer().vocab_size
    others = {
        "another tokenizer": {"labeled": str(tmp_path / "other.csv"), "vocab_size": size},
        "another direction": {"direction": "backward"},
        "have the labels": {"label_names": {"wood": "wood", "sky": "sky", "sea": "sea"}},
    }
    for message, given in others.items():
        for use in ("test", "fit"):
            data, module = data_of(files, cache, **given), module_of("finetune")
            with pytest.raises(UserError, match=message):
                getattr(trainer_of(tmp_path), use)(module, datamodule=data, **options)
    trainer_of(tmp_path).test(module_of("finetune"), datamodule=data_of(files, cache), verbose=False, **options)


def test_the_command_line_measures_such_a_checkpoint(tmp_path: Path, files: Files, cli: Command) -> None:
    path = fitted(tmp_path / "c.ckpt", module_of("finetune"), data_of(files, tmp_path / "cache"), max_epochs=3)
    result = cli("test", "--ckpt_path", path)
    assert result.code == 0, result.err
    assert "test/accuracy" in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16-true"}, "use bf16-mixed"),
        ({"reload_dataloaders_every_n_epochs": 1}, "must stay 0: each epoch is drawn anew"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, "use --trainer.accumulate_grad_batches"),
        ({"callbacks": [StochasticWeightAveraging(0.1)]}, "averages nothing: use .*ExponentialAveraging"),
    ],
)
@pytest.mark.parametrize("use", ["fit", "test"])
def test_what_the_command_line_refuses_of_a_trainer_is_refused_here_too(
    use: str, options: dict[str, Any], message: str, tmp_path: Path, files: Files, shared_cache: Path
) -> None:
    with pytest.raises(UserError, match=message):
        getattr(trainer_of(tmp_path, **options), use)(module_of("finetune"), datamodule=data_of(files, shared_cache))


def test_data_modules_of_other_classes_are_refused(tmp_path: Path) -> None:
    class Other(LightningDataModule):
        def train_dataloader(self) -> list[int]:
            return [1]

        val_dataloader = train_dataloader

    with pytest.raises(UserError, match="from a TextDataModule, or a subclass of it"):
        trainer_of(tmp_path).fit(module_of("finetune"), datamodule=Other())


def test_numbers_of_numpy_in_schedule_and_optimizer_can_be_read_again(tmp_path: Path, files: Files) -> None:
    class Trapezoid(Schedule):
        def factor(self, step: int, total_steps: int) -> float:
            return np.interp(step, [0, total_steps], [1, 0.1])  # type: ignore[no-any-return]

    numbers = partial(torch.optim.AdamW, lr=np.float64(0.01), weight_decay=np.float32(0.5))
    module = module_of("finetune", schedule=Trapezoid(), optimizer=numbers)
    checkpoint = read_checkpoint(fitted(tmp_path / "a.ckpt", module, data_of(files, tmp_path / "cache")))
    assert checkpoint.stage == "finetune"


def test_loaders_without_their_data_module_are_refused(tmp_path: Path, files: Files, shared_cache: Path) -> None:
    data = data_of(files, shared_cache)
    data.prepare_data()
    data.setup()
    loader = data.document_loader("val")
    with pytest.raises(UserError, match="give datamodule=, not dataloaders"):
        trainer_of(tmp_path).fit(module_of("finetune"), train_dataloaders=loader, val_dataloaders=loader)
    with pytest.raises(UserError, match="give datamodule=, not dataloaders"):
        trainer_of(tmp_path).validate(module_of("finetune"), dataloaders=loader)


def test_what_lightning_has_and_lit_sft_does_otherwise_is_told(
    tmp_path: Path, files: Files, shared_cache: Path
) -> None:
    module, data = module_of("pretrain"), data_of(files, shared_cache)
    with pytest.raises(UserError, match=r"LearningRateFinder .*: use scripts/lr_range\.py"):
        Tuner(trainer_of(tmp_path)).lr_find(module, datamodule=data, num_training=3)
    with pytest.raises(UserError, match=r"for another give model\.schedule"):
        trainer_of(tmp_path).fit(OtherSchedule("pretrain", encoder=SMALL), datamodule=data)
    with pytest.raises(UserError, match=r"is for lit_sft\.load\(RUN_OR_CKPT\)\.predict\(texts\)"):
        trainer_of(tmp_path).predict(module, datamodule=data)


def test_a_network_that_was_built_by_hand_is_trained_on_its_own_labels_alone(
    tmp_path: Path, files: Files, shared_cache: Path
) -> None:
    data = data_of(files, shared_cache)
    data.prepare_data()
    data.setup()
    for stage in ("finetune", "pretrain"):
        module = module_of(stage)
        module.build(data.tokenizer, ["wood", "sky", "sea"])
        trainer = trainer_of(tmp_path, max_steps=1)
        if stage == "pretrain":  # a language model's labels are of no account
            trainer.fit(module, datamodule=data)
        else:
            with pytest.raises(UserError, match=r"the data have the labels \['sea', 'sky', 'wood'\]"):
                trainer.fit(module, datamodule=data)


def test_an_encoder_that_is_a_function_is_named_again(tmp_path: Path, files: Files) -> None:
    module = module_of("finetune")
    options = {"embedding_size": 8, "hidden_size": 12}
    module.blueprint = Blueprint(lambda size: LSTMEncoder(size, **options), *list(vars(module.blueprint).values())[1:])
    path = fitted(tmp_path / "c.ckpt", module, data_of(files, tmp_path / "cache"))
    with pytest.raises(UserError, match="it doesn't say which encoder it has, since a function made it"):
        lit_sft.load(path)
    loaded = lit_sft.load(path, encoder=partial(LSTMEncoder, **options))
    assert all(row is not None for row in loaded.predict(TEXTS))


def test_what_is_built_from_options_in_python_has_the_options_of_a_config() -> None:
    head = ("last", 0.1, 0, None, 10_000, None, None)
    plain = Blueprint(partial(LSTMEncoder, hidden_size=3), *head).plain()
    assert plain["encoder"]["class_path"] == "lit_sft.models.encoder.LSTMEncoder"
    assert plain["encoder"]["init_args"]["hidden_size"] == 3
    assert "vocab_size" not in plain["encoder"]["init_args"]
    assert Blueprint(LSTMEncoder, *head).plain()["encoder"]["init_args"]["hidden_size"] > 3
    assert "encoder" not in Blueprint(lambda size: LSTMEncoder(size), *head).plain()
    assert isinstance(LSTMEncoder(10, **plain["encoder"]["init_args"]), nn.Module)


class OwnEncoder(LSTMEncoder):
    """With what a signature can have beside plain options."""

    def __init__(
        self, vocab_size: int, sizes: tuple[int, int] = (8, 12), gate: Any = torch.tanh, *rest: Any, **more: Any
    ) -> None:
        super().__init__(vocab_size, *sizes, **more)
        self.gate = gate


def test_options_that_are_not_plain_are_stored_so_or_left_out_or_told() -> None:
    own = Blueprint(partial(OwnEncoder, sizes=(4, 6), output_dropout=np.float64(0.25), num_layers=np.int64(2)))
    found = own.plain()["encoder"]["init_args"]
    assert found == {"sizes": [4, 6], "output_dropout": 0.25, "num_layers": 2}
    assert {type(value) for value in found.values()} == {list, float, int}
    assert Blueprint(OwnEncoder).plain()["encoder"]["init_args"] == {"sizes": [8, 12]}
    both = Blueprint(partial(TwoWayEncoder, embedding_size=8, hidden_size=12)).plain()
    assert both["encoder"]["init_args"] == {"embedding_size": 8, "hidden_size": 12}
    with pytest.raises(UserError, match="the encoder's option gate is <built-in method relu"):
        lit_sft.LitSFT("finetune", encoder=partial(OwnEncoder, gate=torch.relu))


@pytest.mark.parametrize("kind", [OwnEncoder, TwoWayEncoder])
def test_a_training_with_options_by_keyword_is_loaded(kind: type[Encoder], tmp_path: Path, files: Files) -> None:
    options = {"sizes": (8, 12)} if kind is OwnEncoder else {"embedding_size": 8, "hidden_size": 12}
    module = lit_sft.LitSFT("finetune", encoder=partial(kind, **options, output_dropout=np.linspace(0, 0.5, 3)[1]))
    path = fitted(tmp_path / "c.ckpt", module, data_of(files, tmp_path / "cache"), max_steps=1)
    loaded = lit_sft.load(path, encoder=OwnEncoder if kind is OwnEncoder else None)
    kept = module.net.state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in loaded.network.state_dict().items())
    assert all(row is not None for row in loaded.predict(TEXTS))


def test_the_readme_s_training_in_python(
    tmp_path: Path,
    files: Files,
    example: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example("train.py")
    shutil.copy(files.train, tmp_path / "reviews.csv")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, of a notebook's defaults
        runpy.run_path("train.py")
    assert "'label': " in capsys.readouterr().out
