"""`dead-letters`: which there are, all of one, and sending or discarding some of them, in any order, so that none is
lost and none is sent twice.
"""

import json
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.conftest import Topics
from tests.reading import values
from tests.workers.terminal import Terminal
from tests.workers.test_consume import committed
from workers.deadletters.headers import dead_letter_headers
from workers.testing.processes import Processes


class Letters:
    """A topic and its dead-letter topic, which hold what the test writes into them."""

    def __init__(self, processes: Processes, topics: Topics, bootstrap_servers: str, group: str) -> None:
        self.processes = processes
        self.group = group
        self.source = topics.create(partitions=1)
        self.topic = f"{self.source}.dlq"
        topics.create_named(self.topic, partitions=1)
        self.bootstrap_servers = bootstrap_servers
        self._producer = Producer({"bootstrap.servers": bootstrap_servers})

    def write(self, *errors: Exception, topic: str | None = None) -> None:
        """A dead letter for each error; its value is its number among them, and its key the error's class."""
        for number, error in enumerate(errors):
            message = Message(
                topic=topic or self.source, partition=0, offset=100 + number, headers=[("trace", f"t{number}")]
            )
            self._producer.produce(
                self.topic,
                str(number),
                type(error).__name__,
                partition=0,
                headers=dead_letter_headers(message, "workers", error, 5),
            )
        self._producer.flush()

    def run(self, command: str, *arguments: str, code: int = 0) -> str:
        """Standard output, or for another code than 0 the last line of standard error."""
        options = ["--topic", self.topic, "--timeout", "10"]
        if "--replay-group" not in arguments:
            options += ["--replay-group", self.group]
        done = self.processes.run("dead-letters", command, *options, *arguments)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr.splitlines()[-1]

    def documents(self, command: str, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(command, *arguments, "--format", "json").splitlines()]

    def waiting(self, *arguments: str) -> list[str]:
        return [each["value"] for each in self.documents("list", *arguments)]

    def state(self) -> str:
        """The first character of each one's state."""
        return "".join(each["state"][0] for each in self.documents("list", "--state", "all"))

    @property
    def sent(self) -> list[str]:
        """Values that are in the source topic."""
        return values(self.bootstrap_servers, self.source)


@pytest.fixture
def letters(processes: Processes, topics: Topics, bootstrap_servers: str, group: str) -> Letters:
    return Letters(processes, topics, bootstrap_servers, group)


V, K = ValueError("cannot take this"), KeyError("id")


def test_dead_letters_of_a_worker_are_listed_counted_and_shown(letters: Letters, processes: Processes) -> None:
    processes.write("mine.py", "def handle(message):\n    raise ValueError('cannot take this')\n")
    lines = b"k1:poison\nk2:\xff\x00\n"
    processes.produce(letters.source, "--input", "-", "--key-separator", ":", stdin=lines)
    options = ["--handler", "mine:handle", "--max-attempts", "1", "--max-messages", "2"]
    assert processes.consume(letters.source, letters.group, *options).wait() == 0

    listed = letters.run("list").splitlines()
    assert listed[0].split() == ["LETTER", "SINCE", "SOURCE", "KEY", "ERROR"]
    assert f"{letters.source}[0]@0" in listed[1]
    assert listed[1].endswith("  k1   ValueError: cannot take this")
    assert listed[-1] == f"{letters.topic}: 2 waiting dead letters"
    counted = letters.run("list", "--by", "error").splitlines()
    assert counted[0].split() == ["COUNT", "OLDEST", "NEWEST", "EXAMPLE", "ERROR"]
    assert counted[1].split()[0::5] == ["2", "0:0"]
    assert counted[1].endswith("ValueError")

    shown = letters.run("show", "--letter", "0:0")
    for text in ("state     waiting", "error     ValueError: cannot take this", 'mine.py", line 2', "\n    poison\n"):
        assert text in shown
    assert "00000000  ff 00" in letters.run("show", "--letter", "0:1")
    [document] = letters.documents("show", "--letter", "0:1")
    assert (document["key"], document["value_base64"]) == ("k2", "/wA=")
    assert document["error"]["class"] == "ValueError"
    assert document["source"]["offset"] == 1


