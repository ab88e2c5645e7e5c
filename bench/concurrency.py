"""Many messages at once: the workers with --concurrency beside faststream and a loop that gathers; what poisoned keys,
a SIGKILL and a backlog do.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from bench.bed import Bed
from bench.handlers import POISONED, WINDOW
from bench.measure import Output, Program, Run, ratios, rotated, run
from bench.peers import CONCURRENCY
from bench.report import Judgement, Row, Section
from bench.running import Running
from bench.throughput import OURS, handled
from workers.config import CONSUMER_DEFAULTS
from workers.consumer.committing import STAGE_INTERVAL_S

KEYS = 1000
POISONED_KEYS = 10
# --max-offset-distance by default: how far a partition goes on beyond a message that is not done.
DISTANCE = 10_000
BACKLOG_BYTES = 1000
_COMMIT_S = STAGE_INTERVAL_S + next(
    float(each.value) / 1000 for each in CONSUMER_DEFAULTS if each.name == "auto.commit.interval.ms"
)

# Of a message in a topic: its partition and its offset.
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Contender:
    """One program, the number of messages that it handles in a run, and what its handler and its process took."""

    name: str
    count: int
    command: Callable[[], list[str]]
    ours: bool = False
    runs: list[Run] = field(default_factory=list)
    accounts: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> None:
        def check(output: Output) -> None:
            if self.ours:
                handled(self.count)(output)
            self.accounts.append(json.loads(output.out.splitlines()[-1]))

        self.runs.append(run(Program(self.name, self.command, check)))

    def rates(self) -> list[float]:
        return [account["calls"] / account["seconds"] for account in self.accounts]

    def early_share(self) -> float:
        return max(account["too_early"] / account["calls"] for account in self.accounts)


def many_at_once(bed: Bed) -> Section:
    """A handler of 10 ms, a hundred calls at once."""
    rates, rate_judgements = _rates(bed)
    bed.clear()
    poison, poison_judgements = _poison(bed)
    bed.clear()
    kills, kill_judgements = _kills(bed)
    bed.clear()
    memory, memory_judgements = _memory(bed)
    note = (
        f"A handler that waits 10 ms, `async` or in threads, {CONCURRENCY} at once in one process, so the limit is "
        f"{100 * CONCURRENCY:,} messages/s; {KEYS:,} keys by chance, messages of 100 bytes, medians of {bed.rounds} "
        "rounds in turns. From the first call of the handler to the end of the last one. Order of keys: the share, in "
        "the worst round, of the calls that began before the one before them, of the same key, had ended. Ours keeps "
        "order by key, verifies stamps, commits what is done, and has its metrics scraped. faststream has "
        f"max_workers={CONCURRENCY}, for which messages are committed before they are handled (at most once), no log, "
        f"and {CONCURRENCY} instead of 40 threads; the loop takes up to {CONCURRENCY} messages, and the next ones when "
        "all are done. pyrallel-consumer is not compared: it needs Python 3.12.\n\n"
        f"Poisoned: {POISONED_KEYS} of the keys fail at every call, --on-error retry, tried again after a second at "
        "most, until the bound has stopped all others for a second; then they are mended. The rate is of the first "
        "messages handled, of the same number in both. Killed: SIGKILL at full rate, and another member of the group "
        "to the end; the bound is what was in flight and what was done in the last commit interval. Behind: the most "
        "that a process ever had in memory (VmHWM), `async`."
    )
    judgements = [*rate_judgements, *poison_judgements, *kill_judgements, *memory_judgements]
    return Section(note, tables=[rates, poison, kills, memory], judgements=judgements)


def _rates(bed: Bed) -> tuple[list[Row], list[Judgement]]:
    # As many for each as it handles in about ten seconds.
    ours, loops, faststream = bed.count(100_000), bed.count(50_000), bed.count(20_000)
    works = (
        ("`async`, 3 partitions", "async", bed.filled_with_keys(ours, KEYS), 8500),
        ("threads, 3 partitions", "threads", bed.filled_with_keys(ours, KEYS), 6000),
        ("`async`, 1 partition", "async", bed.filled_with_keys(ours, KEYS, 1), 8500),
    )
    rows, judgements = [], []
    for work, way, topic, least in works:
        contenders = [
            _Contender(OURS, ours, lambda: _consumer(bed, topic, ours, way), ours=True),  # noqa: B023
            _Contender("aiokafka, gathering", loops, lambda: _peer(bed, "gather", topic, loops, way)),  # noqa: B023
            *(
                _Contender(f"faststream, {client}", faststream,
                           lambda client=client: _peer(bed, f"faststream_{client}", topic, faststream, way))  # type: ignore[misc]  # noqa: B023
                for client in ("confluent", "aiokafka")
            ),
        ]  # fmt: skip
        for number in range(bed.rounds):
            for contender in rotated(contenders, number):
                contender.run()
                bed.say(f"  {work}, {contender.name}: {contender.rates()[-1]:,.0f}/s")
        rows += [_row(work, contender) for contender in contenders]
        judgements.append(Judgement(f"10 ms {work}: messages/s", contenders[0].rates(), unit="/s", least=least))
        early = [account["too_early"] for account in contenders[0].accounts]
        judgements.append(Judgement(f"10 ms {work}: calls too early for their key", early, 0, ""))
    return rows, judgements


def _row(work: str, contender: _Contender) -> Row:
    rates = contender.rates()
    return {
        "work": work,
        "program": contender.name,
        "messages": contender.count,
        "messages/s": float(median(rates)),
        "min-max": f"{min(rates):,.0f}-{max(rates):,.0f}",
        "CPU us/message": median(each.cpu_seconds for each in contender.runs) / contender.count * 1e6,
        "peak MB": f"{median(each.peak_mb for each in contender.runs):.0f}",
        "order of keys": f"{contender.early_share():.1%} too early" if contender.early_share() else "kept",
    }


def _consumer(bed: Bed, topic: str, count: int, way: str) -> list[str]:
    handler = {"async": "ten_ms", "threads": "ten_ms_in_threads"}[way]
    return bed.consumer(topic, options=(*_at_once(handler), "--max-messages", str(count)))


def _at_once(handler: str) -> tuple[str, ...]:
    return ("--concurrency", str(CONCURRENCY), "--handler", f"bench.handlers:{handler}")


def _peer(bed: Bed, name: str, topic: str, count: int, way: str) -> list[str]:
    return bed.async_peer(name, topic, str(count), bed.group(), way)


def _poison(bed: Bed) -> tuple[list[Row], list[Judgement]]:
    """Keys that fail hold up none of the others, until the bound; then all of them go on."""
    distance = min(DISTANCE, bed.count(5 * DISTANCE))
    window, count = 2 * distance, 6 * distance
    topic = bed.filled_with_keys(count, KEYS)
    options = (*_at_once("poisoned"), "--on-error", "retry", "--retry-backoff-max", "1", "--max-offset-distance",
               str(distance), "--max-messages", str(count))  # fmt: skip

    def command(keys: int) -> list[str]:
        return ["env", f"{POISONED}={keys}", f"{WINDOW}={window}", *bed.consumer(topic, options=options)]

    # Retries are in the account of the worker, so that of the handler is the check.
    healthy = _Contender("no key poisoned", count, lambda: command(0))
    sick = _Contender(f"{POISONED_KEYS} keys poisoned", count, lambda: command(POISONED_KEYS))
    for number in range(bed.rounds):
        for contender in rotated((healthy, sick), number):
            contender.run()
            bed.say(f"  {contender.name}: {contender.accounts[-1]}")
            if contender.accounts[-1]["calls"] != count or contender.accounts[-1]["too_early"]:
                raise AssertionError(f"not {count} handled in order: {contender.accounts[-1]}")
    rows: list[Row] = [
        {
            "keys": contender.name,
            f"messages/s of the first {window:,}": median(each["window_per_s"] for each in contender.accounts),
            "min-max": _span([each["window_per_s"] for each in contender.accounts]),
            "handled until the bound": _span([each.get("before", 0) for each in contender.accounts]),
            "messages/s when mended": _span([each.get("after_per_s", 0) for each in contender.accounts]),
        }
        for contender in (healthy, sick)
    ]
    kept = ratios(*([each["window_per_s"] for each in contender.accounts] for contender in (sick, healthy)))
    return rows, [Judgement("rate with poisoned keys ÷ without", kept, least=0.9)]


def _kills(bed: Bed) -> tuple[list[Row], list[Judgement]]:
    """A member is killed at full rate, and another one handles the rest."""
    count = min(40_000, bed.count(200_000))
    rows: list[Row] = []
    for _ in range(bed.rounds):
        rows.append(_killed(bed, bed.filled_with_keys(count, KEYS), count))
        bed.say(f"  {rows[-1]}")
    shares = ratios([row["redelivered"] for row in rows], [row["bound"] for row in rows])
    return rows, [Judgement("redelivered after SIGKILL ÷ in flight and one commit interval", shares, 1.0)]


def _killed(bed: Bed, topic: str, count: int) -> Row:
    group, options = bed.group(), _at_once("noted")
    with ExitStack() as stack:
        first = Running(stack, bed.consumer(topic, options=options, group=group))
        first.wait_for(lambda: first.sample("kafka_consumer_messages_total", "success") >= count / 2, "half of them")
        first.kill()
        begun, done, ends = _noted(first.record)
        # It ends by itself: just after the assignment no lag is known, which is not a lag of 0.
        second = Running(stack, bed.consumer(topic, options=(*options, "--idle-timeout", "3"), group=group))
        second.end()
        again, done_then, _ = _noted(second.record)
    if len(done | done_then) != count:
        raise AssertionError(f"{count - len(done | done_then)} messages were not handled")
    in_flight, interval = len(begun - done), sum(ends[-1] - end <= _COMMIT_S for end in ends)
    return {
        "handled when killed": len(done),
        "messages/s": len(ends) / (ends[-1] - ends[0]),
        "in flight": in_flight,
        "in the last commit interval": interval,
        "redelivered": len(begun & again),
        "of them done": len(done & again),
        "bound": in_flight + interval,
        "lost": count - len(done | done_then),
    }


def _noted(lines: Sequence[str]) -> tuple[set[Place], set[Place], list[float]]:
    """Which calls began and which ended, and when these did, in seconds."""
    begun: set[Place] = set()
    done: set[Place] = set()
    ends = []
    for what, partition, offset, at in map(str.split, lines):
        place = int(partition), int(offset)
        if what == "begin":
            begun.add(place)
        else:
            done.add(place)
            ends.append(float(at))
    return begun, done, ends


def _memory(bed: Bed) -> tuple[list[Row], list[Judgement]]:
    count = bed.count(1_000_000)
    topic = bed.filled_with_keys(count, KEYS, size=BACKLOG_BYTES)
    with ExitStack() as stack:
        consumer = Running(stack, bed.consumer(topic, options=_at_once("ten_ms")))
        consumer.wait_for(lambda: consumer.assigned() == 3, "assignment")
        seconds = max(2.0, 30 * min(1.0, bed.scale))
        time.sleep(seconds)
        row: Row = {
            "backlog": f"{count:,} messages of {BACKLOG_BYTES:,} bytes",
            "after s": seconds,
            "still behind": int(consumer.sample("kafka_consumer_lag_messages")),
            "resident MB": consumer.status_mb("VmRSS"),
            "most MB": consumer.status_mb("VmHWM"),
        }
    bed.say(f"  {row}")
    return [row], [Judgement(f"memory with {CONCURRENCY} at once and a backlog", [row["most MB"]], 256, "MB")]


def _span(values: Sequence[float]) -> str:
    return f"{min(values):,.0f}-{max(values):,.0f}" if any(values) else ""
