"""Show progress: a live line for the current step, and a lasting line for each finished step."""

import json
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from rich.console import Console as Terminal
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

WIDTH = 80
"""Columns that each line fits in, however wide the terminal is."""

_TITLE_WIDTH = 46
_TIME_WIDTH = 7
_INDENT = 11


class Step:
    """A step at work: facts stand beside its title, exchanges below it."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.facts: list[str] = []
        self.exchanges: list[tuple[str, str]] = []
        self._progress = progress

    def request(self, what: str, content: Mapping[str, Any] | None = None) -> None:
        """Show a request, with its JSON on lines of its own."""
        pairs = [
            f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in (content or {}).items()
        ]
        self.exchanges.append(("request", what))
        if pairs:
            self.exchanges += [("", line) for line in _fill([*_followed(pairs, ","), pairs[-1]], "{", "}")]

    def answer(self, what: object, content: Mapping[str, Any] | None = None) -> None:
        """Show an answer, and a few fields of it."""
        self._tell("answer", str(what), content or {})

    def event(self, kind: str, content: Mapping[str, Any]) -> None:
        """Show an event, and a few fields of it."""
        self._tell("event", kind, content)

    def more(self, text: str) -> None:
        """Tell more of the last."""
        self.exchanges += [("", line) for line in textwrap.wrap(text, WIDTH - _INDENT, subsequent_indent="  ")]

    def wait(self, what: str) -> None:
        """Show what the step waits for, until it ends or waits for something else."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], description=f": waiting for {what}")

    def _tell(self, kind: str, what: str, content: Mapping[str, Any]) -> None:
        pairs = (f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in content.items())
        first, *rest = _fill([what, *pairs])
        self.exchanges += [(kind, first), *(("", line) for line in rest)]


class Report(Protocol):
    """Where steps are told."""

    def step(self, title: str) -> AbstractContextManager[Step]:
        """Tell that a step begins and how it ends; what the step was told is said of it."""


class Quiet:
    """Tell nothing."""

    @contextmanager
    def step(self, _title: str) -> Iterator[Step]:
        """Do a step."""
        yield Step()


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
    def step(self, title: str) -> Iterator[Step]:
        """Do a step."""
        began = time.monotonic()
        step = Step()
        try:
            with self._alive(title) as step:
                yield step
        except BaseException:
            self._lines("✗", "red", title, began, step)
            raise
        self._lines("✓", "green", title, began, step)

    @contextmanager
    def _alive(self, title: str) -> Iterator[Step]:
        if not self._out.is_interactive:
            yield Step()
            return
        columns = (SpinnerColumn(), TextColumn("{task.fields[title]}{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._out, transient=True) as progress:
            progress.add_task("", total=None, title=title)
            yield Step(progress)

    def _lines(self, mark: str, colour: str, title: str, began: float, step: Step) -> None:
        seconds = time.monotonic() - began
        took = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
        line = Text.assemble((mark, colour), f" {title:<{_TITLE_WIDTH}} ", (f"{took:>{_TIME_WIDTH}}", "dim"))
        self._out.print(line.append("  " + "  ".join(step.facts)) if step.facts else line)
        for kind, text in step.exchanges:
            self._out.print(Text.assemble((f"  {kind:<9}", "cyan"), text))


def _followed(parts: list[str], mark: str) -> list[str]:
    return [f"{part}{mark}" for part in parts[:-1]]


def _fill(parts: list[str], begin: str = "", end: str = "") -> list[str]:
    """Put parts that must not be broken on as few lines as hold them."""
    lines = [begin]
    for part in parts:
        if len(lines[-1]) > len(begin) and len(lines[-1]) + 1 + len(part) + len(end) > WIDTH - _INDENT:
            lines.append(" " * len(begin))
        lines[-1] += part if len(lines[-1]) <= len(begin) else f" {part}"
    return [*lines[:-1], lines[-1] + end]


QUIET = Quiet()
