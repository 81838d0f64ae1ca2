"""Sentences that follow from the measured differences: what interventions change, and for which
obstacles they were meant.

An intervention helps if the whole 95 % interval of its gain is above 0 and every seed agrees, and
hurts if the whole interval is below 0 and no seed is better; any other is undecided. So the
sentences state what these runs show, nothing that was known before.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from fedser_utils.analysis.heterogeneity.client_differences import ALL
from fedser_utils.analysis.heterogeneity.interventions import AGAINST, BASELINE
from fedser_utils.analysis.metrics import mean_interval

HELPS, HURTS, UNDECIDED, MIXED = "helps", "hurts", "undecided", "seeds disagree"
WIDE = 10  # UAR points: an interval wider than this leaves much open
FEW_SPEAKERS, FEW_CLIPS = 10, 10
LITTLE = 0.05  # of a difference of cosines


def verdicts(rows: pd.DataFrame) -> pd.Series:
    """Return HELPS, HURTS, UNDECIDED or MIXED of rows with gain_low, gain_high, better, seeds."""
    above, below = rows["gain_low"] > 0, rows["gain_high"] < 0
    verdict = pd.Series(UNDECIDED, index=rows.index, dtype=object)
    verdict[above | below] = MIXED
    verdict[above & (rows["better"] == rows["seeds"])] = HELPS
    verdict[below & (rows["better"] == 0)] = HURTS
    return verdict


def _compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a gain, with the columns verdict and change (the gain and its interval,
    as text)."""
    rows = rows[rows["gain"].notna()].assign(verdict=verdicts)
    gains = rows[["gain", "gain_low", "gain_high"]].itertuples(index=False)
    return rows.assign(change=[f"{x:+.1f} [{low:+.1f}, {high:+.1f}]" for x, low, high in gains])


def _list(rows: pd.DataFrame, template: str, *, between: str = ", ") -> str:
    """Return the template filled with each row's columns."""
    return between.join(template.format(**row) for row in rows.to_dict("records"))


def conclude(
    table: pd.DataFrame, outcomes: pd.DataFrame, **measured: pd.DataFrame | None
) -> list[str]:
    """Return what helps and hurts, how soon, under attack and in which corpus, what to beware of,
    and the ``obstacles`` (measured: its arguments); a sentence each.

    table: of ``outcomes.intervention_table``; outcomes: of ``outcomes.measure_outcomes``.
    """
    rows = _compared(table).sort_values("gain", ascending=False, kind="stable")
    lines = [f"No intervention was trained with a seed that was also trained {BASELINE}."]
    if len(rows):
        lines = [*_gains(rows), *_rounds(table), *_in_parts(rows, outcomes), *cautions(table)]
    return lines + obstacles(table=table, **measured)


def _gains(rows: pd.DataFrame) -> Iterator[str]:
    """Yield which interventions help, which hurt, and which are undecided."""
    low, high = rows["seeds"].min(), rows["seeds"].max()
    seeds = f"{high} seed{'s' if high > 1 else ''}" if low == high else f"{low} to {high} seeds"
    where = f" (n = {rows['n'].iloc[0]} test clips, {rows['rounds'].iloc[0]} rounds, {seeds})"
    for row in rows.itertuples():
        if row.verdict in (HELPS, HURTS):
            sure = "also" if row.sure_low > 0 or row.sure_high < 0 else "not"
            yield (
                f"{row.intervention} {row.verdict}: {row.change} points of UAR{where}, {sure} when "
                f"all {len(rows)} interventions are taken together."
            )
        elif row.verdict == MIXED:
            yield (
                f"{row.intervention}: {row.change} points of UAR, but only {row.better:.0f} of "
                f"{row.seeds} seeds are better; the seeds disagree, so nothing is concluded."
            )
    undecided = _list(rows[rows["verdict"] == UNDECIDED], "{intervention} {change}")
    if undecided:
        yield f"Undecided against training as given{where}: {undecided}."


