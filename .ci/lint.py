"""Run every linter, two at a time, and print one line for each."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from os import environ
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEMPLATE = "template.yaml"
EXAMPLES = tuple(f"examples/{name}/template.yaml" for name in ("inbound", "reply", "step-functions"))
TRANSFORMED = ".local/template.json"
PARTITIONS = (
    "us-east-1",
    "cn-north-1",
    "us-gov-west-1",
    "eusc-de-east-1",
    "us-iso-east-1",
    "us-isob-east-1",
    "eu-isoe-west-1",
    "us-isof-south-1",
)
"""A region of each partition of AWS."""
SERVERLESS_RULES = ("--append-rules", "cfn_lint_serverless.rules", "--")
LOCKS = (
    "requirements/*.txt",
    "layers/*/requirements.txt",
    "bench/baselines/*/requirements.txt",
    "local/*/package-lock.json",
)
UNSPELT = re.compile(r"^tests/data/|^requirements/.*\.txt$|/requirements\.txt$|package-lock\.json$|\.svg$")

_HASHLESS = re.compile(r"^[a-zA-Z0-9][^\\\n]*$", re.MULTILINE)
_SOURCE = re.compile(r"(--(extra-)?index-url|--find-links|--trusted-host|\"resolved\":|@ \w+:).*")
_HOME = re.compile(r"/(home|Users|root)/[\w.-]+")


class FailedError(Exception):
    """The exception for a linter that found something; the message is its output."""


def run(*command: str) -> str:
    """Run a program in the project's root; return its output, or raise FailedError with it."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FailedError(done.stdout + done.stderr or f"{command[0]} ended with {done.returncode}")
    return done.stdout


def checkov(*paths: str) -> None:
    """Check templates without YAML merge keys, which checkov cannot read."""
    # If checkov cannot read a file, it only prints an error and returns 0.
    if "Parsing errors" in (said := run(".venv-lint/bin/checkov", *(f"--file={path}" for path in paths))):
        raise FailedError(said)


def lint_transformed() -> None:
    """Check the template that CloudFormation gets after the SAM transform."""
    (ROOT / TRANSFORMED).parent.mkdir(exist_ok=True)
    (ROOT / TRANSFORMED).write_text(run(".venv-sam/bin/python", ".ci/transform.py", TEMPLATE))
    checkov(TRANSFORMED)
    run(".venv-lint/bin/cfn-lint", "--regions", *PARTITIONS, "--", TRANSFORMED)


def lint_locks() -> None:
    """Refuse lock files that name an index or leave out a hash."""
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for pattern in LOCKS
        for path in sorted(ROOT.glob(pattern))
        for rule in ((_SOURCE, _HASHLESS) if path.suffix == ".txt" else (_SOURCE,))
        for match in rule.finditer(path.read_text())
    ]
    if found:
        raise FailedError("\n".join(found))


def lint_spelling() -> None:
    """Refuse misspelt words in files that git tracks or would add, except data and generated files."""
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    run(".venv-lint/bin/codespell", *(name for name in names if (ROOT / name).is_file() and not UNSPELT.search(name)))


def lint_paths() -> None:
    """Refuse paths of home directories in files that git tracks or would add."""
    found = []
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        path = ROOT / name
        text = path.read_text(errors="replace") if path.is_file() else ""
        found += [f"{name}: {match[0]}" for match in _HOME.finditer(text)]
    if found:
        raise FailedError("\n".join(found))


# The slowest linters come first, so that both threads end at about the same time.
LINTERS: dict[str, Callable[[], object]] = {
    "transformed template": lint_transformed,
    "checkov": partial(checkov, *EXAMPLES),
    "sam validate": partial(run, ".venv-sam/bin/sam", "validate", "--lint"),
    "cfn-lint": partial(run, ".venv-lint/bin/cfn-lint", *SERVERLESS_RULES, TEMPLATE, *EXAMPLES),
    "mypy": partial(run, ".venv/bin/python", "-m", "mypy"),
    "ruff check": partial(run, ".venv/bin/ruff", "check", "--quiet", "--output-format", "concise"),
    "ruff format": partial(run, ".venv/bin/ruff", "format", "--check", "--output-format", "concise"),
    "pictures": partial(run, ".venv/bin/python", ".ci/pictures.py", "--check"),
    "zizmor": partial(run, ".venv-lint/bin/zizmor", "--offline", "--quiet", ".github"),
    "links": partial(run, ".venv/bin/python", ".ci/links.py"),
    "sentences": partial(run, ".venv/bin/python", ".ci/prose.py"),
    "spelling": lint_spelling,
    "lock files": lint_locks,
    "paths": lint_paths,
}


def attempt(name: str) -> str:
    """Run one linter, print its line, and return its findings."""
    start = time.monotonic()
    try:
        LINTERS[name]()
        found = ""
    except FailedError as error:
        found = str(error)
    print(f"{'✗' if found else '✓'} {name:<30}{time.monotonic() - start:5.1f} s", flush=True)
    return found


def main() -> int:
    """Run all linters; return 0 only if none found anything."""
    # The SAM CLI needs a region, although it calls no service there.
    environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(LINTERS, pool.map(attempt, LINTERS), strict=True))
    for name, found in results.items():
        if found:
            print(f"\n{name}\n{found.strip()}", file=sys.stderr)
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
