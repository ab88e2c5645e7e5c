"""The parts of one consumer, which its loop puts together. Each has one owner of its state; all are used by the loop's
thread.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from confluent_kafka import Message

from workers.consumer.assignment import Assignment, PartitionState
from workers.consumer.execution import Executor
from workers.consumer.fetching import FetchWatch
from workers.consumer.scheduling import Partition, Scheduler, Work
from workers.consumer.starting import Starts
from workers.deadletters.writer import DeadLetter
from workers.kafka.client import ClientState
from workers.kafka.watermarks import Watermarks
from workers.lifecycle import Shutdown
from workers.producer.deliveries import DeliveriesByTopic

if TYPE_CHECKING:
    from workers.consumer.transactions import Transaction


class OutputSender(Protocol):
    """Writes what handlers give back: `Outputs`, or with exactly-once `Transaction`.

    `topics` has the outcomes of outputs, by topic; `messages` are those that are held or have no outcome.
    """

    @property
    def transaction(self) -> "Transaction | None":
        """The transaction that the outputs and the offsets are committed in, None without exactly-once."""

    @property
    def topics(self) -> DeliveriesByTopic: ...

    @property
    def messages(self) -> int: ...

    @property
    def works(self) -> Collection[Work]:
        """The works whose outputs are under way, or have outcomes that were not taken yet."""

    @property
    def full(self) -> bool:
        """Whether no other message may begin."""

    @property
    def only_next(self) -> bool:
        """Whether only messages at the low-water mark may begin."""

    def send(self, work: Work) -> None:
        """Take the answers of a finished work."""

    def try_again(self, work: Work) -> None:
        """Where messages of `work` are handled again, try their outputs again, however often these were refused."""

    def poll(self, timeout_s: float) -> None:
        """Serve delivery reports; raises WorkerError when the client cannot go on."""

    def take(self) -> list[Work]:
        """The works whose outputs have their outcomes. Where one has failed, its message was not handled."""

    def await_outcomes(self, left_s: Callable[[], float], partitions: Collection[Partition] | None = None) -> int:
        """Wait for outcomes while `left_s` says that there is time, and return how many outputs have none; raises
        nothing.
        """

    def forsake(self, partitions: Collection[Partition], *, lost: bool = True) -> None:
        """Forget partitions. With `lost` others have them."""

    def close(self, timeout_s: float) -> str | None:
        """End the client; return what went wrong, or None."""


class DeadLetterWriter(Protocol):
    """Writes dead letters: `DeadLetters`, or with exactly-once `HeldDeadLetters`."""

    @property
    def held(self) -> bool:
        """Whether they are held for a transaction, and count only when that is committed."""

    @property
    def named(self) -> str | None:
        """The topic that the user has named for all dead letters, None where each topic has its own."""

    def missing(self, client: Any, topics: Iterable[str]) -> list[str]:
        """The dead-letter topics of `topics` that are not there, without those that brokers tell nothing of."""

    def send(self, message: Message, error: BaseException, attempts: int) -> DeadLetter:
        """Send the dead letter of a message; look at it after later calls of `poll`."""

    def poll(self, timeout_s: float) -> None:
        """Serve delivery reports of dead letters; raises WorkerError when the client cannot go on."""

    def close(self, timeout_s: float) -> None: ...


class OffsetCommitter(Protocol):
    """Commits the low-water marks: `StoredOffsets`, or with exactly-once `Transaction`.

    `successes` and `failures` count commits. `forgotten_since` is when the group's coordinator began to refuse them,
    None while it does not.
    """

    forgotten_since: float | None

    @property
    def successes(self) -> int: ...

    @property
    def failures(self) -> int: ...

    @property
    def due_s(self) -> float:
        """In how many seconds `stage` has something to do; infinite where it has whenever it is called."""

    @property
    def longest_s(self) -> float:
        """How long `stage` with `now` may take."""

    @property
    def pending(self) -> bool:
        """Whether there is something that only a later `stage` commits; at the end `stage` with `now` does."""

    def stage(self, states: Collection[PartitionState], *, now: bool = False, idle: bool = False) -> None:
        """Have the low-water marks that have changed committed; `now` says that there is no later time, `idle` that the
        loop has nothing else to do.
        """

    def forgotten(self) -> bool:
        """Whether the group has refused our commits for too long: others own our partitions by now."""


@dataclass(slots=True)
class Parts:
    """The parts that the loop, flow control, membership and the handling of failures share.

    `client` is confluent-kafka's Consumer, replaced when the group is joined anew. With exactly-once, `outputs` and
    `committer` are one transaction.
    """

    client: Any
    client_state: ClientState
    assignment: Assignment
    scheduler: Scheduler
    executor: Executor
    outputs: OutputSender
    committer: OffsetCommitter
    starts: Starts
    fetching: FetchWatch
    watermarks: Watermarks
    shutdown: Shutdown
