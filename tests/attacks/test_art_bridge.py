"""ART's attacks: each must fool a model that is weak on purpose."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedser_utils import attacks
from fedser_utils.attacks import ART_ATTACKS, art_attack
from fedser_utils.core.seeding import generator
from fedser_utils.learning import vgg
from fedser_utils.robustness.randomisation import Randomise, RandomisedModel

FEW = {
    "boundary": {"max_iter": 10},
    "hop_skip_jump": {"max_iter": 2, "max_eval": 50},
    "carlini_l2": {"binary_search_steps": 3},
    "carlini_linf": {"max_iter": 5},
}


@pytest.fixture(scope="module")
def weak():
    return vgg.WeakModel(7, generator=generator(0, "planted"))


@pytest.fixture(scope="module")
def clips():
    return torch.randn(5, 1, 373, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ART_ATTACKS)
def test_fools_a_weak_model(name, weak, clips):
    original, y = clips.clone(), attacks.predictions(weak, clips)
    states = np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    x_adv = art_attack(name, weak, clips, y, **FEW.get(name, {}))
    assert torch.equal(clips, original)
    assert x_adv.shape == clips.shape
    assert x_adv.dtype == clips.dtype
    assert torch.isfinite(x_adv).all()
    assert np.random.get_state()[1].tolist() == states[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])
    fooled = (attacks.predictions(weak, x_adv) != y).float().mean()
    assert fooled >= (0.8 if name == "universal" else 1)  # ART's universal stops at 80 %
    if "eps" in ART_ATTACKS[name][1]:
        assert (x_adv - clips).abs().max() <= ART_ATTACKS[name][1]["eps"] + 1e-5


@pytest.mark.parametrize("shape", [(311, 128), (32, 40)])
def test_squares_fit_images_of_any_shape(shape):
    model = vgg.WeakModel(3, size=shape[0] * shape[1], generator=generator(0, "planted"))
    x = torch.randn(2, 1, *shape, generator=generator(1, "clips"))
    x_adv = art_attack("square", model, x, max_iter=5)
    assert x_adv.shape == x.shape
    assert 0 < (x_adv - x).abs().max() <= 0.05 + 1e-5


def test_the_same_seed_gives_the_same_attack(weak, clips):
    one, other = (art_attack("square", weak, clips[:2], seed=3, max_iter=20) for _ in range(2))
    assert torch.equal(one, other)


def test_any_other_attack_by_its_own_name(weak, clips):
    y = attacks.predictions(weak, clips)
    x_adv = art_attack("MomentumIterativeMethod", weak, clips, y, eps=0.05, eps_step=0.01)
    assert (attacks.predictions(weak, x_adv) != y).all()


def test_through_the_randomisation(trained):
    model, x, y = trained
    model.zero_grad(set_to_none=True)
    guarded = RandomisedModel(model, Randomise(), generator(0, "draws"))
    x_adv = art_attack("auto_pgd_ce", guarded, x[:2], y[:2], eot=2, max_iter=2)
    assert (x_adv - x[:2]).abs().max() > 0.01
    assert all(p.grad is None for p in model.parameters())


def test_unknown_names_and_settings_list_the_choices(weak, clips):
    with pytest.raises(ValueError, match=r"'pgdd' is unknown; choose from auto_pgd_ce, .*DeepFool"):
        art_attack("pgdd", weak, clips)
    with pytest.raises(ValueError, match="setting of square 'epsilon' is unknown; choose from"):
        art_attack("square", weak, clips, epsilon=0.1)
    with pytest.raises(ValueError, match="norm of square 2 is unknown; choose from inf"):
        art_attack("square", weak, clips, norm=2)
    with pytest.raises(ValueError, match="NaN"):
        art_attack("square", weak, clips * torch.nan)


RACE = """
import importlib, multiprocessing, os, sys
import fedser_utils.attacks, art
homes = sys.argv[1:]

def child(barrier):  # everything but what is raced for has been imported
    for name in [n for n in sys.modules if n == "art.config" or n.startswith("fedser_utils")]:
        del sys.modules[name]
    barrier.wait()
    importlib.import_module("fedser_utils.attacks")
    importlib.import_module("art.config").ART_DATA_PATH

fork = multiprocessing.get_context("fork")
for home in homes:
    os.environ["HOME"] = home
    barrier = fork.Barrier(4)
    children = [fork.Process(target=child, args=[barrier]) for _ in range(4)]
    for each in children:
        each.start()
    for each in children:
        each.join()
    print(sum(each.exitcode != 0 for each in children), len(os.listdir(home)))
"""


def test_processes_that_start_at_once_on_an_empty_home_can_import_art(tmp_path):
    """20 races of four processes: nobody fails, and the home stays empty. (Without the first of a
    child's two imports the home does not, and now and then a process fails.)"""
    homes = [tmp_path / f"{i:02d}" for i in range(20)]
    for home in homes:
        home.mkdir()
    command = [sys.executable, "-c", RACE, *map(str, homes)]
    environment = os.environ | {"HOME": str(homes[0])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    failed_and_left = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert failed_and_left == [(0, 0)] * 20


@pytest.mark.parametrize("content", ["5", "[]", "", "{}", None])
def test_what_is_no_configuration_does_not_count(tmp_path, content):
    """Another package called art, too: then there is nothing to configure."""
    (tmp_path / ".art").mkdir()
    if content is None:
        (tmp_path / "art").mkdir()
        (tmp_path / "art" / "__init__.py").touch()
    else:
        (tmp_path / ".art" / "config.json").write_text(content)
    code = "from fedser_utils.attacks import art_bridge; print(art_bridge._home is None)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(content is None)


def test_a_users_own_configuration_of_art_is_kept(tmp_path):
    (tmp_path / ".art").mkdir()
    text = json.dumps({"ART_DATA_PATH": str(tmp_path / "data")})
    (tmp_path / ".art" / "config.json").write_text(text)
    code = "import fedser_utils.attacks; from art.config import ART_DATA_PATH as p; print(p)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "data")
    assert (tmp_path / ".art" / "config.json").read_text() == text
