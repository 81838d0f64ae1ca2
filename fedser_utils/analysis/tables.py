"""The paper's tables, as data frames and as LaTeX, from the rows that runs leave behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fedser_utils.analysis.labels import (
    ATTACK_NAMES,
    CONDITIONS,
    KEY,
    MODELS,
    NAMES,
    sort_rows,
    terms,
)
from fedser_utils.analysis.metrics import scores, uar_interval
from fedser_utils.core.count_tables import is_counted

# the paper's Table 3 (DEMoS, 300 rounds): UAR in percent by model, then attack, per condition
PAPER = {
    ("nature", "none", "original"): 94.08,
    ("nature", "none", "randomised"): 92.75,
    ("nature", "fgsm", "adversarial"): 20.82,
    ("nature", "pgd", "adversarial"): 9.96,
    ("nature", "deepfool", "adversarial"): 2.96,
    ("nature", "fgsm", "randomised_adversarial"): 47.91,
    ("nature", "pgd", "randomised_adversarial"): 41.55,
    ("nature", "deepfool", "randomised_adversarial"): 71.34,
}
for _model, _values in {
    "fgsm": (95.99, 95.32, 89.72, 90.15),
    "pgd": (95.40, 95.10, 87.31, 89.20),
    "deepfool": (95.16, 94.56, 1.98, 72.32),
}.items():
    for _condition, _value in zip(CONDITIONS, _values, strict=True):
        _attack = _model if "adversarial" in _condition else "none"
        PAPER[_model, _attack, _condition] = _value


def table2(clips: pd.DataFrame) -> pd.DataFrame:
    """Return Table 2, the clips per class: emotion or class (``terms``), train, test, sum.

    clips: a run's ``clips.parquet``. The last row is the sum of all classes.
    """
    counts = pd.crosstab(clips["emotion"], clips["split"]).reindex(
        columns=["train", "test"], fill_value=0
    )
    heading = terms(counts.index).label
    counts["sum"] = counts.sum(axis=1)
    counts.loc["sum"] = counts.sum()
    return counts.rename_axis(index=heading, columns=None).reset_index()


def last_round(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each run's last round."""
    return predictions[predictions["round"] == predictions.groupby("run")["round"].transform("max")]


def table3(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return Table 3: the UAR of every model under every attack and condition, last round.

    predictions: rows of one or several runs' ``predictions.parquet``; the runs of one model are
    its seeds. Columns: model, attack, condition, uar (percent, the mean over seeds), deviation
    (over seeds; NaN for one), ci_low, ci_high (95 %, bootstrap clustered by speaker), n (clips of
    a seed, the fewest), seeds, paper_uar, difference (ours - the paper's).
    """
    rows = last_round(predictions)
    uar = (
        scores(rows)
        .groupby(KEY)
        .agg(
            uar=("uar", "mean"), deviation=("uar", "std"), n=("n", "min"), seeds=("run", "nunique")
        )
    )
    table = uar.join(rows.groupby(KEY).apply(_interval))
    table["paper_uar"] = [PAPER.get(key, float("nan")) for key in table.index]
    table["difference"] = table["uar"] - table["paper_uar"]
    return sort_rows(table.reset_index())[[*KEY, *_TABLE3]]


_TABLE3 = ["uar", "deviation", "ci_low", "ci_high", "n", "seeds", "paper_uar", "difference"]


def _interval(rows: pd.DataFrame) -> pd.Series:
    bounds = uar_interval(rows["y_true"], rows["y_pred"], rows["speaker"], seeds=rows["run"])
    return pd.Series(bounds, index=["ci_low", "ci_high"])


def table3_latex(table: pd.DataFrame, *, caption: str) -> str:
    """Return Table 3 in the paper's layout, as LaTeX: its four models and the conditions down,
    attacks across; UAR, its deviation over seeds and its interval, below each the paper's UAR."""
    table = table[table["model"].isin(MODELS)]
    cells = table.assign(
        ours=[_ours(row) for row in table.itertuples(index=False)],
        paper=table["paper_uar"].map("{:.2f}".format),
        group=table["model"].map(lambda model: "Nature" if model == "nature" else _TRAINED),
        # an adversarially trained model stands under the attack it was trained with
        column=table["model"].where(table["model"] != "nature", table["attack"]),
    )
    ours, paper = (
        cells.pivot(index=["group", "condition"], columns="column", values=values)
        .reindex(columns=list(ATTACK_NAMES))
        .astype(object)
        .fillna("--")
        for values in ("ours", "paper")
    )
    lines = [
        r"\begin{table*}", r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_escaped(caption)}}}", r"\label{tab:uar}",
        r"\begin{tabular}{llllll}", r"\hline",
        r"Models & Test data & No & FGSM & PGD & DeepFool \\", r"\hline",
    ]  # fmt: skip
    for group in ("Nature", _TRAINED):
        present = [c for c in CONDITIONS if (group, c) in ours.index]
        for i, condition in enumerate(present):
            key, first = (group, condition), "" if i else group
            lines.append(" & ".join([first, CONDITIONS[condition], *ours.loc[key]]) + r" \\")
            lines.append(" & ".join(["", r"\quad the paper's", *paper.loc[key]]) + r" \\")
        lines += [r"\hline"] if present else []
    return "\n".join([*lines, r"\end{tabular}", r"\end{table*}", ""])


