"""The documentation for tests: the README and the docs, with their sections and their marked fenced blocks.

A mark is a comment before a block, which is not displayed to readers:

    <!-- run -->                commands that tests run with the caller's policy only
    <!-- run: deployer -->      commands that tests run with the rights of the stack's deployer
    <!-- parse: WHY -->         commands that tests only parse
    <!-- model: WHY -->         commands of the AWS CLI that tests check against the services' models
    <!-- answer -->             JSON with the fields that the commands before it print (they may print more)
    <!-- answer: exact -->      JSON that the commands before it print
    <!-- save: NAME -->         JSON that the reader saves in a file of that name
    <!-- file: PATH -->         JSON that is also in a file of the project
    <!-- published: PATH -->    JSON of the event that the webhook publishes for the request in a file
    <!-- drawing -->            text that a test generates from a table
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in (ROOT, ROOT / "docs", ROOT / "docs/operations")
    for path in ([ROOT / "README.md"] if folder == ROOT else sorted(folder.glob("*.md")))
}
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)

_MARKED = re.compile(r"^<!-- (\w+)(?:: (.+?))? -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block and its mark; `line` is the line of its page on which it starts."""

    page: str
    line: int
    mark: str
    argument: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


BLOCKS = [
    Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2] or "", match[3], match[4])
    for page, text in PAGES.items()
    for match in _MARKED.finditer(text)
]


def marked(*marks: str) -> list[Block]:
    """Return all blocks that have one of these marks."""
    return [block for block in BLOCKS if block.mark in marks]


def section(page: str, title: str) -> str:
    """Return the text under a heading of a page in docs, up to the next heading of the same or a higher level."""
    heading = re.search(rf"^(#+) {re.escape(title)}\n(.*)", PAGES[f"docs/{page}.md"], re.MULTILINE | re.DOTALL)
    assert heading, f"docs/{page}.md has no section {title}"
    return re.split(rf"^#{{1,{len(heading[1])}}} ", heading[2], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> dict[str, list[str]]:
    """Return the other cells of a table's rows, by each name in backticks in the first cell."""
    table = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {
        name: [cell.strip() for cell in cells] for first, *cells in table for name in re.findall(r"`([^`]+)`", first)
    }