FILTERS = [
    (["--error", "KeyError"], ["1", "3"]),
    (["--error", "KeyError", "--error", "ValueError"], ["0", "1", "2", "3"]),
    (["--key", "ValueError"], ["0", "2"]),
    (["--key", "ValueError", "--letter", "0:2", "--letter", "0:3"], ["2"]),
    (["--source-offset", "101", "--source-partition", "0"], ["1"]),
    (["--source-topic", "elsewhere"], []),
    (["--partition", "0", "--since", "2026-01-01T00:00:00Z"], ["0", "1", "2", "3"]),
    (["--until", "2026-01-01T00:00:00Z"], []),
    (["--limit", "3"], ["0", "1", "2"]),
]


def test_filters_choose_dead_letters(letters: Letters, subtests: pytest.Subtests) -> None:
    letters.write(V, K, V, K)
    for arguments, waiting in FILTERS:
        with subtests.test(filters=arguments):
            assert letters.waiting(*arguments) == waiting


def test_some_are_replayed_out_of_order_and_a_later_replay_sends_exactly_the_others(
    letters: Letters, admin: AdminClient
) -> None:
    letters.write(V, K, V, K, V)
    assert letters.run("replay", "--error", "KeyError", "--dry-run").startswith("2 dead letters")
    assert letters.sent == []
    letters.run("replay", "--error", "KeyError")
    assert letters.sent == ["1", "3"]
    assert letters.state() == "wrwrw"
    letters.run("replay", "--letter", "0:4")
    assert letters.waiting() == ["0", "2"]
    assert letters.run("replay") == f"2 dead letters replayed from {letters.topic}\n"
    assert letters.sent == ["1", "3", "4", "0", "2"]
    assert letters.run("replay") == f"0 dead letters replayed from {letters.topic}\n"
    # Five dead letters, and a record for each of the two replays out of order.
    assert committed(admin, letters.group) == {0: 7}


def test_a_discard_is_recorded_and_holds_for_every_group_until_it_is_taken_back(letters: Letters) -> None:
    letters.write(V, K, V, K)
    would = letters.run("discard", "--error", "KeyError", "--dry-run")
    assert would == f"2 dead letters of {letters.topic} would be discarded; nothing was changed\n"
    assert letters.state() == "wwww"
    letters.run("discard", "--error", "KeyError", "--reason", "the id is gone")
    assert letters.state() == "wdwd"
    [document] = letters.documents("show", "--letter", "0:3")
    assert document["record"]["reason"] == "the id is gone"
    assert "discarded 20" in letters.run("show", "--letter", "0:3")

    letters.run("replay")
    letters.run("replay", "--replay-group", f"{letters.group}-other")
    assert letters.sent == ["0", "2"] * 2
    assert letters.state() == "rdrd"
    assert "was discarded already" in letters.run("replay", "--letter", "0:3", code=2)
    assert "was discarded already" in letters.run("discard", "--letter", "0:3", code=2)
    letters.run("replay", "--letter", "0:3", "--again")
    assert letters.sent == [*["0", "2"] * 2, "3"]
    assert letters.state() == "rdrr"


def test_what_is_passed_over_is_recorded_as_discarded(letters: Letters) -> None:
    letters.write(V, topic="elsewhere")
    letters.run("replay", "--skip-other-topics")
    [document] = letters.documents("list", "--state", "discarded")
    assert document["record"]["reason"] == "it came from elsewhere, and replay ran with --skip-other-topics"


def test_a_dead_letter_of_another_topic_that_is_chosen_waits_and_the_ones_before_are_sent(letters: Letters) -> None:
    letters.write(V, K)
    letters.write(K, V, topic="elsewhere")
    complaint = letters.run("replay", "--error", "KeyError", code=1)
    assert "came from elsewhere may not be sent there" in complaint
    assert letters.sent == ["1"]
    assert letters.state() == "wrww"


