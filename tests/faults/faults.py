"""The faults. Each is a generator: what comes before its `yield` injects the fault, what comes after heals it.

Brokers end by signals, so what they wrote stays in the page cache of a machine that lives on: power loss is not among
them.
"""

import json
import resource
import signal
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import NewPartitions, OffsetSpec
from trustme import CA

from tests.faults.compressible import RATIO
from tests.faults.field import SETUPS, Fault, Field
from tests.faults.load import Load, Setup, at_once, final_accounts
from tests.rotating import renewals
from workers.local.cluster import finish

LATENCY_SUM = "kafka_consumer_end_to_end_latency_seconds_sum"
FAULTS: list[Fault] = []
Injection = Callable[[Field], Generator[None]]


def fault(
    name: str, injected: str, hold_s: float = 3.0, *, own_loads: bool = False
) -> Callable[[Injection], Injection]:
    """Adds a fault to FAULTS; say `own_loads` of one that needs only those that it starts with `Field.own_loads`."""

    def add(inject: Injection) -> Injection:
        FAULTS.append(Fault(name, injected, inject, hold_s, own_loads))
        return inject

    return add


# Brokers


@fault("leader killed", "SIGKILL of the broker that leads partition 0, then started again")
def leader_killed(field: Field) -> Generator[None]:
    broker = field.leader(field.loads[0])
    field.cluster.kill_broker(broker)
    yield
    field.cluster.start_broker(broker)


@fault("every broker stopped in turn", "SIGTERM, clean stop, start, wait until in sync; broker after broker", hold_s=0)
def rolling_restart(field: Field) -> Generator[None]:
    yield from _each_broker(field, field.cluster.stop_broker)


@fault("every broker killed in turn", "SIGKILL, start, wait until in sync; broker after broker", hold_s=0)
def rolling_kill(field: Field) -> Generator[None]:
    yield from _each_broker(field, field.cluster.kill_broker)


@fault("all brokers killed", "SIGKILL of every broker within two seconds; each is started again after 0.7 s")
def all_brokers_killed(field: Field) -> Generator[None]:
    for broker in field.cluster.brokers:
        field.cluster.kill_broker(broker.node_id)
        field.wait(0.7)
        field.cluster.start_broker(broker.node_id)
    yield


def _each_broker(field: Field, end: Callable[[int], None]) -> Generator[None]:
    for broker in field.cluster.brokers:
        end(broker.node_id)
        field.until(field.missing_replicas, f"broker {broker.node_id} is missed")
        field.cluster.start_broker(broker.node_id)
        if broker is not field.cluster.brokers[-1]:
            field.until(field.whole, f"broker {broker.node_id} is in sync")
    yield


@fault("two brokers down", "SIGKILL of two of three brokers: below min.insync.replicas, and no quorum", hold_s=7.0)
def two_brokers_down(field: Field) -> Generator[None]:
    victims = field.random.sample(range(3), 2)
    for broker in victims:
        field.cluster.kill_broker(broker)
    # Answers that were under way may still arrive.
    field.wait(1.0)
    before = [load.ends() for load in field.loads]
    try:
        yield
        assert [load.ends() for load in field.loads] == before, "a message was acknowledged below min.insync.replicas"
    finally:
        for broker in victims:
            field.cluster.start_broker(broker)


@fault("broker hangs", "SIGSTOP of the leader of partition 0, longer than any session, then SIGCONT", hold_s=12.0)
def broker_hangs(field: Field) -> Generator[None]:
    broker = field.cluster.brokers[field.leader(field.loads[0])]
    broker.send(signal.SIGSTOP)
    try:
        yield
    finally:
        broker.send(signal.SIGCONT)


