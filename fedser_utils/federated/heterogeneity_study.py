"""The trainings and measurements of notebook 07: clients of several corpora, languages or skews.

One training per intervention and seed on the same clips, the clients' drift and batch statistics
after the baseline, and adversarial training under label skew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fedser_utils.analysis.figure_style import save
from fedser_utils.analysis.heterogeneity import client_differences
from fedser_utils.analysis.heterogeneity.interventions import BASELINE, apply, select
from fedser_utils.analysis.tables import seeds_text
from fedser_utils.core import runs
from fedser_utils.core.devices import resolve_device
from fedser_utils.core.errors import choose
from fedser_utils.core.runs import Run
from fedser_utils.core.settings import ATTACKS, Settings
from fedser_utils.data.federation import Federation, load_federation
from fedser_utils.federated import client_drift
from fedser_utils.federated.runtimes import train
from fedser_utils.learning import vgg


@dataclass(frozen=True)
class HeterogeneityStudy:
    """The interventions to be compared on one federation, and, once trained, their runs.

    settings: of the baseline, evaluated after every round and attacked after the last; defence:
    the attack of adversarial training under label skew; folder, origin, caption: of the study's
    tables and figures; runs: intervention -> its runs, one per seed; hardware: their columns
    processor and precision; skewed: Dirichlet alpha -> the runs under that label skew.
    """

    settings: Settings
    interventions: list[str]
    defence: str
    seeds: list[int]
    data: Federation
    folder: Path
    origin: str
    caption: str
    runs: dict[str, list[Run]] = field(default_factory=dict)
    hardware: dict[str, str] = field(default_factory=dict)
    skewed: dict[float, list[Run]] = field(default_factory=dict)

    @property
    def baseline(self) -> Run:
        """The first seed's run without an intervention."""
        return self.runs[BASELINE][0]

    @property
    def skewed_origin(self) -> str:
        """The runs under label skew, for their figure's metadata."""
        return runs.origin([run for of_alpha in self.skewed.values() for run in of_alpha])

    def save_table(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write ``name.csv``, with the hardware columns once trained, and return the table."""
        runs.write_table(self.folder / f"{name}.csv", table.assign(**self.hardware))
        return table

    def save_sentences(self, lines: Sequence[str], name: str) -> str:
        """Write ``name.md``, and return its text: a list in Markdown."""
        text = "\n".join(f"- {line}" for line in lines) + "\n"
        runs.write_text(self.folder / f"{name}.md", text)
        return text

    def save_figure(
        self, figure: Figure, name: str, *, rows: pd.DataFrame | None = None, origin: str = ""
    ) -> Figure:
        """Write ``name.png``, ``name.pdf`` and the rows behind them, and return the figure.
        origin: otherwise the study's."""
        if rows is not None:
            self.save_table(rows, name)
        return save(figure, self.folder, name, origin=origin or self.origin)


def open_heterogeneity_study(
    settings: Settings, *, interventions: Sequence[str], defence: str, seeds: int
) -> HeterogeneityStudy:
    """Return the study of these interventions (``interventions.select``), not yet trained.

    seeds: how many, from ``settings.seed`` on. Raises InputError for an unknown intervention or
    defence, and for an intervention that the settings do not allow.
    """
    settings = replace(settings, eval_every=1, attack_every=settings.rounds)
    names = select(settings, interventions)
    choose("defence", defence, ATTACKS)
    data = load_federation(settings)
    n = len(data.table("test"))
    return HeterogeneityStudy(
        settings=settings, interventions=names, defence=defence, data=data,
        seeds=list(range(settings.seed, settings.seed + seeds)),
        folder=settings.folder / "heterogeneity",
        origin=f"corpus {data.corpus.fingerprint}; drawn with {runs.commit()}",
        caption=f"Study {settings.study}: {len(data.clients)} clients, n = {n} test clips.",
    )  # fmt: skip


def train_interventions(study: HeterogeneityStudy) -> HeterogeneityStudy:
    """Train every intervention with every seed, and return the study with the runs. Complete runs
    are not trained again."""
    trained = {
        name: [train(replace(apply(study.settings, name), seed=seed)) for seed in study.seeds]
        for name in study.interventions
    }
    every = [run for of_name in trained.values() for run in of_name]
    hardware, caption = runs.hardware(every), study.caption.removesuffix(".")
    caption += f", {study.settings.rounds} rounds, {seeds_text(study.seeds)}, trained on "
    caption += f"{' in '.join(hardware.values())}."
    return replace(
        study, runs=trained, hardware=hardware, origin=runs.origin(every), caption=caption
    )


def train_label_skew(study: HeterogeneityStudy, alphas: Sequence[float]) -> HeterogeneityStudy:
    """Train with the study's defence on the same clips dealt to as many clients by Dirichlet
    distributions of labels, with every alpha and seed, and return the study with these runs."""
    hardened = replace(study.settings, attack=study.defence, partition="dirichlet")
    skewed = {
        alpha: [train(replace(hardened, skew_alpha=alpha, seed=seed)) for seed in study.seeds]
        for alpha in alphas
    }
    return replace(study, skewed=skewed)


def compare_inputs(study: HeterogeneityStudy) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the corpora's log-Mel bands before standardisation (``input_shift``), and the distance
    of each corpus from all together (``shift_by_group``), as recorded and with every clip at one
    level (column level)."""
    bands = client_differences.input_shift(study.data.log_mels, study.data.clips)
    data = load_federation(replace(study.settings, level="rms"))
    levels = {
        "as recorded": bands,
        "level rms": client_differences.input_shift(data.log_mels, data.clips),
    }
    shift = pd.concat(
        client_differences.shift_by_group(rows).assign(level=level)
        for level, rows in levels.items()
    )
    return bands, shift


def measure_drift(study: HeterogeneityStudy) -> pd.DataFrame:
    """Return how far and in which direction each client's update goes in one more round from the
    baseline's model: ``client_drift.drift``."""
    weights = vgg.state_arrays(vgg.load(study.baseline).to(resolve_device(study.settings)))
    states = client_drift.saved_states(study.baseline, study.data)
    after = {"round_number": study.settings.rounds + 1, "states": states}
    return client_drift.drift(study.settings, study.data, weights, **after)


def measure_batch_norm(study: HeterogeneityStudy) -> pd.DataFrame:
    """Return the distance of each corpus's batch statistics from those of the baseline's model:
    ``client_drift.batch_norm_shift``."""
    model = vgg.load(study.baseline).to(resolve_device(study.settings))
    return client_drift.batch_norm_shift(study.settings, study.data, model)