def _rounds(table: pd.DataFrame) -> Iterator[str]:
    """Yield which interventions reach each target sooner or later than as given, at what cost."""
    given = table[table["intervention"] == BASELINE].iloc[0]
    every = f" (evaluated every {given['eval_every']})" if given["eval_every"] > 1 else ""
    dearer = table[(table["computing"] - 1).abs() > 1e-6]
    columns = [name for name in table if name.startswith("rounds to ")]
    unreached = [name for name in columns if table[name].isna().all()]
    for column in [name for name in columns if name not in unreached]:
        target, base = column.removeprefix("rounds to "), given[column]
        start = f"not within {given['rounds']}" if pd.isna(base) else f"{base:.1f}"
        others = table[(table["intervention"] != BASELINE) & (table[column] != base)]
        others = others.assign(at=others[column], late=others[column] - base)
        others["cost"] = [
            f", the computing of {at * times:.1f} rounds as given" if place in dearer.index else ""
            for place, at, times in zip(others.index, others["at"], others["computing"])
        ]
        template = "{intervention} {at:.1f}" + ("" if pd.isna(base) else " ({late:+.1f} rounds)")
        reached = others.dropna(subset="at").sort_values("at", kind="stable")
        parts = [
            f"{BASELINE} {start} rounds{every}",
            _list(reached, template + "{cost}", between="; "),
        ]
        never = ", ".join(others.loc[others["at"].isna(), "intervention"])
        parts.append(f"not reached in every seed: {never}" if never else "")
        yield f"{target} UAR on original clips: {'; '.join(filter(None, parts))}."
    if unreached:
        lowest = unreached[0].removeprefix("rounds to ")
        yield f"{lowest} UAR on original clips, or more, was not reached by any in every seed."
    if len(dearer):
        each = _list(dearer, "{intervention} {computing:.1f} times")
        yield f"A round's computing is not the same for all: {each} that as given."


def _in_parts(rows: pd.DataFrame, outcomes: pd.DataFrame) -> Iterator[str]:
    """Yield whether interventions that help do so under attack, and the corpora and languages with
    another verdict than all clips together."""
    outcomes = _compared(outcomes)
    outcomes["condition"] = outcomes["condition"].str.replace("_", " ")
    attacked = outcomes[(outcomes["scope"] == ALL) & (outcomes["attack"] != "none")]
    for name in rows.loc[rows["verdict"] == HELPS, "intervention"]:
        template = "{condition} {attack} {change} ({verdict})"
        each = _list(attacked[attacked["intervention"] == name], template, between="; ")
        if each:
            yield f"Under attack {name} changes UAR by: {each}."
    parts = outcomes[(outcomes["condition"] == "original") & (outcomes["scope"] != ALL)]
    # a language may be one corpus by another name
    parts = parts.drop_duplicates(["intervention", "n", "gain", "gain_low", "gain_high"])
    parts = parts[parts["verdict"].isin([HELPS, HURTS])]
    for name, verdict in zip(rows["intervention"], rows["verdict"]):
        other = parts[(parts["intervention"] == name) & (parts["verdict"] != verdict)]
        if len(other):
            whole = verdict if verdict in (HELPS, HURTS) else "is undecided"
            each = _list(other, "{verdict} {scope} {name} {change}")
            yield f"{name} {whole} on all clips together, but {each}."


def cautions(table: pd.DataFrame) -> list[str]:
    """Return the reasons for doubt in these conclusions, a sentence each."""
    rows, given = _compared(table), table[table["intervention"] == BASELINE].iloc[0]
    wide = (rows["gain_high"] - rows["gain_low"] > WIDE).sum()
    reasons = {
        f"Training as given ends at {given['uar']:.1f} % UAR, which is not above chance "
        f"({given['chance']:.1f} %): before something is learnt, no intervention can be compared.":
            given["ci_low"] <= given["chance"],
        "With one seed no interval tells how differently another seed would have trained: repeat "
        "with more seeds before believing any difference.": rows["seeds"].min() == 1,
        f"The intervals of {wide} of {len(rows)} differences are wider than {WIDE} points; "
        f"n = {table['n'].min()} test clips cannot show smaller ones.": wide > 0,
        f"There are only {table['speakers'].min()} test speakers: intervals that draw so few are "
        "too narrow.": table["speakers"].min() < FEW_SPEAKERS,
        f"Half of the clients have at most {table['median_n'].min():.0f} test clips: the worst "
        "client and the deviation over clients are in part chance.":
            table["median_n"].min() < FEW_CLIPS,
        f"{len(rows)} interventions are compared with one baseline: at 95 % each, one in twenty "
        "without effect would seem to help or hurt.": len(rows) > 1,
    }  # fmt: skip
    return [reason for reason, applies in reasons.items() if applies]