@fault("coordinator killed", "SIGKILL of each group's coordinator while offsets are committed")
def coordinator_killed(field: Field) -> Generator[None]:
    waiting = [*field.loads]
    while True:
        victim = field.coordinator(waiting[0])
        waiting = [load for load in waiting if field.coordinator(load) != victim]
        field.cluster.kill_broker(victim)
        if not waiting:
            break
        field.wait(3.0)
        field.cluster.start_broker(victim)
        field.until(field.whole, f"broker {victim} is in sync")
    yield
    field.cluster.start_broker(victim)


@fault(
    "log directory full", "no file of the leader of partition 0 can grow (RLIMIT_FSIZE 0), until it is started again"
)
def log_directory_full(field: Field) -> Generator[None]:
    node_id = field.leader(field.loads[0])
    _, hard = resource.prlimit(field.cluster.brokers[node_id].pid, resource.RLIMIT_FSIZE)
    resource.prlimit(field.cluster.brokers[node_id].pid, resource.RLIMIT_FSIZE, (0, hard))
    # Kafka's answer to a log directory that fails is to halt, when it has no other.
    field.until(lambda: field.cluster.brokers[node_id].crashed, "the broker gives up")
    yield
    field.cluster.start_broker(node_id)


# The way to the brokers


@fault("slow network", "the proxy delays every packet by 300 ms each way", hold_s=5.0)
def slow_network(field: Field) -> Generator[None]:
    field.proxy.delay_s = 0.3
    try:
        yield
    finally:
        field.proxy.delay_s = 0.0


@fault("silent network", "the proxy passes nothing on, longer than any session", hold_s=12.0)
def silent_network(field: Field) -> Generator[None]:
    field.proxy.silent = True
    try:
        yield
    finally:
        field.proxy.silent = False


@fault("connections reset", "the proxy resets every connection, five times, half a second apart", hold_s=0)
def connections_reset(field: Field) -> Generator[None]:
    for _ in range(5):
        # Clients wait longer before each further try.
        field.until(field.proxy.reset, "there is a connection to reset")
        field.wait(0.5)
    yield


# The proxy drops data at once; a client notices when its request times out (socket.timeout.ms).
SEEN_WITHIN_S = 25.0
HEALED_WITHIN_S = 90.0


@fault(
    "fetches swallowed",
    "the proxy swallows the fetches of every connection there is, twice; the rest goes through",
    hold_s=0,
)
def fetches_swallowed(field: Field) -> Generator[None]:
    for _ in range(2):
        field.proxy.hang_fetches()
        field.until(lambda: all(_hangs(load) for load in field.loads), "every group has a fetch that hangs")
        assert field.proxy.hung() >= len(field.loads)
        field.until(lambda: all(load.metric("kafka_consumer_lag_messages") > load.setup.rate for load in field.loads),
                    "the lag grows though nothing is fetched", SEEN_WITHIN_S)  # fmt: skip
        _heals(field)
    yield


def _heals(field: Field) -> None:
    """Waits until what hung is handled; no worker was started again for it."""
    ends = [load.ends() for load in field.loads]
    field.until(lambda: all(map(Load.caught_up, field.loads, ends)), "what hung is handled", HEALED_WITHIN_S)
    for member in [member for load in field.loads for member in load.members]:
        assert member.get("/livez")[0] == 200, f"{member.name}: a restart would not help"


def _hangs(load: Load) -> bool:
    return load.backlog() > load.setup.rate


# The workers


@fault("consumer killed", "SIGKILL of one member of each group, then a new one")
def consumer_killed(field: Field) -> Generator[None]:
    for load in field.loads:
        load.kill_member()
    yield
    for load in field.loads:
        load.scale(2)
    _settle(field)


@fault("producer killed", "SIGKILL of a second producer on each topic", hold_s=0.5)
def producer_killed(field: Field) -> Generator[None]:
    producers = [load.produce("--forever", "--rate", "250") for load in field.loads]
    field.until(lambda: all(len(producer.lines) > 200 for producer in producers), "the second producers deliver")
    for producer in producers:
        producer.kill()
    yield


