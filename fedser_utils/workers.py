"""The workers of this machine: a thread for each core, or one for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

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
