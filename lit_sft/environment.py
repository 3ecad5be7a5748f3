"""``python -m lit_sft env``: what a bug report needs."""

from __future__ import annotations

import os
import platform
import time

import torch

from lit_sft.data.prepare import default_cache_dir
from lit_sft.runs import package_versions

SLOW = 1.5  # times float32's seconds; a CPU with bfloat16 instructions is faster than in float32


def report() -> str:
    """Report versions, devices, precisions and the cache folder, one per line."""
    cuda = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    if cuda:
        bf16 = "yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    else:
        slowness = bfloat16_slowness()
        bf16 = "yes" if slowness <= SLOW else f"slow, a matrix product takes {slowness:.1f} times as long"
    lines = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": f"{os.cpu_count()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "GPUs": ", ".join(gpus) or "none",
        "precision": f"32-true; bf16-mixed: {bf16}; 16-mixed: {'yes' if cuda else 'no (needs a GPU)'}",
        "cache": str(default_cache_dir()),
        **package_versions(),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def bfloat16_slowness() -> float:
    """Measure how many times as long as in float32 a bfloat16 matrix product takes on this CPU, in 10 milliseconds.

    It is measured because no function of torch reports it for every kind of CPU: their instructions differ, and CPUs
    without bfloat16 instructions compute the same through float32.
    """

    def seconds(dtype: torch.dtype) -> float:
        matrix, found = torch.ones(256, 256, dtype=dtype), []
        for _ in range(5):  # the first includes the library's setup, and any may be interrupted
            started = time.perf_counter()
            matrix @ matrix
            found.append(time.perf_counter() - started)
        return min(found)

    return seconds(torch.bfloat16) / seconds(torch.float32)
