"""The page over all runs: states, what the tables need, damage, twin and widgets."""

import asyncio
import dataclasses
import os
import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from fedser_utils.analysis import figures
from fedser_utils.core import runs
from fedser_utils.core.settings import load_settings
from fedser_utils.workbook.study import dashboard, missing, pages, pictures, run_status
from fedser_utils.workbook.study.dashboard import StudyDashboard

NOW = 1_800_000_000.0


@pytest.fixture
def settings(tmp_path):
    return load_settings("smoke", outputs=str(tmp_path / "outputs"))


def start(settings, *, last=None, **change):
    """A run's folder; last: the round up to which it has results."""
    own = dataclasses.replace(settings, **change)
    run = runs.open_run(own, "f00", device="cpu")
    if last:
        attack = own.attack
        rows = [("none", "original", 90.0), ("fgsm", "adversarial", 30.0)]
        rows += [("pgd", "adversarial", 20.0)] if attack in ("none", "pgd") else []
        table = pd.DataFrame(rows, columns=["attack", "condition", "uar"])
        run.write("rounds.csv", pd.concat([table.assign(round=n) for n in range(1, last + 1)]))
    return run


def finish(settings, **change):
    run = start(settings, last=2, **change)
    runs.save_model(run, {"w": np.zeros(1, np.float32)})
    return run


def drawn(folder, name, origin="runs r"):
    figures.save(Figure(figsize=(1, 1)), folder, name, origin=origin)


def row(settings, run):
    (found,) = [each for each in run_status.find_run_statuses(settings.outputs) if each.run == run]
    return found


def items(settings):
    """What the tables need: state and command by item, of the one study."""
    table = missing.missing_results(
        run_status.find_run_statuses(settings.outputs), settings.outputs
    )
    return table.set_index("item")[["state", "command"]]


def text_of(html):
    """The words of HTML, as a reader sees them."""
    return " ".join(
        re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.S)).split()
    )


def test_it_never_imports_torch():
    code = (
        "import sys; import fedser_utils.workbook.study.dashboard; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_state_once(settings):
    done, stopped = finish(settings), start(settings, last=1, attack="pgd")
    (stopped.folder / "checkpoint" / "round-000001").mkdir(parents=True)
    (stopped.folder / "checkpoint" / ".partial-7").mkdir()
    fresh = start(settings, attack="fgsm")
    seen = row(settings, done.id)
    assert (seen.state, seen.study, seen.model, seen.seed) == ("done", "smoke", "nature", 0)
    assert (seen.round, seen.rounds, seen.uar) == (2, 2, 90)
    assert (seen.attacked, seen.attack) == (20, "pgd")  # the one that leaves least
    assert seen.written == pytest.approx(time.time(), abs=60)
    seen = row(settings, stopped.id)
    assert (seen.state, seen.round, seen.attack) == ("stopped", 1, "pgd")
    assert seen.note.startswith("goes on after round 1; written just now: stopped just now, or at")
    seen = row(settings, fresh.id)
    assert (seen.state, seen.round, seen.uar) == ("stopped", None, None)
    assert seen.note.startswith("stopped before its first checkpoint")
    for path in fresh.folder.rglob("*"):
        os.utime(path, (NOW - 1e8, NOW - 1e8))
    assert row(settings, fresh.id).note == "stopped before its first checkpoint"


def test_a_held_lock_is_running_and_nothing_is_touched(settings):
    run = start(settings, last=1)
    code = "import sys; from pathlib import Path; from fedser_utils.core import runs\n"
    code += f"with runs.locked(Path({str(run.folder)!r})): print('held', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    seen = row(settings, run.id)
    assert (seen.state, seen.writer) == ("running", f"process {process.pid}")
    assert items(settings).loc["nature"].tolist() == ["running", ""]
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
    process.communicate("\n")
    assert row(settings, run.id).state == "stopped"
    with runs.locked(run.folder):
        pass  # free again: looking holds no lock


def test_looking_at_a_run_without_a_lock_makes_none(settings):
    run = start(settings)
    before = sorted(run.folder.rglob("*"))
    run_status.find_run_statuses(settings.outputs)
    assert sorted(run.folder.rglob("*")) == before


def damage(folder, name, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("config.json", '{"run": "x-s0-0123', "config.json cannot be read: "),
        ("config.json", "[1]", "its config.json is not a run's"),
        ("config.json", '{"settings": 3}', "its config.json is not a run's"),
        ("config.json", '{"model_type": "bert"}', "its config.json has no 'settings': not a run's"),
        ("rounds.csv", "round\n1\n", "config.json is missing"),
        ("config.json", "\x00\xff" * 9, "config.json cannot be read: "),
    ],
)
def test_a_foreign_folder_is_a_row_with_its_reason(settings, name, text, reason):
    damage(settings.folder.parent / "alien", name, text)
    done = finish(settings)
    assert [each.run for each in run_status.find_run_statuses(settings.outputs)] == [
        done.id,
        "alien",
    ]
    seen = row(settings, "alien")
    assert seen.state == "damaged"
    assert seen.note.startswith(reason)
    assert "\n" not in seen.note
    assert row(settings, done.id).state == "done"
    assert seen.note.replace("'", "&#x27;") in pages.page(settings.outputs).runs


