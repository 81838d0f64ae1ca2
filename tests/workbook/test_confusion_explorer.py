import base64
import io
import re
import subprocess
import sys
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import soundfile
from traitlets import TraitError

from fedser_utils import workbook
from fedser_utils.analysis import confusion_data, metrics, tables
from fedser_utils.analysis.confusion_data import Decisions, Setting
from fedser_utils.core import runs
from fedser_utils.core.errors import InputError
from fedser_utils.core.front_end import MACHINES, SPEECH, FrontEnd
from fedser_utils.workbook import canvas, clip_media, confusion_explorer, confusion_plot, display
from fedser_utils.workbook.controls import SettingControls

WIDE = FrontEnd(sample_rate=96_000, window=4096, hop=2048, bands=80, highest=20_000.0)
CLASSES = ["guilt", "fear", "anger"]
WITHOUT_TORCH = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
import pandas as pd
from fedser_utils import workbook
from fedser_utils.core.runs import Run
from fedser_utils.workbook.clip_media import NO_RECORDINGS, Recordings
from fedser_utils.workbook.confusion_explorer import ConfusionExplorer, twin

folder = Path(sys.argv[1])
rows = pd.read_parquet(folder / "predictions.parquet")
results = SimpleNamespace(runs=[Run(folder / "demo-s0", {"settings": {}})], predictions=rows)
for choice in "01":
    os.environ["FEDSER_WIDGETS"] = choice
    workbook.explore_confusions(results, corpus="synthetic")
listed = 0
for recordings in (NO_RECORDINGS, Recordings({"": folder})):
    twin(rows, recordings)
    explorer = ConfusionExplorer(rows, recordings)
    for explorer.compare.value in (False, True):
        for button in explorer.cells.values():
            button.click()
            listed += "The recording is not on this machine." in explorer.clips.value
print(listed, "torch" in sys.modules)
"""
COLUMNS = [*runs.PREDICTIONS, "seed"]


def decisions(setting, said, *, seed=0):
    """Rows of a setting. said: decision of every clip, the truths being guilt, guilt, guilt, fear,
    fear, anger, the speakers A and B in turn."""
    truths = ["guilt"] * 3 + ["fear"] * 2 + ["anger"]
    where = (f"{setting.model}-s{seed}", setting.model, setting.round, *setting[1:3], 0)
    return [
        (*where, f"DEMOS/c{i}.wav", "AB"[i % 2], truth, decision, seed)
        for i, (truth, decision) in enumerate(zip(truths, said, strict=True))
    ]


NATURE = Setting("nature", "pgd", "adversarial", 4)
TRAINED = Setting("pgd", "pgd", "adversarial", 4)
RIGHT = ["guilt", "guilt", "guilt", "fear", "fear", "anger"]
SAID = ["guilt", "fear", "fear", "anger", "fear", "guilt"]  # nature's in the end


def recordings(sound=lambda clip: b"x", picture=lambda clip: b"x"):
    return SimpleNamespace(sound=sound, picture=picture)


@pytest.fixture
def predictions():
    """Nature under no attack, FGSM and PGD, and a model trained with PGD; rounds 2 and 4."""
    rows = []
    for number in (2, 4):
        for model, attacks in (("nature", ("fgsm", "pgd")), ("pgd", ("pgd",))):
            for attack in ("none", *attacks):
                for condition in ("original",) if attack == "none" else ("adversarial",):
                    setting = Setting(model, attack, condition, number)
                    rows += decisions(setting, SAID if setting == NATURE else RIGHT)
    return pd.DataFrame(rows, columns=COLUMNS)


def texts(explorer):
    """The matrix's numbers as shown."""
    each = [button.description for button in explorer.cells.values()]
    return [each[i : i + 3] for i in range(0, 9, 3)]


def painted(axes):
    """The colours of a matrix in a picture."""
    return [mpl.colors.to_hex(colour) for colour in axes.collections[0].get_facecolors()]


def buttons(explorer):
    """The colours of the matrix of buttons."""
    return [button.style.button_color for button in explorer.cells.values()]


def flat(explorer):
    return [text for row in texts(explorer) for text in row]


