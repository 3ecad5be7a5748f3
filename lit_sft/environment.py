"""``python -m lit_sft env``: what a bug report needs."""

from __future__ import annotations

import os
import platform

from lit_sft.data.prepare import default_cache_dir
from lit_sft.runs import package_versions


def report() -> str:
    """Versions, devices, precision and the cache's place, a line each."""
    import torch

    cuda = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    bf16 = "yes" if not cuda or torch.cuda.is_bf16_supported() else "no"
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
