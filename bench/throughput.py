"""Messages per second and CPU of whole processes: the workers beside bare loops, C, Java's tools and kcat."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

from bench import bare
from bench.bed import PYTHON, SIZE, Bed
from bench.measure import Output, Program, ProgramError, Sample, in_turns
from bench.report import Judgement, Section

OURS = "kafka-workers"
# The Dockerfile sets it, so that less memory stays resident after outages.
AS_IN_THE_IMAGE = ["env", "MALLOC_ARENA_MAX=2"]
AS_IN_THE_WHEEL = ["env", f"PYTHONPATH={Path(__file__).with_name('pure')}"]


def acknowledged(count: int) -> Callable[[Output], None]:
    """Whether a producer's account says so, and its metrics were read."""

    def check(output: Output) -> None:
        account = json.loads(output.out.splitlines()[-1])
        if not (account["sent"] == account["acknowledged"] == count and output.scrapes):
            raise ProgramError(f"{output.scrapes} scrapes, and not {count} acknowledged: {account}")

    return check


def handled(count: int) -> Callable[[Output], None]:
    """Whether a consumer's account says so, without a gap, a duplicate or disorder, and its metrics were read."""

    def check(output: Output) -> None:
        line = next(line for line in output.err.splitlines() if '"topics"' in line)
        topics: list[dict[str, Any]] = list(json.loads(line)["topics"].values())
        wrong = sum(each[what] for each in topics for what in ("missing", "duplicates", "reordered", "retried"))
        if sum(each["handled"] for each in topics) != count or wrong or not output.scrapes:
            raise ProgramError(f"{output.scrapes} scrapes, and not {count} handled in order: {line}")

    return check


def produce(bed: Bed) -> Section:
    """One million messages. Every run has a topic of its own."""
    count = bed.count(1_000_000)
    all_sent = _says(rf"\b{count} records sent")
    tuned = ("batch.size=1000000", "linger.ms=5", "buffer.memory=67108864")
    # Settings for throughput; they give up that a message is in the log once (docs/guarantees.md).
    hasty = ("linger.ms=20", "batch.size=1000000", "batch.num.messages=100000", "max.in.flight=5")
    programs = [
        Program(f"{OURS} produce", lambda: bed.producer(bed.only_topic(), "--count", str(count)), acknowledged(count)),
        Program("bare produce_batch()", lambda: bed.bare("produce", bed.only_topic(), count, str(SIZE))),
        Program("bare, for throughput", lambda: bed.bare("produce", bed.only_topic(), count, str(SIZE), *hasty)),
        Program("Java ProducerPerformance", lambda: _java_producer(bed, count), all_sent),
        Program("Java ProducerPerformance, tuned", lambda: _java_producer(bed, count, *tuned), all_sent),
    ]
    settings = [f"{name}={value}" for name, value in bare.producer_properties(bed.servers).items()]
    absent = _in_c(bed, programs, lambda: ["produce", bed.only_topic(), str(count), str(SIZE), *settings])
    ours, loop, loop_tuned, java, java_tuned, *c = samples = in_turns(programs, bed.rounds, bed.say)
    judgements = [
        *against(ours, loop, 1.25, 1.25),
        *against(ours, loop_tuned, 1.25),
        *against(ours, java, 1.0, 0.67),
        *against(ours, java_tuned),
        *(judgement for peer in c for judgement in against(ours, peer)),
    ]
    note = (
        f"{count:,} messages of {SIZE} bytes, acks=all, idempotent, medians of {bed.rounds} rounds. Ours are stamped, "
        "each delivery is accounted for, latency percentiles are kept and metrics are scraped once a second. "
        f"Java tuned: {' '.join(tuned)}. Bare, for throughput: {' '.join(hasty)}."
    )
    return Section(note, judgements=judgements, samples=samples, count=count, absent=absent)