def test_the_matrix_and_its_percentages_are_those_counted_by_hand(predictions):
    found = Decisions(predictions)
    assert found.classes == CLASSES
    counts = found.counts(NATURE)
    # of 3 guilt 1 right and 2 for fear; of 2 fear 1 right, 1 for anger; the one anger for guilt
    assert counts.to_numpy().tolist() == [[1, 2, 0], [0, 1, 1], [1, 0, 0]]
    rows = found.rows(NATURE)
    assert counts.equals(metrics.confusion(rows["y_true"], rows["y_pred"], CLASSES))
    percent = confusion_data.shares(counts).to_numpy()
    assert percent[0] == pytest.approx([100 / 3, 200 / 3, 0])
    assert percent[2].tolist() == [100, 0, 0]
    assert confusion_data.most_confused(counts) == ("guilt", "fear")
    assert confusion_data.most_confused(found.counts(TRAINED)) is None
    shown = confusion_plot.cells(counts, unit="percent")
    assert [cell.text for cell in shown[0]] == ["33 %", "67 %", "0 %"]
    assert shown[0][1].words == "guilt taken for fear: 2 of 3"
    assert shown[1][1].words == "fear recognised: 1 of 2"


def test_a_difference_has_signs_and_colours_of_both_sides(predictions):
    found = Decisions(predictions)
    both = found.counts(NATURE), found.counts(TRAINED)
    points, clips = (confusion_plot.cells(*both, unit=unit) for unit in confusion_plot.UNITS)
    assert [cell.text for cell in points[0]] == ["−67", "+67", "0"]
    assert [cell.text for cell in clips[0]] == ["−2", "+2", "0"]
    assert points[0][1].words == "guilt taken for fear: 2 of 3 in (a), 0 of 3 in (b)"
    for row in (*points, *clips):
        for cell in row:
            red, blue = int(cell.background[1:3], 16), int(cell.background[5:], 16)
            sign = {"+": 1, "−": -1}.get(cell.text[0], 0)
            assert np.sign(blue - red) * (abs(blue - red) > 2) == sign  # purple, orange, grey


def test_every_number_can_be_read():
    values = np.linspace(-100, 100, 41)[None]
    for signed in (False, True):
        for back, front in confusion_plot.button_colours(values, signed=signed)[0]:
            rgb = np.array([int(back[i : i + 2], 16) for i in (1, 3, 5)]) / 255
            linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
            light = linear @ (0.2126, 0.7152, 0.0722) + 0.05
            assert (1.05 / light if front == "#ffffff" else light / 0.05) >= 4.5


def test_a_class_without_clips_has_no_percentage():
    counts = pd.DataFrame([[2, 0], [0, 0]], index=["a", "b"], columns=["a", "b"])
    assert [c.text for c in confusion_plot.cells(counts, unit="percent")[1]] == ["–", "–"]
    assert [c.text for c in confusion_plot.cells(counts, unit="counts")[1]] == ["0", "0"]


def test_uar_and_interval_are_table_3s_also_over_seeds(predictions):
    second = predictions.assign(seed=1, run=predictions["run"] + "-1")
    second["y_pred"] = second["y_true"]
    both = pd.concat([predictions, second], ignore_index=True)
    for rows in (predictions, both):
        table = tables.table3(rows).set_index(["model", "attack", "condition"])
        for setting in (NATURE, TRAINED):
            score, row = Decisions(rows).score(setting), table.loc[setting[:3]]
            assert score.uar == pytest.approx(row["uar"])
            assert (score.low, score.high) == (row["ci_low"], row["ci_high"])
            assert (score.n, len(score.seeds)) == (6, row["seeds"])
    found = Decisions(both)
    assert "mean of seeds 0, 1" in confusion_plot.uar_text(found.score(NATURE))
    own = confusion_data.in_cell(found.rows(NATURE), "guilt", "guilt")
    assert own["note"].tolist() == ["seed 0, 1", "seed 1", "seed 1"]
    value, low, high = found.gain(NATURE, TRAINED)
    assert value == pytest.approx(found.score(TRAINED).uar - found.score(NATURE).uar)
    assert low <= value <= high


def test_where_there_is_no_interval_it_says_so(predictions):
    one = predictions.assign(speaker="A")
    assert "no interval, as there is one speaker" in confusion_plot.uar_text(
        Decisions(one).score(NATURE)
    )
    other = predictions["model"] == "pgd"
    apart = predictions.assign(seed=predictions["seed"].where(~other, 7))
    with pytest.raises(ValueError, match=r"no seed in common: \[0\] and \[7\]"):
        Decisions(apart).gain(NATURE, TRAINED)
    assert "no seed in common" in confusion_explorer.summary_html(
        Decisions(apart), [NATURE, TRAINED]
    )
    with pytest.raises(ValueError, match="no decisions"):
        Decisions(predictions.iloc[:0])


