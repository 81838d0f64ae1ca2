"""The device that computes: its choice, precision, name, and its pool of worker threads."""

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
    """Yield a pool of workers: a thread for each core, or one on a GPU.

    Each has one torch thread: small convolutions gain more from two clients side by side than
    from two cores each, and the result does not depend on the number of cores.
    """
    count = torch.get_num_threads() if device == "cpu" else 1
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        if device == "cpu":
            torch.set_num_threads(count)


def device_name(device: str) -> str:
    """Return the GPU's name, or the processor's with its vector instructions that torch uses:
    ``AMD EPYC 7B13, AVX2``."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {torch.backends.cpu.get_cpu_capability()}"


def resolve_device(settings: Settings) -> str:
    """Return the name of the torch device. Raises InputError where it is not available."""
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {settings.device!r} is not available; choose from auto, cpu")
    return settings.device


def cpu_has_bf16() -> bool:
    """Return whether this processor multiplies in bf16; others are several times slower in it
    than in fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def uses_bf16(settings: Settings, device: str) -> bool:
    """Return whether to compute under bf16 autocast: as set, or where it is fast."""
    if settings.precision == "auto":
        return device != "cpu" or cpu_has_bf16()
    return settings.precision == "bf16"


def hardware(device: str, *, bf16: bool) -> dict[str, str]:
    """Return the columns ``processor`` and ``precision`` of a table of results."""
    return {"processor": device_name(device), "precision": "bf16" if bf16 else "fp32"}
