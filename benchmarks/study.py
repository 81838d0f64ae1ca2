"""Claim: on one H100 the paper's four trainings with all their evaluations take under 90 minutes,
where the ordinary way (eager PyTorch, ART's attacks, one client after another) takes many times as
long; on two CPU cores the demo's trainings are at least 1.5 times as fast as the ordinary way.

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
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from art.attacks import evasion
from art.estimators.classification import PyTorchClassifier
from flwr.app import ConfigRecord
from report import figure, options, save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedser_utils import (
    answers,
    checkpoints,
    clients,
    cohort,
    config,
    models,
    partition,
    strategies,
    training,
    workers,
)
from fedser_utils.config import Settings
from fedser_utils.partition import Federation
from fedser_utils.randomisation import Randomise
from fedser_utils.shards import trainer_of

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
        self.strategy = strategies.careful_strategy(
            "FedAvg", first_round=0, seed=settings.seed, min_replies=1.0, buffers=()
        )
        model = clients.new_model(settings, len(data.classes))
        self.arrays = answers.as_record(models.state_arrays(model))

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
        clients.decisions(self.settings, model, (x, y), seed=0, pool=self.pool)
        return _now(self.settings) - begin

    def checkpoint(self) -> float:
        """Seconds of one checkpoint."""
        begin = _now(self.settings)
        with tempfile.TemporaryDirectory() as folder:
            states = {f"client-{n}": own for n, own in self.grid.client_states().items()}
            parts = {"weights": {k: v.numpy() for k, v in self.arrays.items()}} | states
            checkpoints.save(Path(folder), 1, parts)
        return _now(self.settings) - begin

    def model(self) -> models.VGG15:
        """On the device, in evaluation mode."""
        device = clients.device_of(self.settings)
        model = clients.new_model(self.settings, len(self.data.classes)).to(device)
        return models.load_arrays(model, dict(self.arrays.to_torch_state_dict())).eval()


class Ordinary(nn.Module):
    """The network as it is usually written: no channels_last, no folding."""

    def __init__(self, model: models.VGG15) -> None:
        super().__init__()
        self.features = model.features.to(memory_format=torch.contiguous_format)
        self.classifier = model.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def arts(model: Ordinary, settings: Settings, classes: int) -> dict[str, Callable]:
    """ART's three attacks, (x, y) -> x_adv."""
    device = clients.device_of(settings)
    target = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=(1, 373, 64), nb_classes=classes,
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

    def through_numpy(attack: evasion.DeepFool, x: Tensor, y: Tensor) -> Tensor:
        moved = attack.generate(x.cpu().numpy(), y.cpu().numpy())
        return torch.from_numpy(moved).to(x.device)

    return {name: functools.partial(through_numpy, attack) for name, attack in made.items()}


