"""Options and result files that all benchmarks share, and the table in docs/performance.md.

    python benchmarks/report.py        # writes the table of the newest results

A result is ``results/NAME-DEVICE-DATE.json``: the claim, rows, and figures, which are the lines of
the table. A figure's key ends in its unit; its ``how`` is "measured" or "extrapolated from ...".
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
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- performance: python benchmarks/report.py -->\n", "<!-- end of performance -->\n"
UNITS = ("clips_per_s", "clip_iterations_per_s", "rounds_per_minute", "minutes", "hours", "s", "gb")
UNITS += ("mb", "percent", "ratio", "uar_points")


def options(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--quick", action="store_true", help="under a minute on a CPU")
    parser.add_argument(
        "--results", type=Path, metavar="DIR",
        help="where its JSON goes; results/ beside the scripts, and nowhere if quick",
    )  # fmt: skip
    return parser


def figure(key: str, value: float, what: str, how: str = "measured") -> dict[str, Any]:
    """Return one line of the table in docs/performance.md.

    key: ends in its unit (one of UNITS); what: the quantity in words; how: "measured" or
    "extrapolated from ...". Raises ValueError for a key without a unit.
    """
    if not key.endswith(UNITS):
        raise ValueError(f"key {key!r} must end in one of {', '.join(UNITS)}")
    return {"key": key, "value": rounded(value), "what": what, "how": how}


def rounded(value: Any) -> Any:
    """Return a float with three significant digits, or all its digits before the point."""
    if not isinstance(value, float):
        return value
    return round(value) if abs(value) >= 1000 else float(f"{value:.3g}")


def device_name(device: str) -> str:
    """Return the GPU's name, or the number of CPU cores and the processor's name."""
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
    """Print the rows as a table and write the result file.

    given: the command line's options, which name the folder; made_on: the device of the rows, if
    another machine computed them; facts: further entries of the file.
    """
    from fedser_utils.core import runs

    rows = [{key: rounded(value) for key, value in row.items()} for row in rows]
    print(pd.DataFrame(rows).to_string(index=False))
    for line in figures:
        print(f"{line['what']}: {line['value']} ({line['key']}, {line['how']})")
    folder = given.results or (None if given.quick else RESULTS)
    if folder is None:
        return
    today = datetime.now(UTC).date().isoformat()
    packages = ("torch", "flwr", "ray", "adversarial-robustness-toolbox", "numpy")
    installed = [package for package in packages if find_spec(MODULES.get(package, package))]
    result = {"name": name, "claim": " ".join(claim.split()), "date": today} | facts
    result |= {"quick": given.quick}
    result |= {"device": made_on or device_name(device), "machine": platform.machine()}
    result |= {"versions": {package: version(package) for package in installed}}
    result |= {"commit": runs.commit(), "figures": list(figures), "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    kind = made_on or (device_name(device) if device.startswith("cuda") else "cpu")
    path = folder / f"{name}-{_slug(kind)}-{today}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


def _slug(name: str) -> str:
    """Return a name for a file, such as ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def newest() -> list[dict[str, Any]]:
    """Return the newest full result of each benchmark on each device, sorted by name."""
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: path.stem[-10:]):
        result = json.loads(path.read_text())
        if not result.get("quick"):
            results[result["name"], path.stem[:-11]] = result
    return [results[key] for key in sorted(results)]


def table() -> str:
    """Return the Markdown table of all figures; percentages of ceilings are left out."""
    lines = ["| what | value | how | where |", "|---|---|---|---|"]
    for result in newest():
        where = f"{result['device']}, {result['date']}, `{result['name']}`"
        for line in result["figures"]:
            if line["key"].endswith("percent"):
                continue
            value = f"{line['value']:,}".removesuffix(".0")
            unit = _unit(line["key"])
            lines.append(f"| {line['what']} | {value} {unit} | {line['how']} | {where} |")
    return "\n".join(lines) + "\n"


def _unit(key: str) -> str:
    """Return the unit in which a figure's key ends, as readers write it."""
    unit = max((unit for unit in UNITS if key.endswith(unit)), key=len)
    unit = unit.replace("_per_", "/").replace("_", " ")
    names = {"uar points": "UAR points", "gb": "GB", "mb": "MB", "ratio": "times"}
    return names.get(unit, unit)


def main() -> None:
    """Write the table into docs/performance.md, between its two marks."""
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
