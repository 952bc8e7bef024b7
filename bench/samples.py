"""Samples of one figure, their statistics, and the order in which candidates are measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Self


@dataclass(frozen=True, slots=True)
class Samples:
    """The measured values of one figure, in one unit."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        """The median, since disturbances make some measurements longer and none shorter."""
        return median(self.values)

    @property
    def low(self) -> float:
        """The lowest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The highest value."""
        return max(self.values)

    @classmethod
    def one(cls, value: float, unit: str) -> Self:
        """Return the only sample of a figure that does not vary."""
        return cls((value,), unit)


Figures = dict[str, Samples]
"""Samples by name, which is `group/candidate/figure`."""


def ratio(measured: Samples, against: Samples) -> float:
    """Return the ratio of two figures: the median of the ratios of each turn.

    A slower machine affects both samples of a turn. Samples with different numbers of turns are compared by their
    medians.
    """
    if len(measured.values) != len(against.values):
        return measured.median / against.median
    return median(each / other for each, other in zip(measured.values, against.values, strict=True))


def in_turns[T](candidates: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Measure all candidates in the order A B C, then C B A, and so on, so that disturbances affect all of them alike.

    The order changes so that a candidate does not always follow the one that warms or slows down the machine.
    """
    results: dict[str, list[T]] = {name: [] for name in candidates}
    for number in range(rounds):
        for name in reversed(list(candidates)) if number % 2 else candidates:
            results[name].append(candidates[name]())
    return results
