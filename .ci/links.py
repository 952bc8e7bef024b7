"""Find broken links in a project's Markdown: links to files or headings that do not exist in the project."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

_FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.*?) *#*$", re.MULTILINE)
_LINK = re.compile(r"\]\(\s*<?([^\s)>]*)>?(?:\s+\"[^\"]*\")?\s*\)|(?:src|srcset|href)=\"([^\"]*)\"")
_MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[`*]|<[^>]+>")
_PUNCTUATION = re.compile(r"[^\w\- ]")


def slugs(text: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    counts: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        slug = _PUNCTUATION.sub("", _MARKUP.sub(r"\1", heading)).strip().lower().replace(" ", "-")
        found.add(f"{slug}-{counts[slug]}" if counts[slug] else slug)
        counts[slug] += 1
    return found


def links(text: str) -> Iterator[str]:
    """Yield the targets of a page's links and pictures."""
    plain = _CODE.sub("", _FENCE.sub("", _COMMENT.sub("", text)))
    for match in _LINK.finditer(plain):
        yield match[1] or match[2] or ""


def faults(root: Path, files: set[str]) -> Iterator[str]:
    """Yield a line for each broken link in a project's Markdown files."""
    pages = {name: (root / name).read_text() for name in files if name.endswith(".md")}
    anchors = {name: slugs(text) for name, text in pages.items()}
    folders = {str(parent) for name in files for parent in Path(name).parents}
    for page, text in sorted(pages.items()):
        for link in links(text):
            if link.startswith(("https://", "mailto:")):
                continue
            path, _, anchor = link.partition("#")
            target = page if not path else _normal(root, page, unquote(path))
            if not link or (target not in files and target not in folders):
                yield f"{page}: {link or 'an empty link'} leads to no file of the project"
            elif anchor and anchor not in anchors.get(target, ()):
                yield f"{page}: {link} leads to no heading"


def _normal(root: Path, page: str, path: str) -> str:
    base = root.resolve()
    target = (base / Path(page).parent / path).resolve()
    return str(target.relative_to(base)) if target.is_relative_to(base) else path


def main(arguments: list[str]) -> int:
    """Check the project in a folder; return the exit code."""
    root = Path(*arguments)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    found = list(faults(root, {name for name in listed.splitlines() if (root / name).is_file()}))
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
