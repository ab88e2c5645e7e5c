"""`offsets show` and `reset`: where a group goes on, chosen by hand; it says before what that skips and repeats."""

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.conftest import Topics
from workers.testing.processes import Processes, eventually

COUNT = 30
# Messages of some time ago.
OLD = """
import os
from workers import Outgoing

def rows():
    for number in range(int(os.environ["COUNT"])):
        yield Outgoing(str(number), timestamp_ms=int(os.environ["AT_MS"]))
"""


@pytest.fixture
def one(topics: Topics) -> str:
    """A topic with one partition."""
    return topics.create(partitions=1)


def values(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last)]


def send(processes: Processes, topic: str, lines: list[str]) -> None:
    processes.produce(topic, "--input", "-", stdin="".join(f"{line}\n" for line in lines).encode())


def handle(processes: Processes, topic: str, group: str, *arguments: str) -> list[str]:
    """The values that a member of the group handles, up to the end of the topic or as many as `arguments` say."""
    member = processes.consume(topic, group, "--format", "value", *arguments)
    if not arguments:
        eventually(lambda: member.metric("kafka_consumer_lag_messages", topic=topic) == 0, "all is handled")
        member.stop()
    assert member.wait() == 0, member.stderr
    return member.lines


def reset(processes: Processes, group: str, *arguments: str, code: int = 0) -> Any:
    done = processes.run("offsets", "reset", "--group-id", group, "--json", *arguments)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def test_nothing_is_changed_without_yes(processes: Processes, one: str, group: str) -> None:
    send(processes, one, values(0, COUNT))
    assert handle(processes, one, group) == values(0, COUNT)
    shown = processes.run("offsets", "reset", "--group-id", group, "--to", "beginning")
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


def test_a_mistake_is_said_in_one_line_and_changes_nothing(processes: Processes, one: str, group: str) -> None:
    mistakes = {
        "not beginning, end, an offset, or a time": ["--to", "tomorrow"],
        "does not say its time zone": ["--to", "2026-11-24T12:00:00"],
        "has offsets 0 to 30; choose one of these": ["--to", "31"],
        "--partition 7": ["--to", "end", "--partition", "7"],
        "nowhere does not exist": ["--to", "end", "--topic", "nowhere"],
        "group nobody has committed no offset": ["--to", "end", "--group-id", "nobody"],
    }
    send(processes, one, values(0, COUNT))
    handle(processes, one, group)
    for complaint, arguments in mistakes.items():
        said = reset(processes, group, "--yes", "--timeout", "3", *arguments, code=2)
        assert complaint in said.splitlines()[-1]
    assert handle(processes, one, group) == []


def show(processes: Processes, group: str, *arguments: str) -> Any:
    done = processes.run("offsets", "show", "--group-id", group, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_a_group_has_committed_is_shown_with_its_lag_in_messages_and_in_seconds(
    processes: Processes, one: str, group: str
) -> None:
    processes.write("old.py", OLD)

    def write(count: int, at_s: float) -> None:
        env = {"COUNT": str(count), "AT_MS": f"{at_s * 1000:.0f}"}
        processes.produce(one, "--source", "old:rows", env=env)

    written = time.time() - 10
    write(COUNT, written - 10)
    assert handle(processes, one, group) == values(0, COUNT)
    [done] = show(processes, group)["partitions"]
    assert (done["committed"], done["end"], done["lag"], done["lag_seconds"]) == (COUNT, COUNT, 0, 0)

    write(5, written)
    [behind] = show(processes, group, "--topic", one)["partitions"]
    now = time.time()
    assert (behind["beginning"], behind["committed"], behind["furthest"], behind["end"]) == (0, COUNT, COUNT, COUNT + 5)
    assert behind["lag"] == 5
    # It is known to a second or two.
    assert 8 < behind["lag_seconds"] < now - written + 3
    lines = processes.run("offsets", "show", "--group-id", group).stdout.splitlines()
    assert lines[0] == f"group {group}: empty, lag 5"
    assert lines[1].split() == [
        "TOPIC", "PARTITION", "COMMITTED", "FURTHEST", "BEGINNING", "END", "LAG", "SECONDS", "MEMBER",
    ]  # fmt: skip
    assert lines[2].split()[:7] == [one, "0", "30", "30", "0", "35", "5"]
    assert lines[3] == "members: none"


def test_members_and_what_they_have_completed_are_shown(processes: Processes, one: str, group: str) -> None:
    lines = "".join(f"{number % 2}:{number}\n" for number in range(10)).encode()
    processes.produce(one, "--input", "-", "--key-separator", ":", stdin=lines)
    processes.write("failing.py", "def handle(message):\n    if message.key() == b'0':\n        raise ValueError\n")
    options = ["--handler", "failing:handle", "--concurrency", "2", "--on-error", "retry", "--client-id", "m1"]
    member = processes.consume(one, group, *options)

    def completed() -> bool:
        done = processes.run("offsets", "show", "--group-id", group, "--json")
        return done.returncode == 0 and [each["furthest"] for each in json.loads(done.stdout)["partitions"]] == [10]

    eventually(completed, "the messages of the other key are done, and committed so")
    [partition] = show(processes, group)["partitions"]
    assert (partition["committed"], partition["member"]) == (0, "m1")
    assert processes.run("offsets", "show", "--group-id", group).stdout.splitlines()[-1].startswith("members: m1 (")
    assert member.stop() == 0, member.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--group-id", "nobody"], "group nobody is not known to the brokers; check --group-id"),
        (["--topic", "nowhere"], "nowhere does not exist"),
        (["--topic", "OTHER"], "has committed nothing and owns nothing of"),
    ],
)
def test_a_group_or_topic_that_is_not_there_is_said_in_one_line(
    processes: Processes, topics: Topics, one: str, group: str, arguments: list[str], words: str
) -> None:
    send(processes, one, values(0, 1))
    handle(processes, one, group)
    given = [topics.create() if each == "OTHER" else each for each in arguments]
    done = processes.run("offsets", "show", "--group-id", group, "--timeout", "3", *given)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr.splitlines()[-1]
