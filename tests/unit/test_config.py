"""What a worker is told: precedence, promises, secrets, and errors that name the place."""

from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka import KafkaException
from hypothesis import given
from hypothesis import strategies as st

from workers.config import (
    CONSUMER_DEFAULTS,
    PRODUCER_DEFAULTS,
    ClientConfig,
    Precedence,
    Setting,
    parse_property,
    read_properties_file,
    read_secret,
)
from workers.errors import ConfigError


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
    with pytest.raises(ConfigError, match=r"--property .* must stay"):
        config(parse_property(text, Precedence.COMMAND_LINE, "--property"))


@pytest.mark.parametrize(
    "name",
    ["sasl.password", "ssl.key.password", "ssl.keystore.password", "sasl.oauthbearer.client.secret", "ssl.key.pem"],
)
def test_secrets_are_not_shown(name: str) -> None:
    shown = config(Setting(name, "hunter2", Precedence.FILE, "file")).show()

    assert name in shown
    assert "hunter2" not in shown


def test_what_is_no_secret_is_shown() -> None:
    assert "/etc/key.pem" in config(Setting("ssl.key.location", "/etc/key.pem", Precedence.FILE, "file")).show()


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


def test_a_secret_loses_only_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(" spaces count \n")
    assert read_secret(path) == " spaces count "

    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_secret(path)


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


@pytest.mark.parametrize(("kind", "defaults"), [("Producer", PRODUCER_DEFAULTS), ("Consumer", CONSUMER_DEFAULTS)])
def test_librdkafka_takes_every_default(kind: str, defaults: tuple[object, ...]) -> None:
    made = ClientConfig(
        PRODUCER_DEFAULTS if kind == "Producer" else CONSUMER_DEFAULTS,
        [Setting("group.id", "g", Precedence.FILE, "test")],
    )
    properties = (
        made.properties() if kind == "Consumer" else {k: v for k, v in made.properties().items() if k != "group.id"}
    )

    client = getattr(confluent_kafka, kind)(properties)

    assert defaults
    client.close()
