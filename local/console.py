"""Show progress: a live line for the current step, and a permanent line for each finished step."""

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
"""The maximum columns of a line, even if the terminal is wider."""

_TITLE_WIDTH = 46
_TIME_WIDTH = 7
_INDENT = 11


class Step:
    """A step in progress; its facts are printed beside its title, its exchanges below it."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.facts: list[str] = []
        self.exchanges: list[tuple[str, str]] = []
        self._progress = progress

    def request(self, what: str, content: Mapping[str, Any] | None = None) -> None:
        """Show a request, with its JSON on separate lines."""
        pairs = [
            f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in (content or {}).items()
        ]
        self.exchanges.append(("request", what))
        if pairs:
            self.exchanges += [("", line) for line in _fill([*_followed(pairs, ","), pairs[-1]], "{", "}")]

    def answer(self, what: object, content: Mapping[str, Any] | None = None) -> None:
        """Show an answer with some of its fields."""
        self._tell("answer", str(what), content or {})

    def event(self, kind: str, content: Mapping[str, Any]) -> None:
        """Show an event with some of its fields."""
        self._tell("event", kind, content)

    def more(self, text: str) -> None:
        """Add text below the last exchange."""
        self.exchanges += [("", line) for line in textwrap.wrap(text, WIDTH - _INDENT, subsequent_indent="  ")]

    def wait(self, what: str) -> None:
        """Show on the live line that the step waits for something, until the step ends or waits again."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], description=f": waiting for {what}")

    def _tell(self, kind: str, what: str, content: Mapping[str, Any]) -> None:
        pairs = (f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in content.items())
        first, *rest = _fill([what, *pairs])
        self.exchanges += [(kind, first), *(("", line) for line in rest)]


class Report(Protocol):
    """The interface of an output for steps."""

    def step(self, title: str) -> AbstractContextManager[Step]:
        """Report the start and the end of a step, with the step's facts and exchanges."""


class Quiet:
    """An output that prints nothing."""

    @contextmanager
    def step(self, _title: str) -> Iterator[Step]:
        """Run a step without any output."""
        yield Step()


class Console:
    """An output for a terminal, or for a file without a live line."""

    def __init__(self) -> None:
        self._out = Terminal(highlight=False, soft_wrap=True)
        self._err = Terminal(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str = "") -> None:
        """Print a line."""
        self._out.print(text, markup=False)

    def fail(self, text: str) -> None:
        """Print an error."""
        self._err.print(text, markup=False, style="red")

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run a step with a live line, and then print the lines of the finished step."""
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
    """Return lines that contain the parts; no part is broken across lines."""
    lines = [begin]
    for part in parts:
        if len(lines[-1]) > len(begin) and len(lines[-1]) + 1 + len(part) + len(end) > WIDTH - _INDENT:
            lines.append(" " * len(begin))
        lines[-1] += part if len(lines[-1]) <= len(begin) else f" {part}"
    return [*lines[:-1], lines[-1] + end]


QUIET = Quiet()
