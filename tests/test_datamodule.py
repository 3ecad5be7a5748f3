"""What the data module serves: which documents, in which batches, to which stage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Files, labeled_rows, write_csv
from lightning.pytorch.callbacks import Callback
from training import PowerCut, data_of, module_of, trainer_of

from lit_sft.data.adopted import Adopted
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.tokenization import Tokenizer
from lit_sft.errors import UserError


def ready(files: Files, cache: Path, **options: Any) -> TextDataModule:
    data = data_of(files, cache, **options)
    data.prepare_data()
    data.setup()
    return data


def by_class(data: TextDataModule, split: str) -> dict[int, set[int]]:
    """Content keys of the split's documents, by class."""
    array = getattr(data, split)
    return {c: set(array.keys[array.labels == c].tolist()) for c in range(len(data.label_names))}


def test_low_shot_subsets_are_nested_and_balanced_and_drawn_by_the_seed(files: Files, shared_cache: Path) -> None:
    few, more, other = (
        ready(files, shared_cache, labels_per_class=number, seed=seed) for number, seed in ((3, 0), (8, 0), (3, 1))
    )
    for label in range(3):
        assert len(by_class(few, "train")[label]) == len(by_class(other, "train")[label]) == 3
        assert by_class(few, "train")[label] < by_class(more, "train")[label]
        assert len(by_class(more, "train")[label]) == 8
    assert by_class(few, "train") != by_class(other, "train")
    assert len(few.prepared.unlabeled) == 120  # the language model reads all the same


def test_validation_is_the_same_for_every_seed_and_follows_the_split_seed(files: Files, shared_cache: Path) -> None:
    drawn = [
        by_class(ready(files, shared_cache, val_labels_per_class=4, seed=seed, split_seed=split), "val")
        for seed, split in ((0, 0), (1, 0), (0, 1))
    ]
    assert {len(keys) for keys in drawn[0].values()} == {4}
    assert drawn[0] == drawn[1] != drawn[2]
    held = [ready(files, shared_cache, val=None, seed=seed, labels_per_class=seed) for seed in (1, 2)]
    assert np.array_equal(held[0].val.keys, held[1].val.keys)


def documents(data: TextDataModule, batches: list[Any]) -> list[tuple[int, ...]]:
    """The documents that the targets of an epoch spell, lane after lane."""
    text: list[int] = []
    for lane in range(data.batch_size):
        for batch in batches:
            text += [t for t in batch.targets[lane].tolist() if t != -100]
    found, current = [], []
    for token in text:
        if token == data.tokenizer.eos_id:
            found.append(tuple(current))
            current = []
        else:
            current.append(token)
    assert not current
    return found


