"""The paper's tables, from the rows that runs leave behind."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fedser_utils.metrics import scores, z_test

MODELS = ("nature", "fgsm", "pgd", "deepfool")
ATTACK_NAMES = {"none": "None", "fgsm": "FGSM", "pgd": "PGD", "deepfool": "DeepFool"}
CONDITIONS = {
    "original": "Original",
    "randomised": "Randomised",
    "adversarial": "Adversarial",
    "randomised_adversarial": "Randomised adversarial",
}

# the paper's Table 3 (DEMoS, 300 rounds): UAR in percent by model, then attack, per condition
_OWN = ("original", "randomised", "adversarial", "randomised_adversarial")
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
    for _condition, _value in zip(_OWN, _values, strict=True):
        _attack = _model if "adversarial" in _condition else "none"
        PAPER[_model, _attack, _condition] = _value


def table2(clips: pd.DataFrame) -> pd.DataFrame:
    """Table 2: clips per emotion in training and test. clips: a run's ``clips.parquet``."""
    counts = pd.crosstab(clips["emotion"], clips["split"]).reindex(
        columns=["train", "test"], fill_value=0
    )
    counts["sum"] = counts.sum(axis=1)
    counts.loc["sum"] = counts.sum()
    return counts.rename_axis(columns=None).reset_index()


def table3(predictions: pd.DataFrame) -> pd.DataFrame:
    """Table 3: every model under every attack and condition after the last round.

    predictions: rows of one or several runs' ``predictions.parquet``; seeds of one model are
    averaged, their interval is the mean of theirs. Columns: model, attack, condition, uar,
    ci_low, ci_high (percent), n, seeds, paper_uar.
    """
    last = predictions.groupby("run")["round"].transform("max")
    rows = scores(predictions[predictions["round"] == last], intervals=True)
    table = rows.groupby(["model", "attack", "condition"], as_index=False).agg(
        uar=("uar", "mean"),
        ci_low=("ci_low", "mean"),
        ci_high=("ci_high", "mean"),
        n=("n", "first"),
        seeds=("run", "nunique"),
    )
    table["paper_uar"] = [PAPER.get(key) for key in zip(*(table[c] for c in _KEY), strict=True)]
    order = {name: list(names) for name, names in zip(_KEY, _ORDERS, strict=True)}
    return table.sort_values(
        _KEY, key=lambda column: column.map(order[column.name].index), ignore_index=True
    )


_KEY = ["model", "attack", "condition"]
_ORDERS = (MODELS, ATTACK_NAMES, CONDITIONS)
_TRAINED = "Adversarial"


def table3_latex(table: pd.DataFrame, *, caption: str) -> str:
    """The paper's layout: models and conditions down, attacks across, UAR with its interval."""
    cells = table.assign(
        cell=[
            rf"{row.uar:.2f} {{\scriptsize [{row.ci_low:.0f}, {row.ci_high:.0f}]}}"
            for row in table.itertuples(index=False)
        ],
        group=table["model"].map(lambda model: "Nature" if model == "nature" else _TRAINED),
        # an adversarially trained model stands under the attack it was trained with
        column=table["model"].where(table["model"] != "nature", table["attack"]),
    )
    wide = cells.pivot(index=["group", "condition"], columns="column", values="cell")
    wide = wide.reindex(columns=list(ATTACK_NAMES)).fillna("--")
    lines = [
        r"\begin{table*}", r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_escaped(caption)}}}", r"\label{tab:uar}",
        r"\begin{tabular}{llllll}", r"\hline",
        r"Models & Test data & No & FGSM & PGD & DeepFool \\", r"\hline",
    ]  # fmt: skip
    for group in ("Nature", _TRAINED):
        present = [c for c in CONDITIONS if (group, c) in wide.index]
        for i, condition in enumerate(present):
            first = group if not i else ""
            row = [first, CONDITIONS[condition], *wide.loc[(group, condition)]]
            lines.append(" & ".join(row) + r" \\")
        lines += [r"\hline"] if present else []
    return "\n".join([*lines, r"\end{tabular}", r"\end{table*}", ""])


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """What the defences gain, with the paper's one-tailed z-test: columns model, attack, defence,
    before, after (UAR in percent), gain, p. table: as ``table3`` gives it.

    Adversarial training is compared with nature under the same attack, randomisation with the
    same model without it.
    """
    uar = table.set_index(_KEY)["uar"].to_dict()
    n = int(table["n"].iloc[0])
    rows = []
    for (model, attack, condition), after in uar.items():
        if condition == "randomised_adversarial":
            defence, before = "randomisation", uar[model, attack, "adversarial"]
        elif condition == "adversarial" and model != "nature":
            defence, before = "adversarial training", uar.get(("nature", attack, condition))
        else:
            continue
        if before is not None:
            p = z_test(after, before, n)[1]
            rows.append((model, attack, defence, before, after, after - before, p))
    columns = ["model", "attack", "defence", "before", "after", "gain", "p"]
    return pd.DataFrame(rows, columns=columns)


def caption(predictions: pd.DataFrame, clips: pd.DataFrame, *, study: str) -> str:
    """What a figure or table must say of its origin: study, clients, n, rounds, runs."""
    clients = clips.loc[clips["split"] == "train", "speaker"].nunique()
    n = (clips["split"] == "test").sum()
    runs, rounds = predictions["run"].nunique(), predictions["round"].max()
    return f"{study}: {clients} clients, n = {n} test clips, {rounds} rounds, {runs} runs"


def _escaped(text: str) -> str:
    for sign in "&%_#$":
        text = text.replace(sign, rf"\{sign}")
    return text


def class_order(classes: Sequence[str]) -> list[str]:
    """The paper's order in Fig. 6; classes it does not have come last."""
    paper = ["guilt", "disgust", "happiness", "fear", "anger", "surprise", "sadness"]
    return [c for c in paper if c in classes] + sorted(set(classes) - set(paper))
