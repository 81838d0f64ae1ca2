"""A model behind its randomisation, on trial, and the strongest attacker that we know of.

Random resize and pad was broken by attacking its expectation (Athalye et al., 2018: expectation
over transformation, EOT). What is tried on a ``Trial`` leaves evidence: a row per clip and draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from fedser_utils.attacks import Model, art_attack, deepfool, perceptibility, pgd, predictions
from fedser_utils.core.front_end import SPEECH, FrontEnd
from fedser_utils.core.runs import Run
from fedser_utils.core.seeding import derive, generator, rng
from fedser_utils.data.federation import Federation
from fedser_utils.learning.vgg import attack_target, fold_batch_norm, load
from fedser_utils.robustness.evaluation import draw_rows, in_batches, with_clips
from fedser_utils.robustness.randomisation import Randomise, RandomisedModel
from fedser_utils.robustness.randomised_inference import logits_over_draws


class Attempt(NamedTuple):
    """What an attacker may try. run: (model, x, y, start, epsilon per clip) -> x_adv; draws: copies
    of each clip that it sends through the model at a time."""

    run: Callable[[Model, Tensor, Tensor, Tensor, Tensor], Tensor]
    draws: int = 1


@dataclass(frozen=True)
class DefendedModel:
    """A model behind its randomisation, before an attacker who knows both.

    plain: the model that decides, of images of any size; aim: the same for gradients; clips: the
    table of the clips; x: (n, 1, frames, mels) standardised log-Mel; y: (n,) labels; classes:
    their names; mean, std: (mels,) of the standardisation; draws: how often each clip is judged,
    each time with a fresh draw; facts: columns of all evidence; front: of x.
    """

    plain: Model
    target_model: Model
    clips: pd.DataFrame
    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    facts: Mapping[str, object]
    randomise: Randomise
    draws: int
    seed: int
    pool: Executor | None = None
    front: FrontEnd = SPEECH

    def judge(self, moved: Tensor, *, defended: bool = True, **facts: Any) -> pd.DataFrame:
        """Evidence on ``moved``, behind the randomisation or without it."""
        return self.evidence(self.decide(moved, defended), moved, defended=defended, **facts)

    def decide(self, moved: Tensor, defended: bool) -> Tensor:
        """(draws, n) decisions behind the randomisation, or (1, n) of the plain model."""
        if defended:
            return self._drawn(moved, "judge", draws=self.draws).argmax(2)
        return in_batches(partial(predictions, self.plain), moved, pool=self.pool)[None]

    def evidence(
        self, decided: Tensor, moved: Tensor, *, truth: Tensor | None = None, **facts: Any
    ) -> pd.DataFrame:
        """Rows of decisions (draws, n) or (n,) on the trial's clips as ``moved``, with the size of
        each perturbation: l2, linf (standardised units), snr_db (of Mel magnitudes). truth: (n,)
        labels, where they are not the clips' own."""
        rows = draw_rows(decided, **{"value": float("nan")} | facts)
        size = perceptibility(self.x, moved, mean=self.mean, std=self.std)
        for name in ("l2", "linf", "snr_db"):
            rows[name] = size[name].cpu().numpy()[rows["index"]]
        if truth is not None:
            rows["y_true"] = truth.cpu().numpy()[rows["index"]]
        return with_clips(rows, self.clips, self.classes, **self.facts)

    def robust_fraction(self, moved: Tensor) -> Tensor:
        """(n,) the share of draws that still recognise each clip; draws of the attacker's own,
        half as many as the judge's and never the same."""
        logits = self._drawn(moved, "attacker", draws=-(-self.draws // 2))
        return (logits.argmax(2) == self.y).double().mean(0)

    def _drawn(self, moved: Tensor, whose: str, *, draws: int) -> Tensor:
        options = {"draws": draws, "seed": derive(self.seed, whose), "pool": self.pool}
        return logits_over_draws(self.plain, moved, randomise=self.randomise, **options)

    def attack(
        self,
        attempt: Attempt,
        *names: object,
        start: Tensor | None = None,
        epsilon: float | Tensor = 0.0,
        defended: bool = True,
    ) -> Tensor:
        """The clips that ``attempt`` makes against the defended (or the plain) model. names: of
        the stream of draws; epsilon: one for all clips or (n,)."""
        epsilon = torch.as_tensor(epsilon, dtype=self.x.dtype, device=self.x.device)
        columns = (self.x, self.y, self.x if start is None else start, epsilon.expand(len(self.x)))

        def run(x: Tensor, y: Tensor, start: Tensor, epsilon: Tensor, generator: torch.Generator):
            model = (
                RandomisedModel(self.target_model, self.randomise, generator)
                if defended
                else self.target_model
            )
            return attempt.run(model, x, y, start, epsilon)

        own = partial(generator, self.seed, "attack", *names)
        options = {"pool": self.pool, "generators": own, "copies": attempt.draws}
        return in_batches(run, *columns, **options)

    def subset(self, chosen: Tensor) -> DefendedModel:
        """The same trial of some of the clips. chosen: their places."""
        clips = self.clips.iloc[chosen.cpu().numpy()]
        return replace(self, clips=clips, x=self.x[chosen], y=self.y[chosen])


def eot_pgd(
    *, steps: int, eot: int = 1, step: float = 0.1, norm: str = "linf", loss: str = "ce",
    restarts: int = 0,
) -> Attempt:  # fmt: skip
    """PGD with momentum over ``eot`` fresh draws per gradient, from where it is told to start, or
    from random ``restarts``. step: in epsilons. Many steps of few draws reach further than few
    steps of many: momentum averages over the steps' draws."""

    def run(model: Model, x: Tensor, y: Tensor, start: Tensor, epsilon: Tensor) -> Tensor:
        options = {"epsilon": epsilon, "step_size": step * epsilon, "steps": steps, "norm": norm}
        options |= {"loss": loss, "eot": eot, "momentum": 0.9}
        if restarts:
            options |= {"random_start": True, "restarts": restarts, "generator": model.generator}
        else:
            options |= {"start": start}
        return pgd(model, x, y, **options)

    return Attempt(run, eot)


def deepfool_attempt(*, steps: int, overshoot: float = 0.02) -> Attempt:
    """DeepFool, which knows no epsilon and starts afresh."""

    def run(model: Model, x: Tensor, y: Tensor, start: Tensor, epsilon: Tensor) -> Tensor:
        return deepfool(model, x, steps=steps, overshoot=overshoot)

    return Attempt(run)


def art_attempt(name: str, *, bounded: bool = True, **settings: Any) -> Attempt:
    """ART's attack ``name``, which starts afresh; bounded: its result is brought into the L-inf
    ball."""

    def run(model: Model, x: Tensor, y: Tensor, start: Tensor, epsilon: Tensor) -> Tensor:
        reach = epsilon[0].item()
        radius = {} if name in ("hop_skip_jump", "boundary") else {"eps": reach}
        moved = art_attack(name, model, x, y, **radius, **settings)
        return x + (moved - x).clamp(-reach, reach) if bounded else moved

    return Attempt(run, settings.get("eot", 1))


def strongest_per_clip(
    trial: DefendedModel,
    attempts: Mapping[object, Attempt],
    *,
    epsilon: float | Tensor,
    starts: Sequence[Tensor] = (),
) -> Iterator[tuple[object, Tensor]]:
    """Attempts one after the other, each on the clips that some draw still recognises, going on
    from the best found so far, and kept where it does worse to the recognition.

    epsilon: one for all clips or (n,); starts: (n, 1, frames, mels) each, earlier attacks' clips.
    Yields the attempt's name and the best clips so far, (n, 1, frames, mels).
    """
    best, held = trial.x.clone(), trial.robust_fraction(trial.x)
    for moved in starts:
        share = trial.robust_fraction(moved)
        better = share < held
        best[better], held[better] = moved[better], share[better]
    epsilon = torch.as_tensor(epsilon, dtype=best.dtype, device=best.device).expand(len(best))
    for name, attempt in attempts.items():
        alive = held.nonzero()[:, 0]
        if len(alive):
            rest, options = trial.subset(alive), {"start": best[alive], "epsilon": epsilon[alive]}
            moved = rest.attack(attempt, name, **options)
            share = rest.robust_fraction(moved)
            better = share < held[alive]
            best[alive[better]], held[alive[better]] = moved[better], share[better]
        yield name, best.clone()


def load_defended_model(
    run: Run, data: Federation, clips: pd.DataFrame, *, draws: int, device: str, bf16: bool,
    pool: Executor,
) -> DefendedModel:  # fmt: skip
    """The model that a run ended with, behind the run's randomisation. clips: rows of its test
    clips; bf16: of the attacks' gradients."""
    model = load(run).to(device)
    x, y = data.tensors(clips, device=device)
    made = run.settings
    front = made.front_end
    mean, std = data.standardisation_of(clips, device=device)
    return DefendedModel(
        plain=fold_batch_norm(model), target_model=attack_target(model, bf16=bf16), clips=clips,
        x=x, y=y, classes=data.classes, mean=mean, std=std,
        facts={"run": run.id, "model": made.model, "round": made.rounds},
        randomise=Randomise.on(front.shape, mode=made.resize), draws=draws, seed=made.seed,
        pool=pool, front=front,
    )  # fmt: skip


def stratified_sample(clips: pd.DataFrame, count: int, *, seed: int) -> pd.DataFrame:
    """At most ``count`` random clips, as evenly from all emotions as that allows, in order."""
    shuffled = clips.sort_values("clip").sample(frac=1, random_state=rng(seed, "some"))
    turn = shuffled.groupby("emotion").cumcount().sort_values(kind="stable")
    return clips.loc[sorted(turn.index[:count])]
