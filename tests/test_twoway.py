"""The two-way encoder against its two stacks, each run alone over one document at a time, and the runs around it."""

from __future__ import annotations

import inspect
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Command, Configs, Files, Result, read, tiny_options
from refusals import one_line
from test_encoder import IDS, LENGTHS, MASK
from torch import Tensor, nn
from toy_network import encoded

import lit_sft
from lit_sft.checkpoints import Checkpoint, names_in, read_checkpoint, resolve
from lit_sft.data.buckets import collate
from lit_sft.data.provenance import together
from lit_sft.data.readers import iter_rows
from lit_sft.errors import UserError
from lit_sft.evaluation.predictions import read_predictions
from lit_sft.models import ClassifierHead, EncoderMasks, LMHead, LSTMEncoder, Network, TwoWayEncoder
from lit_sft.models.twoway import backward_order

DROPOUTS = [name for name in inspect.signature(LSTMEncoder).parameters if "dropout" in name]


def build(p: float = 0.4, **options: Any) -> TwoWayEncoder:
    sizes = {"vocab_size": 11, "embedding_size": 5, "hidden_size": 6, "num_layers": 2}
    torch.manual_seed(1)
    encoder = TwoWayEncoder(**{**sizes, **dict.fromkeys(DROPOUTS, p), **options})
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "bias" in name:
                parameter.uniform_(-1, 1)
    return encoder.double()


def of_row(masks: EncoderMasks, row: int, words: slice) -> EncoderMasks:
    """The masks of one document, its words in the order it is read."""

    def own(mask: Tensor | None) -> Tensor | None:
        return None if mask is None else mask[row : row + 1]

    hidden = tuple(own(mask) for mask in masks.hidden)
    order = None if masks.words is None else masks.words[row : row + 1, torch.arange(7)[words].tolist()]
    return EncoderMasks(own(masks.embedding), hidden, own(masks.output), masks.recurrent, masks.types, order)


def alone(stack: LSTMEncoder, ids: Tensor, masks: EncoderMasks) -> Tensor:
    """One document without padding through one stack, (time, hidden_size)."""
    ones = torch.ones(1, len(ids))
    return encoded(stack, ids[None], ones, stack.initial_state(1), masks).hidden[0]


@pytest.mark.parametrize("training", [True, False])
def test_each_half_equals_its_stack_run_alone_over_each_document(training: bool) -> None:
    encoder = build().train(training)
    masks = encoder.draw_masks(4, 7)
    hidden, state, raw = encoded(encoder, IDS, MASK, encoder.initial_state(4), masks)
    assert hidden.shape == raw.shape == (4, 7, 12)
    assert len(state) == 4
    for row, length in enumerate(LENGTHS):
        ids = IDS[row, :length]
        ahead = alone(encoder.forward_stack, ids, of_row(masks.forward, row, slice(0, length)))
        own = of_row(masks.backward, row, slice(0, length))
        if own.words is not None:
            own = EncoderMasks(own.embedding, own.hidden, own.output, own.recurrent, own.types, own.words.flip(1))
        back = alone(encoder.backward_stack, ids.flip(0), own)
        torch.testing.assert_close(hidden[row, :length], torch.cat([ahead, back], -1), rtol=0, atol=1e-12)
        assert not hidden[row, length:].any()


def test_the_last_step_is_what_each_stack_read_last_and_order_changes_no_other_pooling() -> None:
    encoder = build().eval()
    network = Network(encoder, classifier=ClassifierHead(12, 3, pooling="concat", dropout=0.0).double()).eval()
    batch = collate([IDS[row, :n].numpy() for row, n in enumerate(LENGTHS)], eos_id=9, pad_id=0)
    pooled = network.pooled(batch, network.draw_masks(*batch.input_ids.shape))
    none = encoder.draw_masks(1, 9).forward
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.input_ids[row, :length]
        ahead = alone(encoder.forward_stack, ids, none)
        back = alone(encoder.backward_stack, ids.flip(0), none).flip(0)  # in the order of the tokens
        both = torch.cat([ahead, back], -1)
        last = torch.cat([ahead[-1], back[0]])
        expected = torch.cat([last, both.amax(0), both.mean(0)])
        torch.testing.assert_close(pooled[row], expected, rtol=0, atol=1e-12)


def test_the_order_of_a_reader_from_the_end_leaves_padding_where_it_is() -> None:
    order = backward_order(MASK)
    assert [row[:n] for row, n in zip(order.tolist(), LENGTHS, strict=True)] == [
        list(reversed(range(n))) for n in LENGTHS
    ]
    assert [row[n:] for row, n in zip(order.tolist(), LENGTHS, strict=True)] == [list(range(n, 7)) for n in LENGTHS]


