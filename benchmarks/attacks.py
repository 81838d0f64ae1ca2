"""Claim: these attacks give what the Adversarial Robustness Toolbox gives, in less time. On two CPU
cores at width 0.25 FGSM and PGD are no slower than ART at any batch size and DeepFool is twice as
fast or more; on an H100 at full width FGSM does 9,000 clips/s, PGD 1,900 clips/s and DeepFool
2,000 clip-iterations/s.

    python benchmarks/attacks.py [--quick] [--device cuda] [--width 0.25] [--batches 1 8 32]

Both attack the same trained model and clips with the same settings, in one run, after a warm-up;
the best repeat counts. The model is trained here for some epochs, since DeepFool takes another
number of steps on an untrained one. In the rows, ``plain`` is the model that ART attacks;
``folded`` (``vgg.fold_batch_norm``) and ``quick`` (``vgg.Bf16GradientModel``) are its copies that
training and evaluation attack.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from ceilings import ceilings, forward_flop
from report import figure, options, save
from torch import Tensor, nn

from fedser_utils import attacks
from fedser_utils.analysis import metrics
from fedser_utils.core import devices
from fedser_utils.core.front_end import SPEECH
from fedser_utils.core.presets import load_settings
from fedser_utils.core.seeding import generator
from fedser_utils.data import federation
from fedser_utils.learning import local_training, vgg

LABELS = {"fgsm": "FGSM", "pgd": "PGD, 5 steps", "deepfool": "DeepFool, 5 steps"}
EPSILON, STEP, STEPS, OVERSHOOT, CLASSES = 0.05, 0.01, 5, 0.02, 7


def train(width: float, clips: int, epochs: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a VGG-15 trained on the synthetic corpus, x: (clips, 1, frames, mels) and y."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings("smoke", outputs=folder, speakers=4, clips=max(clips, 140))
        data = federation.load_federation(settings)
        x, y = data.tensors(data.clips, device=device)
    model = vgg.build(CLASSES, width=width, generator=generator(0, "init")).to(device)
    update = local_training.client_update(
        model, {k: v.clone() for k, v in vgg.state_arrays(model).items()}, x, y,
        generator=generator(0, "benchmark"), epochs=epochs, batch_size=8, learning_rate=1e-3,
        bf16=device != "cpu",
    )  # fmt: skip
    return vgg.load_arrays(model, update.weights).eval(), x[:clips], y[:clips]


def art_attacks(model: nn.Module, batch: int, device: str) -> dict[str, Callable]:
    """Return ART's three attacks on the model, ``(x, y) -> x_adv``, through NumPy as ART works."""
    from art.attacks import evasion  # here: after fedser_utils.attacks, which makes that safe
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=(1, *SPEECH.shape), nb_classes=CLASSES,
        device_type="cpu" if device == "cpu" else "gpu",
    )  # fmt: skip
    by_name = {
        "fgsm": evasion.FastGradientMethod(classifier, eps=EPSILON, batch_size=batch),
        "pgd": evasion.ProjectedGradientDescent(
            classifier, eps=EPSILON, eps_step=STEP, max_iter=STEPS, batch_size=batch, verbose=False
        ),
        "deepfool": evasion.DeepFool(
            classifier, max_iter=STEPS, epsilon=OVERSHOOT, nb_grads=CLASSES, batch_size=batch,
            verbose=False,
        ),
    }  # fmt: skip

    def through_numpy(attack: evasion.DeepFool) -> Callable:
        return lambda x, y: torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy()))

    return {name: through_numpy(attack) for name, attack in by_name.items()}


def fedser_attacks(model: nn.Module, batch: int) -> dict[str, Callable]:
    """Return this package's three attacks on the model, ``(x, y) -> x_adv``, batch by batch."""
    strength = SimpleNamespace(epsilon=EPSILON, step_size=STEP, steps=STEPS, overshoot=OVERSHOOT)

    def batched(attack: Callable) -> Callable:
        return lambda x, y: torch.cat(
            [attack(model, *part) for part in zip(x.split(batch), y.split(batch), strict=True)]
        )

    return {name: batched(attacks.make_attack(strength, name)) for name in attacks.ATTACKS}


def seconds(function: Callable, x: Tensor, y: Tensor, repeats: int) -> tuple[float, Tensor]:
    """Return the seconds of the best of ``repeats`` after a warm-up, and the adversarial clips."""
    x_adv, best = function(x, y), float("inf")
    for _ in range(repeats):
        _synchronise(x)
        start = time.perf_counter()
        x_adv = function(x, y)
        _synchronise(x)
        best = min(best, time.perf_counter() - start)
    return best, x_adv.to(x.device)


