"""Attacks on models whose answer can be worked out by hand, and contracts over the registry."""

import pytest
import torch
from torch import nn

from fedser_utils import attacks
from fedser_utils.attacks import ATTACKS, deepfool, fgsm, pgd

SETTINGS = {"epsilon": 0.05, "step_size": 0.01, "steps": 5, "overshoot": 0.02}


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


def image(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


def test_fgsm_steps_against_the_gradients_sign(affine):
    # class 0 is true: the loss grows with less of x0 and more of x1
    moved = fgsm(affine, image(1.0, 0.2), torch.tensor([0]), epsilon=0.1)
    torch.testing.assert_close(moved, image(0.9, 0.3))


def test_no_labels_means_the_models_own(affine):
    x = image(0.1, 0.9)
    own, given = (fgsm(affine, x, y, epsilon=0.1) for y in (None, torch.tensor([1])))
    assert torch.equal(own, given)


def test_pgd_steps_and_stays_in_the_ball(affine):
    x, y = image(1.0, 0.2), torch.tensor([0])
    two = pgd(affine, x, y, epsilon=0.05, step_size=0.02, steps=2)
    torch.testing.assert_close(two, image(0.96, 0.24))
    many = pgd(affine, x, y, epsilon=0.05, step_size=0.02, steps=9)
    torch.testing.assert_close(many, image(0.95, 0.25))


def test_deepfool_projects_on_the_boundary(affine):
    # boundary x0 = 2 x1; the distance of (1, 0.2) is 0.6 / sqrt(5), along (-1, 2) / sqrt(5)
    moved = deepfool(affine, image(1.0, 0.2), steps=5, overshoot=0.02)
    expected = image(1.0, 0.2) + 1.02 * 0.6 / 5 * image(-1.0, 2.0)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    assert attacks.predictions(affine, moved) == 1


def test_deepfool_chooses_the_nearest_class():
    model = Affine([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [1.0, 0.0, 0.4]).eval()
    moved = deepfool(model, image(0.0, 0.0), steps=1, overshoot=0.02)
    torch.testing.assert_close(moved, image(0.0, 0.612), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ATTACKS)
class TestContracts:
    def test_budget_and_inputs(self, name, network):
        attack = attacks.configured(name, **SETTINGS)
        for size in (1, 3):
            x, y = torch.randn(size, 1, 33, 17), torch.zeros(size, dtype=torch.long)
            kept = x.clone()
            moved = attack(network, x, y)
            assert torch.equal(x, kept)
            assert moved.shape == x.shape
            assert not moved.requires_grad
            assert torch.isfinite(moved).all()
            if name != "deepfool":
                assert (moved - x).abs().max() <= SETTINGS["epsilon"] + 1e-6
        assert all(p.grad is None for p in network.parameters())

    def test_batching_changes_nothing(self, name, network):
        attack = attacks.configured(name, **SETTINGS)
        x, y = torch.randn(5, 1, 33, 17), torch.tensor([0, 1, 2, 3, 4])
        singly = torch.cat([attack(network, x[i : i + 1], y[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(attack(network, x, y), singly, rtol=1e-4, atol=1e-4)

    def test_it_attacks(self, name, network):
        x = torch.randn(40, 1, 33, 17)
        y = attacks.predictions(network, x)
        strong = {"epsilon": 2.0, "step_size": 0.5, "steps": 50, "overshoot": 0.02}
        moved = attacks.configured(name, **strong)(network, x, y)
        assert (attacks.predictions(network, moved) != y).float().mean() > 0.9

    def test_training_mode_and_nan_are_refused(self, name, network):
        attack, y = attacks.configured(name, **SETTINGS), torch.zeros(1, dtype=torch.long)
        with pytest.raises(ValueError, match="training mode"):
            attack(nn.Linear(2, 2), image(0.0, 0.0), y)
        with pytest.raises(ValueError, match="NaN"):
            attack(network, image(0.0, float("nan")), y)


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match="attack 'pdg' is unknown; choose from deepfool, fgsm"):
        attacks.configured("pdg", **SETTINGS)


def test_perceptibility_by_hand():
    found = attacks.perceptibility(image(3.0, 4.0), image(3.3, 4.4))
    assert found["l2"] == pytest.approx(0.5, rel=1e-4)
    assert found["linf"] == pytest.approx(0.4, rel=1e-4)
    assert found["snr_db"] == pytest.approx(20, rel=1e-3)