def consume(bed: Bed) -> Section:
    """Three million messages, a call of the handler for each batch."""
    count = bed.count(3_000_000)
    topic = bed.filled(count)
    programs = [
        Program(f"{OURS} consume, batch handler", lambda: _with(bed, topic, count, "each_batch"), handled(count)),
        Program(
            f"{OURS} consume, as in the image",
            lambda: [*AS_IN_THE_IMAGE, *_with(bed, topic, count, "each_batch")],
            handled(count),
        ),
        Program(
            f"{OURS} consume, as in the wheel",
            lambda: [*AS_IN_THE_WHEEL, *_with(bed, topic, count, "each_batch")],
            handled(count),
        ),
        Program("bare consume(1000)", lambda: bed.bare("consume", topic, count, bed.group())),
        Program("Java ConsumerPerformance", lambda: _java_consumer(bed, topic, count), _java_read(count)),
    ]
    absent = _in_c(bed, programs, lambda: ["consume", topic, str(count), "0", *_member(bed)])
    ours, in_image, in_wheel, loop, java, *c = samples = in_turns(programs, bed.rounds, bed.say)
    judgements = [
        *against(ours, loop, 1.25, 1.25),
        *against(in_image, ours),
        *against(in_wheel, ours),
        *against(ours, java),
        *(judgement for peer in c for judgement in against(ours, peer)),
    ]
    note = (
        f"{count:,} messages of {SIZE} bytes, read_committed, medians of {bed.rounds} rounds. Ours verifies every "
        "stamp, stores and commits offsets, knows its lag, and has its metrics scraped once a second. In the image "
        f"{AS_IN_THE_IMAGE[1]}: two heaps for all threads. In the wheel nothing is compiled: there it takes longer to "
        "look for errors and for where partitions change, to keep messages as they were received, and to verify stamps."
    )
    return Section(note, judgements=judgements, samples=samples, count=count, absent=absent)


def consume_each(bed: Bed) -> Section:
    """One million messages, a call of the handler for each of them."""
    count = bed.count(1_000_000)
    topic = bed.filled(count)
    programs = [
        Program(f"{OURS} consume, handler per message", lambda: _with(bed, topic, count, "each"), handled(count)),
        Program("bare poll()", lambda: bed.bare("consume_each", topic, count, bed.group())),
        Program("bare consume(1000) and a call", lambda: bed.bare("consume_calls", topic, count, bed.group())),
    ]
    ours, loop, calls = samples = in_turns(programs, bed.rounds, bed.say)
    judgements = [*against(ours, loop, 1.5, 1.5), *against(ours, calls, 1.5, 1.5)]
    note = (
        f"{count:,} messages of {SIZE} bytes, medians of {bed.rounds} rounds. The first loop polls for each message "
        "and stores its offset; the second takes a thousand, calls a function for each and stores the last offsets. "
        "Ours does all that it does for batches."
    )
    return Section(note, judgements=judgements, samples=samples, count=count)


def print_messages(bed: Bed) -> Section:
    """One million messages to /dev/null, in two forms."""
    count = bed.count(1_000_000)
    topic = bed.filled(count)

    def ours(form: str) -> Program:
        options = ("--max-messages", str(count), "--format", form)
        name = f"{OURS} consume --format {form}"
        return Program(name, lambda: bed.consumer(topic, options=options), handled(count), silent=True)

    def kcat(form: str) -> Program:
        # Debian's librdkafka cannot be told to fetch on when its queue is full: with one this large it never is.
        member = ["-X", "auto.offset.reset=earliest", "-X", "queued.min.messages=10000000"]
        member += ["-X", "queued.max.messages.kbytes=2000000", "-q", "-c", str(count), "-f", form]
        return Program(f"kcat -f '{form}'", lambda: ["kcat", "-b", bed.servers, "-G", bed.group(), *member, topic],
                       silent=True)  # fmt: skip

    programs = [ours("value"), ours("text")]
    absent = {} if which("kcat") else {"kcat": "it is not installed"}
    if not absent:
        programs += [kcat("%s\\n"), kcat("%t[%p]@%o key=%k %s\\n")]
    samples = in_turns(programs, bed.rounds, bed.say)
    judgements = []
    if not absent:
        value, text, kcat_value, kcat_text = samples
        judgements = [*against(value, kcat_value, 1.0), *against(text, kcat_text, 1.0)]
    note = (
        f"{count:,} messages of {SIZE} bytes to /dev/null, medians of {bed.rounds} rounds. kcat: {_kcat_version()}. It "
        "is a loop in C that writes what librdkafka hands it, from a queue without a bound. Ours starts an interpreter "
        "(see Start-up), makes an object of each message, verifies its stamp, and stores offsets of what was printed."
    )
    return Section(note, judgements=judgements, samples=samples, count=count, absent=absent)


