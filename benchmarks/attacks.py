"""Claim: our attacks give what the Adversarial Robustness Toolbox gives, in less time. On two CPU
cores at width 0.25 FGSM and PGD are no slower than ART at any batch size and DeepFool is twice as
fast or more; on an H100 at full width FGSM does 9,000 clips/s, PGD 1,900 clips/s and DeepFool
2,000 clip-iterations/s.

    python benchmarks/attacks.py [--quick] [--device cuda] [--width 0.25] [--batches 1 8 32]

Both get the same trained model, clips and settings, in one run, warmed up, best of the repeats. The
model is trained here for some epochs: an
untrained one takes DeepFool another number of steps. ``folded`` and ``quick`` are what training
and evaluation use, ``plain`` is the very model that ART gets.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from ceilings import ceilings, forward_flop
from report import figure, options, save
from torch import Tensor, nn

from fedser_utils import attacks
from fedser_utils.analysis import metrics
from fedser_utils.core import devices
from fedser_utils.core.front_end import SPEECH
from fedser_utils.core.seeding import generator
from fedser_utils.core.settings import load_settings
from fedser_utils.data import federation
from fedser_utils.learning import local_training, vgg

WORDS = {"fgsm": "FGSM", "pgd": "PGD, 5 steps", "deepfool": "DeepFool, 5 steps"}
EPSILON, STEP, STEPS, OVERSHOOT, CLASSES = 0.05, 0.01, 5, 0.02, 7


def trained(width: float, clips: int, epochs: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A VGG-15 trained on the embedded corpus, and its clips."""
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


def arts(model: nn.Module, batch: int, device: str) -> dict[str, Callable]:
    """ART's three on the very model, through NumPy as ART works."""
    from art.attacks import evasion  # here: after fedser_utils.attacks, which makes that safe
    from art.estimators.classification import PyTorchClassifier

    target = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=(1, *SPEECH.shape), nb_classes=CLASSES,
        device_type="cpu" if device == "cpu" else "gpu",
    )  # fmt: skip
    made = {
        "fgsm": evasion.FastGradientMethod(target, eps=EPSILON, batch_size=batch),
        "pgd": evasion.ProjectedGradientDescent(
            target, eps=EPSILON, eps_step=STEP, max_iter=STEPS, batch_size=batch, verbose=False
        ),
        "deepfool": evasion.DeepFool(
            target, max_iter=STEPS, epsilon=OVERSHOOT, nb_grads=CLASSES, batch_size=batch,
            verbose=False,
        ),
    }  # fmt: skip

    def through_numpy(attack: evasion.DeepFool) -> Callable:
        return lambda x, y: torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy()))

    return {name: through_numpy(attack) for name, attack in made.items()}


def ours(model: nn.Module, batch: int) -> dict[str, Callable]:
    """Our three, batch by batch."""
    strength = SimpleNamespace(epsilon=EPSILON, step_size=STEP, steps=STEPS, overshoot=OVERSHOOT)

    def batched(attack: Callable) -> Callable:
        return lambda x, y: torch.cat(
            [attack(model, *part) for part in zip(x.split(batch), y.split(batch), strict=True)]
        )

    return {name: batched(attacks.make_attack(strength, name)) for name in attacks.ATTACKS}


def seconds(function: Callable, x: Tensor, y: Tensor, repeats: int) -> tuple[float, Tensor]:
    """The best of ``repeats`` after one to warm up, and what it made."""
    made, best = function(x, y), float("inf")
    for _ in range(repeats):
        _synchronise(x)
        start = time.perf_counter()
        made = function(x, y)
        _synchronise(x)
        best = min(best, time.perf_counter() - start)
    return best, made.to(x.device)


def _synchronise(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def deepfool_iterations(model: nn.Module, x: Tensor) -> int:
    """Steps that DeepFool takes on all clips together: a clip's end is where it is fooled."""
    total = 0
    for steps in range(STEPS):
        moved = attacks.deepfool(model, x, steps=steps, overshoot=0.0) if steps else x
        total += int((attacks.predictions(model, moved) == attacks.predictions(model, x)).sum())
    return total


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
    model, x, y = trained(width, given.clips or (32 if cpu else 512), given.epochs, given.device)
    targets = {"plain": model, "folded": vgg.fold_batch_norm(model)}
    if not cpu or devices.cpu_has_bf16():
        targets["quick"] = vgg.Bf16GradientModel(model)
    if not cpu:
        targets["quick, compiled"] = vgg.Bf16GradientModel(model, compiled=True)
    iterations = deepfool_iterations(targets["folded"], x)
    rows = []
    for batch in batches:
        theirs = arts(model, batch, given.device)
        for name, attack in theirs.items():
            most = x if cpu or name != "deepfool" else x[:64]  # ART's is slow on a GPU too
            slow, made = seconds(attack, most, y[: len(most)], given.repeats)
            row = {"attack": name, "batch": batch, "art_clips_per_s": len(most) / slow}
            row["art_uar"] = metrics.uar(y[: len(most)].cpu(), _said(model, made))
            for target, aim in targets.items():
                spent, made = seconds(ours(aim, batch)[name], x, y, given.repeats)
                key = target.replace(", ", "_")
                row[f"{key}_clips_per_s"] = len(x) / spent
                row[f"{key}_ratio"] = len(x) / spent / row["art_clips_per_s"]
                row[f"{key}_uar"] = metrics.uar(y.cpu(), _said(model, made))
                if name == "deepfool":
                    row[f"{key}_clip_iterations_per_s"] = iterations / spent
            rows.append(row)
    figures, best = [], ceilings(given.device)
    for row in rows:
        fastest = max((key for key in row if key.endswith("_ratio")), key=row.get)
        name, size = row["attack"], f"batch {row['batch']}, width {width:g}"
        what = f"{WORDS[name]} beside ART's, {size}"
        figures.append(figure(f"{name}_batch_{row['batch']}_ratio", row[fastest], what))
        if row["batch"] == batches[-1]:
            rate = row[fastest.replace("_ratio", "_clips_per_s")]
            figures.append(figure(f"{name}_clips_per_s", rate, f"{WORDS[name]}, {size}"))
            passes = {"fgsm": 2, "pgd": 2 * STEPS}.get(name, (1 + CLASSES) * iterations / len(x))
            flop = passes * forward_flop(model) * rate / best["matrix_product_tflop_per_s"] / 1e10
            figures.append(figure(f"{name}_percent", flop, f"{WORDS[name]}, of the matrix product"))
    facts = {"width": width, "clips": len(x), "uar": metrics.uar(y.cpu(), _said(model, x))}
    facts |= {"epsilon": EPSILON, "step_size": STEP, "steps": STEPS, "overshoot": OVERSHOOT}
    facts |= {"threads": torch.get_num_threads()} | best
    save("attacks", given.device, __doc__.split("\n\n")[0], rows, figures, given=given, **facts)


def _said(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([attacks.predictions(model, part) for part in x.split(32)]).cpu()


if __name__ == "__main__":
    main()
