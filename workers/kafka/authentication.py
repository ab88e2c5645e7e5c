"""Authentication by tokens: the settings of SASL mechanism OAUTHBEARER, and of Amazon MSK with IAM.

With OAUTHBEARER librdkafka itself asks an OpenID Connect provider for tokens (client credentials). AWS_MSK_IAM is no
mechanism of Kafka: MSK takes OAUTHBEARER with a signed request as the token (see `aws`).
"""

import os
import re

from workers.config import SERVERS, ClientConfig, Precedence, Setting, servers_of
from workers.errors import ConfigError

OAUTHBEARER, AWS_MSK_IAM = "OAUTHBEARER", "AWS_MSK_IAM"
REGION = "aws.region"
TOKEN_URL = "sasl.oauthbearer.token.endpoint.url"  # noqa: S105
CLIENT_SECRET = "sasl.oauthbearer.client.secret"  # noqa: S105
_CLIENT_ID = "sasl.oauthbearer.client.id"
_METHOD = "sasl.oauthbearer.method"
_OIDC = (TOKEN_URL, _CLIENT_ID, CLIENT_SECRET, "sasl.oauthbearer.scope", "sasl.oauthbearer.extensions")
_PROTOCOLS = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
_TLS = ("ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.key.password")
_SASL = ("sasl.mechanism", "sasl.username", "sasl.password")
# Each sends its secret as it is, which everybody on the way can read without TLS. SCRAM only proves it.
_READABLE = {"PLAIN": "the password", OAUTHBEARER: "the token"}
# GSSAPI is not in the wheel of confluent-kafka.
_MECHANISMS = f"SCRAM-SHA-512, SCRAM-SHA-256, PLAIN, {OAUTHBEARER} or {AWS_MSK_IAM}"
# Other ways to a token that librdkafka has, all by properties.
_OTHER_WAYS = (_METHOD, "enable.sasl.oauthbearer.unsecure.jwt")


def complete(config: ClientConfig) -> list[Setting]:
    """Return the settings that follow from those of `config`.

    Raises ConfigError for settings that do not fit together, with the place of one and the remedy.
    """
    protocol = config.get("security.protocol", "plaintext").lower()
    _check_prefixes(config, protocol)
    mechanism = config.settings.get("sasl.mechanism")
    by_token = mechanism is not None and mechanism.value in (OAUTHBEARER, AWS_MSK_IAM)
    if mechanism is None or not by_token:
        _refuse(config, _OIDC, "only SASL mechanism OAUTHBEARER has it; add --sasl-mechanism OAUTHBEARER")
        _refuse(config, (REGION,), "only SASL mechanism AWS_MSK_IAM has it; add --sasl-mechanism AWS_MSK_IAM")
        _check_effect(config, protocol)
        return []
    where = f"{mechanism.origin}: {mechanism.value}"
    if protocol != "sasl_ssl" and (protocol != "sasl_plaintext" or mechanism.value == AWS_MSK_IAM):
        raise ConfigError(f"{where} cannot be used with security protocol {protocol}; use --security-protocol sasl_ssl")
    _check_effect(config, protocol)
    _refuse(config, ("sasl.username", "sasl.password"), f"{mechanism.value} authenticates with a token")
    return _msk(config, where) if mechanism.value == AWS_MSK_IAM else _oidc(config, where)


def unusable_mechanism(config: ClientConfig) -> ConfigError:
    """Return the error for a SASL mechanism that librdkafka does not support; without one it takes GSSAPI."""
    mechanism = config.settings.get("sasl.mechanism")
    if mechanism is not None:
        return ConfigError(
            f"{mechanism.origin}: librdkafka does not support SASL mechanism {mechanism.value!r}; use {_MECHANISMS}"
        )
    protocol = config.settings["security.protocol"]
    return ConfigError(
        f"{protocol.origin}: security protocol {protocol.value} needs a SASL mechanism; add --sasl-mechanism with "
        f"{_MECHANISMS}"
    )


def plaintext_warning(config: ClientConfig) -> str | None:
    """Return the warning about a password or a token that goes to the brokers unencrypted, None where none does."""
    mechanism = config.settings.get("sasl.mechanism")
    if mechanism is None or mechanism.value not in _READABLE:
        return None
    if config.get("security.protocol", "plaintext").lower() != "sasl_plaintext":
        return None
    return (
        f"{mechanism.origin}: {mechanism.value} with security protocol sasl_plaintext sends "
        f"{_READABLE[mechanism.value]} unencrypted; use --security-protocol sasl_ssl"
    )


