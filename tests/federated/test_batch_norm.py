"""What becomes of batch normalisation in a federation: averaged, local, taken anew, or none."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from wire import Wire

from fedser_utils.attacks import predictions
from fedser_utils.core import runs
from fedser_utils.core.errors import InputError
from fedser_utils.core.seeding import generator
from fedser_utils.data.client_data import write_client_folders
from fedser_utils.federated import server_app
from fedser_utils.federated.client import learning_rate_in, new_model
from fedser_utils.federated.grids import remote
from fedser_utils.learning import batch_norm, vgg


def arrays_of(run):
    return {k: torch.from_numpy(v) for k, v in runs.load_model(run).items()}


def statistics_of(arrays):
    return {name: value for name, value in arrays.items() if ".running_" in name}


@pytest.fixture(scope="module")
def local(tiny, tmp_path_factory):
    """A run of two rounds whose clients keep their batch norm."""
    outputs = str(tmp_path_factory.mktemp("local"))
    settings = dataclasses.replace(tiny, batch_norm="local", attack_every=2, outputs=outputs)
    return server_app.train(settings)


def test_groups_divide_the_channels():
    assert [vgg.num_groups(c) for c in (2, 4, 8, 16, 24, 33, 64, 128, 512)] == [
        1, 1, 1, 2, 2, 1, 8, 16, 32
    ]  # fmt: skip


def test_group_norm_looks_at_one_clip_at_a_time(tiny):
    model = vgg.build(3, width=1 / 8, norm="group", generator=generator(0))
    assert not [*model.buffers()]
    assert batch_norm.batch_norm_names(model) == []
    x = torch.randn(4, 1, 64, 64, generator=generator(1))
    model.train()
    torch.testing.assert_close(model(x)[:1], model(x[:1]))
    torch.testing.assert_close(vgg.fold_batch_norm(model)(x), model.eval()(x))


def test_clips_give_their_own_statistics():
    model = vgg.build(3, width=1 / 16, generator=generator(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = 3 + torch.randn(8, 1, 64, 64, generator=generator(1))
    found = batch_norm.batch_statistics(model, x, batch_size=8)
    seen = model.features[0](x)
    torch.testing.assert_close(found["features.1.running_mean"], seen.mean((0, 2, 3)))
    torch.testing.assert_close(found["features.1.running_var"], seen.var((0, 2, 3)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_pooled_statistics_are_those_of_all_clips():
    values = torch.randn(300, generator=generator(0)) + torch.arange(300) / 50
    parts = values.split([200, 100])
    found = [
        ({"a.running_mean": p.mean()[None], "a.running_var": p.var(correction=0)[None]}, len(p))
        for p in parts
    ]
    pooled = batch_norm.pooled_statistics(found)
    torch.testing.assert_close(pooled["a.running_mean"], values.mean()[None])
    torch.testing.assert_close(pooled["a.running_var"], values.var(correction=0)[None])


def test_what_is_local_never_leaves(tiny, federation, local):
    """The server's batch norm is what it began with; every client's is another; the decisions
    are of each client's own model."""
    begin = vgg.state_arrays(new_model(tiny, len(federation.classes)))
    end, names = arrays_of(local), batch_norm.batch_norm_names(vgg.load(local, client="01"))
    assert all(torch.equal(end[name], begin[name]) for name in names)
    assert not torch.equal(end["features.0.weight"], begin["features.0.weight"])
    own = runs.load_arrays(local.folder / vgg.LOCAL_ARRAYS_FILE)
    assert {name.split("/")[0] for name in own} == set(federation.clients)
    assert len(own) == len(names) * 3
    last = local.table("predictions").query("round == 2 and condition == 'original'")
    for client in federation.clients:
        table = federation.table("test", client)
        x, _ = federation.tensors(table)
        said = np.array(federation.classes)[predictions(vgg.load(local, client=client), x)]
        assert list(said) == list(last.set_index("clip").loc[table["clip"], "y_pred"])
    with pytest.raises(InputError, match=r"has no one model: .* give a client of 01, 02, 03"):
        vgg.load(local)


def test_local_batch_norm_goes_on_after_a_crash(local, tmp_path):
    """From the checkpoint of the first round, bit for bit."""
    again = dataclasses.replace(local.settings, outputs=str(tmp_path))
    folder = tmp_path / local.id
    shutil.copytree(local.folder, folder)
    (folder / "model.safetensors").unlink()
    shutil.rmtree(folder / "checkpoint" / "round-000002", ignore_errors=True)
    newest = sorted(path.name for path in (folder / "checkpoint").glob("round-*"))
    assert newest == ["round-000001"]
    assert_equal(local, server_app.train(again))


