"""PerturbationExplorer: a clip before and after an attack, to be seen, heard, and classified."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape
from typing import Any

import ipywidgets as ipw
import numpy as np
from IPython.display import HTML, Image
from torch import Tensor

from fedser_utils.analysis import labels
from fedser_utils.core.runs import Run
from fedser_utils.data.audio import playable
from fedser_utils.workbook import display
from fedser_utils.workbook.attack_sweep import ATTACKS, DRAWS, ON_SOUND, Sweep, SweepSource
from fedser_utils.workbook.canvas import Canvas
from fedser_utils.workbook.clip_media import player
from fedser_utils.workbook.controls import set_options

ANY = "any"
BEFORE, AFTER, WRONG = "#0072B2", "#E69F00", "#D55E00"  # Okabe and Ito's
TITLES = ("Clean", "Adversarial", "Perturbation x 100")


def explore_perturbations(runs: Sequence[Run], *, device: str = "cpu") -> None:
    """Display the explorer, or its static twin where widgets do not work.

    runs: of one study, the one to start with first; a model is loaded when it is chosen.
    """
    explorer = partial(PerturbationExplorer, runs, device=device)
    display.show(explorer, lambda: explorer().twin())


class PerturbationExplorer(ipw.VBox):
    """Menus for model, attack, strength and clip; the log-Mels, the model's probabilities, its
    decisions behind the randomisation, and players. Arguments: as ``explore_perturbations``'s."""

    def __init__(self, runs: Sequence[Run], *, device: str = "cpu") -> None:
        self._sources = {_run_label(run): SweepSource(run, device) for run in runs}
        self._sweeps: dict[tuple, Sweep] = {}
        self._behind_draws: dict[tuple, Tensor] = {}
        self._seed, self._updating = 0, False  # of the randomisation's draws
        self.run = _menu("Model", [*self._sources])
        names = [(labels.ATTACK_NAMES.get(name, "PGD on the sound"), name) for name in ATTACKS]
        self.attack = _menu("Attack", names, value="pgd")
        label, client = labels.terms(self._classes)
        self.speaker, self.emotion = _menu(client.capitalize()), _menu(label.capitalize())
        self.right = _menu("Predicted", [ANY, "right", "wrong"])
        self.clip = _menu("Clip", layout={"width": "28em"})
        self.strength = ipw.SelectionSlider(
            options=[self._settings.epsilon], description="epsilon",
            layout={"width": "28em"}, style={"description_width": "6em"},
        )  # fmt: skip
        self.defence = ipw.Checkbox(description="Randomisation (resize and pad)", indent=False)
        self.draw = ipw.Button(description="New draw", icon="random")
        self.listen = ipw.Button(description="Listen", icon="volume-up")
        self.picture = ipw.Image(format="png", layout={"max_width": "100%"})
        self.status, self.decisions, self.strip, self.sounds = (ipw.HTML() for _ in range(4))
        self._canvas = Canvas(TITLES, front=self._settings.front_end)
        super().__init__(self._rows())
        self.add_class("fedser-perturbation")  # for tests in a browser
        for name in ("status", "strip", "decisions"):
            getattr(self, name).add_class(f"fedser-{name}")
        self.update()
        self._observe()

    def _rows(self) -> list[ipw.Widget]:
        """Return the rows of controls, then what they change."""
        rows = (
            [self.run, self.attack, self.strength],
            [self.speaker, self.emotion, self.right, self.clip],
            [self.defence, self.draw, self.listen],
        )
        boxes = [ipw.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        return [*boxes, self.status, self.picture, self.decisions, self.strip, self.sounds]

    def _observe(self) -> None:
        menus = (self.run, self.attack, self.speaker, self.emotion, self.right, self.clip)
        for control in (*menus, self.strength, self.defence):
            control.observe(self._changed, "value")
        self.draw.on_click(self._new_draw)
        self.listen.on_click(self.play)

    def _changed(self, _: dict[str, Any]) -> None:
        if not self._updating:
            with self._busy():
                self.update()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Write into the status line how long the block took, or its error; controls that the
        block changes start no further update."""
        self._updating, begin = True, time.perf_counter()
        self.status.value = "<i>working ...</i>"
        try:
            yield
            self.status.value = f"{self._summary()} ({1000 * (time.perf_counter() - begin):.0f} ms)"
        except Exception as error:  # a callback's errors appear nowhere else
            self.status.value = f"<b>{escape(f'{type(error).__name__}: {error}')}</b>"
        finally:
            self._updating = False

    @property
    def _source(self) -> SweepSource:
        return self._sources[self.run.value]

    @property
    def _settings(self) -> Any:
        return self._source.run.settings

    @property
    def _classes(self) -> Sequence[str]:
        return self._source.data.classes

    @property
    def _sweep(self) -> Sweep:
        key = self.run.value, self.clip.value, self.attack.value
        if key not in self._sweeps:
            self._sweeps[key] = self._source.sweep(*key[1:])
        return self._sweeps[key]

    @property
    def _place(self) -> int:
        return self._sweep.place(self.strength.value)

    def update(self) -> None:
        """Offer what can be chosen, then show picture and decisions; players disappear, since they
        are of the former choice."""
        self._offer_clips()
        self.sounds.value = ""
        if self.clip.value is None:
            self.strength.disabled, self.picture.value = True, b""
            self.decisions.value, self.strip.value = "no clip matches the filters", ""
            return
        self._offer_strengths()
        clean, adversarial, change = self._images()
        limits = [float(np.abs(clean).max())] * 2 + [_reach(change)]
        images, colormaps = (clean, adversarial, change), ("magma", "magma", "PuOr")
        self.picture.value = self._canvas.paint(images, limits, colormaps)
        truth = self._source.clips["emotion"][self.clip.value]
        before, after = self._sweep.probabilities[[0, self._place]]
        strip = ""
        if self.defence.value:
            before, draws = self._randomised(0)[0], self._randomised(self._place)
            after = draws[0]
            strip = decisions_html(draws.argmax(1).tolist(), self._classes, truth)
        self.strip.value = strip
        self.decisions.value = probabilities_html(
            before.tolist(), after.tolist(), self._classes, truth
        )

    def _randomised(self, place: int) -> Tensor:
        """Return (draws, classes) probabilities of a version behind the randomisation's draws; of
        the clean one behind the first draw alone, which is all that is shown."""
        key = self.run.value, self.clip.value, self.attack.value, place, self._seed
        if key not in self._behind_draws:
            x, draws = self._sweep.x[place : place + 1], DRAWS if place else 1
            self._behind_draws[key] = self._source.randomised(x, self._seed, draws)
        return self._behind_draws[key]

    def _offer_clips(self) -> None:
        """Offer the clips that the filters leave."""
        clips = everything = self._source.clips
        for menu, column in ((self.speaker, "speaker"), (self.emotion, "emotion")):
            set_options(menu, [(ANY, ANY), *((v, v) for v in sorted(everything[column].unique()))])
            if menu.value != ANY:
                clips = clips[clips[column] == menu.value]
        if self.right.value != ANY:
            clips = clips[clips["right"] == (self.right.value == "right")]
        set_options(self.clip, list(zip(clips["label"], clips.index, strict=True)))

    def _offer_strengths(self) -> None:
        """Offer the strengths of the attack, epsilon as the run's at first."""
        strengths = self._sweep.strengths
        self.strength.disabled = not strengths
        self.strength.description = "SNR [dB]" if self.attack.value == ON_SOUND else "epsilon"
        if strengths:
            set_options(self.strength, [(f"{s:g}", s) for s in strengths], self._settings.epsilon)

    def _images(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the clean and the adversarial log-Mel and their difference, (frames, mels)."""
        clean, adversarial = (self._sweep.x[i, 0].cpu().numpy() for i in (0, self._place))
        return clean, adversarial, adversarial - clean

    def _summary(self) -> str:
        """Return the clip and the size of its perturbation as HTML."""
        if self.clip.value is None:
            return "no clip"
        change = self._images()[2]
        return (
            f"{escape(self.clip.label)}: largest change {np.abs(change).max():.3g}, "
            f"{self._sweep.snr_db[self._place]:.1f} dB SNR of Mel magnitudes; the perturbation's "
            f"colours reach to ±{100 * _reach(change):.3g}"
        )

    def _new_draw(self, _: ipw.Button) -> None:
        with self._busy():
            self._seed += 1
            self.defence.value = True
            self.update()

    def play(self, _: ipw.Button | None = None) -> None:
        """Show players of the clean and of the attacked sound."""
        if self.clip.value is None:
            return
        with self._busy():
            sweep, place = self._sweep, self._place
            waveforms = {"the recording": sweep.waveforms[0]}
            if self.attack.value == ON_SOUND:
                waveforms["attacked, exactly as the model gets it"] = sweep.waveforms[place]
            else:
                invert = self._source.input_transform(self.clip.value).approximate_sound
                for name, i in (("clean", 0), ("adversarial", place)):
                    title = f"an approximate sound of the {name} log-Mel"
                    waveforms[title] = invert(sweep.x[i : i + 1])
            rate, html = self._settings.front_end.sample_rate, []
            for name, waveform in waveforms.items():
                wav = playable(waveform[0].cpu().numpy(), rate=rate)
                html.append(f"<p>{name}<br>{player(wav, name=name)}</p>")
            self.sounds.value = "".join(html)

    def twin(self) -> list[Any]:
        """Return what the widget shows, with randomisation, as a picture and text."""
        with self._busy():
            self.defence.value = True
            self.update()
        self.play()
        text = f"<p>{self.run.value}, {self.attack.label}: {self._summary()}</p>"
        text += self.decisions.value + self.strip.value + self.sounds.value
        return [Image(self.picture.value), HTML(text)]


def probabilities_html(
    before: Sequence[float], after: Sequence[float], classes: Sequence[str], truth: str
) -> str:
    """Return a table with bars of each class's probability on the clean and the adversarial clip,
    (classes,) each."""
    rows = "<tr><th></th><th>clean</th><th>adversarial</th></tr>"
    for i, name in enumerate(classes):
        title = f"<b>{escape(name)} (truth)</b>" if name == truth else escape(name)
        rows += f'<tr><td style="text-align:right">{title}</td>'
        for values, colour in ((before, BEFORE), (after, AFTER)):
            bar = f"display:inline-block;height:0.8em;width:{9 * values[i]:.2f}em"
            text = f"{100 * values[i]:.1f} %" + " ◀ decision" * (values[i] == max(values))
            rows += '<td style="width:20em;text-align:left">'
            rows += f'<span style="{bar};background:{colour}"></span> {text}</td>'
    return f"<table>{rows}</table>"


def decisions_html(decisions: Sequence[int], classes: Sequence[str], truth: str) -> str:
    """Return the decisions over the randomisation's draws as a strip, the shown one outlined."""
    cells, names = "", [classes[decision] for decision in decisions]
    for draw, name in enumerate(names):
        colour, text = (BEFORE, "✓") if name == truth else (WRONG, escape(name[:3]))
        style = f"background:{colour};color:white;padding:0.15em 0.3em;margin:1px"
        style += ";display:inline-block" + ";outline:2px solid black" * (draw == 0)
        cells += f'<span title="{escape(name)}" style="{style}">{text}</span>'
    right = f"{names.count(truth)} of {DRAWS} draws are recognised"
    return f"<p>{right} (the outlined one is shown above):<br>{cells}</p>"


def _reach(change: np.ndarray) -> float:
    """Return the limit of a perturbation's colours; a few of DeepFool's values lie beyond."""
    return float(np.quantile(np.abs(change), 0.99))


def _run_label(run: Run) -> str:
    model = labels.MODEL_NAMES.get(run.config["model"], run.config["model"])
    return f"{model}, seed {run.settings.seed}"


def _menu(description: str, options: Sequence = (), **kwargs: Any) -> ipw.Dropdown:
    style = {"description_width": "6em"}
    return ipw.Dropdown(options=options, description=description, style=style, **kwargs)
