"""What attacks do to one model, as notebook 03 shows it: to a clip, to the UAR, to other models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from fedser_utils import attacks
from fedser_utils.analysis import metrics
from fedser_utils.analysis.labels import ATTACK_NAMES
from fedser_utils.core.runs import Run, find_runs
from fedser_utils.core.seeding import generator
from fedser_utils.learning import vgg
from fedser_utils.robustness import evaluation
from fedser_utils.robustness.loaded_model import LoadedModel

BOUNDED = ("fgsm", "pgd")  # the paper's attacks with a budget epsilon in L-inf
SOUND_STEPS = 10  # of PGD on the waveform


@dataclass(frozen=True)
class AttackedClip:
    """A test clip before and after each attack.

    row: in the table of test clips; name: the clip's; truth: its class; images: "original" and
    each attack's name -> (1, 1, frames, mels) standardised log-Mel; predictions: the same names ->
    the class that the model predicts.
    """

    row: int
    name: str
    truth: str
    images: dict[str, Tensor]
    predictions: dict[str, str]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The images as (frames, mels) arrays, for files and figures."""
        return {name: image[0, 0].cpu().numpy() for name, image in self.images.items()}

    @property
    def caption(self) -> str:
        """What the model predicts, in a sentence."""
        original, *others = self.predictions.items()
        under = ", ".join(f"{c} under {ATTACK_NAMES[name]}" for name, c in others)
        return f"Clip {self.name} ({self.truth}): the model predicts {original[1]}, {under}."


def attack_one_clip(loaded: LoadedModel) -> AttackedClip:
    """Return the first test clip that the model recognises, under each of the paper's attacks.

    Raises RuntimeError if FGSM or PGD changes a value by more than epsilon.
    """
    model, x, y, classes = loaded.model, loaded.x, loaded.y, loaded.data.classes
    row = int((attacks.predictions(model, x) == y).int().argmax())
    clip, label = x[row : row + 1], y[row : row + 1]
    images = {"original": clip}
    for name, attack in paper_attacks(loaded).items():
        images[name] = attack(loaded.target_model, clip, label)
        change = (images[name] - clip).abs().max().item()
        if name in BOUNDED and change > loaded.settings.epsilon + 1e-6:
            raise RuntimeError(f"{name} changes a value by {change:g}, more than epsilon")
    predicted = {name: classes[int(attacks.predictions(model, v))] for name, v in images.items()}
    return AttackedClip(row, loaded.test["clip"].iloc[row], classes[int(label)], images, predicted)


def audible_examples(
    loaded: LoadedModel, clip: AttackedClip, *, snr_db: float, folder: Path
) -> pd.DataFrame:
    """Write the clip's sounds as 16-bit WAVs into ``folder``, and return the predictions on them.

    The sounds: the recording, PGD on its waveform at ``snr_db`` dB (exact), and each image of the
    clip inverted (approximate). Returns rows sound, path, y_pred. Raises RuntimeError if the
    signal-to-noise ratio of the attacked waveform is below ``snr_db``.
    """
    index = loaded.test.index[clip.row]
    features = loaded.data.input_transform(index, device=loaded.device)
    sound = loaded.data.waveform(index, device=loaded.device)
    sound_adv = attacks.waveform_pgd(
        loaded.target_model, sound, loaded.y[clip.row : clip.row + 1], features=features,
        snr_db=snr_db, steps=SOUND_STEPS,
    )  # fmt: skip
    ratio = attacks.snr_db(sound, sound_adv).item()
    if ratio <= snr_db - 1e-3:
        raise RuntimeError(f"the attacked sound has {ratio:g} dB, less than {snr_db:g} dB")
    sounds = {"original": sound, f"PGD on the sound, {snr_db:g} dB": sound_adv}
    for name, image in clip.images.items():
        sounds[f"{name}, approximate"] = features.approximate_sound(image)
    rate = loaded.settings.front_end.sample_rate
    return evaluation.predict_sounds(loaded.model, features, sounds, folder, rate=rate)


def perturbation_table(loaded: LoadedModel, *, clips: int = 24) -> pd.DataFrame:
    """Return the median size of each attack's perturbation over the first test clips.

    Columns: attack, l2, linf, linf_db, snr_db (``attacks.perceptibility``), and those of
    ``LoadedModel.columns``.
    """
    mean, std = loaded.data.standardisation_of(loaded.test[:clips], device=loaded.device)
    table = evaluation.perturbation_sizes(
        loaded.model, loaded.x[:clips], loaded.y[:clips], paper_attacks(loaded), mean=mean, std=std,
        bf16=loaded.bf16,
    )  # fmt: skip
    return table.assign(**loaded.columns)


def uar_by_epsilon(loaded: LoadedModel, epsilons: Sequence[float]) -> pd.DataFrame:
    """Return the UAR under FGSM and PGD at each epsilon; PGD's steps are epsilon / 4 long.

    epsilons: in standardised log-Mel units. Columns: attack, value (epsilon), uar (percent), n,
    and those of ``LoadedModel.columns``.
    """
    strengths = {
        (name, epsilon): _attack(loaded, name, epsilon=epsilon, step_size=epsilon / 4)
        for name in BOUNDED
        for epsilon in epsilons
    }
    return _uar(loaded, _rows(loaded, strengths), ["attack", "value"])


