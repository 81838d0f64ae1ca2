"""pyproject.toml, environment.yml, constraints.txt and the Makefile agree."""

import re
import subprocess
import tomllib

import yaml
from packaging.requirements import Requirement

from fedser_utils.core.settings import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


def pinned():
    lines = (ROOT / "constraints.txt").read_text().split()
    return {Requirement(line).name.lower().replace("_", "-"): Requirement(line) for line in lines}


def wanted():
    extras = PROJECT["optional-dependencies"]
    listed = PROJECT["dependencies"] + extras["notebooks"] + extras["test"]
    return [Requirement(line) for line in listed]


def test_conda_gives_python_and_pip_the_rest():
    *conda, pip = ENVIRONMENT["dependencies"]
    assert conda == ["python=3.11", "pip"]
    options = [line for line in pip["pip"] if line.startswith("-")]
    assert options == ["-c constraints.txt", "-e ."]
    listed = {str(Requirement(line)) for line in pip["pip"] if not line.startswith("-")}
    assert listed == {str(requirement) for requirement in wanted()}


def test_every_dependency_is_pinned_within_its_range():
    pins = pinned()
    for requirement in wanted():
        pin = pins[requirement.name.lower()]
        (version,) = (spec.version for spec in pin.specifier)
        assert requirement.specifier.contains(version), f"{requirement} but {pin}"
    assert str(pins["flwr"].specifier) == "==1.41.0"


def test_make_help_lists_the_commands():
    done = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    commands = "install demo test test-all test-browser lab dashboard paper docs clean"
    assert {*commands.split()} <= listed


def test_no_path_of_a_machine_is_written_down():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    for name in tracked.stdout.split():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".ipynb", ".yml", ".yaml", ".toml", ".txt"}:
            assert not re.search(r"(?<![\w.])/(home|root|work|tmp)/\w", path.read_text()), name
