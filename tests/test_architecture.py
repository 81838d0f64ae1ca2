"""The house: imports point one way, and some rooms stay free of torch."""

import ast
import subprocess
import sys

import pytest

from fedser_utils.config import ROOT

LAYERS = (
    ("frontends",),
    ("config", "seeding", "counted", "workers", "scrutiny"),
    ("command", "live", "remedies"),
    ("certificates", "gate", "services"),
    ("connection", "compose"),
    ("deployment",),
    ("runs", "checkpoints", "audio"),
    ("embedded", "readers"),
    ("corpora", "machines", "partitioners", "synthetic"),
    ("features",),
    ("partition",),
    ("models",),
    ("attacks", "randomisation"),
    ("training",),
    ("engine", "metrics"),
    ("baselines", "evaluation"),
    ("clients",),
    ("answers",),
    ("grids", "strategies", "trainers"),
    ("shards",),
    ("cohort", "remote"),
    ("defence", "smoothing"),
    ("trial",),
    ("adaptive",),
    ("known",),
    ("federated",),
    ("runtimes",),
    ("tables",),
    ("checklist",),
    ("verdict",),
    ("comparisons", "overview", "skew"),
    ("drift", "effects", "figures", "missing", "pictures", "selections"),
    ("canvas", "choices", "diagrams", "matrices", "pages", "plan", "recordings", "scenes"),
    ("contrasts", "lessons"),
    ("confusions", "dashboard", "estimate", "obstacles", "widgets"),
    ("perturbation",),
    ("study",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HOUSE = ROOT / "fedser_utils"
MODULES = sorted(p for p in HOUSE.rglob("*.py") if p != HOUSE / "__init__.py")
ATTACKS = ("target", "gradient", "boundary", "sound", "toolbox", "__init__")  # inside attacks/


def room(path):
    """The module of the package that a file is, or belongs to."""
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported(path):
    """Names of the package's modules that a module imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fedser_utils":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedser_utils."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from (name.split(".")[1] for name in names if name.startswith("fedser_utils."))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_imports_point_down(path):
    for name in imported(path):
        assert LEVEL[name] < LEVEL[room(path)] or name == room(path) == "attacks", (
            f"{path.stem} imports {name}"
        )


@pytest.mark.parametrize("place", range(len(ATTACKS)), ids=ATTACKS)
def test_attacks_import_downwards_and_know_no_models(place):
    path = HOUSE / "attacks" / f"{ATTACKS[place]}.py"
    assert "models" not in set(imported(path))
    inner = [
        alias.name if node.module == "fedser_utils.attacks" else node.module.split(".")[2]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("fedser_utils.attacks")
        for alias in node.names
    ]
    assert {ATTACKS.index(name) < place for name in inner} <= {True}


def test_the_list_of_attacks_modules_is_whole():
    assert {path.stem for path in (HOUSE / "attacks").glob("*.py")} == set(ATTACKS)


def test_analysis_never_imports_torch():
    code = "import sys; from fedser_utils import baselines, comparisons, config, contrasts, "
    code += "effects, figures, lessons, obstacles, remedies, runs, skew, tables; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_pickle_and_no_global_randomness():
    for path in MODULES:
        text = path.read_text()
        for banned in ("import pickle", "torch.save(", "torch.load(", "np.random.seed", "pickle="):
            assert banned not in text, f"{path.name}: {banned}"
