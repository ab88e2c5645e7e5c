"""The kit for users' tests: what becomes of messages in memory, and faults of handlers, each of which it finds."""

import asyncio
import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message
from prometheus_client import REGISTRY

from workers import Outgoing, Reject, Retry, batch, lifespan
from workers.errors import ConfigError
from workers.testing import Effects, check, handle, message
from workers.testing.killing import VARIABLE

MESSAGES = [message(f"{number}", key=f"k{number % 3}") for number in range(12)]


class Database:
    """The store that a handler writes to: rows by key, and whether it is reachable."""

    def __init__(self) -> None:
        self.rows: dict[Any, Any] = {}
        self.away = False

    def put(self, key: Any, value: Any) -> None:
        if self.away:
            raise ConnectionError("the database is away")
        self.rows[key] = value

    def get(self, key: Any) -> Any:
        if self.away:
            raise ConnectionError("the database is away")
        return self.rows.get(key)

    @contextmanager
    def outage(self) -> Iterator[None]:
        self.away = True
        try:
            yield
        finally:
            self.away = False

    @property
    def effects(self) -> Effects:
        return Effects(lambda: dict(self.rows), self.rows.clear)


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether memory is kept is judged as for a slow handler: by LEAST_MESSAGES a round, and not by a second."""
    monkeypatch.setattr("workers.testing.checks.ROUND_S", 0.0)


@pytest.fixture
def few_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """For handlers that take long: whether they keep memory is judged by fewer messages, and nobody looks at that."""
    monkeypatch.setattr("workers.testing.checks.LEAST_MESSAGES", len(MESSAGES))


def place(message: Message) -> tuple[Any, Any]:
    return message.key(), message.value()


# Outcomes of messages


def test_messages_are_handled_retried_and_rejected_by_the_rules_of_the_consumer() -> None:
    calls: list[Any] = []

    def handler(message: Message) -> None:
        calls.append(message.value())
        if message.value() == b"bad":
            raise Reject("not an order")
        if message.value() == b"weak" and calls.count(b"weak") < 3:
            raise ValueError("once more")
        if message.value() == b"never":
            raise ValueError("no")

    handled = handle(handler, [message(each) for each in ("a", "bad", "weak", "never", "z")])
    assert calls == [b"a", b"bad", *[b"weak"] * 3, *[b"never"] * 5, b"z"]
    assert [(each.value, each.attempts, each.error) for each in handled.dead_letters] == [
        (b"bad", 1, "not an order"),
        (b"never", 5, "no"),
    ]
    assert handled.retried == 6


def test_what_a_handler_gives_back_is_returned_by_topic() -> None:
    def handler(message: Message) -> Outgoing:
        return Outgoing(message.value(), key=message.key(), headers=[("of", b"order")], topic="invoices")

    [invoice, _] = handle(handler, [message("1", key="k"), message("2", key="k")]).outputs["invoices"]
    assert (invoice.topic(), invoice.key(), invoice.value(), invoice.headers()) == (
        "invoices", b"k", b"1", [("of", b"order")],
    )  # fmt: skip


def test_a_retry_after_a_time_comes_at_once_too() -> None:
    calls: list[Message] = []

    def handler(message: Message) -> None:
        calls.append(message)
        if len(calls) < 4:
            raise Retry("away", after_s=30)

    async def handle_async(message: Message) -> None:
        handler(message)

    for each in (handler, handle_async):
        calls.clear()
        assert handle(each, [message("1")]).retried == 3


def test_a_message_that_is_tried_without_end_is_named() -> None:
    def handler(message: Message) -> None:
        if message.value() == b"1":
            raise Retry("later")

    with pytest.raises(AssertionError, match=r"^not handled within 0.5 s: offset 1 and what comes after it; \d+ calls"):
        handle(handler, [message("0"), message("1")], timeout_s=0.5)


# Handlers without fault


def upsert(database: Database) -> Callable[[Message], None]:
    return lambda message: database.put(*place(message))


def test_a_handler_that_writes_under_the_key_has_no_fault(database: Database) -> None:
    check(upsert(database), MESSAGES, database.effects, outage=database.outage)


def test_a_lifespan_and_a_batch_handler_and_an_async_one_have_no_fault(database: Database) -> None:
    @lifespan
    def batches() -> Any:
        @batch
        def store(messages: list[Message]) -> None:
            for each in messages:
                database.put(*place(each))

        yield store

    async def store(message: Message) -> None:
        await asyncio.sleep(0)
        database.put(*place(message))

    check(batches, MESSAGES, database.effects, outage=database.outage)
    check(store, MESSAGES, database.effects, outage=database.outage)


def test_outputs_with_the_right_key_are_no_fault() -> None:
    def handler(message: Message) -> Outgoing:
        return Outgoing(message.value(), key=message.key(), topic="out")

    check(handler, MESSAGES, Effects(lambda: None, lambda: None), output_key=lambda each: each.key())


# Ten faults


def finds(fault: str, handler: Any, database: Database, **options: Any) -> str:
    with pytest.raises(AssertionError) as found:
        check(handler, MESSAGES, database.effects, **options)
    text = str(found.value)
    assert text.startswith("the handler has ")
    assert fault in text
    return text


def test_a_swallowed_error_is_found(database: Database) -> None:
    def handler(message: Message) -> None:
        with suppress(ConnectionError):
            database.put(*place(message))

    text = finds("it swallows errors: ", handler, database, outage=database.outage)
    assert "of 12 messages counted as handled" in text


def test_an_error_that_is_swallowed_for_a_later_message_is_found(database: Database) -> None:
    def handler(message: Message) -> None:
        if message.value() == b"0":
            return
        with suppress(ConnectionError) if message.value() == b"11" else nullcontext():
            database.put(*place(message))

    text = finds("it swallows errors: ", handler, database, outage=database.outage)
    assert "2 of 12 messages counted as handled" in text


def test_a_message_that_is_noted_before_it_is_written_is_found(database: Database) -> None:
    seen: set[Any] = set()

    def handler(message: Message) -> None:
        if message.value() not in seen:
            seen.add(message.value())
            database.put(*place(message))

    def clear() -> None:
        database.rows.clear()
        seen.clear()

    with pytest.raises(AssertionError, match="what it needs was away for a moment, and messages are lost"):
        check(handler, MESSAGES, Effects(lambda: dict(database.rows), clear), outage=database.outage)


def test_a_lifespan_that_connects_is_no_fault(database: Database) -> None:
    @lifespan
    def connected() -> Any:
        database.get("anything")
        yield upsert(database)

    check(connected, MESSAGES, database.effects, outage=database.outage)


def test_a_write_that_is_not_idempotent_is_found(database: Database) -> None:
    def handler(message: Message) -> None:
        database.put(message.key(), (database.get(message.key()) or 0) + 1)

    text = finds("messages that came again from offset 0 on have changed what was done", handler, database)
    assert "wanted: {b'k0': 4, b'k1': 4, b'k2': 4}" in text
    assert "found:  {b'k0': 8, b'k1': 8, b'k2': 8}" in text


def test_offsets_and_keyless_messages_are_the_same_in_another_order_of_keys() -> None:
    rows: list[Any] = []
    done: dict[Any, int] = {}

    def handler(message: Message) -> None:
        where, offset = message.partition(), message.offset() or 0
        if offset > done.get(where, -1):
            done[where] = offset
            rows.append((message.key(), message.value(), where, offset))

    def clear() -> None:
        rows.clear()
        done.clear()

    keyless = [message(f"{number}", key=None if number % 4 == 0 else f"k{number % 2}") for number in range(12)]
    check(handler, keyless, Effects(lambda: sorted(rows, key=repr), clear))
    in_order = Effects(lambda: [value for key, value, *_ in rows if key is None], clear)
    check(handler, keyless, in_order)


def test_dependence_on_the_order_of_keys_is_found(database: Database) -> None:
    def handler(message: Message) -> None:
        database.put("latest", message.value())

    finds("depends on the order of messages with different keys", handler, database)


@pytest.mark.usefixtures("few_messages")
def test_a_blocking_call_in_an_async_handler_is_found_with_its_line(database: Database) -> None:
    async def handler(message: Message) -> None:
        if message.value() in (b"1", b"5", b"9"):
            time.sleep(0.03)
        database.put(*place(message))

    text = finds("it blocks its event loop at ", handler, database)
    assert f"{__file__}:{handler.__code__.co_firstlineno + 2};" in text


@pytest.mark.usefixtures("few_messages")
def test_a_computation_in_an_async_handler_is_found_with_its_line(database: Database) -> None:
    async def handler(message: Message) -> None:
        until = time.thread_time() + (0.04 if message.value() == b"5" else 0)
        while time.thread_time() < until:
            sum(range(100))
        database.put(*place(message))

    text = finds("it blocks its event loop at ", handler, database)
    line = handler.__code__.co_firstlineno
    assert any(f"{__file__}:{line + each};" in text for each in (2, 3))


def test_a_call_that_blocks_once_is_no_fault(database: Database) -> None:
    blocked: set[Any] = set()

    async def handler(message: Message) -> None:
        if message.value() == b"2" and not blocked:
            blocked.add(message.value())
            time.sleep(0.05)
        database.put(*place(message))
        await asyncio.sleep(0)

    check(handler, MESSAGES, database.effects)


def test_the_event_loop_of_another_handler_is_not_looked_at(database: Database) -> None:
    begun, over = threading.Event(), threading.Event()

    async def blocks(message: Message) -> None:
        begun.set()
        over.wait(60)

    async def handler(message: Message) -> None:
        await asyncio.sleep(0.002)
        database.put(*place(message))

    other = threading.Thread(target=lambda: handle(blocks, [message("1")], timeout_s=60))
    other.start()
    try:
        assert begun.wait(20)
        check(handler, MESSAGES, database.effects)
        assert other.is_alive()
    finally:
        over.set()
        other.join()


def test_a_write_after_the_commit_is_found(database: Database) -> None:
    def handler(message: Message) -> None:
        threading.Timer(0.2, database.put, place(message)).start()

    finds("it still works on a message after it has returned", handler, database)


def buffered(database: Database, count: int, *, flushes_at_end: bool) -> Any:
    """A handler that writes `count` messages together, and the rest at the end of its lifespan or never."""

    @lifespan
    def buffer() -> Any:
        kept: list[tuple[Any, Any]] = []

        def flush() -> None:
            for key, value in kept:
                database.put(value, key)
            kept.clear()

        def handler(message: Message) -> None:
            kept.append(place(message))
            if len(kept) == count:
                flush()

        yield handler
        if flushes_at_end:
            flush()

    return buffer


def test_messages_that_are_kept_for_a_later_write_are_found(database: Database) -> None:
    finds("after a SIGKILL behind offset ", buffered(database, 4, flushes_at_end=True), database)


MUTABLE = """
import database

