"""The librdkafka client of both workers: create it, receive its events, wait for its brokers.

librdkafka reports through callbacks that run inside `poll`. They only take notes here; the worker's loop looks at the
notes and decides, because an exception raised in a callback gets lost or surfaces in the wrong place.
"""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, TopicMetadata

from workers.config import ClientConfig
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.kafka.authentication import AWS_MSK_IAM, OAUTHBEARER, REGION, unusable_mechanism
from workers.kafka.credentials import KINDS, Credentials, is_mounted, read_credentials
from workers.kafka.statistics import Statistics, parse
from workers.lifecycle import Shutdown

log = logging.getLogger("workers")
# How long a topic may be missing at the start when no --timeout is given: a KafkaTopic that was just applied takes
# seconds.
TOPIC_GRACE_S = 10.0
# How long each question may take whose answer is not needed.
ASK_TIMEOUT_S = 2.0
# Reports of messages that were purged need no broker.
PURGE_S = 2.0
PURGE_POLL_S = 0.05
# The same complaint again only after this long.
REPEAT_S = 10.0
# Lines of librdkafka; some have numbers in them that do not come again.
MAX_REMEMBERED = 1000
# After this long without a failure a broker is not tried any more: librdkafka reports a failure again after 30 s.
REFUSAL_AGE_S = 75.0


# A coordinator that has just been elected: librdkafka asks again by itself.
_LOADING = r"^GETPID .*: Coordinator load in progress\b"
# The second is for an empty one, or several.
_BAD_MECHANISM = re.compile(r"(Unsupported|No provider for) SASL mechanism|^Invalid value for .*\"sasl\.mechanisms\"")
# Whoever consumes has a producer too, and what is given is for both.
_FOR_THE_PRODUCER = r"^CONFWARN .* is a producer property and will be ignored by this consumer instance"
_FOR_THE_CONSUMER = r"^CONFWARN .* is a consumer property and will be ignored by this producer instance"


class Normal(logging.Filter):
    """Make lines of librdkafka that match one of `patterns` lines of level DEBUG: they tell of nothing wrong."""

    def __init__(self, *patterns: str) -> None:
        super().__init__()
        self._pattern = re.compile("|".join(patterns))

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.DEBUG and self._pattern.search(record.getMessage()):
            record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return record.levelno > logging.DEBUG or LIBRDKAFKA.isEnabledFor(logging.DEBUG)


class Repeats(logging.Filter):
    """Pass the same line of librdkafka once in REPEAT_S; it logs an unreachable broker at every attempt."""

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
# Of a producer beside a consumer.
_BESIDE = LIBRDKAFKA.getChild("producer")
BESIDE_A_CONSUMER = {"logger": _BESIDE}
for _logger, _patterns in ((LIBRDKAFKA, [_LOADING, _FOR_THE_PRODUCER]), (_BESIDE, [_LOADING, _FOR_THE_CONSUMER])):
    _logger.addFilter(Normal(*_patterns))
    _logger.addFilter(Repeats())


TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)
# Why a message was not written, where the user can mend it.
_REASONS = {
    KafkaError._UNKNOWN_TOPIC: "the topic does not exist; create it, or correct the name",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "the topic does not exist; create it, or correct the name",
    KafkaError._UNKNOWN_PARTITION: "the topic has no such partition; correct it",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "the user has no right to write to the topic; grant it, or correct the name",
}
# For fatal errors that come again at the next start.
_FATAL_REMEDIES = {
    KafkaError.FENCED_INSTANCE_ID: "give each member a group.instance.id of its own",
    KafkaError.UNSUPPORTED_VERSION: "update the brokers, or leave out --group-protocol consumer",
}

_Client = TypeVar("_Client", Consumer, Producer, AdminClient)


@dataclass(slots=True)
class Refusal:
    """A broker with which authentication fails: it rejects our credentials, or we do not trust its certificate.

    Times are of the monotonic clock.
    """

    since: float
    heard_at: float
    reason: str


_CREDENTIALS = "check the password, the CA and the certificates"
# librdkafka's words for a token that it could not get, and the binding's for a callback that raised.
_NO_TOKEN = "Failed to acquire SASL OAUTHBEARER token"  # noqa: S105
_RAISED = "OAuth callback raised exception"
_LONGEST_REASON = 400
# For a client that nobody polls: its statistics and log lines would wait for that for ever, 26 KB a second and more.
UNPOLLED = {"statistics.interval.ms": 0, "log_level": 0}


# A turn that took longer counts as one of this length: a callback was slow, or the process was suspended.
TURN_S = 1.0


