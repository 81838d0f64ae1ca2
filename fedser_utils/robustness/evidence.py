"""Reading the evidence of an adaptive evaluation: its tests, curves, and the claim table.

Evidence is what ``adaptive_attacks`` returns: a row per model, test, attack, value, draw and clip,
with y_true, y_pred and the perturbation's size. All numbers here are UARs over such rows.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fedser_utils.analysis.metrics import uar, uar_by, uar_interval


class NoEvidenceError(ValueError):
    """A test was not run."""


def rows_of(evidence: pd.DataFrame, test: str, **fixed: object) -> pd.DataFrame:
    """Return the evidence of one test, with columns at fixed values. Raises NoEvidenceError where
    there is none."""
    rows = evidence[evidence["test"] == test]
    for name, value in fixed.items():
        rows = rows[rows[name] == value]
    if rows.empty:
        raise NoEvidenceError(f"no evidence of {test!r}")
    return rows


def mean_uar(rows: pd.DataFrame) -> float:
    """Return the UAR in percent over all draws of all clips."""
    return uar(rows["y_true"], rows["y_pred"])


def strongest_uar(evidence: pd.DataFrame) -> float:
    """Return the UAR under the strongest L-inf attacker that knows of the randomisation."""
    return mean_uar(rows_of(evidence, "strongest", attack="linf"))


def uar_by_value(evidence: pd.DataFrame, test: str, **fixed: object) -> tuple[np.ndarray, str]:
    """Return the UAR at every value of a test, by rising value, and the same in words."""
    table = uar_by(rows_of(evidence, test, **fixed), ["value"]).sort_values("value")
    text = ", ".join(f"{row.value:g}: {row.uar:.1f}" for row in table.itertuples())
    return table["uar"].to_numpy(), text


def eot_curve(evidence: pd.DataFrame) -> pd.DataFrame:
    """Return the UAR under EOT-PGD by model and draws per gradient: model, value, uar, n."""
    return uar_by(evidence[evidence["test"] == "eot"], ["model", "value"])


def security_curve(evidence: pd.DataFrame) -> pd.DataFrame:
    """Return the security curve, R(epsilon): model, defended (whether behind the randomisation),
    value (epsilon), uar in percent, n."""
    return uar_by(evidence[evidence["test"] == "curve"], ["model", "defended", "value"])


def claim_table(evidence: pd.DataFrame) -> pd.DataFrame:
    """Return the UAR behind the randomisation under the paper's attacks, and under an attacker
    that knows of it.

    evidence: of one or several models. Returns a row per model and claimed attack: model, attack,
    budget, undefended, claimed, adaptive (UAR in percent; the latter two over all draws) with
    intervals, and the difference adaptive - claimed with its own, all 95 % from a bootstrap over
    speakers; n, draws. DeepFool has no budget: its adaptive attacker may go as far on each clip,
    in L2, as DeepFool went.
    """
    rows = []
    for model, of_model in evidence.groupby("model", sort=False):
        claims = rows_of(of_model, "claimed", defended=True)
        for attack in [name for name in claims["attack"].unique() if name != "none"]:
            budget = "l2" if attack == "deepfool" else "linf"
            plain = mean_uar(rows_of(of_model, "claimed", attack=attack, defended=False))
            before = claims[claims["attack"] == attack].sort_values(["draw", "clip"])
            after = rows_of(of_model, "strongest", attack=budget).sort_values(["draw", "clip"])
            row = {"model": model, "attack": attack, "budget": budget, "undefended": plain}
            rows.append(row | _with_intervals(before, after))
    return pd.DataFrame(rows)


def _with_intervals(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, float]:
    """Return claimed, adaptive and their difference with intervals, n and draws. Both tables are
    in the same order of draws and clips."""
    truth, speakers = before["y_true"], before["speaker"]
    claimed, adaptive = before["y_pred"].to_numpy(), after["y_pred"].to_numpy()
    row: dict[str, float] = {}
    for name, y_pred in (("claimed", claimed), ("adaptive", adaptive)):
        low, high = uar_interval(truth, y_pred, speakers)
        row |= {name: uar(truth, y_pred), f"{name}_low": low, f"{name}_high": high}
    low, high = uar_interval(truth, adaptive, speakers, before=claimed)
    row |= {"difference": row["adaptive"] - row["claimed"]}
    row |= {"difference_low": low, "difference_high": high}
    return row | {"n": before["clip"].nunique(), "draws": before["draw"].nunique()}
