"""The pictures show the rows they are given, at 6 clients as at 68, and no text meets another."""

import itertools

import numpy as np
import pandas as pd
import pytest

from fedser_utils.analysis.heterogeneity import client_differences, interventions, plots

CORPORA = ("emovo", "ravdess", "crema-d")
CAPTION = "demo: 30 clients, n = 408 test clips, 30 rounds, 12 runs, mean of seeds 0, 1, 2"


def texts(axes):
    """Boxes of the texts around the axes, in pixels."""
    axes.figure.draw_without_rendering()
    shown = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
    shown += [text for text in axes.texts if not text.get_text().isdigit()]
    boxes = [text.get_window_extent() for text in shown if text.get_text() and text.get_visible()]
    return boxes + [legend.get_window_extent() for legend in axes.figure.legends]


def no_text_meets_another(axes):
    for one, other in itertools.combinations(texts(axes), 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width < 1 or height < 1, (one, other)


@pytest.mark.parametrize("count", [6, 30, 68])
def test_clients_by_class(count):
    draw = np.random.default_rng(0)
    emotions = draw.choice(["anger", "fear", "joy"], 20 * count)
    clips = pd.DataFrame({"emotion": emotions, "split": "train"})
    clips["corpus"] = np.repeat([CORPORA[i * 3 // count] for i in range(count)], 20)
    clips["client"] = clips["corpus"] + [f"-{i:02d}" for i in np.repeat(range(count), 20)]
    axes = plots.clients_by_class(clips, caption=CAPTION).axes[0]
    image = axes.images[0].get_array()
    assert image.shape == (3, count)
    np.testing.assert_allclose(image.sum(axis=0), 100)
    first = clips[clips["client"] == clips["client"].min()]["emotion"]  # of crema-d
    np.testing.assert_allclose(image[1, 0], 100 * (first == "anger").mean())
    names = [text.get_text() for text in axes.texts if not text.get_text().isdigit()]
    assert names == sorted(CORPORA)
    no_text_meets_another(axes)


def test_many_small_corpora_are_named_on_a_slant():
    rows = [(f"c{i}", f"a long corpus name {i}", "joy", "train") for i in range(9)]
    clips = pd.DataFrame(rows, columns=["client", "corpus", "emotion", "split"])
    axes = plots.clients_by_class(clips).axes[0]
    assert {t.get_rotation() for t in axes.texts if not t.get_text().isdigit()} == {30}


def test_every_intervention_has_another_style():
    rounds = pd.concat(
        [pd.DataFrame({"intervention": name, "round": [1, 2, 1, 2], "uar": [10, 20, 30, 60],
                       "condition": "original"}) for name in interventions.INTERVENTIONS]
    )  # fmt: skip
    axes = plots.interventions(rounds, caption=CAPTION).axes[0]
    looks = {(line.get_color(), line.get_marker(), str(line._dash_pattern)) for line in axes.lines}
    assert len(looks) == len(axes.lines) == len(interventions.INTERVENTIONS)
    given = next(line for line in axes.lines if line.get_label() == "as given")
    assert given.get_color() == "black"
    assert given.get_ydata().tolist() == [20, 40]  # the mean over seeds
    no_text_meets_another(axes)


@pytest.mark.parametrize("count", [2, 7])
def test_curves_per_corpus(count):
    names = ["all", *(f"corpus {i}" for i in range(count))]
    bands = pd.concat([pd.DataFrame({"corpus": name, "band": range(64), "mean": -8.0, "std": 1.0,
                                     "n": 9}) for name in names])  # fmt: skip
    axes = plots.input_shift(bands, caption=CAPTION).axes[0]
    assert [line.get_label() for line in axes.lines] == names
    no_text_meets_another(axes)
    layers = pd.concat([pd.DataFrame({"corpus": name, "layer": range(1, 14), "mean_shift": 0.2,
                                      "variance_shift": 0.3}) for name in names])  # fmt: skip
    for axes, value in zip(plots.batch_norm_shift(layers).axes, (0.2, 0.3), strict=True):
        assert [line.get_label() for line in axes.lines] == names
        assert set(axes.lines[1].get_ydata()) == {value}
        no_text_meets_another(axes)


def test_drift_shows_every_client():
    rows = pd.DataFrame({"corpus": [*"xxy"], "examples": [10, 20, 30], "relative": [0.1, 0.2, 0.3],
                         "cosine": [0.5, -0.1, 0.2]})  # fmt: skip
    axes = plots.drift(rows, caption=CAPTION).axes[0]
    points = np.vstack([part.get_offsets() for part in axes.collections])
    np.testing.assert_allclose(points, [[10, 0.5], [20, -0.1], [30, 0.2]])
    no_text_meets_another(axes)


def test_against_alpha_of_results():
    rows = [(alpha, seed, scope, name, attack, condition, uar, 5, 9)
            for alpha in (0.1, 1.0, 10.0) for seed in (0, 1)
            for attack, condition, base in (("none", "original", 50), ("pgd", "adversarial", 10),
                                            ("pgd", "randomised_adversarial", 30))
            for scope, name, uar in (("all", "all", base + seed), ("client", "a", base - 8),
                                     ("client", "b", base + 8))]  # fmt: skip
    columns = ["alpha", "seed", "scope", "name", "attack", "condition", "uar", "classes", "n"]
    found = client_differences.uar_by_alpha(pd.DataFrame(rows, columns=columns).iloc[::-1])
    assert found["alpha"].tolist() == [0.1] * 3 + [1] * 3 + [10] * 3
    first = found[(found["alpha"] == 1) & (found["condition"] == "original")].iloc[0]
    assert (first["uar"], first["worst"], first["worst_uar"]) == (50.5, "a", 42)
    assert (first["low"], first["high"], first["seeds"]) == (46, 54, 2)
    axes = plots.against_alpha(found, caption=CAPTION).axes[0]
    assert [line.get_label() for line in axes.lines] == [
        "Original", "Adversarial", "Randomised adversarial", "worst client"
    ]  # fmt: skip
    assert axes.lines[0].get_ydata().tolist() == [50.5] * 3
    no_text_meets_another(axes)
