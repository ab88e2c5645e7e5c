"""The documentation agrees with the code: tables are made from it, and examples run."""

import asyncio
import contextlib
import importlib
import json
import re
import socketserver
import sqlite3
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import click
import pytest
from click.testing import CliRunner
from confluent_kafka import Message
from prometheus_client import REGISTRY, CollectorRegistry

from tests.chart.schemas import KUBERNETES
from tests.faults.faults import FAULTS
from tests.faults.report import BEGIN, END
from workers.cli.main import cli
from workers.consumer.execution import Executor
from workers.consumer.failures import ErrorPolicy, RetryLater, SendDeadLetter, decide
from workers.consumer.received import Received
from workers.consumer.scheduling import Shard, Work
from workers.handlers import Lifespan, Middleware, load_handler
from workers.lifecycle import Shutdown
from workers.local.jars import KAFKA_VERSION
from workers.monitoring.metrics import markdown
from workers.testing import Effects, check
from workers.testing import message as a_message
from workers.testing.processes import DEADLINE_S, eventually

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
GUARANTEES = ROOT / "docs" / "guarantees.md"
# Commands of others, whose options are theirs, up to the end of the line or of the quotation.
OTHERS = "docker|helm|helm4|kind|kubectl|make|pip|skaffold"


def test_the_metrics_page_has_the_tables_of_the_code() -> None:
    assert markdown() in (ROOT / "docs" / "metrics.md").read_text()


def test_every_option_in_the_documentation_exists() -> None:
    commands = [
        [name, *rest]
        for name, command in cli.commands.items()
        for rest in ([[each] for each in command.commands] if isinstance(command, click.Group) else [[]])
    ]
    helps = "".join(CliRunner().invoke(cli, [*words, "--help"]).output for words in commands)
    pages = "".join(path.read_text() for path in [ROOT / "README.md", *DOCS])
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(rf"\b({OTHERS})\b[^`\n]*", "", pages))) - {"--version"}
    assert {"--input", "--handler"} <= options
    assert {option for option in options if option not in helps} == set()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", *(f"docs/{path.name}" for path in DOCS)]
)
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    links = re.findall(r"\]\(((?!https?:|#)[^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_the_support_page_has_the_versions_that_are_tested() -> None:
    def versions(path: str, pattern: str) -> set[str]:
        return set(re.findall(pattern, (ROOT / path).read_text()))

    rows = re.findall(r"^\| ([\w-]+) \| (.*?) \| (.*?) ?\|$", (ROOT / "docs" / "support.md").read_text(), re.MULTILINE)
    page = {name: (set(re.findall(r"\d+(?:\.\d+)+", tested)), also) for name, tested, also in rows}
    ci = ".github/workflows/ci.yml"
    (matrix,) = versions(ci, r"python-version: \[(.*)\]")
    assert page["Python"][0] == set(re.findall(r"[\d.]+", matrix))
    assert page["Kafka"][0] == {KAFKA_VERSION} == versions("k8s/kafka/kafka.yaml", r"\n    version: (\S+)")
    assert page["Strimzi"][0] == versions("tests/chart/schemas/README.md", r"Strimzi ([\d.]+\d)")
    assert page["Strimzi"][0] == versions("skaffold.yaml", r"strimzi-kafka-operator\n +version: (\S+)")
    assert page["Kubernetes"][0] == {KUBERNETES}
    assert page["Helm"][0] == versions(ci, r"HELM_\d_VERSION: v(\S+)")
    assert page["Skaffold"][0] == versions(ci, r"SKAFFOLD_VERSION: v(\S+)")
    assert page["confluent-kafka"][0] == versions("requirements.txt", r"confluent-kafka==(\S+)")
    for name, path, pattern, sentence in (
        ("Python", "pyproject.toml", r'requires-python = ">=([\d.]+)', "The package requires {} or newer"),
        ("Kubernetes", "charts/kafka-workers/Chart.yaml", r'kubeVersion: ">=(\d+\.\d+)', "anything older than {}."),
        ("confluent-kafka", "pyproject.toml", r"confluent-kafka>=([\d.]+)", "The package requires {} or newer"),
        ("Strimzi", "charts/kafka-workers/templates/strimzi.yaml", r"to Strimzi (\d+\.\d+)", "needs {} or newer"),
    ):
        (minimum,) = versions(path, pattern)
        assert sentence.format(minimum) in page[name][1]


def test_every_promise_names_tests_that_exist() -> None:
    table = GUARANTEES.read_text().partition("## Promises")[2].partition("## Faults")[0]
    promises = [line for line in table.splitlines() if line.startswith("| ")][2:]
    tests = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))))
    named = [re.findall(r"`(test_\w+)`", line.split("|")[3]) for line in promises]
    assert len(promises) > 5
    assert all(named)
    assert {name for names in named for name in names} - tests == set()