class ClientState:
    """The client's latest state: its statistics, whether brokers answer, and the error that ends the worker.

    Refused credentials end it after `auth_timeout_s`, if they may be changing: the client was connected before, or
    kubelet mounts the files of `config`. Otherwise, as without `config`, they end it at once.
    """

    def __init__(self, config: ClientConfig | None = None, auth_timeout_s: float = 0.0) -> None:
        self.statistics: Statistics | None = None
        # For how long the loop has turned without new ones, and when it did so last.
        self.silent_s = 0.0
        self._turned_at = float("inf")
        self.fatal: WorkerError | None = None
        self.renewals = dict.fromkeys(KINDS, 0)
        # Of the certificates in use, by kind, in Unix time; replaced as a whole, and read from any thread.
        self.certificate_expiries_s: dict[str, float] = {}
        self._config = config
        self._auth_timeout_s = auth_timeout_s
        self._refusals: dict[str, Refusal] = {}
        self._connected = False
        self._said: dict[str, float] = {}

    @property
    def brokers_up(self) -> bool:
        return self.statistics is not None and self.statistics.brokers_up > 0

    @property
    def refusing_brokers(self) -> int:
        """Number of brokers with which authentication fails now; read from any thread."""
        return len(self._refusals)

    def refused(self) -> str | None:
        """Why we are not ready though brokers answer, or None; called from any thread."""
        refusals = list(self._refusals.values())
        if not refusals:
            return None
        first = min(refusals, key=lambda each: each.since)
        return f"authentication has failed for {time.monotonic() - first.since:.0f} s: {first.reason}"

    def callbacks(self) -> dict[str, Any]:
        return {"error_cb": self.on_error, "stats_cb": self.on_statistics, "logger": LIBRDKAFKA}

    def on_statistics(self, text: str) -> None:
        self.statistics = statistics = parse(text)
        self.silent_s = 0.0
        up = {name for name, state in statistics.broker_states.items() if state == "UP"}
        self._connected = self._connected or bool(up)
        for name, refusal in list(self._refusals.items()):
            # The entry of a bootstrap server is not connected again when the brokers are known.
            over = name in up or (up and (name.endswith("/bootstrap") or name not in statistics.broker_states))
            if over or time.monotonic() - refusal.heard_at > REFUSAL_AGE_S:
                del self._refusals[name]

    def note_turn(self) -> None:
        """Called by the loop before each poll: a client whose main thread hangs sends no statistics any more."""
        now = time.monotonic()
        self.silent_s += max(0.0, min(TURN_S, now - self._turned_at))
        self._turned_at = now

    def on_error(self, error: KafkaError) -> None:
        reason = _in_one_line(error)
        if error.fatal():
            self.fatal = fatal_error(error)
        elif reason.startswith(_NO_TOKEN) and _is_away(reason):
            self.say("token", f"the token endpoint does not answer; check --oauth-token-url; still trying: {reason}")
        elif error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL) and _is_refusal(reason):
            self._on_refusal(error, reason)
        else:
            self.say(error.name(), reason)

    def on_renewal(self, kinds: list[str]) -> None:
        """Count credentials that were taken up; what was refused with the old ones is forgotten."""
        for kind in kinds:
            self.renewals[kind] += 1
        self._refusals.clear()
        log.info("credentials renewed: %s", ", ".join(kinds))

    def _on_refusal(self, error: KafkaError, reason: str) -> None:
        now = time.monotonic()
        refusal = self._refusals.setdefault(reason.partition(": ")[0], Refusal(now, now, reason))
        refusal.heard_at, refusal.reason = now, reason
        kinds = ("password",) if error.code() == KafkaError._AUTHENTICATION else ("ca", "certificate")
        config = self._config
        lags = config is not None and any(is_mounted(config, kind) for kind in kinds)
        if not (self._connected or lags):
            self._auth_timeout_s = 0.0
        self._check_refusals()

    def _check_refusals(self) -> None:
        """Ends the worker when it is refused for too long; says how it stands otherwise."""
        first = min(self._refusals.values(), key=lambda each: each.since)
        for_s = time.monotonic() - first.since
        if for_s >= self._auth_timeout_s:
            code = ExitCode.FAILED if self._connected else ExitCode.USAGE
            self.fatal = WorkerError(f"authentication failed; {_remedy(first.reason)}: {first.reason}", code)
        else:
            self.say(
                "refused",
                f"authentication failed; {_remedy(first.reason)}; trying on for "
                f"{self._auth_timeout_s - for_s:.0f} s: {first.reason}",
            )

    def say(self, name: str, reason: str) -> None:
        """Logs a warning, unless the same `name` was said a moment ago."""
        now = time.monotonic()
        if now - self._said.get(name, -REPEAT_S) >= REPEAT_S:
            self._said[name] = now
            log.warning("%s: %s", name, reason)

    def check(self) -> None:
        """Raises WorkerError when the worker cannot go on."""
        if self._refusals and self.fatal is None:
            self._check_refusals()
        if self.fatal is not None:
            raise self.fatal


