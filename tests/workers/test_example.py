"""The first example of the README. And examples/orders: a consumer killed half way leaves each order stored once."""

import json
import re
import sqlite3
from pathlib import Path

import pytest

from tests.conftest import Topics
from workers.testing.processes import Process, Processes, eventually

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "orders"
ORDERS = 600


@pytest.fixture
def env(processes: Processes) -> dict[str, str]:
    names = {"SHOP_DATABASE": "shop.db", "ORDERS_DATABASE": "orders.db"}
    paths = {variable: str(processes.directory / name) for variable, name in names.items()}
    return {"PYTHONPATH": str(EXAMPLE), **paths}


def open_shop(path: str) -> sqlite3.Connection:
    shop = sqlite3.connect(path)
    shop.execute("create table outbox (id integer primary key, body text, delivered integer not null default 0)")
    rows = [(json.dumps({"total": number / 100}),) for number in range(ORDERS)]
    with shop:
        shop.executemany("insert into outbox (body) values (?)", rows)
    return shop


def stored(path: str) -> list[tuple[str, float]]:
    try:
        return sqlite3.connect(path).execute("select id, total from orders").fetchall()
    except sqlite3.OperationalError:
        return []  # the consumer has not made the table yet


def consume(processes: Processes, topic: str, group: str, env: dict[str, str], *arguments: str) -> Process:
    return processes.consume(topic, group, "--handler", "orders:store", "--summary", "json", *arguments, env=env)


def test_a_consumer_that_is_killed_leaves_each_order_in_the_table_once(
    processes: Processes, topic: str, group: str, env: dict[str, str]
) -> None:
    shop = open_shop(env["SHOP_DATABASE"])
    # It commits once at most, when it knows the topic's id, so that much of what it has stored is delivered again.
    first = consume(processes, topic, group, env, "--property", "auto.commit.interval.ms=3600000")
    producer = processes.start("produce", "--topic", topic, "--source", "orders:outbox", "--rate", "200", env=env)
    eventually(lambda: len(stored(env["ORDERS_DATABASE"])) > 100, "a part is stored")
    first.kill()
    assert producer.wait() == 0, producer.stderr
    stored_before = len(stored(env["ORDERS_DATABASE"]))
    second = consume(processes, topic, group, env, "--idle-timeout", "5")

    assert second.wait() == 0, second.stderr
    assert json.loads(second.stderr.splitlines()[-1])["topics"][topic]["handled"] + stored_before >= ORDERS
    rows = stored(env["ORDERS_DATABASE"])
    assert sorted(rows, key=lambda row: int(row[0])) == [(str(number + 1), number / 100) for number in range(ORDERS)]
    assert shop.execute("select count(*) from outbox where delivered = 0").fetchone() == (0,)


def test_what_the_outbox_has_marked_is_not_sent_again(processes: Processes, topic: str, env: dict[str, str]) -> None:
    open_shop(env["SHOP_DATABASE"])
    accounts = [processes.produce(topic, "--source", "orders:outbox", env=env) for _ in range(2)]

    assert [account["acknowledged"] for account in accounts] == [ORDERS, 0]


def test_a_message_that_is_no_order_becomes_a_dead_letter(
    processes: Processes, topics: Topics, group: str, env: dict[str, str]
) -> None:
    topic = topics.create(partitions=1)
    topics.create_named(f"{topic}.dlq")
    lines = b'1:{"total": 1}\n2:no order\n3:{"total": 3}\n:{"total": 4}\n'
    processes.produce(topic, "--input", "-", "--key-separator", ":", stdin=lines)
    consumer = consume(processes, topic, group, env, "--max-messages", "4")

    assert consumer.wait() == 0, consumer.stderr
    assert sorted(stored(env["ORDERS_DATABASE"])) == [("1", 1.0), ("3", 3.0)]
    assert json.loads(consumer.stderr.splitlines()[-1])["topics"][topic]["dead_lettered"] == 2


def test_the_first_source_and_handler_of_the_readme_ship_what_was_ordered(
    processes: Processes, topic: str, group: str
) -> None:
    first = re.findall(r"Save this as `(\w+\.py)`:\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [(name, code)] = first
    processes.write(name, code)
    assert processes.produce(topic, "--source", "shipping:orders")["acknowledged"] == 2
    consumer = processes.consume(topic, group, "--max-messages", "2", "--handler", "shipping:ship")
    assert consumer.wait() == 0, consumer.stderr
    assert sorted(consumer.lines) == ["shipping a lamp", "shipping two chairs"]
