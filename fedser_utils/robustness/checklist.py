"""The checklist of a randomised defence: what reviewers ask of it, item by item, from evidence.

The items follow Athalye et al. (2018), Carlini et al. (2019, "On evaluating adversarial
robustness") and Tramer et al. (2020). Evidence is what ``adaptive_attacks`` returns: a row per
test, attack, value, draw and clip. Each number is a UAR over such rows; nothing else is consulted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from fedser_utils.analysis.labels import terms
from fedser_utils.analysis.metrics import (
    combine_p_values,
    mcnemar,
    uar_by,
    uar_over_draws,
    z_test,
)
from fedser_utils.robustness.evidence import (
    NoEvidenceError,
    mean_uar,
    rows_of,
    strongest_uar,
    uar_by_value,
)

CONVERGED = 1.0  # points of UAR: less is "no more change"
CLOSE = 2.0  # points that a few clips and draws may differ by
BRITTLE = 5.0  # points a change without an attacker may cost
ROUNDING = 1.0001  # of a budget that was used up


class Outcome(NamedTuple):
    """One item's outcome. ran: in words; number: in ``unit``; passed."""

    ran: str
    number: float
    unit: str
    passed: bool


class Item(NamedTuple):
    """A line of the checklist. check: (evidence, epsilon) -> its outcome; failure: what it means
    if it fails."""

    name: str
    check: Callable[[pd.DataFrame, float], Outcome]
    failure: str


ITEMS: list[Item] = []  # numbered from 1, in the order of the functions below


def item(name: str, *, failure: str) -> Callable:
    """Return a decorator that makes a function the next item of the checklist."""

    def register(check: Callable[[pd.DataFrame, float], Outcome]) -> Callable:
        ITEMS.append(Item(name, check, failure))
        return check

    return register


