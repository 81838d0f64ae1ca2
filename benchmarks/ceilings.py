"""The machine's peak throughput and a VGG-15's operations, to which benchmarks relate speeds."""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedser_utils.core.front_end import SPEECH


def clock(device: str) -> float:
    """Return the time in seconds, once all work on the device is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def ceilings(device: str) -> dict[str, float]:
    """Return TFLOP/s of a large matrix product (bf16 on a GPU, fp32 on a CPU), and TB/s, read and
    written, of a large copy; each the best of four."""
    cpu = device == "cpu"
    n = 2048 if cpu else 8192
    a = torch.randn(n, n, device=device, dtype=torch.float32 if cpu else torch.bfloat16)
    source = torch.empty(2**26 if cpu else 2**30, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)

    def best(run) -> float:
        seconds = []
        for _ in range(4):
            start = clock(device)
            for _ in range(4):
                run()
            seconds.append((clock(device) - start) / 4)
        return min(seconds)

    product, copy = best(lambda: a @ a), best(lambda: target.copy_(source))
    return {
        "matrix_product_tflop_per_s": 2 * n**3 / product / 1e12,
        "copy_tb_per_s": 2 * len(source) / copy / 1e12,
    }


def forward_flop(model: nn.Module, shape: tuple[int, int] = SPEECH.shape) -> float:
    """Return the operations of a forward pass on one clip of shape (frames, mels); a training step
    has three times as many, a gradient with respect to the clip twice."""
    x = torch.zeros(1, 1, *shape, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops()
