"""The demo: the real workers against a real cluster, with a broker killed half way, and the account at the end.

Everything runs as a user would run it: the workers are processes started with their command line, and what is shown
is read from their `/metrics`. The account compares the producer's own numbers with the log and with what
the consumers printed.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from rich.console import Console
from rich.table import Table

from workers.accounting.accounts import read_accounts
from workers.accounting.stamps import StreamName, decode
from workers.accounting.verify import Observations, RunReport
from workers.config import CONSUMER_DEFAULTS, ClientConfig, Precedence, Setting
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.kafka.reader import read_topic
from workers.lifecycle import Shutdown, set_up_logging
from workers.live import live_table
from workers.local.cluster import Cluster
from workers.local.picture import draw
from workers.testing.processes import Process, Processes, Samples

TOPIC = "teste"
GROUP = "demo"
PARTITIONS = 3
CONSUMERS = 4
STEP_S = 0.5
DRAIN_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
GROUP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is sent, and when the broker goes and comes back, in seconds after the first message."""

    rate: int
    duration_s: float
    kill_at_s: float
    back_at_s: float


FULL = Plan(rate=5_000, duration_s=16.0, kill_at_s=5.0, back_at_s=10.0)
QUICK = Plan(rate=2_000, duration_s=6.0, kill_at_s=2.0, back_at_s=4.0)


@dataclass(slots=True)
class Moment:
    """The state of all processes, `at_s` seconds after the first message, as the demo shows it."""

    at_s: float
    event: str
    brokers: dict[int, bool]
    leaders: dict[int, int]
    acknowledged: float = 0.0
    handled: float = 0.0
    produce_rate: float = 0.0
    consume_rate: float = 0.0
    assigned: dict[str, int] = field(default_factory=dict)
    owners: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def lag(self) -> float:
        """Acknowledged and not handled: what the owners export is as old as their last fetch, or older with a
        broker down.
        """
        return max(0.0, self.acknowledged - self.handled)


class Worker(Process):
    """A worker of the demo, which ends with the demo's cluster."""

    # The table goes on without one that does not answer.
    http_timeout_s = 1.0

    def __init__(self, name: str, arguments: list[str], directory: Path, cluster: Cluster) -> None:
        # Without the user's variables for workers, which are about other brokers.
        own = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        environment = Processes(cluster.bootstrap_servers, directory).environment(own)
        super().__init__([*arguments, "--client-id", name], environment, subprocess.DEVNULL, directory, name)
        cluster.watch(self.popen.pid)

    def metrics(self) -> Samples:
        """Its samples by name, none while it does not answer."""
        try:
            return super().metrics() if self.listens else {}
        except OSError:
            return {}

    def check(self) -> None:
        """Raises WorkerError when it has ended with an error."""
        if self.popen.poll() not in (None, 0):
            words = self.stderr.strip().splitlines() or ["it said nothing"]
            raise WorkerError(f"{self.name} ended with code {self.popen.returncode}: {words[-1]}")


def run(*, quick: bool, live: bool, picture: Path | None, shutdown: Shutdown, say: Callable[[str], None]) -> int:
    """Runs the demo and returns its exit code: 0 when nothing acknowledged was lost.

    `picture` is where an SVG is drawn of the table with a broker down and of the account. Raises ConfigError where it
    cannot be written.
    """
    plan = QUICK if quick else FULL
    if picture is not None:
        _check_writable(picture)
    # The clients of the demo itself complain about the broker that it kills.
    set_up_logging("text", "critical")
    began = time.monotonic()
    with ExitStack() as stack:
        say("starting three brokers")
        cluster = stack.enter_context(Cluster(say=say))
        # It goes with the cluster, also when this process is killed.
        directory = cluster.directory
        cluster.create_topic(TOPIC, PARTITIONS)
        say(
            f"brokers at {cluster.bootstrap_servers}; {CONSUMERS} consumers join group {GROUP}, {PARTITIONS} partitions"
        )
        consume = ["consume", "--group-id", GROUP, "--topic", TOPIC, "--from-beginning", "--format", "value"]
        consumers = [Worker(f"consumer-{n}", consume, directory, cluster) for n in range(1, CONSUMERS + 1)]
        stack.callback(_end, consumers, cluster)
        _wait_for_group(consumers, shutdown)
        produce = ["produce", "--topic", TOPIC, "--rate", str(plan.rate), "--duration", str(plan.duration_s)]
        producer = Worker("producer", [*produce, "--summary", "json"], directory, cluster)
        stack.callback(_end, [producer], cluster)
        with _view(live) as show:
            finished, broken = _watch(cluster, producer, consumers, plan, shutdown, show)
        if not finished:
            say("stopped; nothing is accounted for")
            return 130
        for consumer in consumers:
            consumer.popen.terminate()
        for consumer in consumers:
            consumer.wait(STOP_TIMEOUT_S)
        lines, code = _account(cluster, producer, consumers, shutdown)
        print(*lines, sep="\n")
        if picture is not None and broken is not None:
            draw(picture, _as_table(broken), lines)
        say(f"took {time.monotonic() - began:.0f} s")
        for consumer in consumers:
            consumer.check()
        return code


