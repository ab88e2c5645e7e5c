"""A worker's configuration: precedence, promises, secrets, and errors that name the place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaException
from hypothesis import given
from hypothesis import strategies as st

from workers.config import (
    CLASSIC_DEFAULTS,
    CONSUMER_DEFAULTS,
    PRODUCER_DEFAULTS,
    TRANSACTION_DEFAULTS,
    ClientConfig,
    Default,
    Precedence,
    Setting,
    parse_property,
    read_properties_file,
    read_secret,
)
from workers.errors import ConfigError
from workers.kafka.client import create_client


def config(*settings: Setting) -> ClientConfig:
    return ClientConfig(PRODUCER_DEFAULTS, settings)


@given(st.permutations(list(Precedence)))
def test_the_stronger_place_wins_in_any_order(ranks: list[Precedence]) -> None:
    made = config(*[Setting("linger.ms", str(rank.value), rank, rank.name) for rank in ranks])

    assert made.get("linger.ms") == str(Precedence.COMMAND_LINE.value)
    assert made.settings["linger.ms"].origin == "COMMAND_LINE"


def test_a_property_set_by_its_other_name_is_the_same_property() -> None:
    made = config(parse_property("queue.buffering.max.ms=50", Precedence.COMMAND_LINE, "--property"))

    assert made.get("linger.ms") == "50"
    assert "queue.buffering.max.ms" not in made.properties()


@pytest.mark.parametrize(
    "text", ["acks=1", "request.required.acks=0", "enable.idempotence=false", "enable.auto.offset.store=true"]
)
def test_what_a_promise_rests_on_cannot_be_changed(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--property: .* must be"):
        config(parse_property(text, Precedence.COMMAND_LINE, "--property"))


@pytest.mark.parametrize(
    "name",
    ["sasl.password", "ssl.key.password", "ssl.keystore.password", "sasl.oauthbearer.client.secret", "ssl.key.pem"],
)
def test_secrets_are_not_shown(name: str) -> None:
    shown = config(Setting(name, "hunter2", Precedence.FILE, "file")).show()

    assert name in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize("name", ["sasl.pasword", "sasl.passwort", "basic.auth.user.info", "ssl.keystore.key"])
def test_a_secret_under_a_name_that_librdkafka_does_not_know_is_not_shown(name: str) -> None:
    assert "hunter2" not in config(Setting(name, "hunter2", Precedence.FILE, "file")).show()


def test_a_password_in_an_address_is_not_shown() -> None:
    address = Setting(
        "sasl.oauthbearer.token.endpoint.url", "https://worker:hunter2@login/token", Precedence.FILE, "file"
    )
    shown = config(address).show()

    assert "hunter2" not in shown
    assert "https://worker:********@login/token" in shown


def test_a_setting_in_a_traceback_shows_no_value() -> None:
    assert "hunter2" not in repr(Setting("sasl.password", "hunter2", Precedence.FILE, "file"))


@pytest.mark.parametrize("name", ["ssl.key.location", "sasl.oauthbearer.assertion.private.key.file", "ssl.ca.location"])
def test_the_path_of_a_secret_is_shown(name: str) -> None:
    assert "/etc/key.pem" in config(Setting(name, "/etc/key.pem", Precedence.FILE, "file")).show()


def test_a_properties_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text("# comment\n! comment\n\n linger.ms = 5 \nsasl.password=a=b\n")

    settings = read_properties_file(path)

    assert [(each.name, each.value) for each in settings] == [("linger.ms", "5"), ("sasl.password", "a=b")]
    assert settings[0].origin == f"{path} line 4"


@pytest.mark.parametrize("line", ["no equals sign", "=value"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "client.properties"
    path.write_text(f"linger.ms=5\n{line}\n")

    with pytest.raises(ConfigError, match=r"client\.properties line 2"):
        read_properties_file(path)


# As a Java properties file may have them, and with an equals sign that belongs to the secret.
SECRET_LINES = [
    "sasl.password: hunter2",
    "sasl.password hunter2",
    "sasl.password: hunter2=",
    "sasl.password: hunt=hunter2",
    "hunter2=",
    "HUNTER2==",
]


def refusal(action: Callable[[], object]) -> str:
    """The text of the error of `action`, whether it is found when it is read or when a client is made."""
    with pytest.raises(ConfigError) as refused:
        action()
    return str(refused.value)


def make_client(settings: list[Setting]) -> None:
    made = config(Setting("bootstrap.servers", "127.0.0.1:1", Precedence.FILE, "file"), *settings)
    create_client(confluent_kafka.Producer, made, {})


@pytest.mark.parametrize("line", SECRET_LINES)
def test_a_wrong_line_is_named_and_not_quoted(tmp_path: Path, line: str) -> None:
    path = tmp_path / "client.properties"
    path.write_text(f"linger.ms=5\n{line}\n")

    text = refusal(lambda: make_client(read_properties_file(path)))

    assert "client.properties line 2" in text
    assert "hunt" not in text.lower()


@pytest.mark.parametrize("line", SECRET_LINES)
@pytest.mark.parametrize("origin", ["--property", "variable KAFKA_PROPERTY"])
def test_a_wrong_property_is_named_and_not_quoted(line: str, origin: str) -> None:
    text = refusal(lambda: make_client([parse_property(line, Precedence.ENVIRONMENT, origin)]))

    assert origin in text
    assert "hunt" not in text.lower()


def test_a_value_that_is_not_text_is_named_and_not_quoted() -> None:
    """As the environment has it: Python puts half of a surrogate pair for a byte that is not UTF-8."""
    secret = Setting("sasl.password", "hunter\udcff2", Precedence.ENVIRONMENT, "variable KAFKA_SASL_PASSWORD")
    text = refusal(lambda: make_client([secret]))

    assert text.startswith("variable KAFKA_SASL_PASSWORD: sasl.password")
    assert "hunter" not in text
    assert "udcff" not in text


def test_what_librdkafka_says_of_a_secret_is_not_quoted() -> None:
    made = config(
        Setting("sasl.password", "hunter2", Precedence.FILE, "file"),
        Setting("debug", "hunter2", Precedence.FILE, "client.properties line 3"),
    )
    with pytest.raises(KafkaException, match="hunter2") as refused:
        confluent_kafka.Producer(made.properties())

    text = str(made.explain(refused.value))
    assert text.startswith("client.properties line 3")
    assert "hunter2" not in text


def test_a_secret_loses_only_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(" spaces count \n")
    assert read_secret(path, "--sasl-password-file", "KAFKA_SASL_PASSWORD") == " spaces count "

    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"--sasl-password-file: .* not UTF-8 .* KAFKA_SASL_PASSWORD"):
        read_secret(path, "--sasl-password-file", "KAFKA_SASL_PASSWORD")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no.such.thing=1", "no.such.thing"),
        ("linger.ms=soon", "linger.ms"),
        ("security.protocol=tls", "security.protocol"),
    ],
)
def test_what_librdkafka_refuses_is_explained_with_its_place(text: str, words: str) -> None:
    made = config(parse_property(text, Precedence.FILE, "client.properties line 7"))
    with pytest.raises(KafkaException) as refused:
        confluent_kafka.Producer(made.properties())

    explained = str(made.explain(refused.value))
    assert explained.startswith("client.properties line 7")
    assert words in explained


@pytest.mark.parametrize(
    ("kind", "defaults", "own"),
    [
        (confluent_kafka.Producer, PRODUCER_DEFAULTS, {}),
        (confluent_kafka.Producer, TRANSACTION_DEFAULTS, {"transactional.id": "t"}),
        (confluent_kafka.Consumer, (*CONSUMER_DEFAULTS, *CLASSIC_DEFAULTS), {"group.id": "g"}),
    ],
    ids=["producer", "transactions", "consumer"],
)
def test_librdkafka_takes_every_default(kind: Any, defaults: tuple[Default, ...], own: dict[str, str]) -> None:
    properties = ClientConfig(defaults, []).properties()
    assert {each.name for each in defaults} <= properties.keys()

    # It raises KafkaException for a property or a value that it does not know.
    kind({**properties, **own}).close()


@pytest.mark.parametrize(
    "servers",
    [
        "localhost", "localhost:9092", "kafka_1:1", "a:65535, b ,c:9092,", "10.0.0.1:9092", "[::1]:9092",
        "[fe80::1%eth0]", "::1", "PLAINTEXT://kafka:9092", "plaintext://[::1]:9092", "bücher.example:9092",
    ],
)  # fmt: skip
def test_brokers_that_librdkafka_takes_are_taken(servers: str) -> None:
    made = config(Setting("bootstrap.servers", servers, Precedence.COMMAND_LINE, "--bootstrap-servers"))

    assert made.get("bootstrap.servers") == servers


@pytest.mark.parametrize(
    "servers",
    [
        "localhost:99999", "localhost:0", "localhost:-1", "localhost:", "localhost:abc", "localhost:٣", ":9092", "",
        " , ", "http://a b", "a b", "a:1 b:2", "localhost:1:2", "[::1", "[::1]9092", "a:9092,b:99999",
    ],
)  # fmt: skip
def test_brokers_that_cannot_be_are_refused(servers: str) -> None:
    """For 99999 librdkafka would connect to port 34463, and wait for ever for most of the others."""
    with pytest.raises(ConfigError, match=r"^--bootstrap-servers: .*HOST:PORT"):
        config(Setting("bootstrap.servers", servers, Precedence.COMMAND_LINE, "--bootstrap-servers"))


def test_a_broker_with_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="not shown") as raised:
        config(Setting("bootstrap.servers", "me:hunter2@kafka:9092", Precedence.COMMAND_LINE, "--bootstrap-servers"))

    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("text", ["group.id=", "group.id=  "])
def test_an_empty_group_is_refused(text: str) -> None:
    """The binding aborts the process for one."""
    with pytest.raises(ConfigError, match=r"^--property: group\.id is empty; give the group a name"):
        config(parse_property(text, Precedence.COMMAND_LINE, "--property"))
