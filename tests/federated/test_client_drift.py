"""Drift and batch statistics: angles by hand, and a real round of a tiny federation."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from fedser_utils.core import checkpoints, runs
from fedser_utils.federated import client_drift
from fedser_utils.federated.client import fit, new_model
from fedser_utils.learning import batch_norm, vgg


@pytest.fixture(scope="module")
def mixed(federation):
    """The tiny federation as two corpora, two clients of one and one of the other, of few clips."""
    names = {client: "one" if place < 2 else "two" for place, client in
             enumerate(federation.clients)}  # fmt: skip
    clips = federation.clips.assign(language="", corpus=federation.clips["client"].map(names))
    clips = clips.groupby(["client", "split"]).head(8)
    return dataclasses.replace(federation, clips=clips)


@pytest.fixture(scope="module")
def model(tiny, federation):
    return new_model(tiny, len(federation.classes))


def test_angles_by_hand():
    updates = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    found = client_drift._cosines(updates @ updates.T, pd.Series([2, 1, 1]), pd.Series([*"aab"]))
    mean = np.array([0.75, 0.75])  # of 2, 1 and 1 examples
    towards = updates @ mean / np.linalg.norm(updates, axis=1) / np.linalg.norm(mean)
    np.testing.assert_allclose(found["cosine"], towards)
    np.testing.assert_allclose(found["inside"], [0, 0, np.nan])
    np.testing.assert_allclose(found["outside"], [np.sqrt(0.5)] * 3)


def test_a_round_that_is_not_aggregated(tiny, mixed, model):
    weights = {name: value.clone() for name, value in vgg.state_arrays(model).items()}
    before = {name: value.clone() for name, value in weights.items()}
    found = client_drift.drift(tiny, mixed, weights, round_number=1)
    assert all(torch.equal(weights[name], before[name]) for name in before)
    assert found["client"].tolist() == list(mixed.clients)
    assert found["corpus"].tolist() == ["one", "one", "two"]
    assert set(found["language"]) == {"unknown"}
    names = [name for name, _ in model.named_parameters()]
    x, y = mixed.tensors(mixed.table("train", mixed.clients[2]))
    update = fit(tiny, mixed.clients[2], (x, y), weights, 1, None)
    moved = torch.cat([(update.weights[n] - before[n]).reshape(-1) for n in names])
    start = torch.cat([before[n].reshape(-1) for n in names])
    row = found.iloc[2]
    assert row["distance"] == pytest.approx(float(moved.norm()), rel=1e-4)
    assert row["relative"] == pytest.approx(float(moved.norm() / start.norm()), rel=1e-4)
    assert (row["examples"], row["loss"]) == (len(y), pytest.approx(update.loss))
    assert found["cosine"].between(0, 1).all()
    assert found["inside"].isna().tolist() == [False, False, True]
    assert found["outside"].notna().all()


def test_proximity_holds_updates_back(tiny, mixed, model):
    weights = vgg.state_arrays(model)
    alone = dataclasses.replace(mixed, clients=mixed.clients[:1])
    free = dataclasses.replace(tiny, local_epochs=4)
    near = dataclasses.replace(free, strategy="FedProx", proximal_mu=100.0)
    far, held = (client_drift.drift(own, alone, weights, round_number=1) for own in (free, near))
    assert (held["distance"] < far["distance"]).all()
    assert far["outside"].isna().all()


def statistics(model, x, *, batch_size):
    """The first layer's own, by hand; the others as the model has them."""
    found = {k: v.clone() for k, v in vgg.state_arrays(model).items() if "running" in k}
    with torch.no_grad():
        seen = model.features[0](x)
    found["features.1.running_mean"] = seen.mean((0, 2, 3))
    found["features.1.running_var"] = seen.var((0, 2, 3))
    return found


def test_batch_norm_shift_by_hand(tiny, mixed, model, monkeypatch):
    monkeypatch.setattr(batch_norm, "batch_statistics", statistics)
    found = client_drift.batch_norm_shift(tiny, mixed, model, most=8)
    assert len(found) == 3 * 13
    assert list(dict.fromkeys(found["corpus"])) == ["all", "one", "two"]
    assert set(found["n"]) == {8}
    first = found[found["layer"] == 1].set_index("corpus")
    two = client_drift._even_sample(
        mixed.table("train")[lambda t: t["corpus"] == "two"], 8, tiny.seed
    )
    own = statistics(model, mixed.tensors(two)[0], batch_size=1)
    mean, var = own["features.1.running_mean"], own["features.1.running_var"]
    assert first.loc["two", "name"] == "features.1"
    assert first.loc["two", "mean_shift"] == pytest.approx(float(mean.abs().mean()), rel=1e-3)
    shift = float(((var + 1e-5) / (1 + 1e-5)).log().abs().mean())  # running: 0 and 1
    assert first.loc["two", "variance_shift"] == pytest.approx(shift, rel=1e-3)
    assert (found.loc[found["layer"] > 1, ["mean_shift", "variance_shift"]] == 0).all().all()


def test_batch_norm_shift_of_the_model_itself(tiny, mixed, model):
    before = {name: value.clone() for name, value in vgg.state_arrays(model).items()}
    found = client_drift.batch_norm_shift(tiny, mixed, model, most=8)
    assert np.isfinite(found[["mean_shift", "variance_shift"]]).all().all()
    assert (found["mean_shift"] > 0).any()
    assert all(torch.equal(before[n], v) for n, v in vgg.state_arrays(model).items())


def test_without_batch_norm_there_is_nothing_to_compare(tiny, mixed):
    plain = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.GroupNorm(1, 2))
    found = client_drift.batch_norm_shift(tiny, mixed, plain)
    assert found.empty
    assert "mean_shift" in found


def test_clips_are_taken_evenly():
    clips = pd.DataFrame({"client": [*"a" * 50, *"b" * 3, *"c" * 9]})
    found = client_drift._even_sample(clips, 12, 0)["client"].value_counts()
    assert found.to_dict() == {"a": 5, "c": 4, "b": 3} or found.to_dict() == {
        "a": 4,
        "c": 5,
        "b": 3,
    }
    assert len(client_drift._even_sample(clips, 100, 0)) == 62
    assert (
        client_drift._even_sample(clips, 12, 0).index.tolist()
        == client_drift._even_sample(clips, 12, 0).index.tolist()
    )


def test_what_clients_keep_is_found_by_client(federation, tmp_path):
    run = runs.Run(tmp_path, {})
    assert client_drift.saved_states(run, federation) == {}
    state = {"exp_avg/classifier.0.bias": np.ones(3, np.float32)}
    checkpoints.save(tmp_path / "checkpoint", 2, {"weights": {}, "client-2": state})
    found = client_drift.saved_states(run, federation)
    assert list(found) == [federation.clients[1]]
    assert torch.equal(found[federation.clients[1]]["exp_avg/classifier.0.bias"], torch.ones(3))
