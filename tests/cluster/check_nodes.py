"""Consumers on several nodes, KEDA, and an HPA: `make nodes`. Not a part of `make test`, for which it takes too long.

Each message that is handled is written again to the topic HANDLED, so `verify` counts there what was handled, and how
often.
"""

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kind import CONTEXT, Release, kubectl
from tests.cluster.nodes import (
    IMAGE,
    KUBECONFIG,
    WORKERS,
    Members,
    Numbers,
    Sending,
    cluster,
    make_topics,
    make_user,
    nodes_of,
    prometheus_adapter,
    verified,
)
from tests.documents import adapter_rules
from tests.programs import program
from workers.testing.processes import eventually

# The first test waits for the cluster, and for KEDA and the adapter, which are compiled the first time.
pytestmark = pytest.mark.timeout(4800)

TOPIC, HANDLED = "teste", "handled"
SEEN = KUBECONFIG.with_name("seen.jsonl")
# Messages a second: what one member handles at the most, what it copes with, and what needs three.
PACE, CALM, BURST = 150, 30, 400
BURST_MESSAGES = 16_000
# The part of the messages that rebalances may repeat: those that were handled since the last commit.
AGAIN = 0.02
SCALE_S = 240.0
SETTLE_S = 120.0
DRAIN_S = 180
ROLLOUTS = 3
HANDLER = f"""
from workers import Outgoing


def copy(message):
    return Outgoing(message.value(), partition=message.partition(), topic="{HANDLED}")
"""
VALUES: dict[str, Any] = {
    "consumer": {
        "options": {"handler": "copying:copy", "max-rate": PACE},
        "outputTopics": [HANDLED],
        "resources": {"requests": {"cpu": "20m"}},
        "volumes": [{"name": "handlers", "configMap": {"name": "handlers"}}],
        "volumeMounts": [{"name": "handlers", "mountPath": "/app", "readOnly": True}],
        # Those of docs/kubernetes.md, with shorter times.
        "keda": {
            "minReplicas": 0,
            "lagThreshold": 500,
            "pollingInterval": 5,
            "cooldownPeriod": 30,
            "fallback": {"failureThreshold": 3, "replicas": 3},
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 30}},
        },
        "hpa": {"lagThreshold": 500, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 30}}},
    },
    "lagExporter": {"options": {"interval": 5}, "resources": {"requests": {"cpu": "20m"}}},
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "handlers"}, "data": {"copying.py": HANDLER}}
    ],
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[None]:
    with cluster():
        make_topics(HANDLED)
        make_user("lag-exporter")
        yield


@pytest.fixture(scope="module", params=["helm", "helm4"])
def release(request: pytest.FixtureRequest, nodes: None) -> Iterator[Release]:
    """A release that is not installed yet."""
    program(request.param)
    release = Release(request.param)
    release.uninstall()
    yield release
    release.uninstall()


@pytest.fixture
def values(tmp_path: Path) -> tuple[str, ...]:
    """The settings of the release; the load is not that of its own producer, which would end with each upgrade."""
    path = tmp_path / "values.json"
    path.write_text(json.dumps(VALUES))
    return ("--values", str(path), "--set", f"image.tag={IMAGE.partition(':')[2]},producer.enabled=false")


@pytest.fixture
def token() -> str:
    """In the names of a test's runs, so that no two tests share one."""
    return secrets.token_hex(2)


@pytest.fixture
def adapter(release: Release) -> Iterator[None]:
    """An adapter with the rule of docs/kubernetes.md serves the exported lag. The release goes before KEDA is back."""
    with prometheus_adapter(adapter_rules()):
        yield
        release.uninstall()


def note(what: str, **figures: object) -> None:
    """Keeps what was seen, for docs/kubernetes.md."""
    line = json.dumps({"what": what, **figures})
    print(line)
    with SEEN.open("a") as file:
        file.write(line + "\n")


def check_account(*loads: Sending) -> dict[str, int]:
    """Fails unless everything that the loads sent is in the topic once, and was handled. Return the counts of all."""
    counts: dict[str, int] = {"acknowledged": 0, "handled": 0, "handled_again": 0}
    for load in loads:
        account = json.loads(load.account())
        there, handled = verified(load, TOPIC), verified(load, HANDLED)
        assert account["acknowledged"] == account["sent"] == there["present"]
        assert (there["missing"], there["duplicated"]) == (0, 0)
        assert (handled["missing"], handled["present"]) == (0, there["present"])
        counts["acknowledged"] += account["acknowledged"]
        counts["handled"] += handled["present"]
        counts["handled_again"] += handled["duplicated"]
    return counts


def through_a_burst(numbers: Numbers, token: str) -> tuple[Sending, dict[str, int]]:
    """Scales from one member to three and back. Return the burst, and the seconds that each way took."""
    with Sending(TOPIC, f"burst-{token}", "--count", str(BURST_MESSAGES), "--rate", str(BURST)) as burst:
        began = numbers.seconds
        three = numbers.until(3, SCALE_S) - began
        burst.account()
        ended = numbers.seconds
        back = numbers.until(1, SCALE_S) - ended
    return burst, {"from_1_to_3": round(three), "from_the_end_of_the_burst_to_1": round(back)}


