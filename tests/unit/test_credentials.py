"""The files that hold credentials, as kubelet and people write them."""

import json
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from confluent_kafka import KafkaError, Producer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.mounted import Secret, pem
from workers.config import ClientConfig, Precedence, Setting
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.kafka.client import ClientState, create_client
from workers.kafka.credentials import Credentials, CredentialsWatch, is_mounted, read_credentials

QUIET = {"log_level": 0}


class Clock:
    """The monotonic clock, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr("workers.kafka.credentials.time", moved)
    monkeypatch.setattr("workers.kafka.client.time", moved)
    return moved


class Client:
    """A client that notes the passwords that it is given."""

    def __init__(self) -> None:
        self.passwords: list[tuple[str, str]] = []

    def set_sasl_credentials(self, username: str, password: str) -> None:
        self.passwords.append((username, password))


def config(protocol: str = "ssl", *, password: Path | None = None, **values: object) -> ClientConfig:
    named = {"security.protocol": protocol, **{name.replace("_", "."): str(value) for name, value in values.items()}}
    settings = [Setting(name, value, Precedence.COMMAND_LINE, f"--{name}") for name, value in named.items()]
    if password is not None:
        settings.append(
            Setting("sasl.password", password.read_text(), Precedence.COMMAND_LINE, "--sasl-password-file", password)
        )
    return ClientConfig([], settings)


def pair() -> tuple[bytes, bytes]:
    """A client's certificate and its key."""
    issued = trustme.CA().issue_cert("me")
    return issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes()


def test_every_certificate_of_a_mounted_secret_is_trusted(tmp_path: Path) -> None:
    new, old = trustme.CA(), trustme.CA()
    secret = Secret(tmp_path / "ca")
    secret.write({"ca.crt": pem(new), "ca.password": b"x", "ca-2026-11-24.crt": pem(old), "ca.p12": b"\x00"})
    ca = read_credentials(config(ssl_ca_location=secret.directory)).ca

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca)
    assert len(context.get_ca_certs()) == 2


def test_librdkafka_takes_the_certificates_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "one.crt").write_bytes(pem(trustme.CA()))
    (tmp_path / "two.pem").write_bytes(pem(trustme.CA()))
    client = create_client(Producer, config(ssl_ca_location=tmp_path, bootstrap_servers="127.0.0.1:1"), QUIET)

    client.close()


def test_librdkafka_refuses_what_is_no_certificate() -> None:
    """So that the test above can fail."""
    with pytest.raises(ConfigError, match=r"ssl\.ca\.pem"):
        create_client(Producer, config(ssl_ca_location="/ca"), QUIET, Credentials(ca="nothing"))


def test_a_bundle_with_remarks_in_any_language_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_bytes("# NetLock Főtanúsítvány\n".encode() + pem(trustme.CA()) + b"\r\n" + pem(trustme.CA()))

    assert read_credentials(config(ssl_ca_location=path)).ca.count("BEGIN CERTIFICATE") == 2


def test_all_files_without_a_certificate_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "good.crt").write_bytes(pem(trustme.CA()))
    (tmp_path / "empty.crt").write_bytes(b"")
    (tmp_path / "bad.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")

    with pytest.raises(ConfigError, match=r"--ssl.ca.location: .*bad\.pem, .*empty\.crt;") as raised:
        read_credentials(config(ssl_ca_location=tmp_path))
    assert "good.crt" not in str(raised.value)


def test_a_directory_without_certificates_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ca.p12").write_bytes(b"\x00")

    with pytest.raises(ConfigError, match="has no"):
        read_credentials(config(ssl_ca_location=tmp_path))


def test_files_that_the_protocol_does_not_need_are_not_read() -> None:
    assert read_credentials(config("plaintext", ssl_ca_location="/no/such/file")).ca == ""


def test_a_changed_password_is_set_on_the_living_client(tmp_path: Path, clock: Clock) -> None:
    secret = Secret(tmp_path / "user")
    secret.write({"password": b"old"})
    client, state = Client(), ClientState()
    password = secret.directory / "password"
    watch = CredentialsWatch(config("sasl_plaintext", password=password, sasl_username="me"), state)
    secret.write({"password": b"new\n"})
    assert watch.refresh(client) is False
    assert client.passwords == []

    clock.now += 5
    assert watch.refresh(client) is False
    assert client.passwords == [("me", "new")]
    clock.now += 5
    assert watch.refresh(client) is False
    assert client.passwords == [("me", "new")]
    assert state.renewals == {"ca": 0, "certificate": 0, "password": 1}


