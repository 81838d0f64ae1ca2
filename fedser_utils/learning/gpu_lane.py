"""A lane of the GPU engine: a stream with a model, an optimiser and captured steps.

Each kind of batch (numbers of original and adversarial clips) has a CUDA graph of one training
step; a lane trains one client after another with them. On a CPU it runs the same step directly.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fedser_utils.learning import local_training
from fedser_utils.learning.local_training import Arrays
from fedser_utils.learning.vgg import VGG15, state_arrays

log = logging.getLogger(__name__)

Kind = tuple[int, int]  # numbers of original and adversarial clips in a batch


class Recipe(NamedTuple):
    """Arguments that are the same in every step of a run, as in ``local_training.train_step``."""

    alpha: float
    proximal_mu: float
    bf16: bool


class _Step(NamedTuple):
    """A batch's memory, x: (batch, 1, frames, mels) and y: (batch,), and the step on it."""

    x: Tensor
    y: Tensor
    run: Callable[[], None]


class Lane:
    """A workspace for one client after another.

    model: overwritten; anchor: the round's weights; learning_rate: a tensor that captured steps
    read; forward: (state, x) -> logits, compiled, or None for the model's own.
    """

    def __init__(
        self, model: VGG15, recipe: Recipe, anchor: Arrays, learning_rate: Tensor,
        forward: Callable | None,
    ) -> None:  # fmt: skip
        self.model, self.recipe, self.anchor = model, recipe, anchor
        self.learning_rate = learning_rate
        self.state = local_training.init_optimizer_state(model, None)
        self.arrays = state_arrays(model)
        self.total = next(model.parameters()).new_zeros(()).detach()
        self.steps: dict[Kind, _Step] = {}
        self.stream = torch.cuda.Stream(self.total.device) if self.total.is_cuda else None
        self.pool = torch.cuda.graph_pool_handle() if self.total.is_cuda else None
        self.forward = None
        if forward:
            tensors = dict(model.named_parameters()) | dict(model.named_buffers())
            self.forward = lambda x: forward(tensors, x)

    def prepare(self, kinds: set[Kind], like: Tensor) -> None:
        """Wait for all earlier work on the GPU, and capture the steps of new kinds of batches.

        like: (n, 1, frames, mels) clips. The lane's weights and optimiser are lost.
        """
        self._wait()
        for kind in sorted(kinds - self.steps.keys(), reverse=True):
            self.steps[kind] = self._capture(kind, like)

    def _wait(self) -> None:
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.total.device))

    def _capture(self, kind: Kind, like: Tensor) -> _Step:
        x = like.new_zeros((sum(kind), *like.shape[1:]))
        y = torch.zeros(len(x), dtype=torch.int64, device=x.device)

        def run() -> None:
            losses = local_training.train_step(
                self.model, self.state, x, y, clean=kind[0], anchor=self.anchor,
                forward=self.forward, learning_rate=self.learning_rate, **self.recipe._asdict(),
            )  # fmt: skip
            self.total.add_(losses.sum())

        if not self.stream:
            return _Step(x, y, run)
        self._wait()  # labels that are not yet zero would be no classes
        graph = torch.cuda.CUDAGraph()
        with _cudnn_benchmark():
            with self._on_stream():
                for _ in range(3):  # cuDNN and the compiler do their work before the capture
                    run()
            self.stream.synchronize()
            self.model.zero_grad()
            try:
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                    run()
            except RuntimeError as error:
                if isinstance(error.__context__, torch.OutOfMemoryError):
                    raise error.__context__ from None  # the capture's end hides it
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                log.warning("a step could not be captured, it will be slower: %s", error)
                return _Step(x, y, run)
        return _Step(x, y, graph.replay)

    def _on_stream(self) -> contextlib.AbstractContextManager:
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    @torch.no_grad()
    def load_client(self, optimiser: Arrays | None) -> None:
        """Copy the round's weights and a client's optimiser into the workspace."""
        with self._on_stream():
            torch._foreach_copy_([*self.arrays.values()], [*self.anchor.values()])
            for key, values in self.state.items():
                if optimiser is None:
                    torch._foreach_zero_([*values.values()])
                    continue
                for name, value in values.items():
                    value.copy_(optimiser[f"{key}/{name}"].reshape(value.shape), non_blocking=True)
            self.total.zero_()

    def step(self, kind: Kind, x: Tensor, y: Tensor, rows: Tensor) -> None:
        """Train on the clips x[rows], y[rows]."""
        step = self.steps[kind]
        with self._on_stream():
            torch.index_select(x, 0, rows, out=step.x)
            torch.index_select(y, 0, rows, out=step.y)
            step.run()

    def client_result(self, *, on_host: bool) -> tuple[Arrays, Arrays, Tensor]:
        """Return copies of the client's weights and optimiser (on the CPU with on_host), and the
        sum of its clips' losses."""
        state = {f"{key}/{name}": v for key, part in self.state.items() for name, v in part.items()}
        with self._on_stream():
            optimiser = {name: _copy(value, on_host) for name, value in state.items()}
            return {n: v.clone() for n, v in self.arrays.items()}, optimiser, self.total.clone()


def _copy(value: Tensor, on_host: bool) -> Tensor:
    if not on_host:
        return value.clone()
    return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)


@contextlib.contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape and use the fastest."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
