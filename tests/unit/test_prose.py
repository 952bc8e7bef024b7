"""The sentence check: it names each long sentence with its line and its number of words, and nothing else."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import prose
import pytest

type Check = Callable[[str, str], tuple[int, str]]

LIMIT = " ".join(["word"] * 30)
"""A text with the most words that a sentence may have."""


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Return a function that checks a project with one file, and returns the exit code and the output."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)

    def check(name: str, text: str) -> tuple[int, str]:
        (tmp_path / name).write_text(text)
        return prose.main([str(tmp_path)]), capsys.readouterr().out

    return check


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("page.md", f"Short.\n\n{LIMIT} more.", 3),
        ("page.md", f"Short. One\n{LIMIT}.", 1),
        ("page.md", f"- One item.\n- {LIMIT} more", 2),
        ("page.md", f"Clauses: {LIMIT}; all one sentence.", 1),
        ("page.md", f"A dot in e.g. example.py, 0.5 and `a. b` is no end {LIMIT}.", 1),
        ("module.py", f'"""A module.\n\n{LIMIT} more.\n"""', 3),
        ("module.py", f'LIMIT = 1\n"""{LIMIT} more."""', 2),
        ("module.py", f"# Two lines of one comment\n# {LIMIT}\n", 1),
        ("module.py", f"LIMIT = 1  # {LIMIT} more", 1),
        ("template.yaml", f"Parameters:\n  Size:\n    Description: >-\n      {LIMIT}\n      more", 3),
        ("template.yaml", f"# {LIMIT}\n# more\nResources: {{}}", 1),
        ("lock.in", f"# {LIMIT} more\none  # {LIMIT}\ntwo  # {LIMIT}", 1),
        ("Makefile", f"help:  ## {LIMIT} more\n\t@true", 1),
    ],
)
def test_a_sentence_over_the_limit_is_named(check: Check, name: str, text: str, line: int) -> None:
    """A long sentence is named with its file, line, number of words and beginning."""
    code, output = check(name, text)
    assert code == 1
    assert re.fullmatch(rf"{re.escape(name)}:{line}: (3[1-9]|4[0-9]) words: .*…\n", output)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", f"{LIMIT}. {LIMIT}! {LIMIT}?\n\n{LIMIT}"),
        ("page.md", f"- {LIMIT}\n- {LIMIT}\n1. {LIMIT}"),
        ("page.md", f"# {LIMIT}\n{LIMIT}"),
        ("page.md", f"```sh\n{LIMIT} more\n```\n\n| {LIMIT} | more |"),
        ("page.md", f"`{LIMIT}` and [a link](page.md 'a title') of https://example.com/a?b, {LIMIT[:-30]}"),
        ("page.md", f"`<b>` and <picture title='{LIMIT}'> {LIMIT[:-10]}"),
        ("module.py", f'"""{LIMIT}."""\n\n# {LIMIT}\n\n# {LIMIT}\nLIMIT = "{LIMIT} more"  # {LIMIT}'),
        ("module.py", f'"""A picture.\n\n    {LIMIT}\n    {LIMIT}\n\nThe end.\n"""'),
        ("template.yaml", f"# {LIMIT}\nDescription: {LIMIT}\nText: {LIMIT} more"),
        ("data.json", f'{{"description": "{LIMIT} more"}}'),
    ],
)
def test_a_sentence_within_the_limit_passes(check: Check, name: str, text: str) -> None:
    """Code, tables, markup and a sentence with the most words allowed pass."""
    assert check(name, text) == (0, "")
