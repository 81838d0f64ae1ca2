"""VGG-15, the paper's network (section 6.2, Fig. 3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedser_utils.core.errors import InputError
from fedser_utils.core.runs import Run, load_model
from fedser_utils.core.runs import load_arrays as read_arrays

BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # layers, channels


class VGG15(nn.Module):
    """Five blocks of 3x3 convolutions (no bias), each with batch normalisation and ReLU, a 2x2
    max pooling after each block, global average pooling, a layer of 256 with ReLU, and the
    logits (no softmax). At width 1 and 7 classes: 14,850,887 parameters.

    width: factor on all channels and on the hidden layer. norm: "batch", or "group" for group
    normalisation in its place, which looks at one clip at a time (Wu and He, 2018).
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
        """x: (batch, 1, frames, mels), standardised log-Mel, 32 x 32 at least; the paper's are
        373 x 64, and 380 x 66 when randomised. Returns logits (batch, num_classes)."""
        x = x.contiguous(memory_format=torch.channels_last)
        return self.classifier(self.features(x).mean((2, 3)))


def num_groups(channels: int) -> int:
    """Of a group normalisation: 32 or fewer, of eight channels or more each where there are as
    many."""
    found = math.gcd(32, channels)
    while found > 1 and channels // found < 8:
        found //= 2
    return found


def build(
    num_classes: int, *, width: float, generator: torch.Generator, norm: str = "batch"
) -> VGG15:
    """A VGG-15 in channels_last whose initial weights depend on ``generator`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        model = VGG15(num_classes, width=width, norm=norm)
    return model.to(memory_format=torch.channels_last)


def fold_batch_norm(model: VGG15) -> nn.Module:
    """A frozen evaluation copy with the batch normalisation folded into the convolutions.

    It computes the same logits, up to rounding, in less time, and its parameters ask for no
    gradients: what an attack needs. ``model`` is not changed.
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
    """A frozen copy that decides in fp32 and gives gradients in bf16: for attacks, where bf16 is
    fast. An attack's direction needs no more digits than bf16 has; whether it has succeeded, and
    how far it is to a boundary, does.

    compiled: through ``faster``.
    """

    def __init__(self, model: VGG15, *, compiled: bool = False) -> None:
        super().__init__()
        self.exact, self.rough = fold_batch_norm(model), fold_batch_norm(model).bfloat16()
        if compiled:
            self.exact, self.rough = compile_module(self.exact), compile_module(self.rough)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """As ``VGG15``, float32."""
        if torch.is_grad_enabled() and x.requires_grad:
            return self.rough(x.bfloat16()).float()
        return self.exact(x)

    @torch.no_grad()
    def take(self, model: VGG15) -> None:
        """Be a copy of another model of the same shape: what was compiled is used again."""
        news = [*fold_batch_norm(model).parameters()]
        for copied in (self.exact, self.rough):
            torch._foreach_copy_([*copied.parameters()], news)


def compile_module(function: Callable, *, dynamic: bool | None = None) -> Callable:
    """``function``, or a module, through torch.compile, which needs a C++ compiler and half a
    minute at first; where it fails, torch says so and goes on without. dynamic: whether one
    compilation serves batches of all sizes; None: from the second size on."""
    import torch._dynamo  # here, since it takes seconds
    import torch._functorch.config

    # several gradients of one forward pass (DeepFool) must find its buffers intact
    torch._functorch.config.donated_buffer = False
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 64  # one for each size of a batch
    return torch.compile(function, dynamic=dynamic)


def attack_target(model: VGG15, *, bf16: bool) -> nn.Module:
    """What an attack aims at in the model's place: ``Quick``, or ``folded`` without bf16."""
    return Bf16GradientModel(model) if bf16 else fold_batch_norm(model)


class WeakModel(nn.Module):
    """A model that any working attack must fool: random weights on every pixel of x + sin(20 x),
    so that changes far below 0.05, whether fine, coarse or the same for all clips, add up to more
    than the logits' differences on standardised log-Mel. An attack that fails on it is broken.

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
        """x: (batch, ...) of ``size`` pixels, with cells (batch, 1, frames, mels). Returns logits
        (batch, classes)."""
        waves = torch.sin(20 * x)
        if not self.cells:
            return (x + waves).flatten(1) @ self.weight.T
        return nn.functional.adaptive_avg_pool2d(waves, self.cells).flatten(1) @ self.weight.T


def batch_norm_names(model: nn.Module) -> list[str]:
    """The names among ``state_arrays`` that belong to batch normalisation: weights, biases, and
    running statistics."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    return [name for name in state_arrays(model) if name.rpartition(".")[0] in layers]


