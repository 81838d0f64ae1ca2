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

import argparse
import functools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ceilings import ceilings, clock, forward_flop
from flwr.app import ArrayRecord, ConfigRecord
from report import figure, options, save
from torch import Tensor, nn

from fedser_utils import attacks
from fedser_utils.core import checkpoints
from fedser_utils.core.devices import resolve_device, uses_bf16, worker_pool
from fedser_utils.core.presets import load_settings
from fedser_utils.core.settings import Settings
from fedser_utils.data.federation import Federation, load_federation
from fedser_utils.federated import client_app, strategies
from fedser_utils.federated.client import (
    attack_names,
    client_clips,
    client_generator,
    evaluate_round,
    evaluation_target,
    is_fast,
    new_model,
)
from fedser_utils.federated.grids.cohort import CohortGrid
from fedser_utils.federated.grids.cohort_trainer import GROUP, Total, Trainer
from fedser_utils.federated.grids.multi_gpu import make_trainer
from fedser_utils.learning import local_training, vgg
from fedser_utils.robustness import evaluation
from fedser_utils.robustness.randomisation import Randomise

LABELS = {"none": "Nature", "fgsm": "FGSM", "pgd": "PGD", "deepfool": "DeepFool"}
BATCH = 8  # of the ordinary way


class Training:
    """A run's grid, strategy and weights, round by round."""

    def __init__(self, settings: Settings, data: Federation, trainer: Trainer) -> None:
        self.settings, self.data = settings, data
        self.grid = CohortGrid(trainer, preaggregate=True)
        self.strategy = strategies.make_strategy(
            "FedAvg", first_round=0, seed=settings.seed, min_replies=1.0, buffers=()
        )
        model = new_model(settings, len(data.classes))
        self.weights = client_app.as_record(vgg.state_arrays(model))

    def round(self, number: int) -> float:
        """Return the seconds of one round."""
        begin = _now(self.settings)
        messages = self.strategy.configure_train(number, self.weights, ConfigRecord(), self.grid)
        replies = self.grid.send_and_receive(messages)
        self.weights, _ = self.strategy.aggregate_train(number, replies)
        return _now(self.settings) - begin

    def evaluation(self, x: Tensor, y: Tensor) -> float:
        """Return the seconds of one evaluation."""
        model, last = self.model(), self.settings.rounds
        begin = _now(self.settings)
        evaluate_round(self.settings, model, (x, y), last, seed=0, pool=self.grid.pool)
        return _now(self.settings) - begin

    def checkpoint(self) -> float:
        """Return the seconds of one checkpoint."""
        begin = _now(self.settings)
        with tempfile.TemporaryDirectory() as folder:
            states = {f"client-{n}": state for n, state in self.grid.client_states().items()}
            parts = {"weights": {k: v.numpy() for k, v in self.weights.items()}} | states
            checkpoints.save(Path(folder), 1, parts)
        return _now(self.settings) - begin

    def model(self) -> vgg.VGG15:
        """Return the model on the device, in evaluation mode."""
        device = resolve_device(self.settings)
        model = new_model(self.settings, len(self.data.classes)).to(device)
        return vgg.load_arrays(model, dict(self.weights.to_torch_state_dict())).eval()


