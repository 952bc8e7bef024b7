"""The budgets: ratios of two figures of one run, and whether they are kept."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bench.samples import Samples, ratio
from bench.table import aligned, figure

FILE = Path(__file__).parent / "budgets.toml"


@dataclass(frozen=True, slots=True)
class Budget:
    """At most so many times as much of one figure as of another."""

    what: str
    than: str
    measured: str
    against: str
    at_most: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a budget; `worst` is the figure that counts, `ratio` None where one was not measured."""

    budget: Budget
    worst: str | None
    ratio: float | None

    @property
    def is_kept(self) -> bool:
        """Whether it was measured and is not more than allowed."""
        return self.ratio is not None and self.ratio <= self.budget.at_most


def load(file: Path = FILE) -> list[Budget]:
    """Return the budgets."""
    return [Budget(**entry) for entry in tomllib.loads(file.read_text())["budget"]]


def judge(budgets: Iterable[Budget], figures: Mapping[str, Samples]) -> list[Verdict]:
    """Return a verdict on each budget."""
    return [_judge(budget, figures) for budget in budgets]


def table(verdicts: Iterable[Verdict], figures: Mapping[str, Samples]) -> str:
    """Return the verdicts for a terminal."""
    rows = [["", "what", "than", "measured", "against", "ratio", "budget"]]
    for verdict in verdicts:
        budget = verdict.budget
        of = f" ({verdict.worst.split('/')[1]})" if verdict.worst and "*" in budget.measured else ""
        rows.append(
            [
                "✓" if verdict.is_kept else "✗",
                budget.what + of,
                budget.than,
                _written(figures.get(verdict.worst or "")),
                _written(figures.get(budget.against)),
                "not measured" if verdict.ratio is None else f"{verdict.ratio:.3f}",
                f"{budget.at_most:g}",
            ]
        )
    return aligned(rows, numbers=(3, 4, 5, 6))


def _judge(budget: Budget, figures: Mapping[str, Samples]) -> Verdict:
    against = figures.get(budget.against)
    ratios = {
        name: ratio(samples, against)
        for name, samples in figures.items()
        if against and fnmatchcase(name, budget.measured) and name != budget.against
    }
    worst = max(ratios, key=lambda name: ratios[name], default=None)
    return Verdict(budget, worst, ratios[worst] if worst else None)


def _written(samples: Samples | None) -> str:
    return f"{figure(samples.median)} {samples.unit}" if samples else "-"
