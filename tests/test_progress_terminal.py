"""The bar of a running stage on a terminal of 80 columns: one line, with every figure whole."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import Configs, Trained
from rich.console import Console

from lit_sft.callbacks.pace import LONG, MEDIUM, SHORT, Standing, number
from lit_sft.callbacks.progress import _Line, arrange

USUAL = Standing("pretrain", "2/4", 331, 662, {"loss": 4.312, "perplexity": 74.6}, 9210.0, 360.0)
LARGE = Standing("pretrain", "10/10", 103_310, 106_620, {"loss": 10.312, "perplexity": 30_074.0}, 1_210_000.0, 86_000.0)
CLASSES = {"loss": 1.874, "val accuracy": 0.612, "val macro_f1": 0.534}
FINETUNE = Standing("finetune", "40/40", 1234, 1234, CLASSES, 98_765.0, 5400.0)


@pytest.mark.parametrize("standing", [USUAL, LARGE, FINETUNE], ids=lambda standing: standing.epoch)
@pytest.mark.parametrize("width", [79, 80, 100, 160])
def test_every_figure_has_its_place_in_80_columns(standing: Standing, width: int) -> None:
    out = io.StringIO()
    forms = [standing.words(brevity) for brevity in (LONG, MEDIUM, SHORT)]
    Console(file=out, width=width, force_terminal=True, color_system=None).print(_Line(forms, 1, 2))
    (line,) = out.getvalue().splitlines()
    assert len(line) <= width
    assert line.startswith(standing.stage)
    assert f"{standing.step:,}/{standing.steps:,}" in line
    assert f"loss {number(standing.figures['loss'])}" in line
    assert all(number(figure) in line for figure in standing.figures.values())
    assert re.search(r"[\d,]+k? tok(ens)?/s", line)
    assert line.rstrip().endswith("left")


def test_on_a_narrow_terminal_parts_are_left_out_whole() -> None:
    forms = [USUAL.words(brevity) for brevity in (LONG, MEDIUM, SHORT)]
    for width in range(10, 200):
        before, bar, after = arrange(forms, width)
        assert len(before) + bar + len(after) <= width
    assert arrange(forms, 45) == ("pretrain 2/4 331/662 loss 4.312 6 min left", 0, "")
    assert arrange(forms, 40) == ("pretrain 2/4 331/662 6 min left", 0, "")


class Screen:
    """As much of a terminal as a bar needs; ``widest`` is the furthest column that was written to."""

    CODES = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])")

    def __init__(self) -> None:
        self.lines: list[str] = [""]
        self.row = self.column = self.widest = 0
        self.frames: list[str] = []  # every line as it was before it was erased or left

    def feed(self, text: str) -> None:
        position = 0
        while position < len(text):
            if code := self.CODES.match(text, position):
                self.obey(*code.groups())
                position = code.end()
                continue
            self.write(text[position])
            position += 1

    def write(self, character: str) -> None:
        assert character != "\x1b", "a code that this screen doesn't know"
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.frames.append(self.lines[self.row])
            self.row += 1
            self.lines += [""] * (self.row + 1 - len(self.lines))
        else:
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1
            self.widest = max(self.widest, self.column)

    def obey(self, argument: str, command: str) -> None:
        if command == "K":
            self.frames.append(self.lines[self.row])
            self.lines[self.row] = ""
        elif command == "A":
            self.row -= int(argument or 1)
        else:
            assert command in "mhl", f"a code that this screen doesn't know: {command}"


def on_a_terminal(command: list[str]) -> tuple[int, Screen]:
    """Run a command on a terminal of 80 columns; its exit code and what is to be seen."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    unset = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    environment = {key: value for key, value in os.environ.items() if key not in unset} | {"TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    try:
        written = read_all(master, seconds=120)
        code = process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    screen = Screen()
    screen.feed(written.decode())
    return code, screen


def read_all(descriptor: int, seconds: float) -> bytes:
    """What is written to a terminal until its other side is closed, within so many seconds."""
    written, end = b"", time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"still open after {seconds} s:\n{written.decode(errors='replace')}"
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # Linux's way of telling that the other side is closed
            return written
        if not part:
            return written
        written += part


def test_a_fit_on_a_terminal_of_80_columns_has_one_line_with_all_figures(configs: Configs) -> None:
    flags = ["--trainer.enable_progress_bar=true", "--trainer.max_epochs=4", "--trainer.check_val_every_n_epoch=2"]
    command = [sys.executable, "-m", "lit_sft", "fit", "--config", str(configs.pretrain), "--run_dir", "logs/run"]
    code, screen = on_a_terminal([*command, *flags])
    text = "\n".join(screen.lines)
    assert code == 0, text
    bars = [frame for frame in screen.frames if re.search(r"pretrain epoch \d/4 [━╸╺ ]+", frame)]
    assert all(len(frame.rstrip()) <= 80 for frame in bars)
    figures = r"pretrain epoch \d/4 [━╸╺]+ [\d,]+/\d+ loss \d\.\d{3} ppl [\d.,]+ [\d,]+k? tok/s \d+ (s|min) left *"
    assert any(re.fullmatch(figures, frame) for frame in bars), bars
    seen = [line.rstrip() for line in screen.lines if line.strip()]
    validations = [line for line in seen if re.fullmatch(r"pretrain epoch [24]/4 .* val loss .* val ppl .*", line)]
    assert len(validations) == 2
    stopped = seen.index("`Trainer.fit` stopped: `max_epochs=4` reached.")  # not written into the bar
    assert re.match(r"pretrain epoch 4/4 [━╸╺]+ (\d+)/\1 loss", seen[stopped + 1])
    assert seen[stopped + 2].startswith("done: logs/run")
    assert not any(line.startswith("validation") for line in seen)
    left = [line for line in seen if "━" in line and not line.startswith("tokenizing")]  # the cache may be empty yet
    assert len(left) == 1


def test_the_bar_of_a_test_stays_above_the_results(trained: Trained, workplace: Path) -> None:
    shutil.copytree(trained.finetune, "run")
    flags = ["--ckpt_path", "run", "--trainer.enable_progress_bar=true"]
    code, screen = on_a_terminal([sys.executable, "-m", "lit_sft", "test", *flags])
    text = "\n".join(screen.lines)
    assert code == 0, text
    assert re.search(r"\ntest (\d+)/\1 ━+ *\n┏━+.*Test metric", text, re.DOTALL), text