def test_the_table_of_faults_has_every_fault_of_the_suite() -> None:
    table = GUARANTEES.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")][2:]
    assert rows == [fault.name for fault in FAULTS]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_every_file_and_class_that_a_page_on_the_code_names_exists(page: str) -> None:
    quoted = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text())
    patterns = ("*.py", "workers/**/*.py", "workers/**/*.c", "tests/**/*.py")
    paths = [path for pattern in patterns for path in ROOT.glob(pattern)]
    files = [each for each in quoted if re.fullmatch(r"[\w/]+\.[cp]y?", each)]
    assert files
    assert [each for each in files if not any(path.as_posix().endswith(f"/{each}") for path in paths)] == []
    texts = [path.read_text() for path in paths]
    # A class with a member, if one is named, or a type.
    names = [each.partition(".") for each in quoted if re.fullmatch(r"([A-Z][a-z]+)+(\.\w+)?", each)]
    homes = {
        name: "".join(text for text in texts if re.search(rf"^(class {name}\b|{name} = )", text, re.MULTILINE))
        for name, _, _ in names
    }
    assert [name for name, text in homes.items() if not text] == []
    lost = [f"{name}.{member}" for name, _, member in names if not re.search(rf"\b{member}\b", homes[name])]
    assert lost == []


def test_the_map_of_the_code_has_every_module_of_every_folder() -> None:
    rows = re.findall(r"^\| `(\w+)/` \| (.*)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    on_map = {folder: {Path(each).stem for each in re.findall(r"`([\w/.]+)`", text)} for folder, text in rows}
    assert on_map == {
        path.parent.name: {each.stem for each in path.parent.glob("*.py")} - {"__init__"}
        for path in ROOT.glob("workers/*/__init__.py")
    }


# The handlers of the documentation, as a user runs them


class Partition:
    owned = True
    key = ("t", 0)
    next_offset = 0


class Page:
    """The Python of one page as a module in the working directory."""

    def __init__(self, path: str, name: str) -> None:
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)
        assert blocks
        Path(f"{name}.py").write_text("\n\n".join(blocks))
        importlib.invalidate_caches()
        self.module: ModuleType = importlib.import_module(name)
        self._name = name
        self.names: list[str] = [each for block in blocks for each in re.findall(r"--handler \w+:(\w+)", block)]

    def lifespan(self, name: str) -> Lifespan:
        return load_handler(f"{self._name}:{name}")

    def run(
        self, name: str, *batches: list[Message], concurrency: int = 1, middlewares: Sequence[Middleware] = ()
    ) -> list[Work]:
        """Call the handler as the consumer does, and end it."""
        partition = Partition()
        works = [Work(partition, [Shard(partition, None)], [Received(messages)]) for messages in batches]
        executor = Executor(self.lifespan(name), concurrency, middlewares)
        executor.start(Shutdown(5))
        executor.submit(works)
        eventually(lambda: executor.collect(0.05) is not None and not executor.in_flight, f"{name} is done")
        assert executor.stop(5) is None
        return works