def _check_prefixes(config: ClientConfig, protocol: str) -> None:
    """Raises ConfigError for a broker as SSL://HOST:PORT that the security protocol would have librdkafka pass over."""
    setting = config.settings.get(SERVERS)
    if setting is None:
        return
    for server in servers_of(setting):
        prefix, separator, _ = server.lower().partition("://")
        if separator and prefix != protocol:
            remedy = f"use --security-protocol {prefix}, or leave" if prefix in _PROTOCOLS else "leave"
            raise ConfigError(
                f"{setting.origin}: a broker begins with {prefix}://, and the security protocol is {protocol}; "
                f"{remedy} {prefix}:// out"
            )


def _check_effect(config: ClientConfig, protocol: str) -> None:
    """Raises ConfigError for what the security protocol does not use: the user would believe in TLS, or in SASL."""
    if protocol not in _PROTOCOLS:
        return
    with_tls = "sasl_ssl" if protocol == "sasl_plaintext" or "sasl.mechanism" in config.settings else "ssl"
    with_sasl = "sasl_ssl" if protocol == "ssl" or _TLS[0] in config.settings else "sasl_plaintext"
    if not protocol.endswith("ssl"):
        _refuse(config, _TLS, f"security protocol {protocol} has no TLS; use --security-protocol {with_tls}")
    if not protocol.startswith("sasl"):
        _refuse(config, _SASL, f"security protocol {protocol} has no SASL; use --security-protocol {with_sasl}")


def _msk(config: ClientConfig, where: str) -> list[Setting]:
    _refuse(config, _OIDC, "AWS_MSK_IAM makes its token from AWS credentials")
    region = config.settings.get(REGION)
    if region is None:
        name = next((each for each in ("AWS_REGION", "AWS_DEFAULT_REGION") if os.environ.get(each)), None)
        if name is None:
            raise ConfigError(f"{where} needs the AWS region of the cluster; give --aws-region, or set AWS_REGION")
        region = Setting(REGION, os.environ[name], Precedence.ENVIRONMENT, f"variable {name}")
    if not re.fullmatch(r"[a-z]{2,}(-[a-z0-9]+)+", region.value):
        raise ConfigError(f"{region.origin}: {region.value!r} is not an AWS region, as eu-west-1")
    return [region]


def _oidc(config: ClientConfig, where: str) -> list[Setting]:
    url = config.settings.get(TOKEN_URL)
    if url is None:
        if not any(name in config.settings for name in _OTHER_WAYS):
            raise ConfigError(
                f"{where} needs an endpoint that issues tokens; give --oauth-token-url, --oauth-client-id and "
                "--oauth-client-secret-file"
            )
        return []
    if not re.match(r"https?://.", url.value):
        raise ConfigError(f"{url.origin}: this is not the address of a token endpoint; begin it with https://")
    if "sasl.oauthbearer.grant.type" not in config.settings:
        missing = {
            _CLIENT_ID: "the client id; give --oauth-client-id",
            CLIENT_SECRET: "the client secret; name its file with --oauth-client-secret-file, or set "
            "KAFKA_OAUTH_CLIENT_SECRET",
        }
        for name, remedy in missing.items():
            if not config.get(name):
                raise ConfigError(f"{url.origin} needs {remedy}")
    settings = []
    if _METHOD not in config.settings:
        settings.append(Setting(_METHOD, "oidc", url.precedence, url.origin))
    import ssl

    paths = ssl.get_default_verify_paths()
    system = paths.cafile or paths.capath
    if system and not {"https.ca.location", "https.ca.pem"} & config.settings.keys():
        # librdkafka (2.16) has a path of Red Hat's built in, and fails where it is absent.
        reason = "default: the CA certificates of the system"
        settings.append(Setting("https.ca.location", system, Precedence.DEFAULT, reason))
    return settings


def _refuse(config: ClientConfig, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if name in config.settings:
            raise ConfigError(f"{config.settings[name].origin}: {name}: {why}, or leave this out")
