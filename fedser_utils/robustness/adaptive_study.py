"""An adaptive evaluation of every model of a study: evidence, checklist, certificates, cost.

What notebook 06 shows. Evidence is cached in the runs' folders (``adaptive.parquet``,
``checklist.parquet``) under the effort that it was computed with.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pandas as pd

from fedser_utils.attacks import make_attack
from fedser_utils.core.devices import worker_pool
from fedser_utils.core.runs import Run, origin, study_runs
from fedser_utils.core.settings import Settings
from fedser_utils.learning import vgg
from fedser_utils.robustness import smoothing
from fedser_utils.robustness.adaptive_attacks import checklist_evidence, core_evidence
from fedser_utils.robustness.checklist import checklist
from fedser_utils.robustness.defended_model import DefendedModel, defend, stratified_sample
from fedser_utils.robustness.evaluation import BATCH, with_clips
from fedser_utils.robustness.loaded_model import LoadedModel, load_model, load_runs
from fedser_utils.robustness.randomised_inference import logits_over_draws, milliseconds_per_clip


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How many clips are attacked, and how hard.

    test_clips: at most so many; draws: per decision; eot: draws per gradient, rising; gradients:
    per clip and attack; attack_steps: of PGD in the security curve and the checklist; epsilons:
    of the security curve; iterations: rising numbers of steps; restarts: random ones; few: clips
    for the black-box attacks, with ``queries`` each.
    """

    test_clips: int
    draws: int
    eot: Sequence[int]
    gradients: int
    attack_steps: int
    epsilons: Sequence[float]
    iterations: Sequence[int]
    restarts: int
    few: int
    queries: int


@dataclass(frozen=True)
class AdaptiveStudy:
    """The models of a study that are attacked, on one sample of its test clips.

    checked: the model that is checked in full; models: those whose clients are speakers, the
    checked one among them; runs: all of the study, also of other seeds; test: the sample's table.
    """

    checked: LoadedModel
    models: list[LoadedModel]
    runs: list[Run]
    test: pd.DataFrame
    effort: Effort

    @property
    def epsilon(self) -> float:
        """The L-inf budget of all attacks, in standardised log-Mel."""
        return self.checked.settings.epsilon

    @property
    def hardware(self) -> dict[str, str]:
        """The columns processor and precision."""
        return self.checked.hardware

    @property
    def origin(self) -> str:
        """The runs and commits of the figures, for their metadata."""
        return origin(self.runs)

    @property
    def chance(self) -> float:
        """The UAR in percent of a constant classifier."""
        return 100 / len(self.checked.data.classes)

    @property
    def caption(self) -> str:
        """Which study, clips, draws and processor, as a phrase for captions."""
        made = self.checked.settings
        return (
            f"{made.study}: n = {len(self.test)} test clips of {self.checked.data.corpus.name}, "
            f"{self.effort.draws} draws, {made.rounds} rounds, seed {made.seed}, "
            f"{', '.join(self.hardware.values())}"
        )

    def defend(self, model: LoadedModel, pool: Executor | None = None) -> DefendedModel:
        """Return one of the models behind its randomisation, with the sample's clips."""
        return defend(model, self.test, draws=self.effort.draws, pool=pool)


def open_adaptive_study(settings: Settings, page: SimpleNamespace) -> AdaptiveStudy:
    """Return the settings' study, ready for an adaptive evaluation.

    page: has the fields of ``Effort``. Raises InputError as ``load_model`` does.
    """
    effort = Effort(**{name: getattr(page, name) for name in Effort.__dataclass_fields__})
    checked, runs = load_model(settings), study_runs(settings)
    same_seed = [run for run in runs if run.settings.seed == settings.seed]
    models = load_runs([r for r in same_seed if r.settings.clients == "speakers"], settings)
    test = stratified_sample(checked.test, effort.test_clips, seed=settings.seed)
    return AdaptiveStudy(checked, models, runs, test, effort)


