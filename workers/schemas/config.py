"""The properties of a schema registry's client, with their origin, checked before the client is made."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from workers.config import ClientConfig, Default, Precedence, Setting, read_secret
from workers.errors import ConfigError

# The properties of confluent-kafka's SchemaRegistryClient, and how it wants their values.
PROPERTIES: dict[str, Callable[[str], object]] = {
    "url": str,
    "ssl.ca.location": str,
    "ssl.certificate.location": str,
    "ssl.key.location": str,
    "ssl.key.password": str,
    "basic.auth.user.info": str,
    "bearer.auth.credentials.source": str,
    "bearer.auth.token": str,
    "bearer.auth.logical.cluster": str,
    "bearer.auth.identity.pool.id": str,
    "bearer.auth.client.id": str,
    "bearer.auth.client.secret": str,
    "bearer.auth.scope": str,
    "bearer.auth.issuer.endpoint.url": str,
    "proxy": str,
    "timeout": float,
    "cache.capacity": int,
    "cache.latest.ttl.sec": float,
    "max.retries": int,
    "retries.wait.ms": int,
    "retries.max.wait.ms": int,
}
DEFAULTS = (
    Default("timeout", "10", "the client would wait for an answer for ever"),
    Default("max.retries", "0", "the worker tries again itself, and says so"),
)
PASSWORD_VARIABLE = "KAFKA_SCHEMA_REGISTRY_PASSWORD"  # noqa: S105
_USER_INFO = "basic.auth.user.info"
_USER_IN_URL = re.compile(r"://[^/]*@")


def parse_property(text: str, precedence: Precedence, origin: str) -> Setting:
    """Read `name=value`; raise ConfigError that names `origin`, and quotes no value: it may be a secret."""
    name, separator, value = text.partition("=")
    name = name.strip()
    if not separator or not re.fullmatch(r"[a-z.]+", name):
        raise ConfigError(
            f"{origin}: this is not NAME=VALUE with the name of a property (not shown, it may be a secret)"
        )
    if name not in PROPERTIES:
        raise ConfigError(
            f"{origin}: the schema registry's client has no property {name!r}; it has {', '.join(PROPERTIES)}"
        )
    if name == "url":
        raise ConfigError(f"{origin}: the address of the schema registry goes into --schema-registry-url")
    setting = Setting(name, value.strip(), precedence, origin)
    if setting.secret and precedence == Precedence.COMMAND_LINE:
        raise ConfigError(
            f"{origin}: {name} is a secret, and others can see the arguments of a process; put it into the file of "
            "--schema-registry-properties-file"
        )
    _converted(setting)
    return setting


def url_setting(url: str, precedence: Precedence, origin: str) -> Setting:
    """Raises ConfigError for what is no address; quotes none, as a password may be in it."""
    if not re.match(r"(https?|mock)://.", url):
        raise ConfigError(f"{origin}: this is no address of a schema registry; it begins with http:// or https://")
    if _USER_IN_URL.search(url):
        raise ConfigError(
            f"{origin}: a user and a password do not belong into the address; use --schema-registry-username and "
            "--schema-registry-password-file"
        )
    return Setting("url", url, precedence, origin)


def user_info_setting(user: str, path: Path | None, origin: str, precedence: Precedence) -> Setting:
    """User and password, which is in a file, or in PASSWORD_VARIABLE; raises ConfigError where it is in neither."""
    if path is not None:
        password = read_secret(path, "--schema-registry-password-file", PASSWORD_VARIABLE)
    elif PASSWORD_VARIABLE in os.environ:
        password = os.environ[PASSWORD_VARIABLE]
    else:
        raise ConfigError(
            f"{origin}: its password is missing; name its file with --schema-registry-password-file, or set "
            f"{PASSWORD_VARIABLE}"
        )
    return Setting(_USER_INFO, f"{user}:{password}", precedence, origin)


def registry_config(settings: Sequence[Setting]) -> ClientConfig:
    """The properties of the registry's client; raises ConfigError for one that is not text."""
    return ClientConfig(DEFAULTS, settings)


def client_properties(config: ClientConfig) -> dict[str, object]:
    """The properties as the client takes them."""
    return {name: _converted(setting) for name, setting in config.settings.items()}


def _converted(setting: Setting) -> object:
    """Raises ConfigError for what is no number where one is wanted."""
    try:
        return PROPERTIES[setting.name](setting.value)
    except ValueError:
        raise ConfigError(f"{setting.origin}: {setting.name}={setting.shown} cannot be used: it is no number") from None