def start_up(bed: Bed) -> Section:
    """From the start of the process to its end, with nothing or one message to do."""
    topic = bed.filled(1)
    one = ("--max-messages", "1")
    until = ("--handler", "bench.handlers:leave")
    programs = [
        Program(f"{OURS} --help", lambda: [PYTHON, "-m", "workers", "--help"]),
        Program(f"{OURS} consume, until its first poll", lambda: bed.consumer(topic, options=until)),
        Program(f"{OURS} consume, one message", lambda: bed.consumer(topic, options=one)),
        Program("bare poll(), one message", lambda: bed.bare("consume_each", topic, 1, bed.group())),
        Program("python -c 'import confluent_kafka'", lambda: [PYTHON, "-c", "import confluent_kafka"]),
    ]
    help_, poll, *_ = samples = in_turns(programs, bed.rounds, bed.say)
    judgements = [
        Judgement("time of --help", help_.values("seconds"), 0.4, "s"),
        Judgement("time to the first poll", poll.values("seconds"), 0.4, "s"),
    ]
    note = (
        f"Whole processes, medians of {bed.rounds} rounds. Until the first poll: a handler whose lifespan ends the "
        "process; brokers and topic have answered by then, and the loop would begin. One message: joins the group, "
        "handles it, commits and leaves."
    )
    return Section(note, judgements=judgements, samples=samples)


def against(
    ours: Sample, peer: Sample, time_limit: float | None = None, cpu_limit: float | None = None
) -> list[Judgement]:
    """How much more than the peer ours takes."""
    pairs = (("time", "seconds", time_limit), ("CPU", "cpu_seconds", cpu_limit))
    return [
        Judgement(f"{what}: {ours.program} ÷ {peer.program}", ours.ratios(peer, name), limit)
        for what, name, limit in pairs
    ]


def _with(bed: Bed, topic: str, count: int, handler: str) -> list[str]:
    return bed.consumer(topic, options=("--max-messages", str(count), "--handler", f"bench.handlers:{handler}"))


def _member(bed: Bed) -> list[str]:
    return [f"{name}={value}" for name, value in bare.consumer_properties(bed.servers, bed.group()).items()]


def _in_c(bed: Bed, programs: list[Program], words: Callable[[], list[str]]) -> dict[str, str]:
    """Adds the loop in C to the programs; returns why not where it cannot be."""
    name = "C, librdkafka itself"
    if bed.peer() is None:
        return {name: "no C compiler, or confluent-kafka is not from a wheel"}
    programs.append(Program(name, lambda: bed.peer(*words()) or []))
    return {}


def _java_producer(bed: Bed, count: int, *tuned: str) -> list[str]:
    words = ["--topic", bed.only_topic(), "--record-size", str(SIZE), "--num-records", str(count)]
    properties = (f"bootstrap.servers={bed.servers}", "acks=all", "enable.idempotence=true", *tuned)
    return bed.java("ProducerPerformance", *words, "--throughput", "-1", "--command-property", *properties)


def _java_consumer(bed: Bed, topic: str, count: int) -> list[str]:
    config = bed.cluster.brokers[0].directory / "consumer.properties"
    config.write_text("isolation.level=read_committed\n")
    words = ["--bootstrap-server", bed.servers, "--topic", topic, "--num-records", str(count), "--hide-header"]
    return bed.java("ConsumerPerformance", *words, "--command-config", str(config), "--group", bed.group())


def _says(pattern: str) -> Callable[[Output], None]:
    def check(output: Output) -> None:
        if not re.search(pattern, output.out):
            raise ProgramError(f"no {pattern} in {output.out[-500:]}")

    return check


def _java_read(count: int) -> Callable[[Output], None]:
    """Whether the fifth number of its last line, the messages that it read, is enough."""

    def check(output: Output) -> None:
        cells = output.out.strip().splitlines()[-1].split(",")
        if int(cells[4]) < count:
            raise ProgramError(f"ConsumerPerformance read less than {count}: {output.out[-500:]}")

    return check


def _kcat_version() -> str:
    if which("kcat") is None:
        return "not installed"
    answer = subprocess.run(["kcat", "-V"], capture_output=True, text=True, timeout=10)
    found = re.search(r"Version (\S+) .*librdkafka (\S+)", answer.stdout)
    return f"{found[1]} with librdkafka {found[2]}" if found else answer.stdout.strip()
