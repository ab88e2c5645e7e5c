"""Producers whose credentials change."""

from collections import Counter
from pathlib import Path

import confluent_kafka
import pytest
import trustme
from confluent_kafka import KafkaError, KafkaException, Message

from tests.unit.members import trusting
from workers.deadletters.writer import RENEWING, DeadLetter, DeadLetters
from workers.kafka.renewed import RenewedProducer
from workers.testing.memory import LATER, FakeBroker, FakeProducer
from workers.testing.processes import eventually

REFUSED = KafkaError(KafkaError._SSL, "ssl://b:1/1: SSL handshake failed: certificate verify failed")


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    """Producers are made of it."""
    broker = FakeBroker(**{"t.dlq": 1})
    monkeypatch.setattr(confluent_kafka, "Producer", broker.connect_producer)
    return broker


def refuse(*_: object, **__: object) -> None:
    raise KafkaException(KafkaError(KafkaError._AUTHENTICATION))


def dead_letters(ca_file: Path) -> DeadLetters:
    return DeadLetters(trusting(ca_file), None, "g", auth_timeout_s=60.0)


def send(letters: DeadLetters, value: bytes) -> DeadLetter:
    return letters.send(Message(topic="t", value=value), ValueError("no"), 1)


def test_dead_letters_keep_their_client_until_brokers_accept_the_changed_credentials(
    ca_file: Path, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = dead_letters(ca_file)

    def write(value: bytes) -> None:
        letter = send(letters, value)
        letters.poll(0)
        assert letter.delivered

    write(b"1")
    old = broker.producers[0]
    trustme.CA().cert_pem.write_to_path(ca_file)
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


def test_a_first_dead_letter_is_written_with_the_credentials_of_now(ca_file: Path, broker: FakeBroker) -> None:
    letters = dead_letters(ca_file)
    changed = trustme.CA().cert_pem
    changed.write_to_path(ca_file)
    letters.poll(0)
    assert broker.producers == []
    send(letters, b"1")

    assert broker.producers[0].own["ssl.ca.pem"].split() == changed.bytes().decode().split()


def test_dead_letters_get_a_new_client_though_one_after_the_other_is_under_way(
    ca_file: Path, broker: FakeBroker
) -> None:
    looks: Counter[bytes] = Counter()

    def slowly(message: Message) -> int | None:
        value = message.value() or b""
        looks[value] += 1
        return None if looks[value] > 3 else LATER

    broker.outcome = slowly
    letters = dead_letters(ca_file)
    sent = [(b"first", send(letters, b"first"))]
    trustme.CA().cert_pem.write_to_path(ca_file)
    for number in range(20):
        letters.poll(0)
        value = b"%d" % number
        sent.append((value, send(letters, value)))
    assert len(broker.producers) == 2
    for _ in range(5):
        letters.poll(0)

    assert {letter.delivered for _, letter in sent} == {True, False}
    assert {letter.error for _, letter in sent} == {"", RENEWING}
    assert broker.values("t.dlq") == [value for value, letter in sent if letter.delivered]


def test_dead_letters_under_way_do_not_hold_up_the_client_that_follows_one_that_brokers_refuse(
    ca_file: Path, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are kept for two minutes, and after three the worker would end, though the files hold good credentials."""
    monkeypatch.setattr("workers.kafka.renewed.PATIENCE_S", 0.0)
    # As kubelet mounts it: what brokers refuse may be changing.
    (ca_file.parent / "..data").touch()
    broker.outcome = lambda _: LATER
    letters = dead_letters(ca_file)
    waiting = send(letters, b"1")
    broker.producers[0].own["error_cb"](REFUSED)
    letters.poll(0)
    trustme.CA().cert_pem.write_to_path(ca_file)
    with monkeypatch.context() as refusing:
        refusing.setattr(FakeProducer, "list_topics", refuse)
        letters.poll(0)
    assert waiting.delivered is None
    letters.poll(0)
    assert waiting.delivered is False
    broker.outcome = lambda _: None
    again = send(letters, b"1")
    letters.poll(0)

    assert again.delivered
    assert broker.values("t.dlq") == [b"1"]
    assert broker.producers[-1].most == 1
    eventually(lambda: broker.producers[0].closed, "the old client is closed")


def test_messages_under_way_hold_up_new_credentials_no_longer_than_is_said(ca_file: Path, broker: FakeBroker) -> None:
    broker.outcome = lambda _: LATER
    producer = RenewedProducer(trusting(ca_file), 0.0, properties={}, connect=broker.connect_producer)
    outcomes: list[KafkaError | None] = []
    producer.made().produce("t.dlq", b"1", on_delivery=lambda error, _: outcomes.append(error))
    trustme.CA().cert_pem.write_to_path(ca_file)
    producer.serve(0)
    assert (len(broker.producers), outcomes) == (1, [])
    producer.serve(0, 0.0)

    assert producer.client is broker.producers[1]
    assert [error.code() for error in outcomes if error is not None] == [KafkaError._PURGE_QUEUE]
