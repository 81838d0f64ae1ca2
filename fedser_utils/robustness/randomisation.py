"""The defence at inference: random resize and pad (paper, section 5.3; Xie et al., 2018).

Resizing along one axis is a matrix product, so a whole batch, each clip with its own draw, is
``rows @ x @ columns`` with no loop, on any device, and differentiable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedser_utils.core.errors import choose
from fedser_utils.core.front_end import SPEECH

RESIZE_MODES = ("bilinear", "nearest")
FRAMES, MELS = SPEECH.shape
MARGINS = (7, 2)  # the paper's, of frames and Mel bands


class Draw(NamedTuple):
    """One draw per clip. size, offset: (batch, 2) int64, frames and mels."""

    size: Tensor
    offset: Tensor


class Randomise(nn.Module):
    """Enlarge to (W', H'), then pad to (W'', H''), at random, afresh for every clip.

    frames, mels: half-open ranges of W' and H'; padded: (W'', H''); value: of the padding, in
    standardised log-Mel; mode: bilinear or nearest. Defaults are the paper's: [373, 380) and
    [64, 66), padded to (380, 66).
    """

    def __init__(
        self,
        *,
        frames: tuple[int, int] = (FRAMES, FRAMES + MARGINS[0]),
        mels: tuple[int, int] = (MELS, MELS + MARGINS[1]),
        padded: tuple[int, int] = (FRAMES + MARGINS[0], MELS + MARGINS[1]),
        value: float = 0.5,
        mode: str = "bilinear",
    ) -> None:
        super().__init__()
        for (low, high), most in zip((frames, mels), padded, strict=True):
            if not 0 < low < high <= most + 1:
                raise ValueError(f"sizes in [{low}, {high}) do not fit the padded size {most}")
        self.ranges, self.padded, self.value = (frames, mels), padded, value
        self.mode = choose("resize", mode, RESIZE_MODES)
        self.training = False  # there is nothing to train, and attacks refuse a training mode

    @classmethod
    def on(cls, shape: tuple[int, int], *, mode: str = "bilinear") -> Randomise:
        """Return a randomisation with the paper's margins, of images of (frames, mels)."""
        return cls.with_margins(*MARGINS, shape=shape, mode=mode)

    @classmethod
    def with_margins(
        cls,
        frames: int,
        mels: int,
        *,
        shape: tuple[int, int] = (FRAMES, MELS),
        **options: float | str,
    ) -> Randomise:
        """Return a randomisation of images of ``shape`` that enlarges them by fewer than
        ``frames`` frames and ``mels`` bands and pads them by so many: the paper's are 7 and 2."""
        padded = (shape[0] + frames, shape[1] + mels)
        ranges = {"frames": (shape[0], padded[0]), "mels": (shape[1], padded[1])}
        return cls(**ranges, padded=padded, **options)

    def resized(self, mode: str) -> Randomise:
        """Return the same ranges and padding with another mode."""
        frames, mels = self.ranges
        return Randomise(frames=frames, mels=mels, padded=self.padded, value=self.value, mode=mode)

    def draw(self, batch: int, generator: torch.Generator) -> Draw:
        """Return uniform sizes and offsets for ``batch`` clips, on the generator's device."""
        sizes, offsets = [], []
        for (low, high), most in zip(self.ranges, self.padded, strict=True):
            options = {"generator": generator, "device": generator.device}
            size = torch.randint(low, high, (batch,), **options)
            room = torch.rand(batch, dtype=torch.float64, **options)
            sizes.append(size)
            offsets.append((room * (most - size + 1)).long())
        return Draw(torch.stack(sizes, 1), torch.stack(offsets, 1))

    def forward(self, x: Tensor, draw: Draw) -> Tensor:
        """Return pad(resize(x)), (batch, 1, W'', H''), each clip by its own draw. x: (batch, 1,
        frames, mels), no larger than the smallest size to resize to."""
        if any(size > low for size, (low, _) in zip(x.shape[2:], self.ranges, strict=True)):
            raise ValueError(f"images {tuple(x.shape[2:])} do not fit sizes in {self.ranges}")
        axes = [
            _axis(x.shape[2 + i], self.padded[i], draw.size[:, i], draw.offset[:, i], self.mode, x)
            for i in (0, 1)
        ]
        rows, columns = axes
        inside = rows.sum(2).unsqueeze(2) * columns.sum(2).unsqueeze(1)
        image = rows @ x.squeeze(1) @ columns.transpose(1, 2)
        return (image + self.value * (1 - inside)).unsqueeze(1)


def _axis(
    length: int, padded: int, size: Tensor, offset: Tensor, mode: str, like: Tensor
) -> Tensor:
    """Return (batch, padded, length), each row's weights on the input, zero in the padding.

    Pixel centres lie as in torch's interpolate with align_corners=False.
    """
    size, offset = size.to(like.device)[:, None], offset.to(like.device)[:, None]
    position = torch.arange(padded, device=like.device)[None] - offset
    inside = (position >= 0) & (position < size)
    scale = length / size.double()
    if mode == "nearest":
        low = (position * scale).floor().long().clamp(0, length - 1)
        high, share = low, torch.zeros_like(scale * position)
    else:
        source = ((position + 0.5) * scale - 0.5).clamp(0, length - 1)
        low = source.floor().long()
        high, share = (low + 1).clamp(max=length - 1), source - low
    weights = torch.zeros(*position.shape, length, dtype=like.dtype, device=like.device)
    weights.scatter_add_(2, low[..., None], (inside * (1 - share))[..., None].to(like.dtype))
    return weights.scatter_add_(2, high[..., None], (inside * share)[..., None].to(like.dtype))


class RandomisedModel(nn.Module):
    """A model behind the randomisation: every call makes a new draw from ``generator``.

    model: (batch, 1, W'', H'') -> logits (batch, classes).
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], randomise: Randomise, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.model, self.randomise, self.generator = model, randomise, generator
        self.training = isinstance(model, nn.Module) and model.training

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes). x: (batch, 1, frames, mels)."""
        return self.model(self.randomise(x, self.randomise.draw(len(x), self.generator)))
