"""Language-model training with and without the allocator settings of scripts/quickstart.sh, as a ratio.

    python scripts/bench/allocator.py

Two processes take turns, since the settings are read when a process starts: 3 rounds of 20 steps each, the median of
all steps. glibc only. Run it on a quiet machine: a second process makes any figure here meaningless.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": "268435456"}
ROUNDS, STEPS, WARMUP = 3, 20, 3
LANES, BPTT, VOCABULARY = 32, 64, 8000


def seconds_per_step() -> list[float]:
    """Seconds of each step of a model of the size of configs/pydocs/pretrain.yaml's on random tokens."""
    import torch

    from lit_sft.data.streams import StreamBatch
    from lit_sft.models import LMHead, LSTMEncoder, Network
    from lit_sft.objectives import MLE

    torch.manual_seed(0)
    encoder = LSTMEncoder(VOCABULARY, 256, 512, embedding_dropout=0.15, output_dropout=0.3)
    network = Network(encoder, LMHead(encoder.embedding, encoder.output_size))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    ids = torch.randint(3, VOCABULARY, (LANES, BPTT + 1))
    mask = torch.ones(LANES, BPTT, dtype=torch.bool)
    batch = {"unlabeled": StreamBatch(ids[:, :-1], ids[:, 1:], mask, False, LANES * BPTT)}
    objective, state, seconds = MLE(), None, []
    for _ in range(STEPS + WARMUP):
        started = time.perf_counter()
        loss = objective(network, batch, state)
        state = loss.state
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return seconds[WARMUP:]


def main() -> None:
    """Take turns, then print tokens a second of both and their ratio."""
    if sys.argv[1:] == ["--measure"]:
        print(*seconds_per_step())
        return
    plain = {k: v for k, v in os.environ.items() if k not in SETTINGS}
    worlds = {"default": plain, "kept blocks": {**plain, **SETTINGS}}
    steps: dict[str, list[float]] = {name: [] for name in worlds}
    for _ in range(ROUNDS):
        for name, environment in worlds.items():
            command = [sys.executable, __file__, "--measure"]
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            steps[name] += map(float, result.stdout.split())
    speeds = {name: LANES * BPTT / sorted(seconds)[len(seconds) // 2] for name, seconds in steps.items()}
    for name, speed in speeds.items():
        print(f"{name:<12}{speed:8.0f} tokens/s")
    print(f"{'ratio':<12}{speeds['kept blocks'] / speeds['default']:8.2f}")


if __name__ == "__main__":
    main()
