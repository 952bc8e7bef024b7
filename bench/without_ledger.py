"""Run Lambda's runtime client for a send_sms whose keyed sends do not use the ledger.

No caller can do this, because every send through a queue has a key. It shows the cost of the ledger.
"""

import runpy
from importlib import import_module
from typing import Any


def _post(twilio: Any, _: Any, send: Any) -> Any:
    return sending.post_message(twilio, send.form)


if __name__ == "__main__":
    sending: Any = import_module("twilio_connector.messaging.sender")
    sending.send_at_most_once = _post
    runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)
