"""The benchmarks' own arithmetic: samples, turns, budgets and tables."""

import base64
from urllib.parse import parse_qsl

import pytest
from twilio_connector.webhooks import signature

from bench import budgets, events, report, table
from bench.account import AUTH_TOKEN
from bench.budgets import Budget
from bench.samples import Figures, Samples, in_turns, ratio


def ms(*values: float) -> Samples:
    """Return samples in milliseconds."""
    return Samples(values, "ms")


def test_median() -> None:
    """One disturbed sample does not move the median."""
    samples = ms(3, 1, 900)

    assert (3, 1, 900) == (samples.median, samples.low, samples.high)


def test_ratio() -> None:
    """A ratio is the median of the ratios of all turns."""
    assert 0.25 == ratio(ms(1, 2, 9), ms(8, 8, 1))


def test_a_machine_that_slows_down_changes_no_ratio() -> None:
    """A machine that slows down changes no ratio, because each turn is compared with itself."""
    assert 1.2 == pytest.approx(ratio(ms(120, 240, 360), ms(100, 200, 300)))
    assert 1.2 == pytest.approx(ratio(ms(120, 360, 500), ms(100, 300, 100)))


def test_samples_of_other_turns_are_compared_by_their_medians() -> None:
    """Samples with different numbers of turns are compared by their medians; sizes, for example, are measured once."""
    assert 0.5 == ratio(ms(1, 2, 3), ms(4))


def test_turns() -> None:
    """Every candidate has its first turn before any has its second; the second round runs in reverse order."""
    order: list[str] = []

    def turn(name: str) -> int:
        order.append(name)
        return len(order)

    results = in_turns({"a": lambda: turn("a"), "b": lambda: turn("b")}, 2)

    assert ["a", "b", "b", "a"] == order
    assert {"a": [1, 4], "b": [2, 3]} == results


@pytest.mark.parametrize(
    ("measured", "kept"),
    [(ms(50), True), (ms(49), True), (ms(51), False)],
    ids=["just", "below", "above"],
)
def test_budget(measured: Samples, kept: bool) -> None:  # noqa: FBT001 the expectation of a case
    """A budget is met if the ratio is at most its limit."""
    budget = Budget("what", "than", "group/ours/time", "group/theirs/time", 0.5)

    [result] = budgets.evaluate([budget], {"group/ours/time": measured, "group/theirs/time": ms(100)})

    assert kept == result.is_met


def test_worst_counts() -> None:
    """If a budget covers several figures, the slowest must meet it; the figure it is compared with does not count."""
    budget = Budget("what", "than", "functions/*/init", "functions/floor/init", 2.0)
    figures: Figures = {
        "functions/a/init": ms(15),
        "functions/b/init": ms(25),
        "functions/b/first": ms(99),
        "functions/floor/init": ms(10),
    }

    [result] = budgets.evaluate([budget], figures)

    assert ("functions/b/init", 2.5, False) == (result.worst, result.ratio, result.is_met)


@pytest.mark.parametrize("missing", ["group/ours/time", "group/theirs/time"])
def test_not_measured_is_not_kept(missing: str) -> None:
    """A budget is not met if one of its figures was not measured."""
    budget = Budget("what", "than", "group/ours/time", "group/theirs/time", 0.5)
    figures = {"group/ours/time": ms(1), "group/theirs/time": ms(100)}
    del figures[missing]

    [result] = budgets.evaluate([budget], figures)

    assert not result.is_met
    assert "not measured" in budgets.table([result], figures)


def test_budget_table() -> None:
    """The table shows which budget failed, by how much, and for which function."""
    figures: Figures = {"functions/slow/init": ms(25), "functions/floor/init": ms(10)}
    results = budgets.evaluate([Budget("every", "floor", "functions/*/init", "functions/floor/init", 2.0)], figures)

    line = budgets.table(results, figures).splitlines()[-1]

    assert ["✗", "every", "(slow)", "floor", "25.0", "ms", "10.0", "ms", "2.500", "2"] == line.split()


def test_budgets_file() -> None:
    """The budgets file contains all budgets with these limits, and each of them compares two figures."""
    found = [budget.at_most for budget in budgets.load()]

    assert [0.16, 0.45, 2.0, 0.25, 0.6, 1.3, 0.75, 3.5, 0.5, 0.05, 1.2, 0.5, 0.7] == found


def test_aligned() -> None:
    """Text is aligned left and numbers right, and no line has trailing spaces."""
    rows = [["name", "ms", ""], ["a", "1.5", "x"], ["longer", "10.25", ""]]

    assert ["name       ms", "──────  ─────  ─", "a         1.5  x", "longer  10.25"] == table.aligned(
        rows, numbers=[1]
    ).splitlines()


@pytest.mark.parametrize(
    ("value", "written"),
    [(12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123"), (0, "0.000")],
)
def test_figure(value: float, written: str) -> None:
    """A number is written with its significant digits."""
    assert written == table.figure(value)


def test_group_table() -> None:
    """A group's table compares each figure with the group's base."""
    figures: Figures = {"cold/send_sms/init": ms(30, 20, 40), "cold/floor/init": ms(10)}

    lines = report.tables(figures).splitlines()

    assert ["send_sms", "init", "30.0", "20.0", "40.0", "ms", "3", "3.00"] == lines[2].split()


def test_results_are_read_as_written(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that are read from a file equal the figures that were saved."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    figures: Figures = {"cold/send_sms/init": ms(1, 2)}

    assert figures == report.read(report.save("cold", figures))


def test_webhooks_are_signed() -> None:
    """A form event of the benchmarks has Twilio's signature."""
    event = events.webhook_form(7)
    body = base64.b64decode(event["body"]).decode()
    fields = {name: [value] for name, value in parse_qsl(body, keep_blank_values=True)}
    url = f"https://{event['requestContext']['domainName']}/webhook"

    text = signature.signed_text(url, fields)
    assert signature.matches(event["headers"]["x-twilio-signature"], text, signature.Key(AUTH_TOKEN))


def test_events_differ() -> None:
    """No two events are equal, so that no function can use a cached result."""
    for make in events.SHAPES.values():
        assert make(1) != make(2)


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        ({"sid": "SM1"}, True),
        ({"statusCode": 201}, True),
        ({"batchItemFailures": []}, True),
        ({"statusCode": 500}, False),
        ({"errorType": "TwilioUnavailableError"}, False),
        ({"batchItemFailures": [{"itemIdentifier": "1"}]}, False),
        (None, False),
    ],
    ids=str,
)
def test_errors_are_not_measured(answer: object, good: bool) -> None:  # noqa: FBT001 the expectation of a case
    """An answer that reports an error is recognised, so that it is not measured."""
    assert good == (events.fault(answer) is None)
