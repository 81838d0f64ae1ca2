"""What each intervention changes: runs with it beside runs without it, on the same test clips.

A difference is paired by seed and clip, and its interval draws whole speakers, the same for both
sides. The interval does not know how differently another seed would have trained, so the seeds that
agree are counted too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedser_utils.analysis import comparisons, metrics
from fedser_utils.analysis.heterogeneity import client_differences
from fedser_utils.analysis.heterogeneity.client_differences import ALL
from fedser_utils.analysis.heterogeneity.interventions import BASELINE, describe, differences
from fedser_utils.analysis.labels import ATTACK_NAMES, CONDITIONS, paper_order
from fedser_utils.analysis.tables import last_round
from fedser_utils.core.errors import InputError
from fedser_utils.core.runs import Run
from fedser_utils.core.settings import Settings

Runs = Mapping[str, Sequence[Run]]  # intervention -> its runs, one per seed
SCOPES = (ALL, "corpus", "language")
_KEY = ["scope", "name", "attack", "condition"]
_MEASURES = ["n", "speakers", "seeds", "uar", "ci_low", "ci_high"]
_GAINS = ["before", "gain", "gain_low", "gain_high", "sure_low", "sure_high", "better"]
LEVEL, RESAMPLES = 0.95, 10_000  # so many for an interval's far ends


def measure_outcomes(runs: Runs) -> pd.DataFrame:
    """Return every intervention's UAR and gain after the last round, under every attack and
    condition: on all test clips, and on those of each corpus and each language.

    runs: with those "as given". Columns: intervention, scope, name, attack, condition; n (clips of
    a seed, the fewest), speakers, seeds; uar (percent, the mean over seeds) with its 95 % interval
    ci_low, ci_high; of the seeds that were also trained as given, before (their UAR), gain
    (uar - before), its 95 % interval gain_low, gain_high, and better (the seeds with a gain above
    0); of all original clips also the interval sure_low, sure_high of all interventions at once
    (Bonferroni). The gains are NaN as given, without a common seed, and on attacked clips of one
    corpus or language.

    Raises InputError without runs as given; ValueError where a seed's test clips are not the same.
    """
    if not runs.get(BASELINE):
        raise InputError(f"interventions are compared with runs {BASELINE!r}; there is none")
    groups = {name: dict(_groups(of_name)) for name, of_name in runs.items()}
    others = max(1, len([name for name, of_name in runs.items() if of_name]) - 1)
    rows = []
    for name, group in groups.items():
        for key, after in group.items():
            row = {"intervention": name} | dict(zip(_KEY, key, strict=True))
            row |= metrics.summary(after, seed="seed")
            before = groups[BASELINE].get(key)
            compared = before is not None and name != BASELINE
            if compared and (ALL in key or "original" in key):
                row |= _gain(comparisons.pair_decisions(before, after), key, others)
            rows.append(row)
    return pd.DataFrame(rows, columns=["intervention", *_KEY, *_MEASURES, *_GAINS])


def _groups(runs: Sequence[Run]) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """Yield the last round's decisions of several seeds by scope, name, attack and condition."""
    parts = []
    for run in runs:
        rows = client_differences.with_clips(
            last_round(run.table("predictions")), run.table("clips")
        )
        parts.append(rows.assign(seed=run.settings.seed, all=ALL))
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    for scope in SCOPES if parts else ():
        for key, group in rows.groupby([scope, "attack", "condition"], sort=False):
            yield (scope, *key), group


def _gain(paired: pd.DataFrame, key: tuple[str, ...], others: int) -> dict[str, Any]:
    """Return ``_GAINS`` of ``comparisons.pair_decisions``; {} for none. key: as of ``_KEY``."""
    if paired.empty:
        return {}
    uars = comparisons.uar_by_seed(paired)
    before, after = uars["before"].mean(), uars["after"].mean()
    row = {"before": before, "gain": after - before}
    row |= {"better": int((uars["after"] > uars["before"]).sum())}
    row |= dict(zip(("gain_low", "gain_high"), comparisons.gain_interval(paired)))
    if ALL in key and "original" in key:
        level = 1 - (1 - LEVEL) / others
        sure = comparisons.gain_interval(paired, level=level, resamples=RESAMPLES)
        row |= dict(zip(("sure_low", "sure_high"), sure))
    return row