@fault("group grows and shrinks", "members 1, 4, 2", hold_s=1.0)
def group_grows_and_shrinks(field: Field) -> Generator[None]:
    for count in (1, 4, 2):
        at_once(field.loads, partial(Load.scale, count=count))
        _settle(field)
    yield


@fault("stop during a rebalance", "SIGTERM of a member while another joins, and of one that has just begun to join")
def stop_during_a_rebalance(field: Field) -> Generator[None]:
    at_once(field.loads, _stop_while_joining)
    yield
    _settle(field)


def _stop_while_joining(load: Load) -> None:
    load.scale(3)
    joining = load.members[-1]
    joining.says("metrics on port")
    load.stop_member(load.members[1])
    load.scale(3)
    load.members[-1].says("metrics on port")
    load.stop_member(load.members[-1])


@fault("rebalance storm", "a member of each group joins or leaves every two seconds, six times", hold_s=0)
def rebalance_storm(field: Field) -> Generator[None]:
    for _ in range(3):
        for load in field.loads:
            load.scale(3)
        field.wait(2.0)
        leaving = [(load, load.members[-1]) for load in field.loads]
        for load, member in leaving:
            member.says("metrics on port")
            load.ask_to_stop(member)
        field.wait(2.0)
        for load, member in leaving:
            load.await_stopped(member)
    yield
    _settle(field)


def _settle(field: Field) -> None:
    field.until(lambda: all(load.settled() for load in field.loads), "every partition has an owner")


# The topic


@fault(
    "partitions added",
    "a third topic with a group of either protocol gets a partition more",
    hold_s=1.0,
    own_loads=True,
)
def partitions_added(field: Field) -> Generator[None]:
    # Not the topics of the standing loads: memory is compared over a whole soak, and it grows with partitions.
    with field.own_loads(*SETUPS) as loads:
        wanted = loads[0].partitions + 1
        requests = [NewPartitions(load.topic, wanted) for load in loads]
        for answer in field.admin.create_partitions(requests).values():
            # Brokers return this error when the topic has that number of partitions already.
            finish(answer, KafkaError.INVALID_PARTITIONS)
        for load in loads:
            load.partitions = wanted
        yield
        field.until(lambda: all(len(load.ends()) == wanted for load in loads), "the new partitions get messages")
        ends = [load.ends() for load in loads]
        field.until(lambda: all(map(Load.caught_up, loads, ends)), "the groups handle the new partitions")
        _accounts_are_whole(loads)


def _accounts_are_whole(loads: list[Load]) -> None:
    breaches = [breach for account in final_accounts(loads) for breach in account.breaches()]
    assert not breaches, "; ".join(breaches)


@fault("topic recreated", "a third topic deleted while both workers run, and created again", hold_s=3.0, own_loads=True)
def topic_recreated(field: Field) -> Generator[None]:
    with field.own_loads(SETUPS[0]) as (load,):
        # A client that is thrown away before its answer is there never gives it.
        admin = field.cluster.admin()
        finish(admin.delete_topics([load.topic])[load.topic], KafkaError.UNKNOWN_TOPIC_OR_PART)
        yield
        load.forget()
        field.cluster.create_topic(load.topic)
        field.until(lambda: len(load.ends()) == load.partitions, "the new topic gets messages in every partition")
        ends = load.ends()
        field.until(lambda: load.caught_up(ends), "the group handles the new topic from its beginning")


# In each partition, so that the new topic is shorter when its messages are read first.
OLD_END = 1500
# Committed on a timer of one second; and what is in the hands of the handler, or was handled since a late timer.
REDELIVERED_S = 3.0


