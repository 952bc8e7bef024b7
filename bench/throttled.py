"""Be Lambda's runtime client, with a processor's quota from the first invocation on.

The initialisation has whole processors, as at Lambda, whatever the memory. The quota is the control group's whose
file of processes `BENCH_QUOTA` names.
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
