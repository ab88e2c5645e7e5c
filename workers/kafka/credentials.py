"""The files that hold credentials: read, checked against each other, and watched for changes.

kubelet replaces the files of a mounted Secret while the worker runs, by swapping a symbolic link: only the content says
that something changed. librdkafka reads certificates once, when a client is made, and looks in a directory only for
names that OpenSSL has hashed. So all files are read here, and a client gets what was read.
"""

import contextlib
import logging
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from confluent_kafka import KafkaException

from workers.config import ClientConfig, Precedence, Setting, read_text
from workers.errors import ConfigError, WorkerError
from workers.kafka.authentication import CLIENT_SECRET

if TYPE_CHECKING:
    from workers.kafka.client import ClientState

log = logging.getLogger("workers")
# A few files of some kilobytes; kubelet itself looks for a changed Secret about once a minute.
INTERVAL_S = 3.0
# A worker waits so long for brokers to accept a new client, and tries again after INTERVAL_S.
CONNECT_TIMEOUT_S = 2.0
# The kinds of credentials, as in the metrics.
KINDS = ("ca", "certificate", "password")
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_ENDPOINT_CA = "https.ca.location"
# X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which `ssl` has no name for.
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
# The names in a directory of CA certificates: a Secret's keys, and those that `openssl rehash` gives.
_CA_NAMES = re.compile(r".+\.(crt|pem|cer)|[0-9a-f]{8}\.\d+")


class Client(Protocol):
    """A client of any kind."""

    def set_sasl_credentials(self, username: str, password: str) -> None: ...


class _Asking(Protocol):
    """The part of a new client that shows whether a broker accepts it."""

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> object: ...


