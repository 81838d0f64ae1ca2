"""What can be said of the remedies, in words, computed from the measured differences.

A remedy helps if the whole 95 % interval of its gain is above 0 and every seed agrees, and hurts
if the whole interval is below and no seed is better; anything else cannot be told apart. So the
text says what these runs show, and nothing that was known before them. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from fedser_utils.analysis.heterogeneity.client_differences import ALL
from fedser_utils.analysis.heterogeneity.interventions import BASELINE

HELPS, HURTS, UNCLEAR, MIXED = "helps", "hurts", "cannot be told apart", "seeds disagree"
WIDE = 10  # UAR points: an interval wider than this leaves much open
FEW_SPEAKERS, FEW_CLIPS = 10, 10


def judged(rows: pd.DataFrame) -> pd.Series:
    """HELPS, HURTS, UNCLEAR or MIXED for every row with gain_low, gain_high, better and seeds."""
    above, below = rows["gain_low"] > 0, rows["gain_high"] < 0
    found = pd.Series(UNCLEAR, index=rows.index, dtype=object)
    found[above | below] = MIXED
    found[above & (rows["better"] == rows["seeds"])] = HELPS
    found[below & (rows["better"] == 0)] = HURTS
    return found


def lessons(table: pd.DataFrame, outcomes: pd.DataFrame) -> list[str]:
    """What helps, what hurts, what came sooner, what is left under attack and in each corpus, and
    what to beware of. table, outcomes: as ``outcomes`` gives them; a line each."""
    own = table[table["remedy"] != BASELINE]
    own = own[own["gain"].notna()].assign(verdict=judged)
    if own.empty:
        return [f"No remedy was trained with a seed that was also trained {BASELINE}."]
    parts = (_verdicts(own), _sooner(table), _attacked(own, outcomes), _unevenly(own, outcomes))
    return [*(line for part in parts for line in part), *cautions(table)]


def _verdicts(own: pd.DataFrame) -> Iterable[str]:
    """Who helps, who hurts, who cannot be told apart."""
    own = own.sort_values("gain", ascending=False, kind="stable")
    where = _where(own)
    for row in own.itertuples():
        if row.verdict in (HELPS, HURTS):
            holds = row.sure_low > 0 or row.sure_high < 0
            kept = "and this holds" if holds else "but this does not hold"
            yield (
                f"{row.remedy} {row.verdict}: {_gain(row)} points of UAR{where}, {kept} when "
                f"all {len(own)} remedies are taken together."
            )
        elif row.verdict == MIXED:
            yield (
                f"{row.remedy}: {_gain(row)} points of UAR, but only {row.better:.0f} of "
                f"{row.seeds} seeds are better; the seeds disagree, so nothing is concluded."
            )
    unclear = own[own["verdict"] == UNCLEAR]
    if len(unclear):
        each = ", ".join(f"{row.remedy} {_gain(row)}" for row in unclear.itertuples())
        yield f"From training as given these cannot be told apart{where}: {each}."


def _where(own: pd.DataFrame) -> str:
    first = own.iloc[0]
    return f" (n = {first['n']} test clips, {first['rounds']} rounds, {_seeds(own)})"


def _seeds(table: pd.DataFrame) -> str:
    low, high = int(table["seeds"].min()), int(table["seeds"].max())
    return ("1 seed" if high == 1 else f"{high} seeds") if low == high else f"{low} to {high} seeds"


def _gain(row) -> str:
    return f"{row.gain:+.1f} [{row.gain_low:+.1f}, {row.gain_high:+.1f}]"


def _sooner(table: pd.DataFrame) -> Iterable[str]:
    """Who reached a target in other than the given number of rounds, at what computing."""
    given = table[table["remedy"] == BASELINE].iloc[0]
    columns = [name for name in table if name.startswith("rounds to ")]
    unreached = [name for name in columns if table[name].isna().all()]
    for column in [name for name in columns if name not in unreached]:
        target, base = column.removeprefix("rounds to "), given[column]
        own = table[table["remedy"] != BASELINE]
        reached = own[own[column].notna()].sort_values(column, kind="stable")
        never = own.loc[own[column].isna(), "remedy"]
        start = f"{base:.1f} rounds" if base == base else f"not within {given['rounds']} rounds"
        moved = reached[reached[column] != base]
        each = [_reached(row, row_rounds, base) for row, row_rounds in _with(moved, column)]
        every = f" (evaluated every {given['eval_every']})" if given["eval_every"] > 1 else ""
        parts = [f"{BASELINE} {start}{every}", *each]
        if len(never):
            parts.append("not reached in every seed: " + ", ".join(never))
        yield f"{target} UAR on original clips: " + "; ".join(parts) + "."
    if unreached:
        lowest = unreached[0].removeprefix("rounds to ")
        yield f"{lowest} UAR on original clips, or more, was not reached by any in every seed."
    more = table[table["computing"].round(6) != 1]
    if len(more):
        each = ", ".join(f"{row.remedy} {row.computing:.1f} times" for row in more.itertuples())
        yield f"A round's computing is not the same for all: {each} that of a round as given."


def _with(rows: pd.DataFrame, column: str) -> Iterable[tuple]:
    return zip(rows.itertuples(), rows[column], strict=True)


def _reached(row, rounds: float, base: float) -> str:
    text = f"{row.remedy} {rounds:.1f}"
    if base == base:
        text += f" ({abs(base - rounds):.1f} {'sooner' if rounds < base else 'later'})"
    if abs(row.computing - 1) > 1e-6:
        text += f", the computing of {rounds * row.computing:.1f} rounds as given"
    return text


def _attacked(own: pd.DataFrame, outcomes: pd.DataFrame) -> Iterable[str]:
    """Whether what helps on original clips does so under attack."""
    attacked = outcomes[(outcomes["scope"] == ALL) & (outcomes["attack"] != "none")]
    attacked = attacked[attacked["gain"].notna()].assign(verdict=judged)
    for remedy in own.loc[own["verdict"] == HELPS, "remedy"]:
        mine = attacked[attacked["remedy"] == remedy]
        each = [
            f"{row.condition.replace('_', ' ')} {row.attack} {_gain(row)} ({row.verdict})"
            for row in mine.itertuples()
        ]
        if each:
            yield f"Under attack {remedy} changes UAR by: {'; '.join(each)}."


def _unevenly(own: pd.DataFrame, outcomes: pd.DataFrame) -> Iterable[str]:
    """Corpora and languages that a remedy helps or hurts, though that is not seen of all
    together."""
    parts = outcomes[(outcomes["condition"] == "original") & (outcomes["scope"] != ALL)]
    parts = parts[parts["gain"].notna()].assign(verdict=judged)
    # a language may be one corpus by another name
    same = ["remedy", "n", "gain", "gain_low", "gain_high"]
    parts = parts[parts["verdict"].isin([HELPS, HURTS])].drop_duplicates(same)
    for row in own.itertuples():
        mine = parts[(parts["remedy"] == row.remedy) & (parts["verdict"] != row.verdict)]
        if len(mine):
            whole = row.verdict if row.verdict in (HELPS, HURTS) else "does not clearly change"
            each = ", ".join(
                f"{part.verdict} {part.scope} {part.name} {_gain(part)}"
                for part in mine.itertuples()
            )
            yield f"{row.remedy} {whole} all together, but {each}."


def cautions(table: pd.DataFrame) -> list[str]:
    """What to beware of before believing the rest."""
    own, found = table[(table["remedy"] != BASELINE) & table["gain"].notna()], []
    given = table[table["remedy"] == BASELINE].iloc[0]
    if given["ci_low"] <= given["chance"]:
        found.append(
            f"Training as given ends at {given['uar']:.1f} % UAR, which is not above chance "
            f"({given['chance']:.1f} %): a remedy cannot be judged before something is learnt."
        )
    if own["seeds"].min() == 1:
        found.append(
            "With one seed no interval here says how differently another seed would have trained: "
            "repeat with more seeds before believing any difference."
        )
    wide = own[own["gain_high"] - own["gain_low"] > WIDE]
    if len(wide):
        found.append(
            f"The intervals of {len(wide)} of {len(own)} differences are wider than {WIDE} points; "
            f"n = {table['n'].min()} test clips cannot show smaller ones."
        )
    if table["speakers"].min() < FEW_SPEAKERS:
        found.append(
            f"Only {table['speakers'].min()} speakers are tested on: intervals that draw so few "
            "speakers are too narrow."
        )
    if table["median_n"].min() < FEW_CLIPS:
        found.append(
            f"Half of the clients have at most {table['median_n'].min():.0f} test clips: the worst "
            "client and the deviation over clients are in part chance."
        )
    if len(own) > 1:
        found.append(
            f"{len(own)} remedies are compared with one baseline: at 95 % each, one in twenty "
            "useless ones would seem to help or hurt."
        )
    return found