@pytest.fixture
def page_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Page]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "of_the_documentation"
    # A page is imported for each test, and its metrics can be registered once.
    with mock.patch.dict(vars(REGISTRY), vars(CollectorRegistry(auto_describe=True))):
        yield lambda path: Page(path, name)
    sys.modules.pop(name, None)


@pytest.fixture
def handlers_page(page_of: Callable[[str], Page]) -> Page:
    return page_of("docs/handlers.md")


def message(offset: int, value: bytes, key: bytes | None = None) -> Message:
    return Message(topic="t", partition=0, offset=offset, value=value, key=key)


def orders(count: int) -> list[Message]:
    return [message(each, b"body %d" % each, b"%d" % each) for each in range(count)]


def stored() -> list[bytes]:
    with contextlib.closing(sqlite3.connect("orders.db")) as database:
        return [
            body for (body,) in database.execute("select body from orders order by cast(substr(body, 6) as integer)")
        ]


def forget_orders() -> None:
    with contextlib.closing(sqlite3.connect("orders.db")) as database, database:
        database.execute("delete from orders")


@pytest.mark.parametrize("path", ["README.md", "docs/handlers.md", "docs/schemas.md"])
def test_every_handler_in_the_documentation_starts_and_ends(path: str, page_of: Callable[[str], Page]) -> None:
    page = page_of(path)
    assert page.names
    for name in page.names:
        page.run(name)