def convergence(
    loaded: LoadedModel, iterations: Sequence[int], step_sizes: Sequence[float], *, restarts: int
) -> pd.DataFrame:
    """Return the UAR under more steps, other step sizes and random starts.

    iterations: steps of PGD and of DeepFool; step_sizes: of PGD with 10 steps, in standardised
    log-Mel units; restarts: random starts of PGD, beside one. Columns: attack (pgd and deepfool
    for the steps), value (steps, step size or starts), uar (percent), n, and those of
    ``LoadedModel.columns``.
    """
    sweeps = {
        (name, steps): _attack(loaded, name, steps=steps)
        for name in ("pgd", "deepfool")
        for steps in iterations
    }
    for size in step_sizes:
        sweeps["pgd, 10 steps of", size] = _attack(loaded, "pgd", steps=10, step_size=size)
    for starts in (1, restarts):
        sweeps["pgd, random starts", starts] = _attack(
            loaded, "pgd", random_start=True, restarts=starts
        )
    return _uar(loaded, _rows(loaded, sweeps), ["attack", "value"])


def transfer_matrix(loaded: LoadedModel, runs: Sequence[Run]) -> pd.DataFrame:
    """Return the UAR of each run's model on PGD's clips against each run's model.

    The clips, the strength and the precision are those of ``loaded``. Columns: source, target
    (models' names), uar (percent), n, processor, precision; runs in the order of their start.
    Raises InputError for a run without one model for all clients (local batch norm).
    """
    in_order = sorted(runs, key=lambda run: run.config["started"])
    models = {run.config["model"]: vgg.load(run).to(loaded.device) for run in in_order}
    pgd = _attack(loaded, "pgd")
    rows = evaluation.transfer(models, loaded.x, loaded.y, pgd, bf16=loaded.bf16)
    return metrics.uar_by(rows, ["source", "target"]).assign(**loaded.hardware)


def worst_case(loaded: LoadedModel) -> tuple[pd.DataFrame, pd.Series]:
    """Return the UAR under an ensemble of attacks, and how many clips each was first to fool.

    A clip counts as recognised in the worst case only if it is under every attack; all have the
    budget epsilon (DeepFool has none and is left out). The table's columns: attack (the last is
    "worst case"), uar (percent), n, and those of ``LoadedModel.columns``. Raises RuntimeError if
    the worst case is better than an attack alone.
    """
    ensemble = {("none", None): None}
    ensemble |= {(name, None): _attack(loaded, name) for name in BOUNDED}
    for loss in ("ce", "cw", "dlr"):
        ensemble[f"pgd {loss}, 20 steps", None] = _attack(loaded, "pgd", loss=loss, steps=20)
    auto_pgd = {"eps": loaded.settings.epsilon, "max_iter": 10}
    ensemble["auto_pgd_dlr", None] = partial(attacks.art_attack, "auto_pgd_dlr", **auto_pgd)
    rows = _rows(loaded, ensemble)
    worst = metrics.worst_case(rows)
    table = _uar(loaded, pd.concat([rows, worst.assign(attack="worst case")]), ["attack"])
    if table["uar"].iloc[-1] > table["uar"].min():
        raise RuntimeError("the worst case over all attacks is better than one of them")
    wrong = worst.loc[worst["y_true"] != worst["y_pred"], "attack"]
    return table, wrong.value_counts(sort=False).rename("clips it was the first to fool")


def check_on_weak_model(loaded: LoadedModel, *, clips: int = 5) -> pd.Series:
    """Return the percentage of clips that each attack fools on a model that any attack must fool.

    The attacks are the paper's and all in ``attacks.ART_ATTACKS``; the model is a
    ``vgg.WeakModel``. Raises RuntimeError for an attack below 100 % (ART's universal perturbation
    stops at 80 % and may stay there).
    """
    x = loaded.x[:clips]
    weak = vgg.WeakModel(
        len(loaded.data.classes), size=x[0].numel(), generator=generator(0, "planted")
    ).to(loaded.device)
    art = {name: partial(attacks.art_attack, name) for name in attacks.ART_ATTACKS}
    fooled = evaluation.fooling_rate(weak, x, paper_attacks(loaded) | art)
    broken = fooled[fooled < 100].drop("universal", errors="ignore")
    if len(broken):
        raise RuntimeError(f"attacks fail on a weak model: {', '.join(broken.index)}")
    return fooled


def comparable_runs(loaded: LoadedModel) -> list[Run]:
    """Return the loaded run, then the other complete runs of its study with the same settings and
    seed, oldest first."""
    run = loaded.run
    others = [
        other
        for other in find_runs(run.folder.parent, loaded.settings.study)
        if other.complete and other.id != run.id
        and other.config["setting"] == run.config["setting"]
        and other.settings.seed == loaded.settings.seed
    ]  # fmt: skip
    return [run, *others]


def paper_attacks(loaded: LoadedModel) -> dict[str, Callable[..., Tensor]]:
    """Return the paper's attacks by name, ``(model, x, y) -> x_adv``, at the run's strength."""
    return {name: _attack(loaded, name) for name in attacks.ATTACKS}


def _attack(loaded: LoadedModel, name: str, **changes: object) -> Callable[..., Tensor]:
    return attacks.make_attack(loaded.settings, name, **changes)


def _rows(loaded: LoadedModel, by_value: Mapping) -> pd.DataFrame:
    """The model's decisions under attacks, (name, value) -> function."""
    return evaluation.under_attacks(loaded.model, loaded.x, loaded.y, by_value, bf16=loaded.bf16)


def _uar(loaded: LoadedModel, rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    return metrics.uar_by(rows, columns).assign(**loaded.columns)
