"""Measurements other than throughput: growth with partitions and topics, scale-out, rebalances, memory."""

import os
import time
from contextlib import ExitStack
from itertools import pairwise
from statistics import median

from bench.bed import Bed
from bench.measure import Program, run
from bench.report import Judgement, Row, Section
from bench.running import Notes, Running
from bench.throughput import handled
from workers.local.cluster import Cluster

ROUNDS = 3
MEASURED_S = 5.0
RATE = 500

# Kafka's own settings of groups, where the embedded cluster has shorter ones.
KAFKAS_OWN = {
    "group.initial.rebalance.delay.ms": "3000",
    "group.consumer.min.heartbeat.interval.ms": "5000",
    "group.consumer.heartbeat.interval.ms": "5000",
    "group.consumer.min.session.timeout.ms": "45000",
}


def memory(bed: Bed) -> Section:
    """A consumer at rest, and one with a backlog and a handler that holds it up."""
    count = bed.count(1_000_000)
    cases = (("nothing to do", bed.topic(), 10.0), (f"{count:,} messages behind", bed.filled(count), 30.0))
    rows: list[Row] = []
    for name, topic, seconds in cases:
        with ExitStack() as stack:
            consumer = Running(stack, bed.consumer(topic, options=("--handler", "bench.handlers:millisecond")))
            consumer.wait_for(lambda: consumer.assigned() == 3, "assignment")  # noqa: B023
            time.sleep(max(2.0, seconds * min(1.0, bed.scale)))
            resident, most = consumer.status_mb("VmRSS"), consumer.status_mb("VmHWM")
            rows.append({"consumer": name, "after s": seconds, "resident MB": resident, "most MB": most})
        bed.say(f"  {rows[-1]}")
    note = (
        "The most that a process ever had in memory (VmHWM). Behind: a handler of a millisecond, so that what is "
        "fetched ahead fills to its bound (queued.max.messages.kbytes) and stays there."
    )
    return Section(note, tables=[rows], judgements=[Judgement("memory at rest", [rows[0]["most MB"]], 60, "MB")])


def scale_out(bed: Bed) -> Section:
    """Members of a group, one process each, with a handler that waits and with one that computes."""
    tables = []
    for handler, count in (("millisecond", bed.count(60_000)), ("busy", bed.count(900_000))):
        topic = bed.filled(count)
        rates: dict[int, list[float]] = {members: [] for members in (1, 2, 3, 4)}
        for _ in range(ROUNDS):
            for members in rates:
                rates[members].append(_group_rate(bed, topic, members, handler))
                bed.say(f"  {handler}, {members} members: {rates[members][-1]:,.0f}/s")
        rows: list[Row] = [
            {
                f"members, handler {handler}": members,
                "messages/s": float(median(found)),
                "min-max": f"{min(found):,.0f}-{max(found):,.0f}",
                "of one member": median(found) / median(rates[1]),
            }
            for members, found in rates.items()
        ]
        tables.append(rows)
    note = (
        f"Messages handled a second over {MEASURED_S:.0f} s, once the assignment of three partitions had settled, with "
        f"a backlog; medians of {ROUNDS} rounds. `millisecond` sleeps for a millisecond, as one that waits for a "
        "database; `busy` computes for about 50 us in Python. The fourth member idles. Members share "
        f"{os.cpu_count()} cores with three brokers, and computing scales to fewer: members are processes, so more of "
        "them help as long as there are cores.\n\n"
        "Free-threaded CPython would not change this for a consumer, whose handler has one thread by contract. "
        "confluent-kafka 2.16.1 has a wheel for free-threaded 3.14 (cp314t), none for 3.13; no such interpreter was "
        "found in Debian 12 nor, by its name, on PyPI and npm, so it was not measured."
    )
    return Section(note, tables=tables)


def _group_rate(bed: Bed, topic: str, members: int, handler: str) -> float:
    """Messages a second of a new group, from the beginning of a topic."""
    group = bed.group()
    wanted = sorted({1: [3], 2: [1, 2], 3: [1, 1, 1], 4: [0, 1, 1, 1]}[members])
    with ExitStack() as stack:
        options = ("--handler", f"bench.handlers:{handler}")
        started = [Running(stack, bed.consumer(topic, options=options, group=group)) for _ in range(members)]
        started[0].wait_for(lambda: sorted(each.assigned() for each in started) == wanted, "settled assignment")
        time.sleep(1)
        begin, before = time.monotonic(), _handled(started)
        time.sleep(MEASURED_S)
        after, seconds = _handled(started), time.monotonic() - begin
        if not started[0].sample("kafka_consumer_lag_messages"):
            raise AssertionError("the backlog was too short")
        return (after - before) / seconds


def _handled(members: list[Running]) -> float:
    return sum(each.sample("kafka_consumer_messages_total", 'outcome="success"') for each in members)


def rebalance(bed: Bed) -> Section:
    """A second member joins, with both protocols, and with the embedded cluster's and Kafka's own settings."""
    rows = [_joins(bed, protocol, "1 s, 0 s") for protocol in ("classic", "consumer")]
    with Cluster(properties=KAFKAS_OWN, java_options=()) as cluster:
        other = Bed(cluster, bed.rounds, bed.scale, bed.say)
        rows += [_joins(other, protocol, "5 s, 3 s") for protocol in ("classic", "consumer")]
    note = (
        f"A member consumes {RATE} messages a second from three partitions when a second one is started; medians (and "
        f"the longest) of {ROUNDS} rounds. First message: from the start of its process. Pause: the longest gap in a "
        "partition that stays where it is, from the joiner's start until it is told to stop. Outage: from the last "
        "message of a moved partition at the old owner to the first at the new one. Brokers: how often KIP-848 members "
        "hear from the coordinator, and how long a new classic group waits for others; the first pair is what the "
        "embedded cluster sets, the second Kafka's default."
    )
    return Section(note, tables=[rows])


