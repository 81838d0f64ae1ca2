"""The federated loop: averages by hand, failures, resumption, and a real SIGKILL."""

import dataclasses
import json
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord

from fedser_utils.core import checkpoints, devices, runs
from fedser_utils.core.devices import hardware
from fedser_utils.core.seeding import generator
from fedser_utils.data.federation import load_federation
from fedser_utils.federated import client_app, server_app, strategies
from fedser_utils.federated.client import fit, new_model
from fedser_utils.federated.grids import cohort, cohort_trainer
from fedser_utils.federated.strategies import RoundError, make_strategy
from fedser_utils.learning import vgg
from fedser_utils.learning.local_training import Update, client_update


@pytest.fixture
def pool():
    with devices.worker_pool("cpu") as pool:
        yield pool


def strategy(name="FedAvg", **options):
    defaults = {"first_round": 0, "seed": 0, "min_replies": 1.0, "buffers": ()}
    return make_strategy(name, **(defaults | options))


def arrays(**values):
    return ArrayRecord({k: Array(np.asarray(v, np.float32)) for k, v in values.items()})


def grid_of(monkeypatch, settings, pool, replies, preaggregate):
    """A cohort whose clients answer with fixed weights: name -> (value, clips)."""

    def fit(settings, client, clips, weights, number, optimiser, **others):
        value = replies[client][0]
        if value is None:
            raise ValueError("disk lost")
        found = {k: torch.full_like(v, value) for k, v in weights.items()}
        return Update(found, {"step": torch.tensor(float(number))}, loss=value)

    def clips(settings, client, part):
        return torch.zeros(replies[client][1], 1), torch.zeros(replies[client][1])

    for module in (cohort_trainer, client_app):
        monkeypatch.setattr(module, "fit", fit)
        monkeypatch.setattr(module, "client_clips", clips)
    names = type("Names", (), {"clients": [*replies]})
    monkeypatch.setattr(client_app, "load_federation", lambda settings: names)
    counts = [count for _, count in replies.values()]
    trainer = cohort_trainer.Trainer(settings, [*replies], counts, pool=pool)
    return cohort.CohortGrid(trainer, preaggregate=preaggregate)


def one_round(made, grid, number=1, **weights):
    messages = made.configure_train(number, arrays(**weights), ConfigRecord(), grid)
    return made.aggregate_train(number, grid.send_and_receive(messages))


@pytest.mark.parametrize("preaggregate", [True, False])
def test_fedavg_by_hand(monkeypatch, tiny, pool, preaggregate):
    grid = grid_of(monkeypatch, tiny, pool, {"a": (1.0, 2), "b": (4.0, 1)}, preaggregate)
    averaged, measures = one_round(strategy(), grid, w=[0.0, 0.0])
    np.testing.assert_allclose(averaged["w"].numpy(), [2, 2])
    assert measures["train-loss"] == pytest.approx(2)
    assert grid.client_states()[2]["step"] == 1


