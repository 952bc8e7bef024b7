"""Demonstrate the stack step by step, as an IAM user who has only the rights of examples/caller-policy.json."""

import base64
import hashlib
import hmac
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import requests

from local import LocalError, loopback
from local.aws import Identity, call_api, client
from local.console import Console, Step
from local.seed import API_KEY_SECRET, API_KEY_SID, call_twilio
from local.stack import Stack

PHONE = "+15005550006"  # fictional, as are all numbers here

_LONG = re.compile(r"\b([A-Z]{2}[0-9a-f]{3}|[0-9a-f]{4})[0-9a-f-]{25,28}([0-9a-f]{4})\b")
_QUEUE = "demo-events"
_EVENT_SECONDS = 20


class Demo:
    """The steps of the demo; a step raises an error if the stack does not behave as the step states."""

    def __init__(self, stack: Stack, console: Console) -> None:
        self._stack = stack
        self._console = console
        self._caller = Identity(**stack["caller"])
        self._lambda = client("lambda", stack["aws_endpoint_url"], self._caller)
        self._events = Events(stack)
        self._twilio = stack["twilio"]

    def run(self) -> None:
        """Run all steps."""
        sid = self._send_by_api()
        self._send_once()
        self._send_by_lambda()
        self._send_by_queue()
        self._get(sid)
        self._list(sid)
        self._raw_request()
        self._receive()
        self._status(sid)
        self._forge()
        self._leave_unsigned()
        self._misspell()

    def _send_by_api(self) -> str:
        with self._console.step("Send an SMS through the API") as step:
            answer = self._api(step, "POST", "/messages", {"to": PHONE, "message": "Hello from the API."})
            message = _expect(answer, 201)
            sid: str = message["sid"]
            step.answer("201", _of(message, "sid", "status", "num_segments"))
            _check(self._at_twilio(sid)["body"] == "Hello from the API.", "Twilio has another text")
            step.wait("the status callback")
            event = self._events.wait_for("Message Status Changed", sid, "queued")
            step.event(event["detail-type"], _of(event["detail"]["message"], "sid", "status", "terminal"))
        return sid

    def _send_once(self) -> None:
        with self._console.step("Ask twice with one idempotency key") as step:
            key = f"parcel-{uuid.uuid4().hex[:8]}"
            sms = {"to": PHONE, "message": "Your parcel is here."}
            step.request(f"POST /messages  Idempotency-Key: {key}", sms)
            first = _expect(self._api(None, "POST", "/messages", sms | {"idempotency_key": key}), 201)
            step.answer("201", _of(first, "sid", "status"))
            second = _expect(self._api(None, "POST", "/messages", sms | {"idempotency_key": key}), 201)
            step.request("the same again")
            step.answer("201", _of(second, "sid", "status"))
            _check(first["sid"] == second["sid"], "another message was sent")
            step.facts.append("sent once")

    def _send_by_lambda(self) -> None:
        with self._console.step("Invoke Lambda, with another connection") as step:
            connection = self._stack["connections"]["auth_token"]
            sms = {"to": PHONE, "message": "Hello from Lambda.", "connection": connection}
            step.request("SendSmsFunction", sms)
            message = self._invoke("SendSms", sms)
            step.answer("Twilio's message", _of(message, "sid", "status"))
            _check(self._at_twilio(message["sid"])["body"] == "Hello from Lambda.", "Twilio has another text")

    def _send_by_queue(self) -> None:
        with self._console.step("Put a message on the send queue") as step:
            sms = {"to": PHONE, "message": "Hello from SQS."}
            step.request("SendQueue", sms)
            url = self._stack["outputs"]["SendQueueUrl"]
            queue = client("sqs", self._stack["aws_endpoint_url"], self._caller)
            key = queue.send_message(QueueUrl=url, MessageBody=json.dumps(sms))["MessageId"]
            step.wait("Message Sent")
            detail = self._events.wait_for_send("Message Sent", key)["detail"]
            step.event("Message Sent", _of(detail, "caller", "idempotency_key") | _of(detail["message"], "sid"))

    def _get(self, sid: str) -> None:
        with self._console.step("Get the first message") as step:
            message = _expect(self._api(step, "GET", f"/messages/{sid}"), 200)
            _check(message["sid"] == sid, "another message came back")
            step.answer("200", _of(message, "sid", "status", "direction"))

    def _list(self, sid: str) -> None:
        with self._console.step("List what went to that number") as step:
            result = _expect(self._api(step, "GET", f"/messages?{urlencode({'limit': 50, 'to': PHONE})}"), 200)
            messages = result["messages"]
            _check(sid in [message["sid"] for message in messages], "the message is not listed")
            step.answer("200", {"messages": f"[{len(messages)} of them]", "next_page_token": result["next_page_token"]})

    def _raw_request(self) -> None:
        with self._console.step("Make any other request to Twilio") as step:
            url = "/Accounts/$TWILIO_ACCOUNT_SID/IncomingPhoneNumbers.json"
            result = _expect(self._api(step, "POST", "/raw-request", {"method": "GET", "url": url}), 200)
            _check(result["status_code"] == requests.codes.ok, "Twilio refused it")
            numbers = [number["phone_number"] for number in result["data"]["incoming_phone_numbers"]]
            _check(numbers == [self._twilio["number"]], f"the account has the numbers {numbers}")
            step.answer("200", _of(result, "status_code", "attempts") | {"phone_number": numbers[0]})

    def _receive(self) -> None:
        with self._console.step("Receive an SMS, as an event on EventBridge") as step:
            form = {"From": PHONE, "To": self._twilio["number"], "Body": "Hello yourself."}
            step.request("a phone writes to the number", form)
            message = call_twilio("POST", f"{self._twilio['url']}/_twilio/simulate/inbound-message", form)
            step.wait("the event")
            event = self._events.wait_for("Message Received", message["sid"], "received")
            _check(event["detail"]["message"]["body"] == "Hello yourself.", "the event has another text")
            step.event(event["detail-type"], _of(event["detail"]["message"], "sid", "from", "body"))

    def _status(self, sid: str) -> None:
        with self._console.step("Learn that the first one was delivered") as step:
            form = {"MessageSid": sid, "Status": "delivered"}
            call_twilio("POST", f"{self._twilio['url']}/_twilio/simulate/message-status", form)
            step.wait("the event")
            event = self._events.wait_for("Message Status Changed", sid, "delivered")
            step.event(event["detail-type"], _of(event["detail"]["message"], "sid", "status", "terminal"))

    def _forge(self) -> None:
        with self._console.step("Refuse a webhook that Twilio did not sign") as step:
            sid = f"SM{'0' * 32}"
            form = {"AccountSid": self._twilio["account_sid"], "MessageSid": sid, "From": PHONE, "To": PHONE}
            form |= {"Body": "Forged.", "NumMedia": "0"}
            step.request("POST /webhook", {"From": PHONE, "Body": "Forged."})
            answer = _post_webhook(self._stack["webhook_url"], form, "not the token")
            _expect(answer, 403)
            step.answer("403")
            genuine = _post_webhook(self._stack["webhook_url"], form, self._twilio["auth_token"])
            _check(genuine.ok, "the same webhook, signed by Twilio, was refused too")

    def _leave_unsigned(self) -> None:
        with self._console.step("Refuse an API call that nobody signed") as step:
            step.request("GET /messages")
            answer = call_api("GET", f"{self._stack['actions_api_url']}/messages")
            step.answer("403", _expect(answer, 403))

    def _misspell(self) -> None:
        with self._console.step("Refuse a bad input before Twilio is asked") as step:
            before = self._requests_left()
            answer = self._api(step, "POST", "/messages", {"to": "(415) 555-01", "mesage": "To nobody."})
            asked = before - 1 - self._requests_left()
            problem = _expect(answer, 400)
            _check(problem["title"] == "InvalidInputError", f"it is {problem['title']}")
            _check(asked == 0, f"Twilio got {asked} requests")
            step.answer(f"400 {problem['title']}")
            for fault in problem["errors"]:
                step.more(f"{fault['field']}: {fault['message']}")

    def _api(
        self, step: Step | None, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> requests.Response:
        if step:
            step.request(f"{method} {_shortened(path)}", _shortened(body) if body else None)
        url = self._stack["actions_api_url"] + path
        return call_api(method, url, self._caller, body=json.dumps(body) if body else None)

    def _invoke(self, function: str, payload: Mapping[str, Any]) -> Any:
        arn = self._stack["outputs"][f"{function}FunctionArn"]
        answer = self._lambda.invoke(FunctionName=arn, Payload=json.dumps(payload))
        result = json.load(answer["Payload"])
        _check("FunctionError" not in answer, f"it failed: {result}")
        return result

    def _messages(self) -> str:
        return f"{self._twilio['url']}/2010-04-01/Accounts/{self._twilio['account_sid']}/Messages"

    def _at_twilio(self, sid: str) -> Any:
        return call_twilio("GET", f"{self._messages()}/{sid}.json")

    def _requests_left(self) -> int:
        """Return how many more requests with the API key the emulator accepts; this request also counts."""
        answer = loopback.request("GET", self._twilio["url"], auth=(API_KEY_SID, API_KEY_SECRET))
        return int(answer.headers["X-RateLimit-Remaining"])


class Events:
    """A queue that receives the events on the stack's bus, as a consumer's queue would."""

    def __init__(self, stack: Stack) -> None:
        self._sqs = client("sqs", stack["aws_endpoint_url"])
        self._url = self._sqs.create_queue(QueueName=_QUEUE)["QueueUrl"]
        attributes = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])["Attributes"]
        events = client("events", stack["aws_endpoint_url"])
        bus = stack["outputs"]["EventBusName"]
        pattern = json.dumps({"source": ["twilio", "twilio-connector"]})
        rule = events.put_rule(Name=_QUEUE, EventBusName=bus, EventPattern=pattern)["RuleArn"]
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": "events.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": attributes["QueueArn"],
            "Condition": {"ArnEquals": {"aws:SourceArn": rule}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._sqs.set_queue_attributes(QueueUrl=self._url, Attributes={"Policy": policy})
        events.put_targets(Rule=_QUEUE, EventBusName=bus, Targets=[{"Id": _QUEUE, "Arn": attributes["QueueArn"]}])

    def wait_for(self, kind: str, sid: str, status: str) -> Any:
        """Return the event of a message, and discard all events before it."""

        def wanted(event: Any) -> bool:
            message = event["detail"].get("message", {})
            return (kind, sid, status) == (event["detail-type"], message.get("sid"), message.get("status"))

        return self._wait(f"{kind} of {sid}", wanted)

    def wait_for_send(self, kind: str, key: str) -> Any:
        """Return the event with the outcome of an idempotency key, and discard all events before it."""

        def wanted(event: Any) -> bool:
            return (kind, key) == (event["detail-type"], event["detail"].get("idempotency_key"))

        return self._wait(f"{kind} for the key {key}", wanted)

    def _wait(self, what: str, wanted: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + _EVENT_SECONDS
        while time.monotonic() < deadline:
            answer = self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
            for received in answer.get("Messages", []):
                self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=received["ReceiptHandle"])
                event = json.loads(received["Body"])
                if wanted(event):
                    return event
        raise LocalError(f"No event '{what}' arrived within {_EVENT_SECONDS} s.")


def _post_webhook(url: str, form: Mapping[str, str], token: str) -> requests.Response:
    """Send a signed webhook as Twilio does (https://www.twilio.com/docs/usage/security#validating-requests)."""
    signed = url + "".join(name + form[name] for name in sorted(form))
    signature = base64.b64encode(hmac.digest(token.encode(), signed.encode(), hashlib.sha1)).decode()
    return loopback.request("POST", url, data=form, headers={"X-Twilio-Signature": signature})


def _of(answer: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return some fields of an answer, shortened for display."""
    return {name: _shortened(answer[name]) for name in names}


def _shortened(value: Any) -> Any:
    """Return a value with shortened SIDs and ids, so that it fits on a line."""
    return json.loads(_LONG.sub(r"\1…\2", json.dumps(value)))


def _expect(answer: requests.Response, status: int) -> Any:
    came = answer.status_code
    _check(came == status, f"HTTP {came} came back instead of {status}: {answer.text}")
    return answer.json() if answer.headers.get("Content-Type", "").endswith("json") else None


def _check(holds: object, otherwise: str) -> None:
    if not holds:
        raise LocalError(f"The stack does not do what this step says: {otherwise}.")