def check_scaling(scaler: str, release: Release, numbers: Numbers, seconds: dict[str, int], *loads: Sending) -> None:
    """Notes what was seen of a scaler; fails unless everything that the loads sent was handled, and nearly all once."""
    helm = release.helm[0]
    note("told to have", scaler=scaler, helm=helm, members=[members for _, members in numbers.steps])
    note("seconds", scaler=scaler, helm=helm, **seconds)
    counts = check_account(*loads)
    note("account", scaler=scaler, helm=helm, **counts)
    assert counts["handled_again"] <= AGAIN * counts["handled"]


def test_an_hpa_scales_1_3_1_on_the_exported_lag_and_everything_is_handled(
    release: Release, adapter: None, values: tuple[str, ...], token: str
) -> None:
    release.install(*values, "--set", "consumer.hpa.enabled=true,lagExporter.enabled=true")
    with (
        Numbers(release.consumer) as numbers,
        Sending(TOPIC, f"calm-{token}", "--forever", "--rate", str(CALM)) as calm,
    ):
        # It has the lag from Prometheus.
        kubectl("wait", f"hpa/{release.consumer}", "--for=condition=ScalingActive", f"--timeout={SCALE_S:.0f}s")
        numbers.until(1, SCALE_S)
        burst, seconds = through_a_burst(numbers, token)
        calm.stop()
        eventually(lambda: release.group()["lag"] == 0, "all of it was handled", SETTLE_S)
    check_scaling("hpa", release, numbers, seconds, calm, burst)


def test_keda_scales_0_1_3_1_0_on_lag_and_everything_is_handled(
    release: Release, values: tuple[str, ...], token: str
) -> None:
    release.install(*values, "--set", "consumer.keda.enabled=true")
    with Numbers(release.consumer) as numbers:
        numbers.until(0, SCALE_S)
        with Sending(TOPIC, f"calm-{token}", "--forever", "--rate", str(CALM)) as calm:
            began = numbers.seconds
            one = numbers.until(1, SCALE_S) - began
            burst, seconds = through_a_burst(numbers, token)
            calm.stop()
            ended = numbers.seconds
        none = numbers.until(0, SCALE_S) - ended
    seconds = {"from_0_to_1": round(one), **seconds, "from_the_end_of_the_load_to_0": round(none)}
    check_scaling("keda", release, numbers, seconds, calm, burst)


def test_two_nodes_drained_at_once_under_load_leave_two_of_three_members_at_work(
    release: Release, values: tuple[str, ...], token: str
) -> None:
    # A test that failed may have left them closed.
    kubectl("uncordon", *WORKERS)
    # KEDA has scaled to none before; switched off, the value holds again.
    release.upgrade(*values, "--set", "consumer.replicas=3", "--install")
    selector = f"{release.selector},app.kubernetes.io/component=consumer"
    eventually(lambda: sorted(release.shares(), key=str) == [1, 1, 1], "each owns a partition", SETTLE_S)
    assert nodes_of(selector) == sorted(WORKERS)

    *drained, left = WORKERS
    with Sending(TOPIC, f"drain-{token}", "--forever", "--rate", "100") as load, Members(selector) as members:
        eventually(lambda: members.ready() == 3, "three are Ready", SETTLE_S)
        began = members.seconds
        drain(*drained)
        eventually(lambda: sorted(release.shares(), key=str) == [1, 1, 1], "each owns a partition", SETTLE_S)
        took = members.seconds - began
        assert nodes_of(selector) == [left] * 3
        fewest = members.fewest_ready(began)
        kubectl("uncordon", *drained)

        spread = []
        for _ in range(ROLLOUTS):
            kubectl("rollout", "restart", f"deploy/{release.consumer}")
            kubectl("rollout", "status", f"deploy/{release.consumer}", "--timeout=180s")
            spread.append(nodes_of(selector))
        load.stop()
    eventually(lambda: release.group()["lag"] == 0, "all of it was handled", SETTLE_S)
    counts = check_account(load)
    note(
        "drain of two nodes", helm=release.helm[0], seconds=round(took), fewest_ready=fewest,
        nodes_after_each_rollout=[len(set(each)) for each in spread], **counts,
    )  # fmt: skip
    assert fewest == 2
    assert spread == [sorted(WORKERS)] * ROLLOUTS
    assert counts["handled_again"] <= AGAIN * counts["handled"]


def drain(*nodes: str) -> None:
    """Drains nodes at once, as an upgrade of a cluster does."""
    options = ("--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={DRAIN_S}s")
    processes = [
        subprocess.Popen(
            ["kubectl", "--context", CONTEXT, "drain", node, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for node in nodes
    ]
    codes = [process.wait(DRAIN_S + 30) for process in processes]
    assert codes == [0] * len(nodes), f"kubectl drain of {', '.join(nodes)} ended with {codes}"
