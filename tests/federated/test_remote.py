"""Clients with recordings of their own: what the server learns, and every mishap, in one process.

``test_runtimes`` does the same with real processes over the network.
"""

import dataclasses
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict
from wire import Wire

from fedser_utils.analysis import tables
from fedser_utils.core import checkpoints, count_tables, devices, runs
from fedser_utils.core.front_end import SPEECH
from fedser_utils.data.client_data import load_client_data, write_client_folders
from fedser_utils.federated import server_app
from fedser_utils.federated.grids import remote
from fedser_utils.federated.strategies import RoundError
from fedser_utils.learning import vgg

MELS = SPEECH.bands


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(remote, "POLL", 0.01)
    monkeypatch.setattr(remote, "PATIENCE", 0.0)


@pytest.fixture(scope="session")
def shares(federation, outputs):
    return write_client_folders(federation.corpus, outputs / "shares")


@pytest.fixture
def deployed(tiny, tmp_path):
    return dataclasses.replace(
        tiny, runtime="deployment", outputs=str(tmp_path / "server"), timeout=0.2, min_replies=0.5,
        attack="fgsm",
    )  # fmt: skip


def start(settings, shares, folder, mishap=None, prepare=None):
    """Train over a wire. Returns the run and the wire."""
    wire = Wire(json.dumps(settings.values()), shares, folder)
    if mishap:
        wire.mishap = mishap
    if prepare:
        prepare(wire)
    told = {"settings": json.dumps(settings.values())}
    server_app.server_app(wire, Context(1, 1, {}, RecordDict(), told))
    return runs.find_runs(settings.outputs, settings.study)[-1], wire


def differ(one, two):
    one, two = runs.load_model(one), runs.load_model(two)
    return max(float(np.abs(one[name] - two[name]).max()) for name in one)


@pytest.fixture(scope="module")
def sound(tiny, shares, tmp_path_factory):
    """A run of two rounds in which nothing happens, and its wire."""
    settings = dataclasses.replace(
        tiny, runtime="deployment", outputs=str(tmp_path_factory.mktemp("server")), timeout=0.2,
        attack="fgsm",
    )  # fmt: skip
    return start(settings, shares, tmp_path_factory.mktemp("states"))


def test_shares_are_what_the_speakers_have(federation, shares):
    assert [share.name for share in shares] == ["client-00", "client-01", "client-02"]
    for share, client in zip(shares, federation.clients, strict=True):
        own = load_client_data(str(share), seed=0, cache=str(share.parent / "cache"))
        clips = federation.clips[federation.clips["client"] == client]
        assert own.client == client
        assert own.clips["clip"].tolist() == clips["clip"].tolist()
        assert own.clips["split"].tolist() == clips["split"].tolist()
        assert sum(train for train, _ in own.counts().values()) == len(
            federation.table("train", client)
        )


def test_the_same_weights_as_in_the_cohort(tiny, sound, tmp_path):
    settings = dataclasses.replace(tiny, outputs=str(tmp_path), attack="fgsm")
    with devices.worker_pool("cpu") as pool:
        cohort = pool.submit(server_app.train, settings, preaggregate=False).result()
    assert differ(cohort, sound[0]) <= 1e-6


def test_the_server_learns_shapes_sums_counts_and_metrics_only(sound, federation, tiny):
    _, wire = sound
    model = vgg.state_arrays(vgg.VGG15(7, width=tiny.width))
    shapes = {"packed": (sum(value.numel() for value in model.values()),)}
    kinds = {kind for kind, _ in wire.asked}
    assert kinds == {"query.join", "train", "evaluate"}
    assert len(wire.received) == 3 + 2 * 3 + 2 * 3
    clips = len(federation.clips)
    for content in wire.received:
        for name, record in content.items():
            if isinstance(record, ArrayRecord):
                found = {key: tuple(array.shape) for key, array in record.items()}
                assert found == (
                    {"first": (MELS,), "second": (MELS,)} if name == "sums" else shapes
                )
                assert sum(len(array.data) for array in record.values()) < 1.2 * sum(
                    array.numpy().nbytes + 128 for array in record.values()
                )
            else:
                assert isinstance(record, MetricRecord)
                for values in record.values():
                    values = np.atleast_1d(values)
                    assert len(values) in (1, 2, 49)
                    if len(values) > 1:
                        assert values.dtype.kind == "i"
                        assert 0 <= values.min() <= values.max() <= clips


