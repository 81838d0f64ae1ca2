"""The workers of this machine, a thread for each core or one for a GPU, and what it is called."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from fedser_utils.core.errors import InputError
from fedser_utils.core.settings import Settings


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


def resolve_device(settings: Settings) -> str:
    """The torch device these settings mean. Raises InputError where it is not there."""
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {settings.device!r} is not available; choose from auto, cpu")
    return settings.device


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies in bf16; where it does not, bf16 is several times slower
    than fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def uses_bf16(settings: Settings, device: str) -> bool:
    """Whether training runs under bf16 autocast: on request, or where it is fast."""
    if settings.precision == "auto":
        return device != "cpu" or cpu_has_bf16()
    return settings.precision == "bf16"


def hardware(device: str, *, bf16: bool) -> dict[str, str]:
    """Columns that say where a number was computed: processor, precision."""
    return {"processor": device_name(device), "precision": "bf16" if bf16 else "fp32"}
