"""AWS's JSON protocol on loopback: the few operations that the functions call, with the answers a test wants."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class AwsWire:
    """Secrets and a bus behind `AWS_ENDPOINT_URL`; `calls` records each operation with its parameters.

    `failures[operation]` is a list of `(status, code)` that the next calls get instead of an answer.
    """

    def __init__(self) -> None:
        """Listen on a free port."""
        self.secrets: dict[str, str | bytes] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.failures: dict[str, list[tuple[int, str]]] = {}
        self.refused_entries = 0
        """How many entries of the next PutEvents the bus refuses."""
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a small answer does not wait for the next one

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                operation = self.headers["X-Amz-Target"].rpartition(".")[2]
                status, answer = wire.answer(operation, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        """Serve."""
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()

    def count(self, operation: str) -> int:
        """Return how often an operation was called."""
        return sum(called == operation for called, _ in self.calls)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """All entries that were put on the bus."""
        return [entry for called, body in self.calls if called == "PutEvents" for entry in body["Entries"]]

    def answer(self, operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return status and body of the answer to a call."""
        self.calls.append((operation, body))
        if self.failures.get(operation):
            status, code = self.failures[operation].pop(0)
            return status, {"__type": code, "message": code}
        if operation == "GetSecretValue":
            return self._secret(body["SecretId"])
        refused, self.refused_entries = self.refused_entries, 0
        results = [{"EventId": str(index)} for index in range(len(body["Entries"]) - refused)]
        results += [{"ErrorCode": "InternalFailure", "ErrorMessage": "injected"}] * refused
        return 200, {"FailedEntryCount": refused, "Entries": results}

    def _secret(self, name: str) -> tuple[int, dict[str, Any]]:
        secret = self.secrets.get(name)
        if secret is None:
            return 400, {"__type": "ResourceNotFoundException", "message": "no such secret"}
        if isinstance(secret, bytes):
            return 200, {"Name": name, "SecretBinary": secret.decode("latin-1")}
        return 200, {"Name": name, "SecretString": secret}
