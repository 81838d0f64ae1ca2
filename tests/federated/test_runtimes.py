"""The same run in three places, with Flower's real processes on loopback; kills by SIGKILL.

    pytest -m runtimes        with the other tests that start Flower's processes

What a client may send or fail at is in ``test_remote``, without processes.
"""

import dataclasses
import threading
import time

import numpy as np
import pytest

from fedser_utils.analysis import metrics
from fedser_utils.core import devices, runs
from fedser_utils.core.errors import InputError
from fedser_utils.data.client_data import write_client_folders
from fedser_utils.data.federation import load_federation
from fedser_utils.federated import runtimes, server_app
from fedser_utils.federated.deployment import local
from fedser_utils.federated.strategies import RoundError

pytestmark = [pytest.mark.runtimes, pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def settings(tiny, tmp_path_factory):
    """Three rounds, evaluated after the last."""
    outputs = str(tmp_path_factory.mktemp("runtimes"))
    return dataclasses.replace(tiny, rounds=3, eval_every=3, outputs=outputs)


@pytest.fixture(scope="module")
def up(settings, tmp_path_factory):
    """A deployment that is up: a server, a gate, three clients."""
    folder = tmp_path_factory.mktemp("deployment")
    shares = write_client_folders(load_federation(settings).corpus, folder / "data")
    with local.local_deployment(folder, shares) as running:
        yield running


def against(up, settings, **changes):
    """The settings for a run against a deployment that is up."""
    there = {"superlink": up.connection.address, "certificates": str(up.keys)}
    there |= {"outputs": str(up.outputs), "runtime": "deployment"}
    return dataclasses.replace(settings, **(there | changes))


def cohort(settings, **options):
    """The run in this process, with one torch thread."""
    with devices.worker_pool("cpu") as pool:
        return pool.submit(server_app.train, settings, preaggregate=False, **options).result()


def differ(one, two):
    one, two = runs.load_model(one), runs.load_model(two)
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max()) for name in one)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a notebook's kernel


@pytest.mark.parametrize(
    ("attack", "last"), [("none", 2), ("fgsm", 2), ("pgd", 3), ("deepfool", 2)]
)
def test_three_runtimes_agree(settings, up, attack, last):
    """The first round is natural, the second trains on attacked clips, with kept optimisers."""
    settings = dataclasses.replace(settings, attack=attack, rounds=last, eval_every=last)
    here = cohort(settings)
    seen = []
    simulated = runtimes.train(
        dataclasses.replace(settings, runtime="simulation"), monitor=seen.append
    )
    deployed = runtimes.train(against(up, settings), monitor=seen.append)
    assert differ(here, simulated) <= 1e-6
    assert differ(here, deployed) <= 1e-6
    for run in (simulated, deployed):
        rounds = run.table("rounds")
        assert rounds["round"].unique() == [last]
        assert (rounds["clients_replied"] == 3).all()
        assert rounds["missing"].isna().all()
        assert (rounds["bytes_received"] > 0).all()
    assert [len(rounds) for rounds in seen][-1] == len(here.table("rounds"))
    uar = [run.table("rounds").set_index("condition")["uar"] for run in (here, simulated)]
    np.testing.assert_allclose(*uar)  # the same server evaluates
    others = deployed.table("predictions")
    assert len(others) == len(here.table("predictions"))
    again = runtimes.train(against(up, settings))  # complete: found, not trained
    assert again.id == deployed.id


def test_uar_agrees_beyond_these_conditions(settings, tmp_path):
    """One mean in this process against all replies on Ray, ten rounds: other rounding, the same
    recognition: of the clips with another fate about as many are won as lost, and they are few
    (n = 56)."""
    found = {}
    for runtime in ("cohort", "simulation"):
        own = dataclasses.replace(
            settings, runtime=runtime, speakers=4, clips=280, width=1 / 16, seconds=2.0,
            rounds=10, local_epochs=3, eval_every=10, outputs=str(tmp_path / runtime),
        )  # fmt: skip
        rows = runtimes.train(own).table("predictions")
        found[runtime] = rows[rows["condition"] == "original"].set_index("clip").sort_index()
    here, there = found.values()
    uar = [metrics.uar(rows["y_true"], rows["y_pred"]) for rows in (here, there)]
    right = [(rows["y_pred"] == rows["y_true"]).to_numpy().astype(int) for rows in (here, there)]
    change = right[1] - right[0]
    fates = np.abs(change).sum()
    print(uar, fates)
    assert min(uar) > 50
    assert abs(change.sum()) <= max(1, 4 * fates**0.5)
    assert fates <= 0.3 * len(here)


def in_background(settings):
    """Start a run; ``finish()`` waits for it and gives it, or raises what it raised."""
    found = {}

    def work():
        try:
            found["run"] = runtimes.train(settings)
        except BaseException as error:
            found["error"] = error

    thread = threading.Thread(target=work)
    thread.start()

    def finish():
        thread.join(600)
        assert not thread.is_alive()
        if "error" in found:
            raise found["error"]
        return found["run"]

    return finish


def wait_for(condition, what, timeout=240):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {timeout} s"
        time.sleep(0.3)


def test_a_supernode_is_killed_in_a_round_and_comes_back(settings, up):
    own = against(up, settings, rounds=8, eval_every=8, min_replies=0.5, timeout=25.0, seed=1)
    before = up.services.log("client-01").count("Receiving: train")
    finish = in_background(own)
    wait_for(
        lambda: up.services.log("client-01").count("Receiving: train") == before + 2, "round 2"
    )
    up.kill_node(1)
    assert not up.services.pids("client-01")
    up.start_node(1)
    up.wait_for_node(1)
    last = finish().table("rounds").iloc[-1]
    assert last["missing"].startswith("2: client-01 (no reply within 25 s)")
    assert "8: " not in last["missing"]
    assert last["clients_replied"] == 3
    assert "client-00" not in last["missing"]


def test_the_server_is_killed_and_goes_on_from_its_checkpoint(settings, up):
    """With the clients' optimiser states from their disks: the weights of a run in one go."""
    own = against(up, settings, rounds=4, eval_every=4, checkpoint_every=1, seed=2, attack="fgsm")
    folder = up.outputs / runs.run_name(own, runs.DEPLOYED)
    finish = in_background(own)
    wait_for(lambda: (folder / "checkpoint" / "round-000002").exists(), "round 2's checkpoint")
    up.services.kill("superlink")
    assert not up.services.pids("superlink")
    with pytest.raises((RoundError, InputError)):
        finish()
    assert not (folder / "model.safetensors").exists()
    up.start_server()
    up.services.wait_for_port("superlink", up.port)
    resumed = runtimes.train(own)
    outputs = str(up.outputs / "whole")
    whole = cohort(dataclasses.replace(settings, rounds=4, eval_every=4, seed=2, attack="fgsm",
                                       outputs=outputs))  # fmt: skip
    assert differ(whole, resumed) <= 1e-6


def test_a_server_that_is_not_there_is_refused_in_one_line(settings, up, tmp_path):
    away = against(up, settings, superlink=f"127.0.0.1:{local.free_port()}", seed=3)
    with pytest.raises(InputError, match=r"^superlink '127\.0\.0\.1:\d+'.*") as refusal:
        runtimes.train(away)
    assert "\n" not in str(refusal.value)
    nothing = against(up, settings, certificates=str(tmp_path), seed=3)
    with pytest.raises(InputError, match=r"certificates '.*' holds no ca\.crt"):
        runtimes.train(nothing)
