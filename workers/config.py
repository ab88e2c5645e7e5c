"""A worker's settings for its connection, checked once, and the librdkafka configuration made from them.

A property can be set in several places; the strongest wins: command line, then environment, then the properties
file, then the default here, then librdkafka's own. Every value remembers where it came from, so that a mistake can
be named and `--show-config` can say it. Secrets come from files or from variables, and are never shown.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from confluent_kafka import KafkaException

from workers.columns import aligned
from workers.errors import ConfigError


class Precedence(IntEnum):
    """How strong a place is; a setting of a higher rank replaces one of a lower."""

    DEFAULT = 0
    FILE = 1
    ENVIRONMENT = 2
    COMMAND_LINE = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """One librdkafka property: `origin` is where it came from, in the user's words; `file` is the file that holds its
    value, and may hold another later.
    """

    name: str
    value: str = field(repr=False)
    precedence: Precedence
    origin: str
    file: Path | None = None

    @property
    def secret(self) -> bool:
        return _SECRET.search(self.name) is not None

    @property
    def shown(self) -> str:
        return _MASK if self.secret else _PASSWORD_IN_ADDRESS.sub(rf"\1{_MASK}@", self.value)


_MASK = "********"
# Misspelt names and those of other clients too: --show-config prints them before librdkafka refuses them.
# ssl.key.location, ssl.keystore.location and assertion.private.key.file are paths of secrets, and may be shown.
_SECRET = re.compile(
    r"pas+w|passphrase|pwd|secret|jaas|credential|user\.info|auth\.token|oauthbearer\.config|key\.pem|keystore\.key$"
)
# https://user:password@host
_PASSWORD_IN_ADDRESS = re.compile(r"(://[^/@:\s]*:)[^/@\s]+@")
# librdkafka's names have dots, but for these. Other text before an equals sign may be a part of a secret, as in
# `sasl.password: c2VjcmV0=`.
_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+|acks|retries|debug|partitioner")


@dataclass(frozen=True, slots=True)
class Default:
    """A property that we set otherwise than librdkafka does, and why."""

    name: str
    value: str
    reason: str


COMMON_DEFAULTS = (
    Default("statistics.interval.ms", "1000", "lag, round trips and readiness are read from the statistics"),
    Default("socket.keepalive.enable", "true", "a peer that vanished behind a load balancer is noticed"),
    Default("reconnect.backoff.max.ms", "2000", "a broker that is back is used within 2 s instead of 10 s"),
    Default("topic.metadata.refresh.interval.ms", "60000", "added partitions are seen within a minute"),
)
PRODUCER_DEFAULTS = (
    *COMMON_DEFAULTS,
    Default("acks", "all", "acknowledged means: written by every replica in sync"),
    Default("enable.idempotence", "true", "retries neither duplicate nor reorder"),
    Default("max.in.flight", "1", "with more, a message may be written twice: librdkafka's issue 4953"),
    Default("linger.ms", "5", "batches at high rates for at most 5 ms of latency at low rates"),
    Default("delivery.timeout.ms", "120000", "as the Java client; after it the outcome is unknown"),
    Default("batch.num.messages", "10000", "a full request at high rates"),
    Default("queue.buffering.max.messages", "200000", "above our own bound, so the client never refuses a message"),
    Default("queue.buffering.max.kbytes", "1048576", "above our own bound, so the client never refuses a message"),
)
# Of the producers of `consume`, whose topics a handler may name.
OUTPUT_DEFAULTS = (
    *PRODUCER_DEFAULTS,
    Default("topic.metadata.propagation.max.ms", "5000", "an output to a topic that is not there fails in that time"),
)
# Of the producer of `consume --exactly-once`.
TRANSACTION_DEFAULTS = (
    *OUTPUT_DEFAULTS,
    Default("transaction.timeout.ms", "10000", "what a killed member has begun keeps its partitions waiting so long"),
    Default("delivery.timeout.ms", "10000", "librdkafka takes no more than transaction.timeout.ms"),
    Default("socket.timeout.ms", "10000", "a coordinator that does not answer is waited for no longer than that"),
    Default("max.in.flight", "5", "a request that is refused aborts its transaction, so nothing is written twice"),
)
CONSUMER_DEFAULTS = (
    *COMMON_DEFAULTS,
    Default("enable.auto.offset.store", "false", "an offset is stored after its message was handled"),
    Default("enable.auto.commit", "true", "stored offsets are committed on a timer, without a call for each batch"),
    Default(
        "auto.commit.interval.ms", "800", "offsets are stored every 0.2 s: a crash redelivers at most 1 s of messages"
    ),
    Default("auto.offset.reset", "earliest", "what came before the first commit is not skipped"),
    Default("fetch.queue.backoff.ms", "10", "librdkafka's 1000 throttles a fast consumer ten times"),
    Default(
        "fetch.max.bytes", "1048576", "librdkafka inflates a whole response: 50 MB of JSON at 14:1 would be 700 MB"
    ),
    Default("queued.max.messages.kbytes", "16384", "bounds the memory of a consumer with a backlog"),
    Default("socket.timeout.ms", "30000", "a fetch without a response is repeated after 30 s instead of 60 s"),
    Default("allow.auto.create.topics", "false", "a misspelt topic is an error, not a new topic"),
    Default("isolation.level", "read_committed", "what a transaction aborted is not handled"),
)
# Of `canary`, whose messages show how long the brokers take.
_CANARY_DEFAULTS = (
    Default("topic.metadata.refresh.interval.ms", "5000", "new leaders and partitions are noticed within 5 s"),
    Default("socket.timeout.ms", "10000", "a broker that hangs is noticed within 10 s"),
)
CANARY_PRODUCER_DEFAULTS = (
    *PRODUCER_DEFAULTS,
    *_CANARY_DEFAULTS,
    Default("linger.ms", "0", "a message waits for no other"),
    Default("delivery.timeout.ms", "30000", "a message without an acknowledgement for 30 s has failed"),
)
CANARY_CONSUMER_DEFAULTS = (*CONSUMER_DEFAULTS, *_CANARY_DEFAULTS)
# Refused with KIP-848, where the brokers decide both.
CLASSIC_DEFAULTS = (
    Default("partition.assignment.strategy", "cooperative-sticky", "a rebalance stops only the partitions that move"),
    # Not the 6 s that brokers accept at least: librdkafka's own thread sends the heartbeats, so a garbage collection or
    # a throttled CPU delays some, and ten have to be missed in a row.
    Default("session.timeout.ms", "10000", "the partitions of a killed member stand still for 10 s instead of 45 s"),
    Default("heartbeat.interval.ms", "1000", "a rebalance is heard of within 1 s instead of 3 s"),
)
# librdkafka knows these under two names; one of them is used here, or the same thing could be set twice.
# Source: the rows "Alias for" in CONFIGURATION.md of librdkafka.
_ALIASES = {
    "metadata.broker.list": "bootstrap.servers",
    "request.required.acks": "acks",
    "queue.buffering.max.ms": "linger.ms",
    "message.timeout.ms": "delivery.timeout.ms",
    "message.send.max.retries": "retries",
    "compression.codec": "compression.type",
    "max.in.flight.requests.per.connection": "max.in.flight",
    "max.partition.fetch.bytes": "fetch.message.max.bytes",
    "sasl.mechanisms": "sasl.mechanism",
    "sasl.oauthbearer.client.credentials.client.id": "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.credentials.client.secret": "sasl.oauthbearer.client.secret",
}
# The promises rest on these: a worker that silently ran with another value would break them.
_PROMISED = {
    "acks": ("all", "-1"),
    "enable.idempotence": ("true",),
    "enable.auto.offset.store": ("false",),
    "enable.auto.commit": ("true",),
    "delivery.report.only.error": ("false",),
}
_STATISTICS = "statistics.interval.ms"
SERVERS = "bootstrap.servers"
# HOST, HOST:PORT or PROTOCOL://HOST:PORT, with IPv6 in brackets, or bare where no port follows.
# Source: rd_kafka_broker_name_parse in librdkafka's rdkafka_broker.c.
_SERVER = re.compile(
    r"(?:[a-z_]+://)?(?:(?:[^\s\[\]:/@]+|\[[0-9a-f:.]+(?:%[^\s\[\]:/@]+)?\])(?::(?P<port>[0-9]{1,5}))?|[0-9a-f]*:[0-9a-f:.]*:[0-9a-f.]*)",
    re.IGNORECASE,
)
_NOT_SUPPORTED = {
    "transactional.id": "transactions by a property (see consume --exactly-once)",
    "enable.partition.eof": "end-of-partition events",
}


class ClientConfig:
    """The properties of one client, each with its origin."""

    def __init__(self, defaults: Iterable[Default], settings: Iterable[Setting]) -> None:
        ours = [Setting(each.name, each.value, Precedence.DEFAULT, f"default: {each.reason}") for each in defaults]
        chosen = {each.name: each for each in sorted([*ours, *settings], key=lambda each: each.precedence)}
        for setting in chosen.values():
            _check_text(setting)
            _check_promise(setting)
            if setting.name == "group.id" and not setting.value.strip():
                # The binding (2.16) would abort the process.
                raise ConfigError(f"{setting.origin}: group.id is empty; give the group a name, or leave it out")
            if setting.name == SERVERS:
                _check_servers(setting)
        self.settings: Mapping[str, Setting] = chosen

    def get(self, name: str, default: str = "") -> str:
        setting = self.settings.get(name)
        return default if setting is None else setting.value

    def properties(self) -> dict[str, str]:
        return {name: setting.value for name, setting in self.settings.items()}

    def explain(self, error: KafkaException) -> ConfigError:
        """Say which property librdkafka refuses, why, and where it was set; quote no secret."""
        text = str(error.args[0].str())
        # Names stand in quotation marks or have dots; a property without a dot, as `debug`, may be a word of the text.
        words = re.findall(r"[\"`']([a-z0-9_.]+)[\"`']|([a-z0-9]+(?:\.[a-z0-9]+)+)", text)
        named = {_ALIASES.get(word, word) for found in words for word in found if word}
        setting = next((each for name, each in self.settings.items() if name in named), None)
        if setting is None:
            return ConfigError(self._masked(f"{text}; --show-config shows what is in force"))
        if "No such configuration property" in text:
            return ConfigError(
                f"{setting.origin}: librdkafka has no property {setting.name!r}; its CONFIGURATION.md lists them"
            )
        # Where librdkafka names two, the user has set the other one.
        given = [each for name, each in self.settings.items() if name in named and each.precedence > Precedence.DEFAULT]
        setting = (given or [setting])[0]
        return ConfigError(self._masked(f"{setting.origin}: {setting.name}={setting.shown} cannot be used: {text}"))

    def _masked(self, text: str) -> str:
        """`text` without the values of secrets."""
        values = {each.value for each in self.settings.values() if each.secret and each.value}
        for value in sorted(values, key=len, reverse=True):
            text = text.replace(value, _MASK)
        return text

    def show(self) -> str:
        """A line for each property: name, value, origin; secrets masked."""
        return aligned([(each.name, each.shown, each.origin) for _, each in sorted(self.settings.items())])


def _check_text(setting: Setting) -> None:
    try:
        setting.value.encode()
    except UnicodeEncodeError:
        # Python puts half of a surrogate pair for such a byte of the environment.
        raise ConfigError(f"{setting.origin}: {setting.name} is not UTF-8 text; write it as UTF-8") from None


def servers_of(setting: Setting) -> list[str]:
    """The brokers in a value of bootstrap.servers, as librdkafka takes it apart."""
    return [text for each in setting.value.split(",") if (text := each.strip())]


def _check_servers(setting: Setting) -> None:
    servers = servers_of(setting)
    if not servers:
        raise ConfigError(f"{setting.origin}: {SERVERS} names no broker; give HOST:PORT, several with commas between")
    for server in servers:
        found = _SERVER.fullmatch(server)
        # librdkafka (2.16) takes a port modulo 65536.
        if found is None or not 1 <= int(found["port"] or 9092) <= 65535:
            shown = "a broker (not shown, it may hold a password)" if "@" in server else repr(server)
            raise ConfigError(
                f"{setting.origin}: {shown} is not HOST:PORT with a port from 1 to 65535; write IPv6 as [::1]:9092, "
                "and several brokers with commas between"
            )


def _check_promise(setting: Setting) -> None:
    if setting.name in _NOT_SUPPORTED:
        raise ConfigError(
            f"{setting.origin}: {_NOT_SUPPORTED[setting.name]} are not supported; leave {setting.name} out"
        )
    if setting.name == _STATISTICS and not (setting.value.isdecimal() and 1 <= int(setting.value) <= 10_000):
        raise ConfigError(f"{setting.origin}: {_STATISTICS} must be 1 to 10000; lag and readiness need statistics")
    allowed = _PROMISED.get(setting.name)
    if allowed is not None and setting.value not in allowed:
        raise ConfigError(
            f"{setting.origin}: {setting.name} must be {allowed[0]!r}, which the delivery guarantees require; remove it"
        )


def parse_property(text: str, precedence: Precedence, origin: str) -> Setting:
    """Read `name=value`; raise ConfigError that names `origin` and quotes nothing: the text may hold a secret."""
    name, separator, value = text.partition("=")
    name = name.strip()
    if not separator or not _NAME.fullmatch(name):
        # The variable is split at white space.
        remedy = (
            "; write a value that has spaces into --properties-file" if precedence == Precedence.ENVIRONMENT else ""
        )
        raise ConfigError(
            f"{origin}: this is not NAME=VALUE with the name of a librdkafka property (not shown, it may be a secret)"
            f"{remedy}"
        )
    return Setting(_ALIASES.get(name, name), value.strip(), precedence, origin)


def read_properties_file(
    path: Path, parse: Callable[[str, Precedence, str], Setting] = parse_property
) -> list[Setting]:
    """Reads a file of `name=value` lines, each with `parse`; blank lines and lines that begin with # or ! are passed
    over.

    Raises ConfigError with the file and line.
    """
    lines = read_text(path).splitlines()
    return [
        parse(line, Precedence.FILE, f"{path} line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and line.strip()[0] not in "#!"
    ]


def read_secret(path: Path, origin: str, variable: str) -> str:
    """The content of a file that holds one secret, without the line end that editors add.

    Raises ConfigError that names `origin` and not the path, which is the secret itself where somebody gave it instead;
    that belongs into `variable`.
    """
    try:
        return _read(path).rstrip("\r\n")
    except _UnreadableError as error:
        raise ConfigError(
            f"{origin}: the file that it names cannot be read: {error}; the secret itself goes into variable {variable}"
        ) from None


def read_text(path: Path) -> str:
    """The text of a file; raises ConfigError when it cannot be read."""
    try:
        return _read(path)
    except _UnreadableError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


class _UnreadableError(Exception):
    """Why a file cannot be read, without its name."""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _UnreadableError(error.strerror) from None
    except UnicodeDecodeError:
        raise _UnreadableError("it is not UTF-8 text") from None
