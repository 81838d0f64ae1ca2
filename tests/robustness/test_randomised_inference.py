"""Decisions over draws, their averages, and the tuning of the randomisation."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fedser_utils import attacks
from fedser_utils.analysis import metrics
from fedser_utils.learning import vgg
from fedser_utils.robustness import randomised_inference
from fedser_utils.robustness.randomisation import Randomise


def test_draws_are_the_same_whatever_the_workers(trained):
    model, x, _ = trained
    options = {"randomise": Randomise(), "draws": 3, "seed": 0}
    found = []
    for workers in (1, 3):
        with ThreadPoolExecutor(workers) as pool:
            found.append(
                randomised_inference.logits_over_draws(model, x[:20], pool=pool, **options)
            )
    assert found[0].shape == (3, 20, 7)
    torch.testing.assert_close(*found)
    assert not torch.equal(found[0][0], found[0][1])
    other = randomised_inference.logits_over_draws(model, x[:20], **options | {"seed": 1})
    assert not torch.allclose(other, found[0])


def test_a_randomisation_with_one_outcome_decides_as_its_image(trained):
    model, x, _ = trained
    fixed = Randomise(frames=(373, 374), mels=(64, 65), padded=(373, 64))
    logits = randomised_inference.logits_over_draws(model, x[:5], randomise=fixed, draws=2, seed=0)
    assert torch.equal(logits.argmax(2), attacks.predictions(model, x[:5]).expand(2, 5))


def test_averages_by_hand():
    logits = torch.tensor([[[3.0, 0.0]], [[0.0, 2.0]], [[0.0, 2.0]], [[0.0, 0.5]], [[9.0, 0.0]]])
    assert randomised_inference.averaged_decisions(logits, 1)[:, 0].tolist() == [0, 1, 1, 1, 0]
    assert randomised_inference.averaged_decisions(logits, 2)[:, 0].tolist() == [0, 1]
    assert randomised_inference.averaged_decisions(logits, 5)[:, 0].tolist() == [0]


def test_margins_are_the_papers_at_7_and_2():
    one, other = Randomise(), Randomise.with_margins(7, 2)
    assert (one.ranges, one.padded) == (other.ranges, other.padded)
    none = Randomise.with_margins(1, 1)
    assert none.ranges == ((373, 374), (64, 65))
    assert none.padded == (374, 65)


def test_tuning_has_a_row_for_each_setting(trained):
    model, x, y = trained
    plain = vgg.fold_batch_norm(model)
    clips = {"original": x[:16], "pgd": -x[:16]}
    grid = randomised_inference.grid_search(
        plain, clips, y[:16], margins=[(1, 1), (7, 2)], values=[0.0, 0.5], mode="nearest", draws=2,
        seed=0,
    )  # fmt: skip
    assert grid[["frames", "mels", "value"]].to_numpy().tolist() == [
        [1, 1, 0], [1, 1, 0.5], [7, 2, 0], [7, 2, 0.5],
    ]  # fmt: skip
    assert grid["score"].tolist() == ((grid["original"] + grid["pgd"]) / 2).tolist()
    randomise = Randomise(mode="nearest")
    decided = randomised_inference.logits_over_draws(
        plain, x[:16], randomise=randomise, draws=2, seed=0
    ).argmax(2)
    expected = sum(metrics.uar(y[:16], one) for one in decided) / 2
    assert grid["original"].iloc[3] == pytest.approx(expected)


def test_milliseconds_are_of_one_clip():
    calls = []
    took = randomised_inference.milliseconds_per_clip(lambda: calls.append(1), clips=10, repeats=3)
    assert len(calls) == 4
    assert 0 <= took < 100
