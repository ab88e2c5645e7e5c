"""`make canary-soak MINUTES=30`: does the canary raise a false alarm while nothing is wrong with the brokers?

The canary runs beside workers that load the brokers and come and go: members join, members are killed, a burst is
sent as fast as it goes, topics are made and deleted. Prometheus evaluates the alerts as the chart makes them. With
--kill-brokers a broker is killed every four minutes too; then the canary must say that it is unavailable, and must not
say that a message was lost or doubled.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import click
import yaml

from bench.prometheus import Prometheus, Series, Target
from workers import Message
from workers.local.cluster import Cluster, free_ports
from workers.testing.processes import Process, Processes

REPOSITORY = Path(__file__).parents[1]
CHART = REPOSITORY / "charts" / "kafka-workers"
NAMESPACE, TOPIC, GROUP = "kafka", "orders", "shop"
# As the operator of Prometheus scrapes when nothing else is said.
SCRAPE_INTERVAL_S = 15
MEMBERS = 3
RATE, BURST = 500, 20_000
# Each thing that happens gets this long.
ACT_S = 20.0
DOWN_S = 30.0
ACTS_BETWEEN_KILLS = 12
CANARY_ALERTS = "KafkaCanary"
LOST = "KafkaCanaryMessagesLost"
POD = "canary-5d9f-abcde"


def take(_message: Message) -> None:
    """The handler of the group's members."""


def canary_rules() -> dict[str, Any]:
    """The chart's alerts about the canary."""
    helm = which("helm")
    if helm is None:
        raise click.ClickException("there is no helm on PATH, which renders the chart's alerts; install it")
    settings = ["--set", "canary.enabled=true,metrics.prometheusRule.enabled=true", "--namespace", NAMESPACE]
    shown = subprocess.run(
        [helm, "template", "soak", str(CHART), "--show-only", "templates/prometheus-rule.yaml", *settings],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (group,) = yaml.safe_load(shown)["spec"]["groups"]
    return {
        "groups": [
            {"name": group["name"], "rules": [r for r in group["rules"] if r["alert"].startswith(CANARY_ALERTS)]}
        ]
    }


class Workers:
    """A producer and a group of consumers beside the canary, which come and go."""

    def __init__(self, processes: Processes, cluster: Cluster, chance: random.Random) -> None:
        self._processes = processes
        self._cluster = cluster
        self._admin = cluster.admin()
        self._chance = chance
        self._members = [self._member() for _ in range(MEMBERS)]
        self._topics = 0
        self._producer = processes.start("produce", "--topic", TOPIC, "--forever", "--rate", str(RATE))

    def _member(self) -> Process:
        return self._processes.consume(
            TOPIC, GROUP, "--handler", "bench.canary_soak:take", env={"PYTHONPATH": str(REPOSITORY)}
        )

    def _replace(self, end: Callable[[Process], object]) -> None:
        number = self._chance.randrange(MEMBERS)
        end(self._members[number])
        self._members[number] = self._member()

    def kill_a_member(self) -> None:
        self._replace(Process.kill)

    def stop_a_member(self) -> None:
        self._replace(Process.stop)

    def send_a_burst(self) -> None:
        self._processes.produce(TOPIC, "--count", str(BURST))

    def make_and_delete_a_topic(self) -> None:
        self._topics += 1
        name = f"passing-{self._topics}"
        self._cluster.create_topic(name, 6)
        self._admin.delete_topics([name])[name].result(30)

    def check(self) -> None:
        """Raises AssertionError when one of them has ended by itself."""
        for each in (self._producer, *self._members):
            assert each.running, each.stderr[-2000:]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The canary's account and its alerts, by name with the seconds that they fired or were pending."""

    account: dict[str, Any]
    fired: dict[str, float]
    pending: dict[str, float]
    unavailable_s: float

    def false_alarms(self, *, kill_brokers: bool) -> list[str]:
        """Names of what was said though it was not so; failures and delays are so while brokers are killed."""
        said = {"lost": self.account["lost"], "duplicates": self.account["duplicates"], LOST: self.fired.get(LOST)}
        if not kill_brokers:
            said |= {"failed": self.account["failed"], "unavailable": self.unavailable_s, **self.fired}
        return [name for name, amount in said.items() if amount]


def play(minutes: float, kill_brokers: bool, seed: int, say: Callable[[str], None]) -> tuple[Outcome, Counter[str]]:
    """Run the soak; returns what was said, and how often each thing happened."""
    chance = random.Random(seed)
    (port,) = free_ports(1)
    done: Counter[str] = Counter()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="kafka-workers-canary-")))
        cluster = stack.enter_context(Cluster(say=say))
        cluster.create_topic(TOPIC, 6)
        processes = Processes(cluster.bootstrap_servers, directory)
        stack.callback(processes.kill_all)
        target = Target("canary", port, {"namespace": NAMESPACE, "pod": POD})
        prometheus = stack.enter_context(
            Prometheus(directory, [target], interval_s=SCRAPE_INTERVAL_S, rules=canary_rules())
        )
        canary = processes.start("canary", "--metrics-port", str(port), "--summary", "json")
        canary.says("metrics on port")
        workers = Workers(processes, cluster, chance)
        begun_at = time.time()
        acts = [
            workers.kill_a_member, workers.stop_a_member, workers.send_a_burst, workers.make_and_delete_a_topic,
        ]  # fmt: skip
        while time.time() < begun_at + minutes * 60:
            if kill_brokers and done.total() % ACTS_BETWEEN_KILLS == ACTS_BETWEEN_KILLS - 1:
                broker = chance.choice([each.node_id for each in cluster.brokers])
                cluster.kill_broker(broker)
                time.sleep(DOWN_S)
                cluster.start_broker(broker)
                done["a broker is killed, and started again"] += 1
                say(f"{time.strftime('%H:%M:%S')} broker {broker} was killed, and is back")
            act = chance.choice(acts)
            until = time.time() + ACT_S
            act()
            done[act.__name__.replace("_", " ")] += 1
            workers.check()
            say(f"{time.strftime('%H:%M:%S')} {act.__name__.replace('_', ' ')}")
            time.sleep(max(0.0, until - time.time()))
        ended_at = time.time()
        if canary.stop(signal.SIGTERM) not in (0, 3):
            raise click.ClickException(f"the canary failed: {canary.stderr[-2000:]}")
        account = json.loads(canary.lines[-1])

        def seconds(state: str) -> dict[str, float]:
            return _seconds_by_alert(prometheus.range(f'ALERTS{{alertstate="{state}"}}', begun_at, ended_at, 1))

        below = prometheus.range("min(kafka_canary_broker_availability_ratio) < 1", begun_at, ended_at, 1)
        return Outcome(account, seconds("firing"), seconds("pending"), sum(len(each.times) for each in below)), done


