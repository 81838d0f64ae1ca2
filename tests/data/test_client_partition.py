"""Partitions: whose clips are whose, and how unlike the clients are."""

import numpy as np
import pandas as pd
import pytest

from fedser_utils.core.errors import InputError
from fedser_utils.data.client_partition import assign_clients

LABELS = [*"abcd"]


@pytest.fixture(scope="module")
def clips():
    """400 clips of 8 speakers and 4 classes, a fifth of them for testing."""
    numbers = np.arange(400)
    return pd.DataFrame(
        {
            "clip": [f"{i:03d}" for i in numbers],
            "speaker": [f"s{i % 8}" for i in numbers],
            "emotion": [LABELS[i // 100] for i in numbers],
            "split": np.where(numbers % 5 == 0, "test", "train"),
        }
    )


def deal(clips, how, *, count=10, alpha=None, seed=0):
    return assign_clients(clips, how=how, count=count, alpha=alpha, seed=seed)


def shares(clips, client):
    """Clients x classes: each client's share of its training clips."""
    train = clips["split"] == "train"
    return pd.crosstab(client[train], clips["emotion"][train], normalize="index")


def test_by_speaker_a_speaker_is_a_client(clips):
    assert deal(clips, "speaker").equals(clips["speaker"])


@pytest.mark.parametrize("how", ["iid", "dirichlet", "quantity"])
def test_every_clip_has_a_client_and_every_client_trains(clips, how):
    client = deal(clips, how)
    assert sorted(client.unique()) == [f"client-{i:02d}" for i in range(10)]
    assert client[clips["split"] == "train"].nunique() == 10
    assert client.equals(deal(clips.sample(frac=1, random_state=1), how).sort_index())
    assert not client.equals(deal(clips, how, seed=1))


def test_iid_clients_are_of_one_size_and_kind(clips):
    client = deal(clips, "iid")
    assert set(client[clips["split"] == "train"].value_counts()) == {32}
    assert shares(clips, client).to_numpy().max() < 0.55


def test_a_small_alpha_makes_labels_or_sizes_unequal(clips):
    largest = {
        alpha: shares(clips, deal(clips, "dirichlet", alpha=alpha)).max(axis=1).mean()
        for alpha in (0.1, 100.0)
    }
    assert largest[0.1] > 0.65
    assert largest[100.0] < 0.40
    sizes = {
        alpha: deal(clips, "quantity", alpha=alpha).value_counts().max() for alpha in (0.3, 100.0)
    }
    assert sizes[0.3] > 100
    assert sizes[100.0] < 60


def test_test_clips_are_dealt_as_training_clips_are(clips):
    client = deal(clips, "dirichlet", alpha=0.3)
    table = pd.crosstab(client, [clips["split"], clips["emotion"]], normalize="columns")
    np.testing.assert_allclose(table["test"], table["train"], atol=0.06)


def test_what_leaves_a_client_without_a_clip_is_refused(clips):
    with pytest.raises(InputError, match=r"skew_alpha 0\.001 leaves some of 30 clients without"):
        deal(clips, "dirichlet", count=30, alpha=0.001)
    with pytest.raises(InputError, match="client_count 321 is more than the 320 training clips"):
        deal(clips, "iid", count=321)
    with pytest.raises(InputError, match="partition 'label' is unknown; choose from speaker, iid"):
        deal(clips, "label")