def test_local_batch_norm_with_all_replies_handed_over(tiny, tmp_path):
    """One round: the clients are the same to the bit, and their means as float32 rounds a sum of
    three (no mean here reaches 16)."""
    settings = dataclasses.replace(tiny, batch_norm="local", rounds=1)
    one, all_ = (
        server_app.train(
            dataclasses.replace(settings, outputs=str(tmp_path / name)), preaggregate=p
        )
        for name, p in (("one", True), ("all", False))
    )
    assert_equal(one, all_, atol=2 * (3 + 2) * 16 * np.finfo(np.float32).eps / 2)


def assert_equal(one, other, atol=0.0):
    """The arrays of two runs and of their clients; atol: of the former, which are means."""
    own, theirs = (runs.load_arrays(run.folder / vgg.LOCAL_ARRAYS_FILE) for run in (one, other))
    for these, those, far in ((arrays_of(one), arrays_of(other), atol), (own, theirs, 0)):
        assert these.keys() == those.keys()
        for name, value in these.items():
            assert np.abs(np.asarray(value)).max() < 16 or not far
            np.testing.assert_allclose(value, those[name], rtol=0, atol=far, err_msg=name)


def test_statistics_are_taken_anew_of_the_averaged_model(tiny, federation, tmp_path):
    settings = dataclasses.replace(
        tiny, batch_norm="reestimate", attack_every=2, outputs=str(tmp_path)
    )
    run = server_app.train(settings)
    model = vgg.load(run)
    parts = []
    for client in federation.clients:
        x, _ = federation.tensors(federation.table("train", client))
        parts.append((batch_norm.batch_statistics(model, x), len(x)))
    end = statistics_of(arrays_of(run))
    for name, value in batch_norm.pooled_statistics(parts).items():
        torch.testing.assert_close(end[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["local", "reestimate"])
def test_a_deployment_does_the_same(tiny, federation, tmp_path, monkeypatch, how):
    """With standardisation by each client alone, too: what the cohort ends with, and its UAR."""
    monkeypatch.setattr(remote, "POLL", 0.01)
    common = {"batch_norm": how, "standardisation": "client", "level": "rms", "attack_every": 2}
    cohort = dataclasses.replace(tiny, outputs=str(tmp_path / "cohort"), **common)
    one = server_app.train(cohort, preaggregate=False)  # averaged as on a server, so bit for bit
    settings = dataclasses.replace(
        cohort, runtime="deployment", outputs=str(tmp_path / "server"), timeout=60.0
    )
    wire = Wire(
        json.dumps(settings.values()),
        write_client_folders(federation.corpus, tmp_path / "own"),
        tmp_path,
    )
    told = {"settings": json.dumps(settings.values())}
    server_app.server_app(wire, Context(1, 1, {}, RecordDict(), told))
    (two,) = runs.find_runs(settings.outputs, settings.study)
    mine, theirs = arrays_of(one), arrays_of(two)
    for name, value in mine.items():
        if not name.startswith("standardisation."):
            np.testing.assert_array_equal(theirs[name], value, err_msg=name)
    original = [run.table("rounds").query("condition == 'original'")["uar"] for run in (one, two)]
    assert original[0].tolist() == original[1].tolist()
    assert not (two.folder / vgg.LOCAL_ARRAYS_FILE).exists()  # it is with the clients


def test_the_rate_falls_from_round_to_round(tiny):
    settings = dataclasses.replace(tiny, learning_rate=1e-2, learning_rate_decay=0.1)
    rates = [learning_rate_in(settings, number) for number in (1, 2, 3)]
    assert rates == pytest.approx([1e-2, 1e-3, 1e-4])


def test_attacks_may_be_evaluated_less_often(tiny, tmp_path):
    settings = dataclasses.replace(
        tiny, rounds=3, attack_every=2, attack="fgsm", outputs=str(tmp_path)
    )
    rounds = server_app.train(settings).table("rounds")
    seen = rounds.groupby("round")["attack"].agg(set).map(sorted)
    assert seen[1] == ["none"]
    assert seen[2] == seen[3] == ["fgsm", "none"]