class Ordinary(nn.Module):
    """The network as it is usually written: no channels_last, no folding. A copy of ``model``."""

    def __init__(self, model: vgg.VGG15) -> None:
        super().__init__()
        arrays = {name: value.clone() for name, value in vgg.state_arrays(model).items()}
        width, device = len(arrays["features.0.weight"]) / 64, model.classifier[0].bias.device
        copy = vgg.VGG15(len(arrays["classifier.2.bias"]), width=width)
        copy = vgg.load_arrays(copy, arrays).to(device)
        self.features = copy.features.to(memory_format=torch.contiguous_format)
        self.classifier = copy.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def art_attacks(model: Ordinary, settings: Settings, classes: int) -> dict[str, Callable]:
    """Return ART's three attacks, (x, y) -> x_adv."""
    from art.attacks import evasion  # here: after fedser_utils.attacks, which makes that safe
    from art.estimators.classification import PyTorchClassifier

    device = resolve_device(settings)
    target = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), nb_classes=classes,
        input_shape=(1, *settings.front_end.shape),
        device_type="cpu" if device == "cpu" else "gpu",
    )  # fmt: skip
    batch = {"batch_size": BATCH}
    by_name = {
        "fgsm": evasion.FastGradientMethod(target, eps=settings.epsilon, **batch),
        "pgd": evasion.ProjectedGradientDescent(
            target, eps=settings.epsilon, eps_step=settings.step_size, max_iter=settings.steps,
            verbose=False, **batch,
        ),
        "deepfool": evasion.DeepFool(
            target, max_iter=settings.steps, epsilon=settings.overshoot, nb_grads=classes,
            verbose=False, **batch,
        ),
    }  # fmt: skip

    def through_numpy(attack: Any, x: Tensor, y: Tensor) -> Tensor:
        x_adv = attack.generate(x.cpu().numpy(), y.cpu().numpy())
        return torch.from_numpy(x_adv).to(x.device)

    return {name: functools.partial(through_numpy, attack) for name, attack in by_name.items()}


def ordinary_client(
    settings: Settings, model: vgg.VGG15, x: Tensor, y: Tensor, client: str
) -> float:
    """Return the seconds of one client's adversarial round (natural without an attack), the
    ordinary way."""
    ordinary = Ordinary(model)
    begin = _now(settings)
    attack = settings.attack != "none"
    schedule = local_training.make_schedule(
        len(x), epochs=settings.local_epochs, batch_size=settings.batch_size, attack=attack,
        generator=client_generator(settings, client, 2),
    )  # fmt: skip
    if attack:
        ordinary.eval()
        x, rows = x.clone(), schedule.attacked.to(x.device)
        attack = art_attacks(ordinary, settings, len(model.classifier[2].bias))[settings.attack]
        x[rows] = attack(x[rows], y[rows])
    ordinary.train()
    adam = torch.optim.Adam(ordinary.parameters(), lr=settings.learning_rate)
    for clean, adversarial in schedule.steps:
        rows = torch.cat([clean, adversarial]).to(x.device)
        losses = nn.functional.cross_entropy(ordinary(x[rows]), y[rows], reduction="none")
        halves = losses[: len(clean)], losses[len(clean) :]
        adam.zero_grad()
        local_training.mixed_loss(*halves, alpha=settings.alpha).backward()
        adam.step()
    return _now(settings) - begin


def ordinary_evaluation(settings: Settings, model: vgg.VGG15, x: Tensor, y: Tensor) -> float:
    """Return the seconds of an evaluation of clips, the ordinary way."""
    ordinary = Ordinary(model).eval()
    randomise = Randomise.on(settings.front_end.shape, mode=settings.resize)
    begin = _now(settings)
    by_name = art_attacks(ordinary, settings, len(model.classifier[2].bias))
    for name in ("none", *attack_names(settings, settings.rounds)):
        x_adv = x if name == "none" else by_name[name](x, y)
        with torch.no_grad():
            for part in x_adv.split(BATCH):
                ordinary(part)
                draw = randomise.draw(len(part), torch.Generator().manual_seed(0))
                ordinary(randomise(part, type(draw)(*(p.to(part.device) for p in draw))))
    return _now(settings) - begin


def _now(settings: Settings) -> float:
    return clock(resolve_device(settings))


