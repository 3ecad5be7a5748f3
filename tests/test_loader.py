"""The loader goes on where a state was taken: alone, with workers, and inside a Lightning fit."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_sft.data.batches import BatchDataset
from lit_sft.data.buckets import DocumentDataset
from lit_sft.data.loader import StatefulLoader
from lit_sft.data.streams import StreamDataset
from lit_sft.data.tokens import TokenArray
from lit_sft.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 on torch 2.13

NUM_BATCHES = 6


def stream_data() -> StreamDataset:
    ids = iter(range(10, 10_000))
    lengths = np.random.default_rng(0).integers(1, 20, 25)
    tokens = TokenArray.from_ids([[next(ids) for _ in range(n)] for n in lengths])
    data = StreamDataset(tokens, eos_id=2, pad_id=0, batch_size=4, bptt=12, seed=0, shuffle=True)
    assert len(data) == NUM_BATCHES
    return data


ORDER = stream_data().order


def document_data() -> DocumentDataset:
    tokens = TokenArray.from_ids([[i + 3] * (1 + i % 9) for i in range(40)])
    return DocumentDataset(tokens, 2, 0, 5, "head", max_tokens=60, max_documents=9, seed=0, shuffle=True)


DATA: dict[str, Callable[[], BatchDataset[Any]]] = {"stream": stream_data, "documents": document_data}
Shown = list[list[int]]


def show(batch: Any) -> Shown:
    shown: Shown = batch.input_ids.tolist()
    return shown


def unbroken(make: str, epochs: int) -> list[list[Shown]]:
    """Batches of each epoch, straight from the data set."""
    data = DATA[make]()
    shown = []
    for epoch in range(epochs):
        data.set_epoch(epoch)
        shown.append([show(data[i]) for i in range(len(data))])
    return shown


@pytest.mark.parametrize("make", list(DATA))
@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_pass_is_the_next_epoch(make: str, num_workers: int) -> None:
    loader = StatefulLoader(DATA[make](), num_workers=num_workers)
    expected = unbroken(make, 3)
    assert [[show(batch) for batch in loader] for _ in range(3)] == expected
    assert expected[0] != expected[1]
    assert len(loader) == len(expected[0])


@pytest.mark.parametrize("make", list(DATA))
@pytest.mark.parametrize(("num_workers", "stops"), [(0, range(13)), (2, [0, 4, 6, 7])])
def test_a_new_loader_goes_on_with_the_next_batch(make: str, num_workers: int, stops: Any) -> None:
    epochs = unbroken(make, 5)
    size = len(epochs[0])
    expected = [batch for epoch in epochs for batch in epoch]
    for stop in stops:
        loader = StatefulLoader(DATA[make](), num_workers=num_workers)
        for batch in islice((b for _ in range(3) for b in loader), stop):
            assert loader.served > 0, batch
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        resumed = StatefulLoader(DATA[make](), num_workers=num_workers)
        resumed.load_state_dict(state)
        assert len(resumed) == size
        passes = [[show(batch) for batch in resumed] for _ in range(2)]
        assert passes[0] + passes[1] == expected[stop : stop + len(passes[0]) + size]
        assert len(passes[0]) == size - stop % size
        assert len(passes[1]) == size


def test_a_batch_counts_before_it_is_handed_out_and_prefetched_ones_do_not() -> None:
    loader = StatefulLoader(stream_data(), num_workers=2)
    states = [loader.state_dict()]
    for _ in loader:
        states.append(loader.state_dict())
    states.append(loader.state_dict())
    expected = [(0, served) for served in range(NUM_BATCHES)] + [(1, 0), (1, 0)]
    assert [(s["epoch"], s["served"]) for s in states] == expected


def test_iterators_dropped_unused_change_nothing() -> None:
    loader = StatefulLoader(stream_data())
    loader.load_state_dict(loader.state_dict() | {"epoch": 1, "served": 2})
    for _ in range(3):
        iter(loader)
    assert [show(batch) for batch in loader] == unbroken("stream", 2)[1][2:]


def test_after_a_pass_broken_off_the_next_one_is_a_whole_new_epoch() -> None:
    loader = StatefulLoader(stream_data())
    next(iter(loader))
    assert [show(batch) for batch in loader] == unbroken("stream", 2)[1]


def test_iterating_draws_nothing_from_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    list(StatefulLoader(stream_data()))
    assert torch.equal(torch.get_rng_state(), expected)


def test_loader_pickles_with_its_position() -> None:
    loader = StatefulLoader(stream_data())
    loader.load_state_dict(loader.state_dict() | {"epoch": 1, "served": 2})
    copy = pickle.loads(pickle.dumps(loader))
    assert [show(batch) for batch in copy] == unbroken("stream", 2)[1][2:]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"epoch": 0, "served": 0},
        {"epoch": 0, "served": 0, "batches": NUM_BATCHES, "order": ORDER, "seed": 1},
        {"epoch": -1, "served": 0, "batches": NUM_BATCHES, "order": ORDER},
        {"epoch": 0, "served": 1.5, "batches": NUM_BATCHES, "order": ORDER},
        {"epoch": 0, "served": NUM_BATCHES + 1, "batches": NUM_BATCHES, "order": ORDER},
        {"epoch": 0, "served": 1, "batches": NUM_BATCHES + 1, "order": ORDER},
    ],
)
def test_rejects_a_state_that_does_not_fit(state: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"not one of this loader|cannot resume"):
        StatefulLoader(stream_data()).load_state_dict(state)


def changed_data(how: str) -> StreamDataset:
    data = stream_data()
    seed, chosen = int(how == "seed"), np.roll(np.arange(25), int(how == "documents"))
    drawn = how == "stretches"  # of random length, but as many
    return StreamDataset(data.tokens.select(chosen), 2, 0, 4, bptt=12, seed=seed, shuffle=True, random_bptt=drawn)


@pytest.mark.parametrize("how", ["seed", "documents", "stretches"])
def test_in_an_epoch_of_other_documents_or_another_order_a_position_means_nothing(how: str) -> None:
    loader = StatefulLoader(stream_data())
    other = StatefulLoader(changed_data(how))
    assert len(other) == len(loader)
    with pytest.raises(UserError, match="batches into an epoch of other documents, or of another order"):
        other.load_state_dict(loader.state_dict() | {"served": 2})
    other.load_state_dict(loader.state_dict() | {"epoch": 1})


def test_at_the_start_of_an_epoch_another_number_of_batches_is_fine() -> None:
    loader = StatefulLoader(stream_data())
    loader.load_state_dict({"epoch": 1, "served": 0, "batches": 99, "order": 1})
    assert [show(batch) for batch in loader] == unbroken("stream", 2)[1]


class Recorder(pl.LightningModule):
    """One weight; writes down what it is trained on, and may fail there."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fail_at = fail_at
        self.seen: list[tuple[int, int, Any]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == self.fail_at:
            raise RuntimeError("power cut")
        shown = {k: show(b) for k, b in batch.items()} if isinstance(batch, dict) else show(batch)
        self.seen.append((self.current_epoch, batch_idx, shown))
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert batch.input_ids.dtype == torch.int64

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Recorder, folder: Path, train: Any, ckpt_path: str | None = None, **options: Any) -> None:
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saver],
        **options,
    )
    validation = StatefulLoader(document_data())
    trainer.fit(module, train, validation, ckpt_path=ckpt_path, weights_only=True)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("fail_at", [5, 8, 13, 17])  # last checkpoints: 4, 8 and 12 (the end of epoch 1), 16
