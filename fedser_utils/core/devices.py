"""The workers of this machine, a thread for each core or one for a GPU, and what it is called."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def worker_pool(device: str) -> Iterator[ThreadPoolExecutor]:
    """On CPU a thread for each core, each with one torch thread: small convolutions gain more
    from two clients side by side than from two cores each, and the result no longer depends on
    the number of cores. On a GPU, one worker."""
    count = torch.get_num_threads() if device == "cpu" else 1
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        if device == "cpu":
            torch.set_num_threads(count)


def device_name(device: str) -> str:
    """The GPU's name, or the processor's with the instructions that torch uses of it: ``AMD EPYC
    7B13, AVX2``."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.machine())}, {torch.backends.cpu.get_cpu_capability()}"