def test_tables_from_counts(sound, federation):
    run, _ = sound
    clips, rows = run.table("clips"), run.table("predictions")
    assert list(rows.columns) == runs.PREDICTIONS
    counts = clips.groupby(["split", "emotion"]).size()
    assert counts.equals(federation.clips.groupby(["split", "emotion"]).size())
    last = rows[rows["round"] == 2]
    assert set(last["clip"]) == set(clips.loc[clips["split"] == "test", "clip"])
    assert count_tables.is_counted(last["clip"])
    truth = last.drop_duplicates("clip").set_index("clip")["y_true"].sort_index()
    assert truth.equals(
        clips[clips["split"] == "test"].set_index("clip")["emotion"].sort_index().rename("y_true")
    )
    assert len(tables.table2(clips))


def test_confusions_become_rows_and_back():
    table = [[2, 1], [0, 3]]
    rows = count_tables.predictions_from_counts(
        {"a": {"none/original": np.ravel(table).tolist()}}, ("joy", "rage")
    )
    assert rows["clip"].is_unique
    found = rows.groupby(["y_true", "y_pred"]).size().to_dict()
    assert found == {("joy", "joy"): 2, ("joy", "rage"): 1, ("rage", "rage"): 3}
    assert rows["condition"].unique() == ["original"]


def change(make):
    def spoil(reply):
        arrays = reply.content["arrays"]
        arrays["packed"] = Array(make(arrays["packed"].numpy().copy()))
        return reply

    return spoil


def put(value, where=-1):
    def change(vector):
        vector[where] = value
        return vector

    return change


def claim(count):
    def spoil(reply):
        reply.content["metrics"]["num-examples"] = count
        return reply

    return spoil


def renamed(reply):
    arrays = reply.content["arrays"]
    reply.content["arrays"] = ArrayRecord({"other": arrays["packed"]})
    return reply


def with_more(reply):
    reply.content["speech"] = ArrayRecord({"x": Array(np.zeros(3, np.float32))})
    return reply


def torn(reply):
    reply.content["arrays"]["packed"].data = b"half of an array"
    return reply


UPDATES = {  # the last weight is in classifier.2.bias; the first layer has 18, 2, 2, 2 and 2
    "nan": (change(put(np.nan)), "refused: classifier.2.bias contains nan"),
    "inf": (change(put(-np.inf)), "refused: classifier.2.bias contains inf"),
    "1e30": (change(put(1e30)), r"refused: classifier.2.bias contains 1e\+30"),
    "shape": (change(lambda v: v[1:]), r"refused: ValueError: weights of type float32 and shape"),
    "type": (change(np.float64), "refused: ValueError: weights of type float64"),
    "variance": (change(put(-0.5, 18 + 3 * 2)), "refused: a negative variance"),
    "names": (renamed, "refused: arrays that are not the model's"),
    "torn": (torn, "refused: ValueError"),
    "speech": (with_more, "refused: records arrays, metrics, speech"),
    "negative": (claim(-5), "refused: -5 clips"),
    "zero": (claim(0), "refused: 0 clips"),
    "10^12": (claim(10**12), "refused: 1000000000000 clips"),
    "a few more": (claim(100), "refused: 100 clips where it has"),
    "lost": ("lost", r"no reply within 0\.2 s"),
}  # fmt: skip


@pytest.fixture(scope="module")
def without(tiny, shares, tmp_path_factory):
    """A run in which client 1 is not there in round 2."""
    settings = dataclasses.replace(
        tiny, runtime="deployment", outputs=str(tmp_path_factory.mktemp("without")),
        timeout=0.2, min_replies=0.5, eval_every=2, attack="fgsm",
    )  # fmt: skip
    return start(settings, shares, tmp_path_factory.mktemp("states"), in_round(2, "lost"))[0]


def in_round(number, fate, place=1):
    def mishap(where, message):
        config = message.content["config"]
        hit = message.metadata.message_type == "train" and config["server-round"] == number
        return fate if hit and where == place else None

    return mishap


@pytest.mark.parametrize("name", UPDATES)
def test_a_bad_update_is_refused_and_named(deployed, shares, tmp_path, caplog, without, name):
    fate, why = UPDATES[name]
    settings = dataclasses.replace(deployed, eval_every=2)
    run, _ = start(settings, shares, tmp_path, in_round(2, fate))
    assert differ(run, without) == 0  # as if that client had not been there
    row = run.table("rounds").iloc[-1]
    assert (row["clients_asked"], row["clients_replied"]) == (3, 2)
    assert re.search(rf"2: client-01 \({why}", row["missing"]), row["missing"]
    assert re.search(f"client client-01: {why}", caplog.text)


