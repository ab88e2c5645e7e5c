"""One kind cluster with one Kafka cluster for all tests here. A test leaves no release behind."""

from collections.abc import Iterator

import pytest

from tests.cluster.kind import IMAGE, KAFKA_CLUSTER, Release, kubectl, output, strimzi_runs, why_not
from tests.programs import program


@pytest.fixture(scope="package")
def kafka() -> Iterator[None]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    output("docker", "build", "--tag", IMAGE, ".", timeout_s=600)
    output("kind", "load", "docker-image", IMAGE)
    if strimzi_runs():
        yield
        return
    output("bash", str(KAFKA_CLUSTER), timeout_s=600)
    yield
    # The other tests have the processors; the script starts the brokers again.
    kubectl("scale", "statefulset", "events-brokers", "--replicas=0")


@pytest.fixture(scope="module", params=["helm", "helm4"])
def helm(request: pytest.FixtureRequest, kafka: None) -> str:
    """Helm 3 and Helm 4, whose server-side apply owns fields."""
    program(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def release(helm: str) -> Iterator[Release]:
    """A release with the values that the chart ships, and the producer."""
    release = Release(helm)
    release.uninstall()
    try:
        release.install("--wait", "--timeout", "120s")
        yield release
    finally:
        release.uninstall()


@pytest.fixture
def second(kafka: None) -> Iterator[Release]:
    """Another release in the same namespace, not installed yet."""
    release = Release("helm", "second", "-b")
    release.uninstall()
    yield release
    release.uninstall()
    kubectl("delete", "secret", "wrong-password", release.consumer, release.producer, "--ignore-not-found")
