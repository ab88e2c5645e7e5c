"""The options: what the commands share, and the types of their values."""

import math
import os
import re
import socket
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from workers.cli.parameters import Format
from workers.errors import ConfigError
from workers.kafka.messages import is_topic_name

INITS_OF_MACHINES = {"systemd", "init"}
_Command = TypeVar("_Command", bound=Callable[..., Any])
DEFAULT_METRICS_PORT = 8000
# Set by a shell that asks how a command line could go on; click has the name from that of the program.
COMPLETION_VARIABLE = "_KAFKA_WORKERS_COMPLETE"
# kubelet brings a changed Secret within a minute and a half, and an operator replaces the certificates of one broker
# after the other.
AUTH_TIMEOUT_S = 180.0


class Option(click.Option):
    """An option that is an environment variable too: `--some-option` is KAFKA_SOME_OPTION."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        attributes.setdefault("show_envvar", True)
        super().__init__(*arguments, **attributes)
        if self.envvar is None and self.name is not None:
            long_name = max(self.opts, key=len).lstrip("-")
            self.envvar = "KAFKA_" + long_name.replace("-", "_").upper()

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The variable's value; raises ConfigError when Kubernetes has set it for a Service."""
        value = super().resolve_envvar_value(ctx)
        if value is not None and _SERVICE_LINK.match(value):
            # Beside NAME_PORT there is NAME_SERVICE_HOST.
            prefix = str(self.envvar).removesuffix("_PORT")
            known = f"{prefix}_SERVICE_HOST" in os.environ
            service = f"the Service {prefix.lower().replace('_', '-')}" if known else "a Service"
            raise ConfigError(
                f"variable {self.envvar} is {value!r}, which Kubernetes sets for {service} in the namespace; set "
                "enableServiceLinks: false in the pod, rename the Service, or set the variable in the pod"
            )
        return value


# NAME_PORT=tcp://10.0.0.1:8000 is in each pod of a namespace that has a Service NAME.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")


class Command(click.Command):
    """A command that does not quote the words that it cannot place: one may be a secret."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_extra_args = True
        flag = self._flag_with_a_value(ctx, args)
        rest = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            if flag is not None and len(rest) == 1:
                ctx.fail(f"{flag} takes no value; leave out the word after it (not shown, it may hold a secret)")
            ctx.fail(
                f"{len(rest)} of the words belong to no option (not shown, they may hold a secret); put a value with "
                "spaces into quotation marks"
            )
        return rest

    def _flag_with_a_value(self, ctx: click.Context, args: list[str]) -> str | None:
        """The flag that a word without an option follows, if one does."""
        flags = {name for each in self.get_params(ctx) if getattr(each, "is_flag", False) for name in each.opts}
        return next((name for name, word in pairwise(args) if name in flags and not word.startswith("-")), None)


def option(*arguments: Any, **attributes: Any) -> Callable[[_Command], _Command]:
    return click.option(*arguments, cls=Option, **attributes)


def each_once(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The values of a repeatable option in their order, without repetitions."""
    return tuple(dict.fromkeys(values))


def apply(command: _Command, options: Sequence[Callable[[_Command], _Command]]) -> _Command:
    """The command with options, which --help lists in this order."""
    for each in reversed(options):
        command = each(command)
    return command


class Whole(click.IntRange):
    """A range of whole numbers, whose errors say so."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r} is not a whole number {self._bounds()}.", param, ctx)

    def _bounds(self) -> str:
        return f"from {self.min} on" if self.max is None else f"from {self.min} to {self.max}"


POSITIVE = Whole(min=1)


# Python's waits take no more than 292 years of seconds; nobody waits for 31.
LARGEST_NUMBER = 1_000_000_000


class FiniteRange(click.FloatRange):
    """A range of numbers up to LARGEST_NUMBER, without "inf", and without "nan", which is in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        if number > LARGEST_NUMBER:
            self.fail(f"{value} is more than {LARGEST_NUMBER}.", param, ctx)
        return number


