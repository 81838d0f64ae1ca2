"""What a defence gains, what federation costs, and how speakers differ.

Two models' decisions are paired by seed and clip, so that a difference never comes from other
clips. predictions: rows of ``predictions.parquet`` with the column seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from fedser_utils.analysis import metrics
from fedser_utils.analysis.labels import KEY, MODELS, sort_rows
from fedser_utils.analysis.tables import last_round
from fedser_utils.core import count_tables

Groups = dict[tuple[str, str, str], pd.DataFrame]  # (model, attack, condition) -> its rows
_MEASURES = ["n", "seeds", "before", "after", "gain", "ci_low", "ci_high"]
_TESTS = ["p_z", "p_mcnemar"]
_RANGES = ["federated_low", "federated_high", "central_low", "central_high"]


def pair_decisions(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Return two decisions on the same clips side by side: seed, clip, speaker, y_true, before,
    after.

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


def uar_by_seed(paired: pd.DataFrame) -> pd.DataFrame:
    """Return the UAR in percent of each seed of ``pair_decisions``: before, after."""
    return pd.DataFrame(
        {side: metrics.uar(rows["y_true"], rows[side]) for side in ("before", "after")}
        for _, rows in paired.groupby("seed")
    )


def gain_interval(paired: pd.DataFrame, **options: Any) -> tuple[float, float]:
    """Return the interval of the gain over ``pair_decisions``, in points; options: level,
    resamples, as of ``metrics.uar_interval``."""
    return metrics.uar_interval(
        paired["y_true"], paired["after"], paired["speaker"], before=paired["before"],
        seeds=paired["seed"], **options,
    )  # fmt: skip


def paired_gain(paired: pd.DataFrame) -> dict[str, Any]:
    """Return what ``pair_decisions`` differ by: n (clips of a seed, the fewest), seeds, before and
    after (UAR in percent, the mean over seeds), gain (after - before) and its 95 % interval ci_low,
    ci_high."""
    uars, clips = uar_by_seed(paired).mean(), paired.groupby("seed").size()
    gain = uars["after"] - uars["before"]
    values = clips.min(), len(clips), uars["before"], uars["after"], gain
    return dict(zip(_MEASURES, (*values, *gain_interval(paired)), strict=True))


def paired_tests(paired: pd.DataFrame) -> dict[str, float]:
    """Return p_z of the paper's one-tailed z-test (``after`` is better) and p_mcnemar, two-sided;
    of several seeds combined by ``metrics.combine_p_values``. Clips that were only counted
    (``count_tables``) cannot be paired: their p_mcnemar is NaN."""
    p: dict[str, list[float]] = {test: [] for test in _TESTS}
    for _, rows in paired.groupby("seed"):
        before, after = (metrics.uar(rows["y_true"], rows[side]) for side in ("before", "after"))
        p["p_z"].append(metrics.z_test(after, before, len(rows))[1])
        counted = count_tables.is_counted(rows["clip"])
        p["p_mcnemar"].append(
            np.nan if counted else metrics.mcnemar(rows["y_true"], rows["before"], rows["after"])
        )
    return {test: metrics.combine_p_values(values) for test, values in p.items()}


def gains(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return what each defence gains under each attack after the last round, and what adversarial
    training costs on original clips (attack none).

    Adversarial training is compared with the model without it under the same attack (each on the
    clips attacked through itself), randomisation with the same model without it. Columns: model,
    attack, defence, those of ``paired_gain``, p_z and p_mcnemar of ``paired_tests`` (NaN on
    original clips: nothing is claimed of a price), and after each the same corrected over the table
    by Holm's method (p_z_holm, p_mcnemar_holm).
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
        tested, corrected = table[test].notna(), table[test].copy()
        if tested.any():
            corrected[tested] = multipletests(table.loc[tested, test], method="holm")[1]
        table.insert(table.columns.get_loc(test) + 1, f"{test}_holm", corrected)
    return table


def undefended_twin(model: str) -> str:
    """Return the model trained in the same place without adversarial training."""
    return "centralised" if model.startswith("centralised") else "nature"


def centralised(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's |V_federated - V_central| < delta after the last round; no rows without a
    centralised model.

    First form: a federated model and the same training on pooled clips, on original and on
    randomised clips. Second form: a federated model on adversarial clips, and natural training on
    pooled clips on the original ones. Columns: model, attack, condition (of the federated side),
    central_model, central_condition, n, seeds, v_central, v_federated, difference, ci_low,
    ci_high (of the difference, in points), delta (the smallest that the whole interval allows),
    and the lowest and highest UAR of both over the second half of the rounds (federated_low ...
    central_high; the mean over seeds; NaN where fewer than two rounds were evaluated): nothing
    averages a centralised model's weights, and its last round may be a bad one.
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
            ranges = dict(zip(_RANGES, (*_range(of_seeds, key), *_range(of_seeds, central))))
            rows.append(dict(zip(KEY, key)) | sides | paired_gain(paired) | ranges)
    names = {"before": "v_central", "after": "v_federated", "gain": "difference"}
    columns = [*KEY, "central_model", "central_condition", *_MEASURES, *_RANGES]
    table = pd.DataFrame(rows, columns=columns).rename(columns=names)
    return table.assign(delta=table[["ci_low", "ci_high"]].abs().max(axis=1))


def _range(predictions: pd.DataFrame, key: tuple[str, str, str]) -> tuple[float, float]:
    """Return the lowest and highest UAR over the second half of the rounds; key: ``KEY``'s."""
    late = predictions[2 * predictions["round"] > predictions["round"].max()]
    rows = late[(late[KEY] == pd.Series(key, KEY)).all(axis=1)]
    by_round = metrics.uar_by(rows, ["round", "seed"]).groupby("round")["uar"].mean()
    return (by_round.min(), by_round.max()) if len(by_round) > 1 else (np.nan, np.nan)


def by_speaker(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the UAR in percent of every speaker after the last round: model, attack, condition,
    speaker, uar (the mean over seeds), n (test clips, of all seeds)."""
    uars = metrics.uar_by(last_round(predictions), [*KEY, "speaker", "seed"])
    means = uars.groupby([*KEY, "speaker"]).agg(uar=("uar", "mean"), n=("n", "sum"))
    return sort_rows(means.reset_index())


def speakers(uars: pd.DataFrame) -> pd.DataFrame:
    """Return how evenly speakers are served; uars: of ``by_speaker``. Columns: model, attack,
    condition, mean and deviation over speakers (percent), worst (the speaker), worst_uar,
    worst_n (its test clips), best, best_uar."""
    table = uars.sort_values("uar", kind="stable").groupby(KEY).agg(
        mean=("uar", "mean"), deviation=("uar", "std"),
        worst=("speaker", "first"), worst_uar=("uar", "first"), worst_n=("n", "first"),
        best=("speaker", "last"), best_uar=("uar", "last"),
    )  # fmt: skip
    return sort_rows(table.reset_index())


def _groups(predictions: pd.DataFrame) -> Groups:
    """Return the last round's rows by model, attack and condition, in the paper's order."""
    rows = last_round(predictions)
    order = sort_rows(rows[KEY].drop_duplicates())
    groups = dict(list(rows.groupby(KEY)))
    return {key: groups[key] for key in order.itertuples(index=False, name=None)}
