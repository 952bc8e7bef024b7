"""Benchmarks: the built functions, compared with the code that a user would write instead, all on loopback."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".local" / "bench"  # for everything that is built for the benchmarks
RESULTS = Path(__file__).parent / "results"


class BenchError(Exception):
    """An error for the person at the terminal: the message states the problem and the remedy."""
