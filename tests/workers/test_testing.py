"""The kit for users' tests on real brokers: its tutorial as it is written, run as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"

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


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shop, *tests = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "shop.py").write_text(shop)
    (tmp_path / "test_shop.py").write_text("\n\n".join(tests))
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    (tmp_path / "test_forgetful.py").write_text(FINDS)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    return tmp_path


def test_the_tutorial_passes_and_a_handler_that_loses_messages_does_not(project: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-p", "no:xdist", "."],
        cwd=project, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    lines = [line.split() for line in result.stdout.splitlines()]
    outcomes = {line[1].partition("::")[2]: line[0] for line in lines if line[:1] in (["PASSED"], ["FAILED"])}
    told = result.stdout + result.stderr
    assert outcomes.pop("test_a_handler_that_keeps_messages_loses_them", None) == "FAILED", told
    assert re.search(r"assert (\d|[1-9]\d) == 100\b", result.stdout), told
    assert len(outcomes) == 6, told
    assert {*outcomes.values()} == {"PASSED"}, told