def test_the_stream_holds_every_training_and_extra_document_once_an_epoch(files: Files, shared_cache: Path) -> None:
    data = ready(files, shared_cache, unlabeled=str(files.unlabeled), labels_per_class=2)
    texts = [*data.corpus.train.texts, *data.corpus.extra.texts]
    assert len(texts) == 180
    expected = Counter(tuple(ids.tolist()) for ids in data.tokenizer.encode_batch(texts))
    loader = data.stream_loader("train")
    epochs = [documents(data, list(loader)) for _ in range(3)]
    assert all(Counter(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    val = documents(data, list(data.stream_loader("val")))
    assert val == [tuple(ids.tolist()) for ids in data.tokenizer.encode_batch(data.corpus.val.texts)]


def test_every_labeled_document_is_served_once_an_epoch_with_its_label(files: Files, shared_cache: Path) -> None:
    data = ready(files, shared_cache, labels_per_class=11)
    loader = data.document_loader("train")
    orders = []
    for _ in range(2):
        served = [(int(i), int(y)) for batch in loader for i, y in zip(batch.indices, batch.labels, strict=True)]
        assert sorted(i for i, _ in served) == list(range(33))
        assert all(y == data.train.labels[i] for i, y in served)
        orders.append(served)
    assert orders[0] != orders[1]


def test_unlabeled_documents_come_without_labels_and_in_an_order_of_their_own(files: Files, shared_cache: Path) -> None:
    """The same documents in batches of the same sizes: those of one seed would be the labeled ones once more."""
    data = ready(files, shared_cache, max_unlabeled_documents=16)
    labeled, unlabeled = list(data.document_loader("train")), list(data.unlabeled_document_loader())
    served = [[batch.indices.tolist() for batch in batches] for batches in (labeled, unlabeled)]
    assert [sorted(i for batch in batches for i in batch) for batches in served] == [list(range(120))] * 2
    assert sorted(map(len, served[0])) == sorted(map(len, served[1]))
    assert len(set(map(frozenset, served[0])) & set(map(frozenset, served[1]))) < len(labeled) / 2
    assert all((batch.labels == -1).all() for batch in unlabeled)


def test_little_is_padding(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(" ".join(["tide"] * int(n)), "ab"[i % 2]) for i, n in enumerate(rng.lognormal(4, 0.8, 1500).clip(3, 400))]
    path = str(write_csv(tmp_path / "long.csv", rows))
    data = ready(files, shared_cache, labeled=path, val=path, test=None, max_length=400, max_documents=32)
    training, evaluation = data.document_loader("train"), data.document_loader("val")
    assert training.dataset.padding_share() < 0.1
    for batch in training:
        assert batch.input_ids.numel() <= data.max_tokens
        assert len(batch.labels) <= 32
    served = list(evaluation)
    assert all(batch.input_ids.numel() <= data.max_tokens for batch in served)
    assert max(len(batch.labels) for batch in served) > 32, "evaluation has the budget of tokens alone"


def test_an_adopted_tokenizer_takes_the_place_of_the_option(files: Files, shared_cache: Path) -> None:
    tokenizer = Tokenizer.train((text for text, _ in labeled_rows(5, 9)), "word", 60)
    data = data_of(files, shared_cache, tokenizer="bpe")
    data.adopt(Adopted(tokenizer, ["sea", "sky", "wood"]))
    data.prepare_data()
    data.setup()
    assert data.tokenizer.digest == tokenizer.digest
    assert data.train.document(0).tolist() == tokenizer.encode_batch(data.corpus.train.texts[:1])[0].tolist()


def test_labels_other_than_the_adopted_ones_are_refused(files: Files, shared_cache: Path) -> None:
    data = data_of(files, shared_cache)
    data.adopt(Adopted(ready(files, shared_cache).tokenizer, ["sky", "sea", "wood"]))
    data.prepare_data()
    with pytest.raises(UserError, match=r"labels \['sea', 'sky', 'wood'\], the checkpoint \['sky', 'sea', 'wood'\]"):
        data.setup()


def test_data_to_measure_on_are_not_trained_on(files: Files, shared_cache: Path) -> None:
    data = data_of(files, shared_cache)
    data.adopt(Adopted(ready(files, shared_cache).tokenizer, ["sea", "sky", "wood"]))
    data.read_only("val")
    data.prepare_data()
    data.setup()
    assert len(list(data.document_loader("val"))) > 0
    with pytest.raises(UserError, match=r"there are no train documents: set --data\.labeled"):
        data.document_loader("train")


def test_a_corpus_without_labels_pretrains_and_says_so_when_fine_tuned(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    options = {"labeled": None, "unlabeled": str(files.unlabeled), "val": None, "test": None}
    data = data_of(files, shared_cache, **options)
    trainer = trainer_of(tmp_path, max_steps=2, limit_val_batches=1.0)
    trainer.fit(module_of("pretrain"), datamodule=data)
    assert trainer.global_step == 2
    with pytest.raises(UserError, match=r"fine-tuning needs labeled data: give --data\.labeled a file"):
        trainer_of(tmp_path).fit(module_of("finetune"), datamodule=data_of(files, shared_cache, **options))
    with pytest.raises(UserError, match="fine-tuning needs labels"):
        data.document_loader("train")
    with pytest.raises(UserError, match=r"there are no test documents: set --data\.test"):
        data.stream_loader("test")


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_stage_gets_the_loaders_that_its_objective_and_heads_need(
    stage: str, files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    data = data_of(files, shared_cache)
    trainer_of(tmp_path, max_steps=1).fit(module_of(stage), datamodule=data)
    kind = "unlabeled" if stage == "pretrain" else "labeled"
    assert list(data.train_dataloader()) == [kind]
    assert data.train_batches() == len(data.train_dataloader()[kind])
    assert len(data.val_dataloader()) == len(data.test_dataloader()) == 1
    batch = next(iter(data.val_dataloader()[0]))
    assert type(batch) is type(next(iter(data.train_dataloader()[kind])))


class EndsAtOnce(Callback):
    """Ends a fit between its checkpoint, which is read, and its first batch."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        raise PowerCut


def test_a_position_is_that_of_the_fit_alone(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    """Not of a resume that failed before, and not of a loader that is looked at."""
    data = data_of(files, shared_cache)
    trainer = trainer_of(tmp_path, max_steps=3)
    trainer.fit(module_of("finetune"), datamodule=data)
    stood = data.state_dict()
    assert stood["labeled"]["served"] == 3
    next(iter(data.train_dataloader()["labeled"]))
    assert data.state_dict() == stood
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    options = {"ckpt_path": tmp_path / "c.ckpt", "weights_only": True}
    with pytest.raises(PowerCut):
        trainer_of(tmp_path, callbacks=[EndsAtOnce()]).fit(module_of("finetune"), datamodule=data, **options)
    trainer_of(tmp_path, max_steps=2).fit(module_of("finetune"), datamodule=data)
    assert data.state_dict()["labeled"]["served"] == 2


def test_a_repeated_batch_is_never_drawn_anew(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    data = data_of(files, shared_cache)
    trainer_of(tmp_path, max_epochs=1, overfit_batches=1).fit(module_of("finetune"), datamodule=data)
    loader = data.train_dataloader()["labeled"]
    first, second = next(iter(loader)), next(iter(loader))
    assert first.indices.tolist() == second.indices.tolist()


def test_bytes_a_target_are_those_of_text_over_tokens_and_ends(files: Files, shared_cache: Path) -> None:
    data = ready(files, shared_cache, val_labels_per_class=2)
    texts = [data.tokenizer.decode(data.val.document(i)) for i in range(6)]
    targets = sum(len(ids) + 1 for ids in data.tokenizer.encode_batch(texts))
    assert data.bytes_per_target("val") == sum(len(text.encode()) for text in texts) / targets


def test_lightning_may_not_share_the_batches_out_once_more(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    data = ready(files, shared_cache)
    data.trainer = trainer_of(tmp_path, devices=2)
    with pytest.raises(UserError, match="give the Trainer use_distributed_sampler=False"):
        data.document_loader("train")
    data.trainer = trainer_of(tmp_path, devices=2, use_distributed_sampler=False)
    assert len(data.document_loader("train")) > 0


def test_use_before_setup_is_an_error_of_the_caller(files: Files, shared_cache: Path) -> None:
    data = data_of(files, shared_cache)
    for use in (lambda: data.tokenizer, lambda: data.stream_loader("val"), lambda: data.bytes_per_target("val")):
        with pytest.raises(RuntimeError, match=r"call prepare_data\(\) and setup\(\) first"):
            use()
    data.prepare_data()
    data.setup()
    with pytest.raises(RuntimeError, match="need a Trainer"):
        data.train_dataloader()


def test_stretches_are_of_random_length_in_training_alone(files: Files, shared_cache: Path) -> None:
    fixed, drawn = (ready(files, shared_cache, bptt=16, batch_size=4, random_bptt=value) for value in (False, True))
    lengths = [
        [[batch.input_ids.shape[1] for batch in data.stream_loader(split)] for split in ("train", "val", "test")]
        for data in (fixed, drawn)
    ]
    assert lengths[0][1:] == lengths[1][1:]
    assert len(lengths[0][0]) == len(lengths[1][0])
    assert set(lengths[0][0][:-1]) == {16}
    assert len(set(lengths[1][0])) > 5
