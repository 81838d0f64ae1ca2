"""About how long the steps of a study will take: trainings by what is measured on this machine."""

from __future__ import annotations

import copy
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import pandas as pd

from fedser_utils.core.settings import EMBEDDED, Settings, own_parameters
from fedser_utils.workbook.study.study_plan import START, TRAINING, State

PER_CLIP = 0.03  # seconds in which 01 reads (or makes) a clip and extracts its log-Mel
CLASSES = 7  # of the model that is measured; the number hardly matters
TEST_SHARE = 0.2  # partition's; importing it would import torch


@dataclass(frozen=True)
class Speed:
    """Measured seconds per clip, all workers at work. train, forward: training and deciding;
    alone: training of a single client; attacks: by name."""

    train: float
    alone: float
    forward: float
    attacks: Mapping[str, float]


def estimates(found: Sequence[State], settings: Settings) -> dict[str, float]:
    """Names of the steps that are left -> seconds that each will about take: a training by what
    is measured now, others as long as last time, or else by their gradients."""
    left = [state for state in found if not state.done]
    if not left:
        return {}
    clips = clips_of(settings)
    full = own_parameters({"full": None}, {"full": bool}, settings).full
    speed, about = None, {}
    for state in left:
        step, passes = state.step, state.step.passes[full]
        if step.notebook == TRAINING or (passes and not state.seconds):
            speed = speed or measure(settings)
        if step.notebook == TRAINING:
            seconds = START + training_seconds(state, settings, clips, speed)
        elif state.seconds:
            seconds = state.seconds
        elif passes:
            seconds = step.start[full] + passes * TEST_SHARE * clips * speed.attacks["fgsm"]
        else:
            seconds = step.start[full] + (0 if step.reads else PER_CLIP * clips)
        about[step.name] = seconds
    return about


def clips_of(settings: Settings) -> int:
    """The corpus's number of clips: as 01 counted them, or counted now."""
    table = settings.folder / "table2.csv"
    if settings.corpus in EMBEDDED:
        return settings.clips
    if table.exists():
        return int(pd.read_csv(table)["sum"].iloc[-1])
    from fedser_utils.data.federation import corpus_of  # here, as below

    return len(corpus_of(settings).clips)


def training_seconds(state: State, settings: Settings, clips: int, speed: Speed) -> float:
    """Seconds of the rounds that a training still has before it: local epochs over the training
    clips, half of them attacked (from round 2 on), and the test clips under every condition at
    each evaluation. What a round costs besides (averaging, checkpoints) is left out."""
    test, last = TEST_SHARE * clips, settings.rounds
    attack, alone = state.step.parameters["attack"], "clients" in state.step.parameters
    left = range(state.first + 1, last + 1)
    each = settings.local_epochs * (speed.alone if alone else speed.train)
    total = len(left) * (clips - test) * each
    if attack != "none":
        total += len([n for n in left if n > 1]) * (clips - test) / 2 * speed.attacks[attack]
    tried = [attack] if attack != "none" else list(speed.attacks)
    evaluated = [n for n in left if n % settings.eval_every == 0 or n == last]
    attacked = [n for n in evaluated if n % (settings.attack_every or 1) == 0 or n == last]
    each = sum(speed.attacks[name] for name in tried) + 2 * len(tried) * speed.forward
    return total + test * (2 * len(evaluated) * speed.forward + len(attacked) * each)


def measure(settings: Settings) -> Speed:
    """This machine's speed, in a process of its own that leaves no memory of the GPU taken."""
    print("measuring how fast this machine is ...", flush=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
        return apart.submit(_measured, settings).result()


def _measured(settings: Settings) -> Speed:
    """Train, decide and attack on random images with a new model of the settings' width, on their
    device. An attack is timed by one step of it: a DeepFool that stops early is faster."""
    import torch  # here, so that the plan of a finished study appears at once

    from fedser_utils import attacks
    from fedser_utils.core import devices
    from fedser_utils.core.devices import worker_pool
    from fedser_utils.core.seeding import generator
    from fedser_utils.federated import client
    from fedser_utils.learning import local_training, vgg
    from fedser_utils.learning.gpu_engine import LANES, Engine, Job, Recipe
    from fedser_utils.robustness import evaluation

    device = devices.resolve_device(settings)
    workers = torch.get_num_threads() if device == "cpu" else LANES
    bf16 = devices.uses_bf16(settings, device)
    model = client.new_model(settings, CLASSES).to(device).eval()
    aim, weights = client.evaluation_target(settings, model), vgg.state_arrays(model)
    count = workers * evaluation.BATCH[device]
    x = torch.randn(count, 1, *settings.front_end.shape).to(device)
    y = torch.randint(CLASSES, (count,)).to(device)
    options = {"batch_size": settings.batch_size}

    def in_threads(side_by_side: int) -> None:
        def train(own: torch.nn.Module) -> None:
            local_training.client_update(
                own, weights, x, y, generator=generator(settings.seed, "measure"), epochs=1,
                learning_rate=settings.learning_rate, bf16=bf16, **options,
            )  # fmt: skip

        list(pool.map(train, [copy.deepcopy(model) for _ in range(side_by_side)]))

    def in_lanes(side_by_side: int) -> None:
        draws = generator(settings.seed, "measure")
        plan = local_training.make_schedule(
            count, epochs=1, attack=False, generator=draws, **options
        )
        jobs = [Job(x, y, plan, None)] * side_by_side
        engine.fit(jobs, weights, learning_rate=settings.learning_rate)

    if client.is_fast(settings):
        recipe = Recipe(settings.alpha, 0.0, bf16)
        engine = Engine(model, recipe, clients=settings.speakers)

    def trained(side_by_side: int) -> float:
        begin = time.perf_counter()
        (in_lanes if client.is_fast(settings) else in_threads)(side_by_side)
        return (time.perf_counter() - begin) / side_by_side / count

    def seen(function: Callable[..., torch.Tensor]) -> float:
        begin = time.perf_counter()
        evaluation.in_batches(function, x, y, pool=pool).cpu()
        return (time.perf_counter() - begin) / count

    def attacked(name: str) -> float:
        steps = attacks.make_attack(settings, name).keywords.get("steps", 1)
        return steps * seen(partial(attacks.make_attack(settings, name, steps=1), aim))

    with worker_pool(device) as pool:
        trained(1), [attacked(name) for name in attacks.ATTACKS]  # to warm up
        forward = seen(lambda x, y: attacks.predictions(aim, x))
        each = {name: attacked(name) for name in attacks.ATTACKS}
        return Speed(trained(workers), trained(1), forward, each)
