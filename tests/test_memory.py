"""Preparation takes as much memory for five times the text."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CODE = """
import re, sys
from pathlib import Path
from lit_sft.data.corpus import CorpusConfig
from lit_sft.data.prepare import Preparation, TokenizerOptions
config = CorpusConfig(**{sys.argv[3]: [sys.argv[1]]})
made = Preparation(config, "word", TokenizerOptions(5000, False, 1, {}), Path(sys.argv[2]))
made.make(made.tokenizer())
data = made.read(made.tokenizer())
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss has the parent's in it
print(data.unlabeled.num_tokens + data.val.num_tokens, int(peak[1]) // 1024)
"""


def write(path: Path, megabytes: int) -> int:
    """Documents of 2 kB, of few words that are long, so that tokenising them is quick; returns their words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=500)) for _ in range(300)]
    texts = [" ".join(draw.choices(words, k=4)) for _ in range(500 * megabytes)]
    if path.suffix == ".txt":
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    else:  # one row group, as small writers make it
        pq.write_table(pa.table({"text": texts, "label": [i % 2 for i in range(len(texts))]}), path)
    return 4 * len(texts)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
@pytest.mark.parametrize(
    ("suffix", "option"), [(".parquet", "labeled"), pytest.param(".txt", "unlabeled", marks=pytest.mark.slow)]
)
def test_five_times_the_text_takes_the_same_memory(suffix: str, option: str, tmp_path: Path) -> None:
    peaks = []
    for megabytes in (8, 40):
        path = tmp_path / f"{megabytes}{suffix}"
        tokens = write(path, megabytes)
        command = [sys.executable, "-c", CODE, str(path), str(tmp_path / "cache"), option]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
        counted, peak = map(int, done.stdout.split())
        assert counted == tokens
        peaks.append(peak)
    # allocators and buffers take 12 to 15 MB more until they are as large as they get; a list of the texts takes 42
    assert peaks[1] - peaks[0] < 28, peaks