def test_words_follow_the_labels(predictions):
    machines = {"guilt": "healthy", "fear": "imbalance", "anger": "looseness"}
    for rows, label, client in (
        (predictions, "emotion", "speaker"),
        (predictions.replace(machines), "class", "client"),
    ):
        found = Decisions(rows)
        alone, both = (
            confusion_explorer.summary_html(found, own) for own in ([NATURE], [NATURE, TRAINED])
        )
        assert f"clips of a true {label} were given" in alone
        assert f"over 2 {client}s)" in alone
        assert f"the same {client}s drawn" in both
        (axes,) = confusion_plot.figure([("one", [found.counts(NATURE)])]).axes
        assert axes.get_ylabel() == f"True {label}"
        assert axes.figure.get_supxlabel().startswith(f"percent of a true {label}'s clips")


def test_only_what_exists_can_be_chosen(predictions):
    explorer = confusion_explorer.ConfusionExplorer(predictions)
    first = explorer.first
    assert first.setting == NATURE
    assert explorer.second.setting == TRAINED
    labels = [label for label, _ in first.attack.options]
    assert labels == ["None", "FGSM", "PGD"]
    assert [value for _, value in first.condition.options] == ["adversarial"]
    assert [value for _, value in first.round.options] == [2, 4]
    first.attack.value = "fgsm"
    first.model.value = "pgd"  # it has no FGSM, but clips of this condition
    assert first.setting == TRAINED
    assert [value for _, value in first.attack.options] == ["none", "pgd"]
    first.attack.value = "none"
    assert first.setting == Setting("pgd", "none", "original", 4)
    first.round.value = 2
    first.model.value = "nature"
    assert first.setting == Setting("nature", "none", "original", 2)
    with pytest.raises(TraitError, match="value not found"):
        first.attack.value = "deepfool"


def test_all_settings_can_be_reached(predictions):
    settings = Decisions(predictions).settings
    calls = []
    choice = SettingControls(settings, settings[0], changed=lambda: calls.append(1), name="(a)")
    for setting in settings:
        for control, value in zip(choice.controls, setting, strict=True):
            control.value = value
        assert choice.setting == setting
        assert len(calls) <= 4  # once for each that changed
        calls.clear()


def test_changes_are_made_in_place(predictions):
    explorer = confusion_explorer.ConfusionExplorer(predictions)
    before = [explorer.children, list(explorer.cells.values())]
    assert texts(explorer)[0] == ["33 %", "67 %", "0 %"]
    explorer.unit.value = "counts"
    assert texts(explorer) == [["1", "2", "0"], ["0", "1", "1"], ["1", "0", "0"]]
    assert "round 4" in explorer.line.value
    assert "n = 6 clips" in explorer.line.value
    assert explorer.second.box.layout.display == "none"
    explorer.compare.value = True
    assert explorer.second.box.layout.display is None
    assert texts(explorer)[0] == ["−2", "+2", "0"]
    assert "(a) − (b)" in explorer.line.value
    explorer.second.round.value = 2
    assert "round 2" in explorer.line.value
    explorer.compare.value = False
    explorer.first.round.value = 2
    assert texts(explorer) == [["3", "0", "0"], ["0", "2", "0"], ["0", "0", "1"]]
    assert [explorer.children, list(explorer.cells.values())] == before


def test_a_click_lists_the_cells_clips(predictions):
    wav, opened = b"RIFF-not-really", []
    explorer = confusion_explorer.ConfusionExplorer(
        predictions, recordings(sound=lambda clip: opened.append(clip) or wav)
    )
    assert "Press a cell" in explorer.clips.value
    explorer.cells["guilt", "fear"].click()
    assert opened == ["DEMOS/c1.wav", "DEMOS/c2.wav"]
    shown = explorer.clips.value
    assert re.findall(r"<b>(.*?)</b>", shown) == ["guilt taken for fear", *opened]
    assert shown.count("data:audio/wav;base64," + base64.b64encode(wav).decode()) == 2
    assert shown.count("data:image/png;base64,") == 2
    assert "speaker B" in shown
    assert "2 clips." in shown
    assert clip_media.NOTE in shown
    assert explorer.selected is explorer.cells["guilt", "fear"]
    explorer.cells["anger", "fear"].click()
    assert "anger taken for fear" in explorer.clips.value
    assert "no clip." in explorer.clips.value
    marked = [key for key, own in explorer.cells.items() if "fedser-chosen" in own._dom_classes]
    assert marked == [("anger", "fear")]
    explorer.first.round.value = 2  # the list would be of another round
    assert "Press a cell" in explorer.clips.value
    assert explorer.selected is None


