"""Watches the brokers of an embedded cluster: says which has ended, and starts it again or leaves it down.

Somebody may kill a broker to see what producers and consumers do: the cluster goes on. It ends only when a broker does
not come back.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from workers.errors import ClusterError
from workers.local.cluster import START_TIMEOUT_S, Broker, Cluster

# The others notice after 3 s that a broker is gone; a moment longer shows the new leaders at work.
RESTART_DELAY_S = 5.0
# Starts of one broker that may fail, one after the other.
MAX_FAILURES = 3
ANSWER_TIMEOUT_S = 1.0


@dataclass(slots=True)
class Absence:
    """A broker that has ended and is not back: it is started at `start_at`, and then answers or fails."""

    broker: Broker
    start_at: float
    failures: int = 0
    started: bool = False


class Supervisor:
    """Call `look` every now and then, from one thread; `say` gets a line for each event."""

    def __init__(
        self,
        cluster: Cluster,
        say: Callable[[str], None],
        *,
        restart: bool,
        answers: Callable[[Broker], bool] | None = None,
    ) -> None:
        self._cluster = cluster
        self._say = say
        self._restart = restart
        self._answers = answers or answers_requests
        self._absences: dict[int, Absence] = {}

    def look(self) -> None:
        """Take note of what has ended, and start what is due.

        Raises ClusterError with a broker's last words when it has failed to start MAX_FAILURES times.
        """
        for broker, pid, how in self._cluster.ended():
            self._take_note(broker, f"broker {broker.node_id} (PID {pid}) has ended: {how}")
        for absence in list(self._absences.values()):
            if not absence.started:
                if time.monotonic() >= absence.start_at:
                    self._cluster.start_broker(absence.broker.node_id)
                    absence.started = True
            elif self._answers(absence.broker):
                del self._absences[absence.broker.node_id]
                self._say(f"broker {absence.broker.node_id} is back: PID {absence.broker.pid}")
            elif time.monotonic() >= absence.start_at + START_TIMEOUT_S:
                self._cluster.kill_broker(absence.broker.node_id)
                self._take_note(
                    absence.broker, f"broker {absence.broker.node_id} has not answered within {START_TIMEOUT_S:.0f} s"
                )

    def _take_note(self, broker: Broker, event: str) -> None:
        if not self._restart:
            self._say(f"{event}; it stays down (--no-restart)")
            return
        absence = self._absences.setdefault(broker.node_id, Absence(broker, 0.0))
        absence.failures += absence.started
        if absence.failures >= MAX_FAILURES:
            raise ClusterError(f"{event}; it did not come back {absence.failures} times: {broker.last_words()}")
        absence.started = False
        absence.start_at = time.monotonic() + RESTART_DELAY_S
        self._say(f"{event}; it starts again in {RESTART_DELAY_S:.0f} s")


def answers_requests(broker: Broker) -> bool:
    """Whether the broker itself answers; waits for it up to ANSWER_TIMEOUT_S."""
    client = AdminClient({"bootstrap.servers": f"127.0.0.1:{broker.port}", "log_level": 0})
    try:
        return broker.node_id in client.list_topics(timeout=ANSWER_TIMEOUT_S).brokers
    except KafkaException:
        return False
