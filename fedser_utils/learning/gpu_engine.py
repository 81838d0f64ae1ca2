"""Many clients' training at once on one GPU: the steps of ``local_training.client_update``, faster.

A lane is a stream with a model, an optimiser and a captured CUDA graph for each kind of batch; it
trains one client after another, and several lanes keep the GPU busy. What is drawn is drawn before
(``local_training.draw``), so the number of lanes changes nothing but the time. On a CPU a lane runs
the same code step by step: that is how it is tested.

A tensor made on one stream must outlive its readers on others: everything a round uses is kept
until all lanes have ended, and a lane begins a round after all that was asked of the GPU before.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from fedser_utils.learning import local_training
from fedser_utils.learning.local_training import Arrays, Schedule, Update
from fedser_utils.learning.vgg import VGG15, compile_module, load_arrays, state_arrays

log = logging.getLogger(__name__)

LANES = 4  # side by side; on an H100 the fourth adds 3 %
SPARE = 8e9  # bytes of the GPU's memory that are left to attacks and evaluation


class Recipe(NamedTuple):
    """What is the same in every step of a run, as for ``local_training.learn``."""

    alpha: float
    proximal_mu: float
    bf16: bool


class Job(NamedTuple):
    """One client's round. x: (n, 1, frames, mels), the attacked clips in their places; y: (n,);
    plan: what was drawn; optimiser: the state of its last round, or None."""

    x: Tensor
    y: Tensor
    plan: Schedule
    optimiser: Arrays | None


class Engine:
    """model: of the shape and on the device of all that follow. clients: how many there are in a
    round; where their optimisers live, and the number of lanes, follow from the free memory."""

    def __init__(self, model: VGG15, recipe: Recipe, *, clients: int, lanes: int = LANES) -> None:
        self.recipe, self.device = recipe, next(model.parameters()).device
        self.anchor = copy.deepcopy(model)
        # on the device, so that captured steps read the round's; Adam's kernel there reads floats
        self.rate = torch.zeros(
            (), dtype=torch.float32 if self._cuda else torch.float64, device=self.device
        )
        self._forward = None
        if self._cuda:
            skeleton = copy.deepcopy(model).train()
            self._forward = compile_module(
                lambda state, x: functional_call(skeleton, state, (x,)), dynamic=False
            )
        self.on_host = False
        if self._cuda:
            size = sum(value.nbytes for value in state_arrays(model).values())
            free = torch.cuda.mem_get_info(self.device)[0]
            lanes, self.on_host = plan_lanes(free, size=size, clients=clients, most=lanes)
        self.lanes = [self._lane() for _ in range(lanes)]

    @property
    def _cuda(self) -> bool:
        return self.device.type == "cuda"

    def _lane(self) -> _Lane:
        model = copy.deepcopy(self.anchor).train()
        return _Lane(model, self.recipe, state_arrays(self.anchor), self.rate, self._forward)

    def fit(self, jobs: Sequence[Job], weights: Arrays, *, learning_rate: float) -> list[Update]:
        """Train ``weights`` on every client's clips. Returns what ``client_update`` would, in the
        order of the jobs. With too little memory it goes on with fewer lanes, then with the states
        on the host, and says so; raises torch.OutOfMemoryError when one lane does not fit."""
        load_arrays(self.anchor, weights)
        self.rate.fill_(learning_rate)
        while True:
            try:
                return self._fit(jobs)
            except torch.OutOfMemoryError:
                self._synchronise()
                if len(self.lanes) > 1:
                    del self.lanes[len(self.lanes) // 2 :]
                elif self._cuda and not self.on_host:
                    self.on_host = True
                else:
                    raise
                where = "on the host" if self.on_host else "on the GPU"
                log.warning(
                    "out of memory: going on with %d clients side by side, their optimisers %s",
                    len(self.lanes), where,
                )  # fmt: skip
            if self._cuda:
                torch.cuda.empty_cache()

    def _fit(self, jobs: Sequence[Job]) -> list[Update]:
        places = [_indices(job.plan, self.device) for job in jobs]
        for lane in self.lanes:
            lane.prepare({kind for job in jobs for kind in map(_kind, job.plan.steps)}, jobs[0].x)
        done: dict[int, tuple[Arrays, Arrays, Tensor]] = {}

        def work(lane: _Lane, numbers: list[int]) -> Iterator[None]:
            for number in numbers:
                job = jobs[number]
                lane.begin(job.optimiser)
                for step, rows in zip(job.plan.steps, places[number], strict=True):
                    lane.step(_kind(step), job.x, job.y, rows)
                    yield
                done[number] = lane.end(on_host=self.on_host)

        shares = balance_loads([len(job.plan.steps) for job in jobs], len(self.lanes))
        turns = deque(work(lane, share) for lane, share in zip(self.lanes, shares, strict=True))
        while turns:
            turn = turns.popleft()
            with contextlib.suppress(StopIteration):
                next(turn)
                turns.append(turn)
        self._synchronise()
        updates = []
        for number in range(len(jobs)):
            arrays, optimiser, total = done[number]
            seen = sum(map(len, places[number]))
            updates.append(Update(arrays, optimiser, float(total) / seen))
        return updates

    def _synchronise(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.device)


class _Step(NamedTuple):
    """A batch's place in memory, and what trains on it."""

    x: Tensor
    y: Tensor
    run: Callable[[], None]


