"""All other attacks, through the Adversarial Robustness Toolbox (ART; Nicolae et al., 2018).

Slower than this package's, since each step goes through NumPy. ART's defaults are for images in
[0, 1]; the ones here are for standardised log-Mel.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedser_utils.attacks import target
from fedser_utils.attacks.target import Model
from fedser_utils.core.errors import choose
from fedser_utils.core.seeding import derive, rng

# name: (class of art.attacks.evasion, settings that differ from ART's defaults)
_APGD = {"eps": 0.05, "eps_step": 0.02, "max_iter": 20, "nb_random_init": 1}
ART_ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto_pgd_ce": ("AutoProjectedGradientDescent", _APGD | {"loss_type": "cross_entropy"}),
    "auto_pgd_dlr": (
        "AutoProjectedGradientDescent",
        _APGD | {"loss_type": "difference_logits_ratio"},
    ),
    "carlini_l2": (
        "CarliniL2Method",
        {"batch_size": 32, "initial_const": 1.0, "binary_search_steps": 5},
    ),
    "carlini_linf": ("CarliniLInfMethod", {"batch_size": 32}),
    "square": ("SquareAttack", {"eps": 0.05, "max_iter": 300}),
    "hop_skip_jump": ("HopSkipJump", {"max_iter": 5, "max_eval": 500, "init_eval": 20}),
    "boundary": ("BoundaryAttack", {"max_iter": 20, "targeted": False}),
    "universal": (
        "UniversalPerturbation",
        {"eps": 0.05, "attacker": "pgd", "attacker_params": {"verbose": False}, "max_iter": 5},
    ),
}

_ONE_AT_A_TIME = threading.Lock()  # ART draws from generators that all threads share


def _configure_art() -> tempfile.TemporaryDirectory | None:
    """Give ART a data folder for this process alone, unless the user has configured one or ART is
    not installed. Returns that folder, or None.

    ART's ``config`` checks twice whether ``~/.art/config.json`` exists and writes it in between, so
    of several processes that import it with an empty home some die (ART 1.20). Here the module is
    executed with a temporary home, before anything imports the rest of ART.
    """
    spec = None
    with suppress(ImportError):
        spec = importlib.util.find_spec("art")
    source = Path(spec.origin).with_name("config.py") if spec and spec.origin else None
    if source is None or not source.exists() or "art.config" in sys.modules:
        return None
    with suppress(OSError, ValueError):
        config = json.loads(Path(os.path.expanduser("~/.art/config.json")).read_text())
        if isinstance(config, dict) and "ART_DATA_PATH" in config:
            return None
    home = tempfile.TemporaryDirectory(prefix="fedser-art-")
    spec = importlib.util.spec_from_file_location("art.config", source)
    module = importlib.util.module_from_spec(spec)
    before, os.environ["HOME"] = os.environ.get("HOME"), home.name
    try:
        spec.loader.exec_module(module)
    finally:
        os.environ.pop("HOME") if before is None else os.environ.update(HOME=before)
    sys.modules["art.config"] = module
    return home


_home = _configure_art()  # removed when this process ends


def art_attack(
    name: str,
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    eot: int = 1,
    seed: int = 0,
    **settings: Any,
) -> Tensor:
    """Return the adversarial clips of ART's attack called ``name``.

    name: one of ``ART_ATTACKS``, or any class of ``art.attacks.evasion`` that needs no more than a
    classifier, by its class name (``ElasticNet``). x: (batch, 1, frames, mels) standardised
    log-Mel; y: (batch,) labels, or None for the model's own predictions. eot: draws of a
    randomised model, whose logits are averaged. seed: of the attack's random draws. settings: of
    ART's class, by ART's names (eps, max_iter).

    square: ART's first square is wider than an image has Mel bands and crashes, so it starts with
    one that fits; L-inf only. boundary, hop_skip_jump: they start from the nearest clip of the
    batch that the model predicts another class for, or from noise where there is none.

    Returns x_adv, shaped as x and on its device. Raises ValueError as ``target.prepare`` does, and
    InputError for an unknown name or setting, with the choices.
    """
    from art.attacks import evasion

    names = [*ART_ATTACKS, *_classes(evasion)]
    class_name, defaults = ART_ATTACKS.get(choose("attack", name, names), (name, {}))
    attack_class = getattr(evasion, class_name)
    signature = inspect.signature(attack_class).parameters
    classifier_name, *options = signature
    for setting in settings:
        choose(f"setting of {name}", setting, options)
    x, y = target.prepare(model, x, y, eot=eot)
    classes = target.mean_logits(model, x[:1]).shape[1]
    settings = {"verbose": False} | defaults | settings
    clip_values = None
    if class_name == "SquareAttack":
        choose("norm of square", settings.get("norm", np.inf), (np.inf, "inf"))
        settings = {"p_init": _widest_square(x)} | settings
        eps = settings.get("eps", signature["eps"].default)
        clip_values = (x.min().item() - eps, x.max().item() + eps)  # ART insists on a range
    start = {}
    if class_name in ("HopSkipJump", "BoundaryAttack"):
        start = {"x_adv_init": _nearest_of_another_class(model, x, eot)}
    with _ONE_AT_A_TIME, _seeded(derive(seed, "art", name)):
        classifier = _classifier(_Frozen(model, eot), x, classes, clip_values)
        applicable = {option: value for option, value in settings.items() if option in options}
        attack = attack_class(**{classifier_name: classifier}, **applicable)
        x_adv = attack.generate(x.cpu().numpy(), y.cpu().numpy(), **start)
    return torch.as_tensor(x_adv, dtype=x.dtype, device=x.device)


def _classes(evasion: Any) -> list[str]:
    """Names of ART's evasion attacks that need a classifier and no more."""
    names = []
    for name, attack_class in inspect.getmembers(evasion, inspect.isclass):
        first, *others = inspect.signature(attack_class).parameters.values()
        needs_more = any(p.default is p.empty for p in others)
        if first.name in ("classifier", "estimator") and not needs_more:
            names.append(name)
    return names