@contextmanager
def phases(device: str, seconds: dict[str, float]) -> Iterator[None]:
    """Inside, add the seconds of a round's parts to ``seconds``."""
    from fedser_utils.learning.gpu_engine import Engine

    parts = {
        "attacks": (Trainer, "_attack_jobs"),
        "lanes": (Engine, "_fit"),
        "averaging": (Trainer, "_add"),
        "training": (Trainer, "round"),
        "messages": (CohortGrid, "send_and_receive"),
    }

    def timed(name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*arguments, **options):
            begin = clock(device)
            try:
                return function(*arguments, **options)
            finally:
                seconds[name] += clock(device) - begin

        return run

    before = {name: getattr(*where) for name, where in parts.items()}
    for name, (owner, attribute) in parts.items():
        setattr(owner, attribute, timed(name, before[name]))
    try:
        yield
    finally:
        for name, (owner, attribute) in parts.items():
            setattr(owner, attribute, before[name])


class Bench:
    """The preset's federation, test clips and options; ``start``: the weights from which all is
    timed, trained in the first measurement."""

    def __init__(self, given: argparse.Namespace) -> None:
        device = resolve_device(load_settings("paper", device=given.device))
        cpu = device == "cpu"
        changes = {"device": given.device, "precision": given.precision, "engine": given.engine}
        if given.quick:
            changes |= {"speakers": 2, "clips": 28, "width": 1 / 32, "local_epochs": 1}
            given.rounds, given.sample, given.warm = 1, 1, 1
        self.given, self.device, self.changes = given, device, changes
        self.preset = given.preset or ("demo" if cpu else "paper")
        self.warm = given.warm or (3 if cpu else 10)
        self.settings = load_settings(self.preset, **changes)
        self.data = load_federation(self.settings)
        self.x, self.y = self.data.tensors(self.data.table("test"), device=device)
        self.few = slice(None, max(7, len(self.x) // 16))
        self.examples = {c: len(self.data.table("train", c)) for c in self.data.clients}
        by_size = sorted(self.data.clients, key=self.examples.get)
        middle = len(by_size) // 2
        self.sample = by_size[middle : middle + given.sample]
        self.start: ArrayRecord | None = None

    def measure(self, attack: str) -> tuple[dict[str, Any], vgg.VGG15]:
        """Return the row of one training, and its model."""
        settings = load_settings(self.preset, attack=attack, **self.changes)
        row, model = self._measure_ours(settings)
        few = self.x[self.few], self.y[self.few]
        clips = {name: client_clips(settings, name, "train") for name in self.sample}
        first = self.sample[0]
        ordinary_client(settings, model, *(v[:BATCH] for v in clips[first]), first)  # warms up
        slow = sum(ordinary_client(settings, model, *own, name) for name, own in clips.items())
        slow *= sum(self.examples.values()) / sum(self.examples[name] for name in self.sample)
        evaluation_s = ordinary_evaluation(settings, model, *few) * len(self.x) / len(few[0])
        evaluations = -(-settings.rounds // settings.eval_every)
        row |= {
            "ordinary_rounds_per_minute": 60 / slow,
            "ratio": slow * row["rounds_per_minute"] / 60,
            "ordinary_evaluation_s": evaluation_s,
            "ordinary_minutes": (settings.rounds * slow + evaluations * evaluation_s) / 60,
        }
        return row, model

    def _measure_ours(self, settings: Settings) -> tuple[dict[str, Any], vgg.VGG15]:
        data, counts, begin = self.data, [*self.examples.values()], clock(self.device)
        with (
            worker_pool(self.device) as pool,
            make_trainer(settings, data.clients, counts, pool=pool) as trainer,
        ):
            training = Training(settings, data, trainer)
            if self.start is None:
                for _ in range(self.warm):
                    training.round(1)
                self.start, begin = training.weights, clock(self.device)
            training.weights = self.start
            training.round(2)  # to warm up: captures, compilation
            starting = clock(self.device) - begin
            seconds, parts = [], defaultdict(float)
            for number in range(3, 3 + self.given.rounds):
                with phases(self.device, parts) if self.given.phases else nullcontext():
                    seconds.append(training.round(number))
            training.weights = self.start
            training.evaluation(self.x[self.few], self.y[self.few])
            evaluating, saving = training.evaluation(self.x, self.y), training.checkpoint()
            model = training.model()
        round_s = float(np.median(seconds))
        evaluations = -(-settings.rounds // settings.eval_every)
        saves = -(-settings.rounds // (settings.checkpoint_every or settings.eval_every))
        total = starting + settings.rounds * round_s + evaluations * evaluating + saves * saving
        row = {
            "training": LABELS[settings.attack], "rounds_per_minute": 60 / round_s,
            "evaluation_s": evaluating, "checkpoint_s": saving, "starting_s": starting,
            "minutes": total / 60,
        }  # fmt: skip
        return row | {f"{name}_s": s / self.given.rounds for name, s in parts.items()}, model

    def figures(self, rows: list[dict[str, Any]], model: vgg.VGG15, best: dict) -> list[dict]:
        """Return the lines of the table of performance. best: ``ceilings``."""
        settings, clients = self.settings, len(self.data.clients)
        clips = sum(self.examples.values()) * settings.local_epochs
        trained = clips * rows[0]["rounds_per_minute"] / 60
        with worker_pool(self.device) as pool:
            predicted = forward_speed(settings, model, self.x, pool)
        averaging = aggregation(model, clients)
        flop, weights = forward_flop(model), sum(p.numel() for p in model.parameters())
        product = 100 * flop / best["matrix_product_tflop_per_s"] / 1e12
        copy = 100 * 4 * weights * 3 * clients / averaging / best["copy_tb_per_s"] / 1e12
        size = f"{settings.speakers} clients, {settings.clips:,} clips, width {settings.width:g}"
        how = f"extrapolated from {self.given.rounds} rounds of each training"
        few = len(self.x[self.few])
        slow_how = f"extrapolated from {len(self.sample)} clients and {few} test clips"
        total, slow = (sum(row[key] for row in rows) for key in ("minutes", "ordinary_minutes"))
        figures = [
            figure("study_minutes", total, f"The four trainings with evaluations, {size}", how),
            figure("ordinary_study_minutes", slow, "The same, the ordinary way", slow_how),
            figure("train_clips_per_s", trained, f"Training, {size}, whole rounds"),
            figure("train_percent", 3 * product * trained,
                   "Training, of the matrix product's speed"),
            figure("forward_clips_per_s", predicted, "Decisions in an evaluation"),
            figure("forward_percent", product * predicted,
                   "Decisions, of the matrix product's speed"),
            figure("aggregation_s", averaging, f"Averaging {clients} clients' weights"),
            figure("aggregation_percent", copy, "Averaging, of the speed of a copy"),
        ]  # fmt: skip
        for row in rows:
            what = f"{row['training']}: the ordinary way's round in ours"
            key = f"{row['training'].lower()}_ratio"
            figures.append(figure(key, row["ratio"], what, slow_how))
        return figures


def forward_speed(settings: Settings, model: vgg.VGG15, x: Tensor, pool: Executor) -> float:
    """Return the clips per second of an evaluation's predictions."""
    device = resolve_device(settings)
    predict = functools.partial(attacks.predictions, evaluation_target(settings, model))
    for _ in range(2):
        begin = clock(device)
        evaluation.in_batches(predict, x, pool=pool)
        seconds = clock(device) - begin
    return len(x) / seconds


def aggregation(model: vgg.VGG15, count: int) -> float:
    """Return the seconds in which ``count`` clients' weights are checked and averaged."""
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
    bench, rows = Bench(given), []
    for attack in LABELS:
        row, model = bench.measure(attack)
        rows.append(row)
        print(row, flush=True)
    best, settings = ceilings(bench.device), bench.settings
    facts = {"clients": len(bench.data.clients), "clips": settings.clips, "width": settings.width}
    facts |= {"precision": "bf16" if uses_bf16(settings, bench.device) else "fp32"}
    facts |= {"engine": "fast" if is_fast(settings) else "plain"}
    claim, figures = __doc__.split("\n\n")[0], bench.figures(rows, model, best)
    save("study", bench.device, claim, rows, figures, given=given, **(facts | best))


if __name__ == "__main__":
    main()
