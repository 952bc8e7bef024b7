"""The link check: it names broken links, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme import ROOT

PAGE = """\
# A page

## Two words, & more

## Two words, & more

```sh
# [no link](in-a-block.md)
```
"""


def check(folder: Path, text: str) -> list[str]:
    """Return the check's output for a project with a page and a README with this text."""
    (folder / "docs").mkdir()
    (folder / "docs" / "page.md").write_text(PAGE)
    (folder / "README.md").write_text(text)
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    command = [sys.executable, f"{ROOT}/.ci/links.py", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr
    assert done.returncode == bool(done.stdout)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "link",
    [
        "docs/page.md",
        "docs/",
        "docs/page.md#two-words--more",
        "docs/page.md#two-words--more-1",
        "#here",
        "https://example.com/nowhere",
    ],
)
def test_link_leads_somewhere(tmp_path: Path, link: str) -> None:
    """Links to a file, a folder and each of two equal headings pass. Links to other sites are not requested."""
    assert [] == check(tmp_path, f"# Here\n\n[a link]({link})\n")


@pytest.mark.parametrize(
    "link",
    ["docs/Page.md", "docs/page.md#three-words", "docs/page.md#two-words--more-2", "#nowhere", "../README.md", ""],
)
def test_link_leads_nowhere(tmp_path: Path, link: str) -> None:
    """The check names broken links: a wrong case, a missing heading, a file outside the project, no target."""
    assert 1 == len(check(tmp_path, f"# Here\n\n[a link]({link})\n"))


def test_picture_leads_nowhere(tmp_path: Path) -> None:
    """The check names missing pictures in HTML, because they are links, too."""
    text = '# Here\n\n<source srcset="docs/dark.svg"><img src="docs/light.svg">\n'

    assert 2 == len(check(tmp_path, text))


def test_code_has_no_links(tmp_path: Path) -> None:
    """The check ignores text that looks like a link in code or in a comment."""
    assert [] == check(tmp_path, "# Here\n\n`[a](b.md)`\n\n```sh\n[a](b.md)\n```\n\n<!-- [a](b.md) -->\n")
