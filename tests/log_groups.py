"""Read whole log groups of CloudWatch Logs, or of its emulator."""

from collections.abc import Iterator
from heapq import merge
from typing import Any


def log_events(logs: Any, group: str) -> Iterator[dict[str, Any]]:
    """Yield all events of a log group in the order of their times; `logs` is boto3's client.

    FilterLogEvents is no substitute: the emulator answers with the first 10,000 events, and without a token for more.
    """
    pages = logs.get_paginator("describe_log_streams").paginate(logGroupName=group)
    streams = [_events(logs, group, stream["logStreamName"]) for page in pages for stream in page["logStreams"]]
    yield from merge(*streams, key=lambda event: event["timestamp"])


def _events(logs: Any, group: str, stream: str) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream. A page's token repeats at the end of the stream.

    https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_GetLogEvents.html
    """
    token: dict[str, str] = {}
    while True:
        page = logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True, **token)
        yield from page["events"]
        if page["nextForwardToken"] == token.get("nextToken"):
            return
        token = {"nextToken": page["nextForwardToken"]}
