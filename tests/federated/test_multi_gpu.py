"""Clients over several processes, with gloo on this CPU: the same round as in one."""

import dataclasses
import multiprocessing
import os

import pytest
import torch

from fedser_utils.core.devices import worker_pool
from fedser_utils.federated import server_app
from fedser_utils.federated.client import new_model
from fedser_utils.federated.grids import multi_gpu
from fedser_utils.federated.grids.cohort_trainer import Trainer
from fedser_utils.learning import vgg

TWO = ["cpu", "cpu"]


@pytest.fixture(scope="module")
def pool():
    with worker_pool("cpu") as made:
        yield made


@pytest.fixture
def who(tiny, federation):
    """Settings, clients and their clips, for a trainer."""
    settings = dataclasses.replace(tiny, attack="fgsm")
    examples = [len(federation.table("train", client)) for client in federation.clients]
    return settings, federation.clients, examples


@pytest.fixture
def weights(tiny, federation):
    return vgg.state_arrays(new_model(tiny, len(federation.classes)))


def close(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert (value - other[name]).abs().max() <= 1e-5, name


@pytest.mark.long
def test_two_processes_train_as_one_does(who, weights, pool):
    """Two rounds, the second adversarial and with kept optimisers; one of sampled clients; then
    all that was kept goes to new processes."""
    alone = Trainer(*who, pool=pool)

    def both(made, nodes, number):
        given = {"number": number, "proximal_mu": 0.0}
        one, other = (t.round(nodes, weights, **given) for t in (alone, made))
        assert other.measures() == pytest.approx(one.measures())
        close(one.mean(), other.mean())

    with multi_gpu.make_trainer(*who, pool=pool, devices=TWO) as made:
        assert sorted(made.rank_of.values()) in ([0, 0, 1], [0, 1, 1])
        both(made, [1, 2, 3], 1)
        both(made, [1, 2, 3], 2)
        both(made, [2], 3)
        kept, expected = made.states(), alone.states()
    assert not multiprocessing.active_children()
    assert kept.keys() == expected.keys()
    for node, state in expected.items():
        assert all((kept[node][name] == value).all() for name, value in state.items())
    with multi_gpu.make_trainer(*who, pool=pool, devices=TWO) as made:
        made.restore(kept)
        both(made, [1, 2, 3], 4)


@pytest.mark.long
def test_a_process_that_fails_ends_the_round_and_is_named(who, weights, pool):
    settings = dataclasses.replace(who[0], engine="fast")
    weights = {name: v for name, v in weights.items() if name != "classifier.2.bias"}

    def one_round():
        with multi_gpu.make_trainer(settings, *who[1:], pool=pool, devices=TWO) as made:
            made.round([1, 2, 3], weights, number=1, proximal_mu=0.0)

    with pytest.raises(RuntimeError, match="device cpu: KeyError"):
        one_round()
    assert not multiprocessing.active_children()


@pytest.mark.long
def test_a_run_over_two_processes(tiny, tmp_path, monkeypatch):
    """With everything around it: strategies, checkpoints, the same weights."""
    settings = dataclasses.replace(tiny, outputs=str(tmp_path / "one"))
    one = server_app.train(settings)
    monkeypatch.setattr(multi_gpu, "_devices", lambda settings: TWO)
    other = server_app.train(dataclasses.replace(settings, outputs=str(tmp_path / "two")))
    here, there = vgg.load(one).state_dict(), vgg.load(other).state_dict()
    close(here, there)
    assert (other.folder / "checkpoint").is_dir()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_named_gpu_is_used_alone(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    named = {"auto": ["cuda:0", "cuda:1"], "cuda": ["cuda:0", "cuda:1"], "cuda:1": [], "cpu": []}
    for device, devices in named.items():
        assert multi_gpu._devices(dataclasses.replace(tiny, device=device)) == devices
    assert multi_gpu._devices(dataclasses.replace(tiny, device="cuda", engine="plain")) == []
