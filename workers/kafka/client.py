"""What both workers do with their librdkafka client: make it, hear its events, wait for its brokers.

librdkafka reports through callbacks that run inside `poll`. They only take notes here; the worker's loop looks at the
notes and decides, because an exception raised in a callback gets lost or surfaces in the wrong place.
"""

import logging
import time
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, TopicMetadata

from workers.config import ClientConfig
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.kafka.statistics import Statistics, parse
from workers.lifecycle import Shutdown

log = logging.getLogger("workers")
# How long a topic may be missing at the start when no --timeout is given: a KafkaTopic that was just applied takes
# seconds.
TOPIC_GRACE_S = 10.0
# The same complaint again only after this long.
REPEAT_S = 10.0
# Lines of librdkafka; some have numbers in them that do not come again.
MAX_REMEMBERED = 1000


class Repeats(logging.Filter):
    """Lets the same line of librdkafka through once in REPEAT_S; it says at every attempt that a broker is away."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        # Behind this it says how long it took, and how often it was not said.
        text = record.getMessage().partition(" (after ")[0]
        now = time.monotonic()
        if now - self._said.get(text, -REPEAT_S) < REPEAT_S:
            return False
        if len(self._said) >= MAX_REMEMBERED:
            self._said.clear()
        self._said[text] = now
        return True


LIBRDKAFKA = logging.getLogger("librdkafka")


LIBRDKAFKA.addFilter(Repeats())


_Client = TypeVar("_Client", Consumer, Producer, AdminClient)


class ClientState:
    """What librdkafka said last: its statistics, whether brokers answer, and what ends the worker."""

    def __init__(self) -> None:
        self.statistics: Statistics | None = None
        self.fatal: WorkerError | None = None
        self._connected = False
        self._said: dict[str, float] = {}

    @property
    def brokers_up(self) -> bool:
        return self.statistics is not None and self.statistics.brokers_up > 0

    def callbacks(self) -> dict[str, Any]:
        return {"error_cb": self.on_error, "stats_cb": self.on_statistics, "logger": LIBRDKAFKA}

    def on_statistics(self, text: str) -> None:
        self.statistics = parse(text)
        self._connected = self._connected or self.statistics.brokers_up > 0

    def on_error(self, error: KafkaError) -> None:
        reason = error.str()
        if error.fatal():
            self.fatal = WorkerError(f"fatal Kafka error {error.name()}: {reason}")
        elif error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL) and _is_refusal(reason):
            # Trying again with the same secrets cannot help; a restarted pod reads them anew.
            code = ExitCode.FAILED if self._connected else ExitCode.USAGE
            self.fatal = WorkerError(
                f"the brokers refuse us, check the password, the CA and the certificates: {reason}", code
            )
        else:
            self.say(error.name(), reason)

    def say(self, name: str, reason: str) -> None:
        """Logs a warning, unless the same `name` was said a moment ago."""
        now = time.monotonic()
        if now - self._said.get(name, -REPEAT_S) >= REPEAT_S:
            self._said[name] = now
            log.warning("%s: %s", name, reason)

    def check(self) -> None:
        """Raises WorkerError when the worker cannot go on."""
        if self.fatal is not None:
            raise self.fatal


def _is_refusal(reason: str) -> bool:
    """A handshake that failed for what we are, not for a broker that went away in its middle."""
    return any(word in reason.lower() for word in ("authentication failed", "credential", "certificate", "verify"))


def create_client(kind: type[_Client], config: ClientConfig, extra: dict[str, Any]) -> _Client:
    """A client; raises ConfigError naming the property that librdkafka refuses."""
    try:
        return kind({**config.properties(), **extra})
    except KafkaException as error:
        raise config.explain(error) from None
    except (TypeError, ValueError, AttributeError) as error:
        # For what the binding takes for itself, as callbacks.
        raise ConfigError(f"a property cannot be used: {error}; --show-config shows what is in force") from None


def wait_for_topics(
    client: Consumer | Producer | AdminClient,
    topics: list[str],
    config: ClientConfig,
    client_state: ClientState,
    *,
    timeout_s: float | None,
    shutdown: Shutdown | None = None,
) -> dict[str, int]:
    """The number of partitions of each topic, as soon as brokers answer; says so while they do not.

    Raises WorkerError when `timeout_s` is over (None waits for ever) and ConfigError when the brokers answer that a
    topic does not exist or is not ours to see. Returns an empty dictionary when a stop was asked for meanwhile.
    """
    servers = config.get("bootstrap.servers")
    started = time.monotonic()
    answered_at: float | None = None
    while shutdown is None or not shutdown.requested:
        found: dict[str, TopicMetadata] | None
        try:
            found = {topic: client.list_topics(topic, timeout=1.0).topics[topic] for topic in topics}
            if not topics:
                client.list_topics(timeout=1.0)
        except KafkaException as error:
            found = None
            client_state.say("waiting", f"no answer from {servers} yet, still trying: {error.args[0].str()}")
        wrong, remedy = _complaint(found or {})
        mistake = ConfigError(f"--topic: {wrong} at {servers}; {remedy}")
        try:
            _poll(client)
            client_state.check()
        except KafkaException as error:
            # A producer that may write to no topic: librdkafka's idempotence takes that as fatal.
            raise mistake if wrong else WorkerError(f"fatal Kafka error: {error.args[0].str()}") from None
        now = time.monotonic()
        if found is not None:
            answered_at = answered_at or now
            if not wrong:
                return {topic: len(metadata.partitions) for topic, metadata in found.items()}
            client_state.say("waiting", f"{wrong} at {servers} yet")
            if now - answered_at >= (TOPIC_GRACE_S if timeout_s is None else timeout_s):
                raise mistake
        elif timeout_s is not None and now - started >= timeout_s:
            raise WorkerError(
                f"no answer from {servers} within {timeout_s:g} s; check --bootstrap-servers and that Kafka runs"
            )
        time.sleep(0.2)
    return {}


def poll_producer(client: Producer, client_state: ClientState, timeout_s: float) -> None:
    """Serves the callbacks of a producer: delivery reports and events.

    The binding raises a fatal error here instead of telling `error_cb`; it is noted like every other.
    """
    try:
        client.poll(timeout_s)
    except KafkaException as error:
        client_state.fatal = client_state.fatal or WorkerError(f"fatal Kafka error: {error.args[0].str()}")


def _complaint(topics: dict[str, TopicMetadata]) -> tuple[str, str]:
    """What is wrong with the topics and what to do about it, empty when nothing is."""
    no_right = KafkaError.TOPIC_AUTHORIZATION_FAILED
    refused = [topic for topic, metadata in topics.items() if metadata.error and metadata.error.code() == no_right]
    if refused:
        # Brokers say so whether the topic exists or not.
        return f"the user has no right to {', '.join(refused)}", "grant it, or correct the user"
    missing = [topic for topic, metadata in topics.items() if not metadata.partitions]
    if missing:
        return f"{', '.join(missing)} does not exist", "create it, or correct the name"
    return "", ""


def _poll(client: Consumer | Producer | AdminClient) -> None:
    """Serves the callbacks; a consumer without a subscription has no message to lose."""
    client.poll(0)
