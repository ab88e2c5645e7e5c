"""A shop's orders, from the outbox table of one database into the table of another. Each order is stored once.

kafka-workers produce --source orders:outbox
kafka-workers consume --handler orders:store
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing

from workers import Delivery, Message, Outgoing, Reject, batch, lifespan

SHOP = os.environ.get("SHOP_DATABASE", "shop.db")
ORDERS = os.environ.get("ORDERS_DATABASE", "orders.db")

UPSERT = "insert into orders values (?, ?) on conflict (id) do update set total = excluded.total"


def outbox() -> Iterator[Outgoing]:
    """The orders that were not delivered yet. Started again after a crash, it sends again what it had not marked."""
    with closing(_connect(SHOP)) as shop:
        orders = shop.execute("select id, body from outbox where delivered = 0 order by id").fetchall()
    for number, body in orders:
        yield Outgoing(body, key=str(number), on_delivery=_marker(number))


def _marker(number: int) -> Callable[[Delivery], None]:
    def mark(delivery: Delivery) -> None:
        # Called in the producer's thread, and a connection of SQLite belongs to one thread.
        if delivery.outcome == "success":
            with closing(_connect(SHOP)) as shop, shop:
                shop.execute("update outbox set delivered = 1 where id = ?", (number,))

    return mark


@lifespan
def store() -> Iterator[Callable[[list[Message]], None]]:
    """Opens the database, stores batches of orders, and closes it when the worker ends."""
    database = _connect(ORDERS)
    database.execute("create table if not exists orders (id text primary key, total real not null)")

    @batch
    def handle(messages: list[Message]) -> None:
        rows = [(_number(message), _total(message)) for message in messages]
        # One transaction for the batch. By key, so that an order that is delivered again changes nothing.
        with database:
            database.executemany(UPSERT, rows)

    yield handle
    database.close()


def _number(message: Message) -> str:
    """Return the number of an order, its key; without one, orders would overwrite each other."""
    key = message.key()
    if not key:
        raise Reject("an order without a key")
    return key.decode()


def _total(message: Message) -> float:
    """Return the total of an order; a message that is no order goes to the dead-letter topic without another try."""
    try:
        return float(json.loads(message.value() or b"")["total"])
    except (ValueError, KeyError, TypeError) as error:
        raise Reject(f"not an order: {error}") from None


def _connect(path: str) -> sqlite3.Connection:
    # Waits for other writers instead of failing.
    return sqlite3.connect(path, timeout=30)