def ordinary_client(
    settings: Settings, model: models.VGG15, x: Tensor, y: Tensor, client: str
) -> float:
    """Seconds of one client's adversarial round (natural without an attack), the ordinary way."""
    classes = len(model.classifier[2].bias)
    made = Ordinary(_copied(model))
    begin = _now(settings)
    attack = settings.attack != "none"
    plan = training.draw(
        len(x), epochs=settings.local_epochs, batch_size=settings.batch_size, attack=attack,
        generator=clients.randomness(settings, client, 2),
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
        training.mixed_loss(*part, alpha=settings.alpha).backward()
        adam.step()
    return _now(settings) - begin


def ordinary_evaluation(settings: Settings, model: models.VGG15, x: Tensor, y: Tensor) -> float:
    """Seconds of an evaluation of clips, the ordinary way."""
    made, randomise = Ordinary(_copied(model)).eval(), Randomise(mode=settings.resize)
    begin = _now(settings)
    named = arts(made, settings, len(model.classifier[2].bias))
    for name in ("none", *clients.attack_names(settings)):
        seen = x if name == "none" else named[name](x, y)
        with torch.no_grad():
            for part in seen.split(BATCH):
                made(part)
                draw = randomise.draw(len(part), torch.Generator().manual_seed(0))
                made(randomise(part, type(draw)(*(p.to(part.device) for p in draw))))
    return _now(settings) - begin


def _copied(model: models.VGG15) -> models.VGG15:
    arrays = {name: value.clone() for name, value in models.state_arrays(model).items()}
    width = len(arrays["features.0.weight"]) / 64
    made = models.VGG15(len(model.classifier[2].bias), width=width)
    return models.load_arrays(made, arrays).to(model.classifier[0].bias.device)


def ceilings(device: str) -> tuple[float, float]:
    """TFLOP/s of a matrix product (bf16 on a GPU, fp32 on a CPU), TB/s of a copy, read and
    written."""
    cpu = device == "cpu"
    n = 2048 if cpu else 8192
    a = torch.randn(n, n, device=device, dtype=torch.float32 if cpu else torch.bfloat16)
    source = torch.empty(2**26 if cpu else 2**30, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    times = {"product": [], "copy": []}
    for _ in range(4):
        for name, run in (("product", lambda: a @ a), ("copy", lambda: target.copy_(source))):
            begin = _clock(device)
            for _ in range(4):
                run()
            times[name].append((_clock(device) - begin) / 4)
    return 2 * n**3 / min(times["product"]) / 1e12, 2 * len(source) / min(times["copy"]) / 1e12


def flops(model: models.VGG15) -> float:
    """Of one clip's forward pass."""
    x = torch.zeros(1, 1, 373, 64, device=model.classifier[0].bias.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops()


def _now(settings: Settings) -> float:
    return _clock(clients.device_of(settings))


def _clock(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def phases(device: str, found: dict[str, float]) -> Iterator[None]:
    """Inside, the seconds of a round's parts are added to ``found``."""
    from fedser_utils.engine import Engine
    from fedser_utils.trainers import Trainer

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
            begin = _clock(device)
            try:
                return function(*arguments, **options)
            finally:
                found[name] += _clock(device) - begin

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
    device = clients.device_of(config.load_settings("paper", device=given.device))
    cpu = device == "cpu"
    changes = {"device": given.device, "precision": given.precision, "engine": given.engine}
    if given.quick:
        changes |= {"speakers": 4, "clips": 56, "width": 1 / 16, "local_epochs": 1}
        given.rounds, given.sample, given.warm = 1, 1, 1
    preset = given.preset or ("demo" if cpu else "paper")
    settings = config.load_settings(preset, **changes)
    data = partition.load_federation(settings)
    x, y = data.tensors(data.table("test"), device=device)
    few = slice(None, max(7, len(x) // 16))
    examples = [len(data.table("train", client)) for client in data.clients]
    rows, share, start = [], _middle(data, given.sample), None
    for attack, word in WORDS.items():
        own = config.load_settings(preset, attack=attack, **changes)
        begin = _clock(device)
        with (
            workers.worker_pool(device) as pool,
            trainer_of(own, data.clients, examples, pool=pool) as trainer,
        ):
            ours = Ours(own, data, pool, trainer)
            if start is None:
                warm = given.warm or (3 if cpu else 10)
                for _ in range(warm):
                    ours.round(1)
                start = ours.arrays
            begin = _clock(device) if attack == "none" else begin
            ours.arrays = start
            ours.round(2)  # to warm up: captures, compilation
            starting = _clock(device) - begin
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
        sampled = [(name, clients.client_clips(own, name, "train")) for name in share]
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
    product, copy = ceilings(device)
    trained = sum(examples) * settings.local_epochs * rows[0]["rounds_per_minute"] / 60
    of_product = 100 * 3 * flops(model) * trained / product / 1e12
    moved = 7 * 4 * sum(p.numel() for p in model.parameters()) / settings.batch_size
    of_copy = 100 * moved * trained / copy / 1e12
    size = f"{settings.speakers} clients, {settings.clips:,} clips, width {settings.width:g}"
    how = f"extrapolated from {given.rounds} rounds of each training"
    slow_how = f"extrapolated from {len(share)} clients and {len(x[few])} test clips"
    total, slow_total = (sum(row[key] for row in rows) for key in ("minutes", "ordinary_minutes"))
    figures = [
        figure("study_minutes", total, f"The four trainings with evaluations, {size}", how),
        figure("ordinary_study_minutes", slow_total, "The same, the ordinary way", slow_how),
        figure("train_clips_per_s", trained, f"Training, {size}, whole rounds"),
        figure("product_percent", of_product, "Training's share of the matrix product's ceiling"),
        figure("copy_percent", of_copy, "Adam's share of the copy's bandwidth"),
    ]
    for row in rows:
        what = f"{row['training']}: the ordinary way's round in ours"
        figures.append(figure(f"{row['training'].lower()}_ratio", row["ratio"], what, slow_how))
    facts = {"clients": len(data.clients), "clips": settings.clips, "width": settings.width}
    facts |= {"precision": "bf16" if clients.uses_bf16(settings, device) else "fp32"}
    facts |= {"engine": "fast" if clients.is_fast(settings) else "plain"}
    facts |= {"matrix_product_tflop_per_s": product, "copy_tb_per_s": copy}
    save("study", device, __doc__.split("\n\n")[0], rows, figures, quick=given.quick, **facts)


def _middle(data: Federation, count: int) -> list[str]:
    """Some clients, of middle size."""
    sizes = {client: len(data.table("train", client)) for client in data.clients}
    ordered = sorted(data.clients, key=sizes.get)
    middle = len(ordered) // 2
    return ordered[middle : middle + count]


if __name__ == "__main__":
    main()