def test_a_click_on_a_difference_says_where_each_clip_is(predictions):
    explorer = confusion_explorer.ConfusionExplorer(predictions)
    explorer.compare.value = True
    explorer.cells["guilt", "guilt"].click()
    shown = re.findall(r"c(\d).wav</b><br>speaker ., (.*?)<", explorer.clips.value)
    assert shown == [("0", "in (a) and (b)"), ("1", "only in (b)"), ("2", "only in (b)")]
    assert "The recording is not on this machine." in explorer.clips.value


def test_many_clips_are_cut_and_names_are_text(predictions):
    nasty = predictions["clip"] + '<script>"&'
    nasty = predictions.assign(clip=nasty, speaker=predictions["speaker"] + "<i>")
    many = pd.concat(
        [nasty.assign(clip=f"{i}" + nasty["clip"]) for i in range(4)], ignore_index=True
    ).replace({"y_pred": {"fear": "fe<ar"}, "y_true": {"fear": "fe<ar"}, "model": {"pgd": "p<gd"}})
    explorer = confusion_explorer.ConfusionExplorer(many, recordings())
    explorer.cells["guilt", "guilt"].click()
    explorer.first.round.value = 2
    explorer.cells["guilt", "guilt"].click()
    assert explorer.clips.value.count("<audio") == confusion_explorer.MOST == 8
    assert "… and 4 more." in explorer.clips.value
    explorer.cells["fe<ar", "fe<ar"].click()
    every = explorer.clips.value + explorer.line.value
    every += "".join(getattr(child, "value", "") for child in explorer.children[-2].children)
    every += "".join(html.data for html in confusion_explorer.twin(many)[1:])
    assert "&lt;script&gt;&quot;&amp;" in every
    assert "fe&lt;ar" in every
    for banned in ("<script", "<i>", "fe<ar"):
        assert banned not in every


def test_clips_that_were_only_counted_stay_at_their_owners(predictions):
    far = predictions.assign(clip="client-" + predictions["speaker"] + "#" + predictions["clip"])
    opened = []
    explorer = confusion_explorer.ConfusionExplorer(far, recordings(opened.append, opened.append))
    for _ in range(2):
        explorer.cells["guilt", "fear"].click()
        assert "The recordings stay with the clients" in explorer.clips.value
        assert "<li>A: 1</li><li>B: 1</li>" in explorer.clips.value
        assert "#" not in explorer.clips.value
        explorer.compare.value = True  # no clip of (a) is known to be one of (b)
    assert opened == []


def test_the_twin_shows_the_widgets_numbers(predictions):
    explorer = confusion_explorer.ConfusionExplorer(predictions, recordings())
    picture, line, clips = confusion_explorer.twin(predictions, recordings())
    panels = [[text.get_text() for text in axes.texts] for axes in picture.axes]
    assert [text.split("\n")[0] for text in panels[0]] == [
        text.removesuffix(" %") for text in flat(explorer)
    ]
    assert painted(picture.axes[0]) == buttons(explorer)
    explorer.unit.value = "counts"
    assert painted(picture.axes[0]) == buttons(explorer)
    assert [text.split("(")[1][:-1] for text in panels[0]] == flat(explorer)
    explorer.unit.value, explorer.compare.value = "percent", True
    assert panels[2] == flat(explorer)
    assert painted(picture.axes[2]) == buttons(explorer)
    assert line.data == explorer.line.value
    assert clips.data.count("<audio") == 2
    explorer.compare.value = False
    explorer.cells["guilt", "fear"].click()
    assert clips.data == explorer.clips.value


