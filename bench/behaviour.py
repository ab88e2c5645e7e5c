"""What is not a throughput: latency, growth with partitions, scale-out, rebalances, memory."""

import json
import os
import re
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.bed import Bed
from bench.handlers import RECORD

RATE = 1000
LATENCY_S = 10
Row = dict[str, Any]
# Seen by one member: when a message came, its partition, when it was sent.
Notes = list[tuple[float, int, float]]


class Running:
    """A process whose log says where its metrics are and whose handler notes what it sees."""

    def __init__(self, stack: ExitStack, command: list[str]) -> None:
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._log = self._directory / "log"
        self._notes = self._directory / "notes.json"
        self.started_at = time.time()
        with self._log.open("w") as log:
            environment = {**os.environ, RECORD: str(self._notes)}
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
        stack.callback(self._kill)

    def notes(self) -> Notes:
        """What was seen, once the process has ended."""
        assert self.process.wait(120) == 0, self._log.read_text()
        notes: Notes = json.loads(self._notes.read_text())
        return notes

    def stop(self) -> Notes:
        self.process.terminate()
        return self.notes()

    def metrics(self) -> str:
        found = re.search(r"metrics on port (\d+)", self._log.read_text())
        if found is None:
            return ""
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def wait_for(self, text: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.metrics():
            assert time.monotonic() < deadline, f"no {text}: {self._log.read_text()}"
            time.sleep(0.05)

    @property
    def resident_mb(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def _kill(self) -> None:
        self.process.kill()
        self.process.wait()


def latency(bed: Bed) -> list[Row]:
    """End to end at a rate: worker to worker, and bare loop to bare loop."""
    samples: dict[str, list[list[float]]] = {"kafka-workers": [], "bare produce() and poll()": []}
    count = RATE * LATENCY_S
    for number in range(bed.rounds):
        for name in sorted(samples, reverse=bool(number % 2)):
            topic = bed.topic()
            with ExitStack() as stack:
                if name == "kafka-workers":
                    options = ("--max-messages", str(count), "--handler", "bench.handlers:record")
                    consumer = Running(stack, bed.consumer(topic, *options))
                    consumer.wait_for("kafka_consumer_assigned_partitions 3")
                    producer = bed.producer(topic, "--count", str(count), "--rate", str(RATE))
                else:
                    consumer = Running(stack, bed.bare("record", topic, count, bed.group()))
                    time.sleep(2)  # a bare loop says nothing of itself
                    producer = bed.bare("trickle", topic, count, str(RATE))
                bed.run(producer)
                # The first second is that of connections and of the first batches.
                delays = [came - sent for came, _, sent in consumer.notes()][RATE:]
            samples[name].append([cut * 1000 for cut in quantiles(delays, n=100)])
            bed.say(f"  {name:<44} p50 {samples[name][-1][49]:.1f} ms, p99 {samples[name][-1][98]:.1f} ms")
    return [
        {"name": name, "p50 ms": median(cuts[49] for cuts in runs), "p99 ms": median(cuts[98] for cuts in runs)}
        for name, runs in samples.items()
    ]


def linger_curve(bed: Bed) -> list[Row]:
    """What linger.ms buys at full speed and costs at a low rate."""
    rows = []
    for linger in (0, 1, 5, 20, 50):
        topic = bed.topic()
        setting = ("--property", f"linger.ms={linger}", "--summary", "json")
        rates, delays = [], []
        for _ in range(3):
            fast = _account(bed.producer(topic, "--count", "500000", *setting))
            slow = _account(bed.producer(topic, "--count", "2000", "--rate", str(RATE), *setting))
            rates.append(fast["rate_per_s"])
            delays.append(slow["latency_s"]["p50"] * 1000)
        rows.append(
            {"linger.ms": linger, "messages/s at full speed": median(rates), "p50 ms at 1,000/s": median(delays)}
        )
        bed.say(f"  {rows[-1]}")
    return rows


def _account(command: list[str]) -> dict[str, Any]:
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    account: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return account


def growth(bed: Bed) -> list[Row]:
    """One consumer that owns ever more partitions: its memory, and the time of a scrape."""
    rows = []
    for partitions in (3, 30, 300, 1000):
        topic = bed.topic(partitions)
        with ExitStack() as stack:
            consumer = Running(stack, bed.consumer(topic, "--handler", "bench.handlers:record"))
            consumer.wait_for(f"kafka_consumer_assigned_partitions {partitions}")
            bed.run(bed.producer(topic, "--count", str(partitions * 5)))
            consumer.wait_for(f'partition="{partitions - 1}"')
            times = []
            for _ in range(20):
                begin = time.perf_counter()
                size = len(consumer.metrics())
                times.append((time.perf_counter() - begin) * 1000)
            rows.append({"partitions": partitions, "scrape ms": median(times), "worst ms": max(times),
                         "page kB": size / 1000, "resident MB": consumer.resident_mb})  # fmt: skip
            consumer.stop()
        bed.say(f"  {rows[-1]}")
    return rows


def backlog(bed: Bed, count: int) -> list[Row]:
    """Memory of a consumer at rest, and the most it had with a backlog and a handler that holds it up."""
    rows = []
    for name, topic in (("at rest", bed.topic()), (f"{count:,} messages behind", bed.filled(count))):
        with ExitStack() as stack:
            consumer = Running(stack, bed.consumer(topic, "--handler", "bench.handlers:millisecond"))
            consumer.wait_for("kafka_consumer_assigned_partitions 3")
            most = 0.0
            for _ in range(50):
                time.sleep(0.2)
                most = max(most, consumer.resident_mb)
            rows.append({"consumer": name, "resident MB": most})
        bed.say(f"  {rows[-1]}")
    return rows


def scale_out(bed: Bed) -> list[Row]:
    """Members of a group with a handler of a millisecond, as one that waits for a database."""
    rows: list[Row] = []
    count = 9000
    for members in (1, 2, 3, 4):
        topic, group = bed.filled(count), bed.group()
        options = ("--handler", "bench.handlers:millisecond", "--property", "auto.commit.interval.ms=100")
        with ExitStack() as stack:
            started = [Running(stack, bed.consumer(topic, *options, group=group)) for _ in range(members)]
            begin: float | None = None
            handled = 0.0
            while handled < count:
                time.sleep(0.02)
                handled = sum(_sample(each, "kafka_consumer_messages_total", 'outcome="success"') for each in started)
                if begin is None and handled > count / 10:
                    begin, first = time.monotonic(), handled
            assert begin is not None
            rate = (handled - first) / (time.monotonic() - begin)
        rows.append(
            {"members": members, "messages/s": rate, "of one": rate / (rows[0]["messages/s"] if rows else rate)}
        )
        bed.say(f"  {rows[-1]}")
    return rows


def _sample(process: Running, name: str, label: str) -> float:
    return sum(
        float(line.split()[-1]) for line in process.metrics().splitlines() if line.startswith(name) and label in line
    )


def rebalance(bed: Bed) -> list[Row]:
    """A second member joins at 500 messages a second: its first message, and the longest gap that the first one sees
    in a partition that it keeps.
    """
    rows = []
    for protocol in ("classic", "consumer"):
        firsts, gaps = [], []
        for _ in range(max(3, bed.rounds)):
            topic, group = bed.topic(), bed.group()
            options = ("--handler", "bench.handlers:record", "--group-protocol", protocol)
            with ExitStack() as stack:
                old = Running(stack, bed.consumer(topic, *options, group=group))
                old.wait_for("kafka_consumer_assigned_partitions 3")
                Running(stack, bed.producer(topic, "--forever", "--rate", "500"))
                time.sleep(3)
                new = Running(stack, bed.consumer(topic, *options, group=group))
                new.wait_for("kafka_consumer_assigned_partitions 1", 30)
                time.sleep(2)
                came, kept = new.stop(), old.stop()
            firsts.append(came[0][0] - new.started_at)
            gaps.append(_longest_gap(kept, {partition for _, partition, _ in came}))
        rows.append({"protocol": protocol, "first message s": median(firsts), "worst s": max(firsts),
                     "pause of the other ms": median(gaps) * 1000})  # fmt: skip
        bed.say(f"  {rows[-1]}")
    return rows


def _longest_gap(notes: Notes, given_up: set[int]) -> float:
    times: dict[int, list[float]] = {}
    for came, partition, _ in notes:
        if partition not in given_up:
            times.setdefault(partition, []).append(came)
    return max(after - before for each in times.values() for before, after in pairwise(each))
