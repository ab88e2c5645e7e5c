"""The canary: the account of its messages, the layout of its topic, and its loop on a broker in memory."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import trustme
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tests.unit.members import trusting
from workers.accounting.stamps import encode, stream_of
from workers.canary import ownership
from workers.canary import probes as probes_module
from workers.canary.loop import RECONNECT_INTERVAL_S, Canary, Options
from workers.canary.ownership import check_ownership
from workers.canary.placement import (
    ADD,
    CREATE,
    ELECT,
    Layout,
    Placed,
    Placement,
    Rules,
    create_topic,
    misled_partitions,
    missing_partitions,
)
from workers.canary.probes import Counts, Probes
from workers.canary.summary import as_text, summarize
from workers.config import ClientConfig
from workers.errors import ConfigError
from workers.kafka.client import ClientState
from workers.kafka.credentials import CredentialsWatch
from workers.kafka.groups import Answers
from workers.kafka.renewed import RenewedProducer
from workers.lifecycle import Shutdown
from workers.monitoring.metrics import CanaryCollector
from workers.testing.memory import LATER, FakeBroker
from workers.testing.processes import eventually

BROKER = 7
LATENCY_S, LOST_S = 5.0, 15.0


class Account(Probes):
    """One partition led by one broker."""

    def __init__(self) -> None:
        super().__init__(LATENCY_S, LOST_S)

    def sends(self, at: float) -> int:
        return self.send(0, BROKER, at)

    def acknowledged(self, sequence: int, at: float, offset: int | None = None) -> None:
        self.acknowledge(0, BROKER, sequence, offset, 0.01, at)

    def received(self, sequence: int, at: float) -> None:
        self.receive(0, sequence, at)

    def looked(self, at: float) -> Counts:
        self.look(at)
        return self.counts[0, BROKER]


def test_a_message_that_is_acknowledged_and_received_is_counted_once_with_its_latencies() -> None:
    account = Account()
    first, second = account.sends(0), account.sends(1)
    account.acknowledged(first, 0.01)
    account.received(first, 0.5)
    # The message may come before the report of its delivery.
    account.received(second, 1.5)
    account.acknowledged(second, 1.6)
    counts = account.looked(100)
    assert (counts.sent, counts.acknowledged, counts.received) == (2, 2, 2)
    assert (counts.failed, counts.lost, counts.duplicates, account.outstanding) == (0, 0, 0, 0)
    assert counts.end_to_end_latency.total_s == pytest.approx(1.0)
    assert counts.produce_latency.total_s == pytest.approx(0.02)
    assert account.available(0) is True


def test_an_acknowledged_message_is_lost_when_a_later_one_was_received_and_its_time_is_over() -> None:
    account = Account()
    missing, later = account.sends(0), account.sends(1)
    account.acknowledged(missing, 0.01)
    account.received(later, 1.01)
    assert account.looked(0.01 + LOST_S - 0.001).lost == 0
    assert account.looked(0.01 + LOST_S).lost == 1
    assert account.looked(1000).lost == 1


def test_while_nothing_of_a_partition_is_received_it_is_unavailable_and_nothing_is_lost() -> None:
    account = Account()
    for second in range(100):
        account.acknowledged(account.sends(second), second + 0.01)
    counts = account.looked(3600)
    assert (counts.lost, account.available(0), account.outstanding) == (0, False, 100)
    for sequence in range(100):
        account.received(sequence, 3600)
    assert account.looked(4000).lost == 0


def test_a_message_without_an_acknowledgement_is_never_lost_and_no_duplicate_when_it_comes() -> None:
    account = Account()
    unknown, waiting, later = (account.sends(second) for second in range(3))
    account.fail(0, BROKER, unknown)
    account.received(later, 2.01)
    assert account.looked(1000).lost == 0
    account.received(unknown, 1000)
    account.received(waiting, 1000)
    counts = account.looked(2000)
    assert (counts.failed, counts.received, counts.duplicates, counts.recovered) == (1, 3, 0, 0)


def test_a_lost_message_that_comes_after_all_is_recovered() -> None:
    account = Account()
    missing, later = account.sends(0), account.sends(1)
    account.acknowledged(missing, 0.01)
    account.received(later, 1.01)
    account.look(100)
    account.received(missing, 101)
    counts = account.looked(200)
    assert (counts.lost, counts.recovered, counts.received, counts.duplicates) == (1, 1, 2, 0)


def test_a_message_that_is_read_again_is_a_duplicate_each_time_and_one_that_was_not_sent_is_none() -> None:
    account = Account()
    sequence = account.sends(0)
    for _ in range(3):
        account.received(sequence, 0.1)
    account.received(sequence + 1, 0.1)
    counts = account.looked(1)
    assert (counts.received, counts.duplicates) == (1, 2)


def test_a_late_message_makes_its_partition_unavailable_until_one_arrives_in_time() -> None:
    account = Account()
    late = account.sends(0)
    account.looked(LATENCY_S)
    assert account.available(0) is None
    account.looked(LATENCY_S + 0.1)
    assert account.available(0) is False
    account.received(late, 6)
    assert account.available(0) is False
    early = account.sends(7)
    account.received(early, 7.1)
    assert account.available(0) is True
    # That of a message sent before says nothing new.
    account.looked(20)
    assert account.available(0) is True


def test_a_partition_that_cannot_be_written_to_is_unavailable() -> None:
    account = Account()
    account.expect(0, 0)
    account.look(LATENCY_S)
    assert account.availability([0]) is None
    account.look(LATENCY_S + 0.1)
    assert account.availability([0]) == 0
    account.received(account.sends(10), 10.1)
    account.expect(1, 10)
    account.look(30)
    assert account.availability([0, 1]) == 0.5


def test_a_message_that_the_client_did_not_take_was_not_sent() -> None:
    account = Account()
    account.sends(0)
    account.withdraw(0)
    assert account.looked(100).sent == 0
    assert account.outstanding == 0
    assert account.sends(101) == 0


def test_the_messages_that_were_not_read_begin_with_the_lowest_offset_that_was_acknowledged() -> None:
    account = Account()
    read, missing, old, new = (account.sends(second) for second in range(4))
    assert account.unread(0) is None
    account.received(read, 1)
    account.acknowledged(old, 2.5, 106)
    # Its topic was created again.
    account.acknowledged(new, 3.5, 0)
    assert account.unread(0) == (2.5, 0)
    account.acknowledged(missing, 4, None)
    account.received(new, 5)
    assert account.unread(0) is None


def test_the_memory_of_a_partition_that_is_never_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_module, "MAX_REMEMBERED", 5)
    account = Account()
    for second in range(100):
        account.acknowledged(account.sends(second), second)
    assert account.outstanding == 5
    # Nobody knows any more whether the first were received.
    for sequence in range(100):
        account.received(sequence, 1000)
    counts = account.looked(2000)
    assert (counts.sent, counts.received, counts.lost, counts.duplicates) == (100, 10, 0, 0)


@given(st.lists(st.tuples(st.sampled_from(["send", "ack", "fail", "receive", "look"]), st.integers(0, 9))))
def test_each_message_is_counted_once(events: list[tuple[str, int]]) -> None:
    account = Account()
    reported: set[int] = set()
    received: list[int] = []
    sent = 0
    for now, (event, sequence) in enumerate(events):
        if event == "send":
            sent = account.sends(now) + 1
        elif event == "look":
            account.look(now)
        elif sequence < sent and event == "receive":
            account.received(sequence, now)
            received.append(sequence)
        elif sequence < sent and sequence not in reported:
            reported.add(sequence)
            if event == "ack":
                account.acknowledged(sequence, now)
            else:
                account.fail(0, BROKER, sequence)
    counts = account.counts.get((0, BROKER), Counts())
    assert counts.sent == sent
    assert counts.received == len(set(received))
    assert counts.duplicates == len(received) - len(set(received))
    assert counts.acknowledged + counts.failed == len(reported)
    assert counts.received + account.outstanding <= sent
    assert counts.recovered <= counts.lost <= counts.acknowledged


# The topic


def placed(leader: int, *replicas: int, in_sync: tuple[int, ...] | None = None) -> Placed:
    return Placed(leader, replicas, frozenset(replicas if in_sync is None else in_sync))


def test_each_broker_gets_a_partition_that_it_leads_and_that_its_followers_replicate() -> None:
    layout = Layout(frozenset({1, 2, 4, 5}), {0: placed(1, 1, 2, 3), 1: placed(4, 4, 5, 1)})
    assert missing_partitions(layout, 3) == [[2, 4, 5], [5, 1, 2]]
    assert missing_partitions(Layout(frozenset({1}), {}), 1) == [[1]]
    assert missing_partitions(Layout(frozenset({1}), {0: placed(1, 1)}), 1) == []


def test_a_leader_moves_back_once_the_preferred_one_is_live_and_in_sync() -> None:
    partitions = {
        0: placed(1, 1, 2),
        1: placed(1, 2, 1),
        2: placed(1, 3, 1),
        3: placed(1, 2, 1, in_sync=(1,)),
        4: placed(-1, 2, 1),
    }
    layout = Layout(frozenset({1, 2}), partitions)
    assert misled_partitions(layout) == [1]
    assert layout.uncovered == {2}
    assert layout.members == {1, 2, 3}
    assert layout.led_by(1) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("brokers", "factor", "in_sync", "expected"),
    [(1, 3, 2, (1, 1)), (2, 3, 2, (2, 1)), (3, 3, 2, (3, 2)), (5, 3, 3, (3, 3)), (3, 5, 2, (3, 2)), (3, 1, 2, (1, 1))],
)
def test_replicas_are_lowered_to_the_number_of_brokers_so_that_one_may_stop(
    brokers: int, factor: int, in_sync: int, expected: tuple[int, int]
) -> None:
    rules = Rules("canary", True, factor, in_sync)
    assert (rules.replicas(brokers), rules.in_sync(brokers)) == expected


class FakeAdmin:
    """A cluster with one topic; it carries out the changes, or refuses them with `error`."""

    def __init__(self, brokers: int, partitions: Mapping[int, Placed] | None = None) -> None:
        self.brokers = range(brokers)
        self.partitions = dict(partitions or {})
        self.error: int | None = None
        self.config: dict[str, str] = {}
        self.calls: list[str] = []

    def list_topics(self, topic: str | None = None, **_: float) -> Any:
        found = {
            number: SimpleNamespace(leader=each.leader, replicas=list(each.replicas), isrs=list(each.in_sync))
            for number, each in self.partitions.items()
        }
        topics = {"canary": SimpleNamespace(partitions=found)} if found or topic else {}
        return SimpleNamespace(brokers=dict.fromkeys(self.brokers), topics=topics)

    def _answer(self, call: str, result: Any = None) -> "Future[Any]":
        self.calls.append(call)
        answer: Future[Any] = Future()
        if self.error is not None:
            answer.set_exception(KafkaException(KafkaError(self.error, "refused")))
        else:
            answer.set_result(result)
        return answer

    def _add(self, assignments: list[list[int]]) -> None:
        if self.error is None:
            for replicas in assignments:
                self.partitions[len(self.partitions)] = placed(replicas[0], *replicas)

    def create_topics(self, new: list[Any], **_: float) -> dict[str, "Future[Any]"]:
        self.config = new[0].config
        self._add(new[0].replica_assignment)
        return {"canary": self._answer(CREATE)}

    def create_partitions(self, new: list[Any], **_: float) -> dict[str, "Future[Any]"]:
        self._add(new[0].replica_assignment)
        return {"canary": self._answer(ADD)}

    def elect_leaders(self, _: object, partitions: list[Any]) -> "Future[Any]":
        if self.error is None:
            for each in partitions:
                old = self.partitions[each.partition]
                self.partitions[each.partition] = placed(old.replicas[0], *old.replicas)
        return self._answer(ELECT, {each.partition: None for each in partitions})


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each partition ends at 100 times its number."""
    monkeypatch.setattr(
        "workers.kafka.groups.find_offsets",
        lambda _admin, wanted: Answers({key: (key[1] * 100, -1) for key in wanted}, frozenset(), {}),
    )


