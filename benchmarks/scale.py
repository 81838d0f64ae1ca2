"""Claim: in the cohort grid a round's time grows in proportion to the clients, from 10 to 1,000,
and its memory hardly at all, but for the clients' optimiser states where these are kept.

    python benchmarks/scale.py [--quick] [--clients 10 68 200 1000] [--width 0.0625] [--clips 4]

A round is real training: every client trains a small VGG-15 on a few random clips. Each number of
clients runs in a new process; seconds are of the second round; memory is the process's peak beyond
its peak before the first.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

from report import figure, options, save


def two_rounds(clients: int, width: float, clips: int, state: str, device: str) -> dict:
    """Return the seconds of the second round, and the MB of peak memory."""
    import torch
    from flwr.app import ConfigRecord

    from fedser_utils.core.devices import resolve_device, worker_pool
    from fedser_utils.core.presets import load_settings
    from fedser_utils.federated import client_app, strategies
    from fedser_utils.federated.client import new_model
    from fedser_utils.federated.grids import cohort, cohort_trainer
    from fedser_utils.learning import vgg

    settings = load_settings("paper", width=width, client_state=state, device=device)
    where = resolve_device(settings)
    names = [f"{i:04d}" for i in range(clients)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clips, 1, *settings.front_end.shape, generator=generator).to(where)
    y = torch.randint(7, (clips,), generator=generator).to(where)
    cohort_trainer.client_clips = lambda *who: (x, y)
    strategy = strategies.make_strategy(
        "FedAvg", first_round=0, seed=0, min_replies=1.0, buffers=()
    )
    record = client_app.as_record(vgg.state_arrays(new_model(settings, 7)))
    with worker_pool(where) as pool:
        trainer = cohort_trainer.Trainer(settings, names[:4], [clips] * 4, pool=pool)
        warm = cohort.CohortGrid(trainer, preaggregate=True)
        warm.send_and_receive(strategy.configure_train(1, record, ConfigRecord(), warm))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trainer = cohort_trainer.Trainer(settings, names, [clips] * clients, pool=pool)
        grid = cohort.CohortGrid(trainer, preaggregate=True)
        for number in (1, 2):
            begin = time.perf_counter()
            messages = strategy.configure_train(number, record, ConfigRecord(), grid)
            record, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
            seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {"round_s": seconds, "memory_mb": (after - before) / 1024}
    if where != "cpu":
        row["gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return row


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 68, 200, 1000])
    parser.add_argument("--width", type=float, default=1 / 16)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--state", choices=("reset", "keep"), help="one case, in this process")
    given = parser.parse_args()
    if given.state:
        case = (given.clients[0], given.width, given.clips, given.state, given.device)
        print(json.dumps(two_rounds(*case)))
        return
    rows, figures = [], []
    for state in ("reset", "keep"):
        for clients in [4, 8] if given.quick else given.clients:
            command = [sys.executable, __file__, "--state", state, "--clients", str(clients)]
            command += ["--width", str(given.width), "--clips", str(given.clips)]
            command += ["--device", given.device]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append({"client_state": state, "clients": clients} | row)
            if state == "reset":
                what = f"A round of {clients:,} small clients"
                figures.append(figure(f"round_of_{clients}_s", row["round_s"], what))
                figures.append(
                    figure(f"round_of_{clients}_mb", row["memory_mb"], f"{what}, memory")
                )
    from fedser_utils.core.devices import resolve_device
    from fedser_utils.core.presets import load_settings

    device = resolve_device(load_settings("paper", device=given.device))
    facts = {"width": given.width, "clips": given.clips}
    claim = __doc__.split("\n\n")[0]
    save("scale", device, claim, rows, figures, given=given, **facts)


if __name__ == "__main__":
    main()
