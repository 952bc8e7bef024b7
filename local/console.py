"""Tell a person what goes on: a live line for the step at work, a lasting one for each that is done."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console as Terminal
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

_TITLE_WIDTH = 50
_TIME_WIDTH = 7


class Report(Protocol):
    """Where steps are told."""

    def step(self, title: str) -> AbstractContextManager[list[str]]:
        """Tell that a step begins and how it ends; what is put in the list is said of it."""


class Quiet:
    """Tell nothing."""

    @contextmanager
    def step(self, _title: str) -> Iterator[list[str]]:
        """Do a step."""
        yield []


class Console:
    """Tell steps to a terminal, or plainly to a file."""

    def __init__(self) -> None:
        self._out = Terminal(highlight=False, soft_wrap=True)
        self._err = Terminal(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str = "") -> None:
        """Print a line."""
        self._out.print(text, markup=False)

    def fail(self, text: str) -> None:
        """Print what went wrong."""
        self._err.print(text, markup=False, style="red")

    @contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Do a step."""
        began = time.monotonic()
        facts: list[str] = []
        try:
            with self._alive(title):
                yield facts
        except BaseException:
            self._line("✗", "red", title, began, facts)
            raise
        self._line("✓", "green", title, began, facts)

    @contextmanager
    def _alive(self, title: str) -> Iterator[None]:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        if not self._out.is_terminal:
            yield
            return
        with Progress(*columns, console=self._out, transient=True) as progress:
            progress.add_task(title, total=None)
            yield

    def _line(self, mark: str, colour: str, title: str, began: float, facts: list[str]) -> None:
        seconds = time.monotonic() - began
        took = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
        line = Text.assemble((mark, colour), f" {title:<{_TITLE_WIDTH}} ", (f"{took:>{_TIME_WIDTH}}", "dim"))
        self._out.print(line.append("  " + "  ".join(facts)))


QUIET = Quiet()
