"""The inputs of a table of costs: billed milliseconds and AWS requests per message, direct and by queue."""

from collections.abc import Mapping

from bench import RESULTS, BenchError, report
from bench.samples import Samples
from bench.table import aligned, figure

# The requests of a send to each service, per message, counted in the code. Batches have 10 records, the default.
# With a text of 80 characters, the claim's item has 0.8 KB and takes 1 unit. The sent message's has 1.3 KB and takes 2.
# Each write takes 1 for each of the two indexes. The second write is a transaction with the SID's item, of 0.2 KB.
# The transaction doubles the table's units: 2 x (2 + 1).
REQUESTS = {
    "direct": {"Lambda requests": 1.0, "API Gateway requests": 1.0},
    "direct with key": {"Lambda requests": 1.0, "API Gateway requests": 1.0, "DynamoDB write units": 11.0},
    "by queue": {
        "Lambda requests": 0.1,
        "SQS requests": 1.2,  # sent alone; received and deleted ten at a time
        "DynamoDB write units": 11.0,
        "EventBridge events": 1.0,
    },
}


def inputs(memory: int) -> str:
    """Return the inputs at a memory size, from the last sweep."""
    file = RESULTS / "sweep.json"
    if not file.exists():
        raise BenchError("There is no sweep yet: 'python -m bench sweep' makes one.")
    figures = report.read(file)
    rows = [["per message", "billed ms", "GB-s", *(names := _names())]]
    for way, requests in REQUESTS.items():
        billed = _figure(figures, memory, way)
        cells = [figure(requests[name]) if name in requests else "" for name in names]
        rows.append([way, figure(billed), f"{billed / 1000 * memory / 1024:.6f}", *cells])
    secrets = "Secrets Manager: one GetSecretValue per environment and connection every 300 s."
    return f"{memory} MB\n\n{aligned(rows, numbers=tuple(range(1, len(rows[0]))))}\n\n{secrets}"


def _names() -> list[str]:
    return list(dict.fromkeys(name for requests in REQUESTS.values() for name in requests))


def _figure(figures: Mapping[str, Samples], memory: int, way: str) -> float:
    try:
        return figures[f"sweep/{memory} MB/{way}"].median
    except KeyError:
        raise BenchError(f"The last sweep has no {memory} MB: 'python -m bench sweep' measures it.") from None