def obstacles(
    *,
    drift: pd.DataFrame | None = None,
    batch_norm: pd.DataFrame | None = None,
    inputs: pd.DataFrame | None = None,
    labels: pd.DataFrame | None = None,
    table: pd.DataFrame | None = None,
) -> list[str]:
    """Return how much clients differ, a sentence per measurement, each followed by the gains of the
    interventions against it.

    drift, batch_norm: of ``federated.client_drift``; inputs: of
    ``client_differences.shift_by_group``; labels: of ``client_differences.label_skew``; table: of
    ``outcomes.intervention_table``.
    """
    lines: list[str] = []
    for name, rows, sentences in (
        ("drift", drift, _drift), ("batch norm", batch_norm, _batch_norm),
        ("input", inputs, _inputs), ("labels", labels, _labels),
    ):  # fmt: skip
        if rows is None or rows.empty:
            continue
        lines += sentences(rows)
        if table is not None:
            against = _compared(table[table["intervention"].isin(AGAINST.get(name, ()))])
            each = _list(against, "{intervention} {gain:+.1f} ({verdict})")
            lines += [f"Interventions against this: {each}."] if each else []
    return lines


def _drift(rows: pd.DataFrame) -> Iterator[str]:
    cosine, length = rows["cosine"], 100 * rows["relative"]
    yield (
        f"Updates of {len(rows)} clients have a cosine of {cosine.mean():.2f} to their mean "
        f"({cosine.min():.2f} to {cosine.max():.2f}) and a length of {length.min():.1f} to "
        f"{length.max():.1f} % of the weights' norm."
    )
    both = rows.dropna(subset=["inside", "outside"])
    if len(both) < 2:
        yield "Too few corpora have several clients to compare updates within and across corpora."
        return
    apart = both["inside"] - both["outside"]
    low, high = mean_interval(apart)
    verdict = "Whether updates point apart by corpus is undecided"
    if low > 0:
        little = "" if apart.mean() > LITTLE else " a little"
        verdict = f"Updates of different corpora point apart{little}"
    elif high < 0:
        verdict = "Updates point apart more inside corpora than across them"
    yield (
        f"{verdict}: cosine {both['inside'].mean():.2f} inside a corpus against "
        f"{both['outside'].mean():.2f} across, a difference of {apart.mean():.2f} "
        f"[{low:.2f}, {high:.2f}] over {len(both)} clients."
    )


def _batch_norm(rows: pd.DataFrame) -> Iterator[str]:
    means = rows.groupby("corpus", sort=False)["mean_shift"].mean()
    corpora = means.drop(ALL).sort_values(ascending=False)
    each = ", ".join(f"{name} {shift:.2f}" for name, shift in corpora.items())
    layers = rows[rows["corpus"] == corpora.index[0]].set_index("layer")["mean_shift"]
    yield (
        "Batch statistics differ from the model's, in its standard deviations over all layers: "
        f"{each}; all corpora together {means[ALL]:.2f}, less than {(corpora > means[ALL]).sum()} "
        f"of {len(corpora)} corpora. {corpora.index[0]} is furthest in layer {layers.idxmax()} of "
        f"{len(layers)} ({layers.max():.2f})."
    )


def _inputs(rows: pd.DataFrame) -> Iterator[str]:
    by = rows.columns[0]
    template = "{" + by + "} {distance:.2f} (of which level {loudness:+.2f})"
    each = _list(rows.sort_values("distance", ascending=False), template)
    yield f"Inputs, each {by}'s mean per Mel band from that of all, in standard deviations: {each}."


def _labels(rows: pd.DataFrame) -> Iterator[str]:
    worst = rows.loc[(rows["distance"] - rows["by_chance"]).idxmax()]
    yield (
        f"Labels of {len(rows)} clients are {rows['distance'].mean():.2f} from all clients' "
        f"(total variation); {rows['by_chance'].mean():.2f} is expected by chance; furthest "
        f"{worst['client']} ({worst['distance']:.2f}, {worst['classes']} classes in {worst['n']} "
        "clips)."
    )
