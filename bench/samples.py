"""Samples of one figure, what is said of them, and how contestants take turns."""

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
        """The middle, which says most: what disturbs a measurement only makes it longer."""
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
        """Make samples of what is the same however often it is measured."""
        return cls((value,), unit)


Figures = dict[str, Samples]
"""By `group/contestant/figure`."""


def ratio(measured: Samples, against: Samples) -> float:
    """Return how many times as much was measured; of samples taken in turns that is what a busy machine leaves."""
    return measured.median / against.median


def in_turns[T](contestants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Measure all once, A B C, then all again: what disturbs the machine for a while disturbs all alike."""
    results: dict[str, list[T]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            results[name].append(measure())
    return results