def rounds_to(runs: Sequence[Run], target: float) -> float:
    """Return the first evaluated round whose UAR on original test clips is at least ``target``
    percent: the mean over seeds; NaN if a seed never reaches it."""
    firsts = []
    for run in runs:
        rounds = run.table("rounds")
        reached = rounds[(rounds["condition"] == "original") & (rounds["uar"] >= target)]
        firsts.append(reached["round"].min() if len(reached) else np.nan)
    return float(np.mean(firsts)) if firsts else np.nan


def computing(before: Settings, after: Settings) -> float:
    """Return a round's passes over clips, as a share of those of another's."""
    old, new = (each.local_epochs * each.fraction_train for each in (before, after))
    return new / old


def client_spread(runs: Sequence[Run]) -> pd.DataFrame:
    """Return ``client_differences.spread`` over the clients' UARs, the mean over seeds."""
    uars = [
        client_differences.uar_by_scope(run.table("predictions"), run.table("clips"))
        for run in runs
    ]
    return client_differences.spread(
        client_differences.mean_over_seeds(pd.concat(uars, ignore_index=True))
    )


def rounds_by_intervention(runs: Runs) -> pd.DataFrame:
    """Return the rows of all runs' ``rounds.csv`` with the column intervention."""
    return pd.concat(
        run.table("rounds").assign(intervention=name)
        for name, of_name in runs.items()
        for run in of_name
    )


def uar_under_skew(skewed: Mapping[float, Sequence[Run]], *, attack: str) -> pd.DataFrame:
    """Return ``client_differences.uar_by_alpha`` of runs by their Dirichlet alpha."""
    rows = [
        client_differences.uar_by_scope(run.table("predictions"), run.table("clips")).assign(
            alpha=alpha, seed=run.settings.seed
        )
        for alpha, of_alpha in skewed.items()
        for run in of_alpha
    ]
    return client_differences.uar_by_alpha(pd.concat(rows), attack=attack)


def intervention_table(
    runs: Runs, outcomes: pd.DataFrame, *, targets: Sequence[float]
) -> pd.DataFrame:
    """Return the one table, a row per intervention. outcomes: of ``measure_outcomes``; targets: UAR
    in percent on original test clips.

    Columns: intervention, settings (those it changes), computing (passes over clips per round, as a
    share of those as given), "rounds to 50 %" of each target (``rounds_to``), rounds, eval_every;
    uar, ci_low, ci_high and the gains of ``outcomes`` on all original clips; "adversarial pgd" of
    each attack, "randomised_adversarial pgd" (UAR); "corpus emovo" and "language it" of each (UAR
    on original clips); over clients deviation, worst_client, worst_uar, worst_n, median_n; chance
    (the UAR of guessing); n, speakers, seeds.
    """
    given = runs[BASELINE][0].settings
    rows = []
    for name, trained in runs.items():
        if not trained:
            continue
        settings = trained[0].settings
        row = {"intervention": name, "settings": describe(differences(given, settings)) or "-"}
        row |= {"computing": computing(given, settings)}
        row |= {f"rounds to {target:g} %": rounds_to(trained, target) for target in targets}
        row |= {"rounds": settings.rounds, "eval_every": settings.eval_every}
        row |= _one_row(outcomes[outcomes["intervention"] == name])
        row |= _spread_columns(client_spread(trained))
        row |= {"chance": 100 / trained[0].table("clips")["emotion"].nunique()}
        rows.append(row)
    table = pd.DataFrame(rows)
    last = ["n", "speakers", "seeds"]
    return table[[*table.columns.drop(last), *last]]


def _one_row(outcomes: pd.DataFrame) -> dict[str, Any]:
    """Return one intervention's outcomes in one row."""
    original = outcomes[outcomes["condition"] == "original"]
    whole = outcomes[outcomes["scope"] == ALL]
    row = original[original["scope"] == ALL].iloc[0][[*_MEASURES, *_GAINS]]
    row = row.drop("before").to_dict()
    for condition in list(CONDITIONS)[2:]:
        uars = whole[whole["condition"] == condition].set_index("attack")["uar"]
        for attack in paper_order(uars.index, ATTACK_NAMES):
            if condition == "adversarial" or attack == "pgd" or "pgd" not in uars.index:
                row[f"{condition} {attack}"] = uars[attack]
    parts = original[original["scope"] != ALL].sort_values(["scope", "name"])
    return row | {f"{part.scope} {part.name}": part.uar for part in parts.itertuples(index=False)}


def _spread_columns(spread: pd.DataFrame) -> dict[str, Any]:
    row = spread[spread["condition"] == "original"].iloc[0].rename({"worst": "worst_client"})
    return row[["deviation", "worst_client", "worst_uar", "worst_n", "median_n"]].to_dict()