_TRAINED = "Adversarial"


def _ours(row: NamedTuple) -> str:
    deviation = "" if pd.isna(row.deviation) else rf" $\pm$ {row.deviation:.2f}"
    interval = f"[{row.ci_low:.0f}, {row.ci_high:.0f}]"
    return rf"{row.uar:.2f}{deviation} {{\scriptsize {interval}}}"


def latex(table: pd.DataFrame, *, caption: str, label: str) -> str:
    """Return any table as LaTeX over the page's width, without further packages: names in the
    paper's words, two decimals, columns p_... as p-values, ci_low and ci_high as one column, "--"
    for NaN."""
    shown = table.replace(NAMES | {"central_condition": CONDITIONS})
    if "ci_low" in shown:
        bounds = zip(shown["ci_low"], shown.pop("ci_high"), strict=True)
        shown["ci_low"] = [f"[{low:.1f}, {high:.1f}]" for low, high in bounds]
        shown = shown.rename(columns={"ci_low": "interval"})
    p_values = dict.fromkeys((c for c in shown if c.startswith("p_")), _p_value)
    style = shown.style.format(p_values, precision=2, na_rep="--", escape="latex")
    style = style.format_index(_heading, axis=1).hide(axis="index")
    return style.set_table_styles(_COMMANDS).to_latex(
        environment="table*", position_float="centering", caption=_escaped(caption),
        label=f"tab:{label}",
    )  # fmt: skip


# LaTeX's commands before the table, and \hline in place of the rules of the package booktabs
_COMMANDS = [{"selector": "scriptsize", "props": ":{};"}]
_COMMANDS += [{"selector": "setlength", "props": r":{\tabcolsep}{3pt};"}]
_COMMANDS += [{"selector": f"{rule}rule", "props": ":hline;"} for rule in ("top", "mid", "bottom")]


def _heading(column: str) -> str:
    return "Holm" if column.endswith("_holm") else _escaped(column.replace("_", " "))


def _p_value(p: float) -> str:
    return r"$<$0.001" if p < 0.001 else f"{p:.3f}"


def caption(
    predictions: pd.DataFrame,
    clips: pd.DataFrame,
    *,
    study: str,
    corpus: str,
    hardware: Mapping[str, str],
) -> str:
    """Return the sentence that figures and tables carry: study, corpus, clients, n, rounds, runs,
    seeds, processor, precision.

    predictions: with the column seed; corpus: as in a run's settings (of paths only the last part
    is shown); hardware: of ``core.runs.hardware``.
    """
    clients = clips.loc[clips["split"] == "train", "client"].nunique()
    of = f"corpus {' + '.join(Path(entry).name for entry in corpus.split(','))}"
    if is_counted(clips["clip"]):  # the server of a deployment has no corpus
        of = "its clients' recordings"
    n = (clips["split"] == "test").sum()
    runs, rounds = predictions["run"].nunique(), predictions["round"].max()
    return (
        f"Study {study} on {of}: {clients} clients, n = {n} test clips, {rounds} rounds, "
        f"{runs} run{'s' if runs > 1 else ''}, {seeds_text(predictions['seed'])}, trained on "
        f"{' in '.join(hardware.values())}."
    )


def seeds_text(seeds: Iterable[int]) -> str:
    """Return ``seed 0`` or ``mean of seeds 0, 1``."""
    names = sorted({int(seed) for seed in seeds})
    return ("seed " if len(names) == 1 else "mean of seeds ") + ", ".join(map(str, names))


_SIGNS = {sign: rf"\{sign}" for sign in "&%_#${}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"
}  # fmt: skip


def _escaped(text: str) -> str:
    return text.translate(str.maketrans(_SIGNS))