@pytest.mark.parametrize("place", range(4))
def test_token_vectors_stand_at_their_token_in_both_halves(place: int) -> None:
    """A gradient or a perturbation of what embed returned concerns one token: it reaches what is read from it on."""
    encoder = build(0.0)
    masks, state = encoder.draw_masks(4, 7), encoder.initial_state(4)
    vectors = encoder.embed(IDS, masks)
    assert vectors.shape == (4, 7, 10)
    hidden = encoder(vectors, MASK, state, masks).hidden
    moved = vectors.clone()
    moved[2, place] += 1.0  # a document of 4 tokens
    changed = (encoder(moved, MASK, state, masks).hidden != hidden).view(4, 7, 2, 6).any(-1)
    assert not changed[[0, 1, 3]].any()
    assert changed[2, :4, 0].tolist() == [step >= place for step in range(4)]
    assert changed[2, :4, 1].tolist() == [step >= 3 - place for step in range(4)]  # it reads token 3 - step


def test_a_gradient_through_the_ends_alone_goes_through_what_each_stack_reads_last() -> None:
    encoder = build().train()
    masks, state = encoder.draw_masks(4, 7), encoder.initial_state(4)
    vectors = encoder.embed(IDS, masks).detach().requires_grad_()
    whole = encoder(vectors, MASK, state, masks)
    tails = encoder.forward_tails(vectors, MASK, masks, 3)  # in chunks of one token
    torch.testing.assert_close(tails.hidden, whole.hidden, rtol=0, atol=1e-12)
    torch.testing.assert_close(tails.raw * MASK[..., None], whole.raw * MASK[..., None], rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(tails.hidden.square().sum(), vectors)
    (full,) = torch.autograd.grad(whole.hidden.square().sum(), vectors)
    reached = gradient.view(4, 7, 2, 5).ne(0).any(-1)
    for row, length in enumerate(LENGTHS):
        assert reached[row, :, 0].tolist() == [max(0, length - 3) <= place < length for place in range(7)]
        assert reached[row, :, 1].tolist() == [place < min(3, length) for place in range(7)]
        if length <= 3:
            torch.testing.assert_close(gradient[row], full[row], rtol=0, atol=1e-12)


def test_the_command_line_knows_the_options_of_its_stacks(cli: Command, configs: Configs) -> None:
    arguments = ["fit", "--config", configs.finetune, "--model.encoder", "TwoWayEncoder"]
    shown = cli(*arguments, "--print_config")
    assert shown.code == 0
    found = yaml.safe_load(shown.out)["model"]["encoder"]["init_args"]
    stacks = {n: p.default for n, p in inspect.signature(LSTMEncoder).parameters.items() if n != "vocab_size"}
    assert set(found) == set(stacks)
    wrong = cli(*arguments, "--model.encoder.hiden_size", "3")
    assert wrong.code == 2
    assert "no option model.encoder.hiden_size of lit_sft.models.TwoWayEncoder; did you mean hidden_size?" in wrong.err


def test_it_has_the_options_of_its_stacks() -> None:
    options = {"embedding_size": 3, "hidden_size": 4, "num_layers": 3} | {
        name: 0.01 * (i + 1) for i, name in enumerate(DROPOUTS)
    }
    encoder = TwoWayEncoder(11, **options)
    for stack in (encoder.forward_stack, encoder.backward_stack):
        given = {name: getattr(stack, name) for name in DROPOUTS}
        given |= {"embedding_size": stack.embedding.embedding_dim, "hidden_size": stack.output_size}
        assert given | {"num_layers": len(stack.layers)} == options
    assert not torch.equal(encoder.forward_stack.embedding.weight, encoder.backward_stack.embedding.weight)
    with pytest.raises(ValueError, match="hidden_size=0"):
        TwoWayEncoder(11, hidden_size=0)


def test_layers_of_one_height_are_a_group() -> None:
    encoder = build()
    network = Network(encoder, classifier=ClassifierHead(12, 3).double())
    names = {id(p): name for name, p in network.named_parameters()}
    groups = [[names[id(p)] for p in group] for group in network.layer_groups()]
    assert groups[0] == ["encoder.forward_stack.embedding.weight", "encoder.backward_stack.embedding.weight"]
    for height, group in enumerate(groups[1:3]):
        stacks = ("forward_stack", "backward_stack")
        assert {".".join(n.split(".")[1:4]) for n in group} == {f"{stack}.layers.{height}" for stack in stacks}
        assert len(group) == 8
    assert sum(map(len, groups)) == len(names)


def test_heads_that_it_can_not_serve_are_refused() -> None:
    encoder = build()
    with pytest.raises(ValueError, match=r"pretrain two LSTMEncoders, with --data\.direction"):
        Network(encoder, LMHead(encoder.embedding, 12))
    with pytest.raises(ValueError, match=r"pooling=attention .* use last, mean, max or concat"):
        Network(encoder, classifier=ClassifierHead(12, 3, pooling="attention"))


# ---- runs


@dataclass(frozen=True)
class Pair:
    """A finished forward and a finished backward pretraining, and the config of a fine-tuning from both."""

    forward: Path
    backward: Path
    finetune: Path

    def both(self) -> str:
        return f"{self.backward},{self.forward}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, files: Files, shared_cache: Path) -> Pair:
    from lit_sft.main import main

    folder = tmp_path_factory.mktemp("pair")
    options: Any = tiny_options(files, "pretrain")
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(options))
    options = tiny_options(files, "finetune")
    options["model"]["encoder"]["class_path"] = "lit_sft.models.TwoWayEncoder"
    options["data"] |= {"max_length": 9, "truncation": "tail"}
    (folder / "finetune.yaml").write_text(yaml.safe_dump(options))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LIT_SFT_CACHE", str(shared_cache))
        for direction in ("forward", "backward"):
            flags = ["--data.direction", direction, "--run_dir", direction, "--seed_everything", str(len(direction))]
            assert main(["fit", "--config", "pretrain.yaml", *flags]) == 0
    return Pair(folder / "forward", folder / "backward", folder / "finetune.yaml")