@fault(
    "topic recreated with messages",
    "third topics deleted and created again, with messages before their clients look; then SIGTERM, or SIGKILL",
    hold_s=0,
    own_loads=True,
)
def topic_recreated_with_messages(field: Field) -> Generator[None]:
    # A member that its group has given up begins anew, and shows nothing of this: it is frozen for a moment.
    alone = replace(SETUPS[0], members=1, consume=("--property", "session.timeout.ms=20000"))
    from_end = replace(alone, name="from-end", consume=(*alone.consume, "--from-end"))
    # The end of the old topic is not committed yet when its client looks at the new one.
    uncommitted = replace(alone, consume=(*alone.consume, "--property", "auto.commit.interval.ms=30000"))
    with field.own_loads(uncommitted, alone, from_end) as loads:
        at_once(loads, Load.stop_producer)
        at_once(loads, lambda load: load.burst(OLD_END * load.setup.partitions))
        for load in loads:
            field.until(partial(load.caught_up, load.ends()), "all of the old topics is handled")
        for load in loads[1:]:
            field.until(load.all_committed, "all of the old topics is committed")
        for load in loads:
            load.members[0].popen.send_signal(signal.SIGSTOP)
        admin = field.cluster.admin()
        for deleted in admin.delete_topics([load.topic for load in loads]).values():
            finish(deleted, KafkaError.UNKNOWN_TOPIC_OR_PART)
        for load in loads:
            load.forget()
            field.create_topic(load)
            load.start_producer()
        field.until(
            lambda: all(min(_ends(load)) >= 50 for load in loads), "every partition of the new topics has messages"
        )
        for load in loads:
            load.members[0].popen.send_signal(signal.SIGCONT)
        yield
        _handled_by_the_next_member(field, stopped=loads[:1], killed=loads[1:])


@fault(
    "truncation",
    "unclean election of a replica that lacks what a group has handled; then SIGTERM, or SIGKILL",
    hold_s=0,
    own_loads=True,
)
def truncation(field: Field) -> Generator[None]:
    behind, ahead = field.random.sample(range(3), 2)
    # With one replica in sync "all" replicas acknowledge, and its messages go when another one is elected.
    setup = replace(
        SETUPS[0], members=1, replicas=((ahead, behind),), partitions=1,
        topic_config={"min.insync.replicas": "1", "unclean.leader.election.enable": "true"},
    )  # fmt: skip
    with field.own_loads(setup, setup) as loads:
        at_once(loads, Load.stop_producer)
        field.cluster.kill_broker(behind)
        field.until(lambda: all(_in_sync(field, load) == [ahead] for load in loads), "one replica is in sync")
        at_once(loads, lambda load: load.burst(3 * OLD_END))
        field.until(lambda: all(load.all_committed() for load in loads), "all of it is committed")
        field.cluster.kill_broker(ahead)
        field.cluster.start_broker(behind)
        field.until(lambda: all(_leads(field, load, behind) for load in loads), "the replica that lacks it is elected")
        for load in loads:
            load.truncate(0, _log_end(field, load))
            load.start_producer()
        yield
        field.cluster.start_broker(ahead)
        _handled_by_the_next_member(field, stopped=loads[:1], killed=loads[1:])


def _handled_by_the_next_member(field: Field, *, stopped: list[Load], killed: list[Load]) -> None:
    """Ends the one member of each load while its log is shorter than what was committed, lets it grow beyond that, and
    starts the next member: it has to handle all of the rest, and little of what was handled.
    """
    loads = [*stopped, *killed]
    # Or else a member may be killed that has just handled more than it handles between two commits.
    field.until(
        lambda: all(load.backlog() < load.setup.rate for load in loads), "the groups keep up with the producers"
    )
    begin = [sum(load.ends().values()) for load in loads]
    wanted = 4 * loads[0].setup.rate
    field.until(
        lambda: all(sum(load.handled.next.values()) > at + wanted for load, at in zip(loads, begin, strict=True)),
        "the groups handle the shorter logs under steady traffic",
    )
    at_once(stopped, lambda load: load.stop_member(load.members[0]))
    at_once(killed, Load.kill_member)
    at_once(loads, Load.stop_producer)
    before = [load.handled.redelivered for load in loads]
    at_once(loads, lambda load: load.burst(OLD_END * 3 + load.setup.partitions))
    at_once(loads, lambda load: load.scale(1))
    ends = [load.ends() for load in loads]
    field.until(lambda: all(map(Load.caught_up, loads, ends)), "the next members handle all of the rest")
    for load, redelivered in zip(loads, before, strict=True):
        again = load.handled.redelivered - redelivered
        assert again <= REDELIVERED_S * load.setup.rate * (load in killed), f"{load.group}: {again} redelivered"


