"""Interventions are changes of settings: relative ones by hand, and each made of each strategy."""

import dataclasses

import pytest

from fedser_utils.analysis.heterogeneity import interventions
from fedser_utils.core.errors import InputError
from fedser_utils.core.presets import load_settings
from fedser_utils.core.settings import STRATEGIES


@pytest.fixture(scope="module")
def settings():
    return load_settings("smoke", rounds=11, local_epochs=3, learning_rate=1e-3)


def test_an_intervention_changes_what_it_says_and_nothing_else(settings):
    assert interventions.changes(settings, "as given") == {}
    assert interventions.changes(settings, "kept optimiser state") == {}
    assert interventions.changes(settings, "more local epochs") == {"local_epochs": 6}
    assert interventions.changes(settings, "half of the clients") == {"fraction_train": 0.5}
    assert interventions.changes(settings, "smaller learning rate")[
        "learning_rate"
    ] == pytest.approx(3e-4)
    assert interventions.changes(settings, "FedProx") == {
        "strategy": "FedProx",
        "proximal_mu": 0.01,
    }
    assert interventions.changes(settings, "standardised per client") == {
        "standardisation": "client"
    }


def test_a_decaying_rate_ends_at_a_tenth(settings):
    decay = interventions.changes(settings, "decaying learning rate")["learning_rate_decay"]
    assert decay**10 == pytest.approx(0.1)  # from round 1 to round 11
    one = dataclasses.replace(settings, rounds=1)
    assert interventions.changes(one, "decaying learning rate")["learning_rate_decay"] == 0.1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_leaves_nothing_behind(settings, strategy):
    options = {name: 1 if "num" in name else 0.4 for name in STRATEGIES[strategy]}
    before = dataclasses.replace(settings, strategy=strategy, **options)
    for name in ("FedProx", "FedAvgM", "FedAdam"):
        after = interventions.apply(before, name)
        assert after.strategy == name
        foreign = set(STRATEGIES[strategy]) - set(STRATEGIES[name])
        assert all(getattr(after, option) is None for option in foreign)


def test_unknown_or_impossible_interventions_are_refused(settings):
    with pytest.raises(
        InputError, match="intervention 'prayer' is unknown; choose from as given, "
    ):
        interventions.apply(settings, "prayer")
    grouped = dataclasses.replace(settings, norm="group")
    with pytest.raises(InputError, match="needs norm batch"):
        interventions.apply(grouped, "local batch norm")


def test_applicable_are_those_that_change_something(settings):
    found = interventions.applicable(settings)
    assert found[0] == "as given"
    assert "optimiser state reset" in found
    assert "kept optimiser state" not in found
    reset = interventions.applicable(
        dataclasses.replace(settings, client_state="reset", norm="group")
    )
    assert "kept optimiser state" in reset
    assert not {"optimiser state reset", "group norm", "local batch norm"} & set(reset)
    aimed = {name for names in interventions.AGAINST.values() for name in names}
    assert aimed <= set(interventions.INTERVENTIONS)


def test_runs_are_recognised_by_their_settings(settings):
    made = {
        name: interventions.apply(settings, name) for name in interventions.applicable(settings)
    }
    for name, own in made.items():
        other = dataclasses.replace(own, seed=7, device="cpu", attack="pgd")
        assert interventions.recognise(settings, other) == name
    assert interventions.recognise(settings, dataclasses.replace(settings, rounds=12)) is None
    assert interventions.find_baseline(list(made.values())[::-1]) == settings
    with pytest.raises(InputError, match="no settings"):
        interventions.find_baseline([])


def test_in_words(settings):
    changed = {"eta": 0.01, "strategy": "FedAdam", "proximal_mu": None}
    assert interventions.describe(changed) == "eta 0.01, strategy FedAdam"