def adaptive_evidence(study: AdaptiveStudy) -> pd.DataFrame:
    """Return ``core_evidence`` on every model; from a run's ``adaptive.parquet`` where it was
    computed before with this effort.

    The attacks of the paper's protocol are those the model was trained with; on nature, all three.
    Two models share the workers, so that none of them idles.
    """
    pending = []
    with worker_pool(study.checked.device) as pool, ThreadPoolExecutor(2) as two_models:
        for model in study.models:
            trained_with = model.run.config["model"]
            names = ["fgsm", "pgd", "deepfool"] if trained_with == "nature" else [trained_with]
            paper = {name: make_attack(model.settings, name) for name in names}
            make = partial(core_evidence, study.defend(model, pool), paper, **_core_options(study))
            pending.append(two_models.submit(model.run.cached, "adaptive", _key(study), make))
    return pd.concat([evidence.result() for evidence in pending], ignore_index=True)


def _options(study: AdaptiveStudy, *names: str) -> dict[str, object]:
    """Return epsilon, steps, and the effort's ``names``: options of the evidence's functions."""
    effort = {name: getattr(study.effort, name) for name in names}
    return effort | {"steps": study.effort.attack_steps, "epsilon": study.epsilon}


def _core_options(study: AdaptiveStudy) -> dict[str, object]:
    return _options(study, "eot", "gradients", "epsilons")


def _key(study: AdaptiveStudy) -> dict[str, object]:
    """Return what the evidence depends on, under which it is cached."""
    sample = {"clips": study.effort.test_clips, "draws": study.effort.draws}
    return _core_options(study) | sample


def check_model(study: AdaptiveStudy, evidence: pd.DataFrame) -> pd.DataFrame:
    """Return the ``checklist`` of the checked model.

    evidence: of ``adaptive_evidence``; what else the items need comes from the run's
    ``checklist.parquet``, or is computed now. Every other run is a source of transfer attacks.
    """
    checked, others = study.checked, {r.id: r for r in study.runs if r.id != study.checked.run.id}
    options = _options(study, "iterations", "restarts", "few", "queries")
    key = _key(study) | options | {"sources": sorted(others)}
    with worker_pool(checked.device) as pool:
        sources = {
            name: vgg.attack_target(vgg.load(run).to(checked.device), bf16=checked.bf16)
            for name, run in others.items()
        }
        make = partial(checklist_evidence, study.defend(checked, pool), sources, **options)
        rest = checked.run.cached("checklist", key, make)
    core = evidence[evidence["run"] == checked.run.id]
    return checklist(pd.concat([core, rest], ignore_index=True), epsilon=study.epsilon)


def certify_models(study: AdaptiveStudy, *, sigma: float, samples: int) -> pd.DataFrame:
    """Return the decisions of every model under randomised smoothing, with their certified radius.

    sigma: of the noise, in standardised log-Mel; samples: noisy copies of each clip that bound the
    certificate. Returns a row per model and clip, as ``smoothing.certify``; where it abstains,
    y_pred is "abstains".
    """
    names, parts = (*study.checked.data.classes, "abstains"), []
    options = {"sigma": sigma, "choosing": 10, "samples": samples}
    with worker_pool(study.checked.device) as pool:
        for model in study.models:
            defended = study.defend(model, pool)
            seed = study.checked.settings.seed
            rows = smoothing.certify(defended.plain, defended.x, seed=seed, pool=pool, **options)
            columns = {"run": model.run.id, "model": model.run.config["model"]}
            parts.append(with_clips(rows, study.test, names, **columns))
    return pd.concat(parts, ignore_index=True)


def defence_cost(study: AdaptiveStudy, *, sigma: float, samples: int) -> pd.DataFrame:
    """Return the milliseconds per clip of one randomised decision and of one smoothed with
    ``samples`` copies: defence, ms per clip, device."""
    defended, device = study.defend(study.models[-1]), study.checked.device
    x = defended.x[: BATCH[defended.x.device.type]]
    options = {"seed": 0, "randomise": defended.randomise, "draws": 1}
    one_draw = partial(logits_over_draws, defended.plain, x, **options)
    options = {"seed": 0, "sigma": sigma, "samples": 10, "stream": ""}
    ten_copies = partial(smoothing.votes, defended.plain, x, **options)
    cost = {
        "resize + pad": milliseconds_per_clip(one_draw, clips=len(x)),
        "smoothing": samples / 10 * milliseconds_per_clip(ten_copies, clips=len(x)),
    }
    return pd.DataFrame(cost.items(), columns=["defence", "ms per clip"]).assign(device=device)
