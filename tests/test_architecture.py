"""The house: rooms on floors, imports that point down, and what may run without what."""

import ast
import graphlib
import importlib
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from fedser_utils.core.settings import ROOT

FLOORS = (  # from the ground up; rooms on one floor do not import each other
    ("core",),
    ("data", "attacks", "learning", "analysis"),
    ("robustness",),
    ("federated",),
    ("workbook",),
)
FILES = 11  # of a folder at most, without its __init__
HOUSE = ROOT / "fedser_utils"
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(HOUSE.rglob("*.py"))
}
del MODULES["fedser_utils"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS_EXTRA = {Requirement(r).name for r in PROJECT["optional-dependencies"]["notebooks"]}
NOTEBOOKS_EXTRA = NOTEBOOKS_EXTRA - {"flwr"} | {"art", "IPython", "PIL", "ray"}


def room_of(module):
    return module.split(".")[1]


def imported(source):
    """The package's modules that a module's text imports, at any depth of it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedser_utils"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("fedser_utils"))


def offences(module, source):
    """Imports of a module that point upwards or across."""
    here = room_of(module)
    for name in imported(source):
        there = room_of(name)
        if there != here and ROOMS[there] >= ROOMS[here]:
            yield f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    assert not [*offences(module, MODULES[module].read_text())]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fedser_utils.core.runs", "from fedser_utils.data import audio"),
        ("fedser_utils.attacks.gradient", "def f():\n    import fedser_utils.learning.vgg"),
        ("fedser_utils.analysis.tables", "from fedser_utils.workbook.display import show"),
    ],
)
def test_an_import_upwards_or_across_is_an_offence(module, source):
    assert [*offences(module, source)]


def test_no_module_needs_itself():
    graph = {name: {*imported(path.read_text())} - {name} for name, path in MODULES.items()}
    [*graphlib.TopologicalSorter(graph).static_order()]  # raises CycleError
    graph["fedser_utils.core.errors"] = {"fedser_utils.core.settings"}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


def test_every_module_is_in_a_room_and_no_room_is_full():
    loose = {path.name for path in HOUSE.glob("*.py")}
    assert loose == {"__init__.py"}
    assert {path.name for path in HOUSE.iterdir() if (path / "__init__.py").exists()} == {*ROOMS}
    folders = {path.parent for path in MODULES.values()}
    sizes = {folder.name: len([*folder.glob("[!_]*.py")]) for folder in folders}
    assert max(sizes.values()) <= FILES, sizes


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_hands_on_what_it_says(room):
    handed = importlib.import_module(f"fedser_utils.{room}")
    assert handed.__doc__
    assert handed.__all__
    assert all(getattr(handed, name) is not None for name in handed.__all__)


ABSENT = """
import importlib, sys

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {without}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def loads(modules, *, without):
    """Whether a process in which the packages ``without`` are absent can import ``modules``."""
    command = [sys.executable, "-c", ABSENT.format(without=(*without, "")), *modules]
    return subprocess.run(command).returncode == 0


def test_analysis_never_imports_torch():
    modules = [name for name in MODULES if room_of(name) == "analysis"]
    modules += ["fedser_utils.core.runs", "fedser_utils.core.settings"]
    assert loads(modules, without=["torch"])
    assert not loads(["fedser_utils.learning.vgg"], without=["torch"])


def test_server_and_client_do_without_what_notebooks_need():
    modules = [f"fedser_utils.federated.{name}" for name in ("server_app", "client_app")]
    modules += [name for name in MODULES if ".deployment." in name]
    assert loads(modules, without=NOTEBOOKS_EXTRA)
    assert not loads(["fedser_utils.analysis.figures"], without=NOTEBOOKS_EXTRA)


def test_no_pickle_and_no_global_randomness():
    for path in MODULES.values():
        text = path.read_text()
        for banned in ("import pickle", "torch.save(", "torch.load(", "np.random.seed", "pickle="):
            assert banned not in text, f"{path.name}: {banned}"
