"""Benchmarks: the built functions beside what a user would write instead, everything on loopback."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".local" / "bench"  # what is built for the benchmarks
RESULTS = Path(__file__).parent / "results"


class BenchError(Exception):
    """An error for the person at the terminal: the message says what happened, and what to do."""
