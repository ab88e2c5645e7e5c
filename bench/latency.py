"""How long a message takes from end to end, and what the settings that we ship buy and cost."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median, quantiles

from bench.bare import ASSIGNED
from bench.bed import Bed
from bench.measure import Program, Run, ratios, rotated, run
from bench.report import Judgement, Row, Section
from bench.running import Running
from bench.throughput import acknowledged, handled

RATE = 1000
LINGER_MS = (0, 1, 5, 20, 50)
BACKOFF_MS = (1, 10, 100, 1000)
IN_FLIGHT = (1, 2, 5)
CURVE_ROUNDS = 3
# Messages of one run, at full speed and at RATE.
FAST = 500_000
SLOW = 4 * RATE
# The first second is that of connections and of the first batches.
WARM_UP = RATE
_CURVE = (
    f"End-to-end latency of {SLOW:,} messages at {RATE:,}/s, and whole processes that produce {FAST:,}; medians of "
    f"{CURVE_ROUNDS} rounds, settings in turns."
)


def latency(bed: Bed) -> Section:
    """End to end at a rate: worker to worker, and bare loop to bare loop."""
    count = max(2 * WARM_UP, bed.count(RATE * 10))
    ways: list[Callable[[], list[float]]] = [lambda: _workers(bed, count), lambda: _bare(bed, count)]
    names = ("kafka-workers", "bare produce() and poll()")
    cuts: list[list[list[float]]] = [[], []]
    for number in range(bed.rounds):
        for which in rotated((0, 1), number):
            cuts[which].append(ways[which]())
            bed.say(f"  {names[which]:<44} p50 {cuts[which][-1][49]:.1f} ms, p99 {cuts[which][-1][98]:.1f} ms")
    rows: list[Row] = [
        {"way": name, **spread("p50 ms", each, 49), **spread("p99 ms", each, 98)}
        for name, each in zip(names, cuts, strict=True)
    ]
    judgements = [
        Judgement(f"{what}: workers ÷ bare loops", ratios(*([cut[at] for cut in each] for each in cuts)), 1.2)
        for what, at in (("p50", 49), ("p99", 98))
    ]
    note = (
        f"{count:,} stamped messages at {RATE:,}/s through three partitions, from the stamp to the handler, without "
        f"the first second; medians and spread of {bed.rounds} rounds. The bare pair has the same properties, rate "
        "and spread over partitions."
    )
    return Section(note, tables=[rows], judgements=judgements)


def linger_curve(bed: Bed) -> Section:
    """Measure the gain of linger.ms at full speed, and its cost at a low rate."""
    rows = _producer_curve(bed, "linger.ms", LINGER_MS)
    note = (
        "We ship 5. At full speed batches fill long before they have lingered, at a low rate a message waits as long "
        "as it is told to: 5 ms is the most that we let a message wait for company."
    )
    return Section(f"{_CURVE} {note}", tables=[rows])


def in_flight_curve(bed: Bed) -> Section:
    """Measure the cost of one request at a time from the producer to each broker."""
    rows = _producer_curve(bed, "max.in.flight", IN_FLIGHT)
    note = (
        "We ship 1, librdkafka 1000000, of which idempotence leaves 5. Requests are as large as what has gathered in "
        "the meantime. Each is for one partition, so what one costs grows with the partitions that a broker leads and "
        "with the way to it: here there are three partitions, and the way is short."
    )
    return Section(f"{_CURVE} {note}", tables=[rows])


def _producer_curve(bed: Bed, name: str, values: Sequence[int]) -> list[Row]:
    """Speed and latency with each value of a property, in turns."""
    fast_count, slow_count = bed.count(FAST), max(2 * WARM_UP, bed.count(SLOW))
    speeds: dict[int, list[Run]] = {value: [] for value in values}
    cuts: dict[int, list[list[float]]] = {value: [] for value in values}
    for number in range(CURVE_ROUNDS):
        for value in rotated(values, number):
            setting = ("--property", f"{name}={value}")
            speeds[value].append(_full_speed(bed, fast_count, setting))
            cuts[value].append(_workers(bed, slow_count, setting))
    rows: list[Row] = [
        {
            name: value,
            "messages/s at full speed": fast_count / median(each.seconds for each in speeds[value]),
            "CPU us/message": median(each.cpu_seconds for each in speeds[value]) / fast_count * 1e6,
            **spread(f"p50 ms at {RATE:,}/s", cuts[value], 49),
            **spread(f"p99 ms at {RATE:,}/s", cuts[value], 98),
        }
        for value in values
    ]
    _say(bed, rows)
    return rows


def fetch_curve(bed: Bed) -> Section:
    """Measure the effect of fetch.queue.backoff.ms on a consumer that is faster than librdkafka expects."""
    count = bed.count(1_000_000)
    topic = bed.filled(count)
    runs: dict[int, list[Run]] = {backoff: [] for backoff in BACKOFF_MS}
    for number in range(CURVE_ROUNDS):
        for backoff in rotated(BACKOFF_MS, number):
            handler = ("--handler", "bench.handlers:each_batch", "--property", f"fetch.queue.backoff.ms={backoff}")
            options = ("--max-messages", str(count), *handler)
            program = Program("consume", lambda: bed.consumer(topic, options=options), handled(count))  # noqa: B023
            runs[backoff].append(run(program))
    rows: list[Row] = [
        {
            "fetch.queue.backoff.ms": backoff,
            "messages/s": count / median(each.seconds for each in found),
            "min-max": f"{count / max(each.seconds for each in found):,.0f}-"
            f"{count / min(each.seconds for each in found):,.0f}",
            "CPU us/message": median(each.cpu_seconds for each in found) / count * 1e6,
        }
        for backoff, found in runs.items()
    ]
    _say(bed, rows)
    note = (
        f"We ship 10, librdkafka 1000: so long it stops fetching when its queue was full for a moment. Whole "
        f"processes that consume {count:,} messages; medians of {CURVE_ROUNDS} rounds, settings in turns. It costs no "
        "latency at low rates, where the queue is empty. The other settings of fetching are librdkafka's: a fetch is "
        "answered with the first byte (fetch.min.bytes=1) or after half a second (fetch.wait.max.ms=500)."
    )
    return Section(note, tables=[rows])


def _workers(bed: Bed, count: int, properties: tuple[str, ...] = ()) -> list[float]:
    """Percentiles 1 to 99 in ms, worker to worker."""
    topic = bed.only_topic()
    options = ("--max-messages", str(count), "--handler", "bench.handlers:record")
    with ExitStack() as stack:
        consumer = Running(stack, bed.consumer(topic, options=options))
        consumer.wait_for(lambda: consumer.assigned() == 3, "assignment")
        producer = bed.producer(topic, "--count", str(count), "--rate", str(RATE), *properties)
        run(Program("producer", lambda: producer, acknowledged(count)))
        return _percentiles(consumer)


def _bare(bed: Bed, count: int) -> list[float]:
    topic = bed.only_topic()
    with ExitStack() as stack:
        consumer = Running(stack, bed.bare("record", topic, count, bed.group()))
        consumer.wait_for(lambda: ASSIGNED in consumer.log, "assignment")
        run(Program("producer", lambda: bed.bare("trickle", topic, count, str(RATE))))
        return _percentiles(consumer)


def _percentiles(consumer: Running) -> list[float]:
    delays = [came - sent for came, _, sent in consumer.notes()][WARM_UP:]
    return [cut * 1000 for cut in quantiles(delays, n=100)]


def _full_speed(bed: Bed, count: int, setting: tuple[str, ...]) -> Run:
    topic = bed.only_topic()
    return run(Program("produce", lambda: bed.producer(topic, "--count", str(count), *setting), acknowledged(count)))


def spread(title: str, cuts: Sequence[Sequence[float]], at: int) -> Row:
    """The median of a percentile over the rounds, and the least and the most."""
    values = [cut[at] for cut in cuts]
    return {title: float(median(values)), f"{title[:3]} min-max": f"{min(values):.1f}-{max(values):.1f}"}


def _say(bed: Bed, rows: Sequence[Row]) -> None:
    for row in rows:
        bed.say(f"  {row}")
