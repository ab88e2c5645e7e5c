"""Credentials that change under load: the CA, the brokers' and the client's certificates, and the password.

On a cluster of its own, whose listener asks for TLS with a client's certificate and for SCRAM.
"""

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from confluent_kafka import Consumer, TopicPartition
from cryptography import x509

from tests.conftest import PASSWORD
from tests.mounted import client_pair, pem
from tests.rotating import LISTENER, Rotating, renewals
from workers.local.cluster import Cluster
from workers.testing.processes import Process, Processes, eventually

AGAIN_MS = 5000
# kubelet brings a new file so long after the brokers refuse the old password.
LATE_S = 5.0
RATE = 300
PARTITIONS = 3
# The longest a partition may be without a message when nothing but the credentials changes (docs/operations.md).
PAUSE_S = 10.0


class Stand(Rotating):
    """A cluster of its own whose credentials are rotated; each connection authenticates again every few seconds."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        again = {f"{LISTENER}.scram-sha-512.connections.max.reauth.ms": str(AGAIN_MS)}
        # One broker: what is tested are connections, and a cluster of its own costs less so.
        self.cluster = Cluster(1, properties={**self.properties, **again}, scram_users=self.scram_users)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    made = Stand(tmp_path_factory.mktemp("stand"))
    with made.cluster:
        yield made


def grows(count: Callable[[], float], what: str) -> None:
    """Wait until a count has grown by a second's load."""
    before = count()
    eventually(lambda: count() > before + RATE, f"{what} go on")


def rotate(stand: Stand, workers: list[Process], flowing: Callable[[], None]) -> dict[str, float]:
    """Rotate everything once; return when each step began, as Unix time. `flowing` waits for the next messages."""
    begins = {"steady": time.time()}
    time.sleep(3)

    begins["both CAs trusted"] = time.time()
    new = trustme.CA()
    stand.trust_both(new)
    eventually(lambda: renewals(workers, "ca") == 1, "both CAs are trusted")

    # Clients meet it when they have to connect again: when the brokers refuse the old password.
    begins["brokers' certificate"] = time.time()
    stand.replace_brokers_certificate(stand.cluster, new)

    begins["password"] = time.time()
    stand.set_password(stand.cluster, "battery-staple")
    for each in workers:
        each.says("authentication failed")
    assert [each.get("/readyz")[0] for each in workers] == [503] * len(workers)
    assert all("authentication" in each.get("/readyz")[1] for each in workers)
    time.sleep(LATE_S)
    begins["password file"] = time.time()
    stand.password.write({"password": b"battery-staple"})
    eventually(lambda: renewals(workers, "password") == 1, "the password is renewed")
    eventually(lambda: all(each.get("/readyz")[0] == 200 for each in workers), "all are ready again")
    flowing()

    begins["new CA only"] = time.time()
    stand.trust_only(new)
    eventually(lambda: renewals(workers, "ca") == 2, "only the new CA is trusted")

    begins["client certificate"] = time.time()
    with stand.another_client_certificate():
        for each in workers:
            each.says("cannot be used together")
    eventually(lambda: renewals(workers, "certificate") == 1, "the client's certificate is renewed")
    for kind in ("ca", "certificate"):
        expiries = [each.metric("kafka_client_certificate_expiry_timestamp_seconds", kind=kind) for each in workers]
        assert all(expiry is not None and expiry > time.time() for expiry in expiries)

    begins["steady again"] = time.time()
    time.sleep(AGAIN_MS / 1000 + 1)
    begins["end"] = time.time()
    assert [each.running for each in workers] == [True] * len(workers)
    return begins


def written(stand: Stand, topic: str) -> dict[int, list[float]]:
    """When the brokers wrote the messages of each partition, as Unix time."""
    reader = Consumer({"bootstrap.servers": stand.cluster.bootstrap_servers, "group.id": "reader"})
    places = [TopicPartition(topic, number, 0) for number in range(PARTITIONS)]
    ends = {each.partition: reader.get_watermark_offsets(each, timeout=10)[1] for each in places}
    reader.assign(places)
    times: dict[int, list[float]] = defaultdict(list)
    while sum(map(len, times.values())) < sum(ends.values()):
        for message in reader.consume(5000, 10):
            assert message.error() is None
            times[message.partition() or 0].append(message.timestamp()[1] / 1000)
    reader.close()
    return times