@item("threat model", failure="the attack left its budget: nothing below is comparable")
def threat_model(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Does the attacker stay within its budget, and how loud is that budget?

    Passes if no pixel changed by more than epsilon; the number is the median signal to
    perturbation. Carlini et al. (2019): state the threat model, and hold the attack to it.
    """
    rows = rows_of(evidence, "strongest", attack="linf")
    largest, ratio = rows["linf"].max(), rows["snr_db"].median()
    ran = f"any wrong {terms(rows['y_true']).label}, white box, L-inf {epsilon:g} in "
    ran += "standardised log-Mel; "
    ran += f"largest used {largest:.4g}; median signal to perturbation"
    return Outcome(ran, ratio, "dB", bool(largest <= epsilon * ROUNDING))


@item("clean and randomised clips", failure="the defence costs more recognition than claimed")
def clean_uar(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """What does the defence cost on clips that nobody attacked?

    Passes if the mean over at least 20 draws loses no more than 2 points. Carlini et al. (2019):
    report the accuracy without attack, too.
    """
    plain = mean_uar(rows_of(evidence, "claimed", attack="none", defended=False))
    (drawn,) = uar_over_draws(
        rows_of(evidence, "claimed", attack="none", defended=True), ["attack"]
    ).itertuples()
    ran = f"original {plain:.1f} %, randomised {drawn.uar:.1f} +- {drawn.deviation:.1f} % over "
    ran += f"{drawn.draws} draws; loss"
    loss = plain - drawn.uar
    return Outcome(ran, loss, "points", bool(drawn.draws >= 20 and loss <= CLOSE))


@item("the paper's protocol", failure="not even the non-adaptive claim is reproduced")
def non_adaptive_gain(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Does the paper's protocol reproduce: does the randomisation help against an attacker that
    does not know of it?

    Passes if it raises the UAR under every attack. The defence's own claim (the paper, 6.3).
    """
    rows = rows_of(evidence, "claimed")
    table = uar_by(rows[rows["attack"] != "none"], ["attack", "defended"])
    table = table.pivot(index="attack", columns="defended", values="uar")
    gains = ", ".join(f"{n} {row[False]:.1f} -> {row[True]:.1f} %" for n, row in table.iterrows())
    ran = f"non-adaptive, without -> with randomisation: {gains}; lowest"
    return Outcome(ran, table[True].min(), "%", bool((table[True] > table[False]).all()))


@item("expectation over draws", failure="more draws would lower it: an upper bound only")
def expectation_over_transformation(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """How far does an attack on the expectation over draws (EOT) get, and do more draws help it?

    Passes if the last step to more draws changes the UAR by less than 1 point. Athalye et al.
    (2018): attack the expectation of a randomised defence.
    """
    uars, text = uar_by_value(evidence, "eot")
    steady = len(uars) > 1 and abs(np.diff(uars)[-1]) < CONVERGED
    text = ", ".join(f"k = {part}" for part in text.split(", "))
    ran = f"PGD over k draws, each going on from the last: {text} %; at the last"
    return Outcome(ran, uars[-1], "%", bool(steady))


@item("frozen draw", failure="gradients do not pass the randomisation: the attack is broken")
def frozen_draw(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Does the attack win where attack and evaluation share one fixed draw?

    Passes if it leaves at most 2 points more than without a defence: its gradients pass the
    randomisation. Carlini et al. (2019): test a randomised defence with its randomness fixed.
    """
    drawn, plain = (mean_uar(rows_of(evidence, "frozen", defended=d)) for d in (True, False))
    ran = f"one draw for attack and evaluation; without randomisation {plain:.1f} %; frozen"
    return Outcome(ran, drawn, "%", bool(drawn <= plain + CLOSE))


@item("nearest and bilinear", failure="nearest only hides gradients; evaluate with bilinear")
def gradient_of_nearest(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Does nearest resizing resist attacks only because its gradient is coarse?

    Passes if the attack, through nearest's own gradient or bilinear's, costs nearest at most 5
    points less than bilinear. Athalye et al. (2018): shattered gradients and BPDA.
    """
    left, clean = (
        uar_by(rows_of(evidence, test), ["attack"]).set_index("attack")["uar"]
        for test in ("resize", "resize, clean")
    )
    text = ", ".join(
        f"{name} {clean[name.split(',')[0]]:.1f} -> {value:.1f} %" for name, value in left.items()
    )
    nearest = left[[name for name in left.index if name.startswith("nearest")]].min()
    spared = (clean["bilinear"] - left["bilinear"]) - (clean["nearest"] - nearest)
    ran = f"the same attack through each, clean -> attacked: {text}; nearest loses less by"
    return Outcome(ran, spared, "points", bool(spared <= BRITTLE))


@item("growing epsilon", failure="no attack should fail at a large epsilon: it is broken")
def unbounded_attack(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Does the UAR fall to chance as epsilon grows?

    Passes if it never rises by more than 2 points and ends at chance or below. Athalye et al.
    (2018) and Carlini et al. (2019): an unbounded attack must always succeed.
    """
    uars, text = uar_by_value(evidence, "curve", defended=True)
    chance, falls = 100 / evidence["y_true"].nunique(), (np.diff(uars) <= CLOSE).all()
    ran = f"epsilon {text} %; at the last"
    return Outcome(ran, uars[-1], "%", bool(falls and uars[-1] <= chance))


@item("more iterations", failure="the attack had not converged: give it more steps")
def converged_iterations(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Has the attack converged, and does it beat a single step?

    Passes if the last increase of PGD's steps changes the UAR by less than 1 point, and every clip
    that FGSM fools is fooled by PGD. Carlini et al. (2019); Athalye et al. (2018).
    """
    uars, text = uar_by_value(evidence, "iterations")
    change = abs(np.diff(uars)[-1])
    missed = _only_fooled_by(
        rows_of(evidence, "single step"), rows_of(evidence, "frozen", defended=False)
    )
    ran = f"steps {text} %; clips FGSM fools and PGD does not: {missed}; last change"
    return Outcome(ran, change, "points", bool(change < CONVERGED and not missed))


def _only_fooled_by(weaker: pd.DataFrame, stronger: pd.DataFrame) -> int:
    """Return the number of clips (of one draw) that the first evidence has wrong, the second
    right."""
    both = weaker.merge(stronger, on="clip", suffixes=("", "_strong"))
    wrong = both["y_pred"] != both["y_true"]
    return int((wrong & (both["y_pred_strong"] == both["y_true"])).sum())


def _not_beaten(evidence: pd.DataFrame, tests: Sequence[str], ran: str) -> Outcome:
    """Return the lowest UAR of some tests; passed unless it is more than 1 point lower than the
    strongest attack's on the same clips."""
    rows = pd.concat([rows_of(evidence, test) for test in tests])
    table = uar_by(rows, ["test", "attack", "value"])
    text = ", ".join(
        f"{r.attack}{'' if np.isnan(r.value) else f' {r.value:g}'} {r.uar:.1f}"
        for r in table.itertuples()
    )
    same_clips = evidence[evidence["clip"].isin(set(rows["clip"]))]
    lowest, reference = table["uar"].min(), strongest_uar(same_clips)
    ran = f"{ran}: {text} %; the strongest attack on these clips {reference:.1f} %; lowest"
    return Outcome(ran, lowest, "%", bool(lowest >= reference - CONVERGED))


@item("step sizes, restarts", failure="the attack was badly tuned: take the lowest")
def step_sizes_and_restarts(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Do other step sizes or random restarts make PGD stronger?

    Passes if none beats the strongest attack. Carlini et al. (2019): tune the attack's parameters.
    """
    ran = "PGD with step sizes in epsilons, random restarts"
    return _not_beaten(evidence, ["step size", "restarts"], ran)


@item("other losses", failure="cross-entropy alone overstates robustness: take the lowest")
def other_losses(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Do other losses (margin, difference of logits ratio), or Auto-PGD, go further?

    Passes if none beats the strongest attack. Carlini et al. (2019); Tramer et al. (2020) on
    choosing the loss; Croce and Hein (2020).
    """
    return _not_beaten(evidence, ["loss"], "EOT-PGD with other losses, Auto-PGD with EOT")


@item("black-box attacks", failure="gradient masking: gradients mislead the attack")
def black_box_attacks(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Do attacks without gradients (Square, HopSkipJump) go further than those with them?

    Passes if none beats the strongest attack; one that does shows masked gradients (Athalye et
    al., 2018). Carlini et al. (2019) warn that such attacks fail on randomised models: these take
    one draw's decision for the model's, so a pass says little.
    """
    n = rows_of(evidence, "black box")["clip"].nunique()
    return _not_beaten(evidence, ["black box"], f"score-based and decision-based, n = {n}")


@item("transfer", failure="gradient masking: another model's gradients lead further")
def transfer_attacks(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Do clips crafted on other models fool this one more than its own gradients do?

    Passes if none beats the strongest attack. Athalye et al. (2018); Carlini et al. (2019).
    """
    return _not_beaten(evidence, ["transfer"], "PGD against other models")


@item("worst case per clip", failure="one attack misses clips others find: report this")
def worst_case_per_clip(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """What is left if each clip meets the attack that is worst for it?

    One half of the draws chooses the attack, the other evaluates it. Passes if that is at most 5
    points below the strongest single attack. Carlini et al. (2019): worst case by example.
    """
    tests = ["claimed", "eot", "strongest", "loss", "step size", "restarts", "transfer"]
    rows = evidence[evidence["defended"] & evidence["test"].isin(tests)]
    rows = rows[rows["linf"] <= epsilon * ROUNDING]
    key = ["clip", "y_true", "test", "attack", "value"]
    rows = rows.assign(right=rows["y_true"] == rows["y_pred"], half=rows["draw"] % 2)
    share = rows.groupby([*key, "half"], dropna=False)["right"].mean().unstack("half")
    worst = share.reset_index().sort_values(0, kind="stable").drop_duplicates("clip")
    number = 100 * worst.groupby("y_true")[1].mean().mean()
    strict = rows.groupby(["y_true", "clip"])["right"].all().groupby("y_true").mean().mean()
    ran = f"{len(share.reset_index()[['test', 'attack', 'value']].drop_duplicates())} attacks; "
    ran += f"under all of them and all draws {100 * strict:.1f} %; worst attack of each clip"
    return Outcome(ran, number, "%", bool(number >= strongest_uar(evidence) - BRITTLE))


@item("shortest perturbations", failure="DeepFool stops early: its norms say little")
def shortest_perturbations(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """How short is the perturbation that fools the model without a defence?

    Passes if DeepFool fools at least 95 % of the clips that were right before; the number is its
    median L2 norm. Carlini et al. (2019): report distances; Moosavi-Dezfooli et al. (2016).
    """
    rows = rows_of(evidence, "deepfool")
    wrong_first = set(_wrong(rows_of(evidence, "claimed", attack="none", defended=False))["clip"])
    right_first = rows[~rows["clip"].isin(wrong_first)]
    fooled = _wrong(right_first)
    edges = np.quantile(fooled["l2"], [0.25, 0.75]) if len(fooled) else (np.nan, np.nan)
    ran = f"DeepFool without defence; {len(wrong_first)} clips were wrong at first; fooled "
    ran += f"{len(fooled)} of {len(right_first)}; quartiles {edges[0]:.2g}, {edges[1]:.2g}; "
    share = len(fooled) / max(1, len(right_first))
    return Outcome(ran + "median", fooled["l2"].median(), "L2 norm", bool(share >= 0.95))


def _wrong(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["y_true"] != rows["y_pred"]]


@item("controls", failure="the model fails without an attacker: robustness is not the issue")
def harmless_changes(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Does the model bear changes that no attacker made: noise, a shift in time, a gain?

    Passes if none costs more than 5 points: a control of our own, after the common corruptions of
    Hendrycks and Dietterich (2019).
    """
    table = uar_by(rows_of(evidence, "control"), ["attack", "defended"])
    clean = {
        d: mean_uar(rows_of(evidence, "claimed", attack="none", defended=d)) for d in (False, True)
    }
    loss = (table["defended"].map(clean) - table["uar"]).max()
    text = ", ".join(
        f"{r.attack}{' (randomised)' if r.defended else ''} {r.uar:.1f}" for r in table.itertuples()
    )
    return Outcome(f"{text} %; largest loss", loss, "points", bool(loss <= BRITTLE))


@item("planted weak models", failure="an attack that misses these is broken")
def weak_models(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Do the attacks themselves work: do they fool models that are built to be fooled?

    Passes if each fools every clip. Carlini et al. (2019): try the attack on models that are
    intentionally broken.
    """
    rows = rows_of(evidence, "planted")
    fooled = rows.assign(fooled=100.0 * (rows["y_true"] != rows["y_pred"]))
    shares = fooled.groupby(["attack", "defended"])["fooled"].mean()
    text = ", ".join(
        f"{name}{' (randomised)' if defended else ''} {share:.0f}"
        for (name, defended), share in shares.items()
    )
    ran = f"fooled on planted weak models: {text} %; least"
    return Outcome(ran, shares.min(), "%", bool(shares.min() == 100))


@item("statistics", failure="fewer than 3 seeds: differences may be one training's luck")
def significance(evidence: pd.DataFrame, epsilon: float) -> Outcome:
    """Could the claimed gain be chance?

    p by the paper's z-test and by McNemar's (Dietterich, 1998), several seeds combined, after
    Holm's correction over attacks. Passes with 3 seeds or more: p of one training does not tell
    the defence from its luck.
    """
    rows = rows_of(evidence, "claimed", draw=0)
    attacked = rows[rows["attack"] != "none"].groupby("attack")
    names, by_test = [], []
    for attack, of_attack in attacked:
        ps = []
        for _, of_run in of_attack.groupby("run"):
            before, after = (
                of_run[of_run["defended"] == d].sort_values("clip") for d in (False, True)
            )
            z = z_test(mean_uar(after), mean_uar(before), len(after))[1]
            ps.append((z, mcnemar(after["y_true"], before["y_pred"], after["y_pred"])))
        names.append(attack)
        by_test.append([combine_p_values(p) for p in zip(*ps, strict=True)])
    corrected = [multipletests(p, method="holm")[1] for p in zip(*by_test, strict=True)]
    text = ", ".join(f"{n} {z:.2g}, {m:.2g}" for n, z, m in zip(names, *corrected, strict=True))
    ran = f"p that the claimed gain is chance, by the z-test and McNemar's, after Holm: {text}; "
    ran += "intervals from a bootstrap over "
    ran += f"{terms(rows['y_true']).client}s; evidence from"
    seeds = rows["run"].nunique()
    return Outcome(ran, seeds, "seed" if seeds == 1 else "seeds", bool(seeds >= 3))


def checklist(evidence: pd.DataFrame, *, epsilon: float) -> pd.DataFrame:
    """Return the items as rows: item, name, ran, number, unit, result (pass, fail or not run),
    failure means.

    evidence: of one run; of other seeds of its model only "claimed", for the last item; epsilon:
    of the L-inf attacks. An item without evidence was not run.
    """
    rows = []
    for number, (name, check, failure) in enumerate(ITEMS, 1):
        try:
            outcome = check(evidence, epsilon)
            result = "pass" if outcome.passed else "fail"
        except NoEvidenceError as error:
            outcome, result = Outcome(str(error), float("nan"), "", False), "not run"
        rows.append((number, name, outcome.ran, outcome.number, outcome.unit, result, failure))
    columns = ["item", "name", "ran", "number", "unit", "result", "failure means"]
    return pd.DataFrame(rows, columns=columns)
