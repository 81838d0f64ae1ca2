"""Ours and the Adversarial Robustness Toolbox's on one trained model; the traps ART holds."""

import inspect
from importlib import metadata

import numpy as np
import pytest
import torch
from art.attacks import evasion
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.nn.functional import cross_entropy

from fedser_utils.attacks import deepfool, fgsm, pgd, predictions

EPSILON, STEP, STEPS, OVERSHOOT = 0.05, 0.01, 5, 0.02


@pytest.fixture(scope="module")
def clips(trained):
    return trained[1][:24], trained[2][:24]


def classifier(model, **options):
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=(1, 373, 64), nb_classes=7, device_type="cpu",
        **options,
    )  # fmt: skip


def arts(name, model, x, y=None, *, clip_values=None, **settings):
    kind = getattr(evasion, name)
    quiet = {} if name == "FastGradientMethod" else {"verbose": False}
    attack = kind(classifier(model, clip_values=clip_values), **quiet, **settings)
    return torch.from_numpy(attack.generate(x.numpy(), None if y is None else y.numpy()))


def assert_same_effect(model, x, y, ours, theirs):
    """The same decision on 99 % of the clips, the mean loss within 0.1 %."""
    decided = [predictions(model, x_adv) for x_adv in (ours, theirs)]
    assert (decided[0] == decided[1]).float().mean() >= 0.99
    with torch.no_grad():
        losses = [cross_entropy(model(x_adv), y).item() for x_adv in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("labels", ["true", "own"])
def test_fgsm(labels, trained, clips):
    model, (x, y) = trained[0], clips
    y = y if labels == "true" else None
    theirs = arts("FastGradientMethod", model, x, y, eps=EPSILON, batch_size=len(x))
    torch.testing.assert_close(fgsm(model, x, y, epsilon=EPSILON), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "epsilon", "step"), [("linf", EPSILON, STEP), ("l2", 2.0, 0.6)], ids=["linf", "l2"]
)
@pytest.mark.parametrize("batch", [7, 24])
def test_pgd(norm, epsilon, step, batch, trained, clips):
    model, (x, y) = trained[0], clips
    theirs = arts(
        "ProjectedGradientDescent", model, x, y, norm=np.inf if norm == "linf" else 2, eps=epsilon,
        eps_step=step, max_iter=STEPS, batch_size=batch,
    )  # fmt: skip
    ours = pgd(model, x, y, epsilon=epsilon, step_size=step, steps=STEPS, norm=norm)
    if norm == "linf":
        assert ((ours - theirs).abs() <= 1e-5).float().mean() >= 0.98
    else:
        distance = (ours - theirs).flatten(1).norm(dim=1)
        assert (distance <= 0.02 * epsilon).float().mean() >= 0.9
    assert_same_effect(model, x, y, ours, theirs)


def test_deepfool(trained, clips):
    model, (x, y) = trained[0], (part[:16] for part in clips)
    theirs = arts(
        "DeepFool", model, x, max_iter=STEPS, epsilon=OVERSHOOT, nb_grads=7, batch_size=16
    )
    ours = deepfool(model, x, steps=STEPS, overshoot=OVERSHOOT)
    lengths = [(x_adv - x).flatten(1).norm(dim=1) for x_adv in (ours, theirs)]
    torch.testing.assert_close(*lengths, rtol=1e-3, atol=1e-6)
    fooled = [predictions(model, x_adv) != predictions(model, x) for x_adv in (ours, theirs)]
    assert (fooled[0] == fooled[1]).float().mean() >= 0.99
    assert fooled[0].float().mean() > 0.5
    assert_same_effect(model, x, y, ours, theirs)


