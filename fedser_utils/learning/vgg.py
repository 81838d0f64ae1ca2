"""VGG-15, the paper's network (section 6.2, Fig. 3), its copies for attacks, and its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedser_utils.core.errors import InputError
from fedser_utils.core.runs import Run, load_model
from fedser_utils.core.runs import load_arrays as read_arrays

BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # layers, channels
LOCAL_ARRAYS_FILE = "batch_norm.safetensors"  # every client's, in a run's folder: client/name


class VGG15(nn.Module):
    """VGG-15: 13 convolutions and 2 linear layers, 14,850,887 parameters for 7 classes.

    Five blocks of 3x3 convolutions (no bias), each with normalisation and ReLU, 2x2 max pooling
    after each block, global average pooling, a layer of 256 with ReLU, and the logits.

    width: factor on all channels and on the hidden layer. norm: "batch", or "group" for group
    normalisation, which depends on one clip at a time (Wu and He, 2018).
    """

    def __init__(self, num_classes: int = 7, *, width: float = 1.0, norm: str = "batch") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for depth, full in BLOCKS:
            for _ in range(depth):
                out = max(1, round(full * width))
                layers += [
                    nn.Conv2d(channels, out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out) if norm == "batch" else nn.GroupNorm(num_groups(out), out),
                    nn.ReLU(inplace=True),
                ]
                channels = out
            layers.append(nn.MaxPool2d(2))
        hidden = max(1, round(256 * width))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, num_classes). x: (batch, 1, frames, mels) standardised log-Mel,
        32 x 32 at least; the paper's are 373 x 64, and 380 x 66 when randomised."""
        x = x.contiguous(memory_format=torch.channels_last)
        return self.classifier(self.features(x).mean((2, 3)))


def num_groups(channels: int) -> int:
    """The number of groups in a group normalisation: at most 32, each of at least 8 channels where
    there are as many."""
    groups = math.gcd(32, channels)
    while groups > 1 and channels // groups < 8:
        groups //= 2
    return groups


def build(
    num_classes: int, *, width: float, generator: torch.Generator, norm: str = "batch"
) -> VGG15:
    """Return a VGG-15 in channels_last whose initial weights depend on ``generator`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        model = VGG15(num_classes, width=width, norm=norm)
    return model.to(memory_format=torch.channels_last)


def fold_batch_norm(model: VGG15) -> nn.Module:
    """Return a frozen evaluation copy with the batch normalisation folded into the convolutions.

    It computes the same logits, up to rounding, in less time, and its parameters need no
    gradients. ``model`` is not changed.
    """
    frozen = copy.deepcopy(model).eval()
    layers: list[nn.Module] = []
    for layer in frozen.features:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    frozen.features = nn.Sequential(*layers)
    return frozen.eval().requires_grad_(False).to(memory_format=torch.channels_last)


class Bf16GradientModel(nn.Module):
    """A frozen copy for attacks whose predictions are in fp32 and gradients in bf16.

    The direction of an attack needs no more digits than bf16 has; whether it has succeeded, and
    how far it is to a boundary, does. compiled: through ``compile_module``.
    """

    def __init__(self, model: VGG15, *, compiled: bool = False) -> None:
        super().__init__()
        self.fp32, self.bf16 = fold_batch_norm(model), fold_batch_norm(model).bfloat16()
        if compiled:
            self.fp32, self.bf16 = compile_module(self.fp32), compile_module(self.bf16)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 logits (batch, num_classes), as ``VGG15`` does."""
        if torch.is_grad_enabled() and x.requires_grad:
            return self.bf16(x.bfloat16()).float()
        return self.fp32(x)

    @torch.no_grad()
    def copy_from(self, model: VGG15) -> None:
        """Copy the weights of another model of the same shape; nothing is compiled again."""
        parameters = [*fold_batch_norm(model).parameters()]
        for part in (self.fp32, self.bf16):
            torch._foreach_copy_([*part.parameters()], parameters)


def compile_module(function: Callable, *, dynamic: bool | None = None) -> Callable:
    """Return a function or module compiled by torch.compile, which needs a C++ compiler and half a
    minute at first; where it fails, torch warns and runs it as it is. dynamic: whether one
    compilation serves batches of all sizes; None: from the second size on."""
    import torch._dynamo  # here, since it takes seconds
    import torch._functorch.config

    # several gradients of one forward pass (DeepFool) must find its buffers intact
    torch._functorch.config.donated_buffer = False
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 64  # one for each size of a batch
    return torch.compile(function, dynamic=dynamic)


