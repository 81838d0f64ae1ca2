"""What each remedy did: runs with it beside runs without it, on the same test clips.

Every number is computed from the runs' rows. A difference is paired by seed and clip, and its
interval draws whole speakers, the same for both sides; it does not know how differently another
seed would have trained, so the seeds that agree are counted too. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from fedser_utils.analysis import comparisons, metrics
from fedser_utils.analysis.heterogeneity import client_differences
from fedser_utils.analysis.heterogeneity.interventions import BASELINE, describe, differences
from fedser_utils.analysis.tables import ATTACK_NAMES, CONDITIONS, last_round, paper_order
from fedser_utils.core.errors import InputError
from fedser_utils.core.seeding import rng
from fedser_utils.core.settings import Settings


class RunLike(Protocol):
    """What is read of a ``runs.Run``."""

    @property
    def settings(self) -> Settings: ...

    def table(self, name: str) -> pd.DataFrame: ...


Runs = Mapping[str, Sequence[RunLike]]  # remedy -> its runs, one per seed
SCOPES = (client_differences.ALL, "corpus", "language")
_KEY = ["scope", "name", "attack", "condition"]
_MEASURES = ["n", "speakers", "seeds", "uar", "ci_low", "ci_high"]
_GAINS = ["before", "gain", "gain_low", "gain_high", "sure_low", "sure_high", "better"]
LEVEL, RESAMPLES = 0.95, 10_000  # so many for an interval's far ends


def outcomes(runs: Runs) -> pd.DataFrame:
    """Every remedy after the last round, under every attack and condition: on all test clips, on
    those of each corpus and each language.

    runs: with those "as given". Columns: remedy, scope, name, attack, condition; n (clips of a
    seed, the fewest), speakers, seeds; uar (percent, the mean over seeds) with its 95 % interval
    ci_low, ci_high; of the seeds that were also trained as given, before (their UAR), gain
    (uar - before), its 95 % interval gain_low, gain_high, and better (the seeds with a gain above
    0); of all original clips also the interval sure_low, sure_high that holds for all remedies at
    once (Bonferroni). The gains are NaN as given, where no seed is common, and of attacked clips of
    one corpus or language.

    Raises InputError without runs as given; ValueError where a seed's test clips are not the same.
    """
    if not runs.get(BASELINE):
        raise InputError(f"remedies are compared with runs {BASELINE!r}; there is none")
    groups = {name: dict(_groups(made)) for name, made in runs.items()}
    others = max(1, len([name for name, made in runs.items() if made]) - 1)
    rows = []
    for name, own in groups.items():
        for key, after in own.items():
            row = {"remedy": name} | dict(zip(_KEY, key, strict=True)) | _measured(after)
            before = groups[BASELINE].get(key)
            if (
                before is not None
                and name != BASELINE
                and (client_differences.ALL in key or "original" in key)
            ):
                row |= _gained(comparisons.pair_decisions(before, after), key, others)
            rows.append(row)
    return pd.DataFrame(rows, columns=["remedy", *_KEY, *_MEASURES, *_GAINS])


def _groups(made: Sequence[RunLike]) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """The last decisions of a remedy's runs, by scope, name, attack and condition."""
    parts = []
    for run in made:
        rows = client_differences.joined(last_round(run.table("predictions")), run.table("clips"))
        parts.append(rows.assign(seed=run.settings.seed, all=client_differences.ALL))
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    for scope in SCOPES if parts else ():
        for key, own in rows.groupby([scope, "attack", "condition"], sort=False):
            yield (scope, *key), own


def _measured(rows: pd.DataFrame) -> dict[str, Any]:
    """``_MEASURES`` of the decisions of several seeds."""
    bounds = metrics.uar_interval(
        rows["y_true"], rows["y_pred"], rows["speaker"], seeds=rows["seed"],
        generator=rng(0, "bootstrap"), level=LEVEL,
    )  # fmt: skip
    each = metrics.uar_by(rows, ["seed"])
    uar = each["uar"].mean()
    values = (each["n"].min(), rows["speaker"].nunique(), len(each), uar, *bounds)
    return dict(zip(_MEASURES, values, strict=True))


def _gained(paired: pd.DataFrame, key: tuple[str, ...], others: int) -> dict[str, Any]:
    """``_GAINS`` of ``comparisons.pairs``; {} for none. key: where they are from."""
    if paired.empty:
        return {}
    before, after = (
        metrics.uar_by(paired.rename(columns={said: "y_pred"}), ["seed"]).set_index("seed")["uar"]
        for said in ("before", "after")
    )
    found = {"before": before.mean(), "gain": after.mean() - before.mean()}
    found |= {"better": int((after > before).sum())}
    found |= dict(zip(("gain_low", "gain_high"), _interval(paired, LEVEL, 2000), strict=True))
    if client_differences.ALL in key and "original" in key:
        sure = _interval(paired, 1 - (1 - LEVEL) / others, RESAMPLES)
        found |= dict(zip(("sure_low", "sure_high"), sure, strict=True))
    return found


