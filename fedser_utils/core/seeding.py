"""Random generators by seed and name: every draw in the package comes from one of them.

``generator(0, "round", 3, "client", "07")`` always gives the same stream, whatever ran before it,
so a resumed run, another order of clients or another number of workers changes nothing.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: object) -> int:
    """Return the 63-bit seed of the stream ``names`` under ``seed``."""
    digest = hashlib.sha256(repr((seed, *map(str, names))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def rng(seed: int, *names: object) -> np.random.Generator:
    """Return the NumPy generator of the stream ``names``."""
    return np.random.default_rng(derive(seed, *names))


def generator(seed: int, *names: object, device: str = "cpu") -> torch.Generator:
    """Return the torch generator of the stream ``names``, on ``device``."""
    import torch  # here, so that the analysis side of the package never loads torch

    return torch.Generator(device=device).manual_seed(derive(seed, *names))