def attack_target(model: VGG15, *, bf16: bool) -> nn.Module:
    """Return the copy of ``model`` that attacks run against: a ``Bf16GradientModel``, or without
    bf16 ``fold_batch_norm``'s."""
    return Bf16GradientModel(model) if bf16 else fold_batch_norm(model)


class WeakModel(nn.Module):
    """A model that any working attack must fool: random weights on every pixel of x + sin(20 x).

    Changes far below 0.05, whether fine, coarse or the same for all clips, add up to more than the
    logits' differences on standardised log-Mel. An attack that fails on it is broken.

    size: pixels of an image. cells: instead, weights on the mean of sin(20 x) in each of cells x
    cells parts of an image of any size: weak to gradients also behind a randomisation that keeps
    the pixels' values.
    """

    def __init__(
        self,
        classes: int,
        *,
        size: int = 373 * 64,
        cells: int | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.cells = cells
        inputs = cells**2 if cells else size
        weight = torch.randn(classes, inputs, generator=generator) / inputs**0.5
        self.register_buffer("weight", weight)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes). x: (batch, ...) of ``size`` pixels; with cells (batch, 1,
        frames, mels)."""
        waves = torch.sin(20 * x)
        if not self.cells:
            return (x + waves).flatten(1) @ self.weight.T
        return nn.functional.adaptive_avg_pool2d(waves, self.cells).flatten(1) @ self.weight.T


def state_arrays(model: nn.Module) -> dict[str, Tensor]:
    """Return what a client and the server exchange: parameters and batch-norm statistics, detached.
    BN's counters of batches are left out; with a fixed momentum nothing reads them."""
    return {k: v.detach() for k, v in model.state_dict().items() if v.is_floating_point()}


def pack(arrays: dict[str, Tensor]) -> Tensor:
    """Return all of ``state_arrays`` in one vector, on the CPU: over a network a hundred small
    arrays take far longer than one large one."""
    return torch.cat([value.cpu().reshape(-1) for value in arrays.values()])


def unpack(vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the arrays that ``pack`` put in a vector, named and shaped as ``like``. Raises
    ValueError for a vector of another size or type."""
    sizes = [value.numel() for value in like.values()]
    if vector.dtype != torch.float32 or vector.shape != (sum(sizes),):
        kind = str(vector.dtype).removeprefix("torch.")
        raise ValueError(f"weights of type {kind} and shape {tuple(vector.shape)}")
    parts = zip(like.items(), vector.split(sizes), strict=True)
    return {name: part.view(value.shape) for (name, value), part in parts}


def load_arrays(model: nn.Module, arrays: dict[str, Tensor]) -> nn.Module:
    """Load ``state_arrays`` into the model and return it. Raises RuntimeError for a wrong name or
    shape."""
    missing, unexpected = model.load_state_dict(arrays, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise RuntimeError(f"weights lack {missing} and have unknown {unexpected}")
    return model


def load(run: Run, *, client: str | None = None) -> VGG15:
    """Return the model that a complete run ended with, in evaluation mode.

    client: whose, where every client has its local batch normalisation. Raises InputError where
    such a client is missing.
    """
    settings = run.settings
    arrays = {k: torch.from_numpy(v) for k, v in load_model(run).items()}
    arrays = {k: v for k, v in arrays.items() if not k.startswith("standardisation.")}
    if settings.batch_norm == "local":
        arrays |= _local_arrays(run, client)
    model = VGG15(len(arrays["classifier.2.bias"]), width=settings.width, norm=settings.norm)
    return load_arrays(model, arrays).eval().to(memory_format=torch.channels_last)


def _local_arrays(run: Run, client: str | None) -> dict[str, Tensor]:
    """A client's batch normalisation in a run where it is local."""
    path = run.folder / LOCAL_ARRAYS_FILE
    by_client: dict[str, dict[str, Tensor]] = {}
    for key, value in (read_arrays(path) if path.exists() else {}).items():
        owner, _, name = key.rpartition("/")
        by_client.setdefault(owner, {})[name] = torch.from_numpy(value)
    if client not in by_client:
        raise InputError(
            f"run {run.id} has no one model: its batch norm is local; give a client of "
            f"{', '.join(sorted(by_client)) or 'the deployment, which keep it'}"
        )
    return by_client[client]