def batch_statistics(model: nn.Module, x: Tensor, *, batch_size: int = 32) -> dict[str, Tensor]:
    """The running means and variances of the batch normalisation as these clips alone give them,
    by name. x: (n, 1, frames, mels). ``model`` is not changed."""
    from torch.optim.swa_utils import update_bn  # here: torch.optim loads the compiler

    own = copy.deepcopy(model)
    update_bn(x.split(batch_size), own)
    return {name: v.clone() for name, v in state_arrays(own).items() if ".running_" in name}


def pooled_statistics(found: Iterable[tuple[dict[str, Tensor], int]]) -> dict[str, Tensor]:
    """The statistics of all clips from several ``batch_statistics`` and their numbers of clips:
    the variance within each plus that of the means (law of total variance)."""
    parts, counts = zip(*found, strict=True)
    shares = [count / sum(counts) for count in counts]
    pooled = {}
    for name in parts[0]:
        pooled[name] = sum(share * part[name] for share, part in zip(shares, parts, strict=True))
    for name in [name for name in pooled if name.endswith("running_var")]:
        means = name.removesuffix("var") + "mean"
        for share, part in zip(shares, parts, strict=True):
            pooled[name] = pooled[name] + share * (part[means] - pooled[means]).square()
    return pooled


def state_arrays(model: nn.Module) -> dict[str, Tensor]:
    """What a client and the server exchange: parameters and batch-norm statistics, detached.
    BN's counters of batches are left out; with a fixed momentum nothing reads them."""
    return {k: v.detach() for k, v in model.state_dict().items() if v.is_floating_point()}


def pack(arrays: dict[str, Tensor]) -> Tensor:
    """All of ``state_arrays`` in one vector, on the host: over a network a hundred small arrays
    take far longer than one large one."""
    return torch.cat([value.cpu().reshape(-1) for value in arrays.values()])


def unpack(vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arrays in a vector; like: those whose names and shapes it has. Raises ValueError where
    it has another size or type."""
    sizes = [value.numel() for value in like.values()]
    if vector.dtype != torch.float32 or vector.shape != (sum(sizes),):
        kind = str(vector.dtype).removeprefix("torch.")
        raise ValueError(f"weights of type {kind} and shape {tuple(vector.shape)}")
    parts = zip(like.items(), vector.split(sizes), strict=True)
    return {name: part.view(value.shape) for (name, value), part in parts}


def load_arrays(model: nn.Module, arrays: dict[str, Tensor]) -> nn.Module:
    """Put ``state_arrays`` back, in place. Raises RuntimeError if a name or shape is wrong."""
    missing, unexpected = model.load_state_dict(arrays, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise RuntimeError(f"weights lack {missing} and have unknown {unexpected}")
    return model


LOCAL_ARRAYS_FILE = (
    "batch_norm.safetensors"  # a run's batch normalisation of every client: client/name
)


def load(run: Run, *, client: str | None = None) -> VGG15:
    """The model a complete run ended with, in evaluation mode. client: whose, where every client
    has a batch normalisation of its own. Raises InputError where that is not to be had."""
    settings = run.settings
    arrays = {k: torch.from_numpy(v) for k, v in load_model(run).items()}
    arrays = {k: v for k, v in arrays.items() if not k.startswith("standardisation.")}
    if settings.batch_norm == "local":
        own = (
            read_arrays(run.folder / LOCAL_ARRAYS_FILE)
            if (run.folder / LOCAL_ARRAYS_FILE).exists()
            else {}
        )
        clients = sorted({name.rpartition("/")[0] for name in own})
        if client not in clients:
            raise InputError(
                f"run {run.id} has no one model: its batch norm is local; give a client of "
                f"{', '.join(clients) or 'the deployment, which keep it'}"
            )
        prefix = f"{client}/"
        arrays |= {
            name.removeprefix(prefix): torch.from_numpy(value)
            for name, value in own.items()
            if name.startswith(prefix)
        }
    classes = len(arrays["classifier.2.bias"])
    model = VGG15(classes, width=settings.width, norm=settings.norm)
    return load_arrays(model, arrays).eval().to(memory_format=torch.channels_last)
