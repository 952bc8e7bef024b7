"""Plot the figures of each group, in an environment that has matplotlib."""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

from bench.table import figure as written

mpl.use("Agg")
import matplotlib.pyplot as plt

OURS, THEIRS = "#c0392b", "#7f8c8d"
_ACROSS = 3
_GROWS = 50
_THEIRS = ("baseline", "bare", "floor", "RequestValidator", "ideal")


def plot(file: Path) -> list[Path]:
    """Draw a picture for each group in a file of results, with a chart for each figure and a bar for each candidate."""
    groups: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for name, samples in json.loads(file.read_text())["figures"].items():
        group, candidate, measured = name.split("/")
        groups[group][f"{measured} ({samples['unit']})"][candidate] = samples
    return [_picture(file.with_name(f"{group}.png"), group, parts) for group, parts in groups.items()]


def _picture(path: Path, group: str, parts: dict[str, dict[str, Any]]) -> Path:
    across = min(len(parts), _ACROSS)
    down = math.ceil(len(parts) / across)
    size = 5 * across, down * max(1 + 0.35 * max(map(len, parts.values())), 3)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(parts) :]:
        axis.remove()
    for axis, (measured, candidates) in zip(axes.flat, parts.items(), strict=False):
        draw = _line if all(name[0].isdigit() for name in candidates) else _bars
        draw(axis, candidates)
        axis.set_title(measured, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(group)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _line(axis: Any, candidates: dict[str, Any]) -> None:
    """Draw a line over growing amounts, which the candidates' names give."""
    amounts = [int(name.split()[0]) for name in candidates]
    medians = [samples["median"] for samples in candidates.values()]
    axis.plot(amounts, medians, "o-", color=OURS)
    axis.set_xscale("log")
    if amounts[-1] / amounts[0] >= medians[-1] / medians[0] > _GROWS:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.set_xticks(amounts, [f"{amount:,}" for amount in amounts], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel(next(iter(candidates)).split()[1])


def _bars(axis: Any, candidates: dict[str, Any]) -> None:
    names = list(candidates)
    medians = [samples["median"] for samples in candidates.values()]
    low = [samples["median"] - samples["min"] for samples in candidates.values()]
    high = [samples["max"] - samples["median"] for samples in candidates.values()]
    colours = [THEIRS if name.startswith(_THEIRS) else OURS for name in names]
    bars = axis.barh(names, medians, xerr=(low, high), color=colours, error_kw={"elinewidth": 0.8, "capsize": 2})
    axis.bar_label(bars, labels=list(map(written, medians)), padding=3, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.15)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for picture in plot(Path(name)):
            print(picture)
