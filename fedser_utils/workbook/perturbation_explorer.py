"""The PerturbationExplorer: a clip before and after an attack, seen, heard, and decided upon."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape

import ipywidgets as ipw
import numpy as np
import pandas as pd
from IPython.display import HTML, Image
from torch import Tensor

from fedser_utils.analysis import tables
from fedser_utils.analysis.tables import ATTACK_NAMES, MODEL_NAMES
from fedser_utils.core.front_end import FrontEnd
from fedser_utils.core.runs import Run
from fedser_utils.workbook import display
from fedser_utils.workbook.attack_sweep import DRAWS, ON_SOUND, Sweep, SweepSource, names
from fedser_utils.workbook.canvas import Canvas
from fedser_utils.workbook.training_monitor import player

ANY = "any"
BEFORE, AFTER, WRONG = "#0072B2", "#E69F00", "#D55E00"  # Okabe and Ito's
WIDE = {"description_width": "6em"}


def show(runs: Sequence[Run], *, device: str = "cpu") -> None:
    """The explorer where it can be used, its twin elsewhere. runs: of one study; the first is shown
    at first."""
    display.show(
        lambda: PerturbationExplorer(runs, device=device),
        lambda: PerturbationExplorer(runs, device=device).twin(),
    )


class PerturbationExplorer(ipw.VBox):
    """runs: of one study; the first is shown at first."""

    def __init__(self, runs: Sequence[Run], *, device: str = "cpu") -> None:
        self._stages = {_name(run): SweepSource(run, device) for run in runs}
        self._scenes: dict[tuple, Sweep] = {}
        self._drawn: dict[tuple, Tensor] = {}
        self._seed, self._quiet = 0, False
        self._canvas: Canvas | None = None
        drop, style = ipw.Dropdown, {"style": WIDE}
        self.run = drop(options=[*self._stages], description="Model", **style)
        words = {ATTACK_NAMES.get(name, "PGD on the sound"): name for name in names()}
        self.attack = drop(options=words, value="pgd", description="Attack", **style)
        label, client = tables.terms(self._classes)
        self.speaker = drop(description=client.capitalize(), **style)
        self.emotion = drop(description=label.capitalize(), **style)
        self.right = drop(options=[ANY, "right", "wrong"], description="Predicted", **style)
        self.clip = drop(description="Clip", layout=ipw.Layout(width="28em"), **style)
        self.strength = ipw.SelectionSlider(
            options=[0.05], description="epsilon", continuous_update=True,
            layout=ipw.Layout(width="28em"), **style,
        )  # fmt: skip
        self.defence = ipw.Checkbox(description="Randomisation (resize and pad)", indent=False)
        self.draw = ipw.Button(description="New draw", icon="random")
        self.listen = ipw.Button(description="Listen", icon="volume-up")
        self.status, self.sounds = ipw.HTML(), ipw.HTML()
        self.picture = ipw.Image(format="png", layout=ipw.Layout(max_width="100%"))
        self.decisions, self.strip = ipw.HTML(), ipw.HTML()
        rows = [
            [self.run, self.attack, self.strength],
            [self.speaker, self.emotion, self.right, self.clip],
            [self.defence, self.draw, self.listen],
        ]
        wrap = ipw.Layout(flex_flow="row wrap")
        boxes = [ipw.HBox(row, layout=wrap) for row in rows]
        shown = [self.status, self.picture, self.decisions, self.strip, self.sounds]
        super().__init__([*boxes, *shown])
        parts = {"perturbation": self, "status": self.status, "strip": self.strip}
        for name, part in (parts | {"decisions": self.decisions}).items():
            part.add_class(f"fedser-{name}")  # to be found by
        self._filters()
        self._narrow()
        self._strengths()
        self.show()
        self._observe()

    def _observe(self) -> None:
        for control, changed in (
            (self.run, (self._filters, self._narrow, self._strengths, self.show)),
            (self.attack, (self._strengths, self.show)),
            (self.speaker, (self._narrow, self.show)),
            (self.emotion, (self._narrow, self.show)),
            (self.right, (self._narrow, self.show)),
            (self.clip, (self.show,)),
            (self.strength, (self.show,)),
            (self.defence, (self.show,)),
        ):
            control.observe(self._reaction(changed), "value")
        self.draw.on_click(self._new_draw)
        self.listen.on_click(lambda _: self.play())

    def _reaction(self, steps: Sequence[Callable[[], None]]) -> Callable[[dict], None]:
        def react(change: dict) -> None:
            if not self._quiet:
                with self._busy():
                    for step in steps:
                        step()

        return react

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Say that it works, then how long it took, or what went wrong; changes inside cause no
        further ones."""
        self._quiet, begin = True, time.perf_counter()
        self.status.value = "<i>working ...</i>"
        try:
            yield
            self.status.value = f"{self._line()} ({1000 * (time.perf_counter() - begin):.0f} ms)"
        except Exception as error:  # a callback's would go unseen
            self.status.value = f"<b>{escape(f'{type(error).__name__}: {error}')}</b>"
        finally:
            self._quiet = False

    @property
    def _stage(self) -> SweepSource:
        return self._stages[self.run.value]

    @property
    def _front(self) -> FrontEnd:
        return self._stage.run.settings.front_end

    def _filters(self) -> None:
        clips = self._stage.clips
        for control, column in ((self.speaker, "speaker"), (self.emotion, "emotion")):
            _offer(control, [ANY, *sorted(clips[column].unique())])

    def _narrow(self) -> None:
        clips = self._stage.clips
        for control, column in ((self.speaker, "speaker"), (self.emotion, "emotion")):
            if control.value != ANY:
                clips = clips[clips[column] == control.value]
        if self.right.value != ANY:
            clips = clips[clips["right"] == (self.right.value == "right")]
        _offer(self.clip, [(_clip_name(clip), index) for index, clip in clips.iterrows()])

    def _strengths(self) -> None:
        """The slider's positions are the attack's."""
        self.strength.disabled = self.attack.value == "deepfool" or self.clip.value is None
        self.strength.description = "SNR [dB]" if self.attack.value == ON_SOUND else "epsilon"
        if self.clip.value is not None and (strengths := self._scene().strengths):
            _offer(self.strength, [(f"{value:g}", value) for value in strengths],
                   self._stage.run.settings.epsilon)  # fmt: skip

    def _scene(self) -> Sweep:
        key = self.run.value, self.clip.value, self.attack.value
        if key not in self._scenes:
            self._scenes[key] = self._stage.sweep(*key[1:])
        return self._scenes[key]

    @property
    def _place(self) -> int:
        return self._scene().place(None if self.strength.disabled else self.strength.value)

    def show(self) -> None:
        """Bring picture and decisions up to date; players go, since they are of what was."""
        self.sounds.value = ""
        if self.clip.value is None:
            self.picture.value = b""
            self.decisions.value, self.strip.value = "no clip is like that", ""
            return
        scene, place = self._scene(), self._place
        clean, moved, change = self._images()
        if self._canvas is None:
            titles = ("Clean", "Adversarial", "Perturbation x 100")
            self._canvas = Canvas(titles, front=self._front)
        limits = [float(np.abs(clean).max())] * 2 + [_reach(change)]
        colours = ("magma", "magma", "PuOr")
        self.picture.value = self._canvas.paint((clean, moved, change), limits, colours)
        before, after = scene.shares[0], scene.shares[place]
        self.strip.value = ""
        if self.defence.value:
            before, draws = self._of_draw(0)[0], self._of_draw(place)
            after = draws[0]
            self.strip.value = strip(draws.argmax(1).tolist(), self._classes, self._truth)
        self.decisions.value = bars(before.tolist(), after.tolist(), self._classes, self._truth)

    def _of_draw(self, place: int) -> Tensor:
        """(draws, classes) of an image behind the randomisation's present draws; of the clean one
        behind the first alone, which is all that is shown."""
        key = self.run.value, self.clip.value, self.attack.value, place, self._seed
        if key not in self._drawn:
            image = self._scene().images[place : place + 1]
            self._drawn[key] = self._stage.randomised(image, self._seed, DRAWS if place else 1)
        return self._drawn[key]

    def _new_draw(self, _: ipw.Button) -> None:
        with self._busy():
            self._seed += 1
            self.defence.value = True
            self.show()

    def play(self) -> None:
        """Players of the clean and the attacked sound."""
        if self.clip.value is None:
            return
        with self._busy():
            scene, place, stage = self._scene(), self._place, self._stage
            heard = {"the recording": scene.sounds[0]}
            if self.attack.value == ON_SOUND:
                heard["attacked, exactly as the model hears it"] = scene.sounds[place]
            else:
                guess = "an approximate sound of the {} log-Mel"
                heard[guess.format("clean")] = stage.approximate_sound(
                    self.clip.value, scene.images[:1]
                )
                moved = scene.images[place : place + 1]
                heard[guess.format("adversarial")] = stage.approximate_sound(self.clip.value, moved)
            play = partial(player, rate=self._front.sample_rate)
            cells = [
                f"<p>{escape(name)}<br>{play(sound[0].cpu().numpy())}</p>"
                for name, sound in heard.items()
            ]
            self.sounds.value = "".join(cells)

    @property
    def _classes(self) -> Sequence[str]:
        return self._stage.data.classes

    @property
    def _truth(self) -> str:
        return self._stage.clips["emotion"][self.clip.value]

    def _line(self) -> str:
        if self.clip.value is None:
            return "no clip"
        _, _, change = self._images()
        clip = escape(_clip_name(self._stage.clips.loc[self.clip.value]))
        return (
            f"{clip}: largest change {np.abs(change).max():.3g}, "
            f"{self._scene().snr_db[self._place]:.1f} dB SNR of Mel magnitudes; the perturbation's "
            f"colours reach to ±{100 * _reach(change):.3g}"
        )

    def _images(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(frames, mels) each: clean, adversarial, and their difference."""
        scene = self._scene()
        clean, moved = (scene.images[i, 0].cpu().numpy() for i in (0, self._place))
        return clean, moved, moved - clean

    def twin(self) -> list:
        """What the widget shows, with the defence, as pictures and text."""
        with self._busy():
            self.defence.value = True
            self.show()
        self.play()
        said = f"<p>{self.run.value}, {self.attack.label}: {self._line()}</p>"
        shown = HTML(said + self.decisions.value + self.strip.value + self.sounds.value)
        return [Image(self.picture.value), shown]


def bars(
    before: Sequence[float], after: Sequence[float], classes: Sequence[str], truth: str
) -> str:
    """HTML: each class's share of the softmax on the clean and on the adversarial clip."""
    rows = []
    for name, one, other in zip(classes, before, after, strict=True):
        cells = []
        for share, top, colour in ((one, max(before), BEFORE), (other, max(after), AFTER)):
            bar = f"display:inline-block;height:0.8em;width:{9 * share:.2f}em;background:{colour}"
            said = f"{100 * share:.1f} %" + (" ◀ decision" if share == top else "")
            cells.append(
                f'<td style="width:20em;text-align:left"><span style="{bar}"></span> {said}</td>'
            )
        title = f"<b>{escape(name)} (truth)</b>" if name == truth else escape(name)
        rows.append(f'<tr><td style="text-align:right">{title}</td>{"".join(cells)}</tr>')
    head = "<tr><th></th><th>clean</th><th>adversarial</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def strip(decisions: Sequence[int], classes: Sequence[str], truth: str) -> str:
    """HTML: the decisions over the randomisation's draws, the first being the one shown."""
    cells = []
    for number, decided in enumerate(decisions):
        name = classes[decided]
        colour = BEFORE if name == truth else WRONG
        look = (
            f"background:{colour};color:white;padding:0.15em 0.3em;margin:1px;display:inline-block"
        )
        edge = ";outline:2px solid black" if number == 0 else ""
        mark = "✓" if name == truth else escape(name[:3])
        cells.append(f'<span title="{escape(name)}" style="{look}{edge}">{mark}</span>')
    right = sum(classes[decided] == truth for decided in decisions)
    text = f"{right} of {DRAWS} draws are recognised (the outlined one is shown above):"
    return f"<p>{text}<br>{''.join(cells)}</p>"


def _reach(change: np.ndarray) -> float:
    """Up to where a perturbation's colours differ; a few of DeepFool's values lie beyond."""
    return float(np.quantile(np.abs(change), 0.99))


def _name(run: Run) -> str:
    model = MODEL_NAMES.get(run.config["model"], run.config["model"])
    return f"{model}, seed {run.settings.seed}"


def _clip_name(clip: pd.Series) -> str:
    said = "right" if clip["right"] else f"said {clip['y_pred']}"
    return f"{clip['clip']}: {clip['emotion']}, {said}"


def _offer(control: ipw.Widget, options: list, default: object = None) -> None:
    """New options; the value stays if it is among them, else the default, else the first."""
    values = [each[1] if isinstance(each, tuple) else each for each in options]
    kept = control.value
    control.options = options
    if values:
        wanted = kept if kept in values else default
        control.value = wanted if wanted in values else values[0]
