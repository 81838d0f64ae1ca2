"""Flower's strategies, each over the cohort: by hand, by name, and where they must refuse."""

import dataclasses

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp import strategy as flowers

from fedser_utils.core import devices, runs
from fedser_utils.core.errors import InputError
from fedser_utils.core.presets import load_settings
from fedser_utils.core.settings import STRATEGIES
from fedser_utils.federated import client_app, server_app, strategies
from fedser_utils.federated.grids import cohort, cohort_trainer
from fedser_utils.federated.strategies import RoundError, make_strategy
from fedser_utils.learning.local_training import Update

VALUES = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 9.0, "e": 2.5, "f": 3.0, "g": 2.2}
SPREAD = {"running_var": 0.5}


@pytest.fixture
def pool():
    with devices.worker_pool("cpu") as pool:
        yield pool


@pytest.fixture
def grid(monkeypatch, tiny, pool):
    """``grid(preaggregate, n)``: n clients that move every weight to their own value, and a
    variance to half of it; one clip each."""

    def fit(settings, client, clips, weights, number, optimiser, **others):
        found = {
            name: torch.full_like(value, VALUES[client] * SPREAD.get(name, 1.0))
            for name, value in weights.items()
        }
        return Update(found, {}, loss=0.5)

    for module in (cohort_trainer, client_app):
        monkeypatch.setattr(module, "fit", fit)
        monkeypatch.setattr(
            module, "client_clips", lambda *who: (torch.zeros(1, 1), torch.zeros(1))
        )
    names = type("Names", (), {"clients": [*VALUES]})
    monkeypatch.setattr(client_app, "load_federation", lambda settings: names)

    def make(preaggregate, n=7):
        settings = dataclasses.replace(tiny, client_state="reset")
        trainer = cohort_trainer.Trainer(settings, [*VALUES][:n], [1] * n, pool=pool)
        return cohort.CohortGrid(trainer, preaggregate=preaggregate)

    return make


def made(name, **options):
    defaults = {"first_round": 0, "seed": 0, "min_replies": 0.01, "buffers": ["running_var"]}
    return make_strategy(name, **(defaults | options))


def arrays(value=0.0):
    zero, one = np.full(3, value, np.float32), np.ones(2, np.float32)
    return ArrayRecord({"w": Array(zero), "running_var": Array(one)})


def rounds(made, grid, count=1):
    """The weight, the variance, and how many were asked, after some rounds."""
    record = arrays()
    for number in range(1, count + 1):
        messages = made.configure_train(number, record, ConfigRecord(), grid)
        record, _ = made.aggregate_train(number, grid.send_and_receive(messages))
    return float(record["w"].numpy()[0]), float(record["running_var"].numpy()[0])


