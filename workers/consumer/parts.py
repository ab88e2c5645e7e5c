"""The parts of one consumer, which its loop puts together. Each has one owner of its state; all are used by the loop's
thread.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.consumer.assignment import Assignment
from workers.consumer.committing import StoredOffsets
from workers.consumer.execution import Executor
from workers.consumer.fetching import FetchWatch
from workers.consumer.outputs import Outputs
from workers.consumer.scheduling import Scheduler
from workers.consumer.starting import Starts
from workers.kafka.client import ClientState
from workers.kafka.watermarks import Watermarks
from workers.lifecycle import Shutdown

if TYPE_CHECKING:
    from workers.consumer.transactions import Transaction


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
    outputs: "Outputs | Transaction"
    committer: "StoredOffsets | Transaction"
    starts: Starts
    fetching: FetchWatch
    watermarks: Watermarks
    shutdown: Shutdown
