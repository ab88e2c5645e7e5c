"""Producers whose credentials change."""

from pathlib import Path

import confluent_kafka
import pytest
import trustme
from confluent_kafka import KafkaError, KafkaException, Message

from workers.config import PRODUCER_DEFAULTS, ClientConfig, Precedence, Setting
from workers.deadletters.writer import DeadLetters
from workers.testing.memory import FakeBroker, FakeProducer
from workers.testing.processes import eventually


@pytest.fixture
def certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of CA certificates, which is looked at in each turn."""
    monkeypatch.setattr("workers.kafka.credentials.INTERVAL_S", 0.0)
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    """Producers are made of it."""
    broker = FakeBroker(**{"t.dlq": 1})
    monkeypatch.setattr(confluent_kafka, "Producer", broker.connect_producer)
    return broker


def refuse(*_: object, **__: object) -> None:
    raise KafkaException(KafkaError(KafkaError._AUTHENTICATION))


def dead_letters(certificates: Path) -> DeadLetters:
    told = {
        "bootstrap.servers": "127.0.0.1:1",
        "security.protocol": "ssl",
        "ssl.ca.location": str(certificates),
    }
    settings = [Setting(*each, Precedence.COMMAND_LINE, "") for each in told.items()]
    return DeadLetters(ClientConfig(PRODUCER_DEFAULTS, settings), None, "g")


def test_dead_letters_keep_their_client_until_brokers_accept_the_changed_credentials(
    certificates: Path, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = dead_letters(certificates)

    def write(value: bytes) -> None:
        letter = letters.send(Message(topic="t", value=value), ValueError("no"), 1)
        letters.poll(0)
        assert letter.delivered

    write(b"1")
    old = broker.producers[0]
    trustme.CA().cert_pem.write_to_path(certificates)
    with monkeypatch.context() as refusing:
        refusing.setattr(FakeProducer, "list_topics", refuse)
        letters.poll(0)
        write(b"2")
        # Clients were made, and nothing was sent with them.
        assert {each.most for each in broker.producers[1:]} == {0}
        assert not old.closed
    letters.poll(0)
    eventually(lambda: old.closed, "the old client is closed")
    write(b"3")

    assert not broker.producers[-1].closed
    assert broker.values("t.dlq") == [b"1", b"2", b"3"]


def test_a_first_dead_letter_is_written_with_the_credentials_of_now(certificates: Path, broker: FakeBroker) -> None:
    letters = dead_letters(certificates)
    changed = trustme.CA().cert_pem
    changed.write_to_path(certificates)
    letters.poll(0)
    assert broker.producers == []
    letters.send(Message(topic="t", value=b"1"), ValueError("no"), 1)

    assert broker.producers[0].own["ssl.ca.pem"].split() == changed.bytes().decode().split()