OPTIONS = {
    "FedProx": {"proximal_mu": 0.1},
    "FedAvgM": {"server_learning_rate": 0.5, "server_momentum": 0.5},
    "FedTrimmedAvg": {"beta": 0.2},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 1},
}
MEAN = float(np.mean([*VALUES.values()]))
BY_HAND = {
    "FedAvg": MEAN,
    "FedProx": MEAN,
    "FedAvgM": 0.5 * MEAN,
    "FedMedian": 2.5,
    "FedTrimmedAvg": float(np.mean([2.0, 2.2, 2.5, 3.0, 4.0])),
    "Krum": 2.2,  # its four nearest are at 0.3, 0.2, 0.8 and 1.2
    # Flower corrects the first round's bias as if it were the second
    "FedAdam": 0.1 * (1 - 0.99**2) ** 0.5 / (1 - 0.9**2) * (0.1 * MEAN) / (0.1 * MEAN + 1e-3),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_flowers_own_and_runs(grid, name):
    built = made(name, **OPTIONS.get(name, {}))
    assert isinstance(built, getattr(flowers, name))
    weight, variance = rounds(built, grid(name in strategies.PREAGGREGATED))
    assert 0 < weight < 9
    assert variance > 0
    if name in BY_HAND:
        assert weight == pytest.approx(BY_HAND[name], rel=1e-5)


@pytest.mark.parametrize("name", strategies.PREAGGREGATED)
def test_what_needs_only_the_mean_gets_the_same_from_all_replies(grid, name):
    options = OPTIONS.get(name, {})
    one, all_replies = (rounds(made(name, **options), grid(how), 3) for how in (True, False))
    assert one == pytest.approx(all_replies, abs=1e-5)


@pytest.mark.parametrize("name", ["FedMedian", "FedTrimmedAvg", "Krum"])
def test_the_others_would_be_wrong_with_one_reply(grid, name):
    """Flower takes it without an error: hence the allow-list."""
    options = OPTIONS.get(name, {}) | ({"num_malicious_nodes": 0} if name == "Krum" else {})
    wrong, _ = rounds(made(name, **options), grid(True))
    assert wrong == pytest.approx(MEAN)
    assert name not in strategies.PREAGGREGATED


@pytest.mark.parametrize("name", ["FedAdam", "FedYogi", "FedAvgM"])
def test_server_optimisers_leave_variances_alone(grid, name):
    """At Flower's default settings, over many rounds."""
    built = made(name, **OPTIONS.get(name, {}))
    _, variance = rounds(built, grid(True), 20)
    assert variance == pytest.approx(0.5 * MEAN)
    state = strategies.strategy_state(built)
    assert state
    assert not any("running_var" in key for key in state)
    assert all(value.shape == (3,) for value in state.values())


@pytest.mark.parametrize("name", ["FedAdam", "FedYogi", "FedAvgM"])
def test_a_server_optimiser_goes_on_where_it_was(grid, name):
    options = OPTIONS.get(name, {})
    whole = rounds(made(name, **options), grid(True), 4)
    first = made(name, **options)
    weight, variance = rounds(first, grid(True), 2)
    second = made(name, first_round=2, **options)
    strategies.restore_strategy(second, strategies.strategy_state(first))
    record = ArrayRecord(
        {"w": Array(np.full(3, weight, np.float32)),
         "running_var": Array(np.full(2, variance, np.float32))}
    )  # fmt: skip
    network = grid(True)
    for number in (1, 2):
        messages = second.configure_train(number, record, ConfigRecord(), network)
        record, _ = second.aggregate_train(number, network.send_and_receive(messages))
    assert float(record["w"].numpy()[0]) == pytest.approx(whole[0], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "clients", "needs"), [("Krum", 4, 5), ("MultiKrum", 4, 5), ("Bulyan", 6, 7)]
)
def test_too_few_clients_for_a_byzantine_strategy(grid, name, clients, needs):
    text = rf"round 1: {name} with num_malicious_nodes 1 needs {needs} replies, {clients} came"
    with pytest.raises(RoundError, match=text):
        rounds(made(name, num_malicious_nodes=1), grid(False, clients))


def test_sampled_clients_are_the_runs_own(grid):
    """The same clients for the same seed, whatever Python's generator did before."""

    def asked(seed):
        built, network = made("FedAvg", fraction_train=0.5, seed=seed), grid(True)
        found = []
        for number in range(1, 6):
            messages = built.configure_train(number, arrays(), ConfigRecord(), network)
            found.append(sorted(message.metadata.dst_node_id for message in messages))
        return found

    one = asked(1)
    assert all(len(nodes) == 3 for nodes in one)
    assert len({tuple(nodes) for nodes in one}) > 1
    assert one == asked(1) != asked(2)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"strategy": "FedSGD"}, "strategy 'FedSGD' is unknown; choose from FedAvg, FedProx"),
        ({"eta": 0.1}, "eta belongs to FedAdam, FedYogi, not to strategy FedAvg"),
        ({"strategy": "Krum", "beta": 0.1}, "beta belongs to FedTrimmedAvg, not to"),
        (
            {"strategy": "FedTrimmedAvg", "beta": 0.5},
            r"beta 0\.5 must be a number >= 0 and <= 0\.49",
        ),
        (
            {"runtime": "deployment", "split": "speaker_independent"},
            "split 'speaker_independent' .* choose speaker_dependent",
        ),
        ({"fraction_train": 0}, r"fraction_train 0 must be a number > 0"),
    ],
    ids=str,
)
def test_settings_are_refused_in_one_line(given, text):
    with pytest.raises(InputError, match=text):
        load_settings("smoke", **given)


def test_a_strategys_settings_reach_it():
    settings = load_settings("smoke", strategy="FedYogi", eta=0.02, tau=0.01)
    assert settings.strategy_options == {"eta": 0.02, "tau": 0.01}
    built = made("FedYogi", **settings.strategy_options)
    assert (built.eta, built.tau, built.beta_1) == (0.02, 0.01, 0.9)


@pytest.mark.parametrize("name", ["FedYogi", pytest.param("FedMedian", marks=pytest.mark.long)])
def test_a_strategy_trains_a_model(tiny, tmp_path, name):
    """End to end: finite weights, no negative variance, and every client's reply used."""
    settings = dataclasses.replace(tiny, strategy=name, attack="fgsm", outputs=str(tmp_path))
    run = server_app.train(settings)
    weights = runs.load_model(run)
    assert all(np.isfinite(value).all() for value in weights.values())
    assert min(v.min() for k, v in weights.items() if k.endswith("running_var")) >= 0
    assert (run.table("rounds")["clients_replied"] == 3).all()