def _interval(paired: pd.DataFrame, level: float, resamples: int) -> tuple[float, float]:
    """Of the gain, clustered by speaker."""
    return metrics.gain_interval(
        paired["y_true"], paired["before"], paired["after"], paired["speaker"],
        seeds=paired["seed"], generator=rng(0, "bootstrap"), level=level, resamples=resamples,
    )  # fmt: skip


def rounds_to(runs: Sequence[RunLike], target: float) -> float:
    """The first evaluated round whose UAR on original test clips is at least ``target`` percent:
    the mean over seeds; NaN where a seed never reached it."""
    firsts = []
    for run in runs:
        rounds = run.table("rounds")
        reached = rounds[(rounds["condition"] == "original") & (rounds["uar"] >= target)]
        firsts.append(reached["round"].min() if len(reached) else np.nan)
    return float(np.mean(firsts)) if firsts else np.nan


def computing(before: Settings, after: Settings) -> float:
    """A round's passes over clips, as a share of those of another's."""
    old, new = (each.local_epochs * each.fraction_train for each in (before, after))
    return new / old


def clients(runs: Sequence[RunLike]) -> pd.DataFrame:
    """``client_differences.spread`` over the clients' UAR, each client's the mean over seeds."""
    each = [
        client_differences.results(run.table("predictions"), run.table("clips")) for run in runs
    ]
    return client_differences.spread(
        client_differences.over_seeds(pd.concat(each, ignore_index=True))
    )


def table(runs: Runs, outcomes: pd.DataFrame, *, targets: Sequence[float]) -> pd.DataFrame:
    """The one table: a row per remedy. outcomes: as ``outcomes`` gives them; targets: UAR in
    percent on original test clips.

    Columns: remedy, settings (what it changes, in words), computing (passes over clips per round,
    as a share of those as given), "rounds to 50 %" of each target (``rounds_to``), rounds,
    eval_every; uar, ci_low, ci_high, gain and what belongs to it on original clips; chance (the
    UAR of guessing);
    "adversarial pgd" of each attack, "randomised_adversarial pgd" (UAR); "corpus emovo" and
    "language it" of each (UAR on original clips); deviation over clients, worst_client, worst_uar,
    worst_n, median_n; n, speakers, seeds.
    """
    given = runs[BASELINE][0].settings
    rows = []
    for name, made in runs.items():
        if not made:
            continue
        settings, own = made[0].settings, outcomes[outcomes["remedy"] == name]
        row = {"remedy": name, "settings": describe(differences(given, settings)) or "-"}
        row |= {"computing": computing(given, settings)}
        row |= {f"rounds to {target:g} %": rounds_to(made, target) for target in targets}
        row |= (
            {"rounds": settings.rounds, "eval_every": settings.eval_every}
            | _wide(own)
            | _served(clients(made))
        )
        row |= {"chance": 100 / made[0].table("clips")["emotion"].nunique()}
        rows.append(row)
    found = pd.DataFrame(rows)
    last = ["n", "speakers", "seeds"]
    return found[[*found.columns.drop(last), *last]]


def _wide(own: pd.DataFrame) -> dict[str, Any]:
    """One remedy's outcomes in one row."""
    original = own[own["condition"] == "original"]
    whole = own[own["scope"] == client_differences.ALL]
    row = original[original["scope"] == client_differences.ALL].iloc[0]
    found = row[[*_MEASURES, *_GAINS]].drop("before").to_dict()
    for condition in list(CONDITIONS)[2:]:
        shown = whole[whole["condition"] == condition].set_index("attack")["uar"]
        for attack in paper_order(shown.index, ATTACK_NAMES):
            if condition == "adversarial" or attack == "pgd" or "pgd" not in shown.index:
                found[f"{condition} {attack}"] = shown[attack]
    parts = original[original["scope"] != client_differences.ALL].sort_values(["scope", "name"])
    return found | {f"{row.scope} {row.name}": row.uar for row in parts.itertuples(index=False)}


def _served(spread: pd.DataFrame) -> dict[str, Any]:
    own = spread[spread["condition"] == "original"].iloc[0]
    names = ["deviation", "worst", "worst_uar", "worst_n", "median_n"]
    return {"worst_client" if name == "worst" else name: own[name] for name in names}