class _Lane:
    """A workspace for one client after another."""

    def __init__(
        self,
        model: VGG15,
        recipe: Recipe,
        anchor: Arrays,
        rate: Tensor,
        forward: Callable | None,
    ) -> None:
        self.model, self.recipe, self.anchor, self.rate = model, recipe, anchor, rate
        self.state = local_training.init_optimizer_state(model, None)
        self.arrays = state_arrays(model)
        self.total = next(model.parameters()).new_zeros(()).detach()
        self.steps: dict[tuple[int, int], _Step] = {}
        self.stream = torch.cuda.Stream(self.total.device) if self.total.is_cuda else None
        self.pool = torch.cuda.graph_pool_handle() if self.total.is_cuda else None
        self.forward = None
        if forward:
            everything = dict(model.named_parameters()) | dict(model.named_buffers())
            self.forward = lambda x: forward(everything, x)

    def prepare(self, kinds: set[tuple[int, int]], like: Tensor) -> None:
        """Be ready for a round, after all that was asked of the GPU before; capture the kinds of
        batches that are new. The lane's weights and states are lost."""
        self._wait()
        for kind in sorted(kinds - self.steps.keys(), reverse=True):
            self.steps[kind] = self._captured(kind, like)

    def _wait(self) -> None:
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.total.device))

    def _captured(self, kind: tuple[int, int], like: Tensor) -> _Step:
        x = like.new_zeros((sum(kind), *like.shape[1:]))
        y = torch.zeros(len(x), dtype=torch.int64, device=x.device)

        def run() -> None:
            losses = local_training.train_step(
                self.model, self.state, x, y, clean=kind[0], anchor=self.anchor,
                forward=self.forward, learning_rate=self.rate, **self.recipe._asdict(),
            )  # fmt: skip
            self.total.add_(losses.sum())

        if not self.stream:
            return _Step(x, y, run)
        self._wait()  # labels that are not yet zero would be no classes
        graph = torch.cuda.CUDAGraph()
        with _cudnn_chooses():
            with self._turn():
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

    def _turn(self) -> contextlib.AbstractContextManager:
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    @torch.no_grad()
    def begin(self, optimiser: Arrays | None) -> None:
        """Take the round's weights and a client's optimiser."""
        with self._turn():
            torch._foreach_copy_([*self.arrays.values()], [*self.anchor.values()])
            for key, own in self.state.items():
                if optimiser is None:
                    torch._foreach_zero_([*own.values()])
                else:
                    kept = [optimiser[f"{key}/{n}"].reshape(v.shape) for n, v in own.items()]
                    for value, old in zip(own.values(), kept, strict=True):
                        value.copy_(old, non_blocking=True)
            self.total.zero_()

    def step(self, kind: tuple[int, int], x: Tensor, y: Tensor, rows: Tensor) -> None:
        """Train on the clips x[rows], y[rows]."""
        own = self.steps[kind]
        with self._turn():
            torch.index_select(x, 0, rows, out=own.x)
            torch.index_select(y, 0, rows, out=own.y)
            own.run()

    def end(self, *, on_host: bool) -> tuple[Arrays, Arrays, Tensor]:
        """What the client ends with: weights, optimiser, and the sum of its clips' losses."""
        flat = {f"{key}/{name}": v for key, own in self.state.items() for name, v in own.items()}
        with self._turn():
            kept = {name: _copied(value, on_host) for name, value in flat.items()}
            return {n: v.clone() for n, v in self.arrays.items()}, kept, self.total.clone()


def _copied(value: Tensor, on_host: bool) -> Tensor:
    if not on_host:
        return value.clone()
    return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)


@contextlib.contextmanager
def _cudnn_chooses() -> Iterator[None]:
    """The fastest of cuDNN's algorithms is found by trying, for each new shape."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def plan_lanes(free: float, *, size: float, clients: int, most: int) -> tuple[int, bool]:
    """The number of lanes, and whether the optimisers live on the host.

    free, size: bytes of the GPU's memory and of a model. A round holds its clients' weights, and
    their two moments before and after; a lane holds weights, gradients, moments, and about as much
    again for what it computes.
    """
    room = free - SPARE - clients * size
    states, lane = 4 * clients * size, 8 * size
    on_host = room - states < lane
    if not on_host:
        room -= states
    return max(1, min(most, int(room / lane))), on_host


def _kind(step: tuple[Tensor, Tensor]) -> tuple[int, int]:
    """Original and attacked clips of a batch: what its graph is captured for."""
    return len(step[0]), len(step[1])


def _indices(plan: Schedule, device: torch.device) -> tuple[Tensor, ...]:
    """Each step's clips, on the device, moved there in one piece: such a move waits for the
    stream, which no lane should."""
    batches = [torch.cat(step) for step in plan.steps]
    return torch.cat(batches).to(device).split([len(batch) for batch in batches])


def balance_loads(loads: Sequence[int], count: int) -> list[list[int]]:
    """The numbers of the loads over ``count`` workers: the largest first, each to who has least."""
    shares: list[list[int]] = [[] for _ in range(count)]
    sums = [0] * count
    for number in sorted(range(len(loads)), key=lambda i: -loads[i]):
        least = sums.index(min(sums))
        shares[least].append(number)
        sums[least] += loads[number]
    return shares
