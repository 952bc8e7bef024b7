"""Mutation tests: apply each planted bug to a copy of the project, and check that the test that its patch names fails.

    python -m tests.mutation [NAME ...]

The text above a patch's diff describes the bug's effect, and names its test in a line `Test: <pytest id>`.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parent.parent.parent
PATCHES = Path(__file__).parent
COPIES = ROOT / ".local" / "mutation"

_TEST = re.compile(r"^Test: (\S+)$", re.MULTILINE)
_TESTS_FAILED = 1  # pytest's exit code if tests failed; the codes of other errors do not count


def main(names: list[str]) -> int:
    """Return 0 if every test fails with its bug, and no test fails without its bug."""
    patches = [path for path in sorted(PATCHES.glob("*.patch")) if not names or path.stem in names]
    width = max(len(path.stem) for path in patches)
    copies: SimpleQueue[Path] = SimpleQueue()
    workers = os.cpu_count() or 1
    for number in range(workers):
        copies.put(_copy(COPIES / str(number)))
    copy = copies.get()
    named = sorted({test[1] for path in patches if (test := _TEST.search(path.read_text()))})
    print(f"{len(named)} tests without bugs", flush=True)
    if _run(copy, *named):
        failing = [test for test in named if _run(copy, test)]
        print("fail without a bug:", *failing, sep="\n", file=sys.stderr)
        return 1
    copies.put(copy)

    def plant(path: Path) -> str:
        copy = copies.get()
        try:
            return _plant(copy, path)
        finally:
            copies.put(copy)

    missed = 0
    with ThreadPoolExecutor(workers) as pool:
        for path, verdict in zip(patches, pool.map(plant, patches), strict=True):
            missed += verdict != "seen"
            print(f"{path.stem:{width}}  {verdict}", flush=True)
    print(f"{len(patches) - missed} of {len(patches)} planted bugs were seen by the test that they name")
    return int(missed > 0)


def _copy(folder: Path) -> Path:
    """Copy the files that git has or would add, and return the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _plant(copy: Path, path: Path) -> str:
    """Apply a patch to a copy, and return `seen` if its test fails, or what is wrong with the patch."""
    test = _TEST.search(path.read_text())
    if test is None:
        return "names no test"
    try:
        _git("apply", str(path), cwd=copy)
    except subprocess.CalledProcessError:
        return "does not apply any more"
    try:
        return "seen" if _run(copy, test[1]) == _TESTS_FAILED else f"NOT SEEN by {test[1]}"
    finally:
        _git("apply", "--reverse", str(path), cwd=copy)


def _run(copy: Path, *tests: str) -> int:
    """Run tests in a copy, and return pytest's exit code."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=copy, capture_output=True, check=False).returncode


def _git(*arguments: str, cwd: Path) -> str:
    # In a subfolder of a repository, git silently skips patches with git's own headers.
    variables = os.environ | {"GIT_CEILING_DIRECTORIES": str(COPIES)}
    done = subprocess.run(["git", *arguments], cwd=cwd, env=variables, capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
