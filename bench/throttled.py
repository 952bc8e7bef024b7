"""Run Lambda's runtime client, with a processor quota from the first invocation on.

The initialisation has whole processors at every memory size, as in Lambda. A control group sets the quota;
`BENCH_QUOTA` names the group's file of processes.
"""

import os
import runpy
from pathlib import Path
from typing import Any

from awslambdaric.lambda_runtime_client import LambdaRuntimeClient

_wait = LambdaRuntimeClient.wait_next_invocation


def _throttle_and_wait(client: Any) -> Any:
    Path(os.environ["BENCH_QUOTA"]).write_text(str(os.getpid()))
    LambdaRuntimeClient.wait_next_invocation = _wait
    return _wait(client)


if __name__ == "__main__":
    LambdaRuntimeClient.wait_next_invocation = _throttle_and_wait
    runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)
