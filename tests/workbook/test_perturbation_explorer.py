"""The PerturbationExplorer without a browser: what its controls do, and its twin."""

import dataclasses
import io
import re

import librosa
import numpy as np
import pytest
import torch
from PIL import Image

from fedser_utils import attacks, workbook
from fedser_utils.core.front_end import MACHINES, SPEECH, FrontEnd, band_of, hz_to_mel
from fedser_utils.data import log_mel
from fedser_utils.federated import server_app
from fedser_utils.workbook import attack_sweep, canvas, display, perturbation_explorer
from fedser_utils.workbook.attack_sweep import ON_SOUND, SweepSource
from fedser_utils.workbook.perturbation_explorer import (
    PerturbationExplorer,
    decisions_html,
    probabilities_html,
)

SLOW = FrontEnd(sample_rate=4000, window=512, hop=128, bands=64, highest=2000.0, seconds=2.0)


@pytest.fixture(scope="module")
def runs(tiny):
    return [server_app.train(dataclasses.replace(tiny, attack=name)) for name in ("none", "fgsm")]


@pytest.fixture(scope="module")
def source(runs):
    return SweepSource(runs[0])


@pytest.fixture
def explorer(runs):
    return PerturbationExplorer(runs)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_sweep_holds_the_attack_at_every_strength(source, attack):
    """Each strength alone gives what the batch over all of them gives."""
    index = source.clips.index[0]
    sweep = source.sweep(index, attack)
    assert len(sweep.x) == 1 + len(sweep.strengths) == len(sweep.snr_db)
    assert 0.05 in sweep.strengths
    for strength in sweep.strengths:
        change = (sweep.x[sweep.place(strength)] - sweep.x[0]).abs().max()
        assert float(change) == pytest.approx(strength, abs=1e-4)
    x, y = source.data.tensors(source.data.clips.loc[[index]])
    alone = attacks.make_attack(source.run.settings, attack)(source.target_model, x, y)
    share = (alone != sweep.x[sweep.place(0.05)]).float().mean()
    assert share < 0.05  # signs of gradients near zero, which later steps follow
    assert sweep.snr_db[0] == float("inf")
    assert sorted(sweep.snr_db[1:], reverse=True) == sweep.snr_db[1:]


def test_an_attack_on_the_sound_keeps_its_ratio(source):
    from fedser_utils.attacks import snr_db

    index = source.clips.index[1]
    sweep = source.sweep(index, ON_SOUND)
    for place, ratio in enumerate(sweep.strengths, 1):
        assert float(snr_db(sweep.waveforms[0], sweep.waveforms[place])) >= ratio - 1e-2
        heard = source.input_transform(index)(sweep.waveforms[place])[0]
        assert torch.allclose(heard, sweep.x[place], atol=1e-4)


def test_what_was_decided_is_the_runs(source):
    rows = source.run.table("predictions")
    last = rows[(rows["round"] == 2) & (rows["condition"] == "original")]
    assert source.clips["right"].sum() == (last["y_pred"] == last["y_true"]).sum()
    assert len(source.clips) == len(last)


def test_epsilon_moves_picture_and_bars(explorer):
    before = explorer.picture.value, explorer.decisions.value
    explorer.strength.value = 0.5
    assert explorer.picture.value != before[0]
    probabilities = explorer._sweep.probabilities[[0, explorer._place]]
    truth = explorer._source.clips["emotion"][explorer.clip.value]
    expected = probabilities_html(*probabilities.tolist(), explorer._classes, truth)
    assert explorer.decisions.value == expected
    assert not torch.equal(*probabilities)
    assert "largest change 0.5" in explorer.status.value
    explorer.strength.value = 0.05
    assert (explorer.picture.value, explorer.decisions.value) == before


def test_the_filters_are_called_what_they_are(explorer, monkeypatch):
    assert (explorer.speaker.description, explorer.emotion.description) == ("Speaker", "Emotion")
    monkeypatch.setattr(perturbation_explorer.labels, "terms", lambda classes: ("class", "client"))
    other = PerturbationExplorer([explorer._source.run])
    assert (other.speaker.description, other.emotion.description) == ("Client", "Class")


