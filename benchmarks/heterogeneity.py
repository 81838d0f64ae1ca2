"""Claim: what each remedy for clients that are not alike gains, when, at what cost and under attack
can be recomputed from the folders that runs leave behind.

    python benchmarks/heterogeneity.py [--quick] [--study demo-emovo+ravdess] [--outputs outputs]

Reads the complete runs of a study, tells from their settings which remedy each is (relative to the
settings most of the others are one remedy away from), and compares those of the same seed. Nothing
is trained, unless --quick asks for two tiny runs; device, versions and commit are those of the
runs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict

from report import figure, options, save

from fedser_utils.analysis.heterogeneity import interventions, lessons
from fedser_utils.analysis.heterogeneity.outcomes import outcomes as outcomes_of
from fedser_utils.analysis.heterogeneity.outcomes import table as table_of
from fedser_utils.core import runs
from fedser_utils.core.errors import refusals
from fedser_utils.core.settings import ROOT, load_settings
from fedser_utils.federated import server_app


def by_remedy(found: list[runs.Run]) -> dict[str, list[runs.Run]]:
    """Runs by remedy, those as given first; those that are no remedy are named and left out."""
    settings = [run.settings for run in found]
    baseline, groups = interventions.find_baseline(settings), defaultdict(list)
    for run, own in zip(found, settings, strict=True):
        name = interventions.recognise(baseline, own)
        if name is None:
            changed = interventions.describe(interventions.differences(baseline, own))
            print(f"left out, no remedy: {run.id} ({changed})")
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
        for remedy in (interventions.BASELINE, "group norm"):
            server_app.train(interventions.apply(as_given, remedy))
        compare(given)


def compare(given: argparse.Namespace) -> None:
    """Compare a study's runs, and write the result."""
    model = "nature" if given.attack == "none" else given.attack
    found = runs.find_runs(given.outputs, given.study)
    found = [run for run in found if run.complete and run.config["model"] == model]
    if not found:
        raise SystemExit(
            f"study {given.study!r} has no complete run of model {model!r} in {given.outputs!r}"
        )
    with refusals():
        groups = by_remedy(found)
        outcomes = outcomes_of(groups)
    table = table_of(groups, outcomes, targets=given.targets)
    print("\n".join(lessons.lessons(table, outcomes)))
    used = [run for made in groups.values() for run in made]
    facts = {
        "study": given.study, "model": model, "runs": [run.id for run in used],
        "seeds": sorted({run.settings.seed for run in used}), "n": int(table["n"].min()),
        "made_with": {
            "commits": sorted({run.config["commit"] for run in used}),
            "versions": used[0].config["versions"],
        },
        "lessons": lessons.lessons(table, outcomes),
    }  # fmt: skip
    figures = [
        figure(
            f"{row.remedy.replace(' ', '_')}_uar_points", float(row.gain),
            f"{row.remedy}, UAR beside training as given, 95 % [{row.gain_low:.1f}, "
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
