"""Training of a round's clients on several GPUs of one machine, a process for each.

The first GPU is this process's, and the server's. The processes communicate over loopback by
torch.distributed: NCCL between GPUs, gloo between CPUs, which is how this is tested. A client stays
in the process that has its state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fedser_utils.core.devices import worker_pool
from fedser_utils.core.settings import Settings
from fedser_utils.federated.client import is_fast
from fedser_utils.federated.deployment.processes import free_port
from fedser_utils.federated.grids.cohort_trainer import Total, Trainer
from fedser_utils.learning.gpu_engine import balance_loads
from fedser_utils.learning.local_training import Arrays

GRACE = 5.0  # seconds that a process has to end by itself
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


@contextmanager
def make_trainer(
    settings: Settings, clients: Sequence[str], examples: Sequence[int], *,
    pool: ThreadPoolExecutor, devices: Sequence[str] | None = None,
) -> Iterator[Trainer]:  # fmt: skip
    """Yield the clients' trainer. devices: one process each; None: all visible GPUs, where the
    settings use the fast engine and name no single one."""
    devices = _devices(settings) if devices is None else devices
    if len(devices) < 2:
        yield Trainer(settings, clients, examples, pool=pool)
        return
    trainer = MultiGpuTrainer(settings, clients, examples, pool=pool, devices=devices)
    try:
        yield trainer
        _broadcast(("end",))
    finally:
        trainer.close()


def _devices(settings: Settings) -> list[str]:
    if settings.device not in ("auto", "cuda") or not is_fast(settings):
        return []
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


class MultiGpuTrainer(Trainer):
    """A ``Trainer`` over several devices, of which the first is this process's. (Batch-norm
    statistics are computed on the first; clients with local arrays are trained on one device.)"""

    def __init__(
        self, settings: Settings, clients: Sequence[str], examples: Sequence[int], *,
        pool: ThreadPoolExecutor, devices: Sequence[str],
    ) -> None:  # fmt: skip
        super().__init__(replace(settings, device=devices[0]), clients, examples, pool=pool)
        loads = balance_loads(examples, len(devices))
        self.rank_of = {i + 1: rank for rank, indices in enumerate(loads) for i in indices}
        self.devices, port = devices, free_port()
        arguments = devices, port, settings.values(), clients, examples
        self.processes = [
            get_context("spawn").Process(target=_serve, args=(rank, *arguments), daemon=True)
            for rank in range(1, len(devices))
        ]
        for process in self.processes:
            process.start()
        _join_group(0, devices, port)

    def round(
        self, nodes: Sequence[int], weights: Arrays, *, number: int, proximal_mu: float
    ) -> Total:
        """As ``Trainer.round``. Raises RuntimeError, naming the device, if a process fails."""
        weights = {name: value.to(self.device) for name, value in weights.items()}
        shares = [
            [node for node in nodes if self.rank_of[node] == rank]
            for rank in range(len(self.devices))
        ]
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        options = {"number": number, "proximal_mu": proximal_mu}
        _broadcast(("round", shares, shapes, options))
        return _shared_round(partial(super().round, shares[0], **options), weights, self.devices)

    def states(self) -> dict[int, dict[str, np.ndarray]]:
        """As ``Trainer.states``."""
        _broadcast(("states",))
        states = super().states()
        for rank in range(1, len(self.devices)):
            states |= dict(_receive_items(rank))
        return dict(sorted(states.items()))

    def restore(self, states: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        """As ``Trainer.restore``."""
        _broadcast(("restore",))
        for rank in range(len(self.devices)):
            share = {node: arrays for node, arrays in states.items() if self.rank_of[node] == rank}
            if rank:
                _send_items(share, rank)
            else:
                super().restore(share)

    def close(self) -> None:
        """Leave no process behind; one that still runs after ``GRACE`` is killed."""
        dist.destroy_process_group()
        for process in self.processes:
            process.join(timeout=GRACE)
            process.kill()


def _join_group(rank: int, devices: Sequence[str], port: int) -> None:
    os.environ.update(LOOPBACK)
    on_gpus = devices[0] != "cpu"
    if on_gpus:
        torch.cuda.set_device(devices[rank])
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpus else "gloo", rank=rank, world_size=len(devices),
        init_method=f"tcp://127.0.0.1:{port}", timeout=timedelta(days=1),
    )  # fmt: skip


def _serve(
    rank: int, devices: Sequence[str], port: int, settings: dict[str, Any],
    clients: Sequence[str], examples: Sequence[int],
) -> None:  # fmt: skip
    """Run another device's process: obey the first one's commands until "end"."""
    device = devices[rank]
    with worker_pool(device) as pool:
        trainer = Trainer(
            replace(Settings(**settings), device=device), clients, examples, pool=pool
        )
        _join_group(rank, devices, port)
        while (command := _broadcast(None))[0] != "end":
            if command[0] == "round":
                _, shares, shapes, options = command
                blank = {n: torch.empty(s, device=device) for n, s in shapes.items()}
                _shared_round(partial(trainer.round, shares[rank], **options), blank, devices)
            elif command[0] == "states":
                _send_items(trainer.states(), 0)
            else:
                trainer.restore(dict(_receive_items(0)))
    dist.destroy_process_group()


def _shared_round(
    train: Callable[[Arrays], Total], weights: Arrays, devices: Sequence[str]
) -> Total:
    """Run one process's part of a round, with the first one's weights; return the sum of all parts,
    which is right on the first process only.

    train: weights -> the sum of this process's clients.
    """
    vector = torch.cat([value.reshape(-1) for value in weights.values()])
    dist.broadcast(vector, src=0)
    weights = _split(vector, weights)
    total, fault = Total(like=weights), None
    try:
        total = train(weights)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    facts = (fault, total.clients, total.examples, total.loss, total.failures)
    everyone: list[Any] = [None] * len(devices)
    dist.all_gather_object(everyone, facts)
    for device, (fault, *_) in zip(devices, everyone, strict=True):
        if fault:
            raise RuntimeError(f"device {device}: {fault}")
    vector = torch.cat([value.reshape(-1) for value in total.weights.values()])
    dist.reduce(vector, dst=0)
    whole = Total(like=weights)
    whole.weights = _split(vector, weights)
    for _, clients, examples, loss, failures in everyone:
        whole.clients, whole.examples = whole.clients + clients, whole.examples + examples
        whole.loss += loss
        whole.failures |= failures
    return whole


def _split(vector: torch.Tensor, like: Arrays) -> Arrays:
    """Return views of a vector with the names and shapes of ``like``."""
    parts = vector.split([value.numel() for value in like.values()])
    return {n: part.view(v.shape) for (n, v), part in zip(like.items(), parts, strict=True)}


def _broadcast(command: tuple | None) -> tuple:
    """Send the first process's command to all; elsewhere (None) return what it sends."""
    box = [command]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def _send_items(items: Mapping[int, Any], rank: int) -> None:
    for item in (*items.items(), None):
        dist.send_object_list([item], dst=rank)


def _receive_items(rank: int) -> Iterator[tuple[int, Any]]:
    box: list[Any] = [None]
    while True:
        dist.recv_object_list(box, src=rank, device=torch.device("cpu"))
        if box[0] is None:
            return
        yield box[0]