_Client = TypeVar("_Client", bound=_Asking)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The content of the files at one moment; empty where no file is configured. Equal when the content is equal."""

    ca: str = ""
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    keystore: bytes = field(default=b"", repr=False)
    key_password: str = field(default="", repr=False)
    sasl_password: str = field(default="", repr=False)
    client_secret: str = field(default="", repr=False)
    endpoint_ca: str = ""

    def changed_since(self, other: "Credentials") -> list[str]:
        """Return which of KINDS differ from `other`."""
        mine, others = (
            {
                "ca": (each.ca, each.endpoint_ca),
                "certificate": (each.certificate, each.key, each.keystore, each.key_password),
                "password": (each.sasl_password, each.client_secret),
            }
            for each in (self, other)
        )
        return [kind for kind in KINDS if mine[kind] != others[kind]]

    def apply(self, properties: Mapping[str, str]) -> dict[str, str]:
        """Return the properties of a client with what was read from files in place of what they held before."""
        applied = dict(properties)
        if self.ca:
            del applied["ssl.ca.location"]
            applied["ssl.ca.pem"] = self.ca
        if self.key_password:
            applied["ssl.key.password"] = self.key_password
        if self.sasl_password:
            applied["sasl.password"] = self.sasl_password
        if self.client_secret:
            applied[CLIENT_SECRET] = self.client_secret
        if self.endpoint_ca:
            del applied[_ENDPOINT_CA]
            applied["https.ca.pem"] = self.endpoint_ca
        return applied


def read_credentials(config: ClientConfig) -> Credentials:
    """Read the files that `config` names; raise ConfigError naming one that cannot be used.

    A certificate and a key that do not belong together raise too: they may be written one after the other.
    """
    protocol = config.get("security.protocol").lower()
    credentials = Credentials()
    if protocol.startswith("sasl"):
        credentials = Credentials(
            sasl_password=_secret(config, "sasl.password"),
            client_secret=_secret(config, CLIENT_SECRET),
            endpoint_ca=_certificates(config, _ENDPOINT_CA, "https.ca.pem"),
        )
    if not protocol.endswith("ssl"):
        return credentials
    credentials = replace(
        credentials,
        ca=_certificates(config, "ssl.ca.location", "ssl.ca.pem"),
        certificate=_content(config, "ssl.certificate.location"),
        key=_content(config, "ssl.key.location"),
        keystore=_content(config, "ssl.keystore.location"),
        key_password=_secret(config, "ssl.key.password"),
    )
    if credentials.certificate and credentials.key:
        _check_pair(config, credentials.key_password or config.get("ssl.key.password"))
    return credentials


def read_expiries(config: ClientConfig, credentials: Credentials) -> dict[str, float]:
    """Return the Unix time at which the certificates of `credentials` end, by kind; without those that nobody can read.

    That of "ca" is the time of the CA that ends last: while a CA is renewed, the old one and the new one are trusted.
    """
    expiries = {}
    if credentials.ca:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=credentials.ca)
        ends = [ssl.cert_time_to_seconds(str(each["notAfter"])) for each in context.get_ca_certs()]
        expiries.update({"ca": float(max(ends))} if ends else {})
    if credentials.certificate and credentials.key:
        certificate = config.get("ssl.certificate.location")
        try:
            expiries["certificate"] = _client_expiry(
                certificate,
                config.get("ssl.key.location"),
                credentials.key_password or config.get("ssl.key.password"),
            )
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "verify_message", None) or getattr(error, "reason", None) or str(error)
            log.warning(
                "when %s ends is not known, so no alert comes before: %s; check its form and its purpose",
                certificate,
                reason,
            )
    return expiries


def is_mounted(config: ClientConfig, kind: str) -> bool:
    """Return whether kubelet mounts a file that holds credentials of `kind`: it may be a minute and a half behind."""
    names = {
        "ca": ["ssl.ca.location", _ENDPOINT_CA],
        "certificate": ["ssl.certificate.location", "ssl.key.location", "ssl.keystore.location"],
        "password": ["sasl.password", CLIENT_SECRET],
    }[kind]
    found = [config.settings[name] for name in names if name in config.settings]
    paths = [each.file or Path(each.value) for each in found if each.file is not None or not each.secret]
    # The link that kubelet swaps. A file that is mounted by its subPath has none, and never changes.
    return any((folder / "..data").exists() for path in paths for folder in (path, path.parent))


class CredentialsWatch:
    """The credentials that a client uses, and whether the files hold others by now. Called from the client's thread."""

    def __init__(
        self,
        config: ClientConfig,
        client_state: "ClientState",
        accepted: Callable[[Credentials], bool] = lambda _: True,
    ) -> None:
        """Read the files; raise ConfigError as `read_credentials`.

        No client is made with changed credentials before `accepted` says so: to find out, a client waits for brokers.
        """
        self._accepted = accepted
        self.credentials = read_credentials(config)
        self._used = self.credentials
        self._config = config
        self._client_state = client_state
        self._looked_at = time.monotonic()
        self._trouble = ""
        client_state.certificate_expiries_s = read_expiries(config, self.credentials)

    def refresh(self, client: Client | None) -> bool:
        """Look at the files when it is time to, and set a changed password on the living client.

        Return whether a client has to be made with `credentials`, because a CA, the certificate or the client secret of
        OAUTHBEARER has changed; when it is made call `renewed`, or else the answer is the same at the next look. Files
        that cannot be used, as a key that is not the certificate's, are left alone until then.
        """
        now = time.monotonic()
        if now - self._looked_at < INTERVAL_S:
            return False
        self._looked_at = now
        try:
            found = read_credentials(self._config)
        except ConfigError as error:
            self.postpone(error)
            return False
        changed = found.changed_since(self._used)
        if found.sasl_password != self._used.sasl_password and client is not None:
            client.set_sasl_credentials(self._config.get("sasl.username"), found.sasl_password)
        if changed == ["password"] and found.client_secret == self._used.client_secret:
            self.credentials = found
            self.renewed()
            return False
        if changed and not self._accepted(found):
            return False
        self.credentials = found
        return bool(changed)

    def uses(self, credentials: Credentials) -> bool:
        """Return whether the client in use has these. May be called from any thread."""
        return self._used == credentials

    def connect(self, make: Callable[[], _Client], topic: str | None = None) -> _Client | None:
        """Return a new client that a broker has answered about `topic`, or about all topics; None where the credentials
        of now cannot be used yet. An old client is given up only for one of these, so the pause is short.
        """
        try:
            fresh = make()
            fresh.list_topics(topic, timeout=CONNECT_TIMEOUT_S)
        except (ConfigError, WorkerError) as error:
            self.postpone(str(error))
        except KafkaException as error:
            self.postpone(f"no broker has accepted them yet: {error.args[0].str()}")
        else:
            return fresh
        return None

    def renew(self, client: Client, make: Callable[[], _Client], topic: str | None = None) -> _Client | None:
        """Return a new client, which is used from now on, where credentials have changed that `client` cannot take up
        and brokers accept the new one; None otherwise. For a client whose work need not be brought to its end first.
        """
        fresh = self.connect(make, topic) if self.refresh(client) else None
        if fresh is not None:
            self.renewed()
        return fresh

    def postpone(self, error: ConfigError | str) -> None:
        """Log, once, why the credentials of now cannot be used: the old ones stay in use."""
        reason = str(error)
        if reason != self._trouble:
            self._trouble = reason
            log.warning("changed credentials cannot be used, looking again in %g s: %s", INTERVAL_S, reason)

    def renewed(self) -> None:
        """Note that the client uses `credentials`; nothing is counted where they are the same as before."""
        changed = self.credentials.changed_since(self._used)
        if changed:
            self._client_state.on_renewal(changed)
        if changed not in ([], ["password"]):
            self._client_state.certificate_expiries_s = read_expiries(self._config, self.credentials)
        self._used = self.credentials
        self._trouble = ""


