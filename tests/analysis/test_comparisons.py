"""Paired comparisons: by hand, and all of 05's tables once more from the predictions alone."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm

from fedser_utils.analysis import comparisons, tables

CLASSES = np.array(["anger", "fear", "guilt"])
CONDITIONS = ("original", "randomised"), ("adversarial", "randomised_adversarial")
KEY = ["model", "attack", "condition"]


def rows(model, seed, number, draw):
    """What one model decides on 60 clips of 4 speakers; other clips for every seed."""
    clips = pd.DataFrame({"clip": [f"{seed}-{i}" for i in range(60)]})
    clips["speaker"] = [f"0{i % 4}" for i in range(60)]
    clips["y_true"] = np.random.default_rng(seed).choice(CLASSES, 60)
    attacks = ("fgsm", "pgd") if model in ("nature", "centralised") else (model.split("-")[-1],)
    for attack in ("none", *attacks):
        for condition in CONDITIONS[attack != "none"]:
            right = draw.random(60) < draw.uniform(0.2, 0.9)
            said = np.where(right, clips["y_true"], draw.choice(CLASSES, 60))
            yield clips.sample(frac=1, random_state=1).assign(
                run=f"{model}-{seed}", model=model, seed=seed, round=number, attack=attack,
                condition=condition, draw=0, y_pred=pd.Series(said),
            )  # fmt: skip


@pytest.fixture(scope="module")
def predictions():
    draw = np.random.default_rng(0)
    models = [("nature", s) for s in (0, 1, 2)] + [("pgd", s) for s in (0, 1)]
    models += [("centralised", 1), ("centralised-pgd", 0), ("centralised-pgd", 1)]
    made = [part for m, s in models for number in (1, 2) for part in rows(m, s, number, draw)]
    return pd.concat(made, ignore_index=True)


def test_all_tables_can_be_recomputed_from_the_predictions(predictions):
    last = predictions[predictions["round"] == 2]
    right = (last["y_true"] == last["y_pred"]).astype(float)
    recall = right.groupby([last[c] for c in (*KEY, "seed", "y_true")]).mean()
    of_seed = 100 * recall.groupby(level=[*KEY, "seed"]).mean()

    table3 = tables.table3(predictions).set_index(KEY)
    assert len(table3) == len(of_seed.groupby(level=KEY))
    for key, own in of_seed.groupby(level=KEY):
        row = table3.loc[key]
        assert row["uar"] == pytest.approx(own.mean())
        assert row["deviation"] == pytest.approx(own.std(), nan_ok=True)
        assert (row["seeds"], row["n"]) == (len(own), 60)
        if key in tables.PAPER:
            assert row["difference"] == pytest.approx(own.mean() - tables.PAPER[key])

    gains = comparisons.gains(predictions)
    assert len(gains) == 2 + 3 + 2 + 3  # nature, PGD-trained, and both centralised
    for row in gains.itertuples():
        after, before = of_seed[row.model, row.attack], None
        if row.defence == "randomisation":
            after, before = after["randomised_adversarial"], after["adversarial"]
        else:
            base = "centralised" if "centralised" in row.model else "nature"
            condition = "original" if row.attack == "none" else "adversarial"
            after, before = after[condition], of_seed[base, row.attack, condition]
        seeds = after.index.intersection(before.index)  # 1, where a model has only that
        assert row.seeds == len(seeds)
        assert (row.before, row.after) == pytest.approx((before[seeds].mean(), after[seeds].mean()))
        assert row.gain == pytest.approx(row.after - row.before)
        assert row.ci_low < row.gain < row.ci_high
        assert row.n == 60

    central = comparisons.centralised(predictions)
    assert central["central_model"].tolist() == [*["centralised"] * 4, *["centralised-pgd"] * 2,
                                                 "centralised"]  # fmt: skip
    for row in central.itertuples():
        ours = of_seed[row.model, row.attack, row.condition]
        theirs = of_seed[row.central_model, "none", row.central_condition]
        seeds = ours.index.intersection(theirs.index)
        assert row.seeds == len(seeds)
        assert row.v_federated == pytest.approx(ours[seeds].mean())
        assert row.v_central == pytest.approx(theirs[seeds].mean())
        assert row.difference == pytest.approx(row.v_federated - row.v_central)
        assert row.delta == max(abs(row.ci_low), abs(row.ci_high)) >= abs(row.difference)

    speaker = [*KEY, "speaker"]
    recall = right.groupby([last[c] for c in (*speaker, "seed", "y_true")]).mean()
    each = 100 * recall.groupby(level=[*speaker, "seed"]).mean().groupby(level=speaker).mean()
    for key, row in (
        comparisons.speakers(comparisons.by_speaker(predictions)).set_index(KEY).iterrows()
    ):
        own = each[key]
        assert (row["mean"], row["deviation"]) == pytest.approx((own.mean(), own.std()))
        assert row["worst_uar"] == pytest.approx(own.min()) == pytest.approx(own[row["worst"]])
        assert row["best_uar"] == pytest.approx(own.max()) == pytest.approx(own[row["best"]])


def test_p_values_can_be_recomputed_from_the_predictions(predictions):
    gains = comparisons.gains(predictions)
    last = predictions[predictions["round"] == 2]
    for row in gains[gains["defence"] == "randomisation"].itertuples():
        own = last[(last["model"] == row.model) & (last["attack"] == row.attack)]
        z_ps, mcnemar_ps = [], []
        for _, both in own.groupby("seed"):
            right = both.assign(right=both["y_true"] == both["y_pred"])
            wide = right.pivot(index=["clip", "y_true"], columns="condition", values="right")
            before, after = wide["adversarial"], wide["randomised_adversarial"]
            lost, won = (before & ~after).sum(), (~before & after).sum()
            mcnemar_ps.append(min(1, 2 * binom.cdf(min(lost, won), lost + won, 0.5)))
            a, b = (side.groupby("y_true").mean().mean() for side in (after, before))
            z = (a - b) / np.sqrt((a + b) / 2 * (1 - (a + b) / 2) * 2 / 60)
            z_ps.append(norm.sf(z))
        for ps, found in ((z_ps, row.p_z), (mcnemar_ps, row.p_mcnemar)):
            assert found == pytest.approx(min(1, 2 * np.median(ps)) if len(ps) > 1 else ps[0])
    # Holm: the smallest p times m, the next times m - 1, ..., never falling, at most 1
    for test in ("p_z", "p_mcnemar"):
        assert (gains[test].isna() == (gains["attack"] == "none")).all()  # a price is no claim
        ps = gains[test].dropna().sort_values()
        steps = (ps * np.arange(len(ps), 0, -1)).cummax().clip(upper=1)
        assert np.allclose(gains[f"{test}_holm"], steps.reindex(gains.index), equal_nan=True)


def test_a_gain_by_hand():
    clips = pd.DataFrame({"clip": [*"pqrs"], "speaker": [*"aabb"], "y_true": [*"xyxy"]})
    clips = clips.assign(run="r", model="nature", seed=0, round=1, attack="pgd", draw=0)
    before = clips.assign(condition="adversarial", y_pred=[*"yxyx"])
    after = clips.assign(condition="randomised_adversarial", y_pred=clips["y_true"])
    found = comparisons.gains(pd.concat([before, after.iloc[::-1]])).iloc[0]
    assert (found["before"], found["after"], found["gain"]) == (0, 100, 100)
    assert (found["ci_low"], found["ci_high"]) == (100, 100)
    assert (found["n"], found["seeds"], found["defence"]) == (4, 1, "randomisation")
    assert found["p_mcnemar"] == found["p_mcnemar_holm"] == 2 / 16
    assert found["p_z"] == pytest.approx(norm.sf(np.sqrt(8)))  # pooled 0.5: z = 1 / sqrt(0.25 / 2)


def test_only_the_same_clips_are_paired(predictions):
    last = predictions[(predictions["round"] == 2) & (predictions["condition"] == "original")]
    nature = last[last["model"] == "nature"]
    paired = comparisons.pair_decisions(nature, nature)
    assert (paired["before"] == paired["after"]).all()
    assert comparisons.paired_gain(paired)["ci_high"] == 0
    with pytest.raises(ValueError, match="179 and 180 clips, only 179 of them the same"):
        comparisons.pair_decisions(nature[1:], nature)
    pgd = last[last["model"] == "pgd"]
    assert set(comparisons.pair_decisions(nature, pgd)["seed"]) == {0, 1}
    assert comparisons.pair_decisions(nature[:0], pgd).empty


def test_nothing_to_compare(predictions):
    federated = predictions[predictions["model"].isin(["nature", "pgd"])]
    assert comparisons.centralised(federated).empty
    price = comparisons.gains(federated[federated["attack"] == "none"])
    assert price[["model", "defence"]].to_numpy().tolist() == [["pgd", "adversarial training"]]
    assert comparisons.gains(
        federated[federated["model"] == "nature"].query("attack == 'none'")
    ).empty
    alone = comparisons.gains(federated[federated["model"] == "pgd"])
    assert alone["defence"].tolist() == ["randomisation"]


def test_a_models_range_is_of_the_second_half_of_the_rounds():
    """Recognised of 4 clips, round by round: 4, 4, 1, 3 pooled and 0, 0, 2, 2 federated."""
    clips = pd.DataFrame({"clip": [*"pqrs"], "speaker": [*"aabb"], "y_true": [*"xxyy"]})
    clips = clips.assign(seed=0, attack="none", condition="original", draw=0)
    parts = []
    for model, counts in (("centralised", (4, 4, 1, 3)), ("nature", (0, 0, 2, 2))):
        for number, count in enumerate(counts, 1):
            said = [t if i < count else "z" for i, t in enumerate(clips["y_true"])]
            parts.append(clips.assign(run=model, model=model, round=number, y_pred=said))
    (found,) = comparisons.centralised(pd.concat(parts)).itertuples()
    assert (found.central_low, found.central_high) == (25, 75)
    assert (found.federated_low, found.federated_high) == (50, 50)
    assert (found.v_federated, found.v_central) == (50, 75)
    last = pd.concat(parts).query("round == 4")
    assert comparisons.centralised(last)[["central_low", "federated_high"]].isna().all(axis=None)
    other = last.query("model == 'nature'").assign(seed=1, y_pred="x")  # not a seed of both
    (same,) = comparisons.centralised(pd.concat([*parts, other])).itertuples()
    assert (same.federated_low, same.federated_high) == (50, 50)


def test_speakers_by_hand():
    rows = pd.DataFrame(
        {"run": "r", "model": "nature", "seed": 0, "round": 1, "attack": "none",
         "condition": "original", "speaker": [*"aabbcc"], "y_true": [*"xyxyxx"],
         "y_pred": [*"xyyyyy"]}
    )  # fmt: skip
    each = comparisons.by_speaker(rows)
    assert each["uar"].tolist() == [100, 50, 0]
    found = comparisons.speakers(each).iloc[0]
    assert (found["mean"], found["deviation"]) == (50, 50)
    assert (found["worst"], found["worst_uar"], found["worst_n"]) == ("c", 0, 2)
    assert (found["best"], found["best_uar"]) == ("a", 100)
