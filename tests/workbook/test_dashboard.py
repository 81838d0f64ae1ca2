"""The page over all runs: states, missing results, damage, twin and widgets."""

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
from fedser_utils.core.presets import load_settings
from fedser_utils.workbook.study import dashboard, dashboard_html, run_status
from fedser_utils.workbook.study.dashboard import Picture, StudyDashboard

NOW = 1_800_000_000.0


@pytest.fixture
def settings(tmp_path):
    return load_settings("smoke", outputs=str(tmp_path / "outputs"))


def start(settings, *, last=None, **change):
    """A run's folder; last: the round up to which it has results."""
    changed = dataclasses.replace(settings, **change)
    run = runs.open_run(changed, "f00", device="cpu")
    if last:
        attack = changed.attack
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
    (status,) = [s for s in run_status.find_run_statuses(settings.outputs) if s.run == run]
    return status


def items(settings):
    """State and command by item of the paper's tables, of the one study."""
    table = run_status.missing_results(
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
    status = row(settings, done.id)
    assert (status.state, status.study, status.model, status.seed) == ("done", "smoke", "nature", 0)
    assert (status.round, status.rounds, status.uar) == (2, 2, 90)
    assert (status.attacked, status.attack) == (20, "pgd")  # the lowest UAR
    assert status.written == pytest.approx(time.time(), abs=60)
    status = row(settings, stopped.id)
    assert (status.state, status.round, status.attack) == ("stopped", 1, "pgd")
    assert status.note.startswith(
        "goes on after round 1; written just now: stopped just now, or at"
    )
    status = row(settings, fresh.id)
    assert (status.state, status.round, status.uar) == ("stopped", None, None)
    assert status.note.startswith("stopped before its first checkpoint")
    for path in fresh.folder.rglob("*"):
        os.utime(path, (NOW - 1e8, NOW - 1e8))
    assert row(settings, fresh.id).note == "stopped before its first checkpoint"


def test_a_locked_run_is_running_and_nothing_is_touched(settings):
    run = start(settings, last=1)
    code = "import sys; from pathlib import Path; from fedser_utils.core import runs\n"
    code += f"with runs.locked(Path({str(run.folder)!r})): print('locked', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    status = row(settings, run.id)
    assert (status.state, status.note) == ("running", f"process {process.pid}")
    assert items(settings).loc["nature"].tolist() == ["running", ""]
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
    process.communicate("\n")
    assert row(settings, run.id).state == "stopped"
    with runs.locked(run.folder):
        pass  # free again: reading takes no lock


def test_reading_a_run_without_a_lock_makes_none(settings):
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
    assert [status.run for status in run_status.find_run_statuses(settings.outputs)] == [
        done.id,
        "alien",
    ]
    status = row(settings, "alien")
    assert status.state == "damaged"
    assert status.note.startswith(reason)
    assert "\n" not in status.note
    assert row(settings, done.id).state == "done"
    assert status.note.replace("'", "&#x27;") in dashboard_html.page_sections(settings.outputs).runs


def test_a_damaged_run_is_a_row_with_its_reason(settings):
    half, empty = finish(settings, attack="pgd"), start(settings, attack="fgsm")
    with open(half.folder / "model.safetensors", "r+b") as file:
        file.truncate(20)
    (empty.folder / "rounds.csv").write_text("round,cond")
    (empty.folder / "checkpoint").mkdir()
    (empty.folder / "checkpoint" / "round-x").mkdir()
    status = row(settings, half.id)
    assert status.state == "damaged"
    assert status.note.startswith("model.safetensors: ")
    assert status.note.endswith("; without it the run goes on")
    assert row(settings, empty.id).state == "stopped"
    (empty.folder / "rounds.csv").write_text("round,a\n1,2")
    assert row(settings, empty.id).note.endswith("; rounds.csv has no column 'condition'")
    (empty.folder / "rounds.csv").write_text("")
    assert "; rounds.csv: No columns" in row(settings, empty.id).note
    renamed = half.folder.rename(half.folder.with_name("copy"))
    assert row(settings, renamed.name).note.startswith(f"its config.json is of run {half.id}")


def test_missing_results_and_their_commands(settings):
    finish(settings)
    start(settings, last=1, attack="pgd")
    folder = f"-p outputs {settings.outputs}"
    train = "papermill 02_fl_advtrain.ipynb out.ipynb -p preset smoke"
    assert items(settings).to_dict("index") == {
        "nature": {"state": "done", "command": ""},
        "fgsm": {"state": "missing", "command": f"{train} -p attack fgsm {folder}"},
        "pgd": {"state": "stopped", "command": f"{train} -p attack pgd {folder}"},
        "deepfool": {"state": "missing", "command": f"{train} -p attack deepfool {folder}"},
        "centralised": {
            "state": "missing", "command": f"{train} -p attack none -p clients pooled {folder}"
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
    assert "Commands" not in dashboard_html.page_sections(settings.outputs).missing


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


def test_commands_name_the_folder_as_it_was_given(settings, tmp_path, monkeypatch):
    """A page on ../outputs shows no absolute path: make's commands are given beside notebooks/."""
    finish(settings)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    statuses = run_status.find_run_statuses("../outputs")
    commands = run_status.missing_results(statuses, "../outputs").set_index("item")["command"]
    assert commands["pgd"].endswith(" -p attack pgd -p outputs ../outputs")
    assert commands["tables"] == "make study PRESET=smoke OUTPUTS=outputs"
    assert str(tmp_path) not in "".join(dashboard_html.page_sections("../outputs"))
    monkeypatch.setattr(run_status, "ROOT", tmp_path)  # the repository's own
    commands = run_status.missing_results(statuses, "../outputs")["command"]
    assert not commands.str.contains("outputs", case=False).any()


def test_the_commands_make_what_is_missing(settings):
    """The parameters of a command lead to the run whose absence it mends."""
    group = finish(settings, epsilon=0.2, seed=3).config["setting"]
    for item, command in items(settings)["command"].items():
        if item in run_status.PAPER_MODELS and command:
            words = command.split(" -p ")[1:]
            given = dict(word.split(" ", 1) for word in words)
            kinds = {name: type(value) for name, value in settings.values().items()}
            given = {name: kinds[name](value) for name, value in given.items()}
            of_command = load_settings(**given)
            assert runs.run_name(of_command, "f00") == f"smoke-{item}-s3-{group}"


def test_studies_settings_and_seeds_stand_apart(settings):
    finish(settings)
    finish(settings, seed=1)
    finish(settings, epsilon=0.2)
    finish(dataclasses.replace(settings, preset="demo"), runtime="deployment")
    table = run_status.missing_results(
        run_status.find_run_statuses(settings.outputs), settings.outputs
    )
    groups = table[table["item"] != "tables"].groupby(["study", "setting", "seed"]).size()
    assert sorted(groups) == [4, 5, 5, 5]  # a deployment's clients are never pooled
    assert table[table["item"] == "tables"]["study"].tolist() == ["demo", "smoke"]
    shown = text_of(dashboard_html.page_sections(settings.outputs).missing)
    assert shown.count("✓ done") == 4
    assert shown.count("○ missing") == 4 * 4 - 1 + 4


def test_an_empty_folder_says_what_to_do(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        shown = dashboard_html.page_sections(folder)
        assert "make demo" in shown.status
        assert shown[1:] == ("", "", "")
        page = StudyDashboard(folder)
        assert "papermill 02_fl_advtrain.ipynb" in page.children[0].value
        page.close()
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
    html = "".join(dashboard_html.page_sections(settings.outputs))
    page = StudyDashboard(settings.outputs)
    html += page.caption.value + "".join(
        each.data for each in dashboard.twin(settings.outputs) if hasattr(each, "data")
        and isinstance(each.data, str)
    )  # fmt: skip
    for tag in ("<script", "<img", "<b>odd", "<i>", "<u>"):
        assert tag not in html
    assert "&lt;img src=x&gt;" in html
    assert "&lt;script&gt;" in page.caption.value
    page.close()


def test_no_address_outside_is_on_the_page(settings):
    finish(settings)
    assert not re.search(
        r"(https?:)?//|url\(|@import|<link|<script",
        "".join(dashboard_html.page_sections(settings.outputs)),
    )


def test_states_are_words_and_signs_and_colours():
    marks = {state: text_of(dashboard_html._state(state)) for state in dashboard_html.SIGNS}
    assert len(set(marks.values())) == len(marks)
    for state, printed in marks.items():
        assert printed.endswith(state)
        red, green, blue = (
            int(dashboard_html.SIGNS[state][1][i : i + 2], 16) / 255 for i in (1, 3, 5)
        )
        light = [
            c / 12.92 if c < 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
        ]
        assert (0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] + 0.05) / 0.05 > 7


def test_ages():
    assert [dashboard_html.age(NOW - s, NOW) for s in (5, 90, 7200, 3e5, float("nan"))] == [
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
    page = StudyDashboard(study.outputs)
    shown = dashboard_html.page_sections(study.outputs)
    twin = list(dashboard.twin(study.outputs))
    static = "".join(part.data for part in twin if isinstance(part.data, str))
    values = [part.value for part in page.children if isinstance(getattr(part, "value", 0), str)]
    assert [text_of(html) for html in shown[1:]] == [text_of(html) for html in values[1:4]]
    assert all(html in static for html in shown[1:])
    assert text_of(shown.runs).count(" ✓ done ") == 1
    images = [part for part in twin if isinstance(part.data, bytes)]
    assert [part.alt for part in images] == [
        "Figure 4: UAR by round, smoke", "Figure 5: UAR by round under four conditions, smoke",
    ]  # fmt: skip
    page.close()


def test_a_figure_is_chosen(study):
    page = StudyDashboard(study.outputs)
    titles = [title for title, _ in page.figure.options]
    assert titles[0] == "Figure 4: UAR by round"
    assert titles[1:] == [dashboard.TITLES["fig5"], dashboard.TITLES["clients"]]
    fig5, (run, *_) = study.folder / "fig5.png", page.place.options[1]
    page.figure.value = Picture("smoke", fig5)
    assert bytes(page.image.value) == fig5.read_bytes()
    assert "runs smoke-nature-s0-" in page.caption.value
    page.place.value = run
    assert "UAR by round under four conditions" in page.caption.value
    assert run in page.caption.value
    fig5.write_bytes(fig5.read_bytes()[:300])
    page.place.value = "smoke"
    page.figure.value = Picture("smoke", fig5)
    assert text_of(page.caption.value) == "fig5.png of smoke is not a whole PNG"
    assert page.image.layout.display == "none"
    assert "fig5.png of smoke is not a whole PNG" in "".join(
        part.data for part in dashboard.twin(study.outputs) if isinstance(part.data, str)
    )
    page.close()


def test_refresh_shows_new_runs_and_the_chosen_figure(study):
    page = StudyDashboard(study.outputs)
    page.figure.value = Picture("smoke", study.folder / "fig5.png")
    page.refresh()
    assert page.figure.value.path == study.folder / "fig5.png"
    fresh = finish(study, attack="fgsm")
    drawn(study.folder, "fig6")
    drawn(study.folder, "fig5", origin="drawn anew")
    assert fresh.id not in page.children[2].value
    page.button.click()
    assert fresh.id in page.children[2].value
    assert page.figure.value.path == study.folder / "fig5.png"
    assert dashboard.TITLES["fig6"] in dict(page.figure.options)
    assert "drawn anew" in page.caption.value
    (study.folder / "fig5.png").unlink()
    page.refresh()
    assert page.figure.label == "Figure 4: UAR by round"
    page.close()


def test_it_refreshes_by_itself_until_it_is_closed(study):
    async def watch():
        page = StudyDashboard(study.outputs, interval=0.02)
        fresh = finish(study, attack="deepfool")
        for _ in range(200):
            await asyncio.sleep(0.02)
            if fresh.id in page.children[2].value:
                break
        else:
            raise AssertionError("it was not refreshed")
        page.close()
        await asyncio.sleep(0.05)
        return len(asyncio.all_tasks())

    assert asyncio.run(watch()) == 1


def test_show_makes_one_of_them(study, monkeypatch, capsys):
    monkeypatch.setenv("FEDSER_WIDGETS", "0")
    dashboard.show(study.outputs)
    monkeypatch.setenv("FEDSER_WIDGETS", "1")
    dashboard.show(study.outputs)
    printed = capsys.readouterr().out
    assert printed.count("StudyDashboard(") == 1
    assert printed.count("Image object") == 2
