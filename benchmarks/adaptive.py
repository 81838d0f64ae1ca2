"""Claim: against the randomisation, PGD with momentum over one fresh draw per gradient reaches with
50 gradients per clip what plain PGD does not reach with 100, over single draws or over ten.

    python benchmarks/adaptive.py [--quick] [--outputs outputs] [--clips 14]

Attacks the nature model of a study that `make demo` has trained, on the same clips; --quick trains
a tiny one. UAR is the mean over 20 draws of the judge's own.
"""

from __future__ import annotations

import argparse
import tempfile
import time

from report import figure, options, save

from fedser_utils import attacks
from fedser_utils.core import devices, runs
from fedser_utils.core.errors import refusals
from fedser_utils.core.settings import ROOT, load_settings
from fedser_utils.data import federation
from fedser_utils.federated import server_app
from fedser_utils.robustness import defended_model
from fedser_utils.robustness.checklist import mean_uar
from fedser_utils.robustness.defended_model import Attempt, eot_pgd


def plain_pgd(*, steps: int, eot: int) -> Attempt:
    """PGD without momentum, as it is usually run over draws."""

    def run(model, x, y, start, epsilon):
        options = {"epsilon": epsilon, "step_size": 0.1 * epsilon, "steps": steps, "eot": eot}
        return attacks.pgd(model, x, y, **options)

    return Attempt(run, eot)


CASES = [
    ("plain, k = 1", 10, plain_pgd(steps=10, eot=1)),
    ("plain, k = 10", 100, plain_pgd(steps=10, eot=10)),
    ("plain, k = 1", 100, plain_pgd(steps=100, eot=1)),
    ("plain, k = 30", 900, plain_pgd(steps=30, eot=30)),
    ("momentum, k = 1", 50, eot_pgd(steps=50)),
    ("momentum, k = 1", 100, eot_pgd(steps=100)),
    ("momentum, k = 5", 100, eot_pgd(steps=20, eot=5)),
    ("momentum, k = 10", 100, eot_pgd(steps=10, eot=10)),
]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--outputs", default=str(ROOT / "outputs"))
    parser.add_argument("--clips", type=int, default=14)
    given = parser.parse_args()
    if given.quick:
        with tempfile.TemporaryDirectory() as folder:
            settings = load_settings("smoke", outputs=folder, device=given.device)
            measure(server_app.train(settings), devices.resolve_device(settings), given)
        return
    settings = load_settings("demo", outputs=given.outputs, device=given.device)
    with refusals():
        run = runs.find_run(settings)
    measure(run, devices.resolve_device(settings), given)


def measure(run: runs.Run, device: str, given: argparse.Namespace) -> None:
    """Attack a run's model in every way, and write the result."""
    with refusals():
        data = federation.federation_of(run)
    chosen = defended_model.stratified_sample(data.table("test"), given.clips, seed=0)
    rows, figures = [], []
    with devices.worker_pool(device) as pool:
        bf16 = devices.uses_bf16(run.settings, device)
        on = {"draws": 20, "device": device, "bf16": bf16, "pool": pool}
        tried = defended_model.load_defended_model(run, data, chosen, **on)
        for name, gradients, attempt in CASES[:2] if given.quick else CASES:
            begin = time.perf_counter()
            moved = tried.attack(attempt, name, gradients, epsilon=run.settings.epsilon)
            seconds = time.perf_counter() - begin
            left = mean_uar(tried.judge(moved, test="benchmark", attack=name))
            row = {"attack": name, "gradients": gradients, "left_percent": left}
            rows.append(row | {"attack_s": seconds})
            what = f"UAR left by PGD, {name}, {gradients} gradients (n = {len(chosen)})"
            key = f"left_{name}_{gradients}_percent".replace(", k = ", "_")
            figures.append(figure(key, left, what))
    claim = __doc__.split("\n\n")[0]
    save("adaptive", device, claim, rows, figures, given=given, run=run.id, n=len(chosen))


if __name__ == "__main__":
    main()