@pytest.mark.parametrize("preaggregate", [True, False])
def test_a_client_that_fails_is_named_and_counted(monkeypatch, tiny, pool, preaggregate, caplog):
    replies = {"a": (1.0, 2), "bruno": (None, 1), "c": (4.0, 1)}
    grid = grid_of(monkeypatch, tiny, pool, replies, preaggregate)
    with pytest.raises(
        RoundError, match=r"1: 2 of 3 clients replied.*bruno: ValueError: disk lost"
    ):
        one_round(strategy(), grid, w=[0.0])
    assert "client bruno: ValueError" in caplog.text
    made = strategy(min_replies=0.6)
    averaged, _ = one_round(made, grid, w=[0.0])
    assert averaged["w"].numpy() == pytest.approx(2)  # as if bruno were not there
    assert (made.clients_asked, made.clients_replied) == (3, 2)
    none = grid_of(monkeypatch, tiny, pool, {"a": (None, 1), "b": (None, 1)}, preaggregate)
    with pytest.raises(RoundError, match="0 of 2"):
        one_round(strategy(min_replies=0.01), none, w=[0.0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_mean_equals_all_replies(tiny, federation, pool, precision):
    """Two rounds, the second with the optimisers of the first. A weighted sum of k clients in
    float32 rounds k products, k sums and a quotient: by at most k + 2 units of half an epsilon of
    the sum of its terms' sizes."""
    settings = dataclasses.replace(tiny, precision=precision)
    counts = examples_of(federation)
    grids = {
        way: cohort.CohortGrid(
            cohort_trainer.Trainer(settings, federation.clients, counts, pool=pool),
            preaggregate=way,
        )
        for way in (True, False)
    }
    model = new_model(settings, len(federation.classes))
    start = client_app.as_record(vgg.state_arrays(model))
    for number in (1, 2):
        means = {}
        for way, grid in grids.items():
            made = strategy()
            replies = grid.send_and_receive(
                made.configure_train(number, start, ConfigRecord(), grid)
            )
            every = [{k: v.numpy() for k, v in r.content["arrays"].items()} for r in replies]
            means[way], _ = made.aggregate_train(number, replies)
        assert len(every) == len(counts)
        for name in every[0]:
            terms = [np.float64(c) / sum(counts) * each[name] for c, each in zip(counts, every)]
            unit = (len(counts) + 2) * np.finfo(np.float32).eps / 2
            bound = unit * sum(map(np.abs, terms)) + np.finfo(np.float32).tiny
            for mean in means.values():
                assert (np.abs(mean[name].numpy() - sum(terms)) <= bound).all(), name
        start = means[True]


def examples_of(federation):
    return [len(federation.table("train", client)) for client in federation.clients]


def test_a_server_optimiser_leaves_the_variances_alone(monkeypatch, tiny, pool):
    """FedAdam moves the weight by its own step; the buffer is the plain mean of the clients'."""
    grid = grid_of(monkeypatch, tiny, pool, {"a": (0.1, 1), "b": (0.3, 1)}, True)
    made = strategy("FedAdam", buffers=["running_var"])
    averaged, _ = one_round(made, grid, w=[1.0], running_var=[1.0])
    assert averaged["running_var"].numpy() == pytest.approx(0.2)
    assert averaged["w"].numpy() != pytest.approx(0.2, abs=1e-3)
    assert set(strategies.strategy_state(made)) >= {"m_t/w", "v_t/w"}
    assert not any("running_var" in key for key in strategies.strategy_state(made))


def test_flowers_private_identity_is_where_we_expect_it():
    from flwr.supercore.task_identity import TaskIdentity

    assert {"run_id", "node_id", "task_id"} <= set(dir(type(TaskIdentity)))


def weights_of(run):
    return runs.load_model(run)


def assert_equal_weights(one, two):
    one, two = weights_of(one), weights_of(two)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, two[name], err_msg=name)


@pytest.fixture(scope="module")
def nature(tiny):
    seen = []
    run = server_app.train(tiny, monitor=lambda rounds: seen.append(len(rounds)))
    return run, seen


def test_a_run_leaves_tidy_rows(nature, federation):
    run, seen = nature
    rows = run.table("predictions")
    assert list(rows.columns) == runs.PREDICTIONS
    n = len(federation.table("test"))
    assert len(rows) == 2 * 8 * n  # rounds x (2 + 3 x 2) conditions x clips
    assert rows.groupby(["round", "attack", "condition"])["clip"].nunique().eq(n).all()
    assert set(rows["y_true"]) <= set(federation.classes)
    rounds = run.table("rounds")
    assert len(rounds) == 2 * 8
    assert (rounds["clients_replied"] == 3).all()
    assert rounds["train_loss"].between(0.5, 4).all()
    assert seen == [8, 16, 16]
    clips = run.table("clips")
    pd.testing.assert_series_equal(clips["split"], federation.clips["split"])
    assert (run.folder / "rejected.csv").exists()
    config = json.loads((run.folder / "config.json").read_text())
    assert config["device"] == devices.device_name("cpu")
    assert runs.hardware([run]) == hardware("cpu", bf16=False)
    assert not list(run.folder.rglob("*.pkl"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pooled_run_is_plain_training_on_all_clips(tiny, pool, precision):
    """One client: FedAvg's mean of its weights alone, and Adam goes on from round to round. The
    same arithmetic on one thread, so the same weights to the last bit."""
    settings = dataclasses.replace(tiny, clients="pooled", precision=precision, eval_every=2)
    run = server_app.train(settings)
    assert run.config["model"] == "centralised"
    data = load_federation(settings)
    x, y = data.tensors(data.table("train"))
    model = new_model(settings, len(data.classes))
    weights, adam = vgg.state_arrays(new_model(settings, len(data.classes))), None
    for number in range(1, settings.rounds + 1):
        update = pool.submit(
            client_update, model, weights, x, y,
            generator=generator(settings.seed, "round", number, "pooled"), epochs=1, batch_size=8,
            learning_rate=settings.learning_rate, optimiser=adam, bf16=precision == "bf16",
        ).result()  # fmt: skip
        mean = cohort_trainer.Total(like=weights)
        assert mean.add([update], [len(y)])
        for name, value in mean.mean().items():  # a product and a quotient
            torch.testing.assert_close(value, update.weights[name], rtol=2**-22, atol=1e-37)
        weights, adam = mean.mean(), update.optimiser
    stored = runs.load_model(run)
    for name, value in weights.items():
        np.testing.assert_array_equal(stored[name], value.numpy(), err_msg=name)


def test_a_complete_run_is_found_not_trained_again(nature, tiny, monkeypatch):
    monkeypatch.setattr(server_app, "run_rounds", None)
    assert server_app.train(tiny).id == nature[0].id


@pytest.mark.long
def test_the_result_does_not_depend_on_the_number_of_threads(nature, tiny, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        other = server_app.train(dataclasses.replace(tiny, outputs=str(tmp_path)))
    finally:
        torch.set_num_threads(before)
    assert_equal_weights(nature[0], other)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"attack": "pgd"}, id="pgd"),
        pytest.param({"attack": "pgd", "precision": "bf16"}, id="bf16", marks=pytest.mark.long),
        pytest.param({"strategy": "FedAdam"}, id="FedAdam", marks=pytest.mark.long),
        pytest.param({"client_state": "reset"}, id="reset", marks=pytest.mark.long),
    ],
)
def test_a_resumed_run_ends_with_the_same_weights(tiny, tmp_path, monkeypatch, change):
    settings = dataclasses.replace(tiny, rounds=3, **({"attack": "fgsm"} | change))
    whole = server_app.train(dataclasses.replace(settings, outputs=str(tmp_path / "whole")))
    settings = dataclasses.replace(settings, outputs=str(tmp_path / "broken"))

    def stop(*arguments):
        raise KeyboardInterrupt

    kept = server_app._Recorder.add
    monkeypatch.setattr(
        server_app._Recorder, "add", lambda log, n, *rest: stop() if n == 3 else kept(log, n, *rest)
    )
    with pytest.raises(KeyboardInterrupt):
        server_app.train(settings)
    monkeypatch.setattr(server_app._Recorder, "add", kept)
    started = []

    def recorded(settings, client, clips, weights, number, *others, **options):
        started.append(number)
        return fit(settings, client, clips, weights, number, *others, **options)

    monkeypatch.setattr(cohort_trainer, "fit", recorded)
    resumed = server_app.train(settings)
    assert set(started) == {3}
    assert_equal_weights(whole, resumed)
    columns = [c for c in runs.PREDICTIONS if c != "run"]
    one, two = whole.table("predictions")[columns], resumed.table("predictions")[columns]
    assert one.equals(two)


