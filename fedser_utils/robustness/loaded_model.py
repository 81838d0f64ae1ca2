"""A finished run opened for attacks and measurements: its model, its test clips, its device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from torch import Tensor, nn

from fedser_utils.core import devices
from fedser_utils.core.runs import Run, find_run, origin, study_runs
from fedser_utils.core.settings import Settings
from fedser_utils.data.federation import Federation, federation_of
from fedser_utils.learning import vgg
from fedser_utils.robustness.randomisation import Randomise


@dataclass(frozen=True)
class LoadedModel:
    """The model of one run, on a device, with the test clips of its federation.

    settings: the run's; model: in evaluation mode; target_model: what attacks take the gradients
    of; bf16: of these gradients; test: the table of the test clips; x: (n, 1, frames, mels)
    standardised log-Mel; y: (n,) labels; hardware: the columns processor and precision; origin:
    for the figures' metadata; caption: which model, clips and processor, as a phrase.
    """

    run: Run
    settings: Settings
    data: Federation
    model: vgg.VGG15
    target_model: nn.Module
    device: str
    bf16: bool
    test: pd.DataFrame
    x: Tensor
    y: Tensor
    hardware: dict[str, str]
    origin: str
    caption: str

    @property
    def columns(self) -> dict[str, str]:
        """The columns of result tables that say which run a number is of, and where computed."""
        return {"run": self.run.id} | self.hardware

    @property
    def randomise(self) -> Randomise:
        """The run's randomisation: resize and pad by the paper's margins."""
        return Randomise.on(self.settings.front_end.shape, mode=self.settings.resize)


def load_model(settings: Settings) -> LoadedModel:
    """Return the model of the settings' study, attack and seed, ready to be attacked.

    Raises InputError where there is no such run, where its corpus has changed, or where every
    client has a model to itself (local batch norm).
    """
    return load_runs([find_run(settings)], settings)[0]


def load_study(settings: Settings) -> list[LoadedModel]:
    """Return all models of the settings' study that have its seed, oldest first, on the same test
    clips, device and precision. Raises InputError as ``load_model`` does."""
    runs = [run for run in study_runs(settings) if run.settings.seed == settings.seed]
    return load_runs(runs, settings)


def load_runs(runs: Sequence[Run], settings: Settings) -> list[LoadedModel]:
    """Return the models of some runs, all on the test clips and in the precision of the run that
    ``load_model`` opens."""
    first, device = find_run(settings), devices.resolve_device(settings)
    models = [vgg.load(run).to(device) for run in runs]
    data, bf16 = federation_of(first), devices.uses_bf16(first.settings, device)
    test, hardware = data.table("test"), devices.hardware(device, bf16=bf16)
    x, y = data.tensors(test, device=device)
    return [
        LoadedModel(
            run=run, settings=run.settings, data=data, model=model,
            target_model=vgg.attack_target(model, bf16=bf16), device=device, bf16=bf16, test=test,
            x=x, y=y, hardware=hardware, origin=origin([run]),
            caption=f"{run.config['model']}: n = {len(test)} test clips of {data.corpus.name}, "
            f"{run.settings.rounds} rounds, seed {run.settings.seed}, "
            f"{', '.join(hardware.values())}",
        )
        for run, model in zip(runs, models, strict=True)
    ]  # fmt: skip
