"""What the benchmarks have in common: their options, their result files, the README's table.

    python benchmarks/report.py        # writes the table of the newest results into the README

A result is ``results/NAME-DEVICE-DATE.json``: the claim, rows, and figures, which are what the
README shows. A figure's key ends in its unit, and it says how it was come by: measured, or
extrapolated from what.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

RESULTS = Path(__file__).parent / "results"
MODULES = {"adversarial-robustness-toolbox": "art"}  # packages that are imported by another name
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- performance: python benchmarks/report.py -->\n", "<!-- end of performance -->\n"
UNITS = ("clips_per_s", "clip_iterations_per_s", "rounds_per_minute", "minutes", "hours", "s", "gb")
UNITS += ("mb", "percent", "ratio", "uar_points")


def options(description: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--quick", action="store_true", help="under a minute on a CPU")
    parser.add_argument(
        "--results", type=Path, metavar="DIR",
        help="where its JSON goes; results/ beside the scripts, and nowhere if quick",
    )  # fmt: skip
    return parser


def figure(key: str, value: float, what: str, how: str = "measured") -> dict[str, Any]:
    """One number for the README. key: ends in its unit; what: it in words."""
    if not key.endswith(UNITS):
        raise ValueError(f"key {key!r} must end in one of {', '.join(UNITS)}")
    return {"key": key, "value": rounded(value), "what": what, "how": how}


def rounded(value: Any) -> Any:
    """Three significant digits, and no fewer than stand before the point."""
    if not isinstance(value, float):
        return value
    return round(value) if abs(value) >= 1000 else float(f"{value:.3g}")


def device_name(device: str) -> str:
    """The GPU's name, or the number of cores and the processor's."""
    from fedser_utils.core import devices

    name = devices.device_name(device)
    return name if device.startswith("cuda") else f"{os.cpu_count()} CPU cores ({name})"


def save(
    name: str,
    device: str,
    claim: str,
    rows: Sequence[Mapping[str, Any]],
    figures: Sequence[Mapping[str, Any]],
    *,
    given: argparse.Namespace,
    made_on: str = "",
    **facts: Any,
) -> None:
    """Print the rows as a table, and write the result where ``given``, the options, have it.
    made_on: the device that the rows come from, where it is not the one this runs on."""
    from fedser_utils.core import runs

    rows = [{key: rounded(value) for key, value in row.items()} for row in rows]
    print(pd.DataFrame(rows).to_string(index=False))
    for each in figures:
        print(f"{each['what']}: {each['value']} ({each['key']}, {each['how']})")
    folder = given.results or (None if given.quick else RESULTS)
    if folder is None:
        return
    today = datetime.now(UTC).date().isoformat()
    found = {"name": name, "claim": " ".join(claim.split()), "date": today} | facts
    found |= {"quick": given.quick}
    found |= {"device": made_on or device_name(device), "machine": platform.machine()}
    packages = ("torch", "flwr", "ray", "adversarial-robustness-toolbox", "numpy")
    there = [package for package in packages if find_spec(MODULES.get(package, package))]
    found |= {"versions": {package: version(package) for package in there}}
    found |= {"commit": runs.commit(), "figures": list(figures), "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{_slug(made_on or _named(device))}-{today}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(path)


def _named(device: str) -> str:
    return device_name(device) if device.startswith("cuda") else "cpu"


def _slug(name: str) -> str:
    """``cpu``, ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def newest() -> list[dict[str, Any]]:
    """The newest result of each benchmark on each device."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: path.stem[-10:]):
        result = json.loads(path.read_text())
        if result.get("quick"):
            continue
        found[result["name"], path.stem[:-11]] = result
    return [found[key] for key in sorted(found)]


def table() -> str:
    """The README's table of all figures that have a unit of their own."""
    lines = ["| what | value | how | where |", "|---|---|---|---|"]
    for result in newest():
        where = f"{result['device']}, {result['date']}, `{result['name']}`"
        for each in result["figures"]:
            if each["key"].endswith("percent"):
                continue  # shares of ceilings are for the benchmark's output
            unit = max((u for u in UNITS if each["key"].endswith(u)), key=len)
            unit = unit.replace("_per_", "/").replace("_", " ").replace("percent", "%")
            words = {"uar points": "UAR points", "gb": "GB", "mb": "MB", "ratio": "times"}
            unit = words.get(unit, unit)
            value = f"{each['value']:,}".removesuffix(".0")
            lines.append(f"| {each['what']} | {value} {unit} | {each['how']} | {where} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    text = README.read_text()
    before, rest = text.split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
