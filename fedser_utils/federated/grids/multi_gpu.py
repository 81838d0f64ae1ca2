"""A round's clients shared out over several GPUs of one machine, each with a process of its own.

The first GPU is this process's, and the server's. The processes talk over loopback with
torch.distributed: NCCL between GPUs, gloo between CPUs, which is how this is tested. A client stays
where its optimiser is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
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
def trainer_of(
    settings: Settings,
    clients: Sequence[str],
    examples: Sequence[int],
    *,
    pool: ThreadPoolExecutor,
    devices: Sequence[str] | None = None,
) -> Iterator[Trainer | Shards]:
    """What trains the clients; devices: where, all GPUs in sight if None and the settings name
    none of them."""
    devices = _devices(settings) if devices is None else devices
    if len(devices) < 2:
        yield Trainer(settings, clients, examples, pool=pool)
        return
    made = Shards(settings, clients, examples, pool=pool, devices=devices)
    try:
        yield made
        _tell(("end",))
    finally:
        made.close()


def _devices(settings: Settings) -> list[str]:
    if settings.device not in ("auto", "cuda") or not is_fast(settings):
        return []
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


class Shards:
    """As ``cohort_trainer.Trainer``, over several devices; the first is this process's."""

    def __init__(
        self,
        settings: Settings,
        clients: Sequence[str],
        examples: Sequence[int],
        *,
        pool: ThreadPoolExecutor,
        devices: Sequence[str],
    ) -> None:
        homes = balance_loads(examples, len(devices))
        self.home = {place + 1: rank for rank, places in enumerate(homes) for place in places}
        self.devices, port = devices, free_port()
        self.processes = [
            get_context("spawn").Process(
                target=_serve,
                args=(rank, devices, port, settings.values(), clients, examples),
                daemon=True,
            )
            for rank in range(1, len(devices))
        ]
        for process in self.processes:
            process.start()
        self.local = Trainer(replace(settings, device=devices[0]), clients, examples, pool=pool)
        _meet(0, devices, port)

    def round(
        self, nodes: Sequence[int], weights: Arrays, *, number: int, proximal_mu: float
    ) -> Total:
        """As ``Trainer.round``. Raises RuntimeError, naming the device, if a process fails."""
        weights = {name: value.to(self.local.device) for name, value in weights.items()}
        shares = [
            [node for node in nodes if self.home[node] == rank] for rank in range(len(self.devices))
        ]
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        _tell(("round", shares, shapes, number, proximal_mu))
        return _shared_round(self.local, shares[0], weights, number, proximal_mu, self.devices)

    def statistics(self, nodes: Sequence[int], weights: Arrays) -> Arrays:
        """As ``Trainer.statistics``, all on the first device."""
        return self.local.statistics(nodes, weights)

    def local_arrays(self) -> dict[int, Arrays]:
        """None: where clients have arrays of their own, they are trained on one device."""
        return {}

    def states(self) -> dict[int, dict[str, np.ndarray]]:
        """As ``Trainer.states``."""
        _tell(("states",))
        found = self.local.states()
        for rank in range(1, len(self.devices)):
            while (item := _received(rank)) is not None:
                found[item[0]] = item[1]
        return dict(sorted(found.items()))

    def restore(self, states: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        """As ``Trainer.restore``."""
        _tell(("restore",))
        for node, arrays in states.items():
            if rank := self.home[node]:
                dist.send_object_list([(node, arrays)], dst=rank)
            else:
                self.local.restore({node: arrays})
        for rank in range(1, len(self.devices)):
            dist.send_object_list([None], dst=rank)

    def close(self) -> None:
        """Leave no process behind; one that was not told to end is killed."""
        dist.destroy_process_group()
        for process in self.processes:
            process.join(timeout=GRACE)
            process.kill()


def _meet(rank: int, devices: Sequence[str], port: int) -> None:
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
    """Another process's life: rounds, and states when asked for."""
    own = replace(Settings(**settings), device=devices[rank])
    with worker_pool(devices[rank]) as pool:
        trainer = Trainer(own, clients, examples, pool=pool)
        _meet(rank, devices, port)
        while (command := _told())[0] != "end":
            if command[0] == "round":
                _, shares, shapes, number, proximal_mu = command
                blank = {n: torch.empty(s, device=devices[rank]) for n, s in shapes.items()}
                _shared_round(trainer, shares[rank], blank, number, proximal_mu, devices)
            elif command[0] == "states":
                for item in trainer.states().items():
                    dist.send_object_list([item], dst=0)
                dist.send_object_list([None], dst=0)
            else:
                while (item := _received(0)) is not None:
                    trainer.restore(dict([item]))
    dist.destroy_process_group()


def _shared_round(
    trainer: Trainer, nodes: Sequence[int], weights: Arrays, number: int, proximal_mu: float,
    devices: Sequence[str],
) -> Total:  # fmt: skip
    """One process's part of a round; on the first the sum of all is returned."""
    vector = torch.cat([value.reshape(-1) for value in weights.values()])
    dist.broadcast(vector, src=0)
    parts = vector.split([value.numel() for value in weights.values()])
    weights = {n: p.view(v.shape) for (n, v), p in zip(weights.items(), parts, strict=True)}
    total, said = Total(like=weights), None
    try:
        total = trainer.round(nodes, weights, number=number, proximal_mu=proximal_mu)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    facts = (said, total.clients, total.examples, total.loss, total.failures)
    everyone: list[Any] = [None] * len(devices)
    dist.all_gather_object(everyone, facts)
    for device, (fault, *_) in zip(devices, everyone, strict=True):
        if fault:
            raise RuntimeError(f"device {device}: {fault}")
    vector = torch.cat([value.reshape(-1) for value in total.weights.values()])
    dist.reduce(vector, dst=0)
    parts = vector.split([value.numel() for value in weights.values()])
    whole = Total(like=weights)
    whole.weights = {n: p.view(v.shape) for (n, v), p in zip(weights.items(), parts, strict=True)}
    for _, clients, examples, loss, failures in everyone:
        whole.clients, whole.examples = whole.clients + clients, whole.examples + examples
        whole.loss += loss
        whole.failures |= failures
    return whole


def _tell(command: tuple) -> None:
    dist.broadcast_object_list([command], src=0, device=torch.device("cpu"))


def _told() -> tuple:
    box: list[Any] = [None]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def _received(rank: int) -> Any:
    box: list[Any] = [None]
    dist.recv_object_list(box, src=rank, device=torch.device("cpu"))
    return box[0]
