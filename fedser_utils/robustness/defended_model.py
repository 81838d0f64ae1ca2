"""A model behind its randomisation, and the strongest attacker that knows of both.

Random resize and pad was broken by attacking its expectation (Athalye et al., 2018: expectation
over transformation, EOT). Attacks on a ``DefendedModel`` leave evidence: a row per draw and clip.
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
from fedser_utils.core.seeding import derive, generator, rng
from fedser_utils.learning.vgg import fold_batch_norm
from fedser_utils.robustness.evaluation import draw_rows, in_batches, with_clips
from fedser_utils.robustness.loaded_model import LoadedModel
from fedser_utils.robustness.randomisation import Randomise, RandomisedModel
from fedser_utils.robustness.randomised_inference import logits_over_draws


class Attempt(NamedTuple):
    """One attack. run: (model, x, y, start, epsilon per clip) -> x_adv; draws: copies of each clip
    that it sends through the model at a time."""

    run: Callable[[Model, Tensor, Tensor, Tensor, Tensor], Tensor]
    draws: int = 1


@dataclass(frozen=True)
class DefendedModel:
    """A model behind its randomisation, with the clips on which it is attacked.

    plain: the model that decides, of images of any size; target_model: the same for gradients;
    clips: the table of the clips; x: (n, 1, frames, mels) standardised log-Mel; y: (n,) labels;
    classes: their names; mean, std: (mels,) of the standardisation; facts: columns of all
    evidence; draws: decisions per clip, each behind a fresh draw; front: of x.
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

    def judge(self, x_adv: Tensor, *, defended: bool = True, **facts: Any) -> pd.DataFrame:
        """Return the evidence on ``x_adv``, (n, 1, frames, mels), behind the randomisation or
        without it."""
        return self.evidence(self.decide(x_adv, defended), x_adv, defended=defended, **facts)

    def decide(self, x_adv: Tensor, defended: bool) -> Tensor:
        """Return (draws, n) decisions behind the randomisation, or (1, n) of the plain model."""
        if defended:
            return self._logits(x_adv, "judge", draws=self.draws).argmax(2)
        return in_batches(partial(predictions, self.plain), x_adv, pool=self.pool)[None]

    def evidence(
        self, y_pred: Tensor, x_adv: Tensor, *, truth: Tensor | None = None, **facts: Any
    ) -> pd.DataFrame:
        """Return a row per decision, with the size of the clip's perturbation.

        y_pred: (draws, n) or (n,); x_adv: (n, 1, frames, mels); truth: (n,) labels in the place
        of the clips'. The sizes: l2 and linf in standardised units, snr_db of Mel magnitudes.
        """
        rows = draw_rows(y_pred, **{"value": float("nan")} | facts)
        size = perceptibility(self.x, x_adv, mean=self.mean, std=self.std)
        for name in ("l2", "linf", "snr_db"):
            rows[name] = size[name].cpu().numpy()[rows["index"]]
        if truth is not None:
            rows["y_true"] = truth.cpu().numpy()[rows["index"]]
        return with_clips(rows, self.clips, self.classes, **self.facts)

    def robust_fraction(self, x_adv: Tensor) -> Tensor:
        """Return (n,), the fraction of draws under which each clip is still recognised.

        The draws are the attacker's: half as many as ``decide`` makes, and never the same.
        """
        logits = self._logits(x_adv, "attacker", draws=-(-self.draws // 2))
        return (logits.argmax(2) == self.y).double().mean(0)

    def _logits(self, x_adv: Tensor, stream: str, *, draws: int) -> Tensor:
        options = {"draws": draws, "seed": derive(self.seed, stream), "pool": self.pool}
        return logits_over_draws(self.plain, x_adv, randomise=self.randomise, **options)

    def attack(
        self,
        attempt: Attempt,
        *names: object,
        start: Tensor | None = None,
        epsilon: float | Tensor = 0.0,
        defended: bool = True,
    ) -> Tensor:
        """Return the clips as ``attempt`` changes them, (n, 1, frames, mels).

        names: of the stream of draws; start: the attack's first clips, x if None; epsilon: one
        for all clips or (n,); defended: whether the attack goes through the randomisation.
        """
        epsilon = torch.as_tensor(epsilon, dtype=self.x.dtype, device=self.x.device)
        columns = (self.x, self.y, self.x if start is None else start, epsilon.expand(len(self.x)))

        def run(x: Tensor, y: Tensor, start: Tensor, epsilon: Tensor, generator: torch.Generator):
            model = self.target_model
            if defended:
                model = RandomisedModel(model, self.randomise, generator)
            return attempt.run(model, x, y, start, epsilon)

        draws = partial(generator, self.seed, "attack", *names)
        return in_batches(run, *columns, pool=self.pool, generators=draws, copies=attempt.draws)

    def subset(self, indices: Tensor) -> DefendedModel:
        """Return the same model with some of the clips. indices: (k,) int64."""
        clips = self.clips.iloc[indices.cpu().numpy()]
        return replace(self, clips=clips, x=self.x[indices], y=self.y[indices])


def defend(
    loaded: LoadedModel, clips: pd.DataFrame, *, draws: int, pool: Executor | None = None
) -> DefendedModel:
    """Return a loaded model behind its run's randomisation. clips: rows of its test clips."""
    x, y = loaded.data.tensors(clips, device=loaded.device)
    mean, std = loaded.data.standardisation_of(clips, device=loaded.device)
    made = loaded.settings
    return DefendedModel(
        plain=fold_batch_norm(loaded.model), target_model=loaded.target_model, clips=clips, x=x,
        y=y, classes=loaded.data.classes, mean=mean, std=std,
        facts={"run": loaded.run.id, "model": made.model, "round": made.rounds},
        randomise=loaded.randomise, draws=draws, seed=made.seed, pool=pool, front=made.front_end,
    )  # fmt: skip


def eot_pgd(
    *, steps: int, eot: int = 1, step: float = 0.1, norm: str = "linf", loss: str = "ce",
    restarts: int = 0,
) -> Attempt:  # fmt: skip
    """Return PGD with momentum on E_t[grad L(f(t(x)), y)], t over ``eot`` fresh draws a gradient.

    It begins at the given start, or at random ``restarts``. step: in epsilons. Many steps of few
    draws reach further than few steps of many: momentum averages over the steps' draws.
    Athalye et al. (2018); momentum after Dong et al. (2018).
    """

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
    """Return DeepFool, which has no epsilon and ignores the start."""

    def run(model: Model, x: Tensor, y: Tensor, start: Tensor, epsilon: Tensor) -> Tensor:
        return deepfool(model, x, steps=steps, overshoot=overshoot)

    return Attempt(run)


def art_attempt(name: str, *, bounded: bool = True, **settings: Any) -> Attempt:
    """Return ART's attack ``name``, which ignores the start; bounded: its result is projected on
    the L-inf ball."""

    def run(model: Model, x: Tensor, y: Tensor, start: Tensor, epsilon: Tensor) -> Tensor:
        radius = epsilon[0].item()
        options = {} if name in ("hop_skip_jump", "boundary") else {"eps": radius}
        x_adv = art_attack(name, model, x, y, **options, **settings)
        return x + (x_adv - x).clamp(-radius, radius) if bounded else x_adv

    return Attempt(run, settings.get("eot", 1))


def strongest_per_clip(
    defended: DefendedModel,
    attempts: Mapping[object, Attempt],
    *,
    epsilon: float | Tensor,
    starts: Sequence[Tensor] = (),
) -> Iterator[tuple[object, Tensor]]:
    """Run the attempts one after the other, each on the clips that are still recognised.

    Each starts from the strongest clips so far, and replaces those whose robust fraction it
    lowers. epsilon: one for all clips or (n,); starts: earlier attacks' clips, (n, 1, frames,
    mels) each. Yields each attempt's name and the strongest clips so far, (n, 1, frames, mels).
    """
    best, lowest = defended.x.clone(), defended.robust_fraction(defended.x)
    for x_adv in starts:
        fraction = defended.robust_fraction(x_adv)
        better = fraction < lowest
        best[better], lowest[better] = x_adv[better], fraction[better]
    epsilon = torch.as_tensor(epsilon, dtype=best.dtype, device=best.device).expand(len(best))
    for name, attempt in attempts.items():
        alive = lowest.nonzero()[:, 0]
        if len(alive):
            rest, options = (
                defended.subset(alive),
                {"start": best[alive], "epsilon": epsilon[alive]},
            )
            x_adv = rest.attack(attempt, name, **options)
            fraction = rest.robust_fraction(x_adv)
            better = fraction < lowest[alive]
            best[alive[better]], lowest[alive[better]] = x_adv[better], fraction[better]
        yield name, best.clone()


def stratified_sample(clips: pd.DataFrame, count: int, *, seed: int) -> pd.DataFrame:
    """Return at most ``count`` random clips, as evenly from all emotions as that allows, in the
    table's order."""
    shuffled = clips.sort_values("clip").sample(frac=1, random_state=rng(seed, "some"))
    turn = shuffled.groupby("emotion").cumcount().sort_values(kind="stable")
    return clips.loc[sorted(turn.index[:count])]
