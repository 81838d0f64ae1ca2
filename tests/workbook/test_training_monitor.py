"""The training monitor, headless and live, and what it shows of a run that another one trains."""

import dataclasses
import threading

import pandas as pd
import pytest

from fedser_utils.core import runs
from fedser_utils.data.federation import load_federation
from fedser_utils.federated import runtimes
from fedser_utils.workbook import display, training_monitor
from fedser_utils.workbook.training_monitor import TrainingMonitor, progress

FACTS = {"model": "nature", "attack": "none", "uar": 50.0, "clients_replied": 3}
FACTS |= {"clients_asked": 4, "bytes_sent": 1e6, "bytes_received": 2e6, "missing": None}


def rounds(*numbers, **changes):
    """Rows of rounds.csv, five minutes apart, two conditions each."""
    rows = []
    for place, number in enumerate(numbers):
        own = {"round": number, "time": f"2026-01-01T10:{5 * place:02d}:00"}
        rows += [FACTS | own | {"condition": name} | changes for name in ("original", "randomised")]
    return pd.DataFrame(rows)


def test_progress_by_hand():
    text = progress(rounds(10, 20), 50)
    assert text.startswith("round 20 of 50, about 0:15:00 left: 3 of 4 clients replied;")
    assert "2.0 MB to the clients, 4.0 MB from them; missing: nobody" in text
    assert progress(rounds(10), 50).startswith("round 10 of 50: ")
    assert progress(rounds(40, 50), 50).startswith("round 50 of 50, finished: ")
    assert "missing: 10: client 07 (late)" in progress(
        rounds(10, missing="10: client 07 (late)"), 50
    )


def test_old_runs_have_no_times():
    assert progress(rounds(10, 20).drop(columns="time"), 50).startswith("round 20 of 50: ")


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr(training_monitor, "display", lambda *each, **options: found.append(each))
    return found


def test_live_it_is_there_from_the_start(monkeypatch, shown):
    monkeypatch.setenv(display.CHOICE, "1")
    monitor = TrainingMonitor(50)
    assert shown == [(monitor.widget,)]
    assert "waiting" in monitor.line.value
    monitor(rounds(10, missing="10: client <b> (late)"))
    assert monitor.bar.value == 10
    assert "client &lt;b&gt; (late)" in monitor.line.value
    assert bytes(monitor.picture.value).startswith(b"\x89PNG")
    assert len(shown) == 1


def test_headless_it_is_text_and_a_picture(monkeypatch, shown):
    monkeypatch.setenv(display.CHOICE, "0")
    monitor = TrainingMonitor(50)
    assert not shown
    monitor(rounds(10))
    assert [type(each).__name__ for (each,) in shown] == ["HTML", "Figure"]


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("JPY_SESSION_NAME", "03.ipynb", True),
        ("VOILA_BASE_URL", "/", True),
        (display.CHOICE, "0", False),
        ("X", "1", False),
    ],
)
def test_where_widgets_live(monkeypatch, name, value, found):
    for each in (*display.FRONTENDS, display.CHOICE):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    assert display.is_live() == found


def test_a_run_that_another_one_trains_is_shown(tiny, tmp_path, capsys):
    """It waits while the lock is held, shows the rounds that appear, and then goes on."""
    settings = dataclasses.replace(tiny, outputs=str(tmp_path), rounds=1)
    run = runs.open_run(settings, load_federation(settings).corpus.fingerprint)
    seen, begun = [], threading.Event()

    def other():
        with runs.locked(run.folder):
            run.write("rounds.csv", rounds(7))
            begun.set()
            while not seen:
                threading.Event().wait(0.1)
            (run.folder / "rounds.csv").unlink()

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    assert runs.lock_holder(run.folder).startswith("process ")
    with pytest.raises(runs.RunBusyError, match="another process"):
        runtimes.train(settings)
    done = runtimes.train(settings, monitor=lambda table: seen.append(table), wait=True)
    thread.join()
    assert seen[0]["round"].tolist() == [7, 7]
    assert done.complete
    assert runs.lock_holder(run.folder) == ""
    assert "being written by another process: showing it" in capsys.readouterr().out
