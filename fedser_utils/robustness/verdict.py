"""The honest table: what the paper's protocol claims, beside what an attacker who knows leaves.

Computed from evidence alone, as ``checklist`` is. Never imports torch.
"""

from __future__ import annotations

import pandas as pd

from fedser_utils.analysis.metrics import gain_interval, uar, uar_interval
from fedser_utils.core.seeding import rng
from fedser_utils.robustness.checklist import mean_uar, rows_of


def verdict(evidence: pd.DataFrame) -> pd.DataFrame:
    """The honest table: what the paper's protocol claims, and what the attacker who knows leaves.

    evidence: of one or several models. Returns a row per model and claimed attack: model, attack,
    budget, undefended, claimed, adaptive (UAR in percent; the latter two behind the randomisation,
    over all draws) with intervals, and the difference adaptive - claimed with its own, all 95 %
    from a bootstrap over speakers; n, draws. DeepFool has no budget: its adaptive attacker may go
    as far on each clip, in L2, as DeepFool went.
    """
    rows = []
    for model, own in evidence.groupby("model", sort=False):
        claims = rows_of(own, "claimed", defended=True)
        for attack in [name for name in claims["attack"].unique() if name != "none"]:
            budget = "l2" if attack == "deepfool" else "linf"
            after = rows_of(own, "strongest", attack=budget).sort_values(["draw", "clip"])
            before = claims[claims["attack"] == attack].sort_values(["draw", "clip"])
            plain = mean_uar(rows_of(own, "claimed", attack=attack, defended=False))
            rows.append({"model": model, "attack": attack, "budget": budget, "undefended": plain})
            rows[-1] |= _compared(before, after)
    return pd.DataFrame(rows)


def _compared(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, float]:
    """claimed and adaptive, their difference, and the intervals. Both frames in one order."""
    truth, speakers = before["y_true"].to_numpy(), before["speaker"].to_numpy()
    said = {"claimed": before["y_pred"].to_numpy(), "adaptive": after["y_pred"].to_numpy()}
    found: dict[str, float] = {}
    for name, y_pred in said.items():
        bounds = uar_interval(truth, y_pred, speakers, generator=rng(0, "bootstrap"))
        found |= {name: uar(truth, y_pred), f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
    bounds = gain_interval(truth, *said.values(), speakers, generator=rng(0, "bootstrap"))
    found |= {"difference": found["adaptive"] - found["claimed"]}
    found |= {"difference_low": bounds[0], "difference_high": bounds[1]}
    return found | {"n": before["clip"].nunique(), "draws": before["draw"].nunique()}