def fatal_error(error: KafkaError) -> WorkerError:
    """The end of the worker for an error after which librdkafka's client does nothing more."""
    remedy = _FATAL_REMEDIES.get(error.code(), "start again")
    return WorkerError(f"fatal Kafka error {error.name()}: {_in_one_line(error)}; {remedy}")


def _in_one_line(error: KafkaError) -> str:
    # The page of a token endpoint may have many lines.
    return " ".join(error.str().split())[:_LONGEST_REASON]


def _is_refusal(reason: str) -> bool:
    """A handshake that failed for what we are, not for a broker that went away in its middle."""
    words = ("authentication failed", "credential", "certificate", "verify", "invalid_token", "access denied")
    return reason.startswith(_NO_TOKEN) or any(word in reason.lower() for word in words)


def _is_away(reason: str) -> bool:
    """A token endpoint that was not reached, in libcurl's words; everything else is its answer."""
    words = ("could not resolve", "failed to connect", "could not connect", "timed out", "timeout was", "recv failure",
             "send failure", "empty reply")  # fmt: skip
    return any(word in reason.lower() for word in words)


def _remedy(reason: str) -> str:
    if "AWS_MSK_IAM" in reason:
        # It has its own.
        return "no token could be made"
    if reason.startswith(_NO_TOKEN):
        if "certificate" in reason or "trust anchors" in reason:
            return "check the CA of the token endpoint (--oauth-ca-location)"
        return "check the client id, the client secret, the scope and the token endpoint"
    if "invalid_token" in reason or "access denied" in reason.lower():
        return "the brokers refuse the token; check the issuer, audience and scope that they expect, or the AWS role"
    return _CREDENTIALS


def create_client(
    kind: type[_Client], config: ClientConfig, extra: dict[str, Any], credentials: Credentials | None = None
) -> _Client:
    """A client with `credentials`, or with what their files hold now.

    Raises ConfigError naming the property that librdkafka refuses, or the file that cannot be used. With AWS_MSK_IAM it
    raises as `MskTokens`, too.
    """
    credentials = credentials or read_credentials(config)
    properties: dict[str, Any] = {**credentials.apply(config.properties()), **extra}
    if properties.get("sasl.mechanism") == AWS_MSK_IAM:
        properties = _with_msk_tokens(properties)
    try:
        return kind(properties)
    except KafkaException as error:
        if "OAuth token not set" in error.args[0].str():
            raise _no_aws_token() from None
        if _BAD_MECHANISM.search(error.args[0].str()):
            raise unusable_mechanism(config) from None
        raise config.explain(error) from None
    except ImportError as error:
        # Of the property sasl.oauthbearer.metadata.authentication.type=aws_iam.
        raise ConfigError(
            f"aws_iam needs the extra 'aws', pip install 'kafka-workers[aws]': {' '.join(str(error).split())}"
        ) from None
    except SystemError:
        # The binding (2.16) says so of a consumer whose callback has raised.
        raise _no_aws_token() from None
    except (TypeError, ValueError, AttributeError) as error:
        # For what the binding takes for itself, as callbacks.
        raise ConfigError(f"a property cannot be used: {error}; --show-config shows what is in force") from None


