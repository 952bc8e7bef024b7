"""The README as tests read it: its sections, and its fenced blocks with their marks.

A mark stands before a block, where no reader sees it:

    <!-- run -->                commands that run here, by a caller who has no more than the README's policy
    <!-- run: deployer -->      likewise, by whoever deployed the stack
    <!-- parse: WHY -->         commands that are only parsed here
    <!-- answer -->             JSON like what the commands before it print (they may print more)
    <!-- answer: exact -->      JSON that the commands before it print
    <!-- save: NAME -->         JSON that the reader writes to a file of that name
    <!-- file: PATH -->         JSON that is also in a file of the project
    <!-- published: PATH -->    JSON of the event that the webhook makes of the request in a file
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

_MARKED = re.compile(r"^<!-- (\w+)(?:: (.+?))? -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block and its mark; `line` is where it begins."""

    line: int
    mark: str
    argument: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"line {self.line}"


BLOCKS = [
    Block(README.count("\n", 0, match.start()) + 1, match[1], match[2] or "", match[3], match[4])
    for match in _MARKED.finditer(README)
]


def marked(*marks: str) -> list[Block]:
    """Return the blocks that have one of these marks."""
    return [block for block in BLOCKS if block.mark in marks]


def section(title: str) -> str:
    """Return the text under a heading of the second level."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> dict[str, list[str]]:
    """Return a table's cells by the names in the first cell, each of which stands in backticks."""
    table = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {
        name: [cell.strip() for cell in cells] for first, *cells in table for name in re.findall(r"`([^`]+)`", first)
    }
