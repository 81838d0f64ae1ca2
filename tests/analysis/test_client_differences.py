"""How unlike clients are, by hand."""

import numpy as np
import pandas as pd
import pytest

from fedser_utils.analysis.heterogeneity import client_differences


def made(rows):
    """A clips' table of (client, corpus, emotion, split)."""
    clips = pd.DataFrame(rows, columns=["client", "corpus", "emotion", "split"])
    return clips.assign(clip=[f"c{i}" for i in range(len(clips))], language=clips["corpus"].str[:1])


def test_label_skew_by_hand():
    rows = [("a", "en", "joy", "train")] * 4 + [("b", "it", "fear", "train")] * 2
    rows += [("b", "it", "joy", "train")] * 2 + [("b", "it", "fear", "test")] * 9
    clips = made(rows)
    found = client_differences.label_skew(clips).set_index("client")
    assert found["distance"].tolist() == [0.25, 0.25]  # pooled: 3/4 joy; a: all, b: half
    assert found["n"].tolist() == [4, 4]
    assert found["classes"].tolist() == [1, 2]
    assert found["corpus"].tolist() == ["en", "it"]
    half_normal = 2 * np.sqrt(2 * 0.75 * 0.25 / np.pi) / 2 / 2
    assert found["by_chance"].tolist() == pytest.approx([half_normal] * 2)


def test_chance_alone_is_what_it_says():
    draw = np.random.default_rng(0)
    rows = [(f"{c:03d}", "x", e, "train") for c in range(200) for e in draw.choice([*"pqrst"], 50)]
    found = client_differences.label_skew(made(rows))
    assert found["distance"].mean() == pytest.approx(found["by_chance"].mean(), rel=0.1)


def test_a_client_of_several_corpora():
    clips = made([("a", "en", "joy", "train"), ("a", "it", "joy", "train"),
                  ("b", "it", "joy", "train"), ("b", "en", "joy", "test")])  # fmt: skip
    clips["language"] = ""
    assert client_differences.column_by_client(clips).to_dict() == {"a": "several", "b": "it"}
    assert client_differences.column_by_client(clips, "language").to_dict() == {
        "a": "unknown",
        "b": "unknown",
    }


def test_input_shift_by_hand():
    clips = made([("a", "en", "joy", "train")] * 100 + [("b", "it", "joy", "train")] * 100
                 + [("b", "it", "joy", "test")])  # fmt: skip
    log_mels = np.random.default_rng(0).normal(size=(201, 5, 3)).astype(np.float32)
    log_mels[100:200] += 2
    log_mels[200] = 1e6  # for testing: not looked at
    bands = client_differences.input_shift(log_mels, clips)
    assert list(bands) == ["corpus", "band", "mean", "std", "n"]
    for name, part in (("all", log_mels[:200]), ("en", log_mels[:100]), ("it", log_mels[100:200])):
        own = bands[bands["corpus"] == name]
        np.testing.assert_allclose(own["mean"], part.mean((0, 1)), atol=1e-6)
        np.testing.assert_allclose(own["std"], part.std((0, 1)), rtol=1e-5)
        assert set(own["n"]) == {len(part)}
    found = client_differences.shift_by_group(bands).set_index("corpus")
    assert found["loudness"].tolist() == pytest.approx([-np.sqrt(0.5), np.sqrt(0.5)], abs=0.05)
    assert found["distance"].tolist() == pytest.approx([np.sqrt(0.5)] * 2, abs=0.05)
    assert (found["spread"] < 0.75).all()


def test_balanced_groups_do_not_differ_by_their_emotions():
    clips = made([("a", "en", "joy", "train")] * 9 + [("a", "en", "fear", "train")]
                 + [("b", "it", "joy", "train")] + [("b", "it", "fear", "train")] * 9)  # fmt: skip
    log_mels = np.where(clips["emotion"] == "joy", 1.0, -1.0)[:, None, None] * np.ones((1, 4, 2))
    even = client_differences.shift_by_group(client_differences.input_shift(log_mels, clips))
    assert even["distance"].tolist() == [0, 0]
    uneven = client_differences.shift_by_group(
        client_differences.input_shift(log_mels, clips, balanced=False)
    )
    assert uneven["distance"].tolist() == pytest.approx([0.8, 0.8])
    alone = client_differences.input_shift(
        log_mels[[0, 19]], clips.iloc[[0, 19]].reset_index(drop=True)
    )
    assert len(alone) == 3 * 2  # no emotion in common: all clips count


def decisions(clips, said, **facts):
    facts = {"run": "r", "model": "nature", "round": 2, "attack": "none"} | facts
    rows = clips.rename(columns={"emotion": "y_true"})[["clip", "y_true"]]
    return rows.assign(speaker="s", draw=0, condition="original", y_pred=said, **facts)


def test_results_and_their_spread_by_hand():
    clips = made([("a", "en", "joy", "test"), ("a", "en", "fear", "test"),
                  ("b", "it", "joy", "test"), ("c", "it", "joy", "test")])  # fmt: skip
    rows = decisions(clips, ["joy", "joy", "joy", "fear"])
    rows = pd.concat([rows, decisions(clips, "fear", round=1)])  # only the last round counts
    found = client_differences.uar_by_scope(rows, clips).set_index(["scope", "name"])
    assert found["uar"].to_dict() == {
        ("all", "all"): pytest.approx(100 / 3), ("corpus", "en"): 50, ("corpus", "it"): 50,
        ("language", "e"): 50, ("language", "i"): 50,
        ("client", "a"): 50, ("client", "b"): 100, ("client", "c"): 0,
    }  # fmt: skip
    assert found.loc[("corpus", "it"), ["classes", "n"]].tolist() == [1, 2]
    spread = client_differences.spread(found.reset_index()).iloc[0]
    assert (spread["worst"], spread["worst_uar"], spread["worst_n"]) == ("c", 0, 1)
    assert (spread["mean"], spread["deviation"]) == (50, 50)
    assert (spread["low"], spread["high"], spread["clients"]) == (25, 75, 3)


def test_decisions_on_other_clips_are_refused():
    clips = made([("a", "en", "joy", "test"), ("a", "en", "fear", "test")])
    with pytest.raises(ValueError, match="1 decisions are on clips not in the table"):
        client_differences.uar_by_scope(decisions(clips, "joy"), clips[:1])