def _with_msk_tokens(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of a client that makes its tokens from AWS credentials, and tells why it cannot."""
    from workers.kafka.aws import MskTokens

    tokens = MskTokens(properties[REGION])
    tell = properties.get("error_cb")

    def on_error(error: KafkaError) -> None:
        if tell is not None:
            reason = error.str().replace(_RAISED, tokens.trouble or _RAISED)
            tell(KafkaError(error.code(), reason, fatal=error.fatal()) if _RAISED in error.str() else error)

    rest = {name: value for name, value in properties.items() if name != REGION}
    return {**rest, "sasl.mechanism": OAUTHBEARER, "oauth_cb": tokens, "error_cb": on_error}


def _no_aws_token() -> ConfigError:
    return ConfigError(
        "no token of AWS within 10 s; check the AWS credentials, and the role's right to sts:GetWebIdentityToken"
    )


def wait_for_topics(
    client: Consumer | Producer | AdminClient,
    topics: list[str],
    config: ClientConfig,
    client_state: ClientState,
    *,
    timeout_s: float | None,
    shutdown: Shutdown | None = None,
    refresh: Callable[[], Consumer | Producer | AdminClient] | None = None,
    option: str = "--topic",
    grace_s: float = float("inf"),
) -> dict[str, int]:
    """The number of partitions of each topic, as soon as brokers answer; says so while they do not.

    `refresh` is called before each try and returns the client to use, which may be another when credentials changed.
    `option` is the option that named the topics, for the error. Missing topics may still come within `grace_s` after
    the first answer, `timeout_s` at the most; within TOPIC_GRACE_S where that is None.
    Raises WorkerError when `timeout_s` is over (None waits for ever) and ConfigError when the brokers answer that a
    topic does not exist or is not ours to see. Returns an empty dictionary when a stop was asked for meanwhile.
    """
    servers = config.get("bootstrap.servers")
    grace_s = TOPIC_GRACE_S if timeout_s is None else min(timeout_s, grace_s)
    started = time.monotonic()
    answered_at: float | None = None
    while shutdown is None or not shutdown.requested:
        found: dict[str, TopicMetadata] | None
        client = refresh() if refresh is not None else client
        try:
            found = {topic: client.list_topics(topic, timeout=1.0).topics[topic] for topic in topics}
            if not topics:
                client.list_topics(timeout=1.0)
        except KafkaException as error:
            found = None
            if not client_state.refusing_brokers:
                client_state.say("waiting", f"no answer from {servers} yet, still trying: {error.args[0].str()}")
        wrong, remedy = _complaint(found or {})
        mistake = ConfigError(f"{option}: {wrong} at {servers}; {remedy}")
        try:
            _poll(client)
            client_state.check()
        except KafkaException as error:
            # A producer that may write to no topic: librdkafka's idempotence takes that as fatal.
            raise mistake if wrong else fatal_error(error.args[0]) from None
        now = time.monotonic()
        if found is not None:
            answered_at = answered_at or now
            if not wrong:
                return {topic: len(metadata.partitions) for topic, metadata in found.items()}
            client_state.say("waiting", f"{wrong} at {servers} yet")
            if now - answered_at >= grace_s:
                raise mistake
        elif timeout_s is not None and now - started >= timeout_s:
            # A listener of another protocol closes the connection, or its bytes are no TLS.
            with_tls = config.get("security.protocol").lower().endswith("ssl")
            tls = ", and that it speaks TLS there (--security-protocol)" if with_tls else ""
            raise WorkerError(
                f"no answer from {servers} within {timeout_s:g} s; check --bootstrap-servers and that Kafka runs{tls}"
            )
        time.sleep(0.2)
    return {}


def topics_are_created(config: ClientConfig) -> bool | None:
    """Whether brokers create a topic that is written to; None where they do not say, as without the right to ask."""
    admin = create_client(AdminClient, config, UNPOLLED)
    try:
        brokers = admin.list_topics(timeout=ASK_TIMEOUT_S).brokers
        resource = ConfigResource(ConfigResource.Type.BROKER, str(next(iter(brokers))))
        (answer,) = admin.describe_configs([resource], request_timeout=ASK_TIMEOUT_S).values()
        value: str = answer.result(ASK_TIMEOUT_S)["auto.create.topics.enable"].value
    except (KafkaException, TimeoutError, KeyError, StopIteration):
        return None
    return value == "true"


def reason_of(error: KafkaError, size: int | None = None) -> str:
    """Why a message of `size` bytes was not written, with the remedy where it is known."""
    if size is not None and error.code() in TOO_LARGE:
        return (
            f"{size} bytes are too large; raise message.max.bytes (--property) and the topic's max.message.bytes, or "
            f"send less: {error.str()}"
        )
    return _REASONS.get(error.code(), error.str())


def poll_producer(client: Producer, client_state: ClientState, timeout_s: float) -> None:
    """Serves the callbacks of a producer: delivery reports and events.

    The binding raises a fatal error here instead of telling `error_cb`; it is noted like every other.
    """
    try:
        client.poll(timeout_s)
    except KafkaException as error:
        client_state.fatal = client_state.fatal or fatal_error(error.args[0])


def purge_producer(client: Producer, serve: Callable[[float], object]) -> None:
    """Have each message without an outcome fail, and take the reports of that; `serve` polls the client for seconds.

    Not `flush`, which raises a fatal error before the reports are heard.
    """
    client.purge()
    until = time.monotonic() + PURGE_S
    while len(client) and time.monotonic() < until:
        serve(PURGE_POLL_S)


def _complaint(topics: dict[str, TopicMetadata]) -> tuple[str, str]:
    """The fault of the topics and its remedy, both empty when there is no fault."""
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
