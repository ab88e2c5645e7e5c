"""Messages per second and CPU of whole processes: the workers beside bare loops, Java's tools and kcat."""

import shutil

from bench.bed import SIZE, Bed
from bench.measure import Program, Sample, in_turns


def produce(bed: Bed, count: int) -> list[Sample]:
    topic = bed.topic()
    java = ["--topic", topic, "--record-size", str(SIZE), "--num-records", str(count), "--throughput", "-1"]
    java += ["--producer-props", f"bootstrap.servers={bed.servers}", "acks=all", "enable.idempotence=true"]
    programs = [
        Program("kafka-workers produce", lambda: bed.producer(topic, "--count", str(count))),
        Program("bare produce_batch with a callback", lambda: bed.bare("produce", topic, count, str(SIZE))),
        Program("Java ProducerPerformance", lambda: bed.java("ProducerPerformance", *java)),
    ]
    return in_turns(programs, bed.rounds, bed.say)


def consume(bed: Bed, count: int) -> list[Sample]:
    topic = bed.filled(count)
    config = bed.cluster.brokers[0].directory / "consumer.properties"
    config.write_text("isolation.level=read_committed\nauto.offset.reset=earliest\n")
    java = ["--bootstrap-server", bed.servers, "--topic", topic, "--messages", str(count)]
    java += ["--consumer.config", str(config), "--group"]
    programs = [
        Program("kafka-workers consume, batch handler", lambda: _handled(bed, topic, count, "each_batch")),
        Program("bare consume(1000)", lambda: bed.bare("consume", topic, count, bed.group())),
        Program("Java ConsumerPerformance", lambda: bed.java("ConsumerPerformance", *java, bed.group())),
    ]
    return in_turns(programs, bed.rounds, bed.say)


def consume_each(bed: Bed, count: int) -> list[Sample]:
    topic = bed.filled(count)
    programs = [
        Program("kafka-workers consume, handler per message", lambda: _handled(bed, topic, count, "each")),
        Program("bare poll()", lambda: bed.bare("consume_each", topic, count, bed.group())),
    ]
    return in_turns(programs, bed.rounds, bed.say)


def print_messages(bed: Bed, count: int) -> list[Sample]:
    kcat = shutil.which("kcat")
    if kcat is None:
        bed.say("  there is no kcat: printing is not compared")
        return []
    topic = bed.filled(count)

    def other(form: str) -> list[str]:
        member = [kcat, "-b", bed.servers, "-G", bed.group(), "-X", "auto.offset.reset=earliest"]
        return [*member, "-q", "-u", "-c", str(count), "-f", form, topic]

    def ours(form: str) -> list[str]:
        return bed.consumer(topic, "--max-messages", str(count), "--format", form)

    text = "%t[%p]@%o key=%k %s\\n"
    programs = [
        Program("kafka-workers consume --format value", lambda: ours("value")),
        Program("kcat -f '%s\\n'", lambda: other("%s\\n")),
        Program("kafka-workers consume --format text", lambda: ours("text")),
        Program(f"kcat -f '{text}'", lambda: other(text)),
    ]
    return in_turns(programs, bed.rounds, bed.say)


def start_up(bed: Bed) -> list[Sample]:
    """From the start of the process to its end, with nothing or one message to do."""
    topic = bed.filled(1)
    programs = [
        Program("kafka-workers --help", lambda: [*bed.producer(topic)[:3], "--help"]),
        Program("kafka-workers consume, one message", lambda: bed.consumer(topic, "--max-messages", "1")),
        Program("bare poll(), one message", lambda: bed.bare("consume_each", topic, 1, bed.group())),
    ]
    return in_turns(programs, bed.rounds, bed.say)


def _handled(bed: Bed, topic: str, count: int, handler: str) -> list[str]:
    return bed.consumer(topic, "--max-messages", str(count), "--handler", f"bench.handlers:{handler}")
