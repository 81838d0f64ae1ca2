"""What is tried on a defended model: the paper's protocol, the attacker who knows, and controls.

Each function answers one question of a reviewer and returns evidence (see ``defended_model``);
``against`` asks what every model is asked, ``examined`` the rest of ``checklist``'s items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
LATER = 0.08  # seconds


def core_evidence(
    trial: DefendedModel,
    attacks: Mapping[str, Attack],
    *,
    epsilon: float,
    eot: Sequence[int],
    gradients: int,
    steps: int,
    epsilons: Sequence[float],
) -> pd.DataFrame:
    """What every model is asked. Evidence "claimed" (the paper's protocol); "eot" (PGD over k
    draws, value k, each going on from the last); "strongest" (after the margin's loss and, on
    DLR, Auto-PGD over draws as well; attack linf, or l2 within the norm of DeepFool's perturbation
    of each clip); "curve" (value epsilon, with and without the randomisation, half the draws).

    attacks: the paper's on this model, name -> ``(model, x, y) -> x_adv``; eot: numbers of draws,
    rising; gradients: that each attack may take of a clip, so over k draws it makes gradients / k
    steps; steps: of the curve's PGD.
    """
    rows, made = paper_protocol(trial, attacks)
    parts = [rows]
    spent = {k: {"eot": k, "steps": -(-gradients // k)} for k in eot}
    attempts = {k: eot_pgd(**each) for k, each in spent.items()}
    others = {
        "cw": eot_pgd(steps=gradients, loss="cw"),
        "auto_pgd": art_attempt("auto_pgd_dlr", eot=5, max_iter=-(-gradients // 5)),
    }
    starts = [made[name] for name in ("fgsm", "pgd") if name in made]
    for name, best in strongest_per_clip(trial, attempts | others, epsilon=epsilon, starts=starts):
        if name in attempts:
            parts.append(trial.judge(best, test="eot", attack="pgd", value=float(name)))
    parts.append(trial.judge(best, test="strongest", attack="linf"))
    if "deepfool" in made:
        reach = (made["deepfool"] - trial.x).flatten(1).norm(dim=1)
        attempts = {k: eot_pgd(norm="l2", **each) for k, each in spent.items()}
        attempts["cw"] = eot_pgd(norm="l2", steps=gradients, loss="cw")
        options = {"epsilon": reach, "starts": [made["deepfool"]]}
        *_, (_, best) = strongest_per_clip(trial, attempts, **options)
        parts.append(trial.judge(best, test="strongest", attack="l2"))
    half = replace(trial, draws=-(-trial.draws // 2))
    each = {e: eot_pgd(steps=steps) for e in epsilons}
    for defended in (False, True):
        options = {"epsilon": {e: e for e in epsilons}, "defended": defended}
        parts.append(sweep(half, "curve", each, **options))
    return pd.concat(parts, ignore_index=True)


def checklist_evidence(
    trial: DefendedModel,
    sources: Mapping[str, Model],
    *,
    epsilon: float,
    steps: int,
    iterations: Sequence[int],
    restarts: int,
    few: int,
    queries: int,
) -> pd.DataFrame:
    """The rest of the checklist's items, as evidence, of the model that is checked in full; with
    the first half of the judge's draws.

    sources: other models, for transfer; steps: of each PGD; few: clips for the black-box attacks,
    with ``queries`` each.
    """
    trial = replace(trial, draws=-(-trial.draws // 2))
    short = trial.subset(torch.arange(min(few, len(trial.x))))
    black = {
        "square": art_attempt("square", max_iter=queries),
        "hop_skip_jump": art_attempt(
            "hop_skip_jump", norm="inf", max_eval=-(-queries // 4), init_eval=-(-queries // 20)
        ),
    }
    losses = {loss: eot_pgd(steps=steps, loss=loss) for loss in ("ce", "cw", "dlr")}
    white = {"fgsm": eot_pgd(steps=1, step=1.0), "pgd": eot_pgd(steps=steps)}
    auto = {"auto_pgd": art_attempt("auto_pgd_ce", eot=2, max_iter=-(-steps // 2))}
    step_sizes = {share: eot_pgd(steps=steps, step=share) for share in (0.05, 0.1, 0.2, 0.5)}
    starts = {restarts: eot_pgd(steps=steps, restarts=restarts)}
    reach = {"epsilon": epsilon}
    parts = [
        frozen(trial, eot_pgd(steps=steps), **reach),
        sweep(trial, "single step", {1: white["fgsm"]}, defended=False, **reach),
        resized(trial, eot_pgd(steps=steps), **reach),
        convergence(trial, eot_pgd, iterations, **reach),
        sweep(trial, "step size", step_sizes, **reach),
        sweep(trial, "restarts", starts, **reach),
        named(trial, "loss", losses | auto, **reach),
        named(short, "black box", black, **reach),
        named(trial, "deepfool", {"deepfool": deepfool_attempt(steps=20)}, defended=False, **reach),
        transferred(trial, sources, eot_pgd(steps=steps), **reach),
        controls(trial, **reach),
        weak_models(short, white, **reach),
    ]
    return pd.concat(parts, ignore_index=True)


def paper_protocol(
    trial: DefendedModel, attacks: Mapping[str, Attack]
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Evidence "claimed": the paper's protocol, in which the attacker attacks the plain model,
    and its clips are judged without and with the randomisation. Also the clips, by attack.

    attacks: name -> ``(model, x, y) -> x_adv``.
    """
    made = {"none": trial.x}
    for name, attack in attacks.items():
        moved = in_batches(partial(attack, trial.target_model), trial.x, trial.y, pool=trial.pool)
        made[name] = moved
    rows = [
        trial.judge(moved, defended=defended, test="claimed", attack=name)
        for name, moved in made.items()
        for defended in (False, True)
    ]
    return pd.concat(rows), made


