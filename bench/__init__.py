"""Benchmarks: the built functions beside what a user would write instead, everything on loopback."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".local" / "bench"  # what is built for the benchmarks
RESULTS = Path(__file__).parent / "results"


class BenchError(Exception):
    """Something that a person has to know; the message says what, and what to do about it."""
