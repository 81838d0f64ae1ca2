"""One clip of a run under one attack at every strength, computed as one batch: a slider that moves
through the strengths need not wait for an attack."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedser_utils import attacks
from fedser_utils.core.runs import Run
from fedser_utils.core.seeding import generator
from fedser_utils.data.federation import Federation, federation_of
from fedser_utils.data.log_mel import StandardisedLogMel
from fedser_utils.learning import vgg
from fedser_utils.robustness.randomisation import Draw, Randomise

EPSILONS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # standardised log-Mel units
RATIOS = (60.0, 50.0, 40.0, 30.0, 20.0)  # dB, of an attack on the sound
ON_SOUND = "pgd on the sound"
ATTACKS = (*attacks.ATTACKS, ON_SOUND)
DRAWS = 30  # of the randomisation, side by side


@dataclass(frozen=True)
class Sweep:
    """A clip and its adversarial versions, the clean one always first.

    strengths: epsilons, or ratios in dB, or none for an attack without a budget, which gives one
    version; x: (1 + versions, 1, frames, mels) standardised log-Mel; probabilities: (1 + versions,
    classes); waveforms: (1, samples) of the clean clip and, under an attack on the sound, of each
    version; snr_db: of the Mel magnitudes of each x, the first infinite.
    """

    strengths: tuple[float, ...]
    x: Tensor
    probabilities: Tensor
    waveforms: list[Tensor]
    snr_db: list[float]

    def place(self, strength: float) -> int:
        """Return where the version of a strength is; 1 for an attack without a budget."""
        return 1 + self.strengths.index(strength) if self.strengths else 1


@dataclass(frozen=True)
class SweepSource:
    """A run's model and test clips, loaded when they are first needed."""

    run: Run
    device: str = "cpu"

    @cached_property
    def data(self) -> Federation:
        """The run's clips, split as it split them."""
        return federation_of(self.run)

    @cached_property
    def target_model(self) -> torch.nn.Module:
        """The run's model as attacks get it; it also decides."""
        return vgg.fold_batch_norm(vgg.load(self.run).to(self.device))

    @cached_property
    def clips(self) -> pd.DataFrame:
        """The test clips with the run's last decision on each: clip, speaker, emotion, y_pred,
        right, label (of a menu)."""
        rows = self.run.table("predictions")
        last = rows[(rows["round"] == rows["round"].max()) & (rows["condition"] == "original")]
        y_pred = last.drop_duplicates("clip").set_index("clip")["y_pred"]
        table = self.data.table("test")[["clip", "speaker", "emotion"]]
        table = table.assign(y_pred=table["clip"].map(y_pred))
        right = table["y_pred"] == table["emotion"]
        decision = np.where(right, "right", "predicted " + table["y_pred"].astype(str))
        label = table["clip"] + ": " + table["emotion"] + ", " + decision
        return table.assign(right=right, label=label)

    def sweep(self, index: int, attack: str) -> Sweep:
        """Return the clip in row ``index`` of ``clips`` under one of ``ATTACKS``."""
        x, y = self.data.tensors(self.data.clips.loc[[index]], device=self.device)
        features = self.input_transform(index)
        waveforms = [self.data.waveform(index, device=self.device)]
        if attack == ON_SOUND:
            strengths, options = RATIOS, {"features": features, "steps": 10}
            for ratio in RATIOS:
                w_adv = attacks.waveform_pgd(
                    self.target_model, waveforms[0], y, snr_db=ratio, **options
                )
                waveforms.append(w_adv)
            x_adv = torch.cat([features(waveform) for waveform in waveforms[1:]])
        else:
            strengths, x_adv = self._attack(x, y, attack)
        images = torch.cat([x, x_adv])
        scale = {"mean": features.mean, "std": features.std}
        snr_db = attacks.perceptibility(x.expand_as(images), images, **scale)["snr_db"].tolist()
        return Sweep(strengths, images, self.probabilities(images), waveforms, snr_db)

    def _attack(self, x: Tensor, y: Tensor, name: str) -> tuple[tuple[float, ...], Tensor]:
        """Return the strengths of an attack on the log-Mel, and x_adv at each of them."""
        settings = self.run.settings
        if "epsilon" not in attacks.STRENGTH[name]:
            return (), attacks.make_attack(settings, name)(self.target_model, x, y)
        strengths = tuple(sorted({*EPSILONS, settings.epsilon}))
        epsilon = torch.tensor(strengths)
        step_size = settings.step_size / settings.epsilon * epsilon
        attack = attacks.make_attack(settings, name, epsilon=epsilon, step_size=step_size)
        batch = (part.expand(len(strengths), *part.shape[1:]) for part in (x, y))
        return strengths, attack(self.target_model, *batch)

    def input_transform(self, index: int) -> StandardisedLogMel:
        """Return the transform from the waveform of the clip in row ``index`` to the model's x."""
        return self.data.input_transform(index, device=self.device)

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """Return the model's softmax, (batch, classes), on the CPU."""
        return self.target_model(x).softmax(1).cpu()

    def randomised(self, x: Tensor, seed: int, draws: int = DRAWS) -> Tensor:
        """Return (draws, classes) probabilities of one image, (1, 1, frames, mels), behind the
        first of the ``DRAWS`` draws of the randomisation from ``seed``."""
        settings = self.run.settings
        randomise = Randomise.on(settings.front_end.shape, mode=settings.resize)
        draw = randomise.draw(DRAWS, generator(seed, "explorer"))
        draw = Draw(*(part[:draws].to(x.device) for part in draw))
        return self.probabilities(randomise(x.expand(draws, -1, -1, -1), draw))
