"""Claim: federation itself costs the cohort grid under half a second a round with 68 clients of the
full model, and under 3 GB; Flower's simulation on Ray takes tens of times as long.

    python benchmarks/federation.py [--quick] [--clients 68] [--width 1] [--rounds 4]

Instead of training a client waits for 20 ms, as if an accelerator trained it, and sends back the
weights it received. What a round takes beyond the waiting (shared by as many workers as there are
cores) is the cost of federation: weights are sent, checked and averaged. Each way runs in a new
process, one after the other; seconds are the median of the rounds after the first; memory is
how far the machine's available memory fell.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from report import figure, options, save

TRAINING = 0.02  # seconds of a client's
WAYS = ("cohort, one mean", "cohort, all replies", "Ray")


def in_this_process(way: str, clients: int, width: float, rounds: int, device: str) -> list[float]:
    """Return the seconds of each round over the cohort grid."""
    import torch
    from flwr.app import ConfigRecord

    from fedser_utils.core.devices import resolve_device, worker_pool
    from fedser_utils.core.presets import load_settings
    from fedser_utils.federated import client_app, strategies
    from fedser_utils.federated.client import new_model
    from fedser_utils.federated.grids import cohort, cohort_trainer
    from fedser_utils.learning import vgg
    from fedser_utils.learning.local_training import Update

    settings = load_settings(
        "paper", width=width, client_state="reset", device=device, engine="plain"
    )
    names = [f"{i:02d}" for i in range(clients)]
    one_clip = (torch.zeros(1, 1), torch.zeros(1))

    def fit(settings, client, clips, weights, *others, **more):
        time.sleep(TRAINING)
        return Update(weights, {}, 0.5)

    for module in (cohort_trainer, client_app):
        module.fit = fit
        module.client_clips = lambda *who: one_clip
    client_app.load_federation = lambda settings: SimpleNamespace(clients=names)
    strategy = strategies.make_strategy(
        "FedAvg", first_round=0, seed=0, min_replies=1.0, buffers=()
    )
    record = client_app.as_record(vgg.state_arrays(new_model(settings, 7)))
    seconds = []
    with worker_pool(resolve_device(settings)) as pool:
        trainer = cohort_trainer.Trainer(settings, names, [1] * clients, pool=pool)
        grid = cohort.CohortGrid(trainer, preaggregate=way == WAYS[0])
        for number in range(1, rounds + 1):
            begin = time.perf_counter()
            messages = strategy.configure_train(number, record, ConfigRecord(), grid)
            record, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
            seconds.append(time.perf_counter() - begin)
    return seconds


def on_ray(clients: int, width: float, rounds: int) -> list[float]:
    """Return the seconds of each round of Flower's FedAvg in its simulation."""
    from fedser_utils.federated.deployment.flower_cli import Connection
    from fedser_utils.federated.deployment.processes import (
        Services,
        free_port,
        simulation_command,
    )

    with tempfile.TemporaryDirectory() as folder, Services(Path(folder)) as services:
        port, result = free_port(), Path(folder) / "ends.json"
        services.start("superlink", simulation_command(port))
        services.wait_for_port("superlink", port)
        connection = Connection(f"127.0.0.1:{port}", None, Path(folder) / "home")
        config = {"rounds": rounds, "width": width, "clients": clients, "result": str(result)}
        number = connection.submit(
            Path(__file__).parent / "echo",
            run_config=config | {"training": TRAINING},
            federation_config={"num-supernodes": clients, "client-resources-num-cpus": 1},
        )
        state, details = connection.wait(number, timeout=1800)
        if state != "finished:completed":
            raise RuntimeError(details or state)
        ends = json.loads(result.read_text())
    return [after - before for before, after in itertools.pairwise(ends)]


class Memory(threading.Thread):
    """Measures how far the machine's available memory falls, in GB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begin = self.least = self.available()
        self.start()

    def run(self) -> None:
        while True:
            self.least = min(self.least, self.available())
            time.sleep(0.02)

    @property
    def fallen(self) -> float:
        return self.begin - self.least

    @staticmethod
    def available() -> float:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable")) / 1e6


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--clients", type=int, default=68)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--way", choices=WAYS, help="one of them, in this process")
    given = parser.parse_args()
    size = (given.clients, given.width, given.rounds)
    if given.way:
        if given.way == "Ray":
            seconds = on_ray(*size)
        else:
            seconds = in_this_process(given.way, *size, given.device)
        print(json.dumps(seconds))
        return
    if given.quick:
        size = (8, 1 / 16, 3)
    rows, figures = [], []
    for way in WAYS[:2] if given.quick else WAYS:  # Ray alone takes a minute to start and end
        memory = Memory()
        command = [sys.executable, __file__, "--way", way, "--device", given.device]
        for name, value in zip(("clients", "width", "rounds"), size, strict=True):
            command += [f"--{name}", str(value)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = json.loads(done.stdout.splitlines()[-1])
        waiting = TRAINING * size[0] / (os.cpu_count() or 1)
        spent = statistics.median(seconds[1:]) - waiting
        rows.append({"way": way, "round_s": spent, "memory_gb": memory.fallen})
        key, what = way.split(",")[-1].strip().replace(" ", "_").lower(), f"Federation: {way}"
        what += f", {size[0]} clients, a round beyond training"
        figures.append(figure(f"federation_{key}_s", spent, what))
    from fedser_utils.core.devices import resolve_device
    from fedser_utils.core.presets import load_settings

    device = resolve_device(load_settings("paper", device=given.device))
    facts = dict(zip(("clients", "width", "rounds"), size, strict=True))
    claim = __doc__.split("\n\n")[0]
    save("federation", device, claim, rows, figures, given=given, **facts)


if __name__ == "__main__":
    main()
