"""The PerturbationExplorer without a browser: what its controls do, and its twin."""

import dataclasses
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fedser_utils import attacks
from fedser_utils.core.front_end import MACHINES, SPEECH, FrontEnd
from fedser_utils.data import log_mel
from fedser_utils.federated import server_app
from fedser_utils.workbook import attack_sweep, canvas, display, perturbation_explorer
from fedser_utils.workbook.attack_sweep import ON_SOUND, SweepSource
from fedser_utils.workbook.perturbation_explorer import PerturbationExplorer

SLOW = FrontEnd(sample_rate=4000, window=512, hop=128, bands=64, highest=2000.0, seconds=2.0)


@pytest.fixture(scope="module")
def runs(tiny):
    return [server_app.train(dataclasses.replace(tiny, attack=name)) for name in ("none", "fgsm")]


@pytest.fixture(scope="module")
def stage(runs):
    return SweepSource(runs[0])


@pytest.fixture
def explorer(runs):
    return PerturbationExplorer(runs)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_scene_holds_the_attack_at_every_strength(stage, attack):
    """Each strength alone gives what the batch over all of them gives."""
    index = stage.clips.index[0]
    scene = stage.sweep(index, attack)
    assert len(scene.images) == 1 + len(scene.strengths) == len(scene.snr_db)
    assert 0.05 in scene.strengths
    for strength in scene.strengths:
        change = (scene.images[scene.place(strength)] - scene.images[0]).abs().max()
        assert float(change) == pytest.approx(strength, abs=1e-4)
    from fedser_utils.learning import vgg

    x, y = stage.data.tensors(stage.data.clips.loc[[index]])
    alone = attacks.make_attack(stage.run.settings, attack)(vgg.fold_batch_norm(stage.model), x, y)
    share = (alone != scene.images[scene.place(0.05)]).float().mean()
    assert share < 0.05  # signs of gradients near zero, which later steps follow
    assert scene.snr_db[0] == float("inf")
    assert sorted(scene.snr_db[1:], reverse=True) == scene.snr_db[1:]


def test_an_attack_on_the_sound_keeps_its_ratio(stage):
    from fedser_utils.attacks import snr_db

    index = stage.clips.index[1]
    scene = stage.sweep(index, ON_SOUND)
    for place, ratio in enumerate(scene.strengths, 1):
        assert float(snr_db(scene.sounds[0], scene.sounds[place])) >= ratio - 1e-2
        heard = stage.input_transform(index)(scene.sounds[place])[0]
        assert torch.allclose(heard, scene.images[place], atol=1e-4)


def test_what_was_decided_is_the_runs(stage):
    rows = stage.run.table("predictions")
    last = rows[(rows["round"] == 2) & (rows["condition"] == "original")]
    assert stage.clips["right"].sum() == (last["y_pred"] == last["y_true"]).sum()
    assert len(stage.clips) == len(last)


def test_epsilon_moves_picture_and_bars(explorer):
    before = explorer.picture.value, explorer.decisions.value
    explorer.strength.value = 0.5
    assert explorer.picture.value != before[0]
    shares = explorer._scene().shares[[0, explorer._place]]
    said = perturbation_explorer.bars(*shares.tolist(), explorer._classes, explorer._truth)
    assert explorer.decisions.value == said
    assert not torch.equal(*shares)
    assert "largest change 0.5" in explorer.status.value
    explorer.strength.value = 0.05
    assert (explorer.picture.value, explorer.decisions.value) == before


def test_the_filters_are_called_what_they_are(explorer, monkeypatch):
    assert (explorer.speaker.description, explorer.emotion.description) == ("Speaker", "Emotion")
    monkeypatch.setattr(perturbation_explorer.tables, "terms", lambda classes: ("class", "client"))
    other = PerturbationExplorer([explorer._stage.run])
    assert (other.speaker.description, other.emotion.description) == ("Client", "Class")


def test_filters_narrow_the_clips(explorer):
    everything = len(explorer.clip.options)
    explorer.emotion.value = "fear"
    assert 0 < len(explorer.clip.options) < everything
    assert all(": fear, " in name for name, _ in explorer.clip.options)
    explorer.right.value = "wrong"
    assert all("said" in name for name, _ in explorer.clip.options)
    explorer.right.value = "right"
    if not explorer.clip.options:
        assert explorer.decisions.value == "no clip is like that"
        assert not explorer.picture.value


