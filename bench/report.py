"""Reports of figures: tables on the terminal, and JSON files."""

import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import RESULTS
from bench.samples import Figures, Samples
from bench.table import aligned, figure

BASES = {
    "cold": "floor",
    "functions": "floor",
    "warm": "bare requests",
    "signature": "RequestValidator",
    "bulk": "ideal",
    "growth": "1000 messages",
    "list": "baseline",
    "size": "baseline as shipped",
    "sweep": "1769 MB",
}
"""The candidate with which each group's figures are compared in its table."""


def tables(figures: Mapping[str, Samples]) -> str:
    """Return a table for each group."""
    groups = dict.fromkeys(name.partition("/")[0] for name in figures)
    return "\n\n".join(_table(group, figures) for group in groups)


def _table(group: str, figures: Mapping[str, Samples]) -> str:
    base = BASES[group]
    rows = [[group, "figure", "median", "min", "max", "unit", "n", f"to {base}"]]
    before = ""
    for name, samples in figures.items():
        of, candidate, measured = name.split("/")
        if of != group:
            continue
        against = figures.get(f"{group}/{base}/{measured}")
        times = f"{samples.median / against.median:.2f}" if against and against.median else ""
        spread = [figure(samples.low), figure(samples.high)] if len(samples.values) > 1 else ["", ""]
        shown = "" if candidate == before else candidate
        rows.append([shown, measured, figure(samples.median), *spread, samples.unit, str(len(samples.values)), times])
        before = candidate
    return aligned(rows, numbers=(2, 3, 4, 6, 7))


def save(name: str, figures: Figures) -> Path:
    """Write figures to a file in the folder of results; return the file."""
    RESULTS.mkdir(exist_ok=True)
    content = {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "figures": {
            name: {
                "median": samples.median,
                "min": samples.low,
                "max": samples.high,
                "unit": samples.unit,
                "values": samples.values,
            }
            for name, samples in figures.items()
        },
    }
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return file


def read(file: Path) -> Figures:
    """Return the figures of a file."""
    content: dict[str, Any] = json.loads(file.read_text())["figures"]
    return {name: Samples(tuple(figure["values"]), figure["unit"]) for name, figure in content.items()}