def _seconds_by_alert(found: Iterable[Series]) -> dict[str, float]:
    seconds: Counter[str] = Counter()
    for each in found:
        seconds[each.labels["alertname"]] += len(each.times)
    return dict(seconds)


@click.command()
@click.option("--minutes", type=click.FloatRange(min=1), default=30.0, show_default=True, help="How long to go on.")
@click.option("--kill-brokers", is_flag=True, help="Kill a broker every four minutes too.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides what happens.")
def main(minutes: float, kill_brokers: bool, seed: int) -> None:
    """Exits 0 when the canary has raised no false alarm."""
    outcome, done = play(minutes, kill_brokers, seed, lambda line: click.echo(line, err=True))
    account = outcome.account
    click.echo(f"{minutes:g} minutes: " + ", ".join(f"{act} {count} times" for act, count in done.most_common()))
    click.echo(", ".join(f"{account[name]:,} {name}" for name in ("sent", "received", "failed", "lost", "duplicates")))
    click.echo(f"a broker was unavailable for {outcome.unavailable_s:.0f} s")
    click.echo(f"alerts that fired, in s: {outcome.fired or 'none'}; that were pending: {outcome.pending or 'none'}")
    false = outcome.false_alarms(kill_brokers=kill_brokers)
    if false:
        click.echo(f"false alarms: {', '.join(false)}")
    sys.exit(bool(false))


if __name__ == "__main__":
    main()
