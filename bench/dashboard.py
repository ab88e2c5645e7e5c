"""`python -m bench.dashboard`: the chart's dashboard with real data, drawn without Grafana.

Workers run on an embedded cluster while things happen to them, and Prometheus scrapes them every second. Then the
queries of each panel are asked of Prometheus, and drawn under the title of the panel, in the order of the dashboard.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from bench.prometheus import Prometheus, Target
from workers import Message, Outgoing, Reject
from workers.local.cluster import Cluster, free_ports
from workers.testing.processes import Process, Processes

REPOSITORY = Path(__file__).parents[1]
DASHBOARD = REPOSITORY / "charts" / "kafka-workers" / "dashboards" / "kafka-workers.json"
PICTURES = REPOSITORY / "docs"
NAMESPACE, TOPIC, GROUP, OUTPUTS = "kafka", "orders", "shop", "invoices"
# Grafana makes $__rate_interval of four scrapes at least.
RATE_INTERVAL_S = 10
STEP_S = 1
KEYS = 50
# Panels that show nothing on this cluster, and why.
EMPTY = {
    "Errors": "no delivery has failed: the producer waits for a broker that is down",
    "Certificates": "the cluster has no TLS, so no worker has a certificate",
}
COLOURS = ("#4c8fd6", "#e08a2e", "#3fa66b", "#d4555a", "#9a74c9", "#a8803f", "#d072ad", "#7f8fa0", "#a9a83a", "#35a7b5")
# Of the pages that have them, by the name of the picture: text, background, lines behind the values.
THEMES = {"light": ("#2f343b", "#ffffff", "#e4e7eb"), "dark": ("#c9ced6", "#1e2129", "#333842")}
COLUMNS = 3


# User code of the workers


def numbered() -> Iterator[Outgoing]:
    """Orders of fifty customers; one message of 2,500 is none."""
    chance = random.Random(1)
    for number in range(10_000_000):
        value = "no order" if number % 2500 == 2499 else json.dumps({"order": number})
        yield Outgoing(value, key=f"customer-{chance.randrange(KEYS)}")


async def invoice(message: Message) -> Outgoing:
    """Wait for a service, and give back an invoice."""
    await asyncio.sleep(0.01)
    value = message.value() or b""
    if not value.startswith(b"{"):
        raise Reject("not an order")
    return Outgoing(value, key=message.key(), topic=OUTPUTS)


# The dashboard


@dataclass(frozen=True, slots=True)
class Query:
    """An expression as the dashboard has it, and how its series are called."""

    expression: str
    legend: str

    def filled(self, range_s: int) -> str:
        """The expression with values for the dashboard's variables, as Grafana sends it with *All* chosen."""
        values = {
            "__range": f"{range_s}s", "__rate_interval": f"{RATE_INTERVAL_S}s",
            "namespace": ".*", "topic": ".*", "group": ".*",
        }  # fmt: skip
        return re.sub(r"\$(\w+)", lambda found: values[found[1]], self.expression)

    def name(self, labels: dict[str, str]) -> str:
        return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), self.legend)


@dataclass(frozen=True, slots=True)
class Panel:
    """One of the dashboard's panels, without its place."""

    row: str
    title: str
    unit: str
    queries: tuple[Query, ...]


