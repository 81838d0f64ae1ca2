"""A notebook's parameters, and what a user sees of a refusal and of the log."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from fedser_utils.core.errors import InputError
from fedser_utils.core.notebook import notebook_settings


def opened(*cells, **values):
    """Settings and page of a notebook whose cells held this text and whose names have values."""
    namespace = {"In": ["", *cells, "x = 1"]}
    for cell in cells:
        exec(cell, namespace)
    return notebook_settings(namespace | values)


def cell(line, preset="smoke"):
    return f'# Parameters: those of a test\npreset: str = "{preset}"\nattack: str = None\n{line}'


def test_any_setting_may_be_injected():
    settings, page = opened(cell("draws: int = 3"), "# Parameters\nrounds = 7\ndraws = 4\n")
    assert (settings.preset, settings.rounds, settings.attack) == ("smoke", 7, "none")
    assert vars(page) == {"draws": 4}


def test_nan_is_refused_as_papermill_writes_it():
    with pytest.raises(InputError, match="learning_rate nan must be a number > 0"):
        opened(cell(""), "# Parameters\nlearning_rate = float('nan')\n")


def test_a_misspelt_name_is_refused():
    with pytest.raises(InputError, match=r"'atack' is unknown; did you mean attack\? all are "):
        opened(cell(""), '# Parameters\natack = "pgd"\n')
    with pytest.raises(InputError, match=r"'draw' .* draws\? all are listed in docs/settings.md"):
        opened(cell("draws: int = 3"), "# Parameters\ndraw = 3\n")


def test_none_is_as_the_preset_says():
    line = "full: bool = None\nepsilons: list[float] = None"
    assert opened(cell(line))[1].full is True
    _, page = opened(cell(line, preset="demo"))
    assert (page.full, page.epsilons) == (False, [0.05, 0.2, 1.0])
    with pytest.raises(InputError, match="nowhere None must be a whole number"):
        opened(cell("nowhere: int = None"))


@pytest.mark.parametrize(
    ("kind", "default", "good", "bad", "words"),
    [
        ("bool", True, True, "yes", "own 'yes' is unknown; choose from True, False"),
        ("bool", True, False, 1.5, r"own 1\.5 is unknown; choose from True, False"),
        ("str", "a", "b", "", "own '' must be a text"),
        ("int", 1, 3, 2.5, "own 2.5 must be a whole number >= 1"),
        ("int", 0, -3, "x", "own 'x' must be a whole number$"),
        ("float", 0.5, 0.1, 0, "own 0 must be a number > 0"),
        ("float", 0.0, -0.1, float("nan"), "own nan must be a number$"),
        ("list[float]", [0.1], [0.1, 2], [0.1, -1.0], r"own -1\.0 must be a number > 0"),
        ("list[float]", [-8.0, 1.0], [-1.0], ["x"], "own 'x' must be a number"),
        ("list[int]", [1], [1, 2], "[1, 2]", r"own '\[1, 2\]' must be a list of numbers, such as"),
        ("list[int]", [1], [1], [], r"own \[\] must be a list of numbers"),
        ("list[str]", ["a"], ["b"], "b", r"own 'b' must be a list of names, such as \[a, b\]"),
    ],
)
def test_the_kind_is_the_annotation(kind, default, good, bad, words):
    line = f"own: {kind} = {default!r}"
    assert opened(cell(line), own=good)[1].own == good
    with pytest.raises(InputError, match=words) as refusal:
        opened(cell(line), own=bad)
    assert "\n" not in str(refusal.value)


def test_papermill_ends_with_one_line_and_the_log_is_output(tmp_path):
    code = nbformat.v4.new_code_cell
    parameters = code(cell(""), metadata={"tags": ["parameters"]})
    cells = [
        "from fedser_utils import core\nsettings, page = core.notebook_settings(globals())",
        "import logging\nlogging.getLogger('fedser_utils.core').info('one round')",
        "from fedser_utils.core import runs\nraise runs.RunBusyError('run a is being written')",
        "print('after it')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[parameters, *map(code, cells)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "p"}
    nbformat.write(notebook, tmp_path / "in.ipynb")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PATH": path},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "InputError: run a is being written"
    cells = nbformat.read(tmp_path / "out.ipynb", 4).cells
    logged, error = (o for c in cells if c.cell_type == "code" for o in c.outputs)
    assert (logged.name, logged.text) == ("stdout", "one round\n")
    assert error.traceback == ["InputError: run a is being written"]
