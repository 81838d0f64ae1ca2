"""Claim: on one H100 the paper's four trainings with all their evaluations take under 90 minutes,
where the ordinary way (eager PyTorch, ART's attacks, one client after another) takes many times as
long; on two CPU cores the demo's four trainings take less than two thirds of the ordinary way's
time.

    python benchmarks/study.py [--quick] [--device cuda] [--preset paper] [--rounds 3] [--phases]

Both ways get the same clips, weights and draws, in one run. Ours is the whole round: Flower's
strategy, records, attacks, training, averaging. The ordinary way is timed on some clients and some
test clips, and extrapolated by their numbers. All is timed from the same model, trained for a few
natural rounds; a study's minutes are its rounds, evaluations and checkpoints. Ceilings are measured
beside it: a large matrix product and a large copy. --phases prints where a round's time goes.
"""

from __future__ import annotations

import functools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ceilings import ceilings, clock, forward_flop
from flwr.app import ConfigRecord
from report import figure, options, save
from torch import Tensor, nn

from fedser_utils import attacks
from fedser_utils.core import checkpoints, devices
from fedser_utils.core.settings import Settings, load_settings
from fedser_utils.data import federation
from fedser_utils.data.federation import Federation
from fedser_utils.federated import client_app, strategies
from fedser_utils.federated.client import (
    attack_names,
    client_clips,
    client_generator,
    decisions,
    evaluation_target,
    is_fast,
    new_model,
    resolve_device,
    uses_bf16,
)
from fedser_utils.federated.grids import cohort
from fedser_utils.federated.grids.cohort_trainer import GROUP, Total
from fedser_utils.federated.grids.multi_gpu import trainer_of
from fedser_utils.learning import local_training, vgg
from fedser_utils.robustness import evaluation
from fedser_utils.robustness.randomisation import Randomise

WORDS = {"none": "Nature", "fgsm": "FGSM", "pgd": "PGD", "deepfool": "DeepFool"}
BATCH = 8  # the ordinary way's, everywhere


class Ours:
    """A run's grid, its strategy and its model, round by round."""

    def __init__(self, settings: Settings, data: Federation, pool, trainer) -> None:
        examples = [len(data.table("train", client)) for client in data.clients]
        self.settings, self.data, self.pool = settings, data, pool
        self.grid = cohort.CohortGrid(
            settings, data.clients, examples, pool=pool, preaggregate=True, trainer=trainer
        )
        self.strategy = strategies.make_strategy(
            "FedAvg", first_round=0, seed=settings.seed, min_replies=1.0, buffers=()
        )
        model = new_model(settings, len(data.classes))
        self.arrays = client_app.as_record(vgg.state_arrays(model))

    def round(self, number: int) -> float:
        """Seconds of one round."""
        begin = _now(self.settings)
        messages = self.strategy.configure_train(number, self.arrays, ConfigRecord(), self.grid)
        replies = self.grid.send_and_receive(messages)
        self.arrays, _ = self.strategy.aggregate_train(number, replies)
        return _now(self.settings) - begin

    def evaluation(self, x: Tensor, y: Tensor) -> float:
        """Seconds of one evaluation."""
        model = self.model()
        begin = _now(self.settings)
        last = self.settings.rounds
        decisions(self.settings, model, (x, y), last, seed=0, pool=self.pool)
        return _now(self.settings) - begin

    def checkpoint(self) -> float:
        """Seconds of one checkpoint."""
        begin = _now(self.settings)
        with tempfile.TemporaryDirectory() as folder:
            states = {f"client-{n}": own for n, own in self.grid.client_states().items()}
            parts = {"weights": {k: v.numpy() for k, v in self.arrays.items()}} | states
            checkpoints.save(Path(folder), 1, parts)
        return _now(self.settings) - begin

    def model(self) -> vgg.VGG15:
        """On the device, in evaluation mode."""
        device = resolve_device(self.settings)
        model = new_model(self.settings, len(self.data.classes)).to(device)
        return vgg.load_arrays(model, dict(self.arrays.to_torch_state_dict())).eval()