def test_a_damaged_run_is_a_row_with_its_reason(settings):
    half, empty = finish(settings, attack="pgd"), start(settings, attack="fgsm")
    with open(half.folder / "model.safetensors", "r+b") as file:
        file.truncate(20)
    (empty.folder / "rounds.csv").write_text("round,cond")
    (empty.folder / "checkpoint").mkdir()
    (empty.folder / "checkpoint" / "round-x").mkdir()
    seen = row(settings, half.id)
    assert seen.state == "damaged"
    assert seen.note.startswith("model.safetensors: ")
    assert seen.note.endswith("; without it the run goes on")
    assert row(settings, empty.id).state == "stopped"
    (empty.folder / "rounds.csv").write_text("round,a\n1,2")
    assert row(settings, empty.id).note.endswith("; rounds.csv has no column 'condition'")
    (empty.folder / "rounds.csv").write_text("")
    assert "; rounds.csv: No columns" in row(settings, empty.id).note
    renamed = half.folder.rename(half.folder.with_name("copy"))
    assert row(settings, renamed.name).note.startswith(f"its config.json is of run {half.id}")


def test_what_the_tables_need_and_how_it_is_made(settings):
    finish(settings)
    start(settings, last=1, attack="pgd")
    own = f"-p outputs {settings.outputs}"
    train = "papermill 02_fl_advtrain.ipynb out.ipynb -p preset smoke"
    assert items(settings).to_dict("index") == {
        "nature": {"state": "done", "command": ""},
        "fgsm": {"state": "missing", "command": f"{train} -p attack fgsm {own}"},
        "pgd": {"state": "stopped", "command": f"{train} -p attack pgd {own}"},
        "deepfool": {"state": "missing", "command": f"{train} -p attack deepfool {own}"},
        "centralised": {
            "state": "missing", "command": f"{train} -p attack none -p clients pooled {own}"
        },
        "tables": {
            "state": "missing", "command": f"make study PRESET=smoke OUTPUTS={settings.outputs}"
        },
    }  # fmt: skip


def test_tables_are_older_or_younger_than_the_models(settings):
    for attack in ("none", "fgsm", "pgd", "deepfool"):
        finish(settings, attack=attack)
    finish(settings, clients="pooled")
    analysis = "papermill 05_analysis.ipynb out.ipynb -p preset smoke"
    assert items(settings).loc["tables", "state"] == "missing"
    assert items(settings).loc["tables", "command"].startswith(analysis)
    runs.write_text(settings.folder / "table3.csv", "uar\n")
    assert set(items(settings)["state"]) == {"done"}
    assert set(items(settings)["command"]) == {""}
    os.utime(settings.folder / "table3.csv", (1, 1))
    assert items(settings).loc["tables", "state"] == "outdated"
    assert "Commands" not in pages.page(settings.outputs).needs