def _ends(load: Load) -> list[int]:
    return [load.ends().get(partition, 0) for partition in range(load.setup.partitions)]


def _in_sync(field: Field, load: Load) -> list[int]:
    return list(field.admin.list_topics(load.topic, timeout=10).topics[load.topic].partitions[0].isrs)


def _leads(field: Field, load: Load, broker: int) -> bool:
    try:
        return field.leader(load) == broker
    except (KafkaException, KeyError):
        return False


def _log_end(field: Field, load: Load) -> int:
    place = TopicPartition(load.topic, 0)
    # A client that is thrown away before its answer is there never gives it.
    admin = field.cluster.admin()
    ends: list[int] = []

    def answers() -> bool:
        try:
            answer = admin.list_offsets({place: OffsetSpec.latest()}, request_timeout=30)[place].result()
        except KafkaException:
            # The leader that was just elected is not known to all brokers yet.
            return False
        ends.append(int(answer.offset))
        return ends[-1] >= 0

    field.until(answers, "the new leader says where the log ends")
    return ends[-1]


@fault(
    "retention overtakes",
    "records deleted past the position of a slow group, and of one that is stopped",
    hold_s=0,
    own_loads=True,
)
def retention_overtakes(field: Field) -> Generator[None]:
    # Small batches and fetches, and a short queue: most of the backlog is still in the log when it is deleted.
    setup = replace(
        SETUPS[0], handler="held", members=1, produce=("--property", "batch.num.messages=50"),
        consume=("--property", "queued.min.messages=10", "--property", "fetch.message.max.bytes=20000"),
    )  # fmt: skip
    with field.own_loads(setup) as (load,):
        load.stop_producer()
        with load.held():
            load.burst(12 * OLD_END)
            _delete_most(field, load)
        yield
        counted = _counted_as_deleted(field, load)
        load.stop_member(load.members[0])
        account = json.loads(load.retired[-1].stderr.splitlines()[-1])["topics"][load.topic]
        assert account["deleted"] == counted
        load.burst(3 * OLD_END)
        _delete_most(field, load)
        load.scale(1)
        _counted_as_deleted(field, load, counted)


def _delete_most(field: Field, load: Load) -> None:
    """Deletes all but the last messages of each partition, as retention does."""
    places = [TopicPartition(load.topic, partition, end - 100) for partition, end in load.ends().items()]
    for place, answer in field.admin.delete_records(places).items():
        load.forgive(place.partition, answer.result().low_watermark)


def _counted_as_deleted(field: Field, load: Load, before: int = 0) -> int:
    """Waits until the rest is handled; how many messages the member has counted as deleted, which has to be exact."""
    ends = load.ends()
    field.until(lambda: load.caught_up(ends), "what was not deleted is handled")
    never = load.never_handled(ends) - before
    assert never > 0, "retention has deleted nothing that was not handled"
    field.until(lambda: load.metric("kafka_consumer_deleted_messages_total") > 0, "deleted messages are counted", 30)
    assert load.metric("kafka_consumer_deleted_messages_total") == never
    return never


