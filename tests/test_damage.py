"""Damaged checkpoints: told in one line, or passed over for the one before; never a traceback or a wrong start."""

from __future__ import annotations

import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Command, Configs, Files, Trained
from kill import unequal
from refusals import commands, refused

from lit_sft import load
from lit_sft.checkpoint_io import AtomicCheckpointIO
from lit_sft.checkpoints import saved
from lit_sft.errors import UserError
from lit_sft.resume import last_checkpoint, read_resumable

pytestmark = pytest.mark.filterwarnings("ignore:.*going on from the one before")


def last_of(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


# ---- torn, truncated, bit-flipped


def damaged(whole: bytes, places: Callable[[random.Random], int], rng: random.Random) -> bytes:
    """A checkpoint's bytes with one damage of a kind that disks, networks and power cuts do."""
    kind, content = rng.choice(["flip", "flips", "byte", "truncated", "torn", "hole", "swapped", "longer"]), None
    content, start = bytearray(whole), rng.randrange(len(whole))
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else 4):
            content[places(rng)] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        content[places(rng)] = rng.randrange(256)
    elif kind == "truncated":
        del content[start:]
    elif kind == "torn":  # the length came to the disk, the rest of the data didn't
        content[start:] = bytes(len(content) - start)
    elif kind == "hole":
        end = min(start + rng.choice([16, 512, 4096]), len(content))
        content[start:end] = bytes(end - start)
    elif kind == "swapped":
        first, second = (rng.randrange(0, len(content) - 512, 512) for _ in range(2))
        content[first : first + 512], content[second : second + 512] = (
            content[second : second + 512],
            content[first : first + 512],
        )
    else:
        content += rng.randbytes(rng.randrange(1, 200))
    return bytes(content)


@pytest.fixture(scope="module")
def variants(trained: Trained) -> list[bytes]:
    """100 damaged versions of a checkpoint; half of the small ones hit what the archive says of itself."""
    path = last_of(trained.finetune)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        directory, heads = archive.start_dir, [entry.header_offset for entry in archive.infolist()]

    def places(rng: random.Random) -> int:
        anywhere, listed = rng.randrange(len(whole)), rng.randrange(directory, len(whole))
        return rng.choice([anywhere, anywhere, listed, rng.choice(heads) + rng.randrange(64)])

    rng = random.Random(5)
    return [damaged(whole, places, rng) for _ in range(100)]


def test_a_damaged_file_is_refused_or_holds_what_the_whole_one_held(
    variants: list[bytes], trained: Trained, tmp_path: Path
) -> None:
    whole = torch.load(last_of(trained.finetune), weights_only=True)
    path, refusals = tmp_path / "last.ckpt", 0
    for variant in variants:
        path.write_bytes(variant)
        try:
            read_resumable(path)
        except UserError as error:
            refusals += str(path) in str(error)
        else:
            assert unequal(torch.load(path, weights_only=True), whole, "") == []
    assert 50 < refusals < 100  # bytes behind the end, or in an unused field, change nothing


def test_last_is_the_one_before_where_the_newest_is_damaged(
    variants: list[bytes], trained: Trained, tmp_path: Path
) -> None:
    older, newer = tmp_path / "checkpoints" / "last-1.ckpt", tmp_path / "checkpoints" / "last.ckpt"
    older.parent.mkdir()
    whole = torch.load(last_of(trained.finetune), weights_only=True)
    torch.save({**whole, "global_step": 7}, older)
    steps = set()
    for variant in variants[:40]:
        newer.write_bytes(variant)
        found = last_checkpoint(tmp_path)
        assert found is not None
        assert (found.path, found.global_step) in ((older, 7), (newer, whole["global_step"]))
        steps.add(found.global_step)
    assert len(steps) == 2


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    """An unfinished run with a damaged last checkpoint and the one before it."""
    folder = tmp_path / "unfinished"
    shutil.copytree(trained.finetune, folder)
    (folder / "metrics.json").unlink()
    if not (folder / "checkpoints" / "last-1.ckpt").is_file():
        shutil.copy(last_of(folder), folder / "checkpoints" / "last-1.ckpt")
    last_of(folder).write_bytes(last_of(folder).read_bytes()[:-1000])
    return folder


def test_a_run_goes_on_from_the_one_before(run: Path, cli: Command, configs: Configs) -> None:
    options = ["fit", "--config", configs.finetune, "--run_dir", run, "--ckpt_path", "last", "--trainer.max_epochs", 2]
    with pytest.warns(UserWarning, match=r"last\.ckpt: .*damaged.*; going on from the one before"):
        assert cli(*options).code == 0
    assert (run / "metrics.json").is_file()
    assert read_resumable(last_of(run)).global_step > 0


def test_one_line_where_every_one_is_damaged(run: Path, cli: Command, configs: Configs) -> None:
    (run / "checkpoints" / "last-1.ckpt").write_bytes(b"")
    before = sorted(run.rglob("*"))
    result = cli("fit", "--config", configs.finetune, "--run_dir", run, "--ckpt_path", "last")
    refused(result, "--ckpt_path last: no checkpoint to go on from", "last.ckpt: ", "last-1.ckpt: ")
    assert sorted(run.rglob("*")) == before


def test_every_command_tells_a_damaged_file_in_one_line(
    trained: Trained, tmp_path: Path, cli: Command, configs: Configs, files: Files
) -> None:
    path, whole = tmp_path / "x.ckpt", bytearray(last_of(trained.finetune).read_bytes())
    whole[len(whole) // 2] ^= 4
    path.write_bytes(whole)
    for arguments in commands(path, configs, files).values():
        refused(cli(*arguments), "x.ckpt: ", "damaged")
    assert not Path("out.jsonl").exists()
    with pytest.raises(UserError, match="damaged"):
        load(path)


# ---- a save that is cut off


@pytest.mark.parametrize(("done", "left"), [(0, [3, 2, 1]), (1, [3, 2]), (2, [3, 2]), (3, [4, 3, 2])])
def test_a_save_that_is_cut_off_at_any_rename_leaves_the_newest_to_go_on_from(
    done: int, left: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """As SIGKILL: nothing after it is done."""

    path, io, replace = tmp_path / "last.ckpt", AtomicCheckpointIO(), Path.replace
    renamed: list[Path] = []

    def save(step: int) -> None:
        io.save_checkpoint({"step": step}, path, {"keep": 3})

    def steps() -> list[int]:
        return [torch.load(file, weights_only=True)["step"] for file in saved(path)]

    for step in (1, 2, 3):
        save(step)
    assert steps() == [3, 2, 1]

    def cut(self: Path, target: Path) -> Path:
        renamed.append(target)
        if len(renamed) > done:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        if done < 3:
            with pytest.raises(Killed):
                save(4)
        else:
            save(4)
    assert steps() == left
    assert (tmp_path / ".last.ckpt.tmp").exists() == (done < 3)
    save(5)
    assert steps()[:2] == [5, left[0]]
    assert not (tmp_path / ".last.ckpt.tmp").exists()