def _joins(bed: Bed, protocol: str, brokers: str) -> Row:
    found = [_join(bed, protocol) for _ in range(ROUNDS)]
    row: Row = {"brokers": brokers, "protocol": protocol}
    names = ("first member s", "joiner s", "pause ms", "outage ms")
    for name, values in zip(names, zip(*found, strict=True), strict=True):
        row[name] = f"{median(values):,.2f} ({max(values):,.2f})" if name.endswith(" s") else (
            f"{median(values):,.0f} ({max(values):,.0f})")  # fmt: skip
    bed.say(f"  {row}")
    return row


def _join(bed: Bed, protocol: str) -> tuple[float, float, float, float]:
    """Seconds to the first member's and the joiner's first message, ms of the longest pause and outage."""
    topic, group = bed.only_topic(), bed.group()
    options = ("--handler", "bench.handlers:record", "--group-protocol", protocol)
    with ExitStack() as stack:
        producer = Running(stack, bed.producer(topic, "--forever", "--rate", str(RATE)))
        producer.wait_for(lambda: producer.sample("kafka_producer_deliveries_total", "success"), "message")
        old = Running(stack, bed.consumer(topic, options=options, group=group))
        old.wait_for(lambda: old.assigned() == 3, "assignment")
        time.sleep(2)
        new = Running(stack, bed.consumer(topic, options=options, group=group))
        new.wait_for(lambda: new.assigned() and old.assigned() + new.assigned() == 3, "partition for the joiner", 90)
        time.sleep(2)
        told_at = time.time()
        new.stop()
        old.stop()
        before, after = old.notes(), new.notes()
    moved = {partition for _, partition, _ in after}
    pause = _longest_gap([note for note in before if new.started_at - 1 < note[0] < told_at and note[1] not in moved])
    outage = max(_first(after, partition) - _last(before, partition, after[0][0]) for partition in moved)
    return before[0][0] - old.started_at, after[0][0] - new.started_at, pause * 1000, outage * 1000


def _first(notes: Notes, partition: int) -> float:
    return next(came for came, at, _ in notes if at == partition)


def _last(notes: Notes, partition: int, until: float) -> float:
    return max(came for came, at, _ in notes if at == partition and came <= until)


def _longest_gap(notes: Notes) -> float:
    times: dict[int, list[float]] = {}
    for came, partition, _ in notes:
        times.setdefault(partition, []).append(came)
    return max(after - before for each in times.values() for before, after in pairwise(each))


def growth(bed: Bed) -> Section:
    """One consumer that owns ever more partitions, of one topic and of many topics."""
    count = bed.count(1_000_000)
    by_partitions = []
    for partitions in (3, 30, 300, 1000):
        bed.clear()
        by_partitions.append(_grown(bed, [bed.filled(count, partitions)], partitions, count))
    by_topics = []
    for topics in (1, 10, 100):
        bed.clear()
        names = [bed.topic() for _ in range(topics)]
        # As many in each partition, for they carry the same number everywhere.
        whole = -(-count // (3 * topics)) * 3 * topics
        run(Program("filling topics", lambda: bed.bare("spread", ",".join(names), whole, "grow")))  # noqa: B023
        by_topics.append({"topics": topics, **_grown(bed, names, 3 * topics, whole)})
    scrape = by_partitions[-1]["scrape ms"]
    note = (
        f"One consumer that owns all partitions. Whole processes that consume {count:,} messages; then one that has "
        "consumed them, at rest: its memory, and the median of 20 scrapes."
    )
    judgement = Judgement("scrape of 1,000 partitions", [scrape], 50, "ms")
    return Section(note, tables=[by_partitions, by_topics], judgements=[judgement])


def _grown(bed: Bed, topics: list[str], partitions: int, count: int) -> Row:
    handler = ("--handler", "bench.handlers:each_batch")
    options = (*handler, "--max-messages", str(count))
    took = run(Program("consume", lambda: bed.consumer(*topics, options=options), handled(count)))
    with ExitStack() as stack:
        consumer = Running(stack, bed.consumer(*topics, options=handler))
        consumer.wait_for(lambda: _handled([consumer]) == count, "end of the backlog")
        # Every partition has a series of its lag.
        consumer.wait_for(lambda: consumer.metrics().count("kafka_consumer_lag_messages{") == partitions, "lag")
        times = []
        for _ in range(20):
            begin = time.perf_counter()
            size = len(consumer.metrics())
            times.append((time.perf_counter() - begin) * 1000)
        resident = consumer.status_mb("VmRSS")
        consumer.stop()
    row = {
        "partitions": partitions,
        "messages/s": count / took.seconds,
        "CPU us/message": took.cpu_seconds / count * 1e6,
        "scrape ms": median(times),
        "worst ms": max(times),
        "page kB": size / 1000,
        "resident MB": resident,
    }
    bed.say(f"  {row}")
    return row