def longest_pauses(times: dict[int, list[float]], begins: dict[str, float]) -> dict[str, float]:
    """The longest time that a partition was without a message, by the step in which it began."""
    longest = dict.fromkeys(begins, 0.0)
    steps = sorted(begins.items(), key=lambda each: each[1])
    for moments in times.values():
        for before, after in itertools.pairwise(moments):
            step = next((name for name, begin in reversed(steps) if begin <= before), steps[0][0])
            longest[step] = max(longest[step], after - before)
    return {name: round(seconds, 2) for name, seconds in longest.items() if name != "end"}


def check_pauses(pauses: dict[str, float]) -> None:
    for step in ("both CAs trusted", "new CA only", "client certificate"):
        assert pauses[step] < PAUSE_S, pauses
    # Refused until the file comes; then up to 3 s until it is looked at, and 2 s until the client connects again.
    assert pauses["password"] < LATE_S + 5 + PAUSE_S, pauses


@pytest.mark.timeout(600)
def test_a_producer_the_canary_and_the_lag_exporter_go_on_while_all_their_credentials_are_rotated(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = "rotated"
    stand.cluster.create_topic(topic, PARTITIONS, **{"message.timestamp.type": "LogAppendTime"})
    processes = Processes(stand.cluster.bootstrap_servers, tmp_path)
    try:
        arguments = ["--topic", topic, "--forever", "--rate", str(RATE), "--summary", "json"]
        producer = processes.start("produce", *arguments, env=stand.environment(stand.cluster))

        def sent() -> float:
            return producer.metric("kafka_producer_deliveries_total", outcome="success") or 0

        one_broker = ["--replication-factor", "1", "--min-insync-replicas", "1"]
        canary = processes.start("canary", *one_broker, "--summary", "json", env=stand.environment(stand.cluster))
        exporter = processes.start("lag-exporter", "--interval", "1", env=stand.environment(stand.cluster))

        def probed() -> float:
            return canary.metric("kafka_canary_received_total", partition="0", broker="0") or 0

        eventually(lambda: sent() > RATE and probed() > 0 and exporter.get("/readyz")[0] == 200, "load")
        begins = rotate(stand, [producer, canary], lambda: grows(sent, "deliveries"))
        eventually(lambda: renewals([exporter], "certificate") == 1, "the exporter's certificate is renewed", 90)
        eventually(lambda: exporter.get("/readyz")[0] == 200, "it has all answers again", 90)
        assert [renewals([exporter], kind) for kind in ("ca", "password")] == [2, 1]
        assert canary.stop() == 0, canary.stderr
        probes = json.loads(canary.lines[-1])
        code = producer.stop()
        account = json.loads(producer.lines[-1])
        processes.write("account.json", producer.lines[-1])
        verified = processes.run("verify", "--topic", topic, "--account", str(tmp_path / "account.json"))
        pauses = longest_pauses(written(stand, topic), begins)
    finally:
        processes.kill_all()
    with capsys.disabled():
        print(f"\nproducer: longest pause of a partition in seconds: {pauses}; {account['acknowledged']} messages")

    assert (probes["lost"], probes["duplicates"]) == (0, 0), probes
    assert probes["received"] >= probes["acknowledged"] > 0, probes
    assert verified.returncode == 0, verified.stdout + verified.stderr
    # librdkafka fails the requests that wait in a connection whose authentication is refused when it is repeated.
    assert set(account["errors"]) <= {"_AUTHENTICATION"}, account
    assert account["failed"] == 0
    assert account["unknown"] < RATE
    assert code == (1 if account["unknown"] else 0), producer.stderr
    check_pauses(pauses)


HANDLER = """
import os, time

seen = open(os.environ["SEEN"], "a", buffering=1)

def handle(message):
    seen.write(f"{message.partition()} {message.offset()} {time.time()}\\n")
"""


def handled(paths: list[Path]) -> list[tuple[int, int, float]]:
    """Messages that consumers have handled: partition, offset, and time."""
    lines = [line.split() for path in paths if path.exists() for line in path.read_text().splitlines()]
    return [(int(line[0]), int(line[1]), float(line[2])) for line in lines if len(line) == 3]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_consumers_go_on_while_all_their_credentials_are_rotated(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    topic = f"consumed-{protocol}"
    stand.cluster.create_topic(topic, PARTITIONS)
    stand.set_password(stand.cluster, PASSWORD)
    stand.password.write({"password": PASSWORD.encode()})
    processes = Processes(stand.cluster.bootstrap_servers, tmp_path)
    processes.write("noting.py", HANDLER)
    seen = [tmp_path / f"seen-{number}" for number in range(2)]
    try:
        producer = processes.start("produce", "--topic", topic, "--forever", "--rate", str(RATE), "--summary", "json")
        arguments = ["--handler", "noting:handle", "--group-protocol", protocol]
        members = [
            processes.consume(topic, topic, *arguments, env={**stand.environment(stand.cluster), "SEEN": str(path)})
            for path in seen
        ]
        eventually(lambda: all(path.exists() and path.stat().st_size for path in seen), "both members handle messages")
        begins = rotate(stand, members, lambda: grows(lambda: len(handled(seen)), "handlers"))
        assert producer.stop() == 0, producer.stderr
        sent = json.loads(producer.lines[-1])["acknowledged"]
        eventually(lambda: len(handled(seen)) >= sent, "all is handled")
        assert [each.stop() for each in members] == [0, 0], [each.stderr for each in members]
    finally:
        processes.kill_all()
    all_handled = handled(seen)
    times: dict[int, list[float]] = defaultdict(list)
    for partition, _, at in sorted(all_handled, key=lambda each: each[2]):
        times[partition].append(at)
    pauses = longest_pauses(times, begins)
    with capsys.disabled():
        print(f"\nconsumers, {protocol}: longest pause of a partition in seconds: {pauses}; {sent} messages")

    # Nothing is lost. A member leaves when the brokers have taken its last commit, so nothing comes twice, except what
    # is handled while the coordinator refuses the password: nothing can be committed then, and the session times out.
    first: dict[tuple[int, int], float] = {}
    again = set()
    for partition, offset, at in sorted(all_handled, key=lambda each: each[2]):
        if first.setdefault((partition, offset), at) != at:
            again.add((partition, offset))
    assert len(first) == sent
    committed_s = 2.0
    assert [each for each in again if not begins["password"] - committed_s < first[each] < begins["new CA only"]] == []
    check_pauses(pauses)


@pytest.mark.parametrize("command", ["lag-exporter", "produce", "consume", "canary"])
def test_every_worker_says_when_its_certificates_end_also_while_no_broker_answers(command: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    (tmp_path / "ca.crt").write_bytes(pem(authority))
    for name, content in client_pair(authority).items():
        (tmp_path / name).write_bytes(content)
    processes = Processes("127.0.0.1:1", tmp_path)
    try:
        worker = processes.start(
            command,
            env={
                "KAFKA_SECURITY_PROTOCOL": "ssl",
                "KAFKA_SSL_CA_LOCATION": str(tmp_path / "ca.crt"),
                "KAFKA_SSL_CERTIFICATE_LOCATION": str(tmp_path / "user.crt"),
                "KAFKA_SSL_KEY_LOCATION": str(tmp_path / "user.key"),
            },
        )
        for kind, path in (("ca", "ca.crt"), ("certificate", "user.crt")):
            ends = x509.load_pem_x509_certificate((tmp_path / path).read_bytes()).not_valid_after_utc
            assert worker.metric("kafka_client_certificate_expiry_timestamp_seconds", kind=kind) == ends.timestamp()
    finally:
        processes.kill_all()
