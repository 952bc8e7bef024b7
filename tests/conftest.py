"""Shared set-up of all tests: the functions' environment, events from files, and a Lambda context."""

import gc
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests.aws_wire import CHECKED

ROOT = Path(__file__).parent.parent
DEPLOYED = sorted([*(ROOT / "functions").glob("*.py"), *(ROOT / "layers/twilio/twilio_connector").rglob("*.py")])
"""The files that Lambda runs."""
SHARING = ("tests/integration/", "tests/template/", "tests/unit/test_layer_build.py")
"""The test files whose tests share what takes seconds to set up."""


def module_name(path: Path) -> str:
    """Return the name by which a deployed file is imported."""
    parts = path.with_suffix("").parts
    start = parts.index("twilio_connector") if "twilio_connector" in parts else len(parts) - 1
    return ".".join(parts[start:]).removesuffix(".__init__")


# The environment variables that Lambda sets for a function; the settings are the template's defaults.
os.environ |= {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "URL_SUFFIX": "amazonaws.com",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "CONNECTION_PREFIX": "twilio/",
    "DEFAULT_CONNECTION": "default",
    "DEFAULT_COUNTRY": "US",
    "TWILIO_API_URL": "",
    "WEBHOOK_BASE_URL": "",
    "EVENT_BUS_NAME": "bus",
    "WEBHOOK_URL": "https://hooks.example.com/webhook",
    "LEDGER_TABLE": "ledger",
    "DELIVERIES_TABLE": "deliveries",
    "BUFFER_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/123456789012/buffer",
    "BUFFER_DEAD_LETTER_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/123456789012/buffer-dead-letters",
    "REPLY_PARAMETER": "",
    "SEND_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/123456789012/send",
    "FAILED_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/123456789012/failed",
    "SEND_THREADS": "10",
    "SEND_LEASE": "60",
    "UNKNOWN_REPORT_AFTER": "15",
    "LOG_LEVEL": "INFO",
    "LOG_SUCCESS": "true",
    "POWERTOOLS_SERVICE_NAME": "twilio-connector",
}

# Without these two, a tenth of the tests' time goes into garbage collection, and into compiling the phone numbers'
# patterns again: there are more of them than Python remembers.
gc.set_threshold(50_000, 20, 100)
re._MAXCACHE = 10_000  # type: ignore[attr-defined]

settings.register_profile("default", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("default")

REQUEST_ID = "52fdfc07-2182-454f-963f-5f0f9a621d72"
"""Lambda's request id, the same for every invocation."""

type LoadEvent = Callable[[str], Any]


class Context:
    """The part of Lambda's context that the functions use."""

    def __init__(self, seconds: float = 30) -> None:
        """Set the remaining time."""
        self.seconds = seconds
        self.aws_request_id = REQUEST_ID

    def get_remaining_time_in_millis(self) -> int:
        """Return the remaining time, which does not decrease."""
        return int(self.seconds * 1000)


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]
    """A scheduler for pytest-xdist that gives all tests of a file with slow shared fixtures to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        """Return the group that goes to one worker: a file whose tests share fixtures, or else the cases of a test."""
        file = nodeid.partition("::")[0]
        return file if file.startswith(SHARING) else nodeid.partition("[")[0]

    def _pending_of(self, workload: dict[str, dict[str, bool]]) -> int:
        """Return the number of a worker's tests that wait, and forget the groups that ended, to count only a few."""
        for name in [name for name, tests in workload.items() if all(tests.values())]:
            del workload[name]
        return int(super()._pending_of(workload))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    """Return our scheduler, which begins with the largest groups."""
    return Scheduler(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave what is loaded out of the garbage collections."""
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send a pytest-xdist worker's counts to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["checked"] = dict(CHECKED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add a worker's counts to those of the main process."""
    CHECKED.update(getattr(node, "workeroutput", {}).get("checked", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many calls to AWS were checked against its service models."""
    if CHECKED:
        counts = ", ".join(f"{count:,} {name}" for name, count in CHECKED.most_common())
        terminalreporter.line(f"{CHECKED.total():,} calls as AWS's service models want them: {counts}")


@pytest.fixture
def event() -> LoadEvent:
    """Return a function that loads an event from `events/`, by its file name without the suffix."""
    return lambda name: json.loads((ROOT / "events" / f"{name}.json").read_text())


@pytest.fixture
def context() -> Context:
    """Return a Lambda context with the template's timeout."""
    return Context()