totals = {}

def handler(message):
    totals[message.key()] = totals.get(message.key(), 0) + int(message.value())
    database.put(message.key(), max(totals[message.key()], 0))
"""


def test_a_mutable_global_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    (tmp_path / "mutable_global.py").write_text(MUTABLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "database", database)
    finds("after a SIGKILL behind offset ", "mutable_global:handler", database)


HELPER = """
from prometheus_client import Counter

STORED = Counter("orders_stored", "Orders that were stored")
seen = set()
"""
WITH_HELPER = """
import database
from anew_shop import store

def handler(message):
    store.STORED.inc()
    if message.value() not in store.seen:
        store.seen.add(message.value())
        database.put(message.value(), (database.get(message.value()) or 0) + 1)
"""
STORES = """
import database
from anew_shop import store

def handler(message):
    store.STORED.inc()
    database.put(message.key(), message.value())
"""


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, database: Database, **modules: str) -> None:
    (folder / "anew_shop").mkdir()
    for name, text in modules.items():
        (folder / "anew_shop" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "database", database)


def test_a_global_of_a_helper_module_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    package(tmp_path, monkeypatch, database, __init__="", store=HELPER, orders=WITH_HELPER)
    finds("messages that came again from offset 0 on have changed", "anew_shop.orders:handler", database)


def test_each_member_imports_the_package_anew_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    package(tmp_path, monkeypatch, database, __init__="", store=HELPER, orders=STORES)
    check("anew_shop.orders:handler", MESSAGES, database.effects)
    assert not [name for name in sys.modules if name.startswith("anew_shop")]
    orders = importlib.import_module("anew_shop.orders")
    check("anew_shop.orders:handler", MESSAGES, database.effects)
    assert sys.modules["anew_shop.orders"] is orders
    assert sys.modules["anew_shop"].orders is orders
    assert orders.store.STORED in REGISTRY._collector_to_names
    assert orders.store.STORED._value.get() == 0
    for name in ("anew_shop", "anew_shop.store", "anew_shop.orders"):
        monkeypatch.delitem(sys.modules, name)
    REGISTRY.unregister(orders.store.STORED)


def test_a_retry_without_end_is_found(database: Database) -> None:
    def handler(message: Message) -> None:
        if message.value() == b"7":
            raise Retry("not yet")
        database.put(*place(message))

    finds("AssertionError: not handled within 0.3 s: offset 7", handler, database, timeout_s=0.3)


def test_a_huge_output_is_found(database: Database) -> None:
    def handler(message: Message) -> Outgoing:
        return Outgoing(b"x" * 1_100_000, key=message.key(), topic="out")

    text = finds("12 of 12 messages became dead letters", handler, database)
    assert "bytes are too large; raise message.max.bytes" in text


def test_a_wrong_key_is_found(database: Database) -> None:
    def handler(message: Message) -> Outgoing:
        return Outgoing(message.value(), topic="out")

    finds("12 outputs have another key than the one wanted", handler, database, output_key=lambda each: each.key())


OF_ANOTHER = {"k0": "k1", "k1": "k2", "k2": "k0"}


def test_the_key_of_another_message_is_a_wrong_key(database: Database) -> None:
    def handler(message: Message) -> Outgoing:
        return Outgoing(message.value(), key=OF_ANOTHER[key_of(message)], topic="out")

    def key_of(message: Message) -> str:
        return (message.key() or b"").decode()

    text = finds("12 outputs have another key than the one wanted", handler, database, output_key=key_of)
    assert "wanted: b'k0'\n  found:  b'k1'" in text


def test_an_output_that_changes_when_its_message_comes_again_is_found() -> None:
    counts: dict[Any, int] = {}

    def handler(message: Message) -> Outgoing:
        counts[message.value()] = counts.get(message.value(), 0) + 1
        return Outgoing(f"{counts[message.value()]}", key=message.key(), topic="out")

    with pytest.raises(AssertionError) as found:
        check(handler, MESSAGES, Effects(lambda: None, counts.clear))
    assert str(found.value).startswith("the handler has a fault:\n- messages that came again from offset 0 on")
    assert "in the outputs of b'0', key b'k0':\n  wanted: []\n  found:  [\"('out', None, b'k0', b'2', ())\"]" in (
        str(found.value)
    )


def test_an_output_that_is_lost_with_a_member_is_found(database: Database) -> None:
    @lifespan
    def sums() -> Any:
        totals: dict[Any, int] = {}

        def handler(message: Message) -> Outgoing:
            database.put(*place(message))
            totals[message.key()] = totals.get(message.key(), 0) + int(message.value() or 0)
            return Outgoing(f"{totals[message.key()]}", key=message.key(), topic="out")

        yield handler

    finds("after a SIGKILL behind offset ", sums, database)


def test_an_output_of_a_batch_that_depends_on_the_batch_is_found(database: Database) -> None:
    @batch
    def handler(messages: list[Message]) -> list[Outgoing]:
        for each in messages:
            database.put(*place(each))
        return [Outgoing(f"{len(messages)}", topic="out")]

    @batch
    async def one_each(messages: list[Message]) -> list[Outgoing]:
        for each in messages:
            database.put(*place(each))
        return [Outgoing(each.value(), key=each.key(), topic="out") for each in messages]

    finds("after a SIGKILL behind offset ", handler, database)
    check(one_each, MESSAGES, database.effects, output_key=lambda each: each.key())


def test_a_leak_is_found(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.testing.checks.ROUND_S", 1.0)
    seen: set[str] = set()

    def handler(message: Message) -> None:
        # Not the number: Python makes floats of memory that it keeps for them.
        seen.add(f"{time.monotonic()}")
        database.put(*place(message))

    finds("bytes of memory for each message", handler, database)


def test_effects_that_hold_each_offset_are_no_leak() -> None:
    rows: dict[Any, Any] = {}

    def handler(message: Message) -> None:
        rows[message.partition(), message.offset()] = place(message)

    check(handler, MESSAGES, Effects(lambda: dict(rows), rows.clear))


def test_what_is_tidied_up_from_time_to_time_is_no_leak(database: Database) -> None:
    kept: list[bytes] = []

    def handler(message: Message) -> None:
        time.sleep(0.001)
        database.put(*place(message))
        kept.append(bytes(100))
        if len(kept) == 200:
            kept.clear()

    check(handler, MESSAGES[:2], database.effects)


def test_a_slow_handler_is_checked_with_fewer_messages_or_not_for_leaks(database: Database) -> None:
    def handler(message: Message) -> None:
        time.sleep(0.04)
        database.put(*place(message))

    with pytest.warns(UserWarning, match=r"^check: whether it keeps memory was not judged: .* raise timeout_s"):
        check(handler, MESSAGES[:2], database.effects, timeout_s=3)


def test_all_faults_are_named_at_once(database: Database) -> None:
    def handler(message: Message) -> None:
        database.put("last", ((database.get("last") or (0,))[0] + 1, message.value()))

    text = finds("the handler has 2 faults:", handler, database)
    assert text.count("\n- ") == 2


# Handlers that must not deceive check


def test_effects_that_are_a_live_object_are_compared_as_they_were(database: Database) -> None:
    def handler(message: Message) -> None:
        database.put(message.key(), (database.get(message.key()) or 0) + 1)

    with pytest.raises(AssertionError, match="messages that came again from offset 0 on have changed what was done"):
        check(handler, MESSAGES, Effects(lambda: database.rows, database.rows.clear))


def test_effects_that_cannot_be_read_or_copied_are_no_fault_of_the_handler(database: Database) -> None:
    def fails() -> object:
        raise LookupError("no such table")

    with pytest.raises(LookupError, match="no such table"):
        check(upsert(database), MESSAGES, Effects(fails, database.rows.clear))
    with pytest.raises(TypeError, match=r"^Effects.read returned a lock, which cannot be copied: .*; return plain"):
        check(upsert(database), MESSAGES, Effects(threading.Lock, database.rows.clear))


def test_a_handler_that_only_gives_messages_back_needs_no_effects() -> None:
    seen: dict[object, int] = {}

    def doubled(message: Message) -> Outgoing:
        return Outgoing((message.value() or b"") * 2, key=message.key(), topic="doubled")

    def counted(message: Message) -> Outgoing:
        seen[message.key()] = seen.get(message.key(), 0) + 1
        return Outgoing(str(seen[message.key()]), key=message.key(), topic="counted")

    def silent(message: Message) -> None: ...

    check(doubled, MESSAGES, output_key=Message.key)
    with pytest.raises(AssertionError, match="output"):
        check(counted, MESSAGES)
    with pytest.raises(AssertionError, match=r"nothing that check can see was done: .* give effects whose"):
        check(silent, MESSAGES)


def test_a_buffer_that_is_never_written_is_found(database: Database) -> None:
    finds("nothing that check can see was done", buffered(database, 40, flushes_at_end=False), database)


def test_a_write_at_the_end_of_the_lifespan_is_found(database: Database) -> None:
    finds("it writes when its lifespan ends", buffered(database, 40, flushes_at_end=True), database)


# Wrong input


no_handler: Any = lambda: None  # noqa: E731  (as a user may write it)


def test_what_is_no_handler_is_no_fault_of_one(database: Database) -> None:
    with pytest.raises(ConfigError, match="--handler shop_without:store: importing shop_without raised ModuleNotFound"):
        check("shop_without:store", MESSAGES, database.effects)
    with pytest.raises(ConfigError, match="does not take one argument"):
        check(no_handler, MESSAGES, database.effects)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"concurrency": 0}, "handle: concurrency is 0; give a whole number from 1 on"),
        ({"concurrency": "2"}, "handle: concurrency is '2'; give a whole number from 1 on"),
        ({"max_attempts": True}, "handle: max_attempts is True; give a whole number from 1 on"),
        ({"timeout_s": 0}, "handle: timeout_s is 0; give a number of seconds above 0"),
        ({"order": "keys"}, "handle: order is 'keys'; give one of partition, key, none"),
        ({"on_error": "skip"}, "handle: on_error is 'skip'; give one of retry, dead-letter, stop"),
        ({"middlewares": "shop:log"}, "handle: middlewares is 'shop:log'; give a list of functions"),
        ({"messages": "1"}, "handle: messages is '1'; give a list of what message(...) returns"),
        ({"messages": [MESSAGES[0], "1"]}, "handle: messages[1] is '1'; give what message(...) returns"),
        ({"messages": [message("1", topic="a"), message("2", topic="b")]}, "handle: messages are of topics a and b; "),
        ({"handler": 5}, "handle: handler is 5; give a function, a lifespan, or the text MODULE:NAME"),
    ],
)
def test_handle_names_an_argument_that_is_wrong(options: dict[str, Any], error: str) -> None:
    arguments = {"handler": print, "messages": MESSAGES, **options}
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(error)}"):
        handle(arguments.pop("handler"), arguments.pop("messages"), **arguments)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"messages": []}, "check: there are no messages; "),
        ({"messages": [1]}, "check: messages[0] is 1; give what message(...) returns"),
        ({"effects": dict}, "check: effects is <class 'dict'>; give Effects(read=..., clear=...)"),
        ({"outage": Database().outage()}, "check: outage is a context that was made already; give the function"),
        ({"outage": True}, "check: outage is True; give a function that returns a context"),
        ({"outage": lambda: None}, "check: outage returned None; let it return a context, as a function marked with"),
        ({"output_key": b"k"}, "check: output_key is b'k'; give a function of a message"),
        ({"timeout_s": "1"}, "check: timeout_s is '1'; give a number of seconds above 0"),
    ],
)
def test_check_names_an_argument_that_is_wrong(database: Database, options: dict[str, Any], error: str) -> None:
    arguments = {"messages": MESSAGES, "effects": database.effects, **options}
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(error)}"):
        check(upsert(database), arguments.pop("messages"), arguments.pop("effects"), **arguments)


def test_effects_are_functions(database: Database) -> None:
    with pytest.raises(TypeError, match=r"^Effects: clear is None; give a function without arguments$"):
        Effects(read=dict, clear=database.rows.clear())  # type: ignore[func-returns-value,arg-type]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"value": 5}, "message: value is an int; give text, bytes or None where no format is set for it"),
        ({"value": "1", "key": 5}, "message: key is an int; give text, bytes or None where no format is set for it"),
        ({"value": "1", "headers": [("a", 5)]}, "message: a header is a name (str) and a value (bytes), not ('a', 5)"),
        ({"value": "1", "topic": "a b"}, "message: topic is 'a b'; give the name of a topic"),
        ({"value": "1", "offset": -1}, "message: offset is -1; give a whole number from 0 on"),
        ({"value": "1", "timestamp_ms": "now"}, "message: timestamp_ms is 'now'; give a whole number from 0 on"),
    ],
)
def test_message_names_an_argument_that_is_wrong(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(error)}"):
        message(**arguments)


def test_a_handler_gets_the_topic_and_the_headers_of_its_messages() -> None:
    seen: list[Any] = []

    def handler(message: Message) -> None:
        seen.append((message.topic(), message.offset(), message.headers()))
        raise Reject("no")

    given = [message("1", headers={"a": "b"}, topic="orders"), message("2", topic="orders")]
    handled = handle(handler, given)
    assert seen == [("orders", 0, [("a", b"b")]), ("orders", 1, None)]
    assert [each.topic for each in handled.dead_letters] == ["orders.dlq", "orders.dlq"]


# A worker that is killed

KILLED = """
import sys, time
from confluent_kafka import Message
from workers.testing.killing import kill

