"""The soak of the canary could fail: its alerts look at the series that it makes, and it knows a false alarm."""

import re

import pytest

from bench.canary_soak import LOST, NAMESPACE, POD, Outcome, canary_rules
from tests.programs import program

ACCOUNT = {"sent": 9, "received": 9, "failed": 0, "lost": 0, "duplicates": 0}


def test_the_alerts_of_the_chart_look_at_the_canary_of_the_soak() -> None:
    program("helm")
    (group,) = canary_rules()["groups"]
    alerts = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    assert LOST in alerts
    assert {"KafkaCanaryUnavailable", "KafkaCanaryLatencyHigh", "KafkaCanaryAbsent"} < alerts.keys()
    for expression in alerts.values():
        selectors = re.findall(r'namespace="([^"]*)", pod=~"([^"]*)"', expression)
        assert selectors
        assert all(namespace == NAMESPACE and re.fullmatch(pod, POD) for namespace, pod in selectors)


@pytest.mark.parametrize(
    ("account", "fired", "unavailable_s", "quiet", "killing"),
    [
        ({}, {}, 0, [], []),
        ({"lost": 1}, {LOST: 60}, 0, ["lost", LOST], ["lost", LOST]),
        ({"duplicates": 2}, {}, 0, ["duplicates"], ["duplicates"]),
        ({"failed": 3}, {"KafkaCanaryUnavailable": 15}, 40, ["failed", "unavailable", "KafkaCanaryUnavailable"], []),
    ],
)
def test_it_knows_a_false_alarm_from_one_that_a_broker_has_caused(
    account: dict[str, int], fired: dict[str, float], unavailable_s: float, quiet: list[str], killing: list[str]
) -> None:
    outcome = Outcome({**ACCOUNT, **account}, fired, {}, unavailable_s)
    assert sorted(outcome.false_alarms(kill_brokers=False)) == sorted(quiet)
    assert sorted(outcome.false_alarms(kill_brokers=True)) == sorted(killing)