def test_the_defence_and_new_draws(explorer):
    assert not explorer.strip.value
    explorer.draw.click()
    assert explorer.defence.value
    first = explorer.strip.value
    assert first.count("<span") == 30
    right = first.count("✓")
    assert f"{right} of 30 draws are recognised" in first
    explorer.draw.click()
    drawn = [shares for (*_, place, _), shares in explorer._drawn.items() if place]
    assert len(drawn) == 2
    assert not torch.equal(*drawn)
    explorer.defence.value = False
    assert not explorer.strip.value


def test_every_attack_can_be_chosen(explorer):
    for name in attack_sweep.names():
        explorer.attack.value = name
        assert "ms)" in explorer.status.value, explorer.status.value
        assert explorer.strength.disabled == (name == "deepfool")
    assert explorer.strength.description == "SNR [dB]"
    explorer.run.index = 1
    assert "ms)" in explorer.status.value


def test_what_goes_wrong_is_said(explorer, monkeypatch):
    def broken(*arguments):
        raise OSError("disk <lost>")

    monkeypatch.setattr(SweepSource, "sweep", broken)
    explorer.attack.value = "fgsm"
    assert "OSError: disk &lt;lost&gt;" in explorer.status.value


def test_players_hold_their_sound(explorer):
    import base64

    import soundfile

    explorer.listen.click()
    held = re.findall(r"base64,([^\"]+)", explorer.sounds.value)
    assert len(held) == 3
    for each in held:
        waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(each)))
        assert rate == 16_000
        assert len(waveform) > 0.9 * 16_000  # a second, but for what fills no frame
    explorer.strength.value = 0.5
    assert not explorer.sounds.value  # they were of another strength


def test_the_twin_shows_the_same(runs, monkeypatch, capsys):
    explorer = PerturbationExplorer(runs[:1])
    picture, text = explorer.twin()
    assert picture.data == explorer.picture.value
    for part in (explorer.decisions, explorer.strip, explorer.sounds):
        assert part.value
        assert part.value in text.data
    shown = []
    monkeypatch.setattr(display, "display", lambda *each: shown.extend(each))
    for choice, kinds in (("0", ["Image", "HTML"]), ("1", ["PerturbationExplorer"])):
        monkeypatch.setenv("FEDSER_WIDGETS", choice)
        perturbation_explorer.show(runs[:1])
        assert [type(each).__name__ for each in shown] == kinds
        shown.clear()


@pytest.mark.parametrize("front", [SPEECH, MACHINES, SLOW], ids=["speech", "machines", "slow"])
def test_the_axis_is_features_own(front):
    """A band's centre, found from the filters themselves."""
    filters = log_mel.LogMel(front).filters
    hertz = torch.linspace(0, front.sample_rate / 2, len(filters))
    for band in (30, 45, 60):
        centre = float((filters[:, band] * hertz).sum() / filters[:, band].sum())
        assert canvas.band_of(centre, front) == pytest.approx(band, abs=0.3)


def test_a_canvas_has_its_front_ends_axes(monkeypatch):
    made, drawn = [], canvas.FigureCanvasAgg

    def keep(figure):
        made.append(figure)
        return drawn(figure)

    monkeypatch.setattr(canvas, "FigureCanvasAgg", keep)
    for front, seconds, top in ((SPEECH, 373 * 0.016, 63.5), (MACHINES, 311 * 0.032, 127.5)):
        canvas.Canvas(["one"], front=front)
        axes = made[-1].axes[0]
        assert axes.get_xlim() == pytest.approx((0, seconds))
        assert axes.get_ylim() == (-0.5, top)
        assert [text.get_text() for text in axes.get_yticklabels()][-1] == "4000"


def test_a_canvas_paints_low_bands_at_the_bottom():
    made = canvas.Canvas(["one", "other"])
    low, late = np.full((100, 64), -1.0), np.full((100, 64), -1.0)
    low[:, 0], late[99] = 1.0, 1.0
    picture = np.asarray(Image.open(io.BytesIO(made.paint([low, late], [1, 1], ["gray"] * 2))))
    (rows, columns), (rows2, columns2) = made._boxes
    first, second = picture[rows, columns, 0], picture[rows2, columns2, 0]
    assert first[-1].min() == 255
    assert first[0].max() == 0
    assert second[:, -1].min() == 255
    assert second[:, 0].max() == 0