PLAIN = ClientConfig((), ())


def placement_of(admin: FakeAdmin, *, create: bool = True) -> Placement:
    watch = CredentialsWatch(PLAIN, ClientState())
    return Placement(lambda: admin, Rules("canary", create, 3, 2), watch)  # type: ignore[arg-type, return-value]


@pytest.mark.usefixtures("ends")
def test_the_topic_is_looked_at_with_changed_credentials(ca_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.canary.placement.INTERVAL_S", 0.01)
    clients: list[MagicMock] = []
    state = ClientState()
    watch = CredentialsWatch(trusting(ca_file), state)

    def connect() -> Any:
        clients.append(MagicMock(wraps=FakeAdmin(3)))
        return clients[-1]

    placement = Placement(connect, Rules("canary", True, 3, 2), watch)
    placement.start()
    eventually(lambda: placement.layout.partitions, "the topic is known")
    trustme.CA().cert_pem.write_to_path(ca_file)
    eventually(lambda: state.renewals["ca"] == 1, "they are taken up")
    looks = clients[1].list_topics.call_count
    eventually(lambda: clients[1].list_topics.call_count > looks + 1, "the new client is asked")
    placement.close(5)

    assert len(clients) == 2
    assert [each.__exit__.call_count for each in clients] == [1, 1]


@pytest.mark.usefixtures("ends")
def test_a_topic_that_was_deleted_is_created_with_a_partition_for_each_broker() -> None:
    admin = FakeAdmin(3)
    placement = placement_of(admin)
    placement.look(admin)  # type: ignore[arg-type]
    placement.look(admin)  # type: ignore[arg-type]
    assert {number: each.leader for number, each in placement.layout.partitions.items()} == {0: 0, 1: 1, 2: 2}
    assert [each.replicas for each in placement.layout.partitions.values()] == [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    assert admin.config["min.insync.replicas"] == "2"
    assert placement.layout.starts == {0: 0, 1: 100, 2: 200}
    assert placement.changes[CREATE, "success"] == 1


@pytest.mark.usefixtures("ends")
def test_a_new_broker_gets_a_partition_and_leaders_move_back() -> None:
    admin = FakeAdmin(3, {0: placed(1, 0, 1, 2), 1: placed(1, 1, 2, 0)})
    placement = placement_of(admin)
    for _ in range(4):
        placement.look(admin)  # type: ignore[arg-type]
    assert admin.calls == [ADD, ELECT]
    assert {number: each.leader for number, each in placement.layout.partitions.items()} == {0: 0, 1: 1, 2: 2}
    assert placement.layout.uncovered == frozenset()


@pytest.mark.usefixtures("ends")
def test_without_create_the_topic_is_left_as_it_is_and_the_brokers_without_a_leader_are_known() -> None:
    admin = FakeAdmin(3, {0: placed(1, 0, 1, 2), 1: placed(1, 1, 2, 0)})
    placement = placement_of(admin, create=False)
    placement.look(admin)  # type: ignore[arg-type]
    assert admin.calls == []
    assert placement.layout.uncovered == {0, 2}


@pytest.mark.usefixtures("ends")
def test_a_change_without_the_right_is_tried_once_and_another_failure_later_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("workers.canary.placement.time.monotonic", lambda: now[0])
    admin = FakeAdmin(2, {0: placed(0, 0)})
    placement = placement_of(admin)
    admin.error = KafkaError.INVALID_PARTITIONS
    for _ in range(3):
        placement.look(admin)  # type: ignore[arg-type]
    assert admin.calls == [ADD]
    now[0] += 11
    admin.error = KafkaError.TOPIC_AUTHORIZATION_FAILED
    placement.look(admin)  # type: ignore[arg-type]
    now[0] += 10_000
    placement.look(admin)  # type: ignore[arg-type]
    placement.look(admin)  # type: ignore[arg-type]
    assert admin.calls == [ADD, ADD]
    assert placement.changes[ADD, "failure"] == 2
    assert "grant the right, or use --no-create" in caplog.text
    assert caplog.text.count("brokers 1 lead no partition of canary") == 1


def test_a_topic_that_somebody_else_has_created_meanwhile_is_taken() -> None:
    admin = FakeAdmin(1)
    admin.error = KafkaError.TOPIC_ALREADY_EXISTS
    create_topic(admin, Rules("canary", True, 3, 2))  # type: ignore[arg-type]
    admin.error = KafkaError.POLICY_VIOLATION
    with pytest.raises(KafkaException):
        create_topic(admin, Rules("canary", True, 3, 2))  # type: ignore[arg-type]


# The loop


class Bed:
    """A canary on a broker in memory, whose rounds the test begins."""

    def __init__(self, partitions: int = 2, config: ClientConfig = PLAIN, auth_timeout_s: float = 0.0) -> None:
        self.broker = FakeBroker(canary=partitions)
        self.now = 0.0
        # Seconds that pass with each look at the clock.
        self.step = 0.0
        self.layout = Layout(
            frozenset(range(partitions)),
            {number: placed(number, number, (number + 1) % partitions) for number in range(partitions)},
            {number: self.broker.logs["canary", number].end for number in range(partitions)},
        )
        self.shutdown = Shutdown(1)
        # Whether another client has found out that brokers accept changed credentials.
        self.accepted = True
        accepted = lambda _: self.accepted  # noqa: E731
        self.canary = Canary(
            RenewedProducer(
                config, auth_timeout_s, properties={}, connect=self.broker.connect_producer, accepted=accepted
            ),
            config,
            lambda: self.layout,
            Options("canary", 1.0, LATENCY_S, LOST_S),
            self.shutdown,
            clock=self.clock,
            connect=self.broker.connect,
            accepted=accepted,
        )
        self.canary.start()

    def clock(self) -> float:
        self.now += self.step
        return self.now

    def rounds(self, count: int = 1) -> None:
        for _ in range(count):
            self.canary.begin_round()
            # Sent in the first turn, written and read in those that follow.
            for _ in range(3):
                self.canary.serve(0)
            self.now += 1

    def total(self, name: str) -> int:
        return sum(getattr(each, name) for each in self.canary.probes.counts.values())


def test_changed_credentials_are_taken_up_and_no_message_is_missed(ca_file: Path) -> None:
    bed = Bed(config=trusting(ca_file))
    bed.rounds(3)
    trustme.CA().cert_pem.write_to_path(ca_file)
    bed.rounds(3)
    eventually(lambda: bed.broker.producers[0].closed and bed.broker.clients[0].closed, "the old clients are closed")
    bed.rounds(3)

    assert bed.canary.client_state.renewals["ca"] == 1
    assert (len(bed.broker.producers), len(bed.broker.clients)) == (2, 2)
    assert [bed.total(name) for name in ("sent", "acknowledged", "received", "lost")] == [18, 18, 18, 0]
    assert bed.canary.status.availability == 1


def test_the_loop_does_not_wait_for_brokers_to_accept_credentials(ca_file: Path) -> None:
    """It would measure that: each try takes two seconds, for the producer and for the consumer."""
    bed = Bed(config=trusting(ca_file))
    bed.rounds(3)
    bed.accepted = False
    trustme.CA().cert_pem.write_to_path(ca_file)
    bed.rounds(3)
    assert (len(bed.broker.producers), len(bed.broker.clients)) == (1, 1)
    assert bed.total("sent") == 12
    bed.accepted = True
    bed.rounds(3)

    assert (len(bed.broker.producers), len(bed.broker.clients)) == (2, 2)
    assert [bed.total(name) for name in ("sent", "acknowledged", "received")] == [18, 18, 18]


def test_new_credentials_are_taken_up_though_brokers_refuse_the_client_with_the_old_ones(
    ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its probes are kept for 30 s, and each round sends others."""
    monkeypatch.setattr("workers.kafka.renewed.PATIENCE_S", 0.0)
    # As kubelet mounts it: what brokers refuse may be changing.
    (ca_file.parent / "..data").touch()
    bed = Bed(config=trusting(ca_file), auth_timeout_s=60.0)
    bed.rounds(2)
    bed.broker.outcome = lambda _: LATER
    reason = "ssl://b:1/1: SSL handshake failed: certificate verify failed"
    bed.broker.producers[0].own["error_cb"](KafkaError(KafkaError._SSL, reason))
    bed.rounds(2)
    assert (len(bed.broker.producers), bed.total("failed")) == (1, 0)
    trustme.CA().cert_pem.write_to_path(ca_file)
    bed.rounds()
    assert (len(bed.broker.producers), bed.total("failed")) == (2, 6)
    bed.broker.outcome = lambda _: None
    bed.rounds(5)

    assert [bed.total(name) for name in ("sent", "acknowledged", "failed", "received")] == [20, 14, 6, 14]
    assert (bed.total("lost"), bed.total("duplicates"), bed.canary.status.availability) == (0, 0, 1)
    assert bed.canary.client_state.refusing_brokers == 0


def test_no_probe_is_sent_with_a_client_that_is_about_to_be_renewed(ca_file: Path) -> None:
    bed = Bed(config=trusting(ca_file))
    bed.broker.outcome = lambda _: LATER
    bed.rounds()
    trustme.CA().cert_pem.write_to_path(ca_file)
    bed.canary.serve(0)
    bed.rounds(3)
    assert (len(bed.broker.producers), bed.total("sent")) == (1, 2)
    bed.broker.outcome = lambda _: None
    bed.canary.serve(0)
    bed.rounds(3)

    assert len(bed.broker.producers) == 2
    assert [bed.total(name) for name in ("sent", "acknowledged", "failed", "received")] == [8, 8, 0, 8]


def test_each_round_sends_a_message_to_each_partition_and_receives_it() -> None:
    bed = Bed()
    bed.rounds(10)
    assert {key: (each.sent, each.received) for key, each in bed.canary.probes.counts.items()} == {
        (0, 0): (10, 10),
        (1, 1): (10, 10),
    }
    assert bed.canary.status.availability == 1
    assert bed.canary.status.brokers == {0: 1, 1: 1}
    assert bed.broker.committed == {}


def test_messages_of_others_are_no_part_of_the_account() -> None:
    bed = Bed()
    bed.rounds()
    foreign = encode(stream_of("another", 0, 0), 0, 0)
    elsewhere = encode(stream_of(bed.canary.run_name, 0, 1), 0, 0)
    bed.broker.produce([foreign, elsewhere, b"no stamp", None], topic="canary")
    bed.rounds()
    assert (bed.total("received"), bed.total("duplicates")) == (4, 0)


def test_deleted_messages_are_lost_and_copies_are_duplicates() -> None:
    bed = Bed()
    bed.rounds(2)
    bed.broker.hung["canary", 0] = "never"
    bed.rounds(2)
    bed.broker.delete_before(4, "canary")
    del bed.broker.hung["canary", 0]
    bed.rounds(30)
    assert (bed.total("lost"), bed.canary.probes.counts[0, 0].lost) == (2, 2)
    bed.broker.produce([bed.broker.values("canary")[-1]], topic="canary")
    bed.rounds()
    assert bed.total("duplicates") == 1
    assert (bed.total("acknowledged"), bed.total("received")) == (70, 68)


def test_a_partition_whose_fetch_hangs_is_read_by_a_new_client_and_nothing_is_lost_or_read_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    bed = Bed()
    bed.rounds(2)
    bed.broker.hung["canary", 1] = "client"
    bed.rounds(int(LOST_S))
    assert bed.canary.status.brokers == {0: 1, 1: 0}
    assert bed.canary.status.availability == 0.5
    bed.rounds(5)
    assert bed.canary.reconnects == 1
    assert bed.canary.status.availability == 1
    assert (bed.total("received"), bed.total("lost"), bed.total("duplicates")) == (bed.total("sent"), 0, 0)
    said = [record.message for record in caplog.records if record.message.startswith("broker 1")]
    assert [line.partition(": the latest")[0] for line in said] == [
        "broker 1: available", "broker 1: unavailable", "broker 1: available",
    ]  # fmt: skip


def test_a_client_is_replaced_no_more_often_than_said_and_not_for_a_broker_that_is_down() -> None:
    bed = Bed()
    bed.rounds(2)
    bed.broker.hung["canary", 1] = "never"
    whole = bed.layout
    bed.layout = Layout(frozenset({0}), whole.partitions, whole.starts)
    bed.rounds(40)
    assert bed.canary.reconnects == 0
    assert bed.canary.status.brokers == {0: 1, 1: 0}
    bed.layout = whole
    bed.rounds(int(RECONNECT_INTERVAL_S) + 2)
    assert bed.canary.reconnects == 2


def test_a_topic_that_comes_back_with_fewer_partitions_is_probed_in_those() -> None:
    bed = Bed(3)
    bed.broker.hung["canary", 2] = "never"
    bed.rounds(2)
    assert bed.canary.probes.unread(2) is not None
    gone = bed.layout.partitions[2]
    bed.layout = Layout(
        bed.layout.brokers, {0: bed.layout.partitions[0], 1: bed.layout.partitions[1]}, bed.layout.starts
    )
    bed.rounds(int(LOST_S) + 3)
    assert bed.canary.status.partitions == 2
    assert bed.canary.status.brokers == {0: 1, 1: 1}
    # It is read again when it is back.
    del bed.broker.hung["canary", 2]
    bed.layout = Layout(bed.layout.brokers, {**bed.layout.partitions, 2: gone}, bed.layout.starts)
    bed.rounds(3)
    assert bed.canary.status.availability == 1


def test_a_partition_that_had_gone_before_the_first_round_is_not_asked_for() -> None:
    """Where it ended was found before, and is kept."""
    bed = Bed(2)
    bed.layout = Layout(bed.layout.brokers, {0: bed.layout.partitions[0]}, bed.layout.starts)
    bed.rounds(2)
    assert bed.canary.status.partitions == 1


def test_failed_deliveries_make_a_partition_unavailable_and_are_not_lost() -> None:
    bed = Bed()
    bed.broker.outcome = lambda _: KafkaError.NOT_ENOUGH_REPLICAS
    bed.rounds(2)
    assert (bed.total("failed"), bed.canary.status.availability) == (4, 0)
    bed.broker.outcome = lambda _: None
    bed.rounds(40)
    assert (bed.total("failed"), bed.total("lost"), bed.canary.status.availability) == (4, 0, 1)


def test_a_partition_is_probed_once_it_is_known_where_it_ends_and_unavailable_until_then() -> None:
    bed = Bed()
    whole = bed.layout
    bed.layout = Layout(whole.brokers, whole.partitions, {0: 0})
    bed.rounds(8)
    assert bed.canary.probes.counts.keys() == {(0, 0)}
    assert bed.canary.status.brokers == {0: 1, 1: 0}
    bed.layout = whole
    bed.rounds(2)
    assert bed.canary.status.brokers == {0: 1, 1: 1}


def test_a_stop_waits_for_the_messages_under_way() -> None:
    bed = Bed()
    bed.broker.outcome = lambda _: LATER
    bed.canary.begin_round()
    bed.canary.serve(0)
    assert bed.canary.probes.outstanding == 2
    bed.broker.outcome = lambda _: None
    bed.shutdown.request()
    bed.canary.run()
    bed.canary.close()
    assert (bed.total("acknowledged"), bed.total("received"), bed.canary.probes.outstanding) == (2, 2, 0)


def test_a_stop_waits_for_the_acknowledgement_of_a_message_that_was_received_before_it() -> None:
    bed = Bed()
    bed.broker.outcome = lambda _: LATER
    bed.canary.begin_round()
    bed.canary.serve(0)
    for partition in (0, 1):
        bed.canary.probes.receive(partition, 0, bed.now)
    bed.broker.outcome = lambda _: None
    bed.shutdown.request()
    bed.canary.run()
    assert (bed.total("sent"), bed.total("acknowledged"), bed.total("received")) == (2, 2, 2)


def test_messages_that_are_not_acknowledged_in_the_time_to_stop_have_failed() -> None:
    bed = Bed()
    bed.broker.outcome = lambda _: LATER
    bed.canary.begin_round()
    bed.step = 0.01
    bed.shutdown.request()
    bed.canary.run()
    assert (bed.total("sent"), bed.total("failed"), bed.canary.probes.outstanding) == (2, 2, 0)


def test_the_account_and_the_metrics_have_the_same_numbers() -> None:
    bed = Bed()
    bed.rounds(3)
    summary = summarize(bed.canary, "canary")
    assert (summary["sent"], summary["received"], summary["lost"]) == (6, 6, 0)
    assert [(row["partition"], row["broker"], row["sent"]) for row in summary["partitions"]] == [(0, 0, 3), (1, 1, 3)]
    text = as_text(summary)
    assert text.startswith("canary over 0.0 s: 6 sent, 6 acknowledged, 0 failed, 6 received, 0 lost")
    assert len(text.splitlines()) == 4

    registry = CollectorRegistry()
    registry.register(CanaryCollector(bed.canary, placement_of(FakeAdmin(2)), "me"))
    labels = {"partition": "1", "broker": "1"}
    assert registry.get_sample_value("kafka_canary_received_total", labels) == 3
    assert registry.get_sample_value("kafka_canary_end_to_end_latency_seconds_count", labels) == 3
    assert registry.get_sample_value("kafka_canary_availability_ratio") == 1
    assert registry.get_sample_value("kafka_canary_broker_availability_ratio", {"broker": "1"}) == 1
    refused = {"change": ELECT, "outcome": "failure"}
    assert registry.get_sample_value("kafka_canary_topic_changes_total", refused) == 0


PROBE = encode(stream_of("another", 0, 0), 7, 1)


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        ([], True),
        ([PROBE], True),
        ([b"an order", *[PROBE] * 3], True),
        ([b"an order"], False),
        ([PROBE, b"an order"], False),
        ([None], False),
        # A test message of `produce`.
        ([PROBE + b" ~~~~"], False),
    ],
)
def test_a_topic_whose_last_messages_are_no_probes_is_refused(values: list[bytes | None], allowed: bool) -> None:
    """The canary wrote into whatever topic it was given."""
    broker = FakeBroker(orders=2)
    broker.produce(values, topic="orders", partition=1)
    client = broker.connect({"auto.offset.reset": "earliest", "stats_cb": lambda _: None})
    with nullcontext() if allowed else pytest.raises(ConfigError, match=r"^--topic: orders\[1\] .* a topic of its own"):
        check_ownership(client, "orders", 2)


def test_a_partition_that_does_not_answer_holds_up_the_canary_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ownership, "LOOK_S", 0.1)
    broker = FakeBroker(canary=2)
    broker.produce([PROBE], topic="canary", partition=1)
    broker.hung["canary", 1] = "never"
    check_ownership(broker.connect({"auto.offset.reset": "earliest", "stats_cb": lambda _: None}), "canary", 2)

    assert "canary: whether partitions 1 hold only probes is not known" in caplog.text