def test_a_password_file_that_is_being_written_changes_nothing(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "password"
    path.write_text("old")
    client = Client()
    watch = CredentialsWatch(config("sasl_plaintext", password=path, sasl_username="me"), ClientState())
    path.write_text("")
    clock.now += 5

    assert watch.refresh(client) is False
    assert client.passwords == []


def test_a_swapped_link_asks_for_a_new_client_until_there_is_one(tmp_path: Path, clock: Clock) -> None:
    authorities = [trustme.CA(), trustme.CA()]
    secret = Secret(tmp_path / "ca")
    secret.write({"ca.crt": pem(authorities[0])})
    state = ClientState()
    watch = CredentialsWatch(config(ssl_ca_location=secret.directory), state)
    secret.write({"ca.crt": pem(authorities[1]), "ca-old.crt": pem(authorities[0])})

    for _ in range(2):
        clock.now += 5
        assert watch.refresh(Client()) is True
    assert watch.credentials.ca.count("BEGIN CERTIFICATE") == 2
    watch.renewed()
    clock.now += 5
    assert watch.refresh(Client()) is False
    assert state.renewals == {"ca": 1, "certificate": 0, "password": 0}


def test_a_new_client_with_the_same_credentials_is_no_renewal(tmp_path: Path) -> None:
    """A consumer makes one too when its fetch hangs."""
    path = tmp_path / "ca.crt"
    path.write_bytes(pem(trustme.CA()))
    state = ClientState()
    state.on_error(refusal())
    CredentialsWatch(config(ssl_ca_location=path), state).renewed()

    assert state.renewals == {"ca": 0, "certificate": 0, "password": 0}
    assert state.refusing_brokers == 1


def test_a_half_written_pair_leaves_the_old_one_in_use(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = tmp_path / "user.crt", tmp_path / "user.key"
    old, new = pair(), pair()
    certificate.write_bytes(old[0])
    key.write_bytes(old[1])
    state = ClientState()
    watch = CredentialsWatch(config(ssl_certificate_location=certificate, ssl_key_location=key), state)
    certificate.write_bytes(new[0])

    for _ in range(3):
        clock.now += 5
        assert watch.refresh(Client()) is False
    assert watch.credentials.certificate == old[0]
    assert [record.message for record in caplog.records if "cannot be used together" in record.message] != []
    assert len(caplog.records) == 1
    key.write_bytes(new[1])
    clock.now += 5
    assert watch.refresh(Client()) is True
    assert (watch.credentials.certificate, watch.credentials.key) == new


def test_a_file_that_is_away_for_a_moment_changes_nothing(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ca.crt"
    path.write_bytes(pem(trustme.CA()))
    watch = CredentialsWatch(config(ssl_ca_location=path), ClientState())
    path.unlink()
    clock.now += 5

    assert watch.refresh(Client()) is False


SOON, LATER = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2031, 1, 2, 3, 4, 5, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)


def authority_until(end: datetime) -> bytes:
    """The certificate of a CA that ends at `end`; trustme's own all end in the same year."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(datetime(2019, 1, 1, tzinfo=UTC)).not_valid_after(end)
    signed = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return signed.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("end", [SOON, LONG_AGO])
def test_the_end_of_the_clients_certificate_is_known_also_when_it_is_over(tmp_path: Path, end: datetime) -> None:
    issued = trustme.CA().issue_cert("me", not_before=datetime(2019, 1, 1, tzinfo=UTC), not_after=end)
    certificate, key = tmp_path / "user.crt", tmp_path / "user.key"
    # With the CA behind it, as a chain.
    certificate.write_bytes(issued.cert_chain_pems[0].bytes() + authority_until(LATER))
    key.write_bytes(issued.private_key_pem.bytes())
    state = ClientState()
    CredentialsWatch(config(ssl_certificate_location=certificate, ssl_key_location=key), state)

    assert state.certificate_expiries_s == {"certificate": end.timestamp()}


def test_the_end_is_known_where_the_key_is_encrypted(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("me", not_after=SOON)
    certificate, key = tmp_path / "user.crt", tmp_path / "user.key"
    certificate.write_bytes(issued.cert_chain_pems[0].bytes())
    plain = load_pem_private_key(issued.private_key_pem.bytes(), None)
    key.write_bytes(plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"horse")))
    state = ClientState()
    CredentialsWatch(
        config(ssl_certificate_location=certificate, ssl_key_location=key, ssl_key_password="horse"), state
    )

    assert state.certificate_expiries_s == {"certificate": SOON.timestamp()}


def test_the_last_of_the_trusted_cas_counts_and_a_renewal_is_noticed(tmp_path: Path, clock: Clock) -> None:
    secret = Secret(tmp_path / "ca")
    secret.write({"ca.crt": authority_until(LONG_AGO)})
    state = ClientState()
    watch = CredentialsWatch(config(ssl_ca_location=secret.directory), state)
    assert state.certificate_expiries_s == {"ca": LONG_AGO.timestamp()}

    secret.write({"ca.crt": authority_until(SOON), "ca-old.crt": authority_until(LONG_AGO)})
    clock.now += 5
    assert watch.refresh(Client()) is True
    # The client still has the old one.
    assert state.certificate_expiries_s == {"ca": LONG_AGO.timestamp()}
    watch.renewed()
    assert state.certificate_expiries_s == {"ca": SOON.timestamp()}


def test_a_certificate_that_is_not_for_clients_is_named_and_has_no_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(LONG_AGO).not_valid_after(SOON)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    certificate, key_file = tmp_path / "user.crt", tmp_path / "user.key"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    state = ClientState()
    CredentialsWatch(config(ssl_certificate_location=certificate, ssl_key_location=key_file), state)

    assert state.certificate_expiries_s == {}
    assert f"when {certificate} ends is not known, so no alert comes before: unsuitable certificate" in caplog.text


def test_without_certificates_there_is_no_end(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("horse")
    state = ClientState()
    CredentialsWatch(config("sasl_plaintext", password=path, sasl_username="me"), state)

    assert state.certificate_expiries_s == {}


def test_only_what_kubelet_mounts_and_renews_counts_as_mounted(tmp_path: Path) -> None:
    secret = Secret(tmp_path / "ca")
    secret.write({"ca.crt": pem(trustme.CA())})
    plain = tmp_path / "ca.crt"
    plain.write_bytes(pem(trustme.CA()))

    assert is_mounted(config(ssl_ca_location=secret.directory), "ca")
    assert is_mounted(config(ssl_ca_location=secret.directory / "ca.crt"), "ca")
    assert not is_mounted(config(ssl_ca_location=plain), "ca")
    assert not is_mounted(config(ssl_ca_location=secret.directory), "password")


# Refusals, as librdkafka tells of them

REFUSED = "sasl_ssl://b:9093/1: SASL authentication error: Authentication failed (after 5ms in state AUTH_REQ)"


def refusal(broker: str = "sasl_ssl://b:9093/1") -> KafkaError:
    return KafkaError(KafkaError._AUTHENTICATION, REFUSED.replace("sasl_ssl://b:9093/1", broker))


def statistics(**states: str) -> str:
    brokers = {
        name: {"name": name, "nodename": name, "nodeid": number, "state": state, "rtt": {"cnt": 0}}
        for number, (name, state) in enumerate(states.items())
    }
    return json.dumps({"time": 1, "brokers": brokers, "msg_size": 0, "topics": {}})


def connected(state: ClientState) -> ClientState:
    state.on_statistics(statistics(**{"sasl_ssl://b:9093/1": "UP"}))
    return state


def test_a_refused_password_that_cannot_change_ends_the_first_start_at_once() -> None:
    state = ClientState(config("sasl_ssl"), 180)
    state.on_error(refusal())

    with pytest.raises(WorkerError, match="check the password") as raised:
        state.check()
    assert raised.value.code == ExitCode.USAGE


def test_a_refused_password_of_a_mounted_file_is_tried_on_until_the_bound(tmp_path: Path, clock: Clock) -> None:
    secret = Secret(tmp_path / "user")
    secret.write({"password": b"old"})
    state = ClientState(config("sasl_ssl", password=secret.directory / "password"), 180)
    state.on_error(refusal())
    clock.now += 179
    state.check()
    clock.now += 2

    with pytest.raises(WorkerError, match="check the password") as raised:
        state.check()
    assert raised.value.code == ExitCode.USAGE


def test_a_client_that_was_connected_is_not_ready_while_it_is_refused_and_ends_at_the_bound(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    state = connected(ClientState(config("sasl_ssl"), 180))
    state.on_error(refusal())
    assert state.refused() is not None
    for tenth in range(1790):
        clock.now += 0.1
        if tenth % 300 == 0:
            state.on_error(refusal())
        state.check()
    assert 17 <= len(caplog.records) <= 18
    clock.now += 2

    with pytest.raises(WorkerError) as raised:
        state.check()
    assert raised.value.code == ExitCode.FAILED


def test_a_refusal_is_over_when_its_broker_is_connected_and_not_before(clock: Clock) -> None:
    state = connected(ClientState(config("sasl_ssl"), 180))
    state.on_error(refusal("sasl_ssl://b:9093/2"))
    state.on_statistics(statistics(**{"sasl_ssl://b:9093/1": "UP", "sasl_ssl://b:9093/2": "AUTH_REQ"}))
    assert (state.refusing_brokers, state.refused() is not None) == (1, True)

    state.on_statistics(statistics(**{"sasl_ssl://b:9093/1": "UP", "sasl_ssl://b:9093/2": "UP"}))
    assert (state.refusing_brokers, state.refused()) == (0, None)


def test_without_a_bound_a_refusal_ends_it_at_once() -> None:
    state = connected(ClientState(config("sasl_ssl"), 0))
    state.on_error(refusal())

    with pytest.raises(WorkerError):
        state.check()
