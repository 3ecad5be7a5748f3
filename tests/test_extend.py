"""A vocabulary that grows, or is another one: which rows are kept, what the others are, and runs that start so."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Command, Configs, Fit, Trained, read, sentence
from refusals import one_line
from torch import Tensor
from toy_network import encoded

import lit_sft
from lit_sft.checkpoints import Checkpoint, read_checkpoint
from lit_sft.data.extension import extended
from lit_sft.data.tokenization import Tokenizer, TokenizerKind
from lit_sft.errors import UserError
from lit_sft.models import LMHead, LSTMEncoder, Network
from lit_sft.transfer import load_pretrained
from lit_sft.vocabulary import cutoffs_of

GENERAL = ["The cat sat.", "The dog sat, the cat ran!", "A cat and a dog and a cow ran."] * 2
TARGET = ["The emu sat.", "An emu, an owl and the cat RAN.", "an emu ran", "a newt"]


def words_of(texts: list[str], kind: str) -> Counter[str]:
    """Lower-cased words and punctuation marks by count, by hand."""
    for mark in ".,!" if kind == "word" else "":
        texts = [text.replace(mark, f" {mark} ") for text in texts]
    return Counter(word for text in texts for word in text.lower().split())


@pytest.mark.parametrize("kind", ["word", "whitespace"])
@pytest.mark.parametrize(("vocab_size", "min_frequency"), [(0, 1), (0, 2), (1, 1)])
def test_known_words_keep_their_ids_and_new_ones_come_behind_by_frequency(
    kind: TokenizerKind, vocab_size: int, min_frequency: int
) -> None:
    base = Tokenizer.train(GENERAL, kind, 0, lowercase=True, min_frequency=1)
    limit = vocab_size and base.vocab_size + vocab_size
    grown = extended(base, TARGET, limit, min_frequency)
    known = base.entries
    assert {token: grown.entries[token] for token in known} == known
    counts = words_of(TARGET, kind)
    fresh = sorted((-count, word) for word, count in counts.items() if word not in known and count >= min_frequency)
    expected = [word for _, word in fresh][: vocab_size or None]
    assert fresh
    assert [grown.entries[word] for word in expected] == list(range(base.vocab_size, grown.vocab_size))
    assert Tokenizer.from_json(grown.to_json()).entries == grown.entries
    assert grown.encode_batch(GENERAL[:2])[1].tolist() == base.encode_batch(GENERAL[:2])[1].tolist()
    ids = grown.encode_batch(["THE emu sat quixotic"])[0].tolist()
    assert ids == [grown.entries.get(word, grown.unk_id) for word in ("the", "emu", "sat", "quixotic")]
    assert extended(grown, TARGET, limit, min_frequency).digest == grown.digest


def test_a_vocabulary_is_learned_and_extended_though_standard_error_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    base = Tokenizer.train(GENERAL, "word", 0, min_frequency=1)
    assert extended(base, TARGET, 0, 1).vocab_size > base.vocab_size


def test_what_cannot_be_extended_is_refused() -> None:
    with pytest.raises(UserError, match="extend is for word-level tokenizers, and that of the checkpoint is BPE"):
        extended(Tokenizer.train(GENERAL, "bpe", 300), TARGET, 0, 1)
    base = Tokenizer.train(GENERAL, "word", 0, min_frequency=1)
    with pytest.raises(UserError, match=f"vocab_size {base.vocab_size - 1} is below the {base.vocab_size} entries"):
        extended(base, TARGET, base.vocab_size - 1, 1)


# ---- rows


def network_of(tokenizer: Tokenizer, seed: int, **head: Any) -> Network:
    torch.manual_seed(seed)
    encoder = LSTMEncoder(tokenizer.vocab_size, 16, 64)
    network = Network(encoder, LMHead(encoder.embedding, 64, **head)).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.5)
    return network


def source_of(network: Network, tokenizer: Tokenizer) -> Checkpoint:
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    return Checkpoint(Path("old.ckpt"), "pretrain", [], {}, tokenizer.to_json(), weights, 0)


def log_probs(network: Network, ids: Tensor) -> Tensor:
    """log p(any token) after each token, (tokens, vocabulary)."""
    encoder = network.encoder
    mask = torch.ones(1, len(ids))
    hidden = encoded(encoder, ids[None], mask, encoder.initial_state(1), encoder.draw_masks(1, len(ids))).hidden[0]
    return network.lm_head.log_prob(hidden)  # type: ignore[union-attr]


OLD = Tokenizer.train(GENERAL, "word", 0, lowercase=True, min_frequency=1)  # 3 special tokens and 10 words
NEW = extended(OLD, TARGET, 0, 1)
V, N = OLD.vocab_size, NEW.vocab_size - OLD.vocab_size
ADAPTIVE = {"tie_weights_up_to": 0, "adaptive_cutoffs": [4, 9]}


@pytest.mark.parametrize("options", [{}, ADAPTIVE], ids=["tied", "adaptive"])
@torch.no_grad()
def test_before_a_step_known_text_is_as_likely_up_to_the_new_words(options: dict[str, Any]) -> None:
    """The share of the new words, from the old logits: each has the mean logit of the softmax that it stands in."""
    old, new = network_of(OLD, 1, **options), network_of(NEW, 2, **options)
    assert load_pretrained(new, [source_of(old, OLD)], NEW, remap=True)[1] == 0
    ids = torch.from_numpy(OLD.encode_batch(["the cow ran and the cat sat , a dog !"])[0])
    before, after = log_probs(old, ids), log_probs(new, ids)[:, :V]
    first = 0 if not options else 9  # of the cluster that grows
    cluster = before[:, first:].log_softmax(-1)  # within it
    share = N * cluster.mean(-1, keepdim=True).exp()  # of the new words, over that of the others
    expected = before.clone()
    expected[:, first:] -= (1 + share).log()
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-11)
    assert ((before - after)[:, first:] <= torch.tensor(1 + N / (V - first)).log()).all()
    torch.testing.assert_close(log_probs(new, ids).exp().sum(-1), torch.ones(len(ids), dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, ADAPTIVE], ids=["tied", "adaptive"])
def test_known_rows_are_bit_equal_and_new_ones_the_mean(options: dict[str, Any]) -> None:
    old, new = network_of(OLD, 1, **options), network_of(NEW, 2, **options)
    load_pretrained(new, [source_of(old, OLD)], NEW, remap=True)
    theirs, own = old.state_dict(), new.state_dict()
    grown = [name for name in own if own[name].shape != theirs[name].shape]
    tied = ["encoder.embedding.weight", "lm_head.weight", "lm_head.bias"]
    assert sorted(grown) == sorted(tied if not options else [tied[0], "lm_head.adaptive.tail.1.1.weight"])
    for name, value in own.items():
        size = len(theirs[name])
        assert torch.equal(value[:size], theirs[name])
        mean = theirs[name].mean(0)
        assert all(torch.equal(row, mean) for row in value[size:])
    assert new.lm_head.tied is not bool(options)  # type: ignore[union-attr]
    if not options:
        assert new.lm_head.weight is new.encoder.embedding.weight  # type: ignore[union-attr]


def test_another_vocabulary_takes_rows_by_token_and_by_cluster() -> None:
    """Words in another order, with fewer in common, and other clusters; by a loop over tokens."""
    other = Tokenizer.train([*TARGET * 3, "the cow ran"], "word", 0, lowercase=True, min_frequency=1)
    cutoffs = {"old": [4, 9], "new": [6, 10]}
    old = network_of(OLD, 1, tie_weights_up_to=0, adaptive_cutoffs=cutoffs["old"])
    new = network_of(other, 2, tie_weights_up_to=0, adaptive_cutoffs=cutoffs["new"])
    fresh = {name: value.clone() for name, value in new.state_dict().items()}
    load_pretrained(new, [source_of(old, OLD)], other, remap=True)
    theirs, own = old.state_dict(), new.state_dict()
    assert fresh.keys() == own.keys()
    sides = {}
    for side, tokenizer in (("old", OLD), ("new", other)):
        low, high = cutoffs[side]
        sides[side] = {
            token: (0, i) if i < low else (1, i - low) if i < high else (2, i - high)
            for token, i in tokenizer.entries.items()
        }
    seen = {"kept": 0, "mean": 0}
    tables = ("head.weight", "tail.0.1.weight", "tail.1.1.weight")
    for token, place in other.entries.items():
        row = own["encoder.embedding.weight"][place]
        their_rows = theirs["encoder.embedding.weight"]
        expected = their_rows[OLD.entries[token]] if token in OLD.entries else their_rows.mean(0)
        assert torch.equal(row, expected)
        part, number = sides["new"][token]
        table = theirs[f"lm_head.adaptive.{tables[part]}"]
        table = table[:4] if part == 0 else table
        old_part, old_number = sides["old"].get(token, (None, 0))
        expected = table[old_number] if old_part == part else table.mean(0)
        assert torch.equal(own[f"lm_head.adaptive.{tables[part]}"][number], expected)
        seen["kept" if old_part == part else "mean"] += 1
    assert min(seen.values()) > 2
    assert torch.equal(own["lm_head.adaptive.head.weight"][6:], theirs["lm_head.adaptive.head.weight"][4:])
    assert cutoffs_of(own) == [6, 10, other.vocab_size]


def test_a_head_with_more_clusters_takes_over_those_that_both_have() -> None:
    old = network_of(OLD, 1, tie_weights_up_to=0, adaptive_cutoffs=[4])
    new = network_of(NEW, 2, tie_weights_up_to=0, adaptive_cutoffs=[4, 9])
    fresh = {name: value.clone() for name, value in new.state_dict().items()}
    load_pretrained(new, [source_of(old, OLD)], NEW, remap=True)
    own, theirs = ({n.removeprefix("lm_head.adaptive."): v for n, v in w.state_dict().items()} for w in (new, old))
    assert torch.equal(own["tail.0.0.weight"], theirs["tail.0.0.weight"])
    assert torch.equal(own["head.weight"][4:], theirs["head.weight"][4:].expand(2, -1))  # of the new one their mean
    for number in (0, 1):
        name = f"tail.1.{number}.weight"
        assert torch.equal(own[name], fresh[f"lm_head.adaptive.{name}"])


def test_a_head_of_another_kind_starts_fresh_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for own, theirs, words in (({}, ADAPTIVE, "adaptive and this one tied"), (ADAPTIVE, {}, "tied and this one adapt")):
        old, new = network_of(OLD, 1, **theirs), network_of(NEW, 2, **own)
        bias = next(value for name, value in new.named_parameters() if name.endswith("bias") and "lm_head" in name)
        before = bias.detach().clone()
        with caplog.at_level("INFO"):
            load_pretrained(new, [source_of(old, OLD)], NEW, remap=True)
        assert f"the checkpoint's is {words}" in caplog.text
        assert torch.equal(bias, before)
        assert torch.equal(new.encoder.embedding.weight[:V], old.encoder.embedding.weight)
    assert (
        f"vocabulary: {V} entries of old.ckpt are known here, {N} start from the mean, 0 are left behind" in caplog.text
    )


def test_other_kinds_of_tokens_and_other_vocabularies_without_leave_are_refused() -> None:
    old = source_of(network_of(OLD, 1), OLD)
    with pytest.raises(UserError, match=r"tokenizer doesn't fit old.ckpt.*--model.remap_vocabulary true"):
        load_pretrained(network_of(NEW, 2), [old], NEW)
    pieces = Tokenizer.train(GENERAL, "bpe", 300)
    with pytest.raises(UserError, match=r"the tokens of old.ckpt are WordLevel and those here BPE"):
        load_pretrained(network_of(pieces, 2), [old], pieces, remap=True)


# ---- runs


@pytest.fixture
def general(cli: Command, configs: Configs) -> Path:
    """A finished word-level pretraining on other text, with an adaptive softmax of one cluster from the id 10 on."""
    rng = random.Random(5)
    Path("general.txt").write_text("\n".join(sentence("sea", rng) for _ in range(80)), encoding="utf-8")
    for path in (configs.finetune, configs.pretrain):
        options = yaml.safe_load(path.read_text())
        options["trainer"] |= {"max_steps": 4}
        path.write_text(yaml.safe_dump(options))
    options["data"] |= {
        "labeled": None,
        "unlabeled": "general.txt",
        "val": None,
        "test": None,
        "tokenizer": "word",
        "vocab_size": 0,
    }
    options["model"] |= {"tie_weights_up_to": 0, "adaptive_cutoffs": [10]}
    options["model"]["encoder"]["init_args"] |= {"hidden_size": 16}
    path = configs.pretrain.with_name("general.yaml")
    path.write_text(yaml.safe_dump(options))
    done = cli("fit", "--config", path, "--run_dir", "general")
    assert done.code == 0, done.err
    return Path("general")


EXTEND = ["--data.tokenizer=extend", "--data.vocab_size=0", "--model.encoder.hidden_size=16"]


def weights_of(run: str | Path) -> tuple[Checkpoint, dict[str, Tensor]]:
    found = read_checkpoint(Path(run) / "checkpoints" / "last.ckpt")
    return found, found.network_weights()


def test_a_run_extends_the_vocabulary_and_another_goes_on_from_it(
    cli: Command, configs: Configs, general: Path
) -> None:
    options = ["--config", configs.pretrain, f"--model.init_from={general}", *EXTEND]
    done = cli("fit", *options, "--model.optimizer.lr=0", "--run_dir=target")
    assert done.code == 0, done.err
    (before, theirs), (after, own) = weights_of(general), weights_of("target")
    old, new = before.tokenizer(), after.tokenizer()
    assert old.entries.items() < new.entries.items()
    assert {"owl", "moon"} <= new.entries.keys() - old.entries.keys()
    assert "<eos>" in old.entries
    size = old.vocab_size
    for name, value in own.items():
        assert torch.equal(value[: len(theirs[name])], theirs[name]), name
    rows = own["encoder.embedding.weight"]
    assert all(torch.equal(row, rows[:size].mean(0)) for row in rows[size:])
    assert cutoffs_of(own) == [10, new.vocab_size]
    assert f"vocabulary: {size} entries" in done.log
    assert set(before.fed["digests"]) < set(after.fed["digests"])
    assert read(Path("target/config.yaml"))["model"]["adaptive_cutoffs"] == [10]

    tuned = ["--config", configs.finetune, "--model.init_from=target", "--model.encoder.hidden_size=16"]
    assert cli("fit", *tuned, "--run_dir=tuned").code == 0
    assert cli("test", "--ckpt_path", "tuned").code == 0
    assert cli("validate", "--ckpt_path", "target").code == 0
    assert weights_of("tuned")[0].tokenizer().digest == new.digest
    (found,) = lit_sft.load("tuned").predict(["the owl sees the moon"])
    assert found is not None
    straight = ["--config", configs.finetune, f"--model.init_from={general}", *EXTEND]
    assert cli("fit", *straight, "--run_dir=straight").code == 0
    assert weights_of("straight")[0].tokenizer().digest == new.digest


def test_a_run_with_an_extended_vocabulary_resumes(
    cli: Command, configs: Configs, general: Path, begun: list[int]
) -> None:
    options = ["--config", configs.pretrain, f"--model.init_from={general}", *EXTEND, "--trainer.max_steps=8"]
    options += ["--saving.every_steps=3"]
    assert cli("fit", *options, "--run_dir=target").code == 0
    saved = [read_checkpoint(path) for path in Path("target/checkpoints").glob("last-*.ckpt")]
    (path,) = [found.path for found in saved if found.global_step == 6]
    done = cli("fit", *options, f"--ckpt_path={path}", "--run_dir=rest")
    assert done.code == 0, done.err
    assert begun == [0, 6]
    ends = [weights_of(run) for run in ("target", "rest")]
    assert [found.global_step for found, _ in ends] == [8, 8]
    assert all(torch.equal(value, ends[1][1][name]) for name, value in ends[0][1].items())
    refused = cli("fit", *options, "--ckpt_path=target", "--data.min_frequency=3")
    assert refused.code == 2
    assert "a resumed run keeps its tokenizer" in refused.err


def test_a_recipe_of_three_stages_goes_from_general_text_to_labels(
    configs: Configs, general: Path, fit_recipe: Fit
) -> None:
    """Each stage starts from the one before; with a grown vocabulary, and with the one of the general text."""
    own = {"data": {"tokenizer": "extend", "vocab_size": 0}, "model": {"encoder": {"init_args": {"hidden_size": 16}}}}
    for name, options in (("grown", own), ("kept", {"model": own["model"]})):
        chosen = ["general", "target", "finetune"][: None if name == "grown" else 2]
        stages = [
            {"name": "general", "config": "tiny/general.yaml"},
            {"name": "target", "config": "tiny/pretrain.yaml", **options},
            {"name": "finetune", "config": "tiny/finetune.yaml", "model": own["model"]},
        ][: len(chosen)]
        if name == "kept":  # the clusters go with the vocabulary
            stages[1]["model"] = {**own["model"], "tie_weights_up_to": 0, "adaptive_cutoffs": [10]}
        configs.recipe.write_text(yaml.safe_dump({"stages": stages}))
        done = fit_recipe("--name", name)
        assert done.code == 0, done.err
        folder = Path("logs") / name / "version_0"
        assert read(folder / "metrics.json")["test"].keys() >= {"accuracy" if name == "grown" else "perplexity"}
        parts = [weights_of(folder / stage)[0] for stage in chosen]
        digests = [part.tokenizer().digest for part in parts]
        assert (digests[0] == digests[1]) is (name == "kept")
        assert len(set(digests[1:])) == 1
        for before, part in zip(chosen, parts[1:], strict=False):
            assert part.config["model"]["init_from"].startswith(str(folder / before))
        assert cutoffs_of(parts[1].network_weights()) == [10, parts[1].tokenizer().vocab_size]


SIZES = {"model": {"encoder": {"init_args": {"hidden_size": 16}}, "schedule": "lit_sft.optim.Constant"}}
GROWN = {"tokenizer": "extend", "vocab_size": 0}


def test_a_recipe_that_adapts_a_given_run_goes_on_where_it_was_killed(
    configs: Configs, general: Path, fit_recipe: Fit, monkeypatch: pytest.MonkeyPatch, begun: list[int]
) -> None:
    """Two stages, sizes of the run that is given, a kill in the first one, and a resume without naming that run."""
    adapt = {"name": "adapt", "config": "tiny/pretrain.yaml", "data": GROWN, **SIZES}
    tune = {"name": "finetune", "config": "tiny/finetune.yaml", **SIZES}
    configs.recipe.write_text(yaml.safe_dump({"stages": [adapt, tune]}))
    start = ("--model.init_from", general)
    assert fit_recipe("--name", "whole", *start).code == 0
    with monkeypatch.context() as patch:
        patch.setattr("lit_sft.recipes.run.run_process", half_of_it)
        assert fit_recipe("--name", "cut", *start).code == 137
    step, _ = weights_of("logs/cut/version_0/adapt")
    begun.clear()
    done = fit_recipe("--name", "cut", "--ckpt_path", "last")
    assert done.code == 0, done.err
    assert begun == [step.global_step, 0]
    whole, cut = Path("logs/whole/version_0"), Path("logs/cut/version_0")
    for stage in ("adapt", "finetune"):
        found, own = weights_of(whole / stage)
        resumed, other = weights_of(cut / stage)
        assert found.global_step == resumed.global_step == 4
        assert own.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in own.items())
    record = read(cut / "metrics.json")
    assert record.keys() == read(whole / "metrics.json").keys() >= {"adapt", "finetune", "test", "contamination"}
    assert record["test"] == read(whole / "metrics.json")["test"]


def half_of_it(command: list[str]) -> int:
    """A stage that ends, as one that is killed does, without a last word, a step after its last checkpoint."""
    from lit_sft.main import main
    from lit_sft.module import LitSFT

    step = LitSFT.training_step

    def until_then(module: LitSFT, batch: Any, batch_idx: int) -> Tensor | None:
        if module.global_step == 3:
            raise RuntimeError("killed")
        return step(module, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitSFT, "training_step", until_then)
        with pytest.raises(RuntimeError, match="killed"):
            main([*command[3:], "--saving.every_steps=2"])
    return 137


@pytest.mark.parametrize(
    ("general", "target", "message"),
    [
        ({"data": {"tokenizer": "bpe"}}, {"data": GROWN}, "that of stage general is BPE"),
        ({"data": {"vocab_size": 90}}, {"data": {**GROWN, "vocab_size": 80}}, "below the 90 of stage general"),
        ({}, {"data": GROWN, "init_from": None}, "stage target: --data.tokenizer extend needs --model.init_from"),
        ({}, {"data": GROWN, "model": {}}, "doesn't fit stage general: hidden_size 12 here and 16 there"),
        (
            {},
            {"data": {"tokenizer": "bpe"}, "model": {**SIZES["model"], "remap_vocabulary": True}},
            "--data.tokenizer bpe is BPE and that of stage general is WordLevel",
        ),
    ],
)
def test_stages_that_do_not_go_together_are_told_before_the_first_one_runs(
    general: dict[str, Any],
    target: dict[str, Any],
    message: str,
    configs: Configs,
    fit_recipe: Fit,
    calls: list[list[str]],
) -> None:
    word = {"data": {"tokenizer": "word"} | general.get("data", {})}
    stages = [
        {"name": "general", "config": "tiny/pretrain.yaml", **SIZES, **word},
        {"name": "target", "config": "tiny/pretrain.yaml", **SIZES, **target},
    ]
    configs.recipe.write_text(yaml.safe_dump({"stages": stages}))
    result = fit_recipe()
    one_line(result, message)
    assert calls == []
    assert not Path("logs").exists()


def test_a_dry_run_of_a_recipe_has_no_vocabulary_to_extend(configs: Configs, fit_recipe: Fit) -> None:
    stages = yaml.safe_load(configs.recipe.read_text())["stages"]
    stages[0]["data"] = {"tokenizer": "word"}
    stages.insert(1, {"name": "target", "config": "tiny/pretrain.yaml", "data": {"tokenizer": "extend"}})
    configs.recipe.write_text(yaml.safe_dump({"stages": stages}))
    assert fit_recipe("--trainer.fast_dev_run=true").code == 0


def test_a_vocabulary_of_its_own_takes_over_what_both_have(cli: Command, configs: Configs, general: Path) -> None:
    options = ["--config", configs.pretrain, f"--model.init_from={general}", "--model.encoder.hidden_size=16"]
    options += ["--data.tokenizer=word", "--model.remap_vocabulary=true", "--model.optimizer.lr=0", "--run_dir=own"]
    done = cli("fit", *options)
    assert done.code == 0, done.err
    assert "the LM head starts fresh, as the checkpoint's is adaptive and this one tied" in done.log
    (before, theirs), (after, own) = weights_of(general), weights_of("own")
    rows, their_rows = own["encoder.embedding.weight"], theirs["encoder.embedding.weight"]
    both = before.tokenizer().entries.keys() & after.tokenizer().entries.keys()
    assert 10 < len(both) < after.tokenizer().vocab_size
    for token, place in after.tokenizer().entries.items():
        expected = their_rows[before.tokenizer().entries[token]] if token in both else their_rows.mean(0)
        assert torch.equal(rows[place], expected)


def test_mistakes_are_told_in_a_line(cli: Command, configs: Configs, general: Path, trained: Trained) -> None:
    size = read_checkpoint(general / "checkpoints" / "last.ckpt").tokenizer().vocab_size
    for flags, message in (
        (["--data.tokenizer=extend"], "--data.tokenizer extend needs --model.init_from"),
        (["--data.tokenizer=extend", f"--model.init_from={trained.pretrain}"], "is for word-level tokenizers"),
        (
            ["--data.tokenizer=extend", f"--model.init_from={general}", "--data.vocab_size=4"],
            f"--data.vocab_size 4 is below the {size} entries",
        ),
        (
            ["--model.remap_vocabulary=true", f"--model.init_from={general}"],
            "--model.remap_vocabulary: --data.tokenizer bpe is BPE and that of",
        ),
        (
            [f"--data.tokenizer={trained.pretrain / 'tokenizer.json'}", f"--model.init_from={general}"],
            "--model.remap_vocabulary true",
        ),
    ):
        result = cli("fit", "--config", configs.pretrain, *flags)
        one_line(result, message)
