"""`reset-offsets`: where a group goes on, chosen by hand; it says before what that skips and repeats."""

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.conftest import Topics
from workers.testing.processes import Processes, eventually

COUNT = 30


@pytest.fixture
def one(topics: Topics) -> str:
    """A topic with one partition."""
    return topics.create(partitions=1)


def values(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last)]


def send(processes: Processes, topic: str, lines: list[str]) -> None:
    processes.produce(topic, "--input", "-", stdin="".join(f"{line}\n" for line in lines).encode())


def handle(processes: Processes, topic: str, group: str, *arguments: str) -> list[str]:
    """The values that a member of the group handles until nothing comes any more."""
    member = processes.consume(topic, group, "--format", "value", "--idle-timeout", "2", *arguments)
    assert member.wait() == 0, member.stderr
    return member.lines


def reset(processes: Processes, group: str, *arguments: str, code: int = 0) -> Any:
    done = processes.run("reset-offsets", "--group-id", group, "--json", *arguments)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def test_nothing_is_changed_without_yes(processes: Processes, one: str, group: str) -> None:
    send(processes, one, values(0, COUNT))
    assert handle(processes, one, group) == values(0, COUNT)
    shown = processes.run("reset-offsets", "--group-id", group, "--to", "beginning")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        "TOPIC".ljust(len(one)) + "  PARTITION  COMMITTED  NEW  SKIPPED  REPEATED",
        f"{one}  0          {COUNT}         0    0        {COUNT}",
        f"group {group}: nothing was changed; 0 messages would be skipped, {COUNT} repeated; do it with --yes",
    ]
    assert handle(processes, one, group) == []


@pytest.mark.parametrize(("to", "handled"), [("beginning", (0, COUNT)), ("12", (12, COUNT)), ("end", (0, 0))])
def test_a_group_goes_on_where_it_was_told_to(
    processes: Processes, one: str, group: str, to: str, handled: tuple[int, int]
) -> None:
    send(processes, one, values(0, COUNT))
    handle(processes, one, group, "--max-messages", "20")
    told = reset(processes, group, "--to", to, "--yes")
    first, last = handled
    assert told["changed"] is True
    assert (told["skipped"], told["repeated"]) == (COUNT - 20 if to == "end" else 0, max(0, 20 - first) if last else 0)
    assert handle(processes, one, group) == values(first, last)


def test_a_time_is_that_of_the_first_message_that_is_not_older(processes: Processes, one: str, group: str) -> None:
    send(processes, one, values(0, 10))
    time.sleep(0.05)
    between = datetime.now(UTC).isoformat()
    time.sleep(0.05)
    send(processes, one, values(10, 20))
    assert handle(processes, one, group) == values(0, 20)
    assert reset(processes, group, "--to", between, "--yes")["repeated"] == 10
    assert handle(processes, one, group) == values(10, 20)
    assert reset(processes, group, "--to", datetime.now(UTC).isoformat(), "--yes")["repeated"] == 0


def test_a_group_that_has_committed_nothing_can_be_given_a_beginning(
    processes: Processes, one: str, group: str
) -> None:
    send(processes, one, values(0, COUNT))
    assert reset(processes, group, "--topic", one, "--to", "25", "--yes")["skipped"] == 25
    assert handle(processes, one, group) == values(25, COUNT)


def test_only_the_partitions_that_are_named_are_changed(processes: Processes, topic: str, group: str) -> None:
    processes.produce(topic, "--count", "60")
    handle(processes, topic, group)
    told = reset(processes, group, "--to", "beginning", "--partition", "1", "--yes")
    assert [each["partition"] for each in told["partitions"]] == [1]
    assert len(handle(processes, topic, group)) == told["repeated"] > 0


def test_what_is_done_beyond_the_offset_is_handled_again_after_a_reset(
    processes: Processes, one: str, group: str
) -> None:
    """The list of it travels with the commit, and a reset drops it."""
    lines = [f"{number % 5}:{number}" for number in range(COUNT)]
    processes.produce(
        one, "--input", "-", "--key-separator", ":", stdin="".join(f"{line}\n" for line in lines).encode()
    )
    processes.write("failing.py", "def handle(message):\n    if message.key() == b'0':\n        raise ValueError\n")
    options = ["--handler", "failing:handle", "--concurrency", "4", "--on-error", "retry"]
    member = processes.consume(one, group, *options)

    def furthest() -> bool:
        shown = processes.run("lag", "--group-id", group, "--json")
        return shown.returncode == 0 and json.loads(shown.stdout)["partitions"][0]["distance"] == COUNT

    eventually(furthest, "all but one key are done, and committed so")
    assert "stop them first" in reset(processes, group, "--to", "beginning", code=1)
    assert member.stop() == 0, member.stderr
    assert reset(processes, group, "--to", "beginning", "--yes")["repeated"] == COUNT
    assert sorted(handle(processes, one, group), key=int) == values(0, COUNT)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--to", "tomorrow"], "not beginning, end, an offset, or a time"),
        (["--to", "2026-11-24T12:00:00"], "does not say its time zone"),
        (["--to", "31"], "has offsets 0 to 30; choose one of these"),
        (["--to", "end", "--partition", "7"], "--partition 7"),
        (["--to", "end", "--topic", "nowhere"], "nowhere does not exist"),
        (["--to", "end", "--group-id", "nobody"], "group nobody has committed no offset"),
    ],
)
def test_a_mistake_is_said_in_one_line_and_changes_nothing(
    processes: Processes, one: str, group: str, arguments: list[str], complaint: str
) -> None:
    send(processes, one, values(0, COUNT))
    handle(processes, one, group)
    said = reset(processes, group, "--yes", "--timeout", "5", *arguments, code=2)
    assert complaint in said.splitlines()[-1]
    assert handle(processes, one, group) == []