def test_commands_name_what_differs_from_the_preset(settings, tmp_path):
    corpus = tmp_path / "my corpus"
    corpus.mkdir()
    finish(settings, corpus=str(corpus), epsilon=0.2, seed=3, strategy="FedProx", proximal_mu=0.5)
    command = items(settings).loc["pgd", "command"]
    assert f"-p corpus '{corpus}' -p attack pgd -p seed 3 " in command
    for option in ("-p epsilon 0.2", "-p strategy FedProx", "-p proximal_mu 0.5"):
        assert option in command
    assert "None" not in command
    assert items(settings).loc["tables", "command"].startswith("papermill 05_analysis")  # not make


def test_the_commands_make_what_is_missing(settings):
    """The parameters of a command lead to the run whose absence it mends."""
    group = finish(settings, epsilon=0.2, seed=3).config["setting"]
    for item, command in items(settings)["command"].items():
        if item in missing.WANTED and command:
            words = command.split(" -p ")[1:]
            given = dict(word.split(" ", 1) for word in words)
            kinds = {name: type(value) for name, value in settings.values().items()}
            given = {name: kinds[name](value) for name, value in given.items()}
            made = load_settings(**given)
            assert runs.run_name(made, "f00") == f"smoke-{item}-s3-{group}"


def test_studies_settings_and_seeds_stand_apart(settings):
    finish(settings)
    finish(settings, seed=1)
    finish(settings, epsilon=0.2)
    finish(dataclasses.replace(settings, preset="demo"), runtime="deployment")
    table = missing.missing_results(
        run_status.find_run_statuses(settings.outputs), settings.outputs
    )
    groups = table[table["item"] != "tables"].groupby(["study", "setting", "seed"]).size()
    assert sorted(groups) == [4, 5, 5, 5]  # a deployment's clients are never pooled
    assert table[table["item"] == "tables"]["study"].tolist() == ["demo", "smoke"]
    shown = text_of(pages.page(settings.outputs).needs)
    assert shown.count("✓ done") == 4
    assert shown.count("○ missing") == 4 * 4 - 1 + 4


def test_an_empty_folder_says_what_to_do(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        shown = pages.page(folder)
        assert "make demo" in shown.status
        assert shown[1:] == ("", "", "")
        made = StudyDashboard(folder)
        assert "papermill 02_fl_advtrain.ipynb" in made.children[0].value
        made.close()
    assert sorted(tmp_path.iterdir()) == []


def test_text_is_escaped(settings):
    bad = "<script>alert(1)<&'\""
    corpus = settings.folder.parent.parent / "<img src=x>"
    corpus.mkdir()
    run = finish(settings, corpus=str(corpus))
    damage(settings.folder.parent / "<b>odd", "config.json", '{"run": "<i>"}')
    table = run.table("rounds").assign(attack=bad)
    run.write("rounds.csv", table)
    drawn(settings.folder.parent / "<b>odd", "<u>", origin=bad)
    html = "".join(pages.page(settings.outputs))
    made = StudyDashboard(settings.outputs)
    html += made.caption.value + "".join(
        each.data for each in dashboard.twin(settings.outputs) if hasattr(each, "data")
        and isinstance(each.data, str)
    )  # fmt: skip
    for tag in ("<script", "<img", "<b>odd", "<i>", "<u>"):
        assert tag not in html
    assert "&lt;img src=x&gt;" in html
    assert "&lt;script&gt;" in made.caption.value
    made.close()


def test_no_address_outside_is_on_the_page(settings):
    finish(settings)
    assert not re.search(
        r"(https?:)?//|url\(|@import|<link|<script", "".join(pages.page(settings.outputs))
    )


def test_states_are_words_and_signs_and_colours():
    marks = {state: text_of(pages._state(state)) for state in pages.SIGNS}
    assert len(set(marks.values())) == len(marks)
    for state, said in marks.items():
        assert said.endswith(state)
        red, green, blue = (int(pages.SIGNS[state][1][i : i + 2], 16) / 255 for i in (1, 3, 5))
        light = [
            c / 12.92 if c < 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
        ]
        assert (0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] + 0.05) / 0.05 > 7


def test_ages():
    assert [pages.age(NOW - s, NOW) for s in (5, 90, 7200, 3e5, float("nan"))] == [
        "just now", "2 min ago", "2 h ago", "3 days ago", "",
    ]  # fmt: skip


