"""Two sets of decisions on the same clips: what a defence gains, what federation costs.

Rows are paired by seed and clip, so that a difference never comes from other clips. Everything is
computed from the rows of ``predictions.parquet`` and the seed of each run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from fedser_utils.analysis import metrics
from fedser_utils.analysis.tables import KEY, MODELS, last_round, sort_rows
from fedser_utils.core import count_tables
from fedser_utils.core.seeding import rng

Groups = dict[tuple[str, str, str], pd.DataFrame]  # (model, attack, condition) -> its rows
_MEASURES = ["n", "seeds", "before", "after", "gain", "ci_low", "ci_high"]
_TESTS = ["p_z", "p_mcnemar"]
_SWINGS = ["federated_low", "federated_high", "central_low", "central_high"]


def pair_decisions(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Decisions on the same clips side by side: seed, clip, speaker, y_true, before, after.

    before, after: rows of predictions with their seed, one draw each. Seeds that only one of the
    two has are left out. Raises ValueError where a common seed's clips differ.
    """
    key = ["seed", "clip", "speaker", "y_true"]
    seeds = set(before["seed"]) & set(after["seed"])
    old, new = (
        rows.loc[rows["seed"].isin(seeds), [*key, "y_pred"]].rename(columns={"y_pred": name})
        for rows, name in ((before, "before"), (after, "after"))
    )
    both = old.merge(new, on=key, validate="one_to_one")
    if not len(both) == len(old) == len(new):
        raise ValueError(
            f"{len(old)} and {len(new)} clips, only {len(both)} of them the same, cannot be paired"
        )
    return both


def paired_gain(paired: pd.DataFrame) -> dict[str, Any]:
    """The measures of ``pairs``: n (clips of a seed, the fewest), seeds, before and after (UAR in
    percent, the mean over seeds), gain, and its 95 % interval ci_low, ci_high (bootstrap clustered
    by speaker, the same speakers before and after)."""
    seeds = [own for _, own in paired.groupby("seed")]
    before, after = (
        sum(metrics.uar(own["y_true"], own[said]) for own in seeds) / len(seeds)
        for said in ("before", "after")
    )
    bounds = metrics.gain_interval(
        paired["y_true"], paired["before"], paired["after"], paired["speaker"],
        seeds=paired["seed"], generator=rng(0, "bootstrap"),
    )  # fmt: skip
    n = min(len(own) for own in seeds)
    return dict(zip(_MEASURES, (n, len(seeds), before, after, after - before, *bounds)))


def paired_tests(paired: pd.DataFrame) -> dict[str, float]:
    """p of the paper's one-tailed z-test (``after`` is better) and of McNemar's two-sided one; of
    several seeds as ``metrics.combined`` says. Counted clips (``count_tables``) cannot be paired:
    their McNemar p is NaN."""
    p: dict[str, list[float]] = {test: [] for test in _TESTS}
    for _, own in paired.groupby("seed"):
        before, after = (metrics.uar(own["y_true"], own[said]) for said in ("before", "after"))
        p["p_z"].append(metrics.z_test(after, before, len(own))[1])
        same = not count_tables.is_counted(own["clip"])
        p["p_mcnemar"].append(
            metrics.mcnemar(own["y_true"], own["before"], own["after"]) if same else np.nan
        )
    return {test: metrics.combine_p_values(values) for test, values in p.items()}


def gains(predictions: pd.DataFrame) -> pd.DataFrame:
    """What each defence gains under each attack, after the last round, and what adversarial
    training costs on original clips (attack none).

    Adversarial training is compared with the model without it under the same attack (each on the
    clips attacked with its own help), randomisation with the same model without it. Columns:
    model, attack, defence, those of ``measured``, p_z and p_mcnemar as ``tested`` has them (NaN for
    a price, which is no claim that is tested), and after each the same corrected over the table by
    Holm's method (p_z_holm, p_mcnemar_holm).
    """
    groups, rows = _groups(predictions), []
    for (model, attack, condition), after in groups.items():
        if condition == "randomised_adversarial":
            defence, base = "randomisation", (model, attack, "adversarial")
        elif condition in ("original", "adversarial") and undefended_twin(model) != model:
            defence, base = "adversarial training", (undefended_twin(model), attack, condition)
        else:
            continue
        paired = pair_decisions(groups.get(base, after[:0]), after)
        if len(paired):
            named = {"model": model, "attack": attack, "defence": defence}
            ps = paired_tests(paired) if attack != "none" else dict.fromkeys(_TESTS, np.nan)
            rows.append(named | paired_gain(paired) | ps)
    table = pd.DataFrame(rows, columns=["model", "attack", "defence", *_MEASURES, *_TESTS])
    for test in _TESTS:
        asked, corrected = table[test].notna(), table[test].copy()
        if asked.any():
            corrected[asked] = multipletests(table.loc[asked, test], method="holm")[1]
        table.insert(table.columns.get_loc(test) + 1, f"{test}_holm", corrected)
    return table


