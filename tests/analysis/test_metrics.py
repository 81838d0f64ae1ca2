import numpy as np
import pandas as pd
import pytest

from fedser_utils.analysis import metrics


def test_uar_by_hand():
    assert metrics.uar([0, 0, 0, 1], [0, 0, 1, 1]) == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert metrics.war([0, 0, 0, 1], [0, 0, 1, 1]) == 75
    assert metrics.uar(["a", "a"], ["a", "z"]) == 50  # z never occurs: it has no recall
    with pytest.raises(ValueError, match="no clips"):
        metrics.uar([], [])


def test_z_test_by_hand():
    # pooled rate 0.5: z = 0.2 / sqrt(0.25 * 2 / 100)
    z, p = metrics.z_test(60, 40, 100)
    assert z == pytest.approx(2.828427, rel=1e-5)
    assert p == pytest.approx(0.002339, rel=1e-3)
    assert metrics.z_test(40, 60, 100)[1] == pytest.approx(1 - 0.002339, rel=1e-3)
    assert metrics.z_test(50, 50, 100) == (0.0, 0.5)
    assert metrics.z_test(71.34, 2.96, 1874)[1] < 0.001  # the paper's


def test_interval_by_hand():
    # two speakers, one always right, one always wrong: a draw has 0, 1 or 2 of the right one
    truth, said = [0, 0, 0, 0], [0, 0, 1, 1]
    low, high = metrics.uar_interval(truth, said, [*"aabb"], generator=np.random.default_rng(0))
    assert (low, high) == (0, 100)
    # clips of one speaker are not independent: the interval is wider than over clips
    draw = np.random.default_rng(1)
    speakers = np.repeat(np.arange(10), 50)
    right = draw.random(500) < np.where(speakers < 5, 0.95, 0.55)
    clustered = metrics.uar_interval(
        np.zeros(500), np.where(right, 0, 1), speakers, generator=np.random.default_rng(0)
    )
    singly = metrics.uar_interval(
        np.zeros(500), np.where(right, 0, 1), np.arange(500), generator=np.random.default_rng(0)
    )
    assert clustered[1] - clustered[0] > 2 * (singly[1] - singly[0])


def test_interval_over_seeds_by_hand():
    # every speaker is always right with one seed, always wrong with the other
    low, high = metrics.uar_interval(
        [0] * 8, [0] * 4 + [1] * 4, [*"abcd"] * 2, seeds=[0] * 4 + [1] * 4,
        generator=np.random.default_rng(0),
    )  # fmt: skip
    assert (low, high) == (50, 50)
    # a resample may miss a seed whose test clips come from other speakers; it does not count then
    bounds = metrics.uar_interval(
        [0, 0], [0, 1], [*"ab"], seeds=[0, 1], generator=np.random.default_rng(0)
    )
    assert bounds == (0, 100)


def test_gain_interval_by_hand():
    truth, speakers = [0] * 6, [*"aabbcc"]
    draw = np.random.default_rng

    def bounds(before, after):
        return metrics.uar_interval(truth, after, speakers, before=before, generator=draw(0))

    assert bounds([0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0]) == (0, 0)
    # all speakers gain one of two clips: no resample of speakers can say anything else ...
    assert bounds([0, 1, 0, 1, 1, 0], [0] * 6) == pytest.approx((50, 50))
    # ... even if they start from different heights
    assert bounds([0, 1, 1, 1, 0, 1], [0, 0, 0, 1, 0, 0]) == pytest.approx((50, 50))
    # one of three gains all, the others nothing: between none and three draws of it
    assert bounds([1] * 6, [0, 0, 1, 1, 1, 1]) == (0, 100)


@pytest.mark.parametrize(
    ("lost", "won", "p"), [(1, 8, 20 / 512), (0, 5, 2 / 32), (3, 3, 1), (0, 0, 1)]
)
def test_mcnemar_by_hand(lost, won, p):
    # lost: right before only; won: right after only; clips right or wrong in both do not count
    before = [0] * lost + [1] * won + [0, 0, 1]
    after = [1] * lost + [0] * won + [0, 0, 2]
    assert metrics.mcnemar([0] * len(before), before, after) == pytest.approx(p)


def test_p_of_several_seeds_by_hand():
    assert metrics.combine_p_values([0.03]) == 0.03
    assert metrics.combine_p_values([0.01, 0.04, 0.5]) == 0.08
    assert metrics.combine_p_values([0.6, 0.01, 0.7]) == 1


def test_confusion_by_hand():
    found = metrics.confusion(["a", "a", "b"], ["a", "b", "b"], ["b", "a"])
    assert found.loc["a"].to_dict() == {"b": 1, "a": 1}
    assert found.loc["b"].to_dict() == {"b": 1, "a": 0}


def test_scores_average_draws():
    rows = pd.DataFrame(
        {
            "run": "r", "model": "nature", "round": 1, "attack": "none", "condition": "randomised",
            "draw": [0, 0, 1, 1], "speaker": [*"abab"], "y_true": [*"xyxy"], "y_pred": [*"xyyy"],
        }
    )  # fmt: skip
    found = metrics.scores(rows, intervals=True).iloc[0]
    assert (found["uar"], found["n"], found["draws"]) == (75, 2, 2)
    assert found["ci_low"] <= 75 <= found["ci_high"]


def test_uar_by_group_by_hand():
    rows = pd.DataFrame(
        {"attack": ["a", "a", "b", "b"], "value": [None] * 4, "y_true": [0, 1, 0, 1],
         "y_pred": [0, 0, 0, 1]}
    )  # fmt: skip
    found = metrics.uar_by(rows, ["attack", "value"])
    assert found["uar"].tolist() == [50, 100]
    assert found["n"].tolist() == [2, 2]


def test_the_worst_case_by_hand():
    rows = pd.DataFrame(
        {"index": [0, 1, 2] * 2, "attack": ["a"] * 3 + ["b"] * 3, "y_true": [5, 6, 7] * 2,
         "value": [1.0, 1.0, 1.0, None, None, None], "y_pred": [5, 0, 0, 5, 6, 1]}
    )  # fmt: skip
    worst = metrics.worst_case(rows)
    assert worst["index"].tolist() == [0, 1, 2]
    assert worst["y_pred"].tolist() == [5, 0, 0]
    assert worst["attack"].tolist() == ["a", "a", "a"]
    assert metrics.uar(worst["y_true"], worst["y_pred"]) == pytest.approx(100 / 3)
