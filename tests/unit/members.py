"""Members of a group on brokers in memory, and handlers for them."""

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka import Message

from workers.config import PRODUCER_DEFAULTS, ClientConfig, Precedence, Setting
from workers.consumer.failures import ErrorPolicy
from workers.consumer.flow import BATCH_MESSAGES
from workers.testing.handling import Member
from workers.testing.memory import FakeBroker
from workers.testing.processes import eventually

QUICK = ErrorPolicy(backoff_s=0.01, backoff_max_s=0.02)
FOR_EVER = ErrorPolicy("retry", backoff_s=0.01, backoff_max_s=0.02)
BY_KEY = {"concurrency": 8, "order": "key"}


class Handled:
    """A handler that notes what it was given; `before` is called for each message first."""

    def __init__(self, before: Callable[[Message], object] = lambda _: None) -> None:
        self.messages: list[tuple[int, int, Any]] = []
        self._before = before

    def __call__(self, message: Message) -> None:
        place = message.partition() or 0, message.offset() or 0, message.value()
        self._before(message)
        self.messages.append(place)

    def more_than(self, count: int) -> bool:
        return len(self.messages) > count

    @property
    def values(self) -> list[Any]:
        return [value for _, _, value in self.messages]

    @property
    def offsets(self) -> list[int]:
        return [offset for _, offset, _ in self.messages]


class Group:
    """Starts members, and ends at the end of the test those that still run."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.members: list[Member] = []
        self.gate = threading.Event()

    def member(self, handler: Any, **options: Any) -> Member:
        member = Member(self.broker, lambda: nullcontext(handler), **{"policy": QUICK, **options})
        self.members.append(member)
        return member

    def hold_at(self, offset: int) -> tuple[threading.Event, Callable[[Message], None]]:
        """A function that stands still at one message until `gate` is set, and an event that says it has come there."""
        there = threading.Event()

        def hold(message: Message) -> None:
            if message.offset() == offset:
                there.set()
                self.gate.wait(20)

        return there, hold

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for `condition`; raises what has ended a member."""

        def met() -> Any:
            for member in self.members:
                if member.error is not None:
                    raise member.error
            return condition()

        return eventually(met, what, 20)

    def check_backlog_waits(self, member: Member) -> None:
        """Check that a member that can handle nothing takes little of a large backlog, and does not spin."""
        self.until(lambda: member.consumer.status.waiting >= BATCH_MESSAGES, "enough waits")
        polls, begun = member.client.polls, time.monotonic()
        time.sleep(1)
        assert (member.client.polls - polls) / (time.monotonic() - begun) < 150
        assert member.consumer.status.waiting < 2 * BATCH_MESSAGES + 200

    def end(self) -> None:
        """Stop all members and wait for them."""
        self.gate.set()
        self.broker.kill()
        for member in self.members:
            # Outputs of a killed producer get no outcome: nothing is worth waiting for.
            member.shutdown.timeout_s = 0.2
            member.shutdown.request()
        for member in self.members:
            eventually(partial(getattr, member, "ended"), "the member ends", 20)


def trusting(ca_file: Path) -> ClientConfig:
    """Of a client that trusts the CAs in a file."""
    told = {
        "bootstrap.servers": "127.0.0.1:1",
        "security.protocol": "ssl",
        "ssl.ca.location": str(ca_file),
    }
    return ClientConfig(PRODUCER_DEFAULTS, [Setting(*each, Precedence.COMMAND_LINE, "") for each in told.items()])


def numbers(begin: int, end: int) -> list[bytes]:
    return [b"%d" % each for each in range(begin, end)]


def key_of_ten(value: bytes) -> bytes:
    return value[-1:]
