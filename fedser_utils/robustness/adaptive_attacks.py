"""Attacks that know of the randomisation, the paper's protocol beside them, and controls.

Each function answers one question of a reviewer and returns evidence (see ``defended_model``):
``core_evidence`` for every model of a study, ``checklist_evidence`` for one that is checked in
full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from fedser_utils.attacks import Model, predictions
from fedser_utils.core.seeding import generator
from fedser_utils.learning.vgg import WeakModel
from fedser_utils.robustness.defended_model import (
    Attempt,
    DefendedModel,
    art_attempt,
    deepfool_attempt,
    eot_pgd,
    strongest_per_clip,
)
from fedser_utils.robustness.evaluation import Attack, in_batches
from fedser_utils.robustness.randomisation import RESIZE_MODES, Draw

LN_PER_DB = torch.log(torch.tensor(10.0)).item() / 20
TIME_SHIFT = 0.08  # seconds


def core_evidence(
    defended: DefendedModel,
    attacks: Mapping[str, Attack],
    *,
    epsilon: float,
    eot: Sequence[int],
    gradients: int,
    steps: int,
    epsilons: Sequence[float],
) -> pd.DataFrame:
    """Return the evidence that the claim table, the EOT curve and the security curve need.

    The values of its column test: "claimed" (the paper's protocol); "eot" (PGD over k draws, value
    k, each starting from the last); "strongest" (after the margin's loss and Auto-PGD on DLR;
    attack linf, or l2 within the norm of DeepFool's perturbation of each clip); "curve" (value
    epsilon, with and without the randomisation, half the draws).

    attacks: the paper's on this model, name -> ``(model, x, y) -> x_adv``; eot: numbers of draws,
    rising; gradients: per clip and attack, so over k draws it makes gradients / k steps; steps: of
    the curve's PGD.
    """
    claimed, x_adv = paper_protocol(defended, attacks)
    parts = [claimed]
    schedule = {k: {"eot": k, "steps": -(-gradients // k)} for k in eot}
    attempts = {k: eot_pgd(**options) for k, options in schedule.items()}
    others = {
        "cw": eot_pgd(steps=gradients, loss="cw"),
        "auto_pgd": art_attempt("auto_pgd_dlr", eot=5, max_iter=-(-gradients // 5)),
    }
    options = {"epsilon": epsilon, "starts": [x_adv[n] for n in ("fgsm", "pgd") if n in x_adv]}
    for name, best in strongest_per_clip(defended, attempts | others, **options):
        if name in attempts:
            parts.append(defended.judge(best, test="eot", attack="pgd", value=float(name)))
    parts.append(defended.judge(best, test="strongest", attack="linf"))
    if "deepfool" in x_adv:
        radius = (x_adv["deepfool"] - defended.x).flatten(1).norm(dim=1)
        attempts = {k: eot_pgd(norm="l2", **options) for k, options in schedule.items()}
        attempts["cw"] = eot_pgd(norm="l2", steps=gradients, loss="cw")
        options = {"epsilon": radius, "starts": [x_adv["deepfool"]]}
        *_, (_, best) = strongest_per_clip(defended, attempts, **options)
        parts.append(defended.judge(best, test="strongest", attack="l2"))
    half = replace(defended, draws=-(-defended.draws // 2))
    curve = {e: eot_pgd(steps=steps) for e in epsilons}
    for behind in (False, True):
        options = {"epsilon": {e: e for e in epsilons}, "defended": behind}
        parts.append(compare(half, "curve", curve, **options))
    return pd.concat(parts, ignore_index=True)


def checklist_evidence(
    defended: DefendedModel,
    sources: Mapping[str, Model],
    *,
    epsilon: float,
    steps: int,
    iterations: Sequence[int],
    restarts: int,
    few: int,
    queries: int,
) -> pd.DataFrame:
    """Return the evidence that the checklist needs beside ``core_evidence``, over half the draws.

    sources: other models, for transfer; steps: of each PGD; iterations: rising numbers of steps;
    restarts: random ones; few: clips for the black-box attacks, with ``queries`` each.
    """
    defended = replace(defended, draws=-(-defended.draws // 2))
    short = defended.subset(torch.arange(min(few, len(defended.x))))
    pgd = eot_pgd(steps=steps)
    black_box = {
        "square": art_attempt("square", max_iter=queries),
        "hop_skip_jump": art_attempt(
            "hop_skip_jump", norm="inf", max_eval=-(-queries // 4), init_eval=-(-queries // 20)
        ),
    }
    losses = {loss: eot_pgd(steps=steps, loss=loss) for loss in ("ce", "cw", "dlr")}
    losses["auto_pgd"] = art_attempt("auto_pgd_ce", eot=2, max_iter=-(-steps // 2))
    white_box = {"fgsm": eot_pgd(steps=1, step=1.0), "pgd": pgd}
    step_sizes = {share: eot_pgd(steps=steps, step=share) for share in (0.05, 0.1, 0.2, 0.5)}
    starts = {restarts: eot_pgd(steps=steps, restarts=restarts)}
    deepfool = {"deepfool": deepfool_attempt(steps=20)}
    radius = {"epsilon": epsilon}
    parts = [
        frozen_draw(defended, pgd, **radius),
        compare(defended, "single step", {1: white_box["fgsm"]}, defended=False, **radius),
        resize_modes(defended, pgd, **radius),
        convergence(defended, iterations, **radius),
        compare(defended, "step size", step_sizes, **radius),
        compare(defended, "restarts", starts, **radius),
        compare(defended, "loss", losses, **radius),
        compare(short, "black box", black_box, **radius),
        compare(defended, "deepfool", deepfool, defended=False, **radius),
        transfer(defended, sources, pgd, **radius),
        controls(defended, **radius),
        weak_models(short, white_box, **radius),
    ]
    return pd.concat(parts, ignore_index=True)


def paper_protocol(
    defended: DefendedModel, attacks: Mapping[str, Attack]
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Return the evidence "claimed", and the adversarial clips by attack.

    In the paper's protocol the attacker attacks the plain model, and its clips are judged without
    and with the randomisation. attacks: name -> ``(model, x, y) -> x_adv``.
    """
    x_adv = {"none": defended.x}
    for name, attack in attacks.items():
        craft = partial(attack, defended.target_model)
        x_adv[name] = in_batches(craft, defended.x, defended.y, pool=defended.pool)
    return _with_and_without(defended, "claimed", x_adv), x_adv