def test_too_few_sound_replies_are_an_error(deployed, shares, tmp_path):
    settings = dataclasses.replace(deployed, min_replies=1.0)
    with pytest.raises(RoundError, match=r"round 2: 2 of 3 .* client client-01: refused: 0 clips"):
        start(settings, shares, tmp_path, in_round(2, claim(0)))


def test_a_client_that_is_late_goes_on_in_the_next_round(deployed, shares, tmp_path):
    """Its reply to an old message is nobody's; the next round takes it in again."""
    settings = dataclasses.replace(deployed, rounds=3)
    held = []

    def late(place, message):
        if in_round(2, True)(place, message):
            return lambda reply: held.append(reply) or reply
        return None

    class Late(Wire):
        def pull_messages(self, message_ids):
            ready = [i for i in message_ids if i in self.replies]
            return [self.replies.pop(i) for i in ready if self.replies[i] not in held]

    wire = Late(json.dumps(settings.values()), shares, tmp_path)
    wire.mishap = late
    told = {"settings": json.dumps(settings.values())}
    server_app.server_app(wire, Context(1, 1, {}, RecordDict(), told))
    rounds = runs.find_runs(settings.outputs, settings.study)[-1].table("rounds")
    assert rounds.groupby("round")["clients_replied"].first().tolist() == [3, 2, 3]
    assert rounds.groupby("round")["missing"].first().isna().tolist() == [True, False, True]
    assert rounds["missing"].dropna().unique() == ["2: client-01 (no reply within 0.2 s)"]


def test_a_node_that_goes_and_comes_back_under_another_id(deployed, shares, tmp_path):
    settings = dataclasses.replace(deployed, rounds=3)

    def prepare(wire):
        def mishap(place, message):
            number = message.content["config"].get("server-round")
            if message.metadata.message_type == "train" and number == 1 and place == 0:
                wire.offline.add(102)  # it goes while round 1 runs
            if message.metadata.message_type == "evaluate" and number == 2:
                wire.contexts.setdefault(202, wire.contexts[102])
            gone = place == 1 and 102 in wire.offline and 202 not in wire.contexts
            return "lost" if gone else None

        wire.mishap = mishap

    run, _ = start(settings, shares, tmp_path, prepare=prepare)
    rounds = run.table("rounds").groupby("round").first()
    assert rounds["clients_replied"].tolist() == [2, 2, 3]
    assert "no reply" in rounds["missing"][1]
    assert "2: client-01 (not connected)" in rounds["missing"][2]
    assert pd.isna(rounds["missing"][3])


def test_a_successor_is_let_in_once_the_old_node_is_gone(deployed, shares, tmp_path, caplog):
    """It was refused while the server still took the old one to be there."""
    settings = dataclasses.replace(deployed, rounds=2)

    def prepare(wire):
        wire.contexts[202] = wire.contexts[102]

        def mishap(place, message):
            if message.metadata.message_type == "evaluate":
                wire.offline.add(102)

        wire.mishap = mishap

    run, _ = start(settings, shares, tmp_path, prepare=prepare)
    assert "may not join: client-01 is here already" in caplog.text
    assert run.table("rounds")["clients_replied"].eq(3).all()


def test_an_impostor_may_not_join(deployed, shares, tmp_path, caplog):
    """A second node that claims a place, while the first is there."""

    def prepare(wire):
        wire.contexts[301] = wire.contexts[101]

    run, _ = start(deployed, shares, tmp_path, prepare=prepare)
    assert "may not join: client-00 is here already" in caplog.text
    assert (run.table("rounds")["clients_replied"] == 3).all()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda c: c["sums"].update(first=Array(np.full(MELS, np.nan))), "sums that are not"),
        (lambda c: c["sums"].update(second=Array(np.zeros(MELS))), "sums that no clips can have"),
        (lambda c: c["counts"].update(anger=[10**12, 1]), "1000000000000|clips"),
        (lambda c: c["counts"].update(anger=[-1, 1]), "counts that are none"),
        (lambda c: c["metrics"].update({"num-partitions": 4}), "where there are 3"),
    ],
    ids=["nan", "impossible", "10^12", "negative", "places"],
)
def test_a_client_that_lies_when_it_joins_is_not_let_in(
    deployed, shares, tmp_path, caplog, spoil, why
):
    def mishap(place, message):
        if place != 1 or message.metadata.message_type != "query.join":
            return None
        return lambda reply: spoil(reply.content) or reply

    settings = dataclasses.replace(deployed, timeout=0.05)
    with pytest.raises(RoundError, match=r"2 of 3 clients joined .*here: client-00, client-02"):
        start(settings, shares, tmp_path, mishap)
    assert re.search(f"may not join: .*({why})", caplog.text)


