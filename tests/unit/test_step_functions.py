"""The Step Functions example matches the connector, as far as the two can be compared without running the example."""

import json
import re
from itertools import chain
from typing import Any

import pytest
import yaml
from twilio_connector import errors

from tests.conftest import ROOT

FOLDER = ROOT / "examples" / "step-functions"
DEFINITION = json.loads((FOLDER / "send-sms.asl.json").read_text())
TASK = DEFINITION["States"]["SendSms"]
ERRORS: dict[str, type[errors.ConnectorError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.ConnectorError) and kind is not errors.ConnectorError
}
# Raised only by a request for which the key was free, so no earlier request with this key has sent the message.
PROOF = {
    "IdempotencyConflictError",
    "RecipientOptedOutError",
    "SenderQueueFullError",
    "TwilioAuthenticationError",
    "TwilioNotFoundError",
    "TwilioRateLimitError",
    "TwilioRejectedError",
    "TwilioUnavailableError",
}
# Raised before the key is looked up, so they prove nothing about earlier requests.
REFUSED_FIRST = {"InvalidInputError", "ConnectionNotFoundError", "ConnectionInvalidError"}


class Template(yaml.SafeLoader):
    """A YAML loader that reads CloudFormation's functions, which are YAML tags."""


Template.add_multi_constructor("!", lambda _, name, node: {name: node.value})


def named(field: str, end: str | None = None) -> list[str]:
    """Return the error names in the task's Retry or Catch; `end` selects the clauses of Catch that lead to a state."""
    clauses = [clause for clause in TASK[field] if end in {None, clause.get("Next")}]
    return list(chain.from_iterable(clause["ErrorEquals"] for clause in clauses))


def test_retries_what_is_retryable() -> None:
    """The task retries each retryable class and no other, and names each once."""
    assert sorted(name for name, kind in ERRORS.items() if kind.retryable) == sorted(ERRORS.keys() & named("Retry"))
    assert len(set(named("Retry"))) == len(named("Retry"))


def test_catches_every_class() -> None:
    """The task catches each class that send_sms raises, named once. Its last clause catches all other errors."""
    raised = ERRORS.keys() - {"KeyNotFoundError"}

    assert sorted(raised) == sorted(name for name in named("Catch") if name in ERRORS)
    assert ["States.ALL"] == TASK["Catch"][-1]["ErrorEquals"]


def test_names_nothing_else() -> None:
    """All other error names in the task are those of Lambda and Step Functions."""
    others = set(named("Retry") + named("Catch")) - ERRORS.keys()

    assert [] == [name for name in others if not name.startswith(("Lambda.", "States."))]


def test_not_sent_is_proven() -> None:
    """Only an error that proves that the key's message was not sent leads directly to the end of the execution."""
    assert PROOF == {*named("Catch", "NotSent"), *named("Catch", "RecipientOptedOut")}


def test_refused_first_is_no_proof_later() -> None:
    """An error before the key is looked up counts as not sent only if there was no earlier attempt."""
    certain = {
        name for clause in TASK["Catch"] if clause["Assign"].get("certainlyNot") for name in clause["ErrorEquals"]
    }

    assert REFUSED_FIRST | {"States.QueryEvaluationError"} == certain
    assert "$asked = 0 and $states.context.State.RetryCount = 0" in json.dumps(TASK["Catch"])


@pytest.mark.parametrize("retry", TASK["Retry"], ids=lambda retry: retry["ErrorEquals"][0])
def test_retries_patiently(retry: dict[str, Any]) -> None:
    """Retries have growing intervals, jitter and a limit. After a full queue they are minutes apart."""
    assert {"ErrorEquals", "IntervalSeconds", "BackoffRate", "MaxDelaySeconds", "MaxAttempts", "JitterStrategy"} == (
        retry.keys()
    )
    assert ("SenderQueueFullError" in retry["ErrorEquals"]) == (retry["IntervalSeconds"] >= 60)


def test_asks_as_long_as_the_readme_says() -> None:
    """The example's README names the waits of the definition."""
    choices = DEFINITION["States"]["WasItSent"]["Choices"]
    limit = re.search(r"\$asked < (\d+)", choices[1]["Condition"])
    waits = [2**asked for asked in range(int(limit[1]) if limit else 0)]
    *first, last = map(str, waits)

    assert "{% 60 * $power(2, $asked) %}" == DEFINITION["States"]["WaitForOutcome"]["Seconds"]
    assert f"{', '.join(first)} and {last} minutes" in (FOLDER / "README.md").read_text()


def test_template() -> None:
    """The state machine's role may invoke one function and write logs, and the log has no execution data."""
    resources = yaml.load((FOLDER / "template.yaml").read_text(), Template)["Resources"]  # noqa: S506 a safe loader
    machine = resources["StateMachine"]["Properties"]
    placeholders = set(re.findall(r"\$\{(\w+)\}", (FOLDER / "send-sms.asl.json").read_text()))
    invoke, deliver = machine["Policies"][0]["Statement"]

    assert placeholders == machine["DefinitionSubstitutions"].keys()
    assert ("lambda:InvokeFunction", {"Ref": "SendSmsFunctionArn"}) == (invoke["Action"], invoke["Resource"])
    assert [] == [action for action in deliver["Action"] if not action.startswith("logs:")]
    assert ("ERROR", False) == (machine["Logging"]["Level"], machine["Logging"]["IncludeExecutionData"])
