"""Claim: what each intervention for heterogeneous clients gains, when, at what cost and under
attack can be recomputed from the folders that runs leave behind.

    python benchmarks/heterogeneity.py [--quick] [--study demo-emovo+ravdess] [--outputs outputs]

Reads the complete runs of a study, recognises each run's intervention by its settings (relative to
the settings that are one intervention away from most others), and compares those of the same seed.
Nothing is trained, unless --quick trains two tiny runs; device, versions and commit are those of
the runs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict

from report import figure, options, save

from fedser_utils.analysis.heterogeneity import (
    conclude,
    intervention_table,
    interventions,
    measure_outcomes,
)
from fedser_utils.core import runs
from fedser_utils.core.errors import refusals
from fedser_utils.core.presets import load_settings
from fedser_utils.core.settings import ROOT
from fedser_utils.federated import server_app


def by_intervention(every: list[runs.Run]) -> dict[str, list[runs.Run]]:
    """Return runs by intervention, those as given first; others are named and left out."""
    settings = [run.settings for run in every]
    baseline, groups = interventions.find_baseline(settings), defaultdict(list)
    for run, of_run in zip(every, settings, strict=True):
        name = interventions.recognise(baseline, of_run)
        if name is None:
            changed = interventions.describe(interventions.differences(baseline, of_run))
            print(f"left out, no intervention: {run.id} ({changed})")
            continue
        groups[name].append(run)
    return {name: groups[name] for name in interventions.INTERVENTIONS if groups[name]}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--outputs", default=str(ROOT / "outputs"))
    parser.add_argument("--study", default="demo", help="such as demo-emovo+ravdess")
    parser.add_argument("--attack", default="none", help="the models' training: none, fgsm, ...")
    parser.add_argument("--targets", type=float, nargs="+", default=[40, 60, 80], help="UAR in %%")
    given = parser.parse_args()
    if not given.quick:
        compare(given)
        return
    with tempfile.TemporaryDirectory() as given.outputs:
        as_given = load_settings("smoke", outputs=given.outputs, device=given.device)
        given.study, given.attack = as_given.study, "none"
        for name in (interventions.BASELINE, "group norm"):
            server_app.train(interventions.apply(as_given, name))
        compare(given)


def compare(given: argparse.Namespace) -> None:
    """Compare a study's runs, and write the result."""
    model = "nature" if given.attack == "none" else given.attack
    every = runs.find_runs(given.outputs, given.study)
    every = [run for run in every if run.complete and run.config["model"] == model]
    if not every:
        raise SystemExit(
            f"study {given.study!r} has no complete run of model {model!r} in {given.outputs!r}"
        )
    with refusals():
        groups = by_intervention(every)
        outcomes = measure_outcomes(groups)
    table = intervention_table(groups, outcomes, targets=given.targets)
    lines = conclude(table, outcomes)
    print("\n".join(lines))
    used = [run for group in groups.values() for run in group]
    facts = {
        "study": given.study, "model": model, "runs": [run.id for run in used],
        "seeds": sorted({run.settings.seed for run in used}), "n": int(table["n"].min()),
        "made_with": {
            "commits": sorted({run.config["commit"] for run in used}),
            "versions": used[0].config["versions"],
        },
        "conclusions": lines,
    }  # fmt: skip
    figures = [
        figure(
            f"{row.intervention.replace(' ', '_')}_uar_points", float(row.gain),
            f"{row.intervention}, UAR beside training as given, 95 % [{row.gain_low:.1f}, "
            f"{row.gain_high:.1f}] ({given.study}, n = {row.n}, {row.seeds} seeds)",
        )
        for row in table[table["gain"].notna()].itertuples()
    ]  # fmt: skip
    devices = sorted({run.config["device"] for run in used})
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    claim = __doc__.split("\n\n")[0]
    save("heterogeneity", given.device, claim, rows, figures, given=given,
         made_on=", ".join(devices), **facts)  # fmt: skip


if __name__ == "__main__":
    main()