def handler(message):
    print("begun", flush=True)
    time.sleep(float(sys.argv[1]))
    print("done", flush=True)

kill(handler)(Message(value=b"9"))
print("counted", flush=True)
"""


@pytest.mark.parametrize(("call_s", "printed"), [("0", "begun\ndone\n"), ("60", "begun\n")])
def test_a_kill_during_a_call_comes_before_its_result_counts(call_s: str, printed: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, call_s],
        env={**os.environ, VARIABLE: "during:9"}, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, printed)


def test_pytest_shows_a_fault_without_the_code_that_found_it(tmp_path: Path) -> None:
    test = tmp_path / "test_mine.py"
    test.write_text(
        "from workers.testing import Effects, check, handle, message\n"
        "rows = []\n"
        "def appends(message): rows.append(message.value())\n"
        "def loses(message): pass\n"
        "def broken(): raise OSError('the database is away')\n"
        "def test_check(): check(appends, [message('1')], Effects(lambda: [*rows], rows.clear))\n"
        "def test_read(): check(appends, [message('1')], Effects(broken, rows.clear))\n"
        "def test_misuse(): handle(appends, [message('1')], timeout_s=-1)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(test)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path).stdout

    assert "3 failed" in said
    assert "came again from offset 0 on have changed what was done" in said
    assert "OSError: the database is away" in said
    assert "timeout_s" in said
    assert [line for line in said.splitlines() if "workers/testing/" in line] == []
