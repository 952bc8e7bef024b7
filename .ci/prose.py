"""List each sentence over 30 words in a project's Markdown, docstrings, comments, templates and schemas."""

import ast
import inspect
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import yaml

MOST_WORDS = 30
COMMENTED = {".yaml", ".yml", ".toml", ".in", ".cfnlintrc", "Makefile", "bashrc"}
"""Suffixes and names of the files, other than Python, whose comments begin with a number sign."""

Line = tuple[int, str]

_FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_CODE = r"(`+)(?!`).+?(?<!`)\1(?!`)"
_MARKUP = re.compile(rf"{_CODE}|<!--.*?-->|<[^>]+>", re.DOTALL)
_HEADING = re.compile(r"#+\s")
_OWN_PARAGRAPH = re.compile(r"[-*+|#]\s|[0-9]+\. |\|")
_COMMENT = re.compile(r"(?:^|\s)(#+(?: |$))")
# Each of these counts as one word and does not end a sentence: code spans, targets of links, URLs, abbreviations.
_ONE_WORD = re.compile(rf"{_CODE}|\]\([^)]*\)|https?://\S*[\w/]|\b(?:e\.g|i\.e|vs|cf)\.", re.DOTALL)
_SENTENCE_END = re.compile(r"[.?!][*_)\]\"'\u2019\u201d]*(?=\s|$)")
_WORD = re.compile(r"\S*\w\S*")


def paragraphs(lines: Iterable[Line]) -> Iterator[Line]:
    """Yield the paragraphs in lines, without tables. Blank or missing lines, list items and headings end one."""
    first, last, text = 0, 0, ""
    for number, line in [*lines, (0, "")]:
        stripped = line.strip()
        ends = not stripped or number != last + 1 or _OWN_PARAGRAPH.match(stripped) or _HEADING.match(text)
        if text and ends:
            yield first, text
            text = ""
        if stripped and not stripped.startswith("|"):
            first, text = (first, f"{text}\n{stripped}") if text else (number, stripped)
        last = number


def long_sentences(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield each sentence over the limit: the number of lines before it, the number of its words, and its start."""
    masked = _ONE_WORD.sub(lambda match: "x" * len(match[0]), text)
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(masked)), len(masked)]
    for start, end in pairwise(ends):
        words = _WORD.findall(masked, start, end)
        if len(words) > MOST_WORDS:
            sentence = text[start:end]
            before = start + len(sentence) - len(sentence.lstrip())
            yield text.count("\n", 0, before), len(words), " ".join(sentence.split())[:60]


def python(text: str) -> Iterator[Line]:
    """Yield the paragraphs of a module's docstrings, without indented pictures, and of its comments."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines = inspect.cleandoc(node.value.value).split("\n")
            yield from paragraphs((n, "" if line[:4].isspace() else line) for n, line in enumerate(lines, node.lineno))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from comments([(*t.start, t.line) for t in tokens if t.type == tokenize.COMMENT])


def comments(found: Sequence[tuple[int, int, str]]) -> Iterator[Line]:
    """Yield the paragraphs of comments; each comment has the line's number, its start in the line, and the line."""
    texts = [(number, line[:start].strip(), line[start:].strip("# \n")) for number, start, line in found]
    yield from ((number, text) for number, code, text in texts if code)
    yield from paragraphs((number, text) for number, code, text in texts if not code)


def markdown(text: str) -> Iterator[Line]:
    """Yield the paragraphs of a page, without its code and its tables."""
    text = _FENCE.sub(_line_ends, text)
    text = _MARKUP.sub(lambda match: match[0] if match[1] else _line_ends(match), text)
    return paragraphs(enumerate(text.split("\n"), 1))


def _line_ends(match: re.Match[str]) -> str:
    """Return only the line ends of a match, so that the lines after it keep their numbers."""
    return "\n" * match[0].count("\n")


def commented(text: str) -> Iterator[Line]:
    """Yield the paragraphs of the comments that start with a number sign."""
    found = ((number, _COMMENT.search(line), line) for number, line in enumerate(text.split("\n"), 1))
    return comments([(number, match.start(1), line) for number, match, line in found if match])


def descriptions(node: yaml.Node | None) -> Iterator[Line]:
    """Yield the values of keys such as `Description` in a YAML document."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(value, yaml.ScalarNode) and str(key.value).lower().endswith("description"):
                yield value.start_mark.line + 1, value.value
            yield from descriptions(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from descriptions(item)


def texts(path: Path) -> Iterator[Line]:
    """Yield a file's texts for human readers, each with the number of its first line."""
    kind = path.suffix or path.name
    if read := {".py": python, ".md": markdown}.get(kind, commented if kind in COMMENTED else None):
        yield from read(path.read_text())
    if kind == ".yaml" or path.match("docs/schemas/*.json"):
        yield from descriptions(yaml.compose(path.read_text(), yaml.SafeLoader))


def main(arguments: list[str]) -> int:
    """Check the project in a folder; return the exit code."""
    root = Path(*arguments)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [
        f"{name}:{first + lines}: {words} words: {beginning}…"
        for name in names
        if not name.startswith("tests/data/") and (root / name).is_file()
        for first, text in texts(root / name)
        for lines, words, beginning in long_sentences(text)
    ]
    print("\n".join(dict.fromkeys(found)), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
