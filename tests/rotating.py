"""Credentials that are rotated: of brokers whose listener asks for TLS with a client's certificate and for SCRAM, and
of their clients, as Secrets that kubelet mounts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme
from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.conftest import PASSWORD, USER
from tests.mounted import Secret, broker_store, client_pair, pem
from workers.local.cluster import Cluster
from workers.testing.processes import Process

LISTENER = "listener.name.secure"


class Rotating:
    """The credentials of both sides. A cluster with `properties` and `scram_users` takes them."""

    scram_users = {USER: PASSWORD}  # noqa: RUF012  (nobody changes it)

    def __init__(self, directory: Path) -> None:
        self.brokers_ca, self.clients_ca = trustme.CA(), trustme.CA()
        self._stores = 0
        self._store = directory / "broker.pem"
        self._store.write_bytes(broker_store(self.brokers_ca))
        clients = directory / "clients-ca.pem"
        clients.write_bytes(pem(self.clients_ca))
        self.ca, self.user, self.password = (Secret(directory / name) for name in ("ca", "user", "password"))
        self.ca.write({"ca.crt": pem(self.brokers_ca), "ca.password": b"x", "ca.p12": b"\x00"})
        self.user.write(client_pair(self.clients_ca))
        self.password.write({"password": PASSWORD.encode()})
        self.properties = {
            f"{LISTENER}.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            f"{LISTENER}.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._store),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(clients),
            f"{LISTENER}.ssl.client.auth": "required",
        }

    def environment(self, cluster: Cluster) -> dict[str, str]:
        """The variables that the chart gives a worker."""
        return {
            "KAFKA_BOOTSTRAP_SERVERS": cluster.secure_bootstrap_servers,
            "KAFKA_SECURITY_PROTOCOL": "sasl_ssl",
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA_SASL_USERNAME": USER,
            "KAFKA_SASL_PASSWORD_FILE": str(self.password.directory / "password"),
            "KAFKA_SSL_CA_LOCATION": str(self.ca.directory),
            "KAFKA_SSL_CERTIFICATE_LOCATION": str(self.user.directory / "user.crt"),
            "KAFKA_SSL_KEY_LOCATION": str(self.user.directory / "user.key"),
        }

    def trust_both(self, new: trustme.CA) -> None:
        """Have clients trust a new CA beside the old one, as the cluster operator does first."""
        self.ca.write({"ca.crt": pem(new), "ca-2026-11-24T00-00-00Z.crt": pem(self.brokers_ca)})

    def trust_only(self, new: trustme.CA) -> None:
        """Have clients trust the new CA only."""
        self.ca.write({"ca.crt": pem(new)})

    def replace_brokers_certificate(self, cluster: Cluster, authority: trustme.CA) -> None:
        """Give the brokers another certificate, which connections that are made from now on meet."""
        self._stores += 1
        store = self._store.with_name(f"broker-{self._stores}.pem")
        store.write_bytes(broker_store(authority))
        admin = cluster.admin()
        for broker in cluster.brokers:
            entry = ConfigEntry(f"{LISTENER}.ssl.keystore.location", str(store))
            entry.incremental_operation = AlterConfigOpType.SET
            resource = ConfigResource(ConfigResource.Type.BROKER, str(broker.node_id), incremental_configs=[entry])
            admin.incremental_alter_configs([resource])[resource].result()
        self.brokers_ca = authority

    def set_password(self, cluster: Cluster, password: str) -> None:
        """Change the password in Kafka; connections with the old one live until they authenticate again."""
        change = UserScramCredentialUpsertion(
            USER, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), password.encode()
        )
        admin = cluster.admin()
        admin.alter_user_scram_credentials([change])[USER].result()

    @contextmanager
    def another_client_certificate(self) -> Iterator[None]:
        """Write a new certificate, and its key at the end of the `with` block: the key is another one's until then."""
        fresh = client_pair(self.clients_ca)
        self.user.write({"user.crt": fresh["user.crt"], "user.key": client_pair(self.clients_ca)["user.key"]})
        yield
        self.user.write(fresh)


def renewals(workers: list[Process], kind: str) -> float:
    """The fewest renewals that one of the workers has made."""
    return min(each.metric("kafka_client_credentials_renewals_total", kind=kind) or 0 for each in workers)