@pytest.fixture
def study(settings):
    """Two runs and figures: of the study, and of a run."""
    run = finish(settings)
    start(settings, last=1, attack="pgd")
    for name in ("clients", "fig5", "fig4"):
        drawn(settings.folder, name, origin=f"runs {run.id}")
    drawn(run.folder / "figures", "conditions")
    return settings


def test_twin_and_widget_show_the_same(study):
    made = StudyDashboard(study.outputs)
    shown = pages.page(study.outputs)
    twin = list(dashboard.twin(study.outputs))
    static = "".join(part.data for part in twin if isinstance(part.data, str))
    values = [part.value for part in made.children if isinstance(getattr(part, "value", 0), str)]
    assert [text_of(html) for html in shown[1:]] == [text_of(html) for html in values[1:4]]
    assert all(html in static for html in shown[1:])
    assert text_of(shown.runs).count(" ✓ done ") == 1
    images = [part for part in twin if isinstance(part.data, bytes)]
    assert [part.alt for part in images] == [
        "Figure 4: UAR by round, smoke", "Figure 5: UAR by round under four conditions, smoke",
    ]  # fmt: skip
    made.close()


def test_a_figure_is_chosen(study):
    made = StudyDashboard(study.outputs)
    titles = [title for title, _ in made.figure.options]
    assert titles[0] == "Figure 4: UAR by round"
    assert titles[1:] == [pictures.NAMES["fig5"], pictures.NAMES["clients"]]
    fig5, (run, *_) = study.folder / "fig5.png", made.place.options[1]
    made.figure.value = fig5
    assert bytes(made.image.value) == fig5.read_bytes()
    assert "runs smoke-nature-s0-" in made.caption.value
    made.place.value = run
    assert "UAR by round under four conditions" in made.caption.value
    assert run in made.caption.value
    fig5.write_bytes(fig5.read_bytes()[:300])
    made.place.value = "smoke"
    made.figure.value = fig5
    assert text_of(made.caption.value) == "fig5.png of smoke is not a whole PNG"
    assert made.image.layout.display == "none"
    assert "fig5.png of smoke is not a whole PNG" in "".join(
        part.data for part in dashboard.twin(study.outputs) if isinstance(part.data, str)
    )
    made.close()


def test_refresh_finds_what_is_new_and_keeps_what_is_chosen(study):
    made = StudyDashboard(study.outputs)
    made.figure.value = study.folder / "fig5.png"
    made.refresh()
    assert made.figure.value == study.folder / "fig5.png"
    fresh = finish(study, attack="fgsm")
    drawn(study.folder, "fig6")
    drawn(study.folder, "fig5", origin="drawn anew")
    assert fresh.id not in made.children[2].value
    made.button.click()
    assert fresh.id in made.children[2].value
    assert made.figure.value == study.folder / "fig5.png"
    assert pictures.NAMES["fig6"] in dict(made.figure.options)
    assert "drawn anew" in made.caption.value
    (study.folder / "fig5.png").unlink()
    made.refresh()
    assert made.figure.label == "Figure 4: UAR by round"
    made.close()


def test_it_looks_again_by_itself_until_it_is_closed(study):
    async def watch():
        made = StudyDashboard(study.outputs, every=0.02)
        fresh = finish(study, attack="deepfool")
        for _ in range(200):
            await asyncio.sleep(0.02)
            if fresh.id in made.children[2].value:
                break
        else:
            raise AssertionError("it did not look again")
        made.close()
        await asyncio.sleep(0.05)
        return len(asyncio.all_tasks())

    assert asyncio.run(watch()) == 1


def test_show_makes_one_of_them(study, monkeypatch, capsys):
    monkeypatch.setenv("FEDSER_WIDGETS", "0")
    dashboard.show(study.outputs)
    monkeypatch.setenv("FEDSER_WIDGETS", "1")
    dashboard.show(study.outputs)
    said = capsys.readouterr().out
    assert said.count("StudyDashboard(") == 1
    assert said.count("Image object") == 2
