"""The cost of `--exactly-once`: its rate beside at-least-once, and its latency by the interval of commits."""

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median, quantiles

from bench.bed import SIZE, Bed
from bench.handlers import TARGET
from bench.latency import RATE, WARM_UP, spread
from bench.measure import Program, in_turns, rotated, run
from bench.report import Row, Section
from bench.running import Running
from bench.throughput import OURS, acknowledged, against, handled

INTERVALS_S = (0.02, 0.1, 0.5, 2.0)
CURVE_ROUNDS = 3
# At least 60 % of the rate of at-least-once.
MOST = 1 / 0.6
WAYS = {
    "one by one": ("--handler", "bench.handlers:forward"),
    "in batches": ("--handler", "bench.handlers:forward_batch"),
    "`async`, 64 at once": ("--handler", "bench.handlers:forward_async", "--concurrency", "64"),
}


def exactly_once(bed: Bed) -> Section:
    """A handler that gives back each message to another topic."""
    count = bed.count(300_000)
    topic = bed.filled_with_keys(count, 1000)
    samples, judgements = [], []
    for way, options in WAYS.items():
        programs = [
            Program(
                f"{OURS}, {way}, {name}",
                lambda options=options, more=more: _forward(bed, topic, count, *options, *more),  # type: ignore[misc]
                handled(count),
            )
            for name, more in (("--exactly-once", ("--exactly-once",)), ("at least once", ()))
        ]
        once, least = in_turns(programs, bed.rounds, bed.say)
        samples += [once, least]
        judgements += against(once, least, MOST)
    rows = _curve(bed, topic, count)
    note = (
        f"{count:,} messages of {SIZE} bytes with 1,000 keys from three partitions to three others; whole processes, "
        f"medians of {bed.rounds} rounds in turns. Below: by --commit-interval (we ship 0.1), batches at full speed, "
        f"and the latency of messages at {RATE:,}/s from their stamp, through such a worker with a handler of single "
        f"messages, to a reader of committed messages; medians of {CURVE_ROUNDS} rounds."
    )
    return Section(note, tables=[rows], judgements=judgements, samples=samples, count=count)


def _forward(bed: Bed, topic: str, count: int, *options: str) -> list[str]:
    return ["env", f"{TARGET}={bed.topic()}", *bed.consumer(topic, options=("--max-messages", str(count), *options))]


def _curve(bed: Bed, topic: str, count: int) -> list[Row]:
    seconds: dict[float, list[float]] = {interval: [] for interval in INTERVALS_S}
    cuts: dict[float, list[list[float]]] = {interval: [] for interval in INTERVALS_S}
    for number in range(CURVE_ROUNDS):
        for interval in rotated(INTERVALS_S, number):
            options = ("--exactly-once", "--commit-interval", str(interval))
            batches = _forward(bed, topic, count, *WAYS["in batches"], *options)
            seconds[interval].append(run(Program("forward", lambda: batches, handled(count))).seconds)  # noqa: B023
            cuts[interval].append(_latency(bed, max(2 * WARM_UP, bed.count(RATE * 8)), options))
    rows: list[Row] = [
        {
            "commit interval s": interval,
            "messages/s at full speed": count / median(seconds[interval]),
            **spread(f"p50 ms at {RATE:,}/s", cuts[interval], 49),
            **spread(f"p99 ms at {RATE:,}/s", cuts[interval], 98),
        }
        for interval in INTERVALS_S
    ]
    for row in rows:
        bed.say(f"  {row}")
    return rows


def _latency(bed: Bed, count: int, options: Sequence[str]) -> list[float]:
    """Percentiles 1 to 99 in ms, through a worker that forwards."""
    source, target = bed.topic(), bed.topic()
    reading = ("--max-messages", str(count), "--handler", "bench.handlers:record")
    forwarding = ("--max-messages", str(count), *WAYS["one by one"], *options)
    with ExitStack() as stack:
        reader = Running(stack, bed.consumer(target, options=reading))
        worker = Running(stack, ["env", f"{TARGET}={target}", *bed.consumer(source, options=forwarding)])
        for each in (reader, worker):
            each.wait_for(lambda: each.assigned() == 3, "assignment")  # noqa: B023
        producer = bed.producer(source, "--count", str(count), "--rate", str(RATE))
        run(Program("producer", lambda: producer, acknowledged(count)))
        delays = [came - sent for came, _, sent in reader.notes()][WARM_UP:]
        return [cut * 1000 for cut in quantiles(delays, n=100)]