def _certificates(config: ClientConfig, location: str, content: str) -> str:
    """Return the CA certificates of the setting `location`, where a user gave it; the setting `content` is stronger."""
    setting = config.settings.get(location)
    if setting is None or setting.precedence == Precedence.DEFAULT or content in config.settings:
        return ""
    # "probe" has librdkafka look for the system's certificates.
    return "" if setting.value == "probe" else _read_ca(setting)


def _read_ca(setting: Setting) -> str:
    """Return every certificate of a file, or of the files in a directory, once."""
    path = Path(setting.value)
    try:
        files = [path]
        if path.is_dir():
            # kubelet's own names begin with two dots.
            files = sorted(each for each in path.iterdir() if _CA_NAMES.fullmatch(each.name) and each.is_file())
        contents = [each.read_bytes() for each in files]
    except OSError as error:
        raise ConfigError(f"{setting.origin}: {error.filename} cannot be read: {error.strerror}") from None
    if not files:
        raise ConfigError(f"{setting.origin}: {path} has no *.crt or *.pem; put the CA certificates there")
    blocks: dict[str, None] = {}
    bad = []
    for file, content in zip(files, contents, strict=True):
        found = [each.decode("ascii", "replace") for each in _CERTIFICATE.findall(content)]
        if not found or not all(map(_is_certificate, found)):
            bad.append(str(file))
        blocks.update(dict.fromkeys(found))
    if bad:
        raise ConfigError(f"{setting.origin}: no certificates in PEM: {', '.join(bad)}; correct or remove them")
    return "\n".join(blocks) + "\n"


def _is_certificate(block: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=block)
    except (ssl.SSLError, ValueError):
        return False
    return True


def _check_pair(config: ClientConfig, password: str) -> None:
    certificate, key = config.get("ssl.certificate.location"), config.get("ssl.key.location")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Whether a key is long enough is the brokers' decision.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    try:
        # Without a function OpenSSL would ask on the terminal.
        context.load_cert_chain(certificate, key, lambda: password)
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigError(
            f"{certificate} and {key} cannot be used together: {reason}; check both, and the key's password"
        ) from None


def _client_expiry(certificate: str, key: str, password: str) -> float:
    """Return the Unix time at which a client's certificate ends; raise SSLError where no server would take it.

    `ssl` decodes the certificate of a peer only. So a client in memory shows this one to a server in memory, which
    trusts it alone.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    for context in (server, client):
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.load_cert_chain(certificate, key, lambda: password)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(certificate)
    server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    listening = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (client.wrap_bio(to_client, to_server), listening) * 2:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return float(ssl.cert_time_to_seconds(str((listening.getpeercert() or {})["notAfter"])))


def _secret(config: ClientConfig, name: str) -> str:
    setting = config.settings.get(name)
    if setting is None or setting.file is None:
        return ""
    secret = read_text(setting.file).rstrip("\r\n")
    if not secret:
        # One that is being written is empty for a moment.
        raise ConfigError(f"{setting.origin}: the file is empty; write the secret into it")
    return secret


def _content(config: ClientConfig, name: str) -> bytes:
    setting = config.settings.get(name)
    if setting is None:
        return b""
    try:
        return Path(setting.value).read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting.origin}: {setting.value} cannot be read: {error.strerror}") from None