def more_clips(measures):
    key = next(iter(measures))
    measures[key] = [value + 1 for value in measures[key]]


def another_name(measures):
    measures["speech"] = measures.pop(next(iter(measures)))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (more_clips, "a confusion matrix of other clips than it has"),
        (another_name, "other conditions"),
    ],
)
def test_a_lie_about_the_evaluation_is_left_out(deployed, shares, tmp_path, caplog, spoil, why):
    def lie(reply):
        spoil(reply.content["metrics"])
        return reply

    def mishap(place, message):
        return lie if place == 2 and message.metadata.message_type == "evaluate" else None

    run, _ = start(deployed, shares, tmp_path, mishap)
    assert set(run.table("predictions")["speaker"]) == {"client-00", "client-01"}
    assert f"client-02: refused: {why}" in caplog.text


def test_a_client_whose_recordings_are_gone_is_named(deployed, federation, tmp_path, caplog):
    own = write_client_folders(federation.corpus, tmp_path / "shares")

    def prepare(wire):
        def mishap(place, message):
            number = message.content["config"].get("server-round")
            if message.metadata.message_type == "train" and number == 2 and own[1].exists():
                load_client_data.cache_clear()
                shutil.rmtree(own[1])

        wire.mishap = mishap

    run, _ = start(deployed, own, tmp_path / "states", prepare=prepare)
    last = run.table("rounds").iloc[-1]
    assert last["clients_replied"] == 2
    assert "2: client-01 (InputError: corpus" in last["missing"]


def test_a_client_keeps_its_optimiser_on_its_disk(deployed, shares, tmp_path, sound):
    """Flower's Context goes with the process; here it is emptied before every message."""

    def prepare(wire):
        def mishap(place, message):
            wire.contexts[101 + place].state = RecordDict()

        wire.mishap = mishap

    run, _ = start(deployed, shares, tmp_path, prepare=prepare)
    assert differ(run, sound[0]) == 0
    kept = checkpoints.load(tmp_path / "01" / run.id)
    assert kept[0] == 2
    assert any(key.startswith("exp_avg/") for key in kept[1]["optimiser"])


def test_a_client_without_its_state_starts_fresh_and_says_so(deployed, shares, tmp_path, caplog):
    def prepare(wire):
        def mishap(place, message):
            if in_round(2, True)(place, message):
                for path in (tmp_path / "01").glob("smoke-*"):
                    shutil.rmtree(path)

        wire.mishap = mishap

    caplog.set_level("INFO", logger="fedser_utils")
    run, _ = start(deployed, shares, tmp_path, prepare=prepare)
    assert (run.table("rounds")["clients_replied"] == 3).all()
    assert "client client-01 started with a fresh optimiser" in caplog.text


@pytest.mark.parametrize("away", [None, 101], ids=["all there", "one away"])
def test_a_server_that_was_killed_goes_on(deployed, shares, tmp_path, monkeypatch, away):
    """From its checkpoint, with the clients' states of that round, though they had gone further."""
    settings = dataclasses.replace(deployed, rounds=4, checkpoint_every=2, eval_every=2)
    whole, _ = start(
        dataclasses.replace(settings, outputs=str(tmp_path / "whole")), shares, tmp_path / "a"
    )
    kept = server_app.ClientGrid.checked_update

    def dying(grid, message, reply, like):
        if message.content["config"]["server-round"] == 4:
            raise KeyboardInterrupt
        return kept(grid, message, reply, like)

    monkeypatch.setattr(server_app.ClientGrid, "checked_update", dying)
    with pytest.raises(KeyboardInterrupt):
        start(settings, shares, tmp_path / "b")
    monkeypatch.setattr(server_app.ClientGrid, "checked_update", kept)

    def prepare(wire):
        if away:
            wire.offline.add(away)

    resumed, wire = start(settings, shares, tmp_path / "b", prepare=prepare)
    trained = [place for kind, place in wire.asked if kind == "train"]
    assert trained == ([1, 2] * 2 if away else [0, 1, 2] * 2)  # rounds 3 and 4 only
    if away:
        assert resumed.table("rounds").iloc[-1]["missing"].count("not connected") == 3
    else:
        assert differ(whole, resumed) == 0


def test_a_round_that_all_clients_fail_is_an_error(deployed, shares, tmp_path):
    settings = dataclasses.replace(deployed, min_replies=0.01)
    with pytest.raises(RoundError, match="round 1: 0 of 3 clients replied"):
        start(settings, shares, tmp_path, lambda place, m: in_round(1, "lost", place)(place, m))
