"""A producer whose client is made anew when the files of its credentials have changed.

librdkafka reads certificates once, when a client is made. So a new client takes the place of the old one, which has
delivered what it had by then: the order within a partition holds, and no message is in both.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import confluent_kafka

from workers.config import ClientConfig
from workers.kafka.client import ClientState, create_client, poll_producer, purge_producer
from workers.kafka.credentials import Credentials, CredentialsWatch
from workers.lifecycle import call_with_timeout

log = logging.getLogger("workers")
# Where brokers refuse the old client, its messages are waited for no longer: the other brokers have answered by then.
PATIENCE_S = 2.0


class RenewedProducer:
    """A client of `config` and its `state`. `client` is None until `made` is called.

    `due` says that credentials have changed which need a new client; who sends nothing meanwhile has it sooner.
    `properties` are the client's besides those of `config`, `connect` makes a client of these and its callbacks, and
    `topic` is the one that brokers are asked about before the old client is given up, None for all; `accepted` is as
    for CredentialsWatch.
    """

    def __init__(
        self,
        config: ClientConfig,
        auth_timeout_s: float,
        *,
        properties: Mapping[str, Any],
        topic: str | None = None,
        connect: Callable[[dict[str, Any]], Any] | None = None,
        accepted: Callable[[Credentials], bool] = lambda _: True,
    ) -> None:
        self.client: Any = None
        self.state = ClientState(config, auth_timeout_s)
        self.due = False
        self._due_since = 0.0
        self._watch = CredentialsWatch(config, self.state, accepted)
        self._own = {**self.state.callbacks(), **properties}
        self._topic = topic
        self._connect = connect or (
            lambda own: create_client(confluent_kafka.Producer, config, own, self._watch.credentials)
        )

    def made(self) -> Any:
        """The client, which is made when there is none; raises as `create_client`."""
        if self.client is None:
            self.client = self._make()
        return self.client

    def refresh(self) -> None:
        """Look for changed credentials; a changed password is set on the client."""
        due = self._watch.refresh(self.client)
        if due and not self.due:
            self.due, self._due_since = True, time.monotonic()

    def poll(self, timeout_s: float) -> None:
        """Look for changed credentials, and serve the callbacks of the client."""
        self.refresh()
        if self.client is not None:
            poll_producer(self.client, self.state, timeout_s)

    def serve(self, timeout_s: float, patience_s: float = float("inf")) -> None:
        """Poll, and renew the client when that is due and nothing is under way.

        Messages under way are purged once brokers accept a new client: after PATIENCE_S where brokers refuse the old
        one, after `patience_s` in any case.
        """
        self.poll(timeout_s)
        if self.client is None or not len(self.client):
            self.renew()
        elif self.due:
            due_s = time.monotonic() - self._due_since
            if due_s >= patience_s or (due_s >= PATIENCE_S and self.state.refusing_brokers):
                self.renew(self._give_up)

    def renew(self, drain: Callable[[], None] = lambda: None) -> None:
        """Have a new client take the place of the old one, where that is due and brokers accept the new one; `drain`
        waits for the messages of the old one.
        """
        if not self.due:
            return
        self.due = False
        if self.client is not None:
            fresh = self._watch.connect(self._make, self._topic)
            if fresh is None:
                return
            drain()
            call_with_timeout(self.client.close, 0)
            self.client = fresh
        self._watch.renewed()

    def purge(self) -> None:
        """Have each message under way fail, and take the reports of that."""
        purge_producer(self.client, lambda timeout_s: poll_producer(self.client, self.state, timeout_s))

    def _give_up(self) -> None:
        """Purge: the old client would keep its messages until delivery.timeout.ms."""
        log.warning(
            "credentials have changed, and %d messages are not acknowledged by the client with the old ones; giving up "
            "on them",
            len(self.client),
        )
        self.purge()

    def _make(self) -> Any:
        return self._connect(dict(self._own))
