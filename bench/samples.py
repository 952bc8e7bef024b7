"""Samples of one figure, their statistics, and how candidates take turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Self


@dataclass(frozen=True, slots=True)
class Samples:
    """What was measured of one thing, in one unit."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        """The median: a disturbance only makes a measurement longer."""
        return median(self.values)

    @property
    def low(self) -> float:
        """The least."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The most."""
        return max(self.values)

    @classmethod
    def one(cls, value: float, unit: str) -> Self:
        """Make samples of a figure that does not vary."""
        return cls((value,), unit)


Figures = dict[str, Samples]
"""By `group/candidate/figure`."""


def ratio(measured: Samples, against: Samples) -> float:
    """Return how many times as much was measured: the median over the turns, each compared with its own.

    A slower machine affects both samples of a turn. Samples that are not of the same turns
    are compared by their medians.
    """
    if len(measured.values) != len(against.values):
        return measured.median / against.median
    return median(each / other for each, other in zip(measured.values, against.values, strict=True))


def in_turns[T](candidates: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Measure all once, A B C, then C B A, and so on: a disturbance of the machine then affects all alike.

    Each has the same place as often as any other, so that none is always first after what warms or tires the machine.
    """
    results: dict[str, list[T]] = {name: [] for name in candidates}
    for number in range(rounds):
        for name in reversed(list(candidates)) if number % 2 else candidates:
            results[name].append(candidates[name]())
    return results