def test_a_lightning_run_cut_off_resumes_with_the_batches_of_an_unbroken_one(
    tmp_path: Path, fail_at: int, num_workers: int
) -> None:
    whole = Recorder()
    fit(whole, tmp_path / "whole", StatefulLoader(stream_data(), num_workers))
    assert [batch for _, _, batch in whole.seen] == [b for epoch in unbroken("stream", 3) for b in epoch]

    broken = Recorder(fail_at)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(broken, tmp_path / "broken", StatefulLoader(stream_data(), num_workers))
    saved = fail_at // 4 * 4
    resumed = Recorder()
    checkpoint = str(tmp_path / "broken" / f"step={saved}.ckpt")
    fit(resumed, tmp_path / "broken", StatefulLoader(stream_data(), num_workers), checkpoint)
    assert broken.seen[:saved] + resumed.seen == whole.seen


def two_loaders() -> dict[str, StatefulLoader[Any]]:
    """Six batches beside five: Lightning cycles the shorter loader."""
    return {"unlabeled": StatefulLoader(stream_data()), "labeled": StatefulLoader(document_data())}


@pytest.mark.parametrize("fail_at", [5, 9, 17])
def test_two_loaders_side_by_side_resume_in_mid_epoch(tmp_path: Path, fail_at: int) -> None:
    whole, broken, resumed = Recorder(), Recorder(fail_at), Recorder()
    fit(whole, tmp_path / "whole", two_loaders())
    with pytest.raises(RuntimeError, match="power cut"):
        fit(broken, tmp_path / "broken", two_loaders())
    saved = fail_at // 4 * 4
    fit(resumed, tmp_path / "broken", two_loaders(), str(tmp_path / "broken" / f"step={saved}.ckpt"))
    assert broken.seen[:saved] + resumed.seen == whole.seen


def test_a_process_ends_with_an_iterator_half_read() -> None:
    script = """
import numpy as np
from lit_sft.data.buckets import DocumentDataset
from lit_sft.data.loader import StatefulLoader
from lit_sft.data.tokens import TokenArray

documents = TokenArray.from_ids([[1, 2, 3]] * 20)
batches = iter(StatefulLoader(DocumentDataset(documents, 0, 0, 10, "head", 64, 4, 0, True), num_workers=1))
next(batches)
print("end")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "end\n")
