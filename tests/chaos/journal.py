"""Append-only files of JSON lines, one for each witness: requests, answers, faults, stored messages and reports."""

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
"""The messages that Twilio created, each with its key, as the relay saw them. A stranger's message has no key."""
KNOWN = "known"
"""The connector's final answer about each key."""
RESOLVED = "resolved"
TIMEOUTS = "timeouts"
HOOKS = "webhooks"
HOOK_ANSWERS = "webhook_answers"
FORGED = "forged"
"""Other readings of a webhook's signed text that a forger posted after the webhook, and the answers to them."""
LEFT_ALONE = "left_alone"
"""The state of a key after a callback while the table of signed texts was unavailable, and after the next one."""
LOGS = "logs"
"""The lines of the functions' logs."""
QUEUES = "queues"
"""The number of visible records in each queue, every two seconds."""

NAMES = (
    INTENTS, ANSWERS, FAULTS, TRUTH, BUS, FAILED, CONTROL, MADE, KNOWN, RESOLVED, TIMEOUTS, HOOKS, HOOK_ANSWERS,
    FORGED, LEFT_ALONE, LOGS, QUEUES,
)  # fmt: skip


class Journal:
    """The files of one run."""

    def __init__(self, folder: Path) -> None:
        """Write to a folder, and create it if necessary."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = threading.Lock()
        self._files = {name: (folder / f"{name}.jsonl").open("a", encoding="utf-8") for name in NAMES}

    def write(self, name: str, **line: Any) -> None:
        """Append a line to a file, with the current time."""
        text = json.dumps({"at": round(time.time(), 3), **line})
        with self._lock:
            self._files[name].write(f"{text}\n")
            self._files[name].flush()

    def state(self, **facts: Any) -> None:
        """Write facts about the run as a whole to `run.json`."""
        (self.folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n")

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def read(folders: Sequence[Path], name: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of one file, run by run."""
    for folder in folders:
        with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