def _synchronise(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def deepfool_iterations(model: nn.Module, x: Tensor) -> int:
    """Return how many steps DeepFool takes on all clips together: each ends where it is fooled."""
    total = 0
    for steps in range(STEPS):
        x_adv = attacks.deepfool(model, x, steps=steps, overshoot=0.0) if steps else x
        total += int((attacks.predictions(model, x_adv) == attacks.predictions(model, x)).sum())
    return total


def compare(
    copies: Mapping[str, nn.Module], x: Tensor, y: Tensor, *, batch: int, iterations: int,
    repeats: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return a row per attack: clips per second and UAR, of ART and of the attack on each copy.

    copies: names in the rows -> copies of the model "plain", which ART attacks; iterations: of
    DeepFool on all clips.
    """
    model, rows = copies["plain"], []
    for name, attack in art_attacks(model, batch, x.device.type).items():
        few = x[:64] if x.is_cuda and name == "deepfool" else x  # ART's is slow on a GPU too
        spent, x_adv = seconds(attack, few, y[: len(few)], repeats)
        row = {"attack": name, "batch": batch, "art_clips_per_s": len(few) / spent}
        row["art_uar"] = uar(model, x_adv, y[: len(few)])
        for key, copy in copies.items():
            spent, x_adv = seconds(fedser_attacks(copy, batch)[name], x, y, repeats)
            row[f"{key}_clips_per_s"] = len(x) / spent
            row[f"{key}_ratio"] = len(x) / spent / row["art_clips_per_s"]
            row[f"{key}_uar"] = uar(model, x_adv, y)
            if name == "deepfool":
                row[f"{key}_clip_iterations_per_s"] = iterations / spent
        rows.append(row)
    return rows


def uar(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the model's UAR in percent on x: (n, 1, frames, mels), y: (n,)."""
    y_pred = torch.cat([attacks.predictions(model, part) for part in x.split(32)])
    return metrics.uar(y.cpu(), y_pred.cpu())


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--width", type=float, help="0.25 on CPU, 1 on a GPU")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--clips", type=int)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    given.device = devices.resolve_device(load_settings("paper", device=given.device))
    cpu = given.device == "cpu"
    if given.quick:
        given.width, given.batches, given.clips, given.epochs = 1 / 32, [4], 8, 1
        given.repeats = 1
    width = given.width or (0.25 if cpu else 1.0)
    batches = given.batches or ([1, 8, 32] if cpu else [8, 64, 128])
    model, x, y = train(width, given.clips or (32 if cpu else 512), given.epochs, given.device)
    copies = {"plain": model, "folded": vgg.fold_batch_norm(model)}
    if not cpu or devices.cpu_has_bf16():
        copies["quick"] = vgg.Bf16GradientModel(model)
    if not cpu:
        copies["quick_compiled"] = vgg.Bf16GradientModel(model, compiled=True)
    iterations = deepfool_iterations(copies["folded"], x)
    rows = []
    for batch in batches:
        rows += compare(copies, x, y, batch=batch, iterations=iterations, repeats=given.repeats)
    figures, best = [], ceilings(given.device)
    for row in rows:
        fastest = max((key for key in row if key.endswith("_ratio")), key=row.get)
        name, size = row["attack"], f"batch {row['batch']}, width {width:g}"
        what = f"{LABELS[name]} beside ART's, {size}"
        figures.append(figure(f"{name}_batch_{row['batch']}_ratio", row[fastest], what))
        if row["batch"] == batches[-1]:
            rate = row[fastest.replace("_ratio", "_clips_per_s")]
            figures.append(figure(f"{name}_clips_per_s", rate, f"{LABELS[name]}, {size}"))
            passes = {"fgsm": 2, "pgd": 2 * STEPS}.get(name, (1 + CLASSES) * iterations / len(x))
            flop = passes * forward_flop(model) * rate / best["matrix_product_tflop_per_s"] / 1e10
            figures.append(
                figure(f"{name}_percent", flop, f"{LABELS[name]}, of the matrix product")
            )
    facts = {"width": width, "clips": len(x), "uar": uar(model, x, y)}
    facts |= {"epsilon": EPSILON, "step_size": STEP, "steps": STEPS, "overshoot": OVERSHOOT}
    facts |= {"threads": torch.get_num_threads()} | best
    save("attacks", given.device, __doc__.split("\n\n")[0], rows, figures, given=given, **facts)


if __name__ == "__main__":
    main()
