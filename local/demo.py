"""Show what the stack does, step by step, by an IAM user who has no more than the README's caller policy."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import requests

from local import LocalError, loopback
from local.aws import Identity, call_api, client
from local.console import Console
from local.furnish import API_KEY_SECRET, API_KEY_SID, call_twilio
from local.stack import Stack

PHONE = "+15005550006"  # fictional, as all numbers here

_QUEUE = "demo-events"
_EVENT_SECONDS = 20


class Demo:
    """The steps; each raises where the stack does not do what the step says."""

    def __init__(self, stack: Stack, console: Console) -> None:
        self._stack = stack
        self._console = console
        self._caller = Identity(**stack["caller"])
        self._lambda = client("lambda", stack["aws_endpoint_url"], self._caller)
        self._events = Events(stack)
        self._twilio = stack["twilio"]

    def run(self) -> None:
        """Show all steps."""
        sid = self._send_by_api()
        self._send_by_lambda()
        self._get(sid)
        self._list(sid)
        self._raw_request(sid)
        self._receive()
        self._status(sid)
        self._forge()
        self._leave_unsigned()
        self._misspell()

    def _send_by_api(self) -> str:
        with self._step("Send an SMS through the API, with an API key") as facts:
            answer = self._api("POST", "/messages", {"to": PHONE, "message": "Hello from the Actions API."})
            _expect(answer, 201)
            message = answer.json()
            sid: str = message["sid"]
            _check(self._at_twilio(sid)["body"] == "Hello from the Actions API.", "Twilio has another text")
            self._events.wait_for("Message Status Changed", sid, "queued")
            facts += [_short(sid), message["status"], "HTTP 201"]
        return sid

    def _send_by_lambda(self) -> None:
        with self._step("Send one by invoking Lambda, with an auth token") as facts:
            connection = self._stack["connections"]["auth_token"]
            message = self._invoke("SendSms", {"to": PHONE, "message": "Hello from Lambda.", "connection": connection})
            _check(self._at_twilio(message["sid"])["body"] == "Hello from Lambda.", "Twilio has another text")
            facts += [_short(message["sid"]), message["status"], f"connection {connection}"]

    def _get(self, sid: str) -> None:
        with self._step("Get the first one") as facts:
            answer = self._api("GET", f"/messages/{sid}")
            _expect(answer, 200)
            _check(answer.json()["sid"] == sid, "another message came back")
            facts += [_short(sid), answer.json()["status"], "HTTP 200"]

    def _list(self, sid: str) -> None:
        with self._step("List what went to that number") as facts:
            answer = self._api("GET", f"/messages?{urlencode({'to': PHONE, 'limit': 50})}")
            _expect(answer, 200)
            messages = answer.json()["messages"]
            _check(sid in [message["sid"] for message in messages], "the message is not listed")
            facts += [f"{len(messages)} messages", "HTTP 200"]

    def _raw_request(self, sid: str) -> None:
        with self._step("Make a raw request for its media") as facts:
            url = f"/Accounts/$TWILIO_ACCOUNT_SID/Messages/{sid}/Media.json"
            answer = self._api("POST", "/raw-request", {"method": "GET", "url": url})
            _expect(answer, 200)
            result = answer.json()
            _check(result["status_code"] == requests.codes.ok, "Twilio refused it")
            facts += [f"{len(result['data']['media_list'])} media", f"{result['attempts']} attempt"]

    def _receive(self) -> None:
        with self._step("Receive an SMS, as an event on EventBridge") as facts:
            form = {"From": PHONE, "To": self._twilio["number"], "Body": "Hello yourself."}
            message = call_twilio("POST", f"{self._twilio['url']}/_twilio/simulate/inbound-message", form)
            event = self._events.wait_for("Message Received", message["sid"], "received")
            _check(event["detail"]["message"]["body"] == "Hello yourself.", "the event has another text")
            facts += [_short(message["sid"]), event["detail-type"], f"source {event['source']}"]

    def _status(self, sid: str) -> None:
        with self._step("Learn likewise that the first was delivered") as facts:
            form = {"MessageSid": sid, "Status": "delivered"}
            call_twilio("POST", f"{self._twilio['url']}/_twilio/simulate/message-status", form)
            event = self._events.wait_for("Message Status Changed", sid, "delivered")
            facts += [_short(sid), event["detail-type"], event["detail"]["message"]["status"]]

    def _forge(self) -> None:
        with self._step("Refuse a webhook that Twilio did not sign") as facts:
            sid = f"SM{'0' * 32}"
            form = {"AccountSid": self._twilio["account_sid"], "MessageSid": sid, "From": PHONE, "To": PHONE}
            form |= {"Body": "Forged.", "NumMedia": "0"}
            answer = _post_webhook(self._stack["webhook_url"], form, "not the token")
            _expect(answer, 403)
            genuine = _post_webhook(self._stack["webhook_url"], form, self._twilio["auth_token"])
            _check(genuine.ok, "the same webhook, signed by Twilio, was refused too")
            facts += ["HTTP 403"]

    def _leave_unsigned(self) -> None:
        with self._step("Refuse an API call that nobody signed") as facts:
            answer = call_api("GET", f"{self._stack['actions_api_url']}/messages")
            _expect(answer, 403)
            facts += ["HTTP 403", answer.json()["message"]]

    def _misspell(self) -> None:
        with self._step("Refuse a bad number before Twilio is asked") as facts:
            before = self._requests_left()
            answer = self._api("POST", "/messages", {"to": "(415) 55", "message": "To nobody."})
            asked = before - 1 - self._requests_left()
            _expect(answer, 400)
            problem = answer.json()
            _check(problem["title"] == "InvalidInputError", f"it is {problem['title']}")
            _check(asked == 0, f"Twilio got {asked} requests")
            facts += ["HTTP 400", problem["title"], f"{asked} requests to Twilio"]

    def _step(self, title: str) -> Any:
        return self._console.step(title)

    def _api(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> requests.Response:
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
        """Ask how many more requests with the API key the emulator would take; to ask is one of them."""
        answer = loopback.request("GET", self._twilio["url"], auth=(API_KEY_SID, API_KEY_SECRET))
        return int(answer.headers["X-RateLimit-Remaining"])


class Events:
    """A queue of what arrives on the stack's bus, as a consumer would have it."""

    def __init__(self, stack: Stack) -> None:
        self._sqs = client("sqs", stack["aws_endpoint_url"])
        self._url = self._sqs.create_queue(QueueName=_QUEUE)["QueueUrl"]
        attributes = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])["Attributes"]
        events = client("events", stack["aws_endpoint_url"])
        bus = stack["outputs"]["EventBusName"]
        pattern = json.dumps({"source": ["twilio"]})
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
        """Return the event of a message; others before it are dropped."""
        wanted = (kind, sid, status)
        deadline = time.monotonic() + _EVENT_SECONDS
        while time.monotonic() < deadline:
            answer = self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
            for received in answer.get("Messages", []):
                self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=received["ReceiptHandle"])
                event = json.loads(received["Body"])
                message = event["detail"].get("message", {})
                if wanted == (event["detail-type"], message.get("sid"), message.get("status")):
                    return event
        raise LocalError(f"No event '{kind}' of {sid} arrived within {_EVENT_SECONDS} s.")


def _post_webhook(url: str, form: Mapping[str, str], token: str) -> requests.Response:
    """Do what Twilio does (https://www.twilio.com/docs/usage/security#validating-requests)."""
    signed = url + "".join(name + form[name] for name in sorted(form))
    signature = base64.b64encode(hmac.digest(token.encode(), signed.encode(), hashlib.sha1)).decode()
    return loopback.request("POST", url, data=form, headers={"X-Twilio-Signature": signature})


def _short(sid: str) -> str:
    return f"{sid[:6]}…{sid[-4:]}"


def _expect(answer: requests.Response, status: int) -> None:
    came = answer.status_code
    _check(came == status, f"HTTP {came} came back instead of {status}: {answer.text}")


def _check(holds: object, otherwise: str) -> None:
    if not holds:
        raise LocalError(f"The stack does not do what this step says: {otherwise}.")
