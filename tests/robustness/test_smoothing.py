"""Certificates by hand, and against an attacker."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from fedser_utils import attacks
from fedser_utils.analysis import metrics
from fedser_utils.robustness import smoothing

SIGMA = 0.5


def linear(x):
    """Two classes, divided where the mean of the pixels, times 20, is 0: the L2 distance of an
    image from there is 20 times its mean (400 pixels)."""
    distance = 20 * x.flatten(1).mean(1)
    return torch.stack([distance, -distance], 1)


def test_a_linear_models_radius_is_the_distance_to_its_boundary():
    distance = torch.tensor([0.0, 0.3, 0.6, -0.6])
    x = (distance / 20)[:, None, None, None] * torch.ones(4, 1, 20, 20)
    rows = smoothing.certify(linear, x, sigma=SIGMA, choosing=50, samples=4000, seed=0)
    assert rows["y_pred"].tolist()[1:] == [0, 0, 1]
    assert (rows["radius"] <= distance.abs().numpy() + 1e-6).all()
    assert rows["radius"].iloc[2] > 0.5


def test_the_bound_is_clopper_and_pearsons():
    certain = torch.full((1, 1, 20, 20), 1.0)
    rows = smoothing.certify(linear, certain, sigma=SIGMA, choosing=5, samples=100, seed=0)
    expected = SIGMA * norm.ppf(0.001 ** (1 / 100))  # all of 100 votes
    assert rows["radius"].item() == pytest.approx(expected)


def test_it_abstains_where_the_votes_are_divided():
    x = torch.zeros(3, 1, 20, 20)
    rows = smoothing.certify(linear, x, sigma=SIGMA, choosing=5, samples=50, seed=0)
    assert rows["y_pred"].eq(smoothing.ABSTAINS).all()
    assert rows["radius"].eq(0).all()


def test_no_attack_changes_a_certain_decision_within_its_radius(trained):
    model, x, _ = trained
    x = x[:8]
    options = {"sigma": SIGMA, "choosing": 10, "samples": 60, "seed": 0}
    rows = smoothing.certify(model, x, **options)
    radius = torch.tensor(rows["radius"].tolist())
    assert (radius > 0).any()
    x_adv = attacks.pgd(model, x, epsilon=0.9 * radius, step_size=0.3 * radius, steps=5, norm="l2")
    votes = smoothing.votes(model, x_adv, sigma=SIGMA, samples=60, seed=1, stream="judge")
    sure = rows["radius"].to_numpy() > 0
    assert (votes.argmax(1) == rows["y_pred"])[sure].all()


def test_certified_uar_by_hand():
    rows = pd.DataFrame(
        {"model": "m", "y_true": [*"aabb"], "y_pred": [*"aaab"], "radius": [1.0, 3.0, 2.0, 4.0]}
    )
    found = metrics.certified_uar(rows, ["model"], points=5)
    assert found["value"].tolist() == [0, 1, 2, 3, 4]
    assert found["uar"].tolist() == [75, 50, 50, 25, 0]


def test_the_same_seed_gives_the_same_votes(trained):
    model, x, _ = trained
    options = {"sigma": SIGMA, "samples": 3, "stream": "s"}
    one, two, other = (smoothing.votes(model, x[:3], seed=s, **options) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert one.sum() == other.sum() == 9
