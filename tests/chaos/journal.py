"""Append-only files of JSON lines: what was asked, answered, injected, stored and reported, each by its own witness."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

INTENTS = "intents"
ANSWERS = "answers"
FAULTS = "faults"
TRUTH = "truth"
BUS = "bus"
FAILED = "failed"
CONTROL = "control"
MADE = "made"
"""Which message Twilio made for whom, in the relay's words; nobody's key is a stranger's."""
KNOWN = "known"
"""What the connector says of each key in the end."""
RESOLVED = "resolved"
TIMEOUTS = "timeouts"
HOOKS = "webhooks"
HOOK_ANSWERS = "webhook_answers"
FORGED = "forged"
"""Other readings of a webhook's signed text that somebody posted after it, and how they were answered."""
LEFT_ALONE = "left_alone"
"""What the connector knew of a key after a callback without DynamoDB's memory, and after one with it."""
LOGS = "logs"
"""The lines of the functions' logs."""
QUEUES = "queues"
"""How many records of each queue were visible, every other second."""

NAMES = (
    INTENTS, ANSWERS, FAULTS, TRUTH, BUS, FAILED, CONTROL, MADE, KNOWN, RESOLVED, TIMEOUTS, HOOKS, HOOK_ANSWERS,
    FORGED, LEFT_ALONE, LOGS, QUEUES,
)  # fmt: skip


class Journal:
    """The files of one run."""

    def __init__(self, folder: Path) -> None:
        """Write to a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = threading.Lock()
        self._files = {name: (folder / f"{name}.jsonl").open("a", encoding="utf-8") for name in NAMES}

    def write(self, name: str, **line: Any) -> None:
        """Add a line, with the time."""
        text = json.dumps({"at": round(time.time(), 3), **line})
        with self._lock:
            self._files[name].write(f"{text}\n")
            self._files[name].flush()

    def state(self, **facts: Any) -> None:
        """Write what the run is, as a whole."""
        (self.folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n")

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def read(folders: Sequence[Path], name: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of one file, of one run after the other."""
    for folder in folders:
        with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