class Ordinary(nn.Module):
    """The network as it is usually written: no channels_last, no folding."""

    def __init__(self, model: vgg.VGG15) -> None:
        super().__init__()
        self.features = model.features.to(memory_format=torch.contiguous_format)
        self.classifier = model.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def arts(model: Ordinary, settings: Settings, classes: int) -> dict[str, Callable]:
    """ART's three attacks, (x, y) -> x_adv."""
    from art.attacks import evasion  # here: after fedser_utils.attacks, which makes that safe
    from art.estimators.classification import PyTorchClassifier

    device = resolve_device(settings)
    target = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), nb_classes=classes,
        input_shape=(1, *settings.front_end.shape),
        device_type="cpu" if device == "cpu" else "gpu",
    )  # fmt: skip
    own = {"batch_size": BATCH}
    made = {
        "fgsm": evasion.FastGradientMethod(target, eps=settings.epsilon, **own),
        "pgd": evasion.ProjectedGradientDescent(
            target, eps=settings.epsilon, eps_step=settings.step_size, max_iter=settings.steps,
            verbose=False, **own,
        ),
        "deepfool": evasion.DeepFool(
            target, max_iter=settings.steps, epsilon=settings.overshoot, nb_grads=classes,
            verbose=False, **own,
        ),
    }  # fmt: skip

    def through_numpy(attack: Any, x: Tensor, y: Tensor) -> Tensor:
        moved = attack.generate(x.cpu().numpy(), y.cpu().numpy())
        return torch.from_numpy(moved).to(x.device)

    return {name: functools.partial(through_numpy, attack) for name, attack in made.items()}


def ordinary_client(
    settings: Settings, model: vgg.VGG15, x: Tensor, y: Tensor, client: str
) -> float:
    """Seconds of one client's adversarial round (natural without an attack), the ordinary way."""
    classes = len(model.classifier[2].bias)
    made = Ordinary(_copied(model))
    begin = _now(settings)
    attack = settings.attack != "none"
    plan = local_training.make_schedule(
        len(x), epochs=settings.local_epochs, batch_size=settings.batch_size, attack=attack,
        generator=client_generator(settings, client, 2),
    )  # fmt: skip
    if attack:
        made.eval()
        x, rows = x.clone(), plan.attacked.to(x.device)
        x[rows] = arts(made, settings, classes)[settings.attack](x[rows], y[rows])
    made.train()
    adam = torch.optim.Adam(made.parameters(), lr=settings.learning_rate)
    for clean, adversarial in plan.steps:
        rows = torch.cat([clean, adversarial]).to(x.device)
        losses = nn.functional.cross_entropy(made(x[rows]), y[rows], reduction="none")
        part = losses[: len(clean)], losses[len(clean) :]
        adam.zero_grad()
        local_training.mixed_loss(*part, alpha=settings.alpha).backward()
        adam.step()
    return _now(settings) - begin


def ordinary_evaluation(settings: Settings, model: vgg.VGG15, x: Tensor, y: Tensor) -> float:
    """Seconds of an evaluation of clips, the ordinary way."""
    made = Ordinary(_copied(model)).eval()
    randomise = Randomise.on(settings.front_end.shape, mode=settings.resize)
    begin = _now(settings)
    named = arts(made, settings, len(model.classifier[2].bias))
    for name in ("none", *attack_names(settings, settings.rounds)):
        seen = x if name == "none" else named[name](x, y)
        with torch.no_grad():
            for part in seen.split(BATCH):
                made(part)
                draw = randomise.draw(len(part), torch.Generator().manual_seed(0))
                made(randomise(part, type(draw)(*(p.to(part.device) for p in draw))))
    return _now(settings) - begin


def _copied(model: vgg.VGG15) -> vgg.VGG15:
    arrays = {name: value.clone() for name, value in vgg.state_arrays(model).items()}
    width = len(arrays["features.0.weight"]) / 64
    made = vgg.VGG15(len(model.classifier[2].bias), width=width)
    return vgg.load_arrays(made, arrays).to(model.classifier[0].bias.device)


def _now(settings: Settings) -> float:
    return clock(resolve_device(settings))


