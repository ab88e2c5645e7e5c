"""The peers of --concurrency: faststream on both of its clients, and a loop of aiokafka that gathers.

They have their own defaults, and call the same handler as the workers: it waits in the event loop, or in a thread.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.handlers import WAIT_S, Calls

CONCURRENCY = 100
Wait = Callable[[bytes | None, int], None]
AsyncWait = Callable[[bytes | None, int], Awaitable[None]]


async def gather(servers: str, topic: str, count: int, group: str, calls: Calls, *, threads: bool) -> None:
    """Take up to a hundred messages, wait until all are handled, and take the next. Offsets are committed on a timer,
    at most those of what was handled.
    """
    from aiokafka import AIOKafkaConsumer

    loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(CONCURRENCY)
    in_loop, in_thread = _waits(calls)

    def call(message: Any) -> Awaitable[None]:
        if threads:
            return loop.run_in_executor(pool, in_thread, message.key, message.offset)
        return in_loop(message.key, message.offset)

    properties = {"bootstrap_servers": servers, "group_id": group, "auto_offset_reset": "earliest"}
    async with AIOKafkaConsumer(topic, **properties) as consumer:
        while len(calls.ended_at) < count:
            found = await consumer.getmany(timeout_ms=200, max_records=CONCURRENCY)
            await asyncio.gather(*(call(message) for messages in found.values() for message in messages))
        calls.say()


async def faststream_confluent(
    servers: str, topic: str, count: int, group: str, calls: Calls, *, threads: bool
) -> None:
    """Run faststream on confluent-kafka. It has more than one worker only for messages that are committed before they
    are handled.
    """
    from faststream.confluent import KafkaBroker, KafkaMessage

    broker: Any = KafkaBroker(servers, logger=None)

    def place(message: Any) -> tuple[bytes | None, int]:
        return message.raw_message.key(), message.raw_message.offset()

    await _faststream(broker, KafkaMessage, place, topic, count, group, calls, threads)


async def faststream_aiokafka(servers: str, topic: str, count: int, group: str, calls: Calls, *, threads: bool) -> None:
    """Run faststream on aiokafka, with messages that are committed before they are handled: otherwise it has one worker
    for a partition at most.
    """
    from faststream.kafka import KafkaBroker, KafkaMessage

    broker: Any = KafkaBroker(servers.split(","), logger=None)

    def place(message: Any) -> tuple[bytes | None, int]:
        return message.raw_message.key, message.raw_message.offset

    await _faststream(broker, KafkaMessage, place, topic, count, group, calls, threads)


async def _faststream(
    broker: Any,
    kind: Any,
    place: Callable[[Any], tuple[bytes | None, int]],
    topic: str,
    count: int,
    group: str,
    calls: Calls,
    threads: bool,
) -> None:
    in_loop, in_thread = _waits(calls)
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def handle(message: Any) -> None:
        await in_loop(*place(message))
        if len(calls.ended_at) >= count:
            enough.set()

    def handle_in_thread(message: Any) -> None:
        in_thread(*place(message))
        if len(calls.ended_at) >= count:
            loop.call_soon_threadsafe(enough.set)

    if threads:
        from anyio.to_thread import current_default_thread_limiter

        # Its own default would be 40 threads.
        current_default_thread_limiter().total_tokens = CONCURRENCY
    handler: Any = handle_in_thread if threads else handle
    # By the type of its parameter it knows that the handler wants the message, not its value.
    handler.__annotations__["message"] = kind
    subscriber = broker.subscriber(topic, group_id=group, auto_offset_reset="earliest", max_workers=CONCURRENCY)
    subscriber(handler)
    await broker.start()
    await enough.wait()
    calls.say()
    await broker.stop()


def _waits(calls: Calls) -> tuple[AsyncWait, Wait]:
    async def in_loop(key: bytes | None, offset: int) -> None:
        calls.begin(key, offset)
        await asyncio.sleep(WAIT_S)
        calls.end(key)

    def in_thread(key: bytes | None, offset: int) -> None:
        calls.begin(key, offset)
        time.sleep(WAIT_S)
        calls.end(key)

    return in_loop, in_thread


PROGRAMS: dict[str, Callable[..., Awaitable[None]]] = {
    each.__name__: each for each in (gather, faststream_confluent, faststream_aiokafka)
}


async def main(name: str, servers: str, topic: str, count: str, group: str, way: str) -> None:
    await PROGRAMS[name](servers, topic, int(count), group, Calls(), threads=way == "threads")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