def checkpoint_of(run: Path) -> Checkpoint:
    return read_checkpoint(resolve(run, "ckpt_path"))


@pytest.mark.parametrize("how", ["commas", "list", "config"])
def test_each_pretraining_goes_into_its_stack_to_the_bit(how: str, pair: Pair, cli: Command) -> None:
    start = ["--model.init_from", pair.both()]
    if how == "list":
        start[1] = f"[{pair.forward}, {pair.backward}]"
    if how == "config":
        Path("start.yaml").write_text(yaml.safe_dump({"model": {"init_from": [str(pair.backward), str(pair.forward)]}}))
        start = ["--config", "start.yaml"]
    result = cli("fit", "--config", pair.finetune, *start, "--model.optimizer.lr", "0", "--run_dir", "fine")
    assert result.code == 0, result.err
    assert "loaded 10 tensors, 2 start fresh" in result.log  # embedding and 4 weights of a layer, twice
    found = checkpoint_of(Path("fine"))
    weights, loaded = found.network_weights(), 0
    for direction in ("forward", "backward"):
        for name, weight in checkpoint_of(getattr(pair, direction)).network_weights().items():
            if name.startswith("encoder."):
                assert torch.equal(weights[name.replace("encoder.", f"encoder.{direction}_stack.")], weight)
                loaded += 1
    assert loaded == 10
    assert found.direction == read(Path("fine/config.yaml"))["data"]["direction"] == "forward"
    assert found.config["model"]["init_from"] == [
        str(pair.forward / "checkpoints/best.ckpt"),
        str(pair.backward / "checkpoints/best.ckpt"),
    ]


def test_predict_equals_test_and_needs_nothing_but_the_checkpoint(pair: Pair, cli: Command, files: Files) -> None:
    for run in ("forward", "backward"):
        shutil.copytree(getattr(pair, run), run)
    result = cli("fit", "--config", pair.finetune, "--model.init_from", "forward,backward", "--run_dir", "fine")
    assert result.code == 0, result.err
    shutil.rmtree("forward")
    shutil.rmtree("backward")
    assert cli("test", "--ckpt_path", "fine").code == 0
    tested = read_predictions(Path("fine/predictions.parquet"))
    found = lit_sft.load("fine", device="cpu").predict([row.text for row in iter_rows(files.test, labels=False)])
    probabilities = np.array([list(row["probabilities"].values()) for row in found if row])
    assert np.abs(probabilities - tested.probabilities).max() < 1e-6
    assert tested.documents.tolist() == list(range(30))

    again = ("fit", "--config", pair.finetune, "--model.init_from", "fine", "--run_dir", "again")
    assert "loaded 12 tensors, 0 start fresh" in cli(*again).log  # a run of its own starts another one, head and all