def test_one_call_shows_the_explorer_or_its_twin(tmp_path, predictions, monkeypatch):
    run, shown = runs.Run(tmp_path / "demo-nature-s0", {"settings": {"speakers": 8}}), []
    monkeypatch.setattr(display, "display", lambda *parts: shown.extend(parts))
    results = SimpleNamespace(runs=[run], predictions=predictions)
    for choice, kinds in (("0", ["Figure", "HTML", "HTML"]), ("1", ["ConfusionExplorer"])):
        monkeypatch.setenv("FEDSER_WIDGETS", choice)
        workbook.explore_confusions(results, corpus="synthetic")
        assert [type(part).__name__ for part in shown] == kinds
        shown.clear()


def test_the_twin_of_one_model(predictions):
    one = predictions[(predictions["model"] == "pgd") & (predictions["attack"] == "none")]
    picture, line = confusion_explorer.twin(one)  # no confusion, so no clips
    assert len(picture.axes) == 1
    assert "AdvTrain PGD, no attack, original clips, round 4" in line.data
    explorer = confusion_explorer.ConfusionExplorer(one)
    assert texts(explorer)[0] == ["100 %", "0 %", "0 %"]


def test_recordings_are_found_heard_and_seen(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "DEMOS").mkdir(parents=True)
    wave = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(22_050) / 22_050)
    soundfile.write(folder / "DEMOS" / "tone.wav", np.stack([wave, wave], 1), 22_050)
    made = {"runtime": "cohort", "speakers": 8, "clips": 280}  # as before there were front ends
    run = runs.Run(tmp_path / "demo-nature-s0", {"settings": made})
    found = clip_media.recordings_of(run, corpus=str(folder))
    samples, rate = soundfile.read(io.BytesIO(found.sound("DEMOS/tone.wav")))
    assert (rate, samples.shape) == (16_000, (16_000,))
    assert found.picture("DEMOS/tone.wav").startswith(b"\x89PNG")
    assert found.sound("DEMOS/other.wav") is None
    assert found.picture("DEMOS/other.wav") is None
    (folder / "manifest.csv").touch()
    assert clip_media.recordings_of(run, corpus=str(folder / "manifest.csv")).roots == {"": folder}
    deployed = runs.Run(run.folder, {"settings": made | {"runtime": "deployment"}})
    assert clip_media.recordings_of(deployed, corpus=str(folder)).sound("DEMOS/tone.wav") is None


@pytest.mark.parametrize("corpus", ["synthetic", "machines"])
def test_recordings_of_an_embedded_corpus(tmp_path, corpus):
    run = runs.Run(tmp_path / "demo-nature-s0", {"settings": {"speakers": 8, "clips": 280}})
    assert clip_media.recordings_of(run, corpus=corpus).path("a.wav") is None
    assert clip_media.recordings_of(run, corpus=corpus).sound("a.wav") is None
    folder = tmp_path / "corpora" / f"{corpus}-8x280-s0-abcd"
    folder.mkdir(parents=True)
    (tmp_path / "corpora" / f"{corpus}-8x28-s0-abcd").mkdir()
    found = clip_media.recordings_of(run, corpus=corpus)
    assert found.path("DEMOS/a.wav") == folder / "DEMOS" / "a.wav"
    assert found.front == {"synthetic": SPEECH, "machines": MACHINES}[corpus]


def test_recordings_of_several_corpora(tmp_path):
    tone = 0.3 * np.sin(2 * np.pi * 100 * np.arange(8_000) / 4_000)
    for place, (name, loud) in enumerate((("one", 1), ("two", 0.5), ("two", 0.25))):
        folder = tmp_path / str(place) / name / "deep"
        folder.mkdir(parents=True)
        soundfile.write(folder / "tone.wav", loud * tone, 4_000)
    corpus = f"{tmp_path}/0/one, {tmp_path}/1/two,synthetic,{tmp_path}/2/two"
    slow = {"sample_rate": 4000, "highest": 2000.0, "hop": 128, "seconds": 2.0}
    run = runs.Run(tmp_path / "demo-nature-s0", {"settings": {"log_mel": "speech"} | slow})
    found = clip_media.recordings_of(run, corpus=corpus)
    assert list(found.roots) == ["one", "two", "two-2"]  # the embedded one is not written
    for name, peak in (("one", 0.3), ("two", 0.15), ("two-2", 0.075)):
        samples, rate = soundfile.read(io.BytesIO(found.sound(f"{name}/deep/tone.wav")))
        assert rate == 16_000  # 4 kHz is none that browsers play
        assert len(samples) == 32_000
        assert np.abs(samples[4_000:-4_000]).max() == pytest.approx(peak, rel=0.01)
        assert found.picture(f"{name}/deep/tone.wav").startswith(b"\x89PNG")
    for missing in ("two-3/deep/tone.wav", "synthetic/deep/tone.wav", "one/tone.wav", "one"):
        assert found.sound(missing) is found.picture(missing) is None
    with pytest.raises(InputError, match="'/nowhere' does not exist"):
        clip_media.recordings_of(run, corpus="/nowhere")