def _with_and_without(
    defended: DefendedModel, test: str, clips: Mapping[str, Tensor]
) -> pd.DataFrame:
    """Return the evidence on clips, by attack, without and with the randomisation."""
    rows = [
        defended.judge(x_adv, defended=behind, test=test, attack=name)
        for name, x_adv in clips.items()
        for behind in (False, True)
    ]
    return pd.concat(rows)


def frozen_draw(defended: DefendedModel, attempt: Attempt, *, epsilon: float) -> pd.DataFrame:
    """Return the evidence "frozen": attacker and judge share one draw per clip.

    The attack must win as it does without a defence (also in the evidence), or its gradients do
    not pass the randomisation. attempt: of one draw per gradient.
    """
    draw = defended.randomise.draw(len(defended.x), generator(defended.seed, "frozen"))
    columns = [part.to(defended.x.device) for part in draw]

    def behind(model: Model, *draw: Tensor) -> Model:
        return lambda x: model(defended.randomise(x, Draw(*draw)))

    def attack(x: Tensor, y: Tensor, *draw: Tensor) -> Tensor:
        radius = torch.full((len(x),), epsilon, device=x.device)
        return attempt.run(behind(defended.target_model, *draw), x, y, x, radius)

    def decide(x: Tensor, *draw: Tensor) -> Tensor:
        return predictions(behind(defended.plain, *draw), x)

    x_adv = in_batches(attack, defended.x, defended.y, *columns, pool=defended.pool)
    y_pred = in_batches(decide, x_adv, *columns, pool=defended.pool)
    facts = {"test": "frozen", "attack": "pgd"}
    reference = defended.attack(attempt, "frozen", epsilon=epsilon, defended=False)
    return pd.concat(
        [
            defended.evidence(y_pred, x_adv, defended=True, **facts),
            defended.judge(reference, defended=False, **facts),
        ]
    )


def compare(
    model: DefendedModel,
    test: str,
    attempts: Mapping[str | float, Attempt],
    *,
    epsilon: float | Mapping[str | float, float],
    defended: bool = True,
) -> pd.DataFrame:
    """Return the evidence ``test`` on several attacks, each from the original clips.

    attempts: by the attack's name, or variants of PGD by the number that varies (the evidence's
    value); epsilon: one for all, or by the attempts' keys.
    """
    rows = []
    for key, attempt in attempts.items():
        radius = epsilon[key] if isinstance(epsilon, Mapping) else epsilon
        x_adv = model.attack(attempt, test, key, epsilon=radius, defended=defended)
        facts = {"attack": key} if isinstance(key, str) else {"attack": "pgd", "value": float(key)}
        rows.append(model.judge(x_adv, defended=defended, test=test, **facts))
    return pd.concat(rows)


