"""Attacks on models whose answer can be worked out by hand, and contracts over the registry."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedser_utils import attacks
from fedser_utils.attacks import ATTACKS, deepfool, fgsm, pgd, target
from fedser_utils.learning import vgg
from fedser_utils.robustness.randomisation import Draw, Randomise, RandomisedModel

SETTINGS = SimpleNamespace(epsilon=0.05, step_size=0.01, steps=5, overshoot=0.02)


class Affine(nn.Module):
    """Logits W x + b of a flattened input."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = torch.tensor(weight), torch.tensor(bias)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


@pytest.fixture
def affine():
    return Affine([[1.0, 0.0], [0.0, 2.0]], [0.0, 0.0]).eval()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 5)).eval()


def generator(seed):
    return torch.Generator().manual_seed(seed)


def image(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


def test_fgsm_steps_against_the_gradients_sign(affine):
    # class 0 is true: the loss grows with less of x0 and more of x1
    x_adv = fgsm(affine, image(1.0, 0.2), torch.tensor([0]), epsilon=0.1)
    torch.testing.assert_close(x_adv, image(0.9, 0.3))


def test_no_labels_means_the_models_own(affine):
    x = image(0.1, 0.9)
    predicted, given = (fgsm(affine, x, y, epsilon=0.1) for y in (None, torch.tensor([1])))
    assert torch.equal(predicted, given)


def test_pgd_steps_and_stays_in_the_ball(affine):
    x, y = image(1.0, 0.2), torch.tensor([0])
    two = pgd(affine, x, y, epsilon=0.05, step_size=0.02, steps=2)
    torch.testing.assert_close(two, image(0.96, 0.24))
    many = pgd(affine, x, y, epsilon=0.05, step_size=0.02, steps=9)
    torch.testing.assert_close(many, image(0.95, 0.25))


def test_deepfool_projects_on_the_boundary(affine):
    # boundary x0 = 2 x1; the distance of (1, 0.2) is 0.6 / sqrt(5), along (-1, 2) / sqrt(5)
    x_adv = deepfool(affine, image(1.0, 0.2), steps=5, overshoot=0.02)
    expected = image(1.0, 0.2) + 1.02 * 0.6 / 5 * image(-1.0, 2.0)
    torch.testing.assert_close(x_adv, expected, rtol=1e-4, atol=1e-5)
    assert attacks.predictions(affine, x_adv) == 1


def test_deepfool_chooses_the_nearest_class():
    model = Affine([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [1.0, 0.0, 0.4]).eval()
    x_adv = deepfool(model, image(0.0, 0.0), steps=1, overshoot=0.02)
    torch.testing.assert_close(x_adv, image(0.0, 0.612), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ATTACKS)
class TestContracts:
    def test_budget_and_inputs(self, name, network):
        attack = attacks.make_attack(SETTINGS, name)
        for size in (1, 3):
            x, y = torch.randn(size, 1, 33, 17), torch.zeros(size, dtype=torch.long)
            original = x.clone()
            x_adv = attack(network, x, y)
            assert torch.equal(x, original)
            assert x_adv.shape == x.shape
            assert not x_adv.requires_grad
            assert torch.isfinite(x_adv).all()
            if name != "deepfool":
                assert (x_adv - x).abs().max() <= SETTINGS.epsilon + 1e-6
        assert all(p.grad is None for p in network.parameters())

    def test_batching_changes_nothing(self, name, network):
        attack = attacks.make_attack(SETTINGS, name)
        x, y = torch.randn(5, 1, 33, 17), torch.tensor([0, 1, 2, 3, 4])
        singly = torch.cat([attack(network, x[i : i + 1], y[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(attack(network, x, y), singly, rtol=1e-4, atol=1e-4)

    def test_it_attacks(self, name, network):
        x = torch.randn(40, 1, 33, 17)
        y = attacks.predictions(network, x)
        strong = {"epsilon": 2.0, "step_size": 0.5, "steps": 50, "overshoot": 0.02}
        x_adv = attacks.make_attack(SimpleNamespace(**strong), name)(network, x, y)
        assert (attacks.predictions(network, x_adv) != y).float().mean() > 0.9

    def test_training_mode_and_nan_are_refused(self, name, network):
        attack, y = attacks.make_attack(SETTINGS, name), torch.zeros(1, dtype=torch.long)
        with pytest.raises(ValueError, match="training mode"):
            attack(nn.Linear(2, 2), image(0.0, 0.0), y)
        with pytest.raises(ValueError, match="NaN"):
            attack(network, image(0.0, float("nan")), y)


OPTIONS = [
    {"norm": "l2"},
    {"loss": "cw"},
    {"loss": "dlr"},
    {"random_start": True},
    {"random_start": True, "norm": "l2", "restarts": 3},
    {"early_stop": True},
    {"eot": 3},
    {"clip_values": (-1.0, 1.0)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
class TestPgdsOptions:
    def test_the_budget_holds(self, options, network):
        x, y = torch.randn(6, 1, 33, 17), torch.arange(6) % 5
        original, radius = x.clone(), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.0])
        x_adv = pgd(network, x, y, epsilon=radius, step_size=0.2, steps=4, **options)
        assert torch.equal(x, original)
        order = 2 if options.get("norm") == "l2" else torch.inf
        lengths = (x_adv - x).flatten(1).norm(dim=1, p=order)
        assert (lengths <= radius * (1 + 1e-5) + 1e-6).all()
        assert lengths[:5].max() > 0

    def test_it_attacks(self, options, network):
        x = torch.randn(40, 1, 33, 17).clamp(-1, 1)
        y = attacks.predictions(network, x)
        epsilon = 40.0 if options.get("norm") == "l2" else 2.0
        x_adv = pgd(network, x, y, epsilon=epsilon, step_size=epsilon / 8, steps=30, **options)
        least = 0.3 if "clip_values" in options else 0.9
        assert (attacks.predictions(network, x_adv) != y).float().mean() > least


def test_a_clip_that_is_fooled_rests_and_leaves_the_batch(affine):
    sizes = []
    model = lambda x: sizes.append(len(x)) or affine(x)  # noqa: E731
    x = torch.cat([image(1.0, 0.49), image(1.0, 0.2), image(1.0, 0.9)])
    options = {"epsilon": 1.0, "step_size": 0.05, "early_stop": True}
    x_adv = pgd(model, x, torch.tensor([0, 0, 0]), steps=3, **options)
    expected = torch.cat([image(0.95, 0.54), image(0.85, 0.35), image(1.0, 0.9)])
    torch.testing.assert_close(x_adv, expected)
    assert sizes == [3, 2, 2, 1, 1, 1]  # decisions, then gradients of those still recognised
    sizes.clear()
    deepfool(model, x, steps=3, overshoot=0.02)
    assert sizes[0] == 3
    assert sizes[-1] < 3 or len(sizes) == 4


def test_restarts_keep_the_best_and_need_a_random_start(network):
    x = torch.randn(30, 1, 33, 17)
    y = attacks.predictions(network, x)

    def fooled(restarts):
        generator = torch.Generator().manual_seed(0)
        options = {"random_start": True, "restarts": restarts, "generator": generator}
        x_adv = pgd(network, x, y, epsilon=0.25, step_size=0.05, steps=2, **options)
        return attacks.predictions(network, x_adv) != y

    one, ten = fooled(1), fooled(10)
    assert (ten | ~one).all()  # the first start is the same: what it fooled stays fooled
    with pytest.raises(ValueError, match="restarts 2 would all be the same"):
        pgd(network, x, y, epsilon=0.1, step_size=0.1, steps=1, restarts=2)


def test_losses_by_hand():
    scores, y = torch.tensor([[3.0, 1.0, 0.0], [0.0, 4.0, 2.0]]), torch.tensor([0, 2])
    torch.testing.assert_close(target.margin(scores, y), torch.tensor([-2.0, 2.0]))
    torch.testing.assert_close(target.dlr(scores, y), torch.tensor([-2 / 3, 2 / 4]))
    with pytest.raises(ValueError, match="'dlr' needs 3 classes"):
        target.dlr(scores[:, :2], torch.tensor([0, 1]))


def test_l2_step_by_hand(affine):
    # the loss rises along (-1, 2) / sqrt(5), for any loss of the two logits
    x_adv = pgd(
        affine, image(1.0, 0.2), torch.tensor([0]), epsilon=0.5, step_size=0.3, steps=4, norm="l2"
    )
    torch.testing.assert_close(x_adv, image(1.0, 0.2) + 0.5 / 5**0.5 * image(-1.0, 2.0))


def test_deepfool_in_linf_by_hand(affine):
    # |gap| / |gradient|_1 = 0.6 / 3, in the direction of the signs
    x_adv = deepfool(affine, image(1.0, 0.2), steps=1, overshoot=0.0, norm="linf")
    torch.testing.assert_close(x_adv, image(0.8, 0.4))


def test_deepfool_keeps_to_a_range(affine):
    x = image(0.0, 0.1)  # class 1; without a range it would end at (0.04, 0.08)
    x_adv = deepfool(affine, x, steps=50, overshoot=0.02, clip_values=(0.095, 1.0))
    assert attacks.predictions(affine, x_adv) == 0
    assert x_adv[0, 0, 0, 1] == pytest.approx(0.095)
    assert x_adv[0, 0, 0, 0] == pytest.approx(0.19, rel=0.03)


def test_deepfool_among_the_likeliest_classes():
    # class 2 is the nearest by far, but the least likely of the three at first
    model = Affine([[0.0, 0.0], [1.0, 0.0], [0.0, 99.0]], [1.0, 0.5, 0.4]).eval()
    x = image(0.0, 0.0)
    assert attacks.predictions(model, deepfool(model, x, steps=1, overshoot=0.1)) == 2
    narrow = deepfool(model, x, steps=1, overshoot=0.1, classes=2)
    assert attacks.predictions(model, narrow) == 1
    with pytest.raises(ValueError, match="classes 4 must be a whole number >= 2 and <= 3"):
        deepfool(model, x, steps=1, overshoot=0.1, classes=4)


def test_a_clip_out_of_the_range_stays_where_it_was(affine):
    x = image(1.5, 0.2)
    x_adv = fgsm(affine, x, torch.tensor([0]), epsilon=0.3, clip_values=(0.0, 1.0))
    torch.testing.assert_close(x_adv, image(1.2, 0.5))
    x_adv = fgsm(affine, image(0.1, 0.9), torch.tensor([0]), epsilon=0.3, clip_values=(0.0, 1.0))
    torch.testing.assert_close(x_adv, image(0.0, 1.0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": "l1"}, "norm 'l1' is unknown; choose from linf, l2"),
        ({"loss": "mse"}, "loss 'mse' is unknown; choose from ce, cw, dlr"),
        ({"steps": 0}, "steps 0 must be"),
        ({"epsilon": -0.1}, "epsilon -0.1 must be >= 0"),
        ({"eot": 0}, "eot 0 must be"),
        ({"y": torch.tensor([0, 1])}, "y .2,. torch.int64 must be 1 class indices"),
    ],
    ids=str,
)
def test_bad_values_are_refused(wrong, message, affine):
    given = {"y": None, "epsilon": 0.1, "step_size": 0.1, "steps": 1} | wrong
    with pytest.raises(ValueError, match=message):
        pgd(affine, image(1.0, 0.0), given.pop("y"), **given)


def test_a_model_on_another_device_is_refused(network):
    elsewhere = nn.Linear(2, 2, device="meta").eval()
    with pytest.raises(ValueError, match="the model is on meta, x on cpu"):
        fgsm(elsewhere, image(1.0, 0.0), epsilon=0.1)


class TestThroughTheRandomisation:
    @pytest.fixture
    def guarded(self, trained):
        def make(seed=0):
            return RandomisedModel(vgg.fold_batch_norm(trained[0]), Randomise(), generator(seed))

        return make

    def test_draws_are_averaged_in_one_pass(self, guarded, trained):
        """eot=4 is the mean of four single gradients, with the same draws."""
        x, y = trained[1][:3], trained[2][:3]
        together = target.gradient(guarded(), x, y, loss="ce", eot=4)
        size, offset = Randomise().draw(12, generator(0))
        plain, singly = vgg.fold_batch_norm(trained[0]), []
        for rows in torch.arange(12).split(3):
            one = partial(Randomise(), draw=Draw(size[rows], offset[rows]))
            drawn = partial(lambda one, z: plain(one(z)), one)
            singly.append(target.gradient(drawn, x, y, loss="ce", eot=1))
        expected = sum(singly) / 4
        assert (together - expected).abs().max() <= 1e-4 * expected.abs().max()

    @pytest.mark.parametrize("name", ATTACKS)
    @pytest.mark.parametrize("mode", ["bilinear", "nearest"])
    def test_every_attack_goes_through(self, name, mode, trained):
        model, x, y = trained
        guarded = RandomisedModel(model, Randomise(mode=mode), generator(0))
        strength = {"fgsm": {"epsilon": 0.1}, "deepfool": {"steps": 3, "overshoot": 0.02}}
        strength["pgd"] = {"epsilon": 0.1, "step_size": 0.05, "steps": 3}
        x = x[:8]
        x_adv = ATTACKS[name](guarded, x, y[:8], eot=2, **strength[name])
        assert x_adv.shape == x.shape
        label = y[:8] if name != "deepfool" else attacks.predictions(guarded, x, eot=8)
        before, after = (mean_margin(guarded, clips, label) for clips in (x, x_adv))
        assert after.mean() > before.mean()

    def test_more_draws_hurt_more(self, guarded, trained):
        """The same budget, met by draws that the attack did not use."""
        x, y = trained[1][:12], trained[2][:12]

        def lost(eot):
            options = {"epsilon": 0.02, "step_size": 0.01, "steps": 4, "eot": eot}
            return mean_margin(guarded(9), pgd(guarded(1), x, y, **options), y).mean()

        assert lost(8) > lost(1) > mean_margin(guarded(9), x, y).mean()


def mean_margin(model, x, y, draws=8):
    """How far y has lost, on average over the model's draws; below zero where it has not."""
    return target.margin(target.mean_logits(model, x, draws), y)


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match="attack 'pdg' is unknown; choose from deepfool, fgsm"):
        attacks.make_attack(SETTINGS, "pdg")
