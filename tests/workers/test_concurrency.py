"""Many calls of the handler at once, in threads and in an event loop, against real brokers."""

import json
import time

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.conftest import Topics
from workers.accounting.offset_metadata import decode
from workers.testing.kafka import QUICK
from workers.testing.processes import Process, Processes, eventually

HANDLERS = """
import asyncio
import os
import threading
import time

from workers import Outgoing, Retry, lifespan

NOTES = os.open("{directory}/notes.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
lock = threading.Lock()
running = 0

def note(message, more=""):
    os.write(NOTES, b"%b %d %b\\n" % (message.key() or b"-", message.offset(), more.encode()))

def enter():
    global running
    with lock:
        running += 1
        return running

def leave():
    global running
    with lock:
        running -= 1

def threads(message):
    at_once = enter()
    time.sleep(0.01)
    leave()
    note(message, str(at_once))

async def tasks(message):
    at_once = enter()
    await asyncio.sleep(0.01)
    leave()
    note(message, str(at_once))

async def poisoned(message):
    if message.key() == b"key-0" and not os.path.exists("{directory}/mended"):
        raise Retry("the dependency of this key is away", after_s=0.5)
    await asyncio.sleep(0.001)
    note(message)

async def blocks(message):
    time.sleep(2.5)

async def waits(message):
    await asyncio.sleep(3600)

@lifespan(per_thread=True)
def connections():
    owner = threading.get_ident()
    def handle(message):
        assert threading.get_ident() == owner
        time.sleep(0.01)
        note(message, str(owner))
    yield handle

def rows():
    for number in range(3000):
        yield Outgoing(str(number), key="key-%d" % (number % 50))
"""


@pytest.fixture
def notes(processes: Processes) -> "Notes":
    processes.write("many.py", HANDLERS.format(directory=processes.directory))
    return Notes(processes)


class Notes:
    """Lines that the handlers wrote: key, offset, and one word."""

    def __init__(self, processes: Processes) -> None:
        self._path = processes.directory / "notes.txt"

    def read(self) -> list[tuple[str, int, str]]:
        text = self._path.read_text() if self._path.exists() else ""
        rows = [line.split(" ") for line in text.splitlines()]
        return [(key, int(offset), word) for key, offset, word in rows]


def keyed(processes: Processes, topics: Topics, partitions: int = 1) -> str:
    topic = topics.create(partitions=partitions)
    processes.produce(topic, "--source", "many:rows")
    return topic


def start(processes: Processes, topic: str, group: str, handler: str, *arguments: str) -> Process:
    return processes.consume(topic, group, "--handler", f"many:{handler}", "--concurrency", "20", *arguments)


@pytest.mark.parametrize("handler", ["threads", "tasks"])
def test_many_are_handled_at_once_in_one_partition_and_each_key_in_its_order(
    processes: Processes, topics: Topics, group: str, notes: Notes, handler: str
) -> None:
    topic = keyed(processes, topics)
    consumer = start(processes, topic, group, handler, "--max-messages", "3000")

    assert consumer.wait() == 0, consumer.stderr
    handled = notes.read()
    assert sorted(offset for _, offset, _ in handled) == list(range(3000))
    for key in {key for key, _, _ in handled}:
        offsets = [offset for each, offset, _ in handled if each == key]
        assert offsets == sorted(offsets)
    assert 10 <= max(int(word) for _, _, word in handled) <= 20
    lag = json.loads(processes.run("lag", "--group-id", group, "--json").stdout)
    assert (lag["lag"], lag["partitions"][0]["distance"]) == (0, 0)


def test_each_thread_has_what_a_lifespan_opens_per_thread(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = keyed(processes, topics)
    consumer = start(processes, topic, group, "connections", "--max-messages", "3000")

    assert consumer.wait() == 0, consumer.stderr
    assert len({word for _, _, word in notes.read()}) == 20


def test_a_poisoned_key_blocks_only_itself_and_what_is_done_beyond_it_is_not_repeated_after_a_crash(
    processes: Processes, topics: Topics, group: str, notes: Notes, bootstrap_servers: str
) -> None:
    topic = keyed(processes, topics)
    first = start(processes, topic, group, "poisoned", *QUICK)
    eventually(lambda: len(notes.read()) == 2940, "all keys but one are handled")
    eventually(lambda: first.metric("kafka_consumer_offset_distance", topic=topic) == 2940, "the distance")

    reader = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": group})

    def done_beyond() -> int:
        [place] = reader.committed([TopicPartition(topic, 0)], timeout=10)
        return sum(end - begin for begin, end in decode(place.offset, place.metadata).ahead)

    # Not only the furthest of them.
    eventually(lambda: done_beyond() == 2940, "the brokers have what is done beyond the committed offset")
    reader.close()
    first.kill()
    (processes.directory / "mended").touch()
    second = start(processes, topic, group, "poisoned")
    eventually(lambda: len([key for key, _, _ in notes.read() if key == "key-0"]) == 60, "the key is worked off")

    eventually(lambda: second.metric("kafka_consumer_lag_messages", topic=topic) == 0, "no lag")
    assert second.stop() == 0
    offsets = [offset for _, offset, _ in notes.read()]
    assert set(offsets) == set(range(3000))
    # Up to the last commit nothing is handled again.
    assert len(offsets) - 3000 <= 300


def test_a_handler_that_blocks_its_event_loop_is_named(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = keyed(processes, topics)
    consumer = start(processes, topic, group, "blocks")

    consumer.says("handler blocks has kept its event loop from turning")
    assert "many.py:" in consumer.stderr
    consumer.kill()


def test_a_stop_cancels_calls_that_do_not_end_and_their_messages_are_redelivered(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = keyed(processes, topics)
    consumer = start(processes, topic, group, "waits", "--shutdown-timeout", "2")
    eventually(lambda: consumer.metric("kafka_consumer_in_flight") == 20, "all calls are under way")
    began = time.monotonic()
    consumer.stop()

    # Two seconds for the calls, one to cancel them, and those for closing the client. 25 s is the default.
    assert time.monotonic() - began < 20
    again = start(processes, topic, group, "tasks", "--max-messages", "3000")
    assert again.wait() == 0, again.stderr
    assert len(notes.read()) == 3000