def test_a_fine_tuning_is_resumed_to_the_same_end(pair: Pair, cli: Command, begun: list[int]) -> None:
    def fit(name: str, *more: object) -> dict[str, Tensor]:
        result = cli("fit", "--config", pair.finetune, "--run_dir", name, *constant, *more)
        assert result.code == 0, result.err
        return read_checkpoint(Path(name, "checkpoints/last.ckpt")).network_weights()

    constant = ("--model.schedule", "lit_sft.optim.Constant")
    start = ("--model.init_from", pair.both())
    whole = fit("whole", *start, "--trainer.max_epochs", "2")
    fit("cut", *start)
    Path("cut/metrics.json").unlink()
    step = read_checkpoint(Path("cut/checkpoints/last.ckpt")).global_step
    rest = fit("cut", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert begun == [0, 0, step]
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


def test_mistakes_are_told_in_one_line(pair: Pair, cli: Command) -> None:
    def refused(*words: str, start: str = "", flags: tuple[str, ...] = ()) -> None:
        given = ("--model.init_from", start) if start else ()
        result: Result = cli("fit", "--config", pair.finetune, *given, *flags, "--run_dir", "refused")
        one_line(result, *words)
        assert not Path("refused").exists()

    lstm = (
        "--model.encoder",
        "LSTMEncoder",
        "--model.encoder.embedding_size",
        "8",
        "--model.encoder.hidden_size",
        "12",
    )
    refused("both read forward", "and one with backward", start=f"{pair.forward},{pair.forward}")
    refused("names 3 runs", start=f"{pair.both()},{pair.forward}")
    refused("LSTMEncoder starts from one", start=pair.both(), flags=lstm)
    refused("reads backward only", "--model.init_from FORWARD,BACKWARD", start=str(pair.backward))
    refused("nowhere: no such run or checkpoint", start=f"{pair.forward},nowhere")
    refused(
        "encoder.forward_stack.embedding.weight is", start=pair.both(), flags=("--model.encoder.embedding_size", "9")
    )
    refused("reads both ways by itself", start=pair.both(), flags=("--data.direction", "backward"))
    refused("pooling=attention", start=pair.both(), flags=("--model.pooling", "attention"))
    refused("pretrain two LSTMEncoders", flags=("--model.stage", "pretrain"))
    other = ("--data.vocab_size", "270", "--data.direction", "backward", "--run_dir", "small")
    assert cli("fit", "--config", pair.finetune.with_name("pretrain.yaml"), *other).code == 0
    refused("have different tokenizers", "RUN/tokenizer.json", start=f"small,{pair.forward}")
    assert cli("fit", "--config", pair.finetune, "--trainer.max_steps", "1", "--run_dir", "both").code == 0
    refused("reads both ways: give --model.encoder TwoWayEncoder", start="both", flags=lstm)
    for start in (f"{pair.forward},", "[a, [b]", "[a: b: c]"):
        refused("is no list of runs or checkpoints: name one, or several as A,B", start=start)


def test_names_of_runs_in_a_text(tmp_path: Path) -> None:
    comma = tmp_path / "a,b"
    comma.mkdir()
    many = [f"logs/{'x' * 200}/version_{i}" for i in range(40)]  # longer together than a path can be
    for given, expected in (
        (None, []),
        (["a,b"], ["a,b"]),
        ("a, b", ["a", "b"]),
        ("[a, 'b,c']", ["a", "b,c"]),
        (str(comma), [str(comma)]),
        (",".join(many), many),
    ):
        assert names_in(given) == expected
    for wrong in ("", " ", ",", "a,,b", "[]", "[a, ]]", "[{a: b}]"):
        with pytest.raises(UserError, match="is no list of runs or checkpoints"):
            names_in(wrong)


def test_what_two_checkpoints_were_fed_with_is_that_of_both() -> None:
    one, two = {"digests": ["b", "a"], "transductive": False}, {"digests": ["c", "a"], "transductive": True}
    assert together([one, two]) == {"digests": ["a", "b", "c"], "transductive": True}
    assert together([one, one]) == {"digests": ["a", "b"], "transductive": False}


@pytest.mark.filterwarnings("ignore:transductive")
def test_a_run_is_transductive_where_either_pretraining_was(pair: Pair, cli: Command, files: Files) -> None:
    fed = ("--data.unlabeled", f"csv:{files.test}", "--data.tokenizer", str(pair.forward / "tokenizer.json"))
    pretrain = ("fit", "--config", pair.finetune.with_name("pretrain.yaml"))
    assert cli(*pretrain, *fed, "--data.direction", "backward", "--run_dir", "fed").code == 0
    for runs, expected in ((pair.both(), False), (f"fed,{pair.forward}", True)):
        assert cli("fit", "--config", pair.finetune, "--model.init_from", runs, "--run_dir", str(expected)).code == 0
        assert read(Path(str(expected), "metrics.json"))["contamination"]["transductive"] is expected


def test_parameters_are_named_once() -> None:
    names = [name for name, _ in build().named_parameters()]
    assert sorted(names) == sorted(build().state_dict())
    assert isinstance(build().embedding, nn.Embedding)