def frozen(trial: DefendedModel, attempt: Attempt, *, epsilon: float) -> pd.DataFrame:
    """Evidence "frozen": one draw per clip, for attacker and judge alike. The attack must win as
    it does without a defence (also in the evidence), or its gradients do not pass the
    randomisation. attempt: of one draw per gradient."""
    draw = trial.randomise.draw(len(trial.x), generator(trial.seed, "frozen"))
    columns = [part.to(trial.x.device) for part in draw]

    def behind(model: Model, *draw: Tensor) -> Model:
        return lambda x: model(trial.randomise(x, Draw(*draw)))

    def attack(x: Tensor, y: Tensor, *draw: Tensor) -> Tensor:
        reach = torch.full((len(x),), epsilon, device=x.device)
        return attempt.run(behind(trial.target_model, *draw), x, y, x, reach)

    def decide(x: Tensor, *draw: Tensor) -> Tensor:
        return predictions(behind(trial.plain, *draw), x)

    moved = in_batches(attack, trial.x, trial.y, *columns, pool=trial.pool)
    decided = in_batches(decide, moved, *columns, pool=trial.pool)
    facts = {"test": "frozen", "attack": "pgd"}
    reference = trial.attack(attempt, "frozen", epsilon=epsilon, defended=False)
    return pd.concat(
        [
            trial.evidence(decided, moved, defended=True, **facts),
            trial.judge(reference, defended=False, **facts),
        ]
    )


def sweep(
    trial: DefendedModel,
    test: str,
    attempts: Mapping[float, Attempt],
    *,
    epsilon: float | Mapping[float, float],
    defended: bool = True,
) -> pd.DataFrame:
    """Evidence ``test``: variants of PGD, each by itself, from the clips as they are; what varies
    is the evidence's value. epsilon: one for all, or by value."""
    rows = []
    for value, attempt in attempts.items():
        reach = epsilon[value] if isinstance(epsilon, Mapping) else epsilon
        options = {"epsilon": reach, "defended": defended}
        moved = trial.attack(attempt, test, value, **options)
        facts = {"test": test, "attack": "pgd", "value": float(value)}
        rows.append(trial.judge(moved, defended=defended, **facts))
    return pd.concat(rows)


def named(
    trial: DefendedModel,
    test: str,
    attempts: Mapping[str, Attempt],
    *,
    epsilon: float,
    defended: bool = True,
) -> pd.DataFrame:
    """Evidence ``test``: attempts by their names, each by itself."""
    rows = []
    for name, attempt in attempts.items():
        moved = trial.attack(attempt, test, name, epsilon=epsilon, defended=defended)
        rows.append(trial.judge(moved, defended=defended, test=test, attack=name))
    return pd.concat(rows)


def convergence(
    trial: DefendedModel, attempt: Callable[..., Attempt], steps: Sequence[int], *, epsilon: float
) -> pd.DataFrame:
    """Evidence "iterations": one attack, judged after rising numbers of steps (the value).
    attempt: makes one of ``steps`` steps."""
    rows, moved, done = [], trial.x, 0
    for count in steps:
        part = attempt(steps=count - done)
        moved = trial.attack(part, "iterations", count, start=moved, epsilon=epsilon)
        facts = {"test": "iterations", "attack": "pgd", "value": float(count)}
        rows.append(trial.judge(moved, **facts))
        done = count
    return pd.concat(rows)