def panels() -> list[Panel]:
    """The dashboard's panels, in its order, each with the title of the row that it stands in."""
    found, row = [], ""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        queries = tuple(Query(each["expr"], each.get("legendFormat") or "") for each in panel["targets"])
        unit = panel["fieldConfig"]["defaults"].get("unit", "short")
        found.append(Panel(row, panel["title"], unit, queries))
    return found


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a panel: its name, and its values at times in seconds since the beginning."""

    name: str
    times: list[float]
    values: list[float]


def _lines(prometheus: Prometheus, query: Query, begun_at: float, ended_at: float) -> list[Line]:
    expression = query.filled(round(ended_at - begun_at))
    return [
        Line(query.name(each.labels), [at - begun_at for at in each.times], each.values)
        for each in prometheus.range(expression, begun_at, ended_at, STEP_S)
    ]


# The workers at work


def observe(unit_s: float, say: Callable[[str], None]) -> list[tuple[Panel, list[Line]]]:
    """Run the workers for about twelve times `unit_s`, and return what each panel shows of that time."""
    names = ["producer", "burst", "consumer-1", "consumer-2", "consumer-3", "lag-exporter", "canary"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="kafka-workers-dashboard-")))
        cluster = stack.enter_context(Cluster(say=say))
        for topic in (TOPIC, f"{TOPIC}.dlq", OUTPUTS):
            cluster.create_topic(topic, 3)
        processes = Processes(cluster.bootstrap_servers, directory)
        stack.callback(processes.kill_all)
        prometheus = stack.enter_context(Prometheus(directory, [
            Target(name, port, {"namespace": NAMESPACE}) for name, port in ports.items()
        ]))  # fmt: skip

        def start(name: str, *arguments: str) -> Process:
            say(f"{name} starts")
            return processes.start(*arguments, "--metrics-port", str(ports[name]), env={"PYTHONPATH": str(REPOSITORY)})

        def consumer(name: str) -> Process:
            return start(
                name, "consume", "--topic", TOPIC, "--group-id", GROUP, "--from-beginning",
                "--handler", "bench.dashboard:invoice", "--concurrency", "20",
            )  # fmt: skip

        def wait(units: float, what: str) -> None:
            say(what)
            time.sleep(units * unit_s)

        begun_at = time.time()
        start("lag-exporter", "lag-exporter", "--interval", "1", "--group-id", GROUP)
        start("canary", "canary")
        consumer("consumer-1")
        consumer("consumer-2")
        start("producer", "produce", "--topic", TOPIC, "--source", "bench.dashboard:numbered", "--rate", "400")
        wait(3, "two consumers")
        consumer("consumer-3")
        wait(2, "three consumers")
        burst = ("--rate", "6000", "--count", str(round(6000 * unit_s)))
        start("burst", "produce", "--topic", TOPIC, "--source", "bench.dashboard:numbered", *burst, "--linger", "60")
        wait(3, "a burst that the consumers are too slow for")
        cluster.kill_broker(1)
        wait(2, "broker 1 is down")
        cluster.start_broker(1)
        wait(2, "broker 1 is back")
        ended_at = time.time()
        return [
            (panel, [line for query in panel.queries for line in _lines(prometheus, query, begun_at, ended_at)])
            for panel in panels()
        ]


# The picture


def draw(shown: list[tuple[Panel, list[Line]]], path: Path, theme: str) -> None:
    """Draw every panel, numbers too as they were over the time."""
    import matplotlib as mpl
    from matplotlib import rcsetup

    ink, paper, grid = THEMES[theme]
    mpl.use("Agg")
    mpl.rcParams.update({
        "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": grid, "axes.facecolor": paper,
        "figure.facecolor": paper, "text.color": ink, "axes.titlecolor": ink, "xtick.color": ink, "ytick.color": ink,
        "grid.color": grid, "axes.prop_cycle": rcsetup.cycler(color=COLOURS),
    })  # fmt: skip
    from matplotlib import pyplot

    lines = -(-len(shown) // COLUMNS)
    figure, axes = pyplot.subplots(
        lines, COLUMNS, figsize=(4.2 * COLUMNS, 2.4 * lines), squeeze=False, layout="constrained"
    )
    for axis, (panel, found) in zip(axes.flat, shown, strict=False):
        axis.set_title(panel.title)
        _panel(axis, panel, found)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})
    pyplot.close(figure)


def _panel(axis: Any, panel: Panel, found: list[Line]) -> None:
    from matplotlib.ticker import EngFormatter, PercentFormatter

    unit = {"s": "s", "ops": "/s", "cps": "/s", "bytes": "B"}.get(panel.unit, "")
    if not found:
        axis.text(0.5, 0.5, "no data", transform=axis.transAxes, ha="center")
        axis.set(xticks=[], yticks=[])
        return
    for line in found:
        axis.plot(line.times, line.values, linewidth=1.2, label=line.name or None)
    axis.yaxis.set_major_formatter(
        PercentFormatter(1, decimals=0) if panel.unit == "percentunit" else EngFormatter(unit, sep="")
    )
    axis.xaxis.set_major_formatter(EngFormatter("s"))
    axis.grid(axis="y")
    axis.set_ylim(bottom=0)
    named = [each for each in found if each.name]
    if named:
        columns = 2 if len(named) > 3 else 1
        # Room for the legend above the lines.
        axis.set_ylim(top=axis.get_ylim()[1] * (1.15 + 0.13 * -(-len(named) // columns)))
        size = 8 if len(named) <= 6 else 6.5
        # Panels are as wide as each other, however long the names are.
        axis.legend(frameon=False, fontsize=size, ncols=columns, loc="upper left").set_in_layout(False)


@click.command()
@click.option("--unit", default=15.0, show_default=True, help="Seconds of a twelfth of what happens.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=PICTURES,
    help="Where the pictures go.  [default: docs]",
)
def main(unit: float, directory: Path) -> None:
    """Draw the chart's dashboard of workers to which things happen for about three minutes."""
    shown = observe(unit, click.echo)
    for theme in THEMES:
        draw(shown, directory / f"dashboard-{theme}.png", theme)
    click.echo(f"{len(shown)} panels in {directory}")
    for panel, found in shown:
        for query in panel.queries if not found else ():
            click.echo(f"empty: {panel.row}: {panel.title}: {query.expression}")
    unexplained = [panel.title for panel, found in shown if not found and panel.title not in EMPTY]
    if unexplained:
        raise click.ClickException(
            f"panels without data: {', '.join(unexplained)}; correct their queries, or explain them"
        )


if __name__ == "__main__":
    main()
