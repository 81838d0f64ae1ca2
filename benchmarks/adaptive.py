"""Claim: against the randomisation, PGD with momentum over one fresh draw per gradient reaches with
50 gradients per clip what plain PGD does not reach with 100, over single draws or over ten.

    python benchmarks/adaptive.py [--quick] [--outputs outputs] [--clips 14]

Attacks the nature model of a study that `make demo` has trained, on the same clips; --quick trains
a tiny one. UAR is the mean over 20 draws that the attacker does not know.
"""

from __future__ import annotations

import argparse
import tempfile
import time

from report import figure, options, save

from fedser_utils import attacks, robustness
from fedser_utils.core.devices import worker_pool
from fedser_utils.core.errors import refusals
from fedser_utils.core.presets import load_settings
from fedser_utils.core.settings import ROOT, Settings
from fedser_utils.federated import server_app
from fedser_utils.robustness.defended_model import Attempt, defend, eot_pgd, stratified_sample
from fedser_utils.robustness.evidence import mean_uar


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
            server_app.train(settings)
            measure(settings, given)
        return
    measure(load_settings("demo", outputs=given.outputs, device=given.device), given)


def measure(settings: Settings, given: argparse.Namespace) -> None:
    """Attack the settings' model in every way, and write the result."""
    with refusals():
        loaded = robustness.load_model(settings)
    clips = stratified_sample(loaded.test, given.clips, seed=0)
    rows, figures = [], []
    with worker_pool(loaded.device) as pool:
        defended = defend(loaded, clips, draws=20, pool=pool)
        for name, gradients, attempt in CASES[:2] if given.quick else CASES:
            begin = time.perf_counter()
            x_adv = defended.attack(attempt, name, gradients, epsilon=loaded.settings.epsilon)
            seconds = time.perf_counter() - begin
            left = mean_uar(defended.judge(x_adv, test="benchmark", attack=name))
            row = {"attack": name, "gradients": gradients, "left_percent": left}
            rows.append(row | {"attack_s": seconds})
            label = f"UAR left by PGD, {name}, {gradients} gradients (n = {len(clips)})"
            key = f"left_{name}_{gradients}_percent".replace(", k = ", "_")
            figures.append(figure(key, left, label))
    claim = __doc__.split("\n\n")[0]
    facts = {"given": given, "run": loaded.run.id, "n": len(clips)}
    save("adaptive", loaded.device, claim, rows, figures, **facts)


if __name__ == "__main__":
    main()
