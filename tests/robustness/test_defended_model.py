"""A defended model: its evidence, and an attacker that never does worse for trying again."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fedser_utils import attacks
from fedser_utils.core.seeding import generator
from fedser_utils.learning import vgg
from fedser_utils.robustness import defended_model
from fedser_utils.robustness.randomisation import Randomise

EPSILON = 0.05


def test_evidence_is_a_row_for_each_draw_and_clip(defended):
    x_adv = defended.x + 0.01
    rows = defended.judge(x_adv, test="t", attack="a", value=3.0)
    assert len(rows) == 4 * 14
    assert rows.groupby("draw")["clip"].nunique().eq(14).all()
    assert rows["linf"].round(4).eq(0.01).all()
    assert rows["l2"].round(2).eq(round(0.01 * (373 * 64) ** 0.5, 2)).all()
    assert set(rows["defended"]) == {True}
    plain = defended.judge(defended.x, defended=False, test="t", attack="a")
    y_pred = attacks.predictions(defended.plain, defended.x).tolist()
    assert plain["y_pred"].tolist() == [defended.classes[i] for i in y_pred]
    assert plain["y_true"].tolist() == defended.clips["emotion"].tolist()
    assert plain["l2"].eq(0).all()


def test_the_attackers_draws_are_not_the_judges(defended):
    judge, attacker, again = (
        defended._logits(defended.x, whose, draws=2) for whose in ("judge", "attacker", "judge")
    )
    assert not torch.allclose(judge, attacker)
    torch.testing.assert_close(judge, again)


def test_the_strongest_attack_only_gets_stronger_and_keeps_to_epsilon(defended):
    attempts = {k: defended_model.eot_pgd(steps=15, eot=k) for k in (1, 2)}
    attempts["useless"] = defended_model.Attempt(lambda model, x, y, start, epsilon: x)
    fractions = [defended.robust_fraction(defended.x)]
    for _, best in defended_model.strongest_per_clip(defended, attempts, epsilon=EPSILON):
        assert (best - defended.x).abs().max() <= EPSILON + 1e-6
        fractions.append(defended.robust_fraction(best))
        # the same draws for the same clips, so none of them may have become easier to recognise
    for before, after in pairwise(fractions):
        assert after.mean() <= before.mean() + 0.1
    assert fractions[2].mean() < fractions[0].mean() - 0.1
    assert torch.equal(fractions[-1], fractions[-2])


def test_it_goes_on_from_where_it_is_told(defended):
    start = defended.x + EPSILON
    nothing = defended_model.Attempt(lambda model, x, y, start, epsilon: start)
    assert torch.equal(defended.attack(nothing, "n", start=start), start)
    for clips in (start, defended.x):  # what is no better than the clip itself is not taken
        *_, (_, best) = defended_model.strongest_per_clip(
            defended, {"n": nothing}, epsilon=EPSILON, starts=[clips]
        )
        taken = defended.robust_fraction(clips) < defended.robust_fraction(defended.x)
        assert torch.equal(best[taken], clips[taken])
        assert torch.equal(best[~taken], defended.x[~taken])


def test_budgets_may_differ_by_clip(defended):
    reach = torch.linspace(0, 1, 14)
    x_adv = defended.attack(
        defended_model.eot_pgd(steps=2, norm="l2", step=1.0), "l2", epsilon=reach
    )
    torch.testing.assert_close(
        (x_adv - defended.x).flatten(1).norm(dim=1), reach, rtol=1e-3, atol=1e-4
    )


def test_momentum_over_single_draws_averages_them(defended):
    """On a loss whose gradient is noise around a small slope, momentum finds the slope."""

    draws = generator(0, "noisy")

    def noisy(x):
        slope = 0.02 + torch.randn(x.shape, generator=draws)
        total = (slope * x).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(total), -total], 1)

    x, y = torch.zeros(2, 1, 20, 20), torch.tensor([0, 0])
    options = {"epsilon": 1.0, "step_size": 0.02, "steps": 60, "loss": "cw"}
    plain = attacks.pgd(noisy, x, y, **options)
    heavy = attacks.pgd(noisy, x, y, **options, momentum=0.9)
    assert heavy.abs().mean() > 1.5 * plain.abs().mean()
    with pytest.raises(ValueError, match=r"momentum 1 must be >= 0 and < 1"):
        attacks.pgd(noisy, x, y, **options, momentum=1)
    with pytest.raises(ValueError, match="start"):
        attacks.pgd(noisy, x, y, **options, start=x[:1])


def test_arts_attacks_are_brought_into_the_ball(defended):
    few = defended.subset(torch.arange(7))
    hop = defended_model.art_attempt(
        "hop_skip_jump", norm="inf", max_iter=1, max_eval=4, init_eval=2
    )
    x_adv = few.attack(hop, "hop", epsilon=EPSILON, defended=False)
    assert 0 < (x_adv - few.x).abs().max() <= EPSILON + 1e-6


def test_some_clips_come_evenly_from_all_emotions(speakers4):
    clips = defended_model.stratified_sample(speakers4.clips, 14, seed=0)
    assert clips["emotion"].value_counts().eq(2).all()
    assert clips.index.is_monotonic_increasing
    assert len(defended_model.stratified_sample(speakers4.clips, 1000, seed=0)) == 140
    assert not clips.equals(defended_model.stratified_sample(speakers4.clips, 14, seed=1))


def test_eot_breaks_a_randomisation_that_a_transfer_attack_does_not(defended):
    """A weak model behind nearest resizing: EOT must fool every clip under every draw."""
    weak = vgg.WeakModel(7, cells=4, generator=generator(0, "planted"))
    target = replace(defended, plain=weak, target_model=weak, randomise=Randomise(mode="nearest"))
    target = replace(target, y=target.decide(target.x, True).mode(0).values)
    x_adv = target.attack(defended_model.eot_pgd(steps=10), "eot", epsilon=EPSILON)
    assert target.robust_fraction(x_adv).max() == 0