class _Frozen(nn.Module):
    """The model's mean logits over ``eot`` draws, without its parameters: ART would compute and
    store a gradient for each."""

    def __init__(self, model: Model, eot: int) -> None:
        super().__init__()
        self._model = [model]  # in a list: not a submodule
        self.eot = eot

    def forward(self, x: Tensor) -> Tensor:
        (model,) = self._model
        call = model
        if isinstance(model, nn.Module):
            parameters = {name: value.detach() for name, value in model.named_parameters()}
            call = partial(torch.func.functional_call, model, parameters)
        return target.logits(call, x.float(), self.eot).mean(0)  # ART mixes float64 in


def _classifier(
    model: nn.Module, x: Tensor, classes: int, clip_values: tuple[float, float] | None
) -> Any:
    """ART's classifier for the model on images shaped as x's."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=classes,
        clip_values=clip_values, device_type="gpu" if x.is_cuda else "cpu",
    )  # fmt: skip


def _widest_square(x: Tensor) -> float:
    """The fraction of the image in Square's first square, ART's 0.8 where that fits: ART draws the
    square's place from ``range(width - side)``."""
    height, width = x.shape[2:]
    side = min(height, width) - 1
    return min(0.8, side**2 / (height * width))


def _nearest_of_another_class(model: Model, x: Tensor, eot: int) -> np.ndarray:
    """For each clip the nearest one (L2) with another prediction, or noise; shaped as x."""
    predicted = target.predictions(model, x, eot=eot)
    distances = torch.cdist(x.flatten(1), x.flatten(1))
    distances[predicted[:, None] == predicted] = torch.inf
    distance, index = distances.min(1)
    start = x[index].cpu().numpy()
    none = distance.isinf().cpu().numpy()
    largest = x.abs().max().item()
    noise = rng(0, "art", "start").uniform(-largest, largest, start.shape)
    start[none] = noise[none].astype(start.dtype)
    return start


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that ART draws from, and restore them afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.set_state(np.random.RandomState(seed % 2**32).get_state())  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
