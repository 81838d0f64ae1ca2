"""Interventions with a planted gain, a planted harm and a planted nothing, told by name."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from fedser_utils.analysis.heterogeneity import conclusions, interventions
from fedser_utils.analysis.heterogeneity.outcomes import intervention_table, measure_outcomes
from fedser_utils.core.errors import InputError
from fedser_utils.core.presets import load_settings
from fedser_utils.core.settings import Settings

CLASSES = np.array(["anger", "fear", "joy"])
GIVEN = load_settings("smoke", rounds=4, local_epochs=1)


@dataclasses.dataclass
class Made:
    """A run without a folder."""

    settings: Settings
    tables: dict

    def table(self, name):
        return self.tables[name]


def clips_of(seed):
    """12 speakers of 20 test clips: the first 6 are English, the others Italian."""
    clips = pd.DataFrame({"speaker": np.repeat([f"{i:02d}" for i in range(12)], 20)})
    clips["clip"] = [f"{seed}-{i}" for i in range(240)]
    clips["emotion"] = np.random.default_rng(seed).choice(CLASSES, 240)
    clips["corpus"] = np.where(clips["speaker"] < "06", "ravdess", "emovo")
    clips["language"] = np.where(clips["speaker"] < "06", "en", "it")
    return clips.assign(split="test", client=clips["speaker"])


def run(intervention, seed, right, *, rounds=(30, 45, 60, 75), attacked=None):
    """A run that recognises the clips of ``right`` (an array), fewer under attack."""
    clips = clips_of(seed)
    facts = {"run": f"{intervention}-{seed}", "model": "nature", "round": 4, "draw": 0}
    rows = clips.rename(columns={"emotion": "y_true"})[["clip", "speaker", "y_true"]]
    wrong = np.roll(CLASSES, 1)[np.searchsorted(CLASSES, rows["y_true"])]
    attacked = right & (np.arange(240) % 5 == 0) if attacked is None else attacked
    parts = [
        rows.assign(
            attack=attack, condition=condition, y_pred=np.where(hit, rows["y_true"], wrong), **facts
        )
        for attack, condition, hit in (
            ("none", "original", right), ("fgsm", "adversarial", attacked),
            ("pgd", "adversarial", attacked), ("pgd", "randomised_adversarial", right),
            ("fgsm", "randomised_adversarial", right),
        )
    ]  # fmt: skip
    learnt = pd.DataFrame({"round": range(1, 5), "uar": rounds, "condition": "original"})
    settings = dataclasses.replace(interventions.apply(GIVEN, intervention), seed=seed)
    return Made(settings, {"clips": clips, "predictions": pd.concat(parts), "rounds": learnt})


def base(seed):
    return np.random.default_rng(100 + seed).random(240) < 0.6


@pytest.fixture(scope="module")
def runs():
    """As given 60 % are right. FedProx: of every speaker a third of the rest is, too; the smaller
    rate loses as much; the level's change is as often right, on other clips; group norm gains on
    English and loses on Italian."""
    found = {name: [] for name in ("as given", "FedProx", "smaller learning rate", "level rms",
                                   "group norm", "more local epochs")}  # fmt: skip
    third, english = np.arange(240) % 3 == 0, np.arange(240) < 120
    for seed in (0, 1):
        right = base(seed)
        found["as given"].append(run("as given", seed, right))
        found["FedProx"].append(run("FedProx", seed, right | third, rounds=(45, 60, 75, 80)))
        found["smaller learning rate"].append(run("smaller learning rate", seed, right & ~third,
                                                  rounds=(20, 25, 30, 35)))  # fmt: skip
        found["level rms"].append(run("level rms", seed, base(seed + 7)))
        both = np.where(english, right | third | (np.arange(240) % 3 == 1), right & ~third)
        found["group norm"].append(run("group norm", seed, both))
        found["more local epochs"].append(run("more local epochs", seed, right,
                                              rounds=(60, 70, 75, 75)))  # fmt: skip
    return found


@pytest.fixture(scope="module")
def outcomes(runs):
    return measure_outcomes(runs)


@pytest.fixture(scope="module")
def table(runs, outcomes):
    return intervention_table(runs, outcomes, targets=[60, 90])


def test_the_table_by_hand(table, runs):
    found = table.set_index("intervention")
    assert found["settings"]["as given"] == "-"
    assert found["settings"]["FedProx"] == "strategy FedProx, proximal_mu 0.01"
    assert found["computing"].tolist() == [1, 1, 1, 1, 1, 2]
    assert found["rounds to 60 %"].tolist()[:2] == [3, 2]
    assert np.isnan(found.loc["smaller learning rate", "rounds to 60 %"])
    assert found["rounds to 90 %"].isna().all()
    for name in found.index:
        uars = []
        for made in runs[name]:
            rows = made.table("predictions")
            own = rows[rows["condition"] == "original"]
            right = own["y_true"] == own["y_pred"]
            uars.append(100 * right.groupby(own["y_true"]).mean().mean())
        row = found.loc[name]
        assert row["uar"] == pytest.approx(np.mean(uars))
        assert row["ci_low"] < row["uar"] < row["ci_high"]
        if name != "as given":
            assert row["gain"] == pytest.approx(row["uar"] - found.loc["as given", "uar"])
            assert row["sure_low"] <= row["gain_low"] <= row["gain_high"] <= row["sure_high"]
    assert found[["n", "speakers", "seeds"]].eq([240, 12, 2]).all().all()
    assert {"adversarial fgsm", "adversarial pgd", "corpus emovo", "language it"} <= set(found)
    assert "randomised_adversarial fgsm" not in found
    assert (found["worst_uar"] < found["uar"]).all()
    assert (found["median_n"] == 20).all()


def test_what_was_planted_is_named(table, outcomes):
    lines = conclusions.conclude(table, outcomes)
    assert lines[0].startswith("FedProx helps: +")
    assert "(n = 240 test clips, 4 rounds, 2 seeds), also when all 5" in lines[0]
    assert any(line.startswith("smaller learning rate hurts: -") for line in lines)
    unclear = next(line for line in lines if line.startswith("Undecided"))
    assert "level rms" in unclear
    assert "more local epochs +0.0 [+0.0, +0.0]" in unclear
    assert "FedProx" not in unclear
    attacked = next(line for line in lines if line.startswith("Under attack FedProx"))
    assert "adversarial pgd +" in attacked
    uneven = next(
        line for line in lines if line.startswith("group norm") and "together, but" in line
    )
    assert "hurts corpus emovo -" in uneven
    assert "helps corpus ravdess +" in uneven
    assert all("\n" not in line for line in lines)


def test_rounds_and_their_price(table, outcomes):
    line = next(v for v in conclusions.conclude(table, outcomes) if v.startswith("60 % UAR"))
    assert "as given 3.0 rounds; more local epochs 1.0 (-2.0 rounds), the computing of 2.0" in line
    assert "FedProx 2.0 (-1.0 rounds)" in line
    assert "not reached in every seed: smaller learning rate" in line
    price = "A round's computing is not the same for all: more local epochs 2.0 times that"
    assert any(v.startswith(price) for v in conclusions.conclude(table, outcomes))


def test_cautions(table, runs):
    several = " ".join(conclusions.cautions(table))
    assert "With one seed" not in several
    assert "chance (" not in several
    guessed = table.assign(uar=33.0, ci_low=33.0)
    assert (
        "ends at 33.0 % UAR, which is not above chance (33.3 %)" in conclusions.cautions(guessed)[0]
    )
    assert "5 interventions are compared with one baseline" in several
    one = {name: made[:1] for name, made in runs.items() if name in ("as given", "level rms")}
    found = measure_outcomes(one)
    two = intervention_table(one, found, targets=[101, 1])  # the first is out of reach
    lines = conclusions.conclude(two, found)
    assert any(line.startswith("1 % UAR") or line.startswith("1 %") for line in lines), lines
    alone = " ".join(conclusions.conclude(intervention_table(one, found, targets=[60]), found))
    assert "With one seed" in alone
    assert "wider than 10 points; n = 240 test clips" in alone
    assert "interventions are compared" not in alone


def test_seeds_that_disagree_conclude_nothing():
    rows = pd.DataFrame(
        {"gain_low": [1, 1, -2, -2, -1], "gain_high": [2, 2, -1, -1, 1], "better": [2, 1, 0, 1, 2],
         "seeds": 2}
    )  # fmt: skip
    assert conclusions.verdicts(rows).tolist() == [
        "helps", "seeds disagree", "hurts", "seeds disagree", "undecided"
    ]  # fmt: skip


def test_nothing_to_compare_with(runs):
    with pytest.raises(InputError, match="as given"):
        measure_outcomes({"FedProx": runs["FedProx"]})
    other = {"as given": runs["as given"][:1], "FedProx": runs["FedProx"][1:]}
    found = measure_outcomes(other)
    table = intervention_table(other, found, targets=[60])
    assert conclusions.conclude(table, found) == [
        "No intervention was trained with a seed that was also trained as given."
    ]


def test_obstacles_tell_what_was_measured(table):
    drift = pd.DataFrame(
        {"client": [*"abcd"], "corpus": [*"xxyy"], "cosine": 0.5, "relative": [0.01, 0.02] * 2,
         "inside": [0.4, 0.5, 0.4, 0.5], "outside": 0.1}
    )  # fmt: skip
    lines = conclusions.obstacles(drift=drift, table=table)
    assert "a length of 1.0 to 2.0 % of the weights' norm" in lines[0]
    assert lines[1].startswith("Updates of different corpora point apart: cosine 0.45 inside a ")
    assert lines[2].startswith("Interventions against this: FedProx +")
    assert "(helps)" in lines[2]
    alike = drift.assign(inside=[0.2, 0.0, 0.3, -0.1])
    assert "is undecided" in conclusions.obstacles(drift=alike)[1]
    alone = drift.assign(outside=np.nan)
    assert "Too few" in conclusions.obstacles(drift=alone)[1]

    layers = pd.DataFrame(
        {"corpus": ["all", "all", "x", "x"], "layer": [1, 2] * 2, "variance_shift": 0.1,
         "mean_shift": [0.1, 0.1, 0.2, 0.6]}
    )  # fmt: skip
    found = conclusions.obstacles(batch_norm=layers)
    assert "x 0.40; all corpora together 0.10, less than 1 of 1 corpora." in found[0]
    assert found[0].endswith("x is furthest in layer 2 of 2 (0.60).")

    inputs = pd.DataFrame({"corpus": [*"xy"], "n": 9, "distance": [0.2, 0.4], "loudness": -0.1})
    assert "y 0.40 (of which level -0.10), x 0.20" in conclusions.obstacles(inputs=inputs)[0]
    labels = pd.DataFrame(
        {"client": [*"ab"], "distance": [0.1, 0.5], "by_chance": 0.1, "classes": 2, "n": 9}
    )
    assert "furthest b (0.50, 2 classes in 9 clips)" in conclusions.obstacles(labels=labels)[0]
    assert conclusions.obstacles() == []