def test_in_the_view_one_is_discarded_with_its_reason_and_another_one_replayed(letters: Letters) -> None:
    letters.write(V, K, V)
    command = ["dead-letters", "browse", "--topic", letters.topic, "--replay-group", letters.group, "--timeout", "10"]
    with Terminal(command, letters.processes.environment()) as terminal:
        terminal.sees("3 waiting dead letters (2 ValueError, 1 KeyError)")
        terminal.press("d", "Discard 1 dead letter")
        terminal.press("the id is gone\r", "2 waiting dead letters (1 KeyError, 1 ValueError)")
        # A command treats it before the view does.
        terminal.press(" ", "1 marked")
        letters.run("discard", "--letter", "0:1")
        terminal.press("r", "Send 1 dead letter")
        terminal.press("\r", "1 waiting dead letter (1 ValueError)")
        terminal.sees("--letter 0:1: it was discarded already")
        terminal.press("r", "Send 1 dead letter")
        terminal.press("\r", "0 waiting dead letters")
        terminal.press("q", "\x1b[?1049l")
        assert terminal.wait() == 0
    # On the screen of before, where it stays.
    left = terminal.shown[terminal.shown.index(b"\x1b[?1049l") :].decode()
    assert f"1 dead letters of {letters.topic} discarded, and recorded there" in left
    assert f"1 dead letters replayed from {letters.topic}" in left
    assert letters.state() == "ddr"
    assert letters.sent == ["2"]
    [document] = letters.documents("show", "--letter", "0:0")
    assert document["record"]["reason"] == "the id is gone"


MISTAKES = [
    (["show"], ["--letter 0:12"]),
    (["show", "--letter", "12"], ["'12' is not PARTITION:OFFSET"]),
    (["show", "--letter", "0:12"], ["--letter 0:12", "has offsets 0 to 2"]),
    (["show", "--letter", "7:0"], ["has no partition 7"]),
    (["show", "--error", "OSError"], ["no dead letter", "`dead-letters list`"]),
    (["show", "--letter", "0:2"], ["--letter 0:2: no dead letter"]),
    (["replay", "--letter", "0:2"], ["--letter 0:2: no dead letter"]),
    (["replay", "--partition", "7"], ["has no partition 7"]),
    (["discard"], ["--letter", "--all"]),
    (["discard", "--all", "--error", "KeyError"], ["--all goes without a filter"]),
    (["browse"], ["needs a terminal", "`dead-letters list` and `dead-letters show`"]),
    (["list", "--since", "yesterday"], ["'yesterday' is not a time"]),
    (["list", "--topic", "nowhere.dlq", "--timeout", "1"], ["nowhere.dlq does not exist"]),
]


def test_a_mistake_gets_one_line_that_says_what_to_do(letters: Letters, subtests: pytest.Subtests) -> None:
    letters.write(V, K)
    # The message at offset 2 is a record.
    letters.run("discard", "--letter", "0:0")
    for arguments, words in MISTAKES:
        with subtests.test(arguments=arguments):
            said = letters.run(*arguments, code=2)
            assert said.startswith(f"kafka-workers dead-letters {arguments[0]}: ")
            for word in words:
                assert word in said


def test_a_topic_of_other_messages_is_no_dead_letter_topic(letters: Letters, subtests: pytest.Subtests) -> None:
    letters.processes.produce(letters.source, "--count", "2")
    for arguments in (["list"], ["show", "--partition", "0"], ["discard", "--all"]):
        with subtests.test(arguments=arguments):
            said = letters.run(*arguments, "--topic", letters.source, code=2)
            assert f"{letters.source}: it is no dead-letter topic" in said
    assert len(letters.sent) == 2


def test_a_committed_offset_that_is_beyond_the_end_is_not_taken_for_a_replay(
    letters: Letters, admin: AdminClient
) -> None:
    """A log that was truncated, for one. Of a topic that is deleted the brokers delete the committed offsets."""
    letters.write(V)
    places = ConsumerGroupTopicPartitions(letters.group, [TopicPartition(letters.topic, 0, 3)])
    admin.alter_consumer_group_offsets([places])[letters.group].result()
    said = letters.run("replay", code=1)
    assert f"has committed offset 3 of {letters.topic}[0], which ends at 1" in said
    assert "offsets reset" in said


def test_brokers_that_are_away_are_waited_for_as_long_as_asked(letters: Letters) -> None:
    said = letters.run("list", "--bootstrap-servers", "127.0.0.1:1", "--timeout", "1", code=1)
    assert "no answer from 127.0.0.1:1 within 1 s; check --bootstrap-servers" in said