@contextmanager
def phases(device: str, found: dict[str, float]) -> Iterator[None]:
    """Inside, the seconds of a round's parts are added to ``found``."""
    from fedser_utils.federated.grids.cohort_trainer import Trainer
    from fedser_utils.learning.gpu_engine import Engine

    parts = {
        "attacks": (Trainer, "_attacked"),
        "lanes": (Engine, "_fit"),
        "averaging": (Trainer, "_add"),
        "training": (Trainer, "round"),
        "messages": (cohort.CohortGrid, "send_and_receive"),
    }

    def timed(name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*arguments, **options):
            begin = clock(device)
            try:
                return function(*arguments, **options)
            finally:
                found[name] += clock(device) - begin

        return run

    before = {name: getattr(*where) for name, where in parts.items()}
    for name, (owner, attribute) in parts.items():
        setattr(owner, attribute, timed(name, before[name]))
    try:
        yield
    finally:
        for name, (owner, attribute) in parts.items():
            setattr(owner, attribute, before[name])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--preset", help="demo on a CPU, paper on a GPU")
    parser.add_argument("--rounds", type=int, default=3, help="that are timed, of each training")
    parser.add_argument("--warm", type=int, help="natural rounds before: 3 on a CPU, 10 on a GPU")
    parser.add_argument("--sample", type=int, default=2, help="clients of the ordinary way")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--phases", action="store_true")
    given = parser.parse_args()
    device = resolve_device(load_settings("paper", device=given.device))
    cpu = device == "cpu"
    changes = {"device": given.device, "precision": given.precision, "engine": given.engine}
    if given.quick:
        changes |= {"speakers": 2, "clips": 28, "width": 1 / 32, "local_epochs": 1}
        given.rounds, given.sample, given.warm = 1, 1, 1
    preset = given.preset or ("demo" if cpu else "paper")
    settings = load_settings(preset, **changes)
    data = federation.load_federation(settings)
    x, y = data.tensors(data.table("test"), device=device)
    few = slice(None, max(7, len(x) // 16))
    examples = [len(data.table("train", client)) for client in data.clients]
    rows, share, start = [], _middle(data, given.sample), None
    for attack, word in WORDS.items():
        own = load_settings(preset, attack=attack, **changes)
        begin = clock(device)
        with (
            devices.worker_pool(device) as pool,
            trainer_of(own, data.clients, examples, pool=pool) as trainer,
        ):
            ours = Ours(own, data, pool, trainer)
            if start is None:
                warm = given.warm or (3 if cpu else 10)
                for _ in range(warm):
                    ours.round(1)
                start = ours.arrays
            begin = clock(device) if attack == "none" else begin
            ours.arrays = start
            ours.round(2)  # to warm up: captures, compilation
            starting = clock(device) - begin
            seconds, parts = [], defaultdict(float)
            for number in range(3, 3 + given.rounds):
                if given.phases:
                    with phases(device, parts):
                        seconds.append(ours.round(number))
                else:
                    seconds.append(ours.round(number))
            ours.arrays = start
            ours.evaluation(x[few], y[few])
            evaluating, saving = ours.evaluation(x, y), ours.checkpoint()
            model = ours.model()
        sampled = [(name, client_clips(own, name, "train")) for name in share]
        ordinary_client(own, model, *(v[:BATCH] for v in sampled[0][1]), sampled[0][0])
        slow = sum(ordinary_client(own, model, *clips, client) for client, clips in sampled)
        slow *= sum(examples) / sum(len(clips[1]) for _, clips in sampled)
        slow_evaluating = ordinary_evaluation(own, model, x[few], y[few]) * len(x) / len(x[few])
        evaluations = -(-own.rounds // own.eval_every)
        saves = -(-own.rounds // (own.checkpoint_every or own.eval_every))
        round_s = float(np.median(seconds))
        minutes = starting + own.rounds * round_s + evaluations * evaluating + saves * saving
        row = {
            "training": word,
            "rounds_per_minute": 60 / round_s,
            "ordinary_rounds_per_minute": 60 / slow,
            "ratio": slow / round_s,
            "evaluation_s": evaluating,
            "ordinary_evaluation_s": slow_evaluating,
            "checkpoint_s": saving,
            "starting_s": starting,
            "minutes": minutes / 60,
            "ordinary_minutes": (own.rounds * slow + evaluations * slow_evaluating) / 60,
        }
        rows.append(row | {f"{name}_s": spent / given.rounds for name, spent in parts.items()})
        print(row, flush=True)
    best, weights = ceilings(device), sum(p.numel() for p in model.parameters())
    trained = sum(examples) * settings.local_epochs * rows[0]["rounds_per_minute"] / 60
    seen = forward_speed(settings, model, x)
    averaging = aggregation(model, len(data.clients))

    def of_product(clips_per_s: float, passes: int) -> float:
        each = passes * forward_flop(model) / best["matrix_product_tflop_per_s"] / 1e12
        return 100 * each * clips_per_s

    def of_copy(arrays_per_s: float) -> float:
        return 100 * 4 * weights * arrays_per_s / best["copy_tb_per_s"] / 1e12

    size = f"{settings.speakers} clients, {settings.clips:,} clips, width {settings.width:g}"
    how = f"extrapolated from {given.rounds} rounds of each training"
    slow_how = f"extrapolated from {len(share)} clients and {len(x[few])} test clips"
    total, slow_total = (sum(row[key] for row in rows) for key in ("minutes", "ordinary_minutes"))
    figures = [
        figure("study_minutes", total, f"The four trainings with evaluations, {size}", how),
        figure("ordinary_study_minutes", slow_total, "The same, the ordinary way", slow_how),
        figure("train_clips_per_s", trained, f"Training, {size}, whole rounds"),
        figure("train_percent", of_product(trained, 3), "Training, of the matrix product's speed"),
        figure("forward_clips_per_s", seen, "Decisions in an evaluation"),
        figure("forward_percent", of_product(seen, 1), "Decisions, of the matrix product's speed"),
        figure("aggregation_s", averaging, f"Averaging {len(data.clients)} clients' weights"),
        figure("aggregation_percent", of_copy(3 * len(data.clients) / averaging),
               "Averaging, of the speed of a copy"),
    ]  # fmt: skip
    for row in rows:
        what = f"{row['training']}: the ordinary way's round in ours"
        figures.append(figure(f"{row['training'].lower()}_ratio", row["ratio"], what, slow_how))
    facts = {"clients": len(data.clients), "clips": settings.clips, "width": settings.width}
    facts |= {"precision": "bf16" if uses_bf16(settings, device) else "fp32"}
    facts |= {"engine": "fast" if is_fast(settings) else "plain"}
    claim = __doc__.split("\n\n")[0]
    save("study", device, claim, rows, figures, given=given, **(facts | best))


def forward_speed(settings: Settings, model: vgg.VGG15, x: Tensor) -> float:
    """Clips per second of an evaluation's decisions."""
    device = resolve_device(settings)
    decide = functools.partial(attacks.predictions, evaluation_target(settings, model))
    with devices.worker_pool(device) as pool:
        for _ in range(2):
            begin = clock(device)
            evaluation.in_batches(decide, x, pool=pool)
            seconds = clock(device) - begin
    return len(x) / seconds


def aggregation(model: vgg.VGG15, count: int) -> float:
    """Seconds in which as many clients' weights are looked at and averaged, on the device."""
    weights = vgg.state_arrays(model)
    device = model.classifier[0].bias.device.type
    update = local_training.Update(weights, {}, 0.0)
    for _ in range(2):
        begin = clock(device)
        total = Total(like=weights)
        for first in range(0, count, GROUP):
            group = [update] * min(GROUP, count - first)
            total.add(group, [1] * len(group))
        total.mean()
        seconds = clock(device) - begin
    return seconds


def _middle(data: Federation, count: int) -> list[str]:
    """Some clients, of middle size."""
    sizes = {client: len(data.table("train", client)) for client in data.clients}
    ordered = sorted(data.clients, key=sizes.get)
    middle = len(ordered) // 2
    return ordered[middle : middle + count]


if __name__ == "__main__":
    main()