def test_decisions_that_a_kill_left_without_their_rounds_are_made_again(nature, tiny, tmp_path):
    """A kill between the writing of the first evaluation's two files, before any checkpoint."""
    run, _ = nature
    settings = dataclasses.replace(tiny, outputs=str(tmp_path))
    left = runs.open_run(settings, run.config["fingerprint"])
    whole = run.table("predictions")
    left.write("predictions.parquet", whole[whole["round"] == 1].assign(run=left.id))
    rows = server_app.train(settings).table("predictions")
    assert len(rows) == len(whole)
    assert not rows.duplicated(["round", "attack", "condition", "draw", "clip"]).any()


KILLED = """
import dataclasses, json, os, signal, sys
from fedser_utils.core import checkpoints
from fedser_utils.federated import server_app
from fedser_utils.core.settings import Settings
settings, where, when = Settings(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
calls = 0
def dying(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == when:
            if where == "save":  # half of the checkpoint's files are written
                function(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
if where == "save":
    checkpoints.save_file = dying(checkpoints.save_file)
elif where == "round":
    from fedser_utils.federated.grids import cohort_trainer
    cohort_trainer.fit = dying(cohort_trainer.fit)
server_app.train(settings)
"""


@pytest.mark.long
@pytest.mark.parametrize(("where", "when"), [("save", 7), ("round", 8)])
def test_a_killed_run_ends_with_the_same_weights(tiny, tmp_path, where, when):
    """SIGKILL in the middle of a checkpoint's files, or of a round; then the same command."""
    settings = dataclasses.replace(tiny, rounds=3, attack="fgsm", strategy="FedAdam")
    whole = server_app.train(dataclasses.replace(settings, outputs=str(tmp_path / "whole")))
    broken = dataclasses.replace(settings, outputs=str(tmp_path / "broken"))

    def start(where, when):
        arguments = [json.dumps(broken.values()), where, str(when)]
        command = [sys.executable, "-c", KILLED, *arguments]
        return subprocess.run(command, capture_output=True).returncode

    assert start(where, when) == -signal.SIGKILL
    folder = next((tmp_path / "broken").glob("*/checkpoint"))
    assert not (folder.parent / "model.safetensors").exists()
    assert checkpoints.load(folder)[0] in (1, 2)
    assert start("nowhere", 0) == 0
    resumed = runs.find_runs(tmp_path / "broken", "smoke")[0]
    assert_equal_weights(whole, resumed)
    assert resumed.table("rounds")["round"].tolist() == whole.table("rounds")["round"].tolist()