class TestTraps:
    """What a comparison with ART must set, because ART's own choice is another one."""

    def test_deepfool_scales_by_the_clip_range(self, trained, clips):
        model, x = trained[0], clips[0][:4]
        settings = {"max_iter": 1, "epsilon": 0.0, "nb_grads": 7, "batch_size": 4}
        plain = arts("DeepFool", model, x, **settings) - x
        scaled = arts("DeepFool", model, x, clip_values=(-20.0, 20.0), **settings) - x
        torch.testing.assert_close(scaled, 40 * plain, rtol=1e-3, atol=1e-4)
        ours = deepfool(model, x, steps=1, overshoot=0.0) - x
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)

    def test_deepfool_ignores_labels(self, trained, clips):
        model, x = trained[0], clips[0][:2]
        settings = {"max_iter": 1, "epsilon": 0.0, "nb_grads": 7}
        one, other = (arts("DeepFool", model, x, torch.tensor([k, k]), **settings) for k in (0, 1))
        assert torch.equal(one, other)
        ours = [deepfool(model, x, torch.tensor([k, k]), steps=1, overshoot=0.0) for k in (0, 1)]
        assert torch.equal(*ours)

    def test_deepfool_among_few_classes_reads_the_wrong_logits(self):
        """ART takes a class's place among the likeliest for its number: here it stands still."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3)).eval()
        model[1].weight.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        model[1].bias.data = torch.tensor([-9.0, 0.0, 0.5])
        options = {"input_shape": (1, 1, 2), "nb_classes": 3, "device_type": "cpu"}
        target = PyTorchClassifier(model, nn.CrossEntropyLoss(), **options)
        x = torch.zeros(1, 1, 1, 2)
        settings = {"max_iter": 1, "epsilon": 0.0, "verbose": False}
        few, all_ = (
            torch.from_numpy(evasion.DeepFool(target, nb_grads=k, **settings).generate(x.numpy()))
            for k in (2, 3)
        )
        expected = torch.tensor([0.25, -0.25]).view_as(x)
        assert torch.equal(few, x)
        torch.testing.assert_close(all_, expected, rtol=1e-4, atol=1e-6)
        for classes in (2, 3, None):
            ours = deepfool(model, x, steps=1, overshoot=0.0, classes=classes)
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)

    def test_defaults(self):
        defaults = {
            name: {k: p.default for k, p in inspect.signature(kind).parameters.items()}
            for name, kind in vars(evasion).items()
            if inspect.isclass(kind)
        }
        assert defaults["DeepFool"]["epsilon"] == 1e-6
        assert defaults["DeepFool"]["batch_size"] == 1
        assert defaults["ProjectedGradientDescent"]["eps_step"] == 0.1
        assert defaults["BoundaryAttack"]["targeted"] is True

    def test_a_step_beyond_the_ball_is_taken_without_a_word(self, trained, clips):
        model, x, y = trained[0], clips[0][:2], clips[1][:2]
        x_adv = arts("ProjectedGradientDescent", model, x, y, eps=0.05, max_iter=1)  # step 0.1
        torch.testing.assert_close(x_adv, fgsm(model, x, y, epsilon=0.05), rtol=0, atol=1e-6)

    def test_no_labels_mean_the_models_own_decisions(self, trained, clips):
        model, x = trained[0], clips[0][:4]
        own = predictions(model, x)
        settings = {"eps": EPSILON, "eps_step": STEP, "max_iter": 2}
        one, other = (
            arts("ProjectedGradientDescent", model, x, y, **settings) for y in (None, own)
        )
        assert torch.equal(one, other)

    def test_square_crashes_on_a_narrow_image(self, trained, clips):
        model, x = trained[0], clips[0][:1]
        with pytest.raises(ValueError, match="high <= 0"):
            arts("SquareAttack", model, x, clip_values=(-20.0, 20.0), eps=1e-9, max_iter=1)

    def test_auto_attack_needs_a_package_it_does_not_declare(self):
        needed = metadata.requires("adversarial-robustness-toolbox")
        always = [line for line in needed if "extra ==" not in line]
        assert not any(line.startswith("multiprocess") for line in always)
        assert "multiprocess" in inspect.getsource(inspect.getmodule(evasion.AutoAttack))