def test_filters_narrow_the_clips(explorer):
    everything = len(explorer.clip.options)
    explorer.emotion.value = "fear"
    assert 0 < len(explorer.clip.options) < everything
    assert all(": fear, " in name for name, _ in explorer.clip.options)
    explorer.right.value = "wrong"
    assert all("predicted" in name for name, _ in explorer.clip.options)
    explorer.right.value = "right"
    if not explorer.clip.options:
        assert explorer.decisions.value == "no clip matches the filters"
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
    x, source = explorer._sweep.x[explorer._place][None], explorer._source
    draws = [source.randomised(x, seed) for seed in (1, 2)]
    assert not torch.equal(*draws)
    truth = source.clips["emotion"][explorer.clip.value]
    for strip, shares in zip((first, explorer.strip.value), draws, strict=True):
        assert strip == decisions_html(shares.argmax(1).tolist(), source.data.classes, truth)
    explorer.defence.value = False
    assert not explorer.strip.value


def test_a_slider_that_returns_computes_no_draws_again(explorer, monkeypatch):
    randomised, drawn = SweepSource.randomised, []

    def counted(source, x, seed, draws):
        drawn.append((seed, draws))
        return randomised(source, x, seed, draws)

    monkeypatch.setattr(SweepSource, "randomised", counted)
    explorer.defence.value = True
    first = explorer.strip.value, explorer.decisions.value
    explorer.strength.value = 0.5
    explorer.strength.value = 0.05
    assert (explorer.strip.value, explorer.decisions.value) == first
    assert drawn == [(0, 1), (0, 30), (0, 30)]  # the clean one, then each of two strengths
    explorer.draw.click()
    assert drawn[3:] == [(1, 1), (1, 30)]


def test_every_attack_can_be_chosen(explorer):
    for name in attack_sweep.ATTACKS:
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
        workbook.explore_perturbations(runs[:1])
        assert [type(each).__name__ for each in shown] == kinds
        shown.clear()


def test_mels_are_librosas():
    hertz = np.array([0.0, 20.0, 999.9, 1000.0, 1500.0, 8000.0, 20_000.0])
    np.testing.assert_allclose(hz_to_mel(hertz), librosa.hz_to_mel(hertz))


@pytest.mark.parametrize("front", [SPEECH, MACHINES, SLOW], ids=["speech", "machines", "slow"])
def test_bands_are_where_torchaudios_filters_are(front):
    """The centre of gravity of a filter is in its band."""
    filters = log_mel.LogMel(front).filters
    hertz = torch.linspace(0, front.sample_rate / 2, len(filters))
    for band in (30, 45, 60):
        centre = float((filters[:, band] * hertz).sum() / filters[:, band].sum())
        assert band_of(centre, front) == pytest.approx(band, abs=0.3)


def test_a_canvas_paints_low_bands_at_the_bottom():
    made = canvas.Canvas(["one", "other"])
    low, late = np.full((2, *SPEECH.shape), -1.0)
    low[:, 0], late[-1] = 1.0, 1.0
    picture = np.asarray(Image.open(io.BytesIO(made.paint([low, late], [1, 1], ["gray"] * 2))))
    (rows, columns), (rows2, columns2) = made._boxes
    first, second = picture[rows, columns, 0], picture[rows2, columns2, 0]
    assert first[-1].min() == 255
    assert first[0].max() == 0
    assert second[:, -1].min() == 255
    assert second[:, 0].max() == 0


def test_a_canvas_leaves_white_what_a_short_clip_lacks():
    half = np.full((SPEECH.frames // 2, SPEECH.bands), -1.0)
    made = canvas.Canvas(["one"])
    picture = np.asarray(Image.open(io.BytesIO(made.paint([half], [1], ["gray"]))))
    painted = picture[made._boxes[0]][1:-1, :, 0]
    width = painted.shape[1] // 2
    assert painted[:, : width - 1].max() == 0
    assert painted[:, width + 1 : -1].min() == 255