def test_the_documented_handler_of_one_message_ships_rejects_and_retries(
    handlers_page: Page, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped, rejected, retried = handlers_page.run(
        "ship",
        [message(0, b'{"id": 1, "country": "FR"}')],
        [message(1, b"{")],
        [message(2, b'{"id": 2, "country": "DE"}')],
    )
    assert (shipped.handled, shipped.error, capsys.readouterr().out) == (1, None, "shipped 1\n")
    decisions = [
        decide(ErrorPolicy(), work.error, messages=1, attempts=1, backoff_step=1, jitter=0)
        for work in (rejected, retried)
        if work.error is not None
    ]
    assert decisions == [SendDeadLetter(), RetryLater(5)]


def test_the_documented_source_sends_each_row_in_one_pod_of_a_parallel_job(
    handlers_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(sqlite3.connect("orders.db")) as database, database:
        database.execute("create table outbox (id integer primary key, body blob)")
        database.executemany("insert into outbox values (?, ?)", [(each, b"%d" % each) for each in range(10)])
    every = sorted(handlers_page.module.outbox())
    shares = []
    monkeypatch.setenv("PODS", "4")
    for number in range(4):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(number))
        shares.append([*handlers_page.module.outbox()])

    assert every == [b"%d" % each for each in range(10)]
    assert all(shares)
    assert sorted(body for share in shares for body in share) == every


@pytest.mark.parametrize("path", ["README.md", "docs/handlers.md"])
def test_the_documented_batch_handler_stores_a_message_once_however_often_it_comes(
    path: str, page_of: Callable[[str], Page]
) -> None:
    works = page_of(path).run("store", orders(20), orders(20))
    assert [work.handled for work in works] == [20, 20]
    assert stored() == [b"body %d" % each for each in range(20)]


@pytest.mark.parametrize(
    ("path", "name"), [("README.md", "store"), ("docs/handlers.md", "store"), ("docs/handlers.md", "store_in_threads")]
)
def test_the_documented_handlers_that_store_have_none_of_the_usual_faults(
    path: str, name: str, page_of: Callable[[str], Page]
) -> None:
    page = page_of(path)
    page.run(name)
    # Of each three messages one has no key, as all of `kafka-workers produce`.
    messages = [a_message(b"body %d" % each, key=(b"a", b"b", None)[each % 3]) for each in range(9)]

    check(getattr(page.module, name), messages, Effects(read=stored, clear=forget_orders))


def test_the_documented_lifespan_per_thread_stores_from_all_threads(handlers_page: Page) -> None:
    works = handlers_page.run("store_in_threads", *([each] for each in orders(40)), concurrency=4)
    assert [work.error for work in works] == [None] * 40
    assert len(stored()) == 40


def test_the_documented_async_handlers_check_every_message(handlers_page: Page) -> None:
    expected = {each: zlib.crc32(b"body %d" % each) for each in range(30)}
    checksums = handlers_page.module.checksums

    handlers_page.run("check", *([each] for each in orders(30)), concurrency=5)
    assert checksums == expected

    checksums.clear()
    handlers_page.run("check_all", orders(10), orders(30)[10:], concurrency=2)
    assert checksums == expected


class Gateway(socketserver.ThreadingTCPServer):
    """Charges all but one line, each when twenty connections are open at once, and no sooner."""

    request_queue_size = 100
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.Connection)
        self.most = self.open = 0
        self.lock = threading.Lock()
        self.full = threading.Barrier(20)

    class Connection(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            server = self.server
            assert isinstance(server, Gateway)
            with server.lock:
                server.open += 1
                server.most = max(server.most, server.open)
            line = self.rfile.readline()
            server.full.wait(DEADLINE_S)
            with server.lock:
                server.open -= 1
            self.wfile.write(b"refused\n" if line == b"body 7\n" else b"charged\n")


def test_the_documented_async_lifespan_charges_many_messages_at_once_and_retries_what_is_refused(
    page_of: Callable[[str], Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = asyncio.open_connection

    async def to_gateway(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert (host, port) == ("localhost", 9000)
        return await connect(*server.server_address)

    monkeypatch.setattr(asyncio, "open_connection", to_gateway)
    page = page_of("docs/handlers.md")
    with Gateway() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        works = page.run("gateway", *([each] for each in orders(100)), concurrency=100)
        server.shutdown()
        thread.join()
    assert [work.received.values for work in works if work.error is not None] == [[b"body 7"]]
    assert server.most == 20


def test_the_documented_handlers_give_back_messages_for_other_topics(handlers_page: Page) -> None:
    value = json.dumps({"country": "FR", "total": 1500}).encode()

    def given(name: str) -> list[tuple[str, Any, Any]]:
        (work,) = handlers_page.run(name, [message(0, value, b"k")])
        assert (work.handled, work.error, work.done) == (1, None, 0)
        outputs = [output for answer in work.answers for output in answer.outputs]
        return [(output.topic, output.record["key"], output.record["value"]) for output in outputs]

    assert given("route") == [("orders-fr", b"k", value), ("large-orders", b"k", value)]
    assert given("price") == [("prices", b"k", b'{"price": %d}' % len(value))]
    assert given("totals") == [("totals", None, b"1500")]


def test_the_documented_decorator_changes_a_message_only_for_its_handler(
    handlers_page: Page, capsys: pytest.CaptureFixture[str]
) -> None:
    value = json.dumps({"name": "Ada"}).encode()
    (work,) = handlers_page.run("greet", [message(0, value)])
    assert capsys.readouterr().out == "hello Ada\n"
    changed: object = work.received.messages[0].value()
    assert changed == {"name": "Ada"}
    work.received.restore("t")
    assert work.received.messages[0].value() == value


@pytest.mark.parametrize("name", ["greet", "store", "check", "check_all"])
def test_the_documented_middleware_times_each_kind_of_handler(handlers_page: Page, name: str) -> None:
    batches = [[message(each, b'{"name": "Ada"}', b"%d" % each)] for each in range(3)]
    works = handlers_page.run(name, *batches, middlewares=[handlers_page.module.timed])

    assert [(work.handled, work.error) for work in works] == [(1, None)] * 3
    assert len(handlers_page.module.seconds) == 3


def test_the_documented_test_of_a_handler_passes(handlers_page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    handlers_page.module.test_a_greeting_has_the_name(capsys)
