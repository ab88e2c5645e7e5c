"""The kit for users' tests on real brokers, with the handler of its tutorial, which test_release.py follows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
# Their fixtures are those of the tutorial's test_shop.py.
TESTS = ("test_forgetful.py", "test_fixtures.py")

# A handler that returns before its message is written. Of 100 messages it writes 80.
FORGETFUL = """
import os
import sqlite3

from workers import lifespan


@lifespan
def store():
    with sqlite3.connect(os.environ["DATABASE"], timeout=30) as database:
        kept = []

        def handle(message):
            kept.append((message.value().decode(),))
            if len(kept) == 40:
                database.executemany("insert into orders(id) values (?)", kept)
                database.commit()
                kept.clear()

        yield handle
"""
FINDS = """
from test_shop import database, orders


def test_a_handler_that_keeps_messages_loses_them(kafka, topic, worker, database):
    kafka.produce(topic, map(str, range(100)))
    first = worker.consume("forgetful:store")
    first.until_handled(100)
    first.until_done()
    first.kill()
    second = worker.consume("forgetful:store")
    second.until_done()
    second.stop()
    assert len(orders(database)) == 100
"""

# User code that prints JSON as accounts are, and takes its time.
CHATTY = """
import json
import sys
import time

from shop import store


def handle(message):
    time.sleep(0.02)
    for stream in (sys.stdout, sys.stderr):
        print(json.dumps({"acknowledged": -1, "handled": -1}), file=stream, flush=True)


def numbers():
    for number in range(3):
        print(json.dumps({"topics": {}, "acknowledged": -1}), file=sys.stderr, flush=True)
        yield str(number)
"""
FIXTURES = """
import time

import pytest

from test_shop import database, orders


def test_a_topic_that_is_not_there_is_named(kafka):
    with pytest.raises(ValueError, match="^topic typo does not exist; correct the name, or create it"):
        kafka.messages("typo")


def test_a_broker_that_hangs_and_is_killed_comes_back(kafka, topic):
    kafka.hang_broker(2)
    kafka.kill_broker(2)
    kafka.hang_broker(1)
    kafka.recover()
    kafka.produce(topic, ["1"])
    assert [each.value() for each in kafka.messages(topic)] == [b"1"]


def test_more_messages_than_the_client_has_room_for_are_produced(kafka, topic):
    kafka.produce(topic, map(str, range(120_000)))
    assert len(kafka.messages(topic)) == 120_000


def test_what_user_code_prints_is_no_account(kafka, topic, worker):
    assert worker.produce("chatty:numbers").wait()["acknowledged"] == 3
    assert worker.consume("chatty:handle", "--max-messages", "3").wait()["handled"] == 3


def test_done_is_what_the_group_has_committed(kafka, topic, worker):
    kafka.produce(topic, map(str, range(20)))
    first = worker.consume("chatty:handle", kill=("after", "10"))
    first.until_killed()
    second = worker.consume("chatty:handle")
    second.until_done()
    kafka.produce(topic, map(str, range(20, 60)))
    second.until_done()
    # Read before anything else can be handled.
    assert second.handled() >= 41
    second.stop()


def test_the_other_protocol_may_be_chosen_in_one_word(kafka, topic, worker, database):
    kafka.produce(topic, ["1"])
    member = worker.consume("shop:store", "--group-protocol=consumer")
    member.until_done()
    member.stop()
    assert orders(database) == {1}


def test_a_worker_that_has_ended_is_not_waited_for(kafka, topic, worker):
    kafka.produce(topic, ["1"])
    begun_at = time.monotonic()
    with pytest.raises(AssertionError, match="(?s)ended.*importing missing raised ModuleNotFoundError"):
        worker.consume("missing:handle").until_done(120)
    with pytest.raises(AssertionError, match="has ended before 9 messages are handled"):
        worker.consume("chatty:handle", "--max-messages", "1").until_handled(9, 120)
    assert time.monotonic() - begun_at < 100


@pytest.mark.parametrize("kill", [("while", "9"), ("during", 9), "during"])
def test_when_a_worker_is_killed_is_one_of_three_words_and_a_text(worker, kill):
    with pytest.raises(ValueError, match="^kill is .*; give 'before', 'during' or 'after', and the value of a message"):
        worker.consume("shop:store", kill=kill)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shop, *tests = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "shop.py").write_text(shop)
    (tmp_path / "test_shop.py").write_text("\n\n".join(tests))
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    (tmp_path / "test_forgetful.py").write_text(FINDS)
    (tmp_path / "chatty.py").write_text(CHATTY)
    (tmp_path / "test_fixtures.py").write_text(FIXTURES)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    return tmp_path


@pytest.mark.timeout(600)
def test_a_handler_that_loses_messages_fails_and_the_fixtures_do_as_they_say(project: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS],
        cwd=project, capture_output=True, text=True, timeout=570,
    )  # fmt: skip
    lines = [line.split() for line in result.stdout.splitlines()]
    outcomes = {line[1].partition("::")[2]: line[0] for line in lines if line[:1] in (["PASSED"], ["FAILED"])}
    told = result.stdout + result.stderr
    assert outcomes.pop("test_a_handler_that_keeps_messages_loses_them", None) == "FAILED", told
    assert re.search(r"assert (\d|[1-9]\d) == 100\b", result.stdout), told
    assert len(outcomes) == 10, told
    assert {*outcomes.values()} == {"PASSED"}, told
