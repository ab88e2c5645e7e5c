"""The handler without a broker."""

import json
from typing import Any

import pytest
from workers import Message
from workers.testing import check, handle, message

from new_project.handlers import SENSORS

HANDLER = "new_project.handlers:enrich"


def reading(sensor: str, celsius: Any) -> Message:
    return message(json.dumps({"sensor": sensor, "celsius": celsius}), key=sensor)


def test_a_reading_gets_its_place_and_whether_it_is_too_hot_there() -> None:
    handled = handle(HANDLER, [reading("s1", 60), reading("s1", 61), reading("s2", 26)])

    (outputs,) = handled.outputs.values()
    enriched = [json.loads(each.value() or b"") for each in outputs]
    assert [(each["place"], each["too_hot"]) for each in enriched] == [
        ("boiler room", False),
        ("boiler room", True),
        ("cellar", True),
    ]
    assert [each.key() for each in outputs] == [b"s1", b"s1", b"s2"]


@pytest.mark.parametrize(
    "wrong", [message("no JSON"), message("[]"), message("{}"), reading("s9", 20), reading("s1", "hot"), message(None)]
)
def test_anything_else_becomes_a_dead_letter_and_holds_up_nothing(wrong: Message) -> None:
    handled = handle(HANDLER, [wrong, reading("s1", 20)])

    assert [letter.value for letter in handled.dead_letters] == [wrong.value()]
    assert [len(outputs) for outputs in handled.outputs.values()] == [1]
    assert handled.retried == 0


def test_the_handler_has_none_of_the_usual_faults() -> None:
    """One that writes elsewhere too has Effects, by which `check` sees that."""
    messages = [reading(sensor, celsius) for celsius in range(20, 30) for sensor in SENSORS]
    check(HANDLER, messages, output_key=Message.key)