def convergence(
    defended: DefendedModel, iterations: Sequence[int], *, epsilon: float
) -> pd.DataFrame:
    """Return the evidence "iterations": one PGD, judged after rising numbers of steps (the
    value)."""
    rows, x_adv, done = [], defended.x, 0
    for count in iterations:
        attempt = eot_pgd(steps=count - done)
        x_adv = defended.attack(attempt, "iterations", count, start=x_adv, epsilon=epsilon)
        facts = {"test": "iterations", "attack": "pgd", "value": float(count)}
        rows.append(defended.judge(x_adv, **facts))
        done = count
    return pd.concat(rows)


def resize_modes(defended: DefendedModel, attempt: Attempt, *, epsilon: float) -> pd.DataFrame:
    """Return the evidence "resize" and, without attack, "resize, clean".

    Bilinear and nearest resizing are each attacked through their own gradient, and nearest
    through the gradient of bilinear too.
    """
    modes = {
        mode: replace(defended, randomise=defended.randomise.resized(mode)) for mode in RESIZE_MODES
    }
    rows = [
        model.judge(defended.x, test="resize, clean", attack=mode) for mode, model in modes.items()
    ]
    for name, attacked, judge in (
        ("bilinear", "bilinear", "bilinear"),
        ("nearest", "nearest", "nearest"),
        ("nearest, bilinear's gradient", "bilinear", "nearest"),
    ):
        x_adv = modes[attacked].attack(attempt, "resize", attacked, epsilon=epsilon)
        rows.append(modes[judge].judge(x_adv, test="resize", attack=name))
    return pd.concat(rows)


def transfer(
    defended: DefendedModel, sources: Mapping[str, Model], attempt: Attempt, *, epsilon: float
) -> pd.DataFrame:
    """Return the evidence "transfer": clips crafted on other models, classified by this one.

    sources: name -> model to attack; the name is the evidence's attack.
    """
    rows = []
    for name, source in sources.items():
        other = replace(defended, target_model=source)
        x_adv = other.attack(attempt, "transfer", name, epsilon=epsilon, defended=False)
        rows.append(defended.judge(x_adv, test="transfer", attack=name))
    return pd.concat(rows) if rows else pd.DataFrame()


def controls(defended: DefendedModel, *, epsilon: float) -> pd.DataFrame:
    """Return the evidence "control": changes that no attacker made, with and without the
    randomisation.

    Noise as large as FGSM's perturbation; the same L2 norm of noise in a quarter of the Mel bands;
    80 ms later, or the nearest whole number of frames; 6 dB louder, which the log's floor and the
    standardisation let through as a shift (of the image alone, where clips are levelled before).
    """
    draw = torch.randn(defended.x.shape, generator=generator(defended.seed, "control"))
    noise = epsilon * draw.to(defended.x.device).sign()
    band = torch.zeros_like(noise)
    quarter = noise.shape[3] // 4
    band[..., quarter : 2 * quarter] = 2 * noise[..., quarter : 2 * quarter]
    step = defended.front.hop / defended.front.sample_rate
    frames = max(1, round(TIME_SHIFT / step))
    changed = {
        "noise": defended.x + noise,
        "band noise": defended.x + band,
        f"shift by {1000 * frames * step:.0f} ms": defended.x.roll(frames, dims=2),
        "gain of 6 dB": defended.x + 6 * LN_PER_DB / defended.std,
    }
    return _with_and_without(defended, "control", changed)


def weak_models(
    defended: DefendedModel, white_box: Mapping[str, Attempt], *, epsilon: float
) -> pd.DataFrame:
    """Return the evidence "planted": attacks on models that any working attack fools.

    y_true is what they decided before. white_box: gradient attacks, which attack a model without
    defence and one behind the randomisation. ART's attack the former alone, as long as they need:
    behind a randomisation they take one lucky draw for success and stop.
    """
    from_art = {
        "auto_pgd": art_attempt("auto_pgd_ce"),
        "square": art_attempt("square"),
        "hop_skip_jump": art_attempt("hop_skip_jump", bounded=False, max_iter=2, max_eval=200),
    }
    options = {"classes": len(defended.classes), "generator": generator(defended.seed, "planted")}
    options["size"] = defended.x[0].numel()
    plain, drawn = WeakModel(**options), WeakModel(**options, cells=4)
    # nearest keeps the pixels' values
    nearest = replace(defended, randomise=defended.randomise.resized("nearest"))
    rows = []
    for behind, weak, attempts in (
        (False, plain, {**white_box, **from_art}),
        (True, drawn, white_box),
    ):
        model = replace(nearest, plain=weak.to(defended.x.device), target_model=weak)
        before = model.decide(defended.x, behind).mode(0).values
        model = replace(model, y=before)
        for name, attempt in attempts.items():
            x_adv = model.attack(attempt, "planted", name, epsilon=epsilon, defended=behind)
            facts = {"test": "planted", "attack": name, "defended": behind}
            rows.append(model.evidence(model.decide(x_adv, behind), x_adv, truth=before, **facts))
    return pd.concat(rows)
