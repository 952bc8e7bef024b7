"""The budgets: upper limits for the ratio of two figures of one run, and their evaluation."""

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
    """The upper limit for the ratio of two figures."""

    what: str
    than: str
    measured: str
    against: str
    at_most: float


@dataclass(frozen=True, slots=True)
class Result:
    """The result for a budget. `worst` is the figure with the highest ratio; `ratio` is None if it was not measured."""

    budget: Budget
    worst: str | None
    ratio: float | None

    @property
    def is_met(self) -> bool:
        """Whether it was measured and is not more than allowed."""
        return self.ratio is not None and self.ratio <= self.budget.at_most


def load(file: Path = FILE) -> list[Budget]:
    """Return the budgets."""
    return [Budget(**entry) for entry in tomllib.loads(file.read_text())["budget"]]


def evaluate(budgets: Iterable[Budget], figures: Mapping[str, Samples]) -> list[Result]:
    """Return the result for each budget."""
    return [_evaluate(budget, figures) for budget in budgets]


def table(results: Iterable[Result], figures: Mapping[str, Samples]) -> str:
    """Return the results as a table for a terminal."""
    rows = [["", "what", "than", "measured", "against", "ratio", "budget"]]
    for result in results:
        budget = result.budget
        of = f" ({result.worst.split('/')[1]})" if result.worst and "*" in budget.measured else ""
        rows.append(
            [
                "✓" if result.is_met else "✗",
                budget.what + of,
                budget.than,
                _written(figures.get(result.worst or "")),
                _written(figures.get(budget.against)),
                "not measured" if result.ratio is None else f"{result.ratio:.3f}",
                f"{budget.at_most:g}",
            ]
        )
    return aligned(rows, numbers=(3, 4, 5, 6))


def _evaluate(budget: Budget, figures: Mapping[str, Samples]) -> Result:
    against = figures.get(budget.against)
    ratios = {
        name: ratio(samples, against)
        for name, samples in figures.items()
        if against and fnmatchcase(name, budget.measured) and name != budget.against
    }
    worst = max(ratios, key=lambda name: ratios[name], default=None)
    return Result(budget, worst, ratios[worst] if worst else None)


def _written(samples: Samples | None) -> str:
    return f"{figure(samples.median)} {samples.unit}" if samples else "-"