def undefended_twin(model: str) -> str:
    """The model trained in the same place without adversarial training."""
    return "centralised" if model.startswith("centralised") else "nature"


def centralised(predictions: pd.DataFrame) -> pd.DataFrame:
    """The paper's |V_federated - V_central| < delta, after the last round; empty if no centralised
    model is there.

    First form: a federated model and the same training on pooled clips, on original and on
    randomised clips. Second form: a federated model on adversarial clips, and natural training on
    pooled clips on the original ones. Columns: model, attack, condition (of the federated side),
    central_model, central_condition, n, seeds, v_federated, v_central, difference, ci_low,
    ci_high (of the difference), delta (the smallest that the whole interval allows), and the
    lowest and highest UAR of both over the second half of the rounds (federated_low ...
    central_high; of several seeds the mean; NaN where fewer than two rounds were evaluated):
    nothing averages a centralised model's weights, and its last round may be a bad one.
    """
    groups, rows = _groups(predictions), []
    for key, federated in groups.items():
        model, _, condition = key
        pooled = "centralised" if model == "nature" else f"centralised-{model}"
        central = (pooled, "none", condition)
        if condition == "adversarial":
            central = ("centralised", "none", "original")
        if model not in MODELS or central not in groups:
            continue
        paired = pair_decisions(groups[central], federated)
        if len(paired):
            sides = {"central_model": central[0], "central_condition": central[2]}
            of_seeds = predictions[predictions["seed"].isin(set(paired["seed"]))]
            swing = dict(zip(_SWINGS, (*_swing(of_seeds, key), *_swing(of_seeds, central))))
            rows.append(dict(zip(KEY, key)) | sides | paired_gain(paired) | swing)
    names = {"before": "v_central", "after": "v_federated", "gain": "difference"}
    columns = [*KEY, "central_model", "central_condition", *_MEASURES, *_SWINGS]
    table = pd.DataFrame(rows, columns=columns).rename(columns=names)
    return table.assign(delta=table[["ci_low", "ci_high"]].abs().max(axis=1))


def _swing(predictions: pd.DataFrame, key: tuple[str, str, str]) -> tuple[float, float]:
    """Lowest and highest UAR over the rounds of the second half; key: model, attack, condition."""
    late = predictions[2 * predictions["round"] > predictions["round"].max()]
    own = late[(late[KEY] == pd.Series(key, KEY)).all(axis=1)]
    by_round = metrics.uar_by(own, ["round", "seed"]).groupby("round")["uar"].mean()
    return (by_round.min(), by_round.max()) if len(by_round) > 1 else (np.nan, np.nan)


def by_speaker(predictions: pd.DataFrame) -> pd.DataFrame:
    """The UAR in percent of every speaker after the last round: model, attack, condition,
    speaker, uar (the mean over seeds), n (test clips, of all seeds)."""
    found = metrics.uar_by(last_round(predictions), [*KEY, "speaker", "seed"])
    means = found.groupby([*KEY, "speaker"]).agg(uar=("uar", "mean"), n=("n", "sum"))
    return sort_rows(means.reset_index())


def speakers(each: pd.DataFrame) -> pd.DataFrame:
    """How evenly speakers are served; each: as ``by_speaker`` gives it. Columns: model, attack,
    condition, mean and deviation over speakers (percent), worst (the speaker), worst_uar,
    worst_n (its test clips), best, best_uar."""
    each = each.sort_values("uar", kind="stable")
    table = each.groupby(KEY).agg(
        mean=("uar", "mean"), deviation=("uar", "std"),
        worst=("speaker", "first"), worst_uar=("uar", "first"), worst_n=("n", "first"),
        best=("speaker", "last"), best_uar=("uar", "last"),
    )  # fmt: skip
    return sort_rows(table.reset_index())


def _groups(predictions: pd.DataFrame) -> Groups:
    """The last round's rows by model, attack and condition, in the paper's order."""
    rows = last_round(predictions)
    order = sort_rows(rows[KEY].drop_duplicates())
    found = dict(list(rows.groupby(KEY)))
    return {key: found[key] for key in order.itertuples(index=False, name=None)}
