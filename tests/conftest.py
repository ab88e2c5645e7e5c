"""One real three-broker cluster for the whole suite, and a fresh topic for each test.

With KAFKA_BOOTSTRAP_SERVERS set, tests run against that cluster; those that need a hand on the brokers or the
listener with TLS skip.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient, NewTopic
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from xdist.scheduler import LoadScopeScheduling

from tests.faults.proxy import Proxy
from tests.identity import Identity
from workers.local.cluster import Cluster, finish
from workers.testing.processes import Processes

USER, PASSWORD = "worker", "correct-horse"


# Folders in the order in which their tests begin. Those that are HEAVY run one after the other, beside the others: a
# container has its part of one process's processor time, and kind's control plane ends when it is starved.
FOLDERS = ("tests/cluster/", "tests/compose/", "tests/faults/", "tests/unit/", "tests/chart/", "tests/workers/")
HEAVY = FOLDERS[:3]


def folder(nodeid: str) -> str:
    return next(each for each in FOLDERS if nodeid.startswith(each))


class Files(LoadScopeScheduling):  # type: ignore[misc]  # the plugin has no types
    """Tests of a file run in one process, one after the other, and so do all that are HEAVY."""

    def _split_scope(self, nodeid: str) -> str:
        return "heavy" if folder(nodeid) in HEAVY else nodeid.split("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FOLDERS.index(folder(item.nodeid)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Files:
    """Called by the plugin that runs tests in several processes."""
    return Files(config, log)


class Certificates:
    """A CA, the brokers' certificate, and a CA that nobody trusts."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.ca = str(directory / "ca.pem")
        authority.cert_pem.write_to_path(self.ca)
        self.other_ca = str(directory / "other-ca.pem")
        trustme.CA().cert_pem.write_to_path(self.other_ca)
        issued = authority.issue_cert("localhost")
        # Kafka reads PKCS #8 only.
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.broker = str(directory / "broker.pem")
        Path(self.broker).write_bytes(pkcs8 + b"".join(pem.bytes() for pem in issued.cert_chain_pems))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity(tmp_path_factory.mktemp("identity"))


def secure(certificates: Certificates) -> dict[str, str]:
    """Broker properties for the listener with TLS and SCRAM-SHA-512."""
    return {
        "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.secure.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": certificates.broker,
    }


@pytest.fixture(scope="session")
def own_cluster(certificates: Certificates, identity: Identity) -> Iterator[Cluster | None]:
    if "KAFKA_BOOTSTRAP_SERVERS" in os.environ:
        yield None
        return
    with Cluster(
        properties={**secure(certificates), **identity.broker_properties("listener.name.secure")},
        scram_users={USER: PASSWORD},
        proxied=True,
        racks=True,
        system_properties=identity.system_properties,
    ) as cluster:
        yield cluster


@pytest.fixture
def cluster(own_cluster: Cluster | None) -> Cluster:
    """The embedded cluster, for tests that kill brokers or use its listener with TLS."""
    if own_cluster is None:
        pytest.skip("needs the embedded cluster, and KAFKA_BOOTSTRAP_SERVERS names another")
    return own_cluster


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    """Before the listener of `proxied_bootstrap_servers`."""
    with Proxy(cluster.proxy_routes) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def bootstrap_servers(own_cluster: Cluster | None) -> str:
    return own_cluster.bootstrap_servers if own_cluster is not None else os.environ["KAFKA_BOOTSTRAP_SERVERS"]


@pytest.fixture(scope="session")
def admin(bootstrap_servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})


class Topics:
    """Makes topics with names that no other test has."""

    def __init__(self, admin: AdminClient) -> None:
        self._admin = admin

    def create(self, partitions: int = 3, config: dict[str, str] | None = None, replicas: int = 3) -> str:
        name = f"test-{secrets.token_hex(4)}"
        self.create_named(name, partitions, config, replicas)
        return name

    def create_named(
        self, name: str, partitions: int = 3, config: dict[str, str] | None = None, replicas: int = 3
    ) -> None:
        # Or else a message with a time of long ago is gone as soon as the brokers look, every five minutes.
        kept = {"retention.ms": "-1", **(config or {})}
        created = self._admin.create_topics([NewTopic(name, partitions, replicas, config=kept)])[name]
        finish(created, KafkaError.TOPIC_ALREADY_EXISTS)


@pytest.fixture(scope="session")
def topics(admin: AdminClient) -> Topics:
    return Topics(admin)


@pytest.fixture
def topic(topics: Topics) -> str:
    return topics.create()


@pytest.fixture
def group() -> str:
    return f"group-{secrets.token_hex(4)}"


@pytest.fixture
def processes(bootstrap_servers: str, tmp_path: Path) -> Iterator[Processes]:
    """Runs the command line as a user does; what still runs at the end of the test is killed."""
    runner = Processes(bootstrap_servers, tmp_path)
    yield runner
    runner.kill_all()