def test_a_recording_is_read_and_drawn_once(tmp_path, monkeypatch):
    clips = pd.DataFrame({"clip": ["tone.wav"], "speaker": "A", "note": ""})
    read, calls = clip_media.audio.read, []
    monkeypatch.setattr(
        clip_media.audio, "read", lambda *given, **more: calls.append(1) or read(*given, **more)
    )
    found = clip_media.Recordings({"": tmp_path})
    assert found.sound("tone.wav") is None
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(np.arange(8_000) / 5), 16_000)
    calls.clear()
    first = clip_media.clips_html(clips, found, most=8)  # what was missing may come later
    assert first.count("base64,") == 2
    assert clip_media.clips_html(clips, found, most=8) == first
    assert len(calls) == 1
    other = clip_media.Recordings(found.roots, MACHINES)
    assert other.picture("tone.wav") != found.picture("tone.wav")
    assert len(calls) == 2
    assert clip_media._transform(SPEECH) is clip_media._transform(FrontEnd())


@pytest.mark.parametrize("front", [SPEECH, MACHINES], ids=["speech", "machines"])
def test_the_picture_of_a_short_recording_is_not_repeated(front):
    """A tone that rises in loudness ends at its loudest, and the picture there; longer ones are cut
    as the model's images, which tests/data/test_log_mel.py checks."""
    rising = np.linspace(0.1, 0.3, 40_000) * np.sin(2 * np.pi * 0.1 * np.arange(40_000))
    rising = rising.astype(np.float32)
    drawn = clip_media.log_mel(rising, front)
    assert drawn.shape == (1 + (40_000 - front.window) // front.hop, front.bands)
    assert (np.diff(drawn.max(1)) > 0).all()
    assert clip_media.log_mel(np.tile(rising, 5), front).shape == front.shape
    assert clip_media.log_mel(rising[:100], front).shape == (1, front.bands)
    assert clip_media.log_mel_png(drawn, front).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("front", "labels", "top"),
    [
        (SPEECH, [100, 500, 1000, 2000, 4000, 8000], 63.5),
        (MACHINES, [100, 500, 1000, 2000, 4000, 8000], 127.5),
        (WIDE, [100, 500, 1000, 2000, 4000, 8000, 16000], 75.5),
        (FrontEnd(sample_rate=4000, bands=40, lowest=200.0, highest=1500.0), [500, 1000], 26.8),
    ],
)
def test_the_pictures_axis_follows_the_front_end(front, labels, top, monkeypatch):
    """By hand: mel(20 kHz) = 58.57, mel(16 kHz) = 55.33, mel(1.5 kHz) = 20.90."""
    drawn = []
    agg = canvas.FigureCanvasAgg
    monkeypatch.setattr(
        canvas, "FigureCanvasAgg", lambda figure: drawn.append(figure) or agg(figure)
    )
    canvas.Canvas([""], front=front)
    (axes,) = drawn[0].axes
    assert [int(text.get_text()) for text in axes.get_yticklabels()] == labels
    assert axes.get_yticks()[-1] == pytest.approx(top, abs=0.5)
    assert axes.get_xlim() == pytest.approx((0, front.frames * front.hop / front.sample_rate))
    assert axes.get_ylim() == (-0.5, front.bands - 0.5)


def test_it_works_without_torch(tmp_path, predictions):
    """Where no recording is on this machine: the explorer, its twin and every cell of both views,
    as a notebook opens them."""
    predictions.to_parquet(tmp_path / "predictions.parquet")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = 2 * (5 + 6)  # cells with clips: of (a) 5, of (a) or (b) 6
    assert done.stdout.split()[-2:] == [str(listed), "False"]
