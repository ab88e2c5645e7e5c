"""The choices of a user about how messages are handled, and how many."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.consumer.failures import ErrorPolicy, OnDecision
from workers.consumer.flow import BATCH_MESSAGES, MAX_DISTANCE_MESSAGES
from workers.consumer.scheduling import Order
from workers.handlers import Lifespan, Middleware


@dataclass(frozen=True, slots=True)
class Handling:
    """The handler, and how it is called: up to `concurrency` calls at once.

    `order` says which messages are handled one after the other. `on_decision` is told what becomes of each message that
    failed.
    """

    lifespan: Lifespan
    middlewares: Sequence[Middleware] = ()
    concurrency: int = 1
    order: Order = "partition"
    policy: ErrorPolicy = field(default_factory=ErrorPolicy)
    on_decision: OnDecision | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a consumer. A bound of None is no bound.

    `max_messages` ends the consumer; `max_rate` is in messages a second. `max_dead_letter_share` is the share of
    handled messages above which no dead letter is written. `idle_timeout_s` ends a consumer that has nothing to do, and
    `stall_timeout_s` is how long a call may take before /livez fails. `batch_size` is the most messages of a batch, and
    `max_distance` how far messages of a partition may be done beyond its low-water mark.
    """

    max_messages: int | None = None
    max_rate: float | None = None
    max_dead_letter_share: float | None = None
    idle_timeout_s: float | None = None
    stall_timeout_s: float = 300.0
    batch_size: int = BATCH_MESSAGES
    max_distance: int = MAX_DISTANCE_MESSAGES