def _check_writable(path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        raise ConfigError(
            f"--svg: {path} cannot be written: {error.strerror}; name a file in a directory that exists"
        ) from None


def _wait_for_group(consumers: list[Worker], shutdown: Shutdown) -> None:
    """Returns when each partition has its own consumer and the rest are idle; raises WorkerError when that takes
    too long.
    """
    settled = [0] * (CONSUMERS - PARTITIONS) + [1] * PARTITIONS
    deadline = time.monotonic() + GROUP_TIMEOUT_S
    while not shutdown.requested:
        for consumer in consumers:
            consumer.check()
        samples = [consumer.metrics().get("kafka_consumer_assigned_partitions", []) for consumer in consumers]
        if sorted(int(value) for found in samples for _, value in found) == settled:
            return
        if time.monotonic() > deadline:
            raise WorkerError(f"the consumers did not divide the partitions within {GROUP_TIMEOUT_S:.0f} s")
        time.sleep(0.1)


def _end(workers: list[Worker], cluster: Cluster) -> None:
    for worker in workers:
        worker.kill()
        cluster.forget(worker.popen.pid)


def _watch(
    cluster: Cluster,
    producer: Worker,
    consumers: list[Worker],
    plan: Plan,
    shutdown: Shutdown,
    show: Callable[[Moment], None],
) -> tuple[bool, Moment | None]:
    """Shows what happens, kills the broker and brings it back, until all is consumed. Returns False when asked to stop,
    and the last moment with a broker down.
    """
    admin = cluster.admin()
    victim: int | None = None
    back = False
    event = "starting"
    started: float | None = None
    previous: Moment | None = None
    leaders: dict[int, int] = {}
    ended_at: float | None = None
    broken: Moment | None = None
    while not shutdown.requested:
        for worker in (producer, *consumers):
            worker.check()
        now = time.monotonic()
        try:
            metadata = admin.list_topics(TOPIC, timeout=0.5).topics[TOPIC].partitions
            leaders = {number: partition.leader for number, partition in metadata.items()}
        except KafkaException:
            pass  # the next look shows it; meanwhile the last one stands
        moment = _look(cluster, producer, consumers, leaders, previous, now - (started or now), event)
        if started is None and moment.acknowledged:
            started, event = now, "producing"
        show(moment)
        if not all(moment.brokers.values()):
            broken = moment
        elapsed_s = now - started if started is not None else 0.0
        if victim is None and elapsed_s >= plan.kill_at_s:
            victim = leaders.get(0, 0)
            cluster.kill_broker(victim)
            event = f"broker {victim} killed (SIGKILL)"
        if victim is not None and not back and elapsed_s >= plan.back_at_s:
            back = True
            cluster.start_broker(victim)
            event = f"broker {victim} started again"
        if not producer.running:
            ended_at = ended_at or now
            event = "draining"
            # Its last numbers are in its account: the process may have ended between two looks at its metrics.
            account = json.loads(producer.stdout)
            if moment.handled >= account["acknowledged"] and len(moment.owners) == CONSUMERS:
                return True, broken
            if now - ended_at > DRAIN_TIMEOUT_S:
                raise WorkerError(f"{moment.lag:.0f} messages were not consumed within {DRAIN_TIMEOUT_S:.0f} s")
        previous = moment
        time.sleep(max(0.0, STEP_S - (time.monotonic() - now)))
    return False, broken


def _look(
    cluster: Cluster,
    producer: Worker,
    consumers: list[Worker],
    leaders: dict[int, int],
    previous: Moment | None,
    at_s: float,
    event: str,
) -> Moment:
    """One moment, read from the workers' metrics."""
    moment = Moment(at_s, event, {broker.node_id: broker.running for broker in cluster.brokers}, leaders)
    # The consumers first: what they have handled by then, the producer has sent.
    for consumer in consumers:
        samples = consumer.metrics()
        moment.handled += sum(
            value
            for labels, value in samples.get("kafka_consumer_messages_total", [])
            if labels["outcome"] == "success"
        )
        lags = samples.get("kafka_consumer_lag_messages", [])
        if samples:
            moment.owners[consumer.name] = {int(labels["partition"]): value for labels, value in lags}
            moment.assigned[consumer.name] = int(samples["kafka_consumer_assigned_partitions"][0][1])
    deliveries = producer.metrics().get("kafka_producer_deliveries_total", [])
    moment.acknowledged = sum(value for labels, value in deliveries if labels["outcome"] == "success")
    if not deliveries and previous is not None:
        moment.acknowledged = previous.acknowledged
    if previous is not None and at_s > previous.at_s:
        moment.produce_rate = (moment.acknowledged - previous.acknowledged) / (at_s - previous.at_s)
        moment.consume_rate = (moment.handled - previous.handled) / (at_s - previous.at_s)
    return moment


@contextmanager
def _view(live: bool) -> Iterator[Callable[[Moment], None]]:
    """A live table on a terminal, a line every second elsewhere."""
    if live:
        with live_table(_drawn) as show:
            yield show
        return
    shown: Moment | None = None

    def line(moment: Moment) -> None:
        nonlocal shown
        if shown is None or moment.at_s - shown.at_s >= 1 or moment.event != shown.event:
            shown = moment
            print(_as_line(moment), flush=True)

    yield line


def _as_line(moment: Moment) -> str:
    down = [str(node) for node, running in moment.brokers.items() if not running]
    owners = " ".join(f"{name}:{_owned(moment, name, ',')}" for name in moment.owners)
    return (
        f"{moment.at_s:5.1f} s  brokers {len(moment.brokers) - len(down)}/{len(moment.brokers)}"
        f"  produced {moment.acknowledged:,.0f} ({moment.produce_rate:,.0f}/s)"
        f"  consumed {moment.handled:,.0f} ({moment.consume_rate:,.0f}/s)"
        f"  lag {moment.lag:,.0f}  {owners}  [{moment.event}]"
    )


def _owned(moment: Moment, name: str, separator: str) -> str:
    """Its partitions, idle, or how many where their lag is not known yet."""
    if not moment.assigned[name]:
        return "idle"
    return separator.join(map(str, sorted(moment.owners[name]))) or f"({moment.assigned[name]})"


def _drawn(moment: Moment, _console: Console) -> Table:
    return _as_table(moment)


def _as_table(moment: Moment) -> Table:
    table = Table(title=f"{moment.at_s:.0f} s: {moment.event}", min_width=72)
    table.add_column("what")
    table.add_column("state")
    table.add_column("rate", justify="right")
    table.add_column("lag", justify="right")
    for node, running in moment.brokers.items():
        leads = ", ".join(f"{TOPIC}[{number}]" for number, leader in sorted(moment.leaders.items()) if leader == node)
        state = f"leads {leads}" if leads else "up"
        table.add_row(f"broker {node}", state if running else "[bold red]down[/]")
    table.add_section()
    table.add_row("producer", f"{moment.acknowledged:,.0f} acknowledged", f"{moment.produce_rate:,.0f}/s")
    table.add_section()
    for name, owned in moment.owners.items():
        state = _owned(moment, name, ", ")
        table.add_row(
            name,
            f"[yellow]{state}[/]" if state == "idle" else f"partitions {state}",
            "",
            f"{sum(owned.values()):,.0f}" if owned else "",
        )
    table.add_section()
    table.add_row("group", f"{moment.handled:,.0f} handled", f"{moment.consume_rate:,.0f}/s", f"{moment.lag:,.0f}")
    return table


def _account(cluster: Cluster, producer: Worker, consumers: list[Worker], shutdown: Shutdown) -> tuple[list[str], int]:
    """The account, line by line, and the exit code that it deserves."""
    accounts = read_accounts(producer.stdout, str(producer.out), TOPIC)
    settings = [
        Setting("bootstrap.servers", cluster.bootstrap_servers, Precedence.COMMAND_LINE, "the demo's cluster"),
        Setting("group.id", "demo-verify", Precedence.COMMAND_LINE, "the demo"),
    ]
    in_log = read_topic(ClientConfig(CONSUMER_DEFAULTS, settings), TOPIC, shutdown, 30.0).report(accounts)[0]
    consumed = Observations()
    for consumer in consumers:
        _observe_output(consumer.out, consumed)
    at_consumers = consumed.report(accounts)[0]
    lost = in_log.lost or at_consumers.lost
    return _account_lines(in_log, at_consumers), ExitCode.LOSS if lost else ExitCode.OK


def _observe_output(path: Path, observations: Observations) -> None:
    with path.open("rb") as lines:
        for line in lines:
            stamp = decode(line)
            partition = StreamName.of(stamp.stream).partition if stamp is not None else None
            observations.add(partition if partition is not None else -1, stamp)


def _account_lines(in_log: RunReport, at_consumers: RunReport) -> list[str]:
    acknowledged = in_log.sent - in_log.failed - in_log.unknown
    rows: list[tuple[str, Any]] = [
        ("produced", in_log.sent),
        ("acknowledged", acknowledged),
        ("failed", in_log.failed),
        ("unknown", in_log.unknown),
        ("consumed", at_consumers.present),
        ("missing (acknowledged, not consumed)", at_consumers.lost),
        ("missing (acknowledged, not in the log)", in_log.lost),
        ("duplicated in the log", in_log.duplicated),
        ("reordered in the log", in_log.reordered),
        ("redelivered to consumers", at_consumers.duplicated),
    ]
    lines = [f"{name:40}{count:>12,}" for name, count in rows]
    verdict = "nothing acknowledged was lost" if not (in_log.lost or at_consumers.lost) else "MESSAGES WERE LOST"
    return ["", *lines, "", verdict]