# The chart's limit; and what each partition holds, compressed: more than a fetch may bring.
MEMORY_MIB = 256
COMPRESSED = Setup(
    "compressed", "classic", "batches", "50 partitions of JSON", partitions=50, members=1, by_key=True, rate=100,
    produce=("--source", "tests.faults.compressible:messages", "--stamp", "--property", "compression.type=zstd",
             "--property", "batch.size=1000000", "--property", "linger.ms=100"),
)  # fmt: skip


@fault(
    "compressed topics",
    f"a backlog of JSON compressed {RATIO}:1 in 50 partitions, read within {MEMORY_MIB} MiB",
    hold_s=0,
    own_loads=True,
)
def compressed_topics(field: Field) -> Generator[None]:
    with field.own_loads(COMPRESSED) as (load,):
        load.stop_producer()
        load.stop_member(load.members[0])
        load.burst(200_000)
        load.scale(1)
        yield
        ends = load.ends()
        field.until(lambda: load.caught_up(ends), "the backlog is handled")
        peak = load.members[0].peak_rss_mib
        assert peak < MEMORY_MIB, f"the consumer needed {peak:.0f} MiB"


# The credentials

# kubelet brings a new file so long after the brokers refuse the old password.
LATE_S = 5.0


@fault(
    "credentials rotated",
    "of third topics over TLS and SCRAM: the CA, the brokers' certificate, the password while brokers are stopped in "
    "turn, the client's certificate",
    hold_s=0,
    own_loads=True,
)
def credentials_rotated(field: Field) -> Generator[None]:
    secrets, cluster = field.credentials, field.cluster
    environment = secrets.environment(cluster)
    with field.own_loads(*(replace(each, environment=environment) for each in SETUPS[:2])) as loads:
        workers = [worker for load in loads for worker in load.workers()]
        new = CA()
        secrets.trust_both(new)
        field.until(lambda: renewals(workers, "ca") == 1, "both CAs are trusted")
        secrets.replace_brokers_certificate(cluster, new)
        password = f"password-{field.random.randrange(10**9)}"
        secrets.set_password(cluster, password)
        # Connections live on; those to a broker that was started again are refused.
        for broker in cluster.brokers[:2]:
            cluster.stop_broker(broker.node_id)
            cluster.start_broker(broker.node_id)
            field.until(field.whole, f"broker {broker.node_id} is in sync")
        field.until(lambda: all("authentication failed" in each.stderr for each in workers), "all are refused")
        field.wait(LATE_S)
        secrets.password.write({"password": password.encode()})
        field.until(lambda: renewals(workers, "password") == 1, "the password is renewed")
        secrets.trust_only(new)
        field.until(lambda: renewals(workers, "ca") == 2, "only the new CA is trusted")
        with secrets.another_client_certificate():
            field.wait(1.0)
        field.until(lambda: renewals(workers, "certificate") >= 1, "the client's certificate is renewed")
        yield
        _accounts_are_whole(loads)


# Time


@fault("clocks differ", "a producer whose clock is a day behind, and one whose clock is 50 minutes ahead", hold_s=0.5)
def clocks_differ(field: Field) -> Generator[None]:
    before = [load.metric(LATENCY_SUM) for load in field.loads]
    _send_skewed(field, "ahead")
    for load, ends, sum_s in zip(field.loads, [load.ends() for load in field.loads], before, strict=True):
        field.until(partial(load.caught_up, ends), f"{load.setup.name}: what is ahead is handled")
        # Messages from the future take nothing from a counter.
        assert load.metric(LATENCY_SUM) >= sum_s
    _send_skewed(field, "behind")
    yield
    for load in field.loads:
        lags = [lag_s for member in load.members for _, lag_s in member.metrics().get("kafka_consumer_lag_seconds", [])]
        assert lags
        assert min(lags) >= 0


def _send_skewed(field: Field, name: str) -> None:
    """Send messages of another clock to all loads at once."""
    for producer in [load.produce("--source", f"tests.faults.skewed:{name}") for load in field.loads]:
        assert producer.wait() == 0, producer.stderr
