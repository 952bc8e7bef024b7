"""Apply each planted bug to a copy of the project, one by one, and see the test fail that the patch names.

    python -m tests.planted [NAME ...]

The text above a patch's diff says what the bug would cost, and names its test in a line `Test: <pytest id>`.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PATCHES = Path(__file__).parent
COPY = ROOT / ".local" / "planted"

_TEST = re.compile(r"^Test: (\S+)$", re.MULTILINE)
_TESTS_FAILED = 1  # pytest's exit code; any other means that no test came to say anything


def main(names: list[str]) -> int:
    """Return 0 if every bug is seen by its test, and no test fails without its bug."""
    patches = [path for path in sorted(PATCHES.glob("*.patch")) if not names or path.stem in names]
    width = max(len(path.stem) for path in patches)
    _copy()
    missed = 0
    for path in patches:
        verdict = _plant(path)
        missed += verdict != "seen"
        print(f"{path.stem:{width}}  {verdict}", flush=True)
    print(f"{len(patches) - missed} of {len(patches)} planted bugs were seen by the test that they name")
    return int(missed > 0)


def _copy() -> None:
    """Make a copy of what git has or would add."""
    shutil.rmtree(COPY, ignore_errors=True)
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, COPY / name)


def _plant(path: Path) -> str:
    """Return `seen`, or what is wrong with a patch or its test."""
    test = _TEST.search(path.read_text())
    if test is None:
        return "names no test"
    if _run(test[1]):
        return f"fails without the bug too: {test[1]}"
    try:
        _git("apply", str(path), cwd=COPY)
    except subprocess.CalledProcessError:
        return "does not apply any more"
    try:
        return "seen" if _run(test[1]) == _TESTS_FAILED else f"NOT SEEN by {test[1]}"
    finally:
        _git("apply", "--reverse", str(path), cwd=COPY)


def _run(test: str) -> int:
    """Return pytest's exit code for a test of the copy."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    return subprocess.run(command, cwd=COPY, capture_output=True, check=False).returncode


def _git(*arguments: str, cwd: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
