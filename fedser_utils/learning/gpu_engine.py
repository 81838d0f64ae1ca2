"""Many clients' training at once on one GPU: the steps of ``local_training.client_update``, faster.

Several lanes (``gpu_lane``), each on a stream, keep the GPU busy. All random draws are made before
(``local_training.make_schedule``), so the number of lanes changes the time and not the result. On a
CPU a lane runs the same code step by step: that is how it is tested.

A tensor made on one stream must outlive its readers on others: everything that a round uses is
referenced until all lanes have ended, and a lane starts a round after all earlier work on the GPU.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from fedser_utils.learning.gpu_lane import Kind, Lane, Recipe
from fedser_utils.learning.local_training import Arrays, Schedule, Update
from fedser_utils.learning.vgg import VGG15, compile_module, load_arrays, state_arrays

log = logging.getLogger(__name__)

LANES = 4  # side by side; on an H100 the fourth adds 3 %
SPARE = 8e9  # bytes of the GPU's memory that are left to attacks and evaluation


class Job(NamedTuple):
    """One client's round. x: (n, 1, frames, mels) with the adversarial clips in place; y: (n,);
    schedule: its random draws; optimiser: as its last round returned it, or None."""

    x: Tensor
    y: Tensor
    schedule: Schedule
    optimiser: Arrays | None


class Engine:
    """Trains a round's clients side by side on one device.

    model: of the shape and on the device of all that follow. clients: their number in a round;
    whether optimisers stay on the host, and the number of lanes, follow from the free memory.
    """

    def __init__(self, model: VGG15, recipe: Recipe, *, clients: int, lanes: int = LANES) -> None:
        self.recipe, self.device = recipe, next(model.parameters()).device
        self.anchor = copy.deepcopy(model)
        # on the device, so that captured steps read the round's; Adam's kernel there reads floats
        self.learning_rate = torch.zeros(
            (), dtype=torch.float32 if self._cuda else torch.float64, device=self.device
        )
        self._forward, self.on_host = None, False
        if self._cuda:
            skeleton = copy.deepcopy(model).train()
            self._forward = compile_module(
                lambda state, x: functional_call(skeleton, state, (x,)), dynamic=False
            )
            size = sum(value.nbytes for value in state_arrays(model).values())
            free = torch.cuda.mem_get_info(self.device)[0]
            lanes, self.on_host = plan_lanes(free, size=size, clients=clients, most=lanes)
        self.lanes = [self._lane() for _ in range(lanes)]

    @property
    def _cuda(self) -> bool:
        return self.device.type == "cuda"

    def _lane(self) -> Lane:
        model, anchor = copy.deepcopy(self.anchor).train(), state_arrays(self.anchor)
        return Lane(model, self.recipe, anchor, self.learning_rate, self._forward)

    def fit(self, jobs: Sequence[Job], weights: Arrays, *, learning_rate: float) -> list[Update]:
        """Train ``weights`` on every client's clips; return ``client_update``'s results in the
        order of the jobs.

        With too little memory it goes on with fewer lanes, then with the optimisers on the host,
        and logs it. Raises torch.OutOfMemoryError when one lane does not fit.
        """
        load_arrays(self.anchor, weights)
        self.learning_rate.fill_(learning_rate)
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
        batches = [_batches(job.schedule, self.device) for job in jobs]
        kinds = {_kind(step) for job in jobs for step in job.schedule.steps}
        for lane in self.lanes:
            lane.prepare(kinds, jobs[0].x)
        results: dict[int, tuple[Arrays, Arrays, Tensor]] = {}

        def work(lane: Lane, numbers: list[int]) -> Iterator[None]:
            for number in numbers:
                job = jobs[number]
                lane.load_client(job.optimiser)
                for step, rows in zip(job.schedule.steps, batches[number], strict=True):
                    lane.step(_kind(step), job.x, job.y, rows)
                    yield
                results[number] = lane.client_result(on_host=self.on_host)

        loads = balance_loads([len(job.schedule.steps) for job in jobs], len(self.lanes))
        turns = deque(work(lane, numbers) for lane, numbers in zip(self.lanes, loads, strict=True))
        while turns:
            turn = turns.popleft()
            with contextlib.suppress(StopIteration):
                next(turn)
                turns.append(turn)
        self._synchronise()
        updates = []
        for number in range(len(jobs)):
            arrays, optimiser, total = results[number]
            updates.append(Update(arrays, optimiser, float(total) / sum(map(len, batches[number]))))
        return updates

    def _synchronise(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.device)


def plan_lanes(free: float, *, size: float, clients: int, most: int) -> tuple[int, bool]:
    """Return the number of lanes, and whether the optimisers stay on the host.

    free, size: bytes of the GPU's free memory and of a model. A round holds its clients' weights,
    and their two moments before and after; a lane holds weights, gradients, moments, and about as
    much again for what it computes.
    """
    room = free - SPARE - clients * size
    states, lane = 4 * clients * size, 8 * size
    on_host = room - states < lane
    if not on_host:
        room -= states
    return max(1, min(most, int(room / lane))), on_host


def _kind(step: tuple[Tensor, Tensor]) -> Kind:
    return len(step[0]), len(step[1])


def _batches(schedule: Schedule, device: torch.device) -> tuple[Tensor, ...]:
    """Each step's clips on the device, copied in one piece: a copy waits for the stream, which no
    lane should."""
    batches = [torch.cat(step) for step in schedule.steps]
    return torch.cat(batches).to(device).split([len(batch) for batch in batches])


def balance_loads(loads: Sequence[int], count: int) -> list[list[int]]:
    """Return which loads each of ``count`` workers takes: the largest load first, each to the
    worker with the smallest sum."""
    shares: list[list[int]] = [[] for _ in range(count)]
    sums = [0] * count
    for number in sorted(range(len(loads)), key=lambda i: -loads[i]):
        least = sums.index(min(sums))
        shares[least].append(number)
        sums[least] += loads[number]
    return shares
