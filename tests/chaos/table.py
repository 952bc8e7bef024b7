"""The lines of the printed table."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple


class Row(NamedTuple):
    """A kind of violation, the keys that have it, and the number of keys that were checked."""

    name: str
    keys: list[str]
    of: int

    def __str__(self) -> str:
        """Return the line with the count; if that is zero, add the upper bound of the rate at 95 % confidence."""
        count, chance = len(self.keys), ""
        if self.of and not count:
            chance = f"   < {300 / self.of:.2g} % at 95 %"  # the rule of three
        return f"{'✗' if count else '✓'} {self.name:<36} {count:>7,}   of {self.of:,}{chance}"


def row[T](name: str, among: Mapping[str, T], is_it: Callable[[T], bool]) -> Row:
    """Return a row of all keys whose value satisfies `is_it`."""
    return Row(name, [key for key, value in among.items() if is_it(value)], len(among))


def figure(name: str, value: object, more: str = "") -> str:
    """Return a line with a name, a figure and a remark."""
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return f"{name:<38} {text:>7}   {more}".rstrip()


def counts(names: Iterable[str]) -> str:
    """Return how often each name occurs, the most frequent first."""
    return ", ".join(f"{name} {count:,}" for name, count in Counter(names).most_common())


def killed(crashes: Mapping[str, tuple[int, int]]) -> str:
    """Return a line with the number of killed processes, and the points with fewer kills than planned."""
    all_of = sum(keys for keys, _ in crashes.values())
    missed = "".join(f"; {hit} of {keys} {point}" for point, (keys, hit) in crashes.items() if hit < keys)
    return figure(
        "processes killed", sum(hit for _, hit in crashes.values()), f"of {all_of}, at {len(crashes)} points{missed}"
    )
