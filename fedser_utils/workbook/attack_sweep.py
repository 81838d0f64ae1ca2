"""One clip of a run under one attack at all strengths: what there is to see, to hear and to decide.

What a widget moves through is computed in one go, a batch over all strengths, so that a slider need
not wait for an attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from fedser_utils import attacks
from fedser_utils.core.runs import Run
from fedser_utils.core.seeding import generator
from fedser_utils.data.federation import Federation, federation_of
from fedser_utils.learning import vgg
from fedser_utils.robustness.randomisation import Draw, Randomise

EPSILONS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # standardised log-Mel units
RATIOS = (60.0, 50.0, 40.0, 30.0, 20.0)  # dB, of an attack on the sound
ON_SOUND = "pgd on the sound"
DRAWS = 30  # of the randomisation, side by side


@dataclass(frozen=True)
class Sweep:
    """A clip and what an attack made of it. strengths: epsilons, or ratios in dB, or none for an
    attack without a budget; images: (1 + strengths, 1, frames, mels) standardised log-Mel, the
    clean one first; shares: (1 + strengths, classes) of the softmax; sounds: (1, samples) of the
    clean clip and, of an attack on the sound, of each strength; snr_db: per image, of Mel
    magnitudes, the first infinite."""

    strengths: tuple[float, ...]
    images: Tensor
    shares: Tensor
    sounds: list[Tensor]
    snr_db: list[float]

    def place(self, strength: float | None) -> int:
        """Where a strength's image is."""
        return 1 if strength is None else 1 + self.strengths.index(strength)


@dataclass
class SweepSource:
    """A run's model and test clips, made when they are first asked for."""

    run: Run
    device: str = "cpu"
    _randomise: Randomise = field(init=False)

    def __post_init__(self) -> None:
        made = self.run.settings
        self._randomise = Randomise.on(made.front_end.shape, mode=made.resize)

    @cached_property
    def data(self) -> Federation:
        return federation_of(self.run)

    @cached_property
    def model(self) -> vgg.VGG15:
        return vgg.load(self.run).to(self.device)

    @cached_property
    def target_model(self) -> torch.nn.Module:
        """The model as attacks see it, which also decides."""
        return vgg.fold_batch_norm(self.model)

    @cached_property
    def clips(self) -> pd.DataFrame:
        """The test clips, with what the run decided on each at its end: clip, speaker, emotion,
        y_pred, right."""
        rows = self.run.table("predictions")
        last = rows[(rows["round"] == rows["round"].max()) & (rows["condition"] == "original")]
        said = last.drop_duplicates("clip").set_index("clip")["y_pred"]
        table = self.data.table("test")[["clip", "speaker", "emotion"]]
        table = table.assign(y_pred=table["clip"].map(said))
        return table.assign(right=table["y_pred"] == table["emotion"])

    def sweep(self, index: int, attack: str) -> Sweep:
        """The clip in row ``index`` of ``clips`` under an attack of ``names``."""
        x, y = self.data.tensors(self.data.clips.loc[[index]], device=self.device)
        sound, listen = self.data.waveform(index, device=self.device), self.input_transform(index)
        sounds = [sound]
        if attack == ON_SOUND:
            strengths = RATIOS
            for ratio in RATIOS:
                options = {"features": listen, "snr_db": ratio, "steps": 10}
                sounds.append(attacks.waveform_pgd(self.target_model, sound, y, **options))
            moved = torch.cat([listen(each) for each in sounds[1:]])
        elif attack == "deepfool":
            strengths = ()
            moved = attacks.make_attack(self.run.settings, attack)(self.target_model, x, y)
        else:
            strengths = tuple(sorted({*EPSILONS, self.run.settings.epsilon}))
            epsilon = torch.tensor(strengths)
            step = self.run.settings.step_size / self.run.settings.epsilon * epsilon
            options = {"epsilon": epsilon} | ({"step_size": step} if attack == "pgd" else {})
            run = attacks.make_attack(self.run.settings, attack, **options)
            moved = run(
                self.target_model, *(part.expand(len(epsilon), *part.shape[1:]) for part in (x, y))
            )
        images = torch.cat([x, moved])
        standard = {"mean": listen.mean, "std": listen.std}
        found = attacks.perceptibility(x.expand_as(images), images, **standard)["snr_db"]
        return Sweep(strengths, images, self.shares(images), sounds, found.tolist())

    def input_transform(self, index: int) -> torch.nn.Module:
        """From the sound of the clip in row ``index`` to what the model sees."""
        return self.data.input_transform(index, device=self.device)

    @torch.no_grad()
    def shares(self, images: Tensor) -> Tensor:
        """(batch, classes) of the softmax."""
        return self.target_model(images).softmax(1).cpu()

    def randomised(self, image: Tensor, seed: int, draws: int = DRAWS) -> Tensor:
        """(draws, classes) what the model says of one image behind the first draws of the
        randomisation from ``seed``. image: (1, 1, frames, mels)."""
        drawn = self._randomise.draw(DRAWS, generator(seed, "explorer"))
        drawn = Draw(*(part[:draws].to(image.device) for part in drawn))
        return self.shares(self._randomise(image.expand(draws, -1, -1, -1), drawn))

    def approximate_sound(self, index: int, image: Tensor) -> Tensor:
        """(1, samples) a sound that an image of the clip in row ``index`` might have had: an
        approximation."""
        return self.input_transform(index).approximate_sound(image)


def names() -> Sequence[str]:
    """The attacks of a scene."""
    return (*attacks.ATTACKS, ON_SOUND)