class Topic(click.ParamType[str]):
    """A topic's name."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = str(value)
        if not is_topic_name(name):
            self.fail(
                f"{name!r} cannot be a topic: 1 to 249 letters, digits, dots, dashes and underscores.", param, ctx
            )
        return name

    def shell_complete(self, ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        from workers.cli.completion import topics

        return topics(ctx, incomplete)


class Group(click.ParamType[str]):
    """A consumer group's name."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = str(value)
        if not name.strip():
            self.fail("a consumer group needs a name; give one, or leave the option out.", param, ctx)
        return name

    def shell_complete(self, ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        from workers.cli.completion import groups

        return groups(ctx, incomplete)


class Function(click.ParamType[str]):
    """The name of a user's function."""

    name = "module:name"

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        from workers.cli.completion import functions

        return functions(incomplete)


class Regex(click.ParamType[re.Pattern[str]]):
    """A regular expression."""

    name = "regex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> re.Pattern[str]:
        try:
            return re.compile(value)
        except re.error as error:
            self.fail(f"{value!r} is no regular expression: {error}.", param, ctx)


def _time(text: str) -> datetime:
    """A time with its zone; raises ValueError that says what is wrong."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time as 2026-11-24T12:00:00Z.") from None
    if at.tzinfo is None:
        raise ValueError(f"{text!r} does not say its time zone; add Z, or +01:00.")
    return at


class Time(click.ParamType[datetime]):
    """A time with its zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            return _time(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Letter(click.ParamType[tuple[int, int]]):
    """A dead letter's partition and offset in the dead-letter topic."""

    name = "partition:offset"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        found = re.fullmatch(r"(\d{1,10}):(\d{1,18})", str(value), re.ASCII)
        if found is None:
            self.fail(f"{value!r} is not PARTITION:OFFSET, as `dead-letters list` shows it.", param, ctx)
        return int(found[1]), int(found[2])


class OffsetTarget(click.ParamType[str | int | datetime]):
    """Where in a log: its beginning, its end, an offset, or the first message that is not older than a time."""

    name = "beginning|end|offset|time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int | datetime:
        text = str(value)
        if text in ("beginning", "end"):
            return text
        if text.isdecimal():
            return int(text)
        try:
            return _time(text)
        except ValueError as error:
            self.fail(str(error).replace("not a time", "not beginning, end, an offset, or a time"), param, ctx)


TOPIC = Topic()
GROUP = Group()
FUNCTION = Function()
OFFSET_TARGET = OffsetTarget()
TIME = Time()
LETTER = Letter()
REGEX = Regex()
SECONDS = FiniteRange(min=0)
POSITIVE_NUMBER = FiniteRange(min=0, min_open=True)
# Options that are one librdkafka property each.
CONNECTION = {
    "bootstrap_servers": "bootstrap.servers",
    "client_id": "client.id",
    "security_protocol": "security.protocol",
    "sasl_mechanism": "sasl.mechanism",
    "sasl_username": "sasl.username",
    "ssl_ca_location": "ssl.ca.location",
    "ssl_certificate_location": "ssl.certificate.location",
    "ssl_key_location": "ssl.key.location",
    "oauth_token_url": "sasl.oauthbearer.token.endpoint.url",
    "oauth_client_id": "sasl.oauthbearer.client.id",
    "oauth_scope": "sasl.oauthbearer.scope",
    "oauth_extensions": "sasl.oauthbearer.extensions",
    "oauth_ca_location": "https.ca.location",
    # Ours: see workers/kafka/authentication.py.
    "aws_region": "aws.region",
}
# Secrets: the option with the file's name, the variable with the secret itself, and the property.
SECRETS = (
    ("sasl_password_file", "KAFKA_SASL_PASSWORD", "sasl.password"),
    ("ssl_key_password_file", "KAFKA_SSL_KEY_PASSWORD", "ssl.key.password"),
    ("oauth_client_secret_file", "KAFKA_OAUTH_CLIENT_SECRET", "sasl.oauthbearer.client.secret"),
)


def _client_id() -> str:
    """Tells members of a group apart: the pod's name in Kubernetes, where a host name has one worker."""
    return socket.gethostname() if _has_a_container() else f"{socket.gethostname()}-{os.getpid()}"


def _has_a_container() -> bool:
    """Whether a container was made for this process: it is process 1, or the child of an init that is."""
    if os.getppid() != 1:
        return os.getpid() == 1
    try:
        return Path("/proc/1/comm").read_text().strip() not in INITS_OF_MACHINES
    except OSError:
        return False


def connection_options(command: _Command) -> _Command:
    """How to reach the brokers, for every command that does."""
    protocols = click.Choice(["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"], case_sensitive=False)
    return apply(
        command,
        [
            option("--bootstrap-servers", default="localhost:9092", show_default=True, help="First brokers to ask."),
            option("--security-protocol", type=protocols, help="Protocol of the connections.  [default: plaintext]"),
            option("--sasl-mechanism", help="SCRAM-SHA-512, SCRAM-SHA-256, PLAIN, OAUTHBEARER or AWS_MSK_IAM."),
            option("--sasl-username", help="SASL user."),
            option("--sasl-password-file", type=Path, help="File with its password; or variable KAFKA_SASL_PASSWORD."),
            option("--oauth-token-url", metavar="URL",
                   help="Token endpoint of an OpenID Connect provider, for OAUTHBEARER."),
            option("--oauth-client-id", help="Client id at the token endpoint."),
            option("--oauth-client-secret-file", type=Path,
                   help="File with the client's secret; or variable KAFKA_OAUTH_CLIENT_SECRET."),
            option("--oauth-scope", help="Scope to request; several separated by spaces."),
            option("--oauth-extensions", metavar="NAME=VALUE,...", help="SASL extensions for the brokers."),
            option("--oauth-ca-location",
                   help="File or directory of CA certificates for the token endpoint.  "
                   "[default: those of the system]"),
            option("--aws-region", help="Region of an Amazon MSK cluster, for AWS_MSK_IAM.  [default: AWS_REGION]"),
            option("--ssl-ca-location", help="File or directory of CA certificates for the brokers."),
            option("--ssl-certificate-location", help="Client certificate (PEM), for mTLS."),
            option("--ssl-key-location", help="Its private key (PEM)."),
            option("--ssl-key-password-file", type=Path, help="File with its password; or KAFKA_SSL_KEY_PASSWORD."),
            option("--client-id", default=_client_id, show_default="host name and process id",
                   help="Name of this client in `lag` and in the brokers' logs."),
            option("--property", "properties", multiple=True, metavar="NAME=VALUE",
                   help="Any librdkafka property; repeatable."),
            option("--properties-file", type=Path, help="File of NAME=VALUE lines with librdkafka properties."),
            option("--timeout", type=POSITIVE_NUMBER,
                   help="Give up when no broker answers for this many seconds.  "
                   "[default: 60; never for produce, consume, canary, lag-exporter and top without --once]"),
            option("--show-config", is_flag=True, help="Print the values in force and their origin, and exit."),
            option("--log-format", type=click.Choice(["text", "json"]), help="[default: text on a terminal]"),
            option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info",
                   show_default=True),
        ],
    )  # fmt: skip


def format_option(name: str, what: str) -> Callable[[_Command], _Command]:
    """How a key or a value is read or written."""
    return option(
        name,
        type=click.Choice(get_args(Format)),
        help=f"{what}; all but json need a schema registry.  [default: bytes]",
    )


def registry_options(command: _Command) -> _Command:
    """How to reach a schema registry."""
    return apply(
        command,
        [
            option("--schema-registry-url", metavar="URL",
                   help="Address of the schema registry; several separated by commas."),
            option("--schema-registry-username", help="User of its basic authentication."),
            option("--schema-registry-password-file", type=Path,
                   help="File with its password; or variable KAFKA_SCHEMA_REGISTRY_PASSWORD."),
            option("--schema-registry-ca-location",
                   help="File of CA certificates for the registry."),
            option("--schema-registry-property", "schema_registry_properties", multiple=True, metavar="NAME=VALUE",
                   help="Any property of confluent-kafka's SchemaRegistryClient; repeatable."),
            option("--schema-registry-properties-file", type=Path, help="File of NAME=VALUE lines with them."),
        ],
    )  # fmt: skip


def group_selection_options(command: _Command) -> _Command:
    """Which groups and topics a command looks at."""
    return apply(
        command,
        [
            option("--group-id", "group_ids", type=GROUP, multiple=True,
                   help="Only this group; repeatable.  [default: every group]"),
            option("--group-filter", type=REGEX, help="Only groups whose whole name matches."),
            option("--topic", "topics", type=TOPIC, multiple=True,
                   help="Only this topic; repeatable.  [default: all of a group]"),
            option("--topic-filter", type=REGEX, help="Only topics whose whole name matches."),
        ],
    )  # fmt: skip


def metrics_options(command: _Command) -> _Command:
    """Where a command that keeps running is looked at."""
    return apply(
        command,
        [
            option("--metrics-port", type=Whole(0, 65535), default=DEFAULT_METRICS_PORT, show_default=True,
                   help="Port of /metrics, /livez and /readyz; 0 for any free one."),
            option("--metrics-host", default="0.0.0.0", show_default=True, help="Address of that port."),  # noqa: S104
        ],
    )  # fmt: skip


no_metrics_option = option("--no-metrics", is_flag=True, help="Serve no metrics and no probes.")
shutdown_timeout_option = option(
    "--shutdown-timeout",
    type=SECONDS,
    default=25.0,
    show_default=True,
    help="Seconds that stopping may take after SIGTERM.",
)
summary_option = option(
    "--summary",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Format of the account at the end.",
)


auth_timeout_option = option(
    "--auth-timeout",
    type=SECONDS,
    default=AUTH_TIMEOUT_S,
    show_default=True,
    help="Seconds to keep trying after brokers refuse the credentials, which may change.",
)


def worker_options(command: _Command) -> _Command:
    """Add the options that both workers have."""
    command = apply(
        command,
        [
            no_metrics_option,
            auth_timeout_option,
            shutdown_timeout_option,
            summary_option,
            option("--tracing", is_flag=True,
                   help="Export OpenTelemetry spans of messages, configured by OTEL_* variables; see docs/tracing.md."),
        ],
    )  # fmt: skip
    return metrics_options(command)