def resized(trial: DefendedModel, attempt: Attempt, *, epsilon: float) -> pd.DataFrame:
    """Evidence "resize": bilinear and nearest resizing, each attacked through its own gradient,
    and nearest attacked through the gradient of bilinear; "resize, clean": without attack."""
    modes = {mode: replace(trial, randomise=trial.randomise.resized(mode)) for mode in RESIZE_MODES}
    rows = [
        judge.judge(trial.x, test="resize, clean", attack=mode) for mode, judge in modes.items()
    ]
    for name, attacked, judge in (
        ("bilinear", "bilinear", "bilinear"),
        ("nearest", "nearest", "nearest"),
        ("nearest, bilinear's gradient", "bilinear", "nearest"),
    ):
        moved = modes[attacked].attack(attempt, "resize", attacked, epsilon=epsilon)
        rows.append(modes[judge].judge(moved, test="resize", attack=name))
    return pd.concat(rows)


def transferred(
    trial: DefendedModel, sources: Mapping[str, Model], attempt: Attempt, *, epsilon: float
) -> pd.DataFrame:
    """Evidence "transfer": clips made against other models, shown to the defended one. sources:
    name -> model to attack; the name is the evidence's attack."""
    rows = []
    for name, source in sources.items():
        other = replace(trial, target_model=source)
        moved = other.attack(attempt, "transfer", name, epsilon=epsilon, defended=False)
        rows.append(trial.judge(moved, test="transfer", attack=name))
    return pd.concat(rows) if rows else pd.DataFrame()


def controls(trial: DefendedModel, *, epsilon: float) -> pd.DataFrame:
    """Evidence "control": changes that no attacker made, with and without the randomisation.

    Noise as large as FGSM's perturbation; the same L2 norm of noise in a quarter of the Mel bands;
    80 ms later, or what comes next to it in whole frames; 6 dB louder, which the log's floor and
    the standardisation let through as a shift (of the image alone, where clips are made equally
    loud before).
    """
    draw = torch.randn(trial.x.shape, generator=generator(trial.seed, "control"))
    noise = epsilon * draw.to(trial.x.device).sign()
    band = torch.zeros_like(noise)
    quarter = noise.shape[3] // 4
    band[..., quarter : 2 * quarter] = 2 * noise[..., quarter : 2 * quarter]
    step = trial.front.hop / trial.front.sample_rate
    frames = max(1, round(LATER / step))
    changed = {
        "noise": trial.x + noise,
        "band noise": trial.x + band,
        f"shift by {1000 * frames * step:.0f} ms": trial.x.roll(frames, dims=2),
        "gain of 6 dB": trial.x + 6 * LN_PER_DB / trial.std,
    }
    rows = [
        trial.judge(moved, defended=defended, test="control", attack=name)
        for name, moved in changed.items()
        for defended in (False, True)
    ]
    return pd.concat(rows)


def weak_models(
    trial: DefendedModel, white: Mapping[str, Attempt], *, epsilon: float
) -> pd.DataFrame:
    """Evidence "planted": attempts on models that any working attack fools; y_true is what they
    decided before. white: gradient attempts, which attack a model without defence and one behind
    the randomisation. ART's attack the former alone, as long as they need: behind a randomisation
    they take one lucky draw for success and stop."""
    arts_own = {
        "auto_pgd": art_attempt("auto_pgd_ce"),
        "square": art_attempt("square"),
        "hop_skip_jump": art_attempt("hop_skip_jump", bounded=False, max_iter=2, max_eval=200),
    }
    options = {"classes": len(trial.classes), "generator": generator(trial.seed, "planted")}
    options["size"] = trial.x[0].numel()
    plain, drawn = WeakModel(**options), WeakModel(**options, cells=4)
    kept = replace(trial, randomise=trial.randomise.resized("nearest"))  # keeps pixels' values
    rows = []
    for defended, weak, attempts in ((False, plain, {**white, **arts_own}), (True, drawn, white)):
        target = replace(kept, plain=weak.to(trial.x.device), target_model=weak)
        before = target.decide(trial.x, defended).mode(0).values
        target = replace(target, y=before)
        for name, attempt in attempts.items():
            moved = target.attack(attempt, "planted", name, epsilon=epsilon, defended=defended)
            facts = {"test": "planted", "attack": name, "defended": defended}
            decided = target.decide(moved, defended)
            rows.append(target.evidence(decided, moved, truth=before, **facts))
    return pd.concat(rows)
