"""The objects that the chart renders, with every switch on and off."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.chart.rendering import CHART, helm, one, render, second_release, template
from tests.chart.schemas import check, write_for_kubeconform
from tests.chart.values import SCHEMA, resolved, schema, table
from tests.documents import load, load_all
from tests.programs import program
from workers.cli.main import cli

PLAIN = ("strimzi.enabled=false", 'kafka.bootstrapServers="a:9092,b:9092"')
TLS = (*PLAIN, "kafka.tls.enabled=true", 'kafka.tls.caSecret="ca"')
SASL = (
    *TLS, 'kafka.sasl.mechanism="SCRAM-SHA-256"', 'kafka.sasl.username="me"', 'kafka.sasl.passwordSecret="mine"'
)  # fmt: skip
OAUTH = (
    *TLS, 'kafka.sasl.mechanism="OAUTHBEARER"', 'kafka.sasl.oauth={"tokenUrl":"https://login:8443/token",'
    '"clientId":"orders","clientSecret":"login","scope":"a b","extensions":"pool=1","caSecret":"login-ca"}',
)  # fmt: skip
MSK = (
    "strimzi.enabled=false", 'kafka.bootstrapServers="b-1:9098"', "kafka.tls.enabled=true",
    'kafka.sasl={"mechanism":"AWS_MSK_IAM","awsRegion":"eu-west-1"}',
)  # fmt: skip
JOB = "producer.enabled=true"
REGISTRY = (
    'schemaRegistry.url="http://registry:8081,https://other/path"', 'schemaRegistry.valueFormat="avro"',
    'schemaRegistry.keyFormat="json"', 'schemaRegistry.passwordSecret="registry"', 'schemaRegistry.username="me"',
    'schemaRegistry.caSecret="registry-ca"', 'schemaRegistry.properties={"timeout":5,"cache.capacity":1000000}',
)  # fmt: skip
# Of each value of `pod` one that the rendered objects have as text, with that text.
POD: dict[str, tuple[Any, str]] = {
    "serviceAccount": ({"annotations": {"role": "x"}, "labels": {"team": "a"}, "automount": True}, 'Token": true'),
    "annotations": ({"reloader": "on"}, "reloader"),
    "envFrom": ([{"secretRef": {"name": "more-variables"}}], "more-variables"),
    "initContainers": ([{"name": "wait", "image": "busybox"}], "busybox"),
    "sidecars": ([{"name": "proxy", "image": "envoy"}], "envoy"),
    "lifecycle": ({"preStop": {"sleep": {"seconds": 1}}}, "preStop"),
    "probes": ({"startup": {"failureThreshold": 601}}, '"failureThreshold": 601'),
    "env": ([{"name": "TZ", "value": "UTC"}], "UTC"),
    "volumes": ([{"name": "data", "emptyDir": {}}], "emptyDir"),
    "volumeMounts": ([{"name": "data", "mountPath": "/data"}], "/data"),
    "podLabels": ({"shift": "day"}, "shift"),
    "podAnnotations": ({"memo": "b"}, "memo"),
    "nodeSelector": ({"disk": "ssd"}, "ssd"),
    "tolerations": ([{"operator": "Exists"}], "Exists"),
    "affinity": ({"podAntiAffinity": {}}, "podAntiAffinity"),
    "priorityClassName": ("high", '"high"'),
    "podSpec": ({"runtimeClassName": "gvisor"}, "gvisor"),
}  # fmt: skip
WORKERS = ("consumer", "producer", "lagExporter", "canary")
EVERY_WORKER = (JOB, "lagExporter.enabled=true", "canary.enabled=true", 'consumers={"pay":{}}')


def given_to(*places: str) -> tuple[str, ...]:
    """The settings that give each place, `pod` or a worker, the values of POD."""
    return tuple(f"{place}.{name}={json.dumps(value)}" for place in places for name, (value, _) in POD.items())


SWITCHES: dict[str, tuple[str, ...]] = {
    "as shipped": (),
    "no consumer": ("consumer.enabled=false", JOB),
    "producer": (JOB, "test.write=true"),
    "producer for ever": (
        JOB, 'producer.options={"forever":true}', "producer.parallelism=2", "metrics.prometheusRule.enabled=true",
    ),
    "mTLS with Strimzi": ('strimzi.authentication="tls"',),
    "Strimzi elsewhere": (
        JOB, 'strimzi.namespace="kafka"', 'strimzi.caSecret="ca"', 'consumer.userSecret="mine"',
        "consumer.keda.enabled=true", 'kafka.secretKeys.ca="tls-ca.crt"', 'kafka.secretKeys.password="pass"',
    ),
    "no topic": ("strimzi.topic.create=false",),
    "no users": ("strimzi.users.create=false",),
    "plain": PLAIN,
    "TLS": TLS,
    "replay": ("strimzi.users.replay=true",),
    "topics that go with the release": ("strimzi.topic.keep=false",),
    "no ACLs": ("strimzi.users.acls=false",),
    "recreated pods": ('consumer.strategy.type="Recreate"',),
    "invalid lines": (JOB, 'producer.options={"on-invalid":"dead-letter","dead-letter-topic":"invalid"}',),
    "names that look like numbers": (
        JOB, 'kafka.topic="123"', 'consumer.name="456"', 'producer.name="789"', 'consumer.groupId="1e3"',
        "consumer.keda.enabled=true", "metrics.prometheusRule.enabled=true",
    ),
    "numbers that Helm would write as 1e+06": (
        "consumer.keda.enabled=true", "consumer.keda.lagThreshold=1000000",
        JOB, "test.write=true", "test.count=1000000",
        "producer.ttlSecondsAfterFinished=1000000", 'strimzi.topic.config={"retention.ms":604800000}',
    ),
    "mTLS": (*TLS, 'kafka.tls.clientSecret="me"'),
    "mTLS as cert-manager writes it": (
        *TLS, 'kafka.tls.clientSecret="me"', 'kafka.secretKeys={"ca":"ca.crt","certificate":"tls.crt","key":"tls.key"}',
        "consumer.keda.enabled=true", "consumer.keda.maxReplicas=6",
    ),
    "SASL": SASL,
    "user's name from a Secret": (
        *TLS, 'kafka.sasl.mechanism="PLAIN"', 'kafka.sasl.passwordSecret="mine"', 'kafka.secretKeys.username="user"',
        "consumer.keda.enabled=true", "consumer.keda.maxReplicas=6",
    ),
    "OAUTHBEARER": (
        *OAUTH, JOB, "lagExporter.enabled=true", "networkPolicy.enabled=true", "test.write=true",
        "consumer.keda.enabled=true", "consumer.keda.maxReplicas=6", "kafka.rack.fromZone=true",
    ),
    "OAUTHBEARER with the client's id from a Secret": (
        *OAUTH, 'kafka.secretKeys={"clientId":"id","clientSecret":"secret"}', "consumer.keda.enabled=true",
        "consumer.keda.maxReplicas=6", 'kafka.rack.name="a"',
    ),
    "Amazon MSK with IAM": (
        *MSK, JOB, "networkPolicy.enabled=true", "consumer.keda.enabled=true", "consumer.keda.maxReplicas=6",
        'consumer.serviceAccount.annotations={"eks.amazonaws.com/role-arn":"arn:aws:iam::1:role/x"}',
    ),
    "compacted topics": ('strimzi.topic.config={"cleanup.policy":"compact","min.insync.replicas":2}',),
    "dead letters for a year": ('strimzi.deadLetterTopic={"partitions":1,"config":{"retention.ms":31536000000}}',),
    "replicas of an autoscaler of one's own": ("consumer.replicas=null", "metrics.prometheusRule.enabled=true"),
    "no fixed ids": (JOB, 'adaptSecurityContext="force"'),
    "extension points": (
        JOB, *(f"{worker}.{setting}" for worker in WORKERS for setting in (
            'serviceAccount={"annotations":{"eks.amazonaws.com/role-arn":"arn:aws:iam::1:role/x"},"labels":{"team":"a"},'
            '"automount":true}',
            'podSpec={"runtimeClassName":"gvisor","schedulerName":"mine","hostUsers":false,"dnsPolicy":"None",'
            '"dnsConfig":{"nameservers":["10.0.0.1"]},"hostAliases":[{"ip":"10.0.0.2","hostnames":["kafka-1"]}]}',
            'annotations={"reloader.stakater.com/auto":"true"}', 'envFrom=[{"secretRef":{"name":"x"}}]',
            'initContainers=[{"name":"wait","image":"busybox"}]', 'sidecars=[{"name":"proxy","image":"envoy"}]',
            'lifecycle={"preStop":{"sleep":{"seconds":1}}}', "probes.startup.failureThreshold=600",
            'podSecurityContext={"fsGroup":1}', 'securityContext={"readOnlyRootFilesystem":false}',
            'image={"repository":"orders","tag":"7"}',
        )),
        "lagExporter.enabled=true", "canary.enabled=true", 'image.digest="sha256:' + 64 * "0" + '"',
        'extraObjects=[{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"{{ .Release.Name }}-more"}}]',
    ),
    "values of every pod": (*EVERY_WORKER, *given_to("pod"), 'pod.resources={"requests":{"cpu":"1m"}}'),
    "one ServiceAccount for all": (*EVERY_WORKER, 'pod.serviceAccount={"create":false,"name":"theirs"}'),
    "a ServiceAccount that is there": ("consumer.serviceAccount.create=false", 'consumer.serviceAccount.name="theirs"'),
    "schedule": (JOB, 'producer.schedule="0 * * * *"'),
    "schedule with everything": (
        JOB, 'producer.schedule="0 3 * * *"', "producer.activeDeadlineSeconds=3600",
        'producer.cronJob={"timeZone":"Europe/Berlin","suspend":true,"concurrencyPolicy":"Replace",'
        '"startingDeadlineSeconds":300,"successfulJobsHistoryLimit":1,"failedJobsHistoryLimit":0}',
    ),
    "parallel producers": (JOB, "producer.parallelism=4", "producer.ttlSecondsAfterFinished=60"),
    "properties": ('kafka.properties={"client.rack":"a","fetch.max.bytes":1000000}',),
    "schema registry": (*REGISTRY, JOB, 'producer.options={"source":"orders:outbox"}', "networkPolicy.enabled=true"),
    "schema registry without a password": (
        JOB, 'schemaRegistry.url="https://registry"', 'schemaRegistry.caSecret="ca"', 'schemaRegistry.keyFormat="json"',
    ),
    "JSON without a registry": ('schemaRegistry.valueFormat="json"', "lagExporter.enabled=true"),
    "KEDA": ("consumer.keda.enabled=true",),
    "KEDA without secrets": (*PLAIN, "consumer.keda.enabled=true", "consumer.keda.maxReplicas=6"),
    "KEDA with a certificate only": (
        *PLAIN, "kafka.tls.enabled=true", 'kafka.tls.clientSecret="me"',
        "consumer.keda.enabled=true", "consumer.keda.maxReplicas=6",
    ),
    "KEDA with mTLS": ('strimzi.authentication="tls"', "consumer.keda.enabled=true"),
    "KEDA to zero and with its numbers": (
        "consumer.keda.enabled=true", "consumer.keda.minReplicas=0", "consumer.keda.activationLagThreshold=5",
        "consumer.keda.pollingInterval=5", "consumer.keda.cooldownPeriod=60",
        'consumer.keda.fallback={"failureThreshold":3,"replicas":3}',
        'consumer.keda.behavior={"scaleDown":{"stabilizationWindowSeconds":60}}',
    ),
    "HPA": (
        'consumer={"topics":["pay","refunds"],"hpa":{"enabled":true,"lagThreshold":1000000}}',
        "lagExporter.enabled=true", "metrics.prometheusRule.enabled=true",
        'metrics.prometheusRule.disabled=["KafkaConsumerLagHigh"]', 'metrics.prometheusRule.alertLabels={"team":"123"}',
        'consumer.hpa.behavior={"scaleDown":{"stabilizationWindowSeconds":60}}',
    ),
    "HPA without Strimzi": (*PLAIN, "consumer.hpa.enabled=true", "consumer.hpa.maxReplicas=6"),
    "KEDA on several topics with a behaviour": (
        'consumer={"topics":["pay","refunds"],"keda":{"enabled":true,"lagThreshold":1000000,"behavior":'
        '{"scaleDown":{"stabilizationWindowSeconds":60}},"fallback":{"failureThreshold":3,"replicas":3}}}',
    ),
    "a password that is sent unencrypted": (
        *PLAIN, 'kafka.sasl={"mechanism":"PLAIN","username":"me","passwordSecret":"mine","allowPlaintext":true}',
    ),
    "no disruption budget": ("consumer.podDisruptionBudget.enabled=false",),
    "a share of the members at a time": (
        'consumer.podDisruptionBudget.maxUnavailable="25%"',
        'consumers={"pay":{"podDisruptionBudget":{"maxUnavailable":2}}}',
    ),
    "few old ReplicaSets": ("revisionHistoryLimit=0", "lagExporter.enabled=true"),
    "producers on several nodes": (
        JOB, "producer.parallelism=2", 'producer.topologySpreadConstraints=[{"maxSkew":1,'
        '"topologyKey":"topology.kubernetes.io/zone","whenUnsatisfiable":"DoNotSchedule"}]',
    ),
    "a scrape with everything": (
        "metrics.podMonitor.enabled=true", 'metrics.podMonitor.annotations={"a":"b"}',
        'metrics.podMonitor.podTargetLabels=["team"]',
        'metrics.podMonitor.endpoint={"scrapeTimeout":"10s","honorLabels":true,'
        '"relabelings":[{"sourceLabels":["__meta_kubernetes_pod_node_name"],"targetLabel":"node"}],'
        '"metricRelabelings":[{"action":"drop","sourceLabels":["__name__"],"regex":"kafka_client_info"}]}',
        "metrics.dashboard.enabled=true", 'metrics.dashboard.annotations={"grafana_folder":"Kafka"}',
    ),
    "pod monitor": ("metrics.podMonitor.enabled=true", 'metrics.podMonitor.labels={"release":"prometheus"}'),
    "alerts": ("metrics.prometheusRule.enabled=true",),
    "dashboard": ("metrics.dashboard.enabled=true",),
    "lag exporter": (
        "lagExporter.enabled=true", 'lagExporter.options={"group-filter":"orders-.*","interval":30,"keep":600}',
        "metrics.prometheusRule.enabled=true", "metrics.podMonitor.enabled=true", "networkPolicy.enabled=true",
    ),
    "canary": (
        "canary.enabled=true", 'canary.options={"interval":5,"max-latency":10}', "metrics.prometheusRule.enabled=true",
        "metrics.podMonitor.enabled=true", "networkPolicy.enabled=true",
        'strimzi.topics={"kafka-workers-canary":{"partitions":5}}',
    ),
    "canary only": (*TLS, "canary.enabled=true", "consumer.enabled=false", 'canary.topic="probes"'),
    "canary that creates its topic": ("canary.enabled=true", "strimzi.topic.create=false"),
    "lag exporter only": (
        *TLS, "lagExporter.enabled=true", "consumer.enabled=false",
        'lagExporter.properties={"client.rack":"a"}',
    ),
    "lag exporter with mTLS": ('strimzi.authentication="tls"', "lagExporter.enabled=true"),
    "several consumers": (
        'consumers={"pay":{"topics":["pay","refunds"],"keda":{"enabled":true},"options":{"handler":"pay:store"}},"audit":{"replicas":0}}',
        'consumer.options={"max-attempts":3}', 'kafka.properties={"client.rack":"a"}',
        'strimzi.topics={"pay":{"partitions":12,"config":{"retention.ms":604800000}}}',
        "metrics.prometheusRule.enabled=true", "metrics.podMonitor.enabled=true", "networkPolicy.enabled=true",
        "lagExporter.enabled=true",
    ),
    "consumers of the map only": ("consumer.enabled=false", 'consumers={"pay":{"topics":["pay"]}}'),
    "names of one's own": ('nameOverride="orders"', 'fullnameOverride="second"', "metrics.dashboard.enabled=true"),
    "tracing": (
        JOB, "tracing.enabled=true", 'tracing.endpoint="http://otel.observability:4318"', "networkPolicy.enabled=true",
        'tracing.environment={"OTEL_TRACES_SAMPLER":"parentbased_traceidratio","OTEL_TRACES_SAMPLER_ARG":0.1}',
        'consumer.options={"exactly-once":true}', 'consumers={"quiet":{"options":{"tracing":false}}}',
        "lagExporter.enabled=true",
    ),
    "network policy": ("networkPolicy.enabled=true", 'networkPolicy.scrapers=[{"namespaceSelector":{}}]'),
    "hooks": (
        'consumer.env=[{"name":"TZ","value":"UTC"}]',
        'consumer.volumes=[{"name":"data","emptyDir":{}}]',
        'consumer.volumeMounts=[{"name":"data","mountPath":"/data"}]',
        'consumer.podLabels={"team":"a"}',
        'consumer.nodeSelector={"disk":"ssd"}',
        'consumer.tolerations=[{"operator":"Exists"}]',
        'consumer.affinity={"nodeAffinity":{}}',
        'consumer.priorityClassName="high"',
        "consumer.topologySpreadConstraints=[]",
        'commonLabels={"owner":"us"}',
        'imagePullSecrets=[{"name":"pull"}]',
        'image.digest="sha256:' + 64 * "0" + '"',
    ),
}  # fmt: skip


@pytest.mark.parametrize("switch", SWITCHES)
def test_whatever_is_switched_the_objects_are_what_kubernetes_and_strimzi_take(switch: str) -> None:
    documents = render(*SWITCHES[switch])
    assert documents
    for document in documents:
        check(document)
        # Or else what applies a rendering has to know the namespace.
        assert document["metadata"]["namespace"] in ("default", "kafka")
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("switch", SWITCHES)
def test_helm_3_and_helm_4_render_the_same(switch: str) -> None:
    assert render(*SWITCHES[switch], program="helm4") == render(*SWITCHES[switch])


def pod_specs(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The specification of every pod that the objects make, by kind and name."""
    found = {}
    for document in documents:
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if document["kind"] == "Pod":
            found[f"Pod {document['metadata']['name']}"] = spec
        elif "containers" in spec.get("template", {}).get("spec", {}):
            found[f"{document['kind']} {document['metadata']['name']}"] = spec["template"]["spec"]
    return found


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_service_in_the_namespace_sets_no_variable_of_a_pod(switch: str) -> None:
    """One called kafka-metrics would set KAFKA_METRICS_PORT to tcp://10.0.0.1:8000."""
    specs = pod_specs(render(*SWITCHES[switch]))
    assert specs
    assert {name: spec.get("enableServiceLinks") for name, spec in specs.items()} == dict.fromkeys(specs, False)


def notes(*settings: str) -> str:
    """The text that `helm install` ends with. Helm 3 renders it only where a cluster answers."""
    options = [word for setting in settings for word in ("--set-json", setting)]
    result = helm("install", "workers", str(CHART), "--dry-run=client", *options, program="helm4")
    assert result.returncode == 0, result.stderr
    return result.stdout.partition("\nNOTES:\n")[2]


def test_the_notes_suggest_verify_with_the_user_that_may_read() -> None:
    shipped = notes('consumer.name="readers"')
    assert re.findall(r"exec (\S+) -- kafka-workers verify", shipped) == ["deploy/readers"]
    assert "The consumers' user may read it, the producer's only write" in shipped
    assert "verify" not in notes("consumer.enabled=false")
    # It reads one topic.
    several = notes('consumers={"pay":{"topics":["pay","refunds"]}}')
    assert re.findall(r"consumer-pay -- kafka-workers verify(.*)", several) == [" --topic pay", " --topic refunds"]


def test_the_notes_name_the_group_and_warn_where_it_is_that_of_every_release() -> None:
    warning = "A release with the same group on the same brokers"
    shipped = notes()
    assert "consumer reads teste in the group kafka-workers." in shipped
    assert warning in shipped
    for own in ('fullnameOverride="second"', 'consumer.groupId="orders"', "consumer.enabled=false"):
        assert warning not in notes(own)


def test_the_notes_warn_of_alerts_that_nothing_is_scraped_for() -> None:
    warning = "WARNING: metrics.prometheusRule.enabled is true, and metrics.podMonitor.enabled is false."
    assert warning in notes("metrics.prometheusRule.enabled=true")
    assert warning not in notes()
    assert warning not in notes("metrics.prometheusRule.enabled=true", "metrics.podMonitor.enabled=true")


def test_the_notes_say_that_a_changed_job_sends_everything_again() -> None:
    assert "An upgrade that changes its pod runs the whole Job again" in notes(JOB)
    assert "Job" not in notes()


def test_kubeconform_finds_nothing_whatever_is_switched(tmp_path: Path) -> None:
    kubeconform = program("kubeconform")
    schemas, manifests = tmp_path / "schemas", tmp_path / "manifests"
    schemas.mkdir()
    manifests.mkdir()
    for switch, settings in SWITCHES.items():
        (manifests / f"{switch}.yaml").write_text(template(*settings).stdout)
    location = write_for_kubeconform(schemas)
    result = subprocess.run(
        [kubeconform, "-strict", "-summary", "-schema-location", location, str(manifests)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"in {len(SWITCHES)} files" in result.stdout


@pytest.mark.parametrize("program", ["helm", "helm4"])
def test_helm_lint_finds_nothing(program: str) -> None:
    result = helm("lint", "--strict", str(CHART), program=program)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("consumer.replica=3", "'replica' not allowed"),
        ('consumer.replicas="three"', "got string, want null or integer"),
        ('consumer.options={"max-attempt":3}', "'max-attempt' not allowed"),
        ('consumer.options={"on-error":"ignore"}', "'retry', 'dead-letter', 'stop'"),
        ('producer.options={"count":0}', "minimum"),
        ('kafka.topic="no spaces"', "pattern"),
        ('kafka.bootstrapServers="nowhere"', "pattern"),
        ("strimzi.enabled=false", "kafka.bootstrapServers is needed when strimzi.enabled is false"),
        ('image.digest="latest"', "pattern"),
        ('producer.schedule="hourly"', "pattern"),
        ('kafka.sasl.mechanism="PLAIN"', "/kafka/sasl/passwordSecret"),
        ('kafka.sasl={"mechanism":"PLAIN","passwordSecret":"x"}', "/kafka/sasl/username"),
        ('kafka.sasl.mechanism="OAUTHBEARER"', "/kafka/sasl/oauth/tokenUrl"),
        (
            'kafka.sasl={"mechanism":"OAUTHBEARER","oauth":{"tokenUrl":"https://a","clientSecret":"x"}}',
            "/kafka/sasl/oauth/clientId",
        ),
        ('kafka.sasl={"oauth":{"tokenUrl":"login"}}', "/kafka/sasl/oauth/tokenUrl"),
        ('kafka.sasl={"mechanism":"AWS_MSK_IAM"}', "/kafka/tls/enabled"),
        ('kafka.rack={"name":"a","fromZone":true}', "/kafka/rack/name"),
        ('producer={"schedule":"@daily","options":{"forever":true}}', "/producer/schedule"),
        ("test.write=true", "set producer.enabled=true"),
        (
            'strimzi.deadLetterTopic.config={"cleanup.policy":"compact"}',
            "/strimzi/deadLetterTopic/config/cleanup.policy",
        ),
        ('commonLabels={"app.kubernetes.io/name":"x"}', "/commonLabels"),
        ('consumer.podLabels={"app.kubernetes.io/component":"x"}', "/consumer/podLabels"),
        ('consumers={"pay":{"podLabels":{"app.kubernetes.io/instance":"x"}}}', "/consumers/pay/podLabels"),
        ('pod.podLabels={"app.kubernetes.io/name":"x"}', "/pod/podLabels"),
        ("pod.replicas=1", "'replicas' not allowed"),
        ('pod.serviceAccount.name="theirs"', "/pod/serviceAccount/create"),
        ("pod.probes.startup=null", "at '/pod/probes': missing property 'startup'"),
        ("pod.env=null", "at '/pod': missing property 'env'"),
        ("pod=null", "missing property 'pod'"),
        ('metrics.podMonitor.labels={"app.kubernetes.io/instance":"x"}', "/metrics/podMonitor/labels"),
        ('commonLabels={"team":null}', "at '/commonLabels/team': got null"),
        ('consumer.podSpec={"containers":[]}', "at '/consumer/podSpec/containers': false schema"),
        ('lagExporter.podSpec={"serviceAccountName":"x"}', "at '/lagExporter/podSpec/serviceAccountName'"),
        ('consumers={"pay":{"podSpec":{"tolerations":[]}}}', "at '/consumers/pay/podSpec/tolerations'"),
        ('metrics.podMonitor.endpoint={"interval":"1m"}', "at '/metrics/podMonitor/endpoint/interval'"),
        ("consumer.podDisruptionBudget.maxUnavailable=0", "at '/consumer/podDisruptionBudget/maxUnavailable'"),
        ('consumer.podDisruptionBudget.maxUnavailable="half"', "pattern"),
        ("revisionHistoryLimit=-1", "at '/revisionHistoryLimit'"),
        ("metrics.prometheusRule.certificateExpiryDays=null", "missing property 'certificateExpiryDays'"),
        ("consumer=null", "missing property 'consumer'"),
        ("consumer.options=null", "at '/consumer': missing property 'options'"),
        ("strimzi.topic=null", "at '/strimzi': missing property 'topic'"),
        ("kafka.properties=null", "at '/kafka': missing property 'properties'"),
        ("commonLabels=null", "missing property 'commonLabels'"),
        ('consumers={"pay":null}', "/consumers/pay"),
        ('kafka.tls.clientSecret="me"', "/kafka/tls/enabled"),
        ("networkPolicy.kafkaPorts=[]", "/networkPolicy/kafkaPorts"),
        ('consumer.env=[{"name":"KAFKA_TOPIC","value":"x"}]', "consumer.env: KAFKA_TOPIC is set by the chart"),
        (
            'producer={"enabled":true,"env":[{"name":"KAFKA_LINGER","value":"1"}]}',
            "producer.env: KAFKA_LINGER is set by the chart",
        ),
        ('consumer.env=[{"name":"KAFKA_METRICS_PORT","value":"1"}]', "KAFKA_METRICS_PORT is set by the chart"),
        ('pod.env=[{"name":"KAFKA_TOPIC","value":"x"}]', "pod.env: KAFKA_TOPIC is set by the chart"),
        ('kafka.properties={"security.protocol":"ssl"}', "security.protocol is set by the chart"),
        ('consumer.properties={"sasl.password":"x"}', "sasl.password would be in a ConfigMap"),
        ('consumer.properties={"sasl.pasword":"x"}', "sasl.pasword would be in a ConfigMap"),
        ('kafka.properties={"sasl.oauthbearer.assertion.private.key.passphrase":"x"}', "passphrase would be"),
        ('kafka.properties={"group.instance.id":"x"}', "group.instance.id would be the same in every pod"),
        ('consumer.properties={"group.instance.id":"x"}', "fence all members with one id but the last"),
        ('producer={"enabled":true,"options":{"forever":true,"run":"a"}}', "counts as duplicates; leave run out"),
        ('metrics.prometheusRule.disabled=["KafkaLagHigh"]', "'KafkaConsumerLagRising', 'KafkaConsumerLagHigh', "),
        ('metrics.prometheusRule.alertLabels={"severity":"page"}', "/metrics/prometheusRule/alertLabels/severity"),
        ('metrics.prometheusRule.alertLabels={"on-call":"us"}', "on-call"),
        ("consumer.alerts.lagMessages=0", "at '/consumer/alerts/lagMessages'"),
        ("consumer.alerts=null", "at '/consumer': missing property 'alerts'"),
        ("kafka.tls.enabled=true", "kafka.tls and kafka.sasl are for strimzi.enabled=false"),
        ("strimzi.topic.replicas=1", "min.insync.replicas is more than strimzi.topic.replicas"),
        ('consumer.name="producer"', "consumer.name and producer.name are the same"),
        ('lagExporter.name="consumer"', "consumer.name and lagExporter.name are the same"),
        ('consumers={"pay":{"name":"consumer"}}', "consumer.name and consumers.pay.name are the same"),
        ('consumers={"pay":{"replica":1}}', "'replica' not allowed"),
        ('consumers={"Pay":{}}', "at '/consumers': additional properties 'Pay' not allowed"),
        ('strimzi.topics={"no topic":{}}', "at '/strimzi/topics': additional properties 'no topic' not allowed"),
        ('consumers={"pay":{"env":[{"name":"KAFKA_TOPIC"}]}}', "consumers.pay.env: KAFKA_TOPIC is set by the chart"),
        ('strimzi.topics={"teste":{"replicas":1}}', "strimzi.topics.teste.replicas, so nothing could be written"),
        ('lagExporter.options={"group":"x"}', "'group' not allowed"),
        ('canary.options={"intervall":1}', "'intervall' not allowed"),
        ('canary.topicConfig={"cleanup.policy":"compact"}', "/canary/topicConfig/cleanup.policy"),
        ('canary.name="consumer"', "consumer.name and canary.name are the same"),
        ("canary=null", "missing property 'canary'"),
        ('tracing.environment={"KAFKA_TOPIC":"x"}', "'KAFKA_TOPIC' not allowed"),
        ('tracing.endpoint="otel:4318"', "/tracing/endpoint"),
        (
            'tracing={"enabled":true,"environment":{"OTEL_EXPORTER_OTLP_HEADERS":"key=x"}}',
            "OTEL_EXPORTER_OTLP_HEADERS would be in the pod's specification",
        ),
        ('schemaRegistry.valueFormat="avro"', "/schemaRegistry/url"),
        ('consumer.options.handler="shop.handlers"', "at '/consumer/options/handler'"),
        ('consumer.options.handler="shop/handlers.py:total"', "at '/consumer/options/handler'"),
        ('consumer.options.middleware="a:b c"', "at '/consumer/options/middleware'"),
        ('producer.options.source="outbox"', "at '/producer/options/source'"),
        ('schemaRegistry.url="https://me:horse@registry"', "/schemaRegistry/url"),
        ('schemaRegistry.username="me"', "/schemaRegistry/passwordSecret"),
        ("schemaRegistry.properties=null", "at '/schemaRegistry': missing property 'properties'"),
        (
            'schemaRegistry={"url":"http://a","properties":{"basic.auth.user.info":"x"}}',
            "basic.auth.user.info would be in the pod for everybody to read",
        ),
    ],
)
def test_a_mistyped_value_is_refused_by_name(setting: str, says: str) -> None:
    result = template(setting)
    assert result.returncode != 0
    assert says in result.stderr


@pytest.mark.parametrize(
    ("sasl", "secret"),
    [
        ('"mechanism":"PLAIN","username":"me","passwordSecret":"mine"', "the password"),
        (
            '"mechanism":"OAUTHBEARER","oauth":{"tokenUrl":"https://login","clientId":"me","clientSecret":"mine"}',
            "the token",
        ),
        ('"mechanism":"SCRAM-SHA-512","username":"me","passwordSecret":"mine"', None),
    ],
)
def test_a_secret_is_sent_unencrypted_only_where_that_is_accepted(sasl: str, secret: str | None) -> None:
    refused = template(*PLAIN, f"kafka.sasl={{{sasl}}}")
    if secret is None:
        assert refused.returncode == 0, refused.stderr
        return
    assert f"without kafka.tls.enabled=true sends {secret} unencrypted; enable TLS" in refused.stderr
    assert template(*PLAIN, "kafka.tls.enabled=true", f"kafka.sasl={{{sasl}}}").returncode == 0
    accepted = one(render(*PLAIN, f'kafka.sasl={{{sasl},"allowPlaintext":true}}'), "Deployment")
    assert environment(accepted)["KAFKA_SECURITY_PROTOCOL"] == "sasl_plaintext"


def test_without_strimzi_keda_has_to_be_told_the_number_of_partitions() -> None:
    assert "consumer.keda.maxReplicas is needed" in template(*PLAIN, "consumer.keda.enabled=true").stderr
    too_many = template("consumer.keda.enabled=true", "consumer.keda.minReplicas=4")
    assert "consumer.keda.minReplicas is more than there are partitions" in too_many.stderr
    assert "consumer.hpa.maxReplicas is needed" in template(*PLAIN, "consumer.hpa.enabled=true").stderr


def test_keda_and_an_hpa_do_not_scale_one_consumer() -> None:
    both = template("consumer.keda.enabled=true", "consumer.hpa.enabled=true")
    assert "consumer.keda and consumer.hpa would both scale it; enable one of them" in both.stderr


@pytest.mark.parametrize("schedule", ["*/5 * * * *", "0 3 * * MON-FRI", "@daily"])
def test_schedules_that_kubernetes_takes_are_taken(schedule: str) -> None:
    assert one(render(JOB, f"producer.schedule={json.dumps(schedule)}"), "CronJob")["spec"]["schedule"] == schedule


def options_of(command: str) -> set[str]:
    parameters = cli.commands[command].params
    return {parameter.opts[-1].removeprefix("--") for parameter in parameters if isinstance(parameter, click.Option)}


# Options that the chart sets from values of its own.
OWN = {
    "topic", "group-id", "bootstrap-servers", "security-protocol", "sasl-mechanism", "sasl-username",
    "sasl-password-file", "ssl-ca-location", "ssl-certificate-location", "ssl-key-location",
    "ssl-key-password-file", "property", "properties-file", "metrics-port", "metrics-host", "no-metrics",
    "shutdown-timeout", "linger", "show-config", "help", "transactional-id", "schema-registry-url",
    "schema-registry-username", "schema-registry-password-file", "schema-registry-ca-location",
    "schema-registry-property", "schema-registry-properties-file", "oauth-token-url", "oauth-client-id",
    "oauth-client-secret-file", "oauth-scope", "oauth-extensions", "oauth-ca-location", "aws-region", "client-rack",
}  # fmt: skip


@pytest.mark.parametrize(
    ("worker", "command", "own"),
    [
        ("consumer", "consume", OWN),
        ("producer", "produce", OWN),
        ("lagExporter", "lag-exporter", OWN - {"topic", "group-id"}),
        ("canary", "canary", OWN - {"group-id"}),
    ],
)
def test_the_schema_knows_just_the_options_of_the_commands(worker: str, command: str, own: set[str]) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = schema["properties"][worker]
    values = schema["definitions"][worker] if "$ref" in values else values
    known = set(values["properties"]["options"]["properties"])
    assert known == options_of(command) - own


def test_the_schema_and_the_values_have_the_same_names() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    pod = schema["definitions"]["pod"]["properties"]

    def compare(part: dict[str, Any], values: dict[str, Any], path: str) -> None:
        part = resolved(schema, part)
        # An open map, as labels, has the names that its user gives it; an empty one has no defaults.
        if not values or part.get("additionalProperties") is not False:
            return
        # A parent chart passes these on, and a probe may begin late.
        known = part["properties"].keys() - {"enabled", "global", "initialDelaySeconds"}
        if path.removeprefix(".") in WORKERS:
            # It has the defaults of `pod`.
            known -= pod.keys() - values.keys()
        assert known == values.keys() - {"enabled"}, path
        for name, value in values.items():
            if isinstance(value, dict):
                compare(part["properties"][name], value, f"{path}.{name}")

    compare(schema, load((CHART / "values.yaml").read_text()), "")


def test_the_schema_describes_the_values_of_a_pod_once_for_all_workers() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    for worker in WORKERS:
        values = resolved(schema, schema["properties"][worker])["properties"]
        for name in schema["definitions"]["pod"]["properties"]:
            assert values[name]["$ref"] == f"#/definitions/pod/properties/{name}", worker


def test_the_readme_and_the_schema_say_of_every_value_what_values_yaml_says() -> None:
    remedy = "run python -m tests.chart.values"
    assert table() in (CHART / "README.md").read_text(), remedy
    assert SCHEMA.read_text() == schema(), remedy


def container(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["spec"]["template"]["spec"]["containers"][0]
    return found


def environment(document: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(document)["env"] if "value" in each}


def test_options_become_variables_that_the_worker_reads() -> None:
    settings = ('producer.options={"count":2000000,"rate":0.5,"stamp":true,"run":"a b"}',)
    variables = environment(one(render(JOB, *settings), "Job"))
    assert variables["KAFKA_COUNT"] == "2000000"
    assert variables["KAFKA_RATE"] == "0.5"
    assert variables["KAFKA_STAMP"] == "true"
    assert variables["KAFKA_RUN"] == "a b"


def test_several_topics_are_one_variable_that_the_consumer_takes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = by_name(render(*SWITCHES["several consumers"]), "Deployment")["consumer-pay"]
    monkeypatch.setenv("KAFKA_TOPIC", environment(consumer)["KAFKA_TOPIC"])
    assert cli.commands["consume"].make_context("consume", []).params["topics"] == ("pay", "refunds")


def test_a_consumer_with_exactly_once_has_its_pods_name_as_its_transactional_id_and_a_right_to_it() -> None:
    plain = render()
    assert "KAFKA_TRANSACTIONAL_ID" not in environment(one(plain, "Deployment", "consumer"))
    assert "transactionalId" not in json.dumps(one(plain, "KafkaUser", "consumer"))

    exact = render('consumer.options={"exactly-once":true}', 'consumer.outputTopics=["out"]')
    container = one(exact, "Deployment", "consumer")["spec"]["template"]["spec"]["containers"][0]
    variables = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
    assert variables["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert variables["KAFKA_TRANSACTIONAL_ID"] == "kafka-workers-$(POD_NAME)"
    # Kubernetes puts in only what stands before.
    assert [*variables].index("POD_NAME") < [*variables].index("KAFKA_TRANSACTIONAL_ID")
    acls = one(exact, "KafkaUser", "consumer")["spec"]["authorization"]["acls"]
    writes = {"operations": ["Describe", "Write"]}
    assert {
        "resource": {"type": "transactionalId", "name": "kafka-workers-", "patternType": "prefix"},
        **writes,
    } in acls
    assert {"resource": {"type": "topic", "name": "out", "patternType": "literal"}, **writes} in acls


def test_oauthbearer_gives_every_worker_the_endpoint_and_the_secret_of_the_client_as_a_file() -> None:
    documents = render(*SWITCHES["OAUTHBEARER"])
    for kind, name in (("Deployment", "consumer"), ("Deployment", "lag-exporter"), ("Job", "producer")):
        workload = one(documents, kind, name)
        told = environment(workload)
        assert told["KAFKA_SASL_MECHANISM"] == "OAUTHBEARER"
        assert told["KAFKA_OAUTH_TOKEN_URL"] == "https://login:8443/token"
        assert told["KAFKA_OAUTH_CLIENT_ID"] == "orders"
        assert told["KAFKA_OAUTH_CLIENT_SECRET_FILE"] == "/etc/kafka-workers/oauth/client-secret"
        assert told["KAFKA_OAUTH_CA_LOCATION"] == "/etc/kafka-workers/oauth-ca"
        assert not [each for each in told if each.startswith("KAFKA_SASL_PASSWORD")]
        mounts = {each["name"]: each["mountPath"] for each in container(workload)["volumeMounts"]}
        volumes = {each["name"]: each["secret"] for each in workload["spec"]["template"]["spec"]["volumes"]}
        assert (mounts["oauth"], mounts["oauth-ca"]) == ("/etc/kafka-workers/oauth", "/etc/kafka-workers/oauth-ca")
        assert volumes["oauth"]["secretName"] == "login"
        assert volumes["oauth"]["items"] == [{"key": "client-secret", "path": "client-secret"}]
    assert {"port": 8443, "protocol": "TCP"} in one(documents, "NetworkPolicy")["spec"]["egress"][1]["ports"]


def test_values_of_another_mechanism_reach_no_pod() -> None:
    documents = render(*SASL, 'kafka.sasl.awsRegion="eu-west-1"', 'kafka.sasl.oauth={"tokenUrl":"https://login"}')
    told = environment(one(documents, "Deployment", "consumer"))
    assert told["KAFKA_SASL_PASSWORD_FILE"]
    assert not [each for each in told if "AWS" in each or "OAUTH" in each]


def test_amazon_msk_needs_no_secret_and_a_way_to_aws() -> None:
    documents = render(*SWITCHES["Amazon MSK with IAM"])
    told = environment(one(documents, "Deployment", "consumer"))
    assert (told["KAFKA_SASL_MECHANISM"], told["KAFKA_AWS_REGION"]) == ("AWS_MSK_IAM", "eu-west-1")
    assert not [each for each in told if "PASSWORD" in each or "OAUTH" in each]
    assert {"port": 443, "protocol": "TCP"} in one(documents, "NetworkPolicy")["spec"]["egress"][1]["ports"]
    assert {"port": 9098, "protocol": "TCP"} in one(documents, "NetworkPolicy")["spec"]["egress"][1]["ports"]
    account = one(documents, "ServiceAccount", "consumer")
    assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] == "arn:aws:iam::1:role/x"


@pytest.mark.parametrize(
    ("settings", "rack"),
    [
        ((), None),
        (('kafka.rack.name="a"',), {"value": "a"}),
        (
            ("kafka.rack.fromZone=true",),
            {"valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['topology.kubernetes.io/zone']"}}},
        ),
    ],
)
def test_the_rack_is_a_name_or_the_zone_of_the_node_and_consumers_have_it(
    settings: tuple[str, ...], rack: dict[str, Any] | None
) -> None:
    documents = render(JOB, *settings)
    consumer, producer = (
        {each.pop("name"): each for each in container(one(documents, kind, name))["env"]}
        for kind, name in (("Deployment", "consumer"), ("Job", "producer"))
    )
    assert consumer.get("KAFKA_CLIENT_RACK") == rack
    assert "KAFKA_CLIENT_RACK" not in producer


def test_tracing_gives_consumers_and_producer_the_variables_of_opentelemetry_and_a_way_to_the_collector() -> None:
    plain = render(JOB, "networkPolicy.enabled=true")
    assert not any("OTEL_" in name or name == "KAFKA_TRACING" for name in environment(one(plain, "Job")))

    documents = render(*SWITCHES["tracing"])
    deployments = by_name(documents, "Deployment")
    for document in (deployments["consumer"], one(documents, "Job")):
        variables = environment(document)
        name = document["metadata"]["labels"]["app.kubernetes.io/component"]
        assert {key: value for key, value in variables.items() if "OTEL_" in key or key == "KAFKA_TRACING"} == {
            "KAFKA_TRACING": "true",
            "OTEL_SERVICE_NAME": name,
            "OTEL_RESOURCE_ATTRIBUTES": "k8s.namespace.name=default,k8s.pod.name=$(POD_NAME)",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel.observability:4318",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.1",
        }
        order = [each["name"] for each in container(document)["env"]]
        # Kubernetes puts in only what stands before.
        assert order.index("POD_NAME") < order.index("OTEL_RESOURCE_ATTRIBUTES")
        assert len(order) == len(set(order))
    quiet = environment(deployments["consumer-quiet"])
    assert quiet["KAFKA_TRACING"] == "false"
    assert "OTEL_SERVICE_NAME" not in quiet
    assert "OTEL_SERVICE_NAME" not in environment(deployments["lag-exporter"])


@pytest.mark.parametrize(
    ("settings", "ports"),
    [
        ((), []),
        (('tracing.endpoint="http://otel:4318"',), []),
        (("tracing.enabled=true", 'tracing.endpoint="http://otel:4318"'), [4318]),
        (("tracing.enabled=true", 'tracing.endpoint="https://otel.example.com/otlp"'), [443]),
        (('consumer.options={"tracing":true}', 'tracing.endpoint="http://otel"'), [80]),
        (("tracing.enabled=true",), []),
    ],
)
def test_a_network_policy_lets_spans_through_to_the_collector(settings: tuple[str, ...], ports: list[int]) -> None:
    egress = one(render("networkPolicy.enabled=true", *settings), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for rule in egress[2:] for port in rule["ports"]] == ports


PORTS_OF_URLS = {
    "http://a:8081": 8081,
    "https://a": 443,
    "http://a/subjects": 80,
    "http://[::1]:8082": 8082,
    "https://[::1]": 443,
    "https://a/subjects:8": 443,
    "http://a:8083/subjects:9?x=:10": 8083,
}


def ports_let_through(*settings: str) -> list[list[int]]:
    """Those of each rule of the network policy after that for DNS."""
    egress = one(render(*OAUTH, "networkPolicy.enabled=true", *settings), "NetworkPolicy")["spec"]["egress"]
    return [[port["port"] for port in rule["ports"]] for rule in egress[1:]]


@pytest.mark.parametrize("url", PORTS_OF_URLS)
def test_a_network_policy_lets_through_to_tokens_and_collector_the_port_of_the_url(url: str) -> None:
    port = PORTS_OF_URLS[url]
    urls = (f'kafka.sasl.oauth.tokenUrl="{url}"', f'tracing.endpoint="{url}"', "tracing.enabled=true")
    assert ports_let_through(*urls) == [[9092, 9093, port], [port]]


def test_a_network_policy_lets_through_the_port_of_each_url_of_the_schema_registry() -> None:
    urls = f'schemaRegistry.url="{",".join(PORTS_OF_URLS)}"'
    assert ports_let_through(urls) == [[9092, 9093, 8443, *dict.fromkeys(PORTS_OF_URLS.values())]]


def test_no_option_is_given_that_nobody_has_asked_for() -> None:
    """A count would cut short a team's own source, and contradict `forever`."""
    shipped = environment(one(render(JOB), "Job"))
    own = environment(one(render(JOB, 'producer.options={"source":"orders:outbox"}'), "Job"))
    assert own == {**shipped, "KAFKA_SOURCE": "orders:outbox"}
    assert not shipped.keys() & {f"KAFKA_{name.upper().replace('-', '_')}" for name in options_of("produce") - OWN}


def test_a_job_gets_another_name_when_its_contents_change_and_only_then() -> None:
    def name(*settings: str) -> str:
        found: str = one(render(JOB, *settings), "Job")["metadata"]["name"]
        return found

    assert name() == name("consumer.replicas=5")
    assert len({name(), name('producer.options={"count":7}'), name('image.tag="other"')}) == 3


def test_a_job_that_goes_at_once_and_one_that_stays() -> None:
    assert one(render(JOB, "producer.ttlSecondsAfterFinished=0"), "Job")["spec"]["ttlSecondsAfterFinished"] == 0
    assert "ttlSecondsAfterFinished" not in one(render(JOB), "Job")["spec"]


def test_a_topic_or_a_user_that_is_still_being_made_does_not_fail_the_job_for_good() -> None:
    def actions(*settings: str) -> list[str]:
        return [rule["action"] for rule in one(render(JOB, *settings), "Job")["spec"]["podFailurePolicy"]["rules"]]

    assert actions() == ["Ignore"]
    assert actions("strimzi.users.create=false") == actions("strimzi.topic.create=false") == ["Ignore"]
    nothing_made = ("strimzi.users.create=false", "strimzi.topic.create=false")
    assert actions(*nothing_made) == actions(*PLAIN) == ["FailJob", "Ignore"]


def test_brokers_are_found_from_every_namespace() -> None:
    documents = render("consumer.keda.enabled=true")
    servers = "events-kafka-bootstrap.default.svc:9093"
    assert environment(one(documents, "Deployment"))["KAFKA_BOOTSTRAP_SERVERS"] == servers
    # KEDA's operator, which asks the brokers, has a namespace of its own.
    assert one(documents, "ScaledObject")["spec"]["triggers"][0]["metadata"]["bootstrapServers"] == servers


@pytest.mark.parametrize(
    ("topic", "name"),
    [("_internal", "internal"), (".hidden.", "hidden"), ("Orders_EU", "orders-eu"), ("a._b", "a.b"), ("a..b", "a.b")],
)
def test_a_topic_of_any_name_has_an_object_that_kubernetes_takes(topic: str, name: str) -> None:
    topics = [each for each in render(f"kafka.topic={json.dumps(topic)}") if each["kind"] == "KafkaTopic"]
    for each in topics:
        check(each)
    assert (topics[0]["metadata"]["name"], topics[0]["spec"]["topicName"]) == (name, topic)


def test_kubernetes_waits_longer_than_the_worker_does() -> None:
    documents = render(JOB, "consumer.shutdownTimeout=100", "producer.shutdownTimeout=50")
    for kind, seconds in (("Deployment", 100), ("Job", 50)):
        document = one(documents, kind)
        assert environment(document)["KAFKA_SHUTDOWN_TIMEOUT"] == str(seconds)
        assert document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > seconds


def test_secrets_are_mounted_and_never_in_the_environment() -> None:
    for settings in ((), SASL):
        variables = environment(one(render(*settings), "Deployment"))
        assert variables["KAFKA_SASL_PASSWORD_FILE"] == "/etc/kafka-workers/password/password"
        assert "KAFKA_SASL_PASSWORD" not in variables


def test_workers_reach_the_schema_registry_with_its_secrets_and_formats() -> None:
    documents = render(*REGISTRY, JOB, "networkPolicy.enabled=true", "lagExporter.enabled=true")
    variables = environment(one(documents, "Deployment", "consumer"))
    assert {name: value for name, value in variables.items() if "REGISTRY" in name or "FORMAT" in name} == {
        "KAFKA_SCHEMA_REGISTRY_URL": "http://registry:8081,https://other/path",
        "KAFKA_SCHEMA_REGISTRY_USERNAME": "me",
        "KAFKA_SCHEMA_REGISTRY_PASSWORD_FILE": "/etc/kafka-workers/registry-password/password",
        "KAFKA_SCHEMA_REGISTRY_CA_LOCATION": "/etc/kafka-workers/registry-ca/ca.crt",
        "KAFKA_SCHEMA_REGISTRY_PROPERTY": "cache.capacity=1000000 timeout=5",
        "KAFKA_KEY_FORMAT": "json",
        "KAFKA_VALUE_FORMAT": "avro",
    }
    pod = one(documents, "Deployment", "consumer")["spec"]["template"]["spec"]
    mounted = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounted["registry-password"] == "/etc/kafka-workers/registry-password"
    assert mounted["registry-ca"] == "/etc/kafka-workers/registry-ca"
    secrets = {each["name"]: each["secret"] for each in pod["volumes"] if "registry" in each["name"]}
    assert secrets["registry-password"]["items"] == [{"key": "password", "path": "password"}]
    assert secrets["registry-ca"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    egress = one(documents, "NetworkPolicy")["spec"]["egress"]
    assert {443, 8081} <= {port["port"] for rule in egress for port in rule["ports"]}

    # Test messages have no format, and the lag exporter reads no message.
    assert not environment(one(documents, "Job")).keys() & {"KAFKA_VALUE_FORMAT", "KAFKA_KEY_FORMAT"}
    exporter = one(documents, "Deployment", "lag-exporter")
    assert not [name for name in environment(exporter) if "REGISTRY" in name or "FORMAT" in name]
    source = environment(one(render(*REGISTRY, JOB, 'producer.options={"source":"orders:outbox"}'), "Job"))
    assert (source["KAFKA_VALUE_FORMAT"], source["KAFKA_KEY_FORMAT"]) == ("avro", "json")
    own = environment(one(render(*REGISTRY, 'consumer.options={"value-format":"protobuf"}'), "Deployment"))
    assert own["KAFKA_VALUE_FORMAT"] == "protobuf"


def test_without_a_schema_registry_nothing_is_said_of_one() -> None:
    documents = render(JOB, "networkPolicy.enabled=true")
    assert "registry" not in yaml.safe_dump(documents).lower()


def rights(*settings: str) -> dict[str, set[tuple[str, str, str]]]:
    return {
        user["metadata"]["name"]: {
            (acl["resource"]["type"], acl["resource"]["name"], operation)
            for acl in user["spec"]["authorization"]["acls"]
            for operation in acl["operations"]
        }
        for user in render(*settings)
        if user["kind"] == "KafkaUser"
    }


def test_users_may_do_what_their_worker_does_and_no_more() -> None:
    assert rights().keys() == {"consumer"}
    shipped = rights(JOB)
    assert shipped["producer"] == {("topic", "teste", "Describe"), ("topic", "teste", "Write")}
    assert shipped["consumer"] == {
        ("topic", "teste", "Describe"),
        ("topic", "teste", "Read"),
        ("group", "kafka-workers", "Describe"),
        ("group", "kafka-workers", "Read"),
        ("topic", "teste.dlq", "Describe"),
        ("topic", "teste.dlq", "Write"),
    }
    assert rights(JOB, "strimzi.users.replay=true")["consumer"] - shipped["consumer"] == {
        ("topic", "teste.dlq", "Read"),
        ("topic", "teste", "Write"),
        ("group", "kafka-workers-replay", "Describe"),
        ("group", "kafka-workers-replay", "Read"),
    }
    invalid = rights(*SWITCHES["invalid lines"])
    assert invalid["producer"] - shipped["producer"] == {
        ("topic", "invalid", "Describe"),
        ("topic", "invalid", "Write"),
    }


def test_the_lag_exporter_may_describe_every_group_and_topic_and_read_none() -> None:
    exporter = rights("lagExporter.enabled=true")["lag-exporter"]
    assert exporter == {("topic", "*", "Describe"), ("group", "*", "Describe")}
    assert "lag-exporter" not in rights()


def test_the_lag_exporter_looks_at_all_unless_told_otherwise_and_is_scraped_as_the_workers_are() -> None:
    documents = render(*SWITCHES["lag exporter"])
    deployment = one(documents, "Deployment", "lag-exporter")
    variables = environment(deployment)
    assert variables["KAFKA_GROUP_FILTER"] == "orders-.*"
    assert (variables["KAFKA_INTERVAL"], variables["KAFKA_KEEP"]) == ("30", "600")
    assert not variables.keys() & {"KAFKA_TOPIC", "KAFKA_GROUP_ID", "KAFKA_SHUTDOWN_TIMEOUT"}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    monitor = one(documents, "PodMonitor")["spec"]
    policy = one(documents, "NetworkPolicy")["spec"]
    for selected in (monitor["selector"]["matchLabels"], policy["podSelector"]["matchLabels"]):
        assert selected.items() <= labels.items()
    assert monitor["podMetricsEndpoints"][0]["port"] in {port["name"] for port in container(deployment)["ports"]}


def test_the_canary_may_use_its_own_topic_only_and_create_it_where_strimzi_does_not() -> None:
    own = {("topic", "kafka-workers-canary", operation) for operation in ("Describe", "Read", "Write")}
    own.add(("group", "kafka-workers-canary", "Describe"))
    assert rights("canary.enabled=true")["canary"] == own
    more = {("topic", "kafka-workers-canary", operation) for operation in ("Create", "Alter")}
    assert rights(*SWITCHES["canary that creates its topic"])["canary"] == own | more
    assert "canary" not in rights()


def test_the_canary_is_one_pod_that_is_recreated_scraped_and_told_whether_strimzi_makes_its_topic() -> None:
    documents = render(*SWITCHES["canary"])
    deployment = one(documents, "Deployment", "canary")
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]) == (1, {"type": "Recreate"})
    variables = environment(deployment)
    assert variables["KAFKA_TOPIC"] == "kafka-workers-canary"
    assert (variables["KAFKA_INTERVAL"], variables["KAFKA_MAX_LATENCY"]) == ("5", "10")
    assert variables["KAFKA_CREATE"] == "false"
    assert not variables.keys() & {"KAFKA_GROUP_ID", "KAFKA_TRACING"}
    pod = deployment["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > int(variables["KAFKA_SHUTDOWN_TIMEOUT"])
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selected in (
        one(documents, "PodMonitor")["spec"]["selector"]["matchLabels"],
        one(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selected.items() <= labels.items()
    topic = one(documents, "KafkaTopic", "kafka-workers-canary")["spec"]
    assert topic["partitions"] == 5
    assert topic["config"] == {"min.insync.replicas": 2, "retention.ms": 600000}

    for switch in ("canary only", "canary that creates its topic"):
        documents = render(*SWITCHES[switch])
        assert "KAFKA_CREATE" not in environment(one(documents, "Deployment", "canary"))
        assert not [each for each in documents if each["kind"] == "KafkaTopic"]
    assert environment(one(render(*SWITCHES["canary only"]), "Deployment", "canary"))["KAFKA_TOPIC"] == "probes"
    assert not [each for each in render() if "canary" in each["metadata"]["name"]]


def test_every_topic_that_is_written_is_created_once() -> None:
    def topics(*settings: str) -> list[str]:
        return [each["spec"]["topicName"] for each in render(*settings) if each["kind"] == "KafkaTopic"]

    assert topics() == ["teste", "teste.dlq"]
    # Or else they would go with the consumer, and the dead letters with them.
    assert topics("consumer.enabled=false") == ["teste", "teste.dlq"]
    assert topics(JOB, 'producer.options={"on-invalid":"dead-letter"}') == ["teste", "teste.dlq"]
    assert topics(*SWITCHES["invalid lines"]) == ["teste", "teste.dlq", "invalid"]


def test_topics_outlive_their_release_unless_told_otherwise() -> None:
    def kept(*settings: str) -> set[str | None]:
        topics = [each for each in render(*settings) if each["kind"] == "KafkaTopic"]
        return {each["metadata"].get("annotations", {}).get("helm.sh/resource-policy") for each in topics}

    assert kept() == {"keep"}
    assert kept("strimzi.topic.keep=false") == {None}


def test_the_number_of_an_autoscaler_is_not_taken_for_one_scaled_by_hand() -> None:
    def annotations(*settings: str) -> dict[str, str]:
        found: dict[str, str] = one(render(*settings), "Deployment")["metadata"].get("annotations", {})
        return found

    assert annotations() == {"kafka-workers/replicas": "3"}
    assert annotations("consumer.keda.enabled=true") == annotations("consumer.hpa.enabled=true") == {}


def test_keda_never_asks_for_more_consumers_than_partitions() -> None:
    documents = render("consumer.keda.enabled=true", "strimzi.topic.partitions=12")
    scaled = one(documents, "ScaledObject")["spec"]
    assert scaled["maxReplicaCount"] == 12
    metadata = scaled["triggers"][0]["metadata"]
    assert metadata["allowIdleConsumers"] == "false"
    assert (metadata["sasl"], metadata["tls"]) == ("scram_sha512", "enable")
    # The autoscaler owns the count.
    assert "replicas" not in one(documents, "Deployment")["spec"]


def test_an_hpa_scales_on_the_lag_of_its_group_and_topic_up_to_the_partitions() -> None:
    documents = render("consumer.hpa.enabled=true", "consumer.hpa.lagThreshold=500", "strimzi.topic.partitions=12")
    scaled = one(documents, "HorizontalPodAutoscaler")["spec"]
    assert (scaled["minReplicas"], scaled["maxReplicas"]) == (1, 12)
    assert scaled["scaleTargetRef"]["name"] == one(documents, "Deployment")["metadata"]["name"]
    (metric,) = scaled["metrics"]
    assert metric["external"]["metric"] == {"name": "kafka_group_lag_messages", "selector": {
        "matchLabels": {"group": "kafka-workers"},
        "matchExpressions": [{"key": "topic", "operator": "In", "values": ["teste"]}],
    }}  # fmt: skip
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "500"}
    # The autoscaler owns the count.
    assert "replicas" not in one(documents, "Deployment")["spec"]


TWO_TOPICS = (
    'strimzi.topics={"pay":{"partitions":3},"refunds":{"partitions":6}}',
    'consumer={"topics":["pay","refunds"]}',
)  # fmt: skip


def test_an_hpa_on_several_topics_adds_up_their_lags_and_their_partitions() -> None:
    scaled = one(render(*TWO_TOPICS, "consumer.hpa.enabled=true"), "HorizontalPodAutoscaler")["spec"]
    assert scaled["maxReplicas"] == 9
    # Of two metrics the larger one would count.
    (metric,) = scaled["metrics"]
    (topics,) = metric["external"]["metric"]["selector"]["matchExpressions"]
    assert topics == {"key": "topic", "operator": "In", "values": ["pay", "refunds"]}


def test_keda_on_several_topics_adds_up_their_lags_and_their_partitions() -> None:
    keda = ("consumer.keda.enabled=true", "consumer.keda.lagThreshold=500", "consumer.keda.activationLagThreshold=7")
    scaled = one(render(*TWO_TOPICS, *keda), "ScaledObject")["spec"]
    assert scaled["maxReplicaCount"] == 9
    triggers = {each["name"]: each["metadata"]["topic"] for each in scaled["triggers"]}
    assert triggers == {"topic0": "pay", "topic1": "refunds"}
    # Of two triggers alone the larger one would count.
    assert scaled["advanced"] == {
        "scalingModifiers": {"formula": "topic0 + topic1", "target": "500", "activationTarget": "7"}
    }

    (trigger,) = one(render("consumer.keda.enabled=true"), "ScaledObject")["spec"]["triggers"]
    assert "name" not in trigger
    assert "advanced" not in one(render("consumer.keda.enabled=true"), "ScaledObject")["spec"]


def test_a_second_release_as_the_readme_has_it_shares_nothing_with_the_first() -> None:
    switches = "consumer.keda metrics.podMonitor metrics.prometheusRule metrics.dashboard networkPolicy"
    everything = [word for switch in switches.split() for word in ("--set", f"{switch}.enabled=true")]
    everything += ["--set", "kafka.properties.a=b"]

    def install(name: str, *options: str) -> list[dict[str, Any]]:
        result = helm("template", name, str(CHART), *options, "--kube-version", "1.34.0", *everything)
        assert result.returncode == 0, result.stderr
        return load_all(result.stdout)

    first, second = install("workers"), install("second", *second_release())
    names = [{(each["kind"], each["metadata"]["name"]) for each in release} for release in (first, second)]
    assert len(names[1]) >= 10
    assert not names[0] & names[1]
    groups = [environment(one(release, "Deployment"))["KAFKA_GROUP_ID"] for release in (first, second)]
    assert groups[0] != groups[1]


def by_name(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in documents if each["kind"] == kind}


def test_each_consumer_has_objects_of_its_own_and_what_it_does_not_say_from_the_plain_one() -> None:
    documents = render(*SWITCHES["several consumers"])
    names = {"consumer", "consumer-pay", "consumer-audit"}
    for kind in ("Deployment", "ServiceAccount", "PodDisruptionBudget", "KafkaUser"):
        assert names == by_name(documents, kind).keys() - {"producer", "lag-exporter"}, kind
    variables = {name: environment(each) for name, each in by_name(documents, "Deployment").items()}
    assert [variables[name]["KAFKA_TOPIC"] for name in sorted(names)] == ["teste", "teste", "pay refunds"]
    groups = [variables[name]["KAFKA_GROUP_ID"] for name in sorted(names)]
    assert groups == ["kafka-workers", "kafka-workers-audit", "kafka-workers-pay"]
    assert {variables[name]["KAFKA_MAX_ATTEMPTS"] for name in names} == {"3"}
    assert [name for name in sorted(names) if "KAFKA_HANDLER" in variables[name]] == ["consumer-pay"]
    # 0 is a value.
    assert by_name(documents, "Deployment")["consumer-audit"]["spec"]["replicas"] == 0
    scaled = one(documents, "ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == "consumer-pay"
    assert [each["metadata"]["topic"] for each in scaled["triggers"]] == ["pay", "refunds"]
    # 12 partitions of the one, 3 of the other.
    assert scaled["maxReplicaCount"] == 15
    users = rights(*SWITCHES["several consumers"])
    assert {acl for acl in users["consumer-pay"] if acl[2] in ("Read", "Write")} == {
        ("topic", "pay", "Read"), ("topic", "refunds", "Read"), ("group", "kafka-workers-pay", "Read"),
        ("topic", "pay.dlq", "Write"), ("topic", "refunds.dlq", "Write"),
    }  # fmt: skip


def test_no_selector_of_a_worker_selects_the_pods_of_another() -> None:
    documents = render(*SWITCHES["several consumers"])
    pods = [
        each["spec"]["template"]["metadata"]["labels"] for each in documents if each["kind"] in ("Deployment", "Job")
    ]
    assert len(pods) == 4
    for kind in ("Deployment", "PodDisruptionBudget"):
        for name, each in by_name(documents, kind).items():
            selected = each["spec"]["selector"]["matchLabels"].items()
            assert len([labels for labels in pods if selected <= labels.items()]) == 1, name
    # All of the release.
    for selector in (
        one(documents, "PodMonitor")["spec"]["selector"],
        one(documents, "NetworkPolicy")["spec"]["podSelector"],
    ):
        assert all(selector["matchLabels"].items() <= labels.items() for labels in pods)


def test_topics_of_every_consumer_are_created_with_numbers_of_their_own() -> None:
    topics = {
        each["spec"]["topicName"]: each["spec"]
        for each in render(*SWITCHES["several consumers"])
        if each["kind"] == "KafkaTopic"
    }
    assert topics.keys() == {f"{name}{suffix}" for name in ("teste", "pay", "refunds") for suffix in ("", ".dlq")}
    assert topics["pay"]["config"] == {"min.insync.replicas": 2, "retention.ms": 604800000}
    assert [topics[name]["partitions"] for name in ("pay", "refunds")] == [12, 3]


def test_the_plain_deployment_is_called_consumer_and_a_full_name_begins_all_names() -> None:
    assert one(render(), "Deployment")["metadata"]["name"] == "consumer"
    documents = render(*SWITCHES["names of one's own"])
    topics = {("KafkaTopic", "teste"), ("KafkaTopic", "teste.dlq")}
    names = {(each["kind"], each["metadata"]["name"]) for each in documents}
    assert all(name.startswith("second-") for _, name in names - topics)
    assert environment(one(documents, "Deployment"))["KAFKA_GROUP_ID"] == "second"
    assert one(documents, "Deployment")["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] == "orders"


PARENT = """
apiVersion: v2
name: shop
version: 0.0.1
dependencies:
  - {name: kafka-workers, version: 0.1.0, alias: orders, condition: orders.enabled}
  - {name: kafka-workers, version: 0.1.0, alias: billing, condition: billing.enabled}
"""


@pytest.mark.parametrize("program", ["helm", "helm4"])
def test_a_parent_chart_has_it_twice_under_aliases(program: str, tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "charts" / "kafka-workers")
    (tmp_path / "Chart.yaml").write_text(PARENT)

    def install(*settings: str) -> list[dict[str, Any]]:
        options = [word for setting in settings for word in ("--set", setting)]
        rendered = helm("template", "shop", str(tmp_path), "--kube-version", "1.34.0", *options, program=program)
        assert rendered.returncode == 0, rendered.stderr
        return load_all(rendered.stdout)

    switches = ("metrics.podMonitor", "metrics.prometheusRule", "metrics.dashboard", "networkPolicy")
    on = [f"{alias}.{switch}.enabled=true" for alias in ("orders", "billing") for switch in switches]
    documents = install("orders.kafka.topic=orders", "billing.kafka.topic=billing", *on)
    names = [(each["kind"], each["metadata"]["name"]) for each in documents]
    assert len(names) == len(set(names))
    deployments = by_name(documents, "Deployment")
    assert deployments.keys() == {"orders-consumer", "billing-consumer"}
    groups = {name: environment(each)["KAFKA_GROUP_ID"] for name, each in deployments.items()}
    assert groups == {"orders-consumer": "orders", "billing-consumer": "billing"}
    selectors = [each["spec"]["selector"]["matchLabels"] for each in deployments.values()]
    assert selectors[0] != selectors[1]

    rest = install("orders.enabled=true", "billing.enabled=false")
    assert by_name(rest, "Deployment").keys() == {"orders-consumer"}


def test_a_network_policy_lets_through_brokers_dns_and_scrapes_only() -> None:
    policy = one(render("networkPolicy.enabled=true"), "NetworkPolicy")["spec"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 9092, 9093}
    other = ("strimzi.enabled=false", 'kafka.bootstrapServers="a:9096,b:9096"', "networkPolicy.enabled=true")
    egress = one(render(*other), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for port in egress[1]["ports"]] == [9092, 9093, 9096]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ["metrics"]


def test_the_image_is_the_one_of_the_chart_unless_told_otherwise() -> None:
    version = load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert container(one(render(), "Deployment"))["image"] == f"kafka-workers:{version}"
    assert re.fullmatch(
        r"kafka-workers@sha256:0{64}", container(one(render(*SWITCHES["hooks"]), "Deployment"))["image"]
    )


def test_the_values_of_the_example_run_its_handler_and_no_producer() -> None:
    result = helm(
        "template", "orders", str(CHART), "--kube-version", "1.34.0", "--values", "examples/orders/values.yaml"
    )
    assert result.returncode == 0, result.stderr
    documents = load_all(result.stdout)
    consumer = one(documents, "Deployment", "consumer")
    assert container(consumer)["image"] == "orders:1"
    assert environment(consumer)["KAFKA_HANDLER"] == "orders:store"
    assert environment(consumer)["ORDERS_DATABASE"].startswith("/data/")
    assert not [document for document in documents if document["kind"] == "Job"]


def test_the_values_of_the_example_enrichment_run_it_exactly_once_beside_its_price_service() -> None:
    values = "examples/enrichment/values.yaml"
    result = helm("template", "pricing", str(CHART), "--kube-version", "1.34.0", "--values", values)
    assert result.returncode == 0, result.stderr
    documents = load_all(result.stdout)
    for document in documents:
        check(document)
    consumer = one(documents, "Deployment", "consumer")
    told = environment(consumer)
    assert container(consumer)["image"] == container(one(documents, "Deployment", "prices"))["image"] == "enrichment:1"
    assert (told["KAFKA_HANDLER"], told["KAFKA_TOPIC"], told["KAFKA_CONCURRENCY"]) == (
        "enrichment:price",
        "orders",
        "64",
    )
    assert (told["KAFKA_EXACTLY_ONCE"], told["KAFKA_ORDER"]) == ("true", "key")
    service = one(documents, "Service", "prices")
    assert told["PRICES_URL"] == f"http://prices:{service['spec']['ports'][0]['port']}"
    acls = one(documents, "KafkaUser", "consumer")["spec"]["authorization"]["acls"]
    assert "orders-priced" in [each["resource"]["name"] for each in acls if "Write" in each["operations"]]
    assert one(documents, "KafkaTopic", "orders-priced")["metadata"]["labels"] == {"strimzi.io/cluster": "events"}


def test_every_certificate_of_the_ca_secret_is_mounted() -> None:
    """Strimzi keeps the CA of before in a key of its own, ca-<date>.crt, while it replaces it."""
    pod = one(render(), "Deployment")["spec"]["template"]["spec"]
    volume = next(each for each in pod["volumes"] if each["name"] == "ca")
    mount = next(each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "ca")
    variables = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}

    assert "items" not in volume["secret"]
    assert "subPath" not in mount
    assert variables["KAFKA_SSL_CA_LOCATION"] == mount["mountPath"]


def test_nothing_is_sent_unless_asked_for() -> None:
    assert not {each["kind"] for each in render()} & {"Job", "CronJob"}
    (test,) = one(render(), "Pod")["spec"]["containers"]
    assert test["args"][0] == "lag"
    assert "initContainers" not in one(render(), "Pod")["spec"]
    told = one(render(*SWITCHES["producer"]), "Pod")["spec"]
    assert [each["name"] for each in told["initContainers"] + told["containers"]] == [
        "produce",
        "lag-consumer",
        "verify",
    ]


def test_helm_test_asks_with_every_consumers_own_user() -> None:
    pod = one(render(*SWITCHES["several consumers"]), "Pod")["spec"]
    users = {each["name"]: environment_of(each)["KAFKA_SASL_USERNAME"] for each in pod["containers"]}
    assert users == {f"lag-{name}": name for name in ("consumer", "consumer-pay", "consumer-audit")}


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def test_a_producer_for_ever_is_a_deployment_that_ends_before_the_next_begins() -> None:
    documents = render(*SWITCHES["producer for ever"])
    assert not {each["kind"] for each in documents} & {"Job", "CronJob"}
    spec = by_name(documents, "Deployment")["producer"]["spec"]
    assert (spec["strategy"], spec["replicas"]) == ({"type": "Recreate"}, 2)
    assert "restartPolicy" not in spec["template"]["spec"]
    rules = one(documents, "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert r"producer-[a-z0-9]+-[a-z0-9]{5}" in next(
        each["expr"] for each in rules if each["alert"] == "KafkaDeliveryFailures"
    )


def test_a_cron_job_has_what_was_asked_for() -> None:
    spec = one(render(*SWITCHES["schedule with everything"]), "CronJob")["spec"]
    job = spec.pop("jobTemplate")["spec"]
    assert spec == {
        "schedule": "0 3 * * *", "timeZone": "Europe/Berlin", "suspend": True, "concurrencyPolicy": "Replace",
        "startingDeadlineSeconds": 300, "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0,
    }  # fmt: skip
    assert job["activeDeadlineSeconds"] == 3600
    shipped = one(render(*SWITCHES["schedule"]), "CronJob")["spec"]
    assert not shipped.keys() & {"timeZone", "startingDeadlineSeconds"}
    assert "activeDeadlineSeconds" not in shipped["jobTemplate"]["spec"]


def test_extension_points_reach_every_worker() -> None:
    documents = render(*SWITCHES["extension points"])
    workloads = [each for each in documents if each["kind"] in ("Deployment", "Job")]
    assert len(workloads) == 4
    for each in workloads:
        assert each["metadata"]["annotations"]["reloader.stakater.com/auto"] == "true"
        pod = each["spec"]["template"]["spec"]
        assert [one["name"] for one in pod["initContainers"]] == ["wait"]
        worker, sidecar = pod["containers"]
        assert (worker["image"], sidecar["name"]) == ("orders:7", "proxy")
        assert worker["envFrom"] == [{"secretRef": {"name": "x"}}]
        assert worker["lifecycle"] == {"preStop": {"sleep": {"seconds": 1}}}
        assert (pod["runtimeClassName"], pod["schedulerName"], pod["hostUsers"]) == ("gvisor", "mine", False)
        assert (pod["dnsPolicy"], pod["dnsConfig"]) == ("None", {"nameservers": ["10.0.0.1"]})
        assert pod["hostAliases"] == [{"ip": "10.0.0.2", "hostnames": ["kafka-1"]}]
        assert pod["automountServiceAccountToken"] is True
        probe = worker["startupProbe"]
        assert (probe["failureThreshold"], probe["periodSeconds"]) == (600, 1)
        assert (pod["securityContext"]["fsGroup"], pod["securityContext"]["runAsUser"]) == (1, 65532)
        security = worker["securityContext"]
        assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (False, False)
    for account in by_name(documents, "ServiceAccount").values():
        assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]
        assert account["metadata"]["labels"]["team"] == "a"
    assert "workers-more" in by_name(documents, "ConfigMap")


def test_a_value_of_pod_is_that_of_every_worker_as_if_each_had_it() -> None:
    values = json.loads((CHART / "values.schema.json").read_text())["definitions"]["pod"]["properties"]
    assert POD.keys() == values.keys() - {"resources"}
    documents = render(*EVERY_WORKER, *given_to("pod"))
    assert documents == render(*EVERY_WORKER, *given_to(*WORKERS))
    workloads = [json.dumps(each) for each in documents if each["kind"] in ("Deployment", "Job")]
    assert len(workloads) == len(WORKERS) + 1
    for name, (_, text) in POD.items():
        assert all(text in workload for workload in workloads), name
    accounts = by_name(documents, "ServiceAccount").values()
    assert [(each["metadata"]["annotations"], each["metadata"]["labels"]["team"]) for each in accounts] == [
        ({"role": "x"}, "a")
    ] * len(workloads)


def pods_by_component(*settings: str, program: str = "helm") -> dict[str, dict[str, Any]]:
    """The specifications of the pods of EVERY_WORKER."""
    return {
        each["metadata"]["labels"]["app.kubernetes.io/component"]: each["spec"]["template"]["spec"]
        for each in render(*EVERY_WORKER, *settings, program=program)
        if each["kind"] in ("Deployment", "Job")
    }


@pytest.mark.parametrize("program", ["helm", "helm4"])
def test_a_workers_own_value_wins_over_that_of_pod_also_where_it_is_empty_or_null(program: str) -> None:
    pods = pods_by_component(
        'pod={"nodeSelector":{"disk":"ssd","zone":"a","gone":null},"tolerations":[{"operator":"Exists"}],"priorityClassName":"high",'
        '"serviceAccount":{"automount":true},"probes":{"startup":{"failureThreshold":601}},"podSpec":{"hostUsers":false}}',
        'consumer={"nodeSelector":{"disk":null,"rack":"b"},"tolerations":[],"priorityClassName":"",'
        '"serviceAccount":{"automount":false},"probes":{"startup":{"failureThreshold":null}},"podSpec":{"hostUsers":true}}',
        'consumers.pay={"nodeSelector":{"rack":null},"priorityClassName":"low"}',
        program=program,
    )
    own, pay = pods["consumer"], pods["consumer-pay"]
    assert (own["nodeSelector"], pay["nodeSelector"]) == ({"zone": "a", "rack": "b"}, {"zone": "a"})
    assert ("priorityClassName" in own, pay["priorityClassName"]) == (False, "low")
    for spec in (own, pay):
        assert "tolerations" not in spec
        assert spec["automountServiceAccountToken"] is False
        assert spec["hostUsers"] is True
        assert spec["containers"][0]["startupProbe"].keys() == {"httpGet", "periodSeconds", "timeoutSeconds"}
    for name in ("producer", "lag-exporter", "canary"):
        assert pods[name]["nodeSelector"] == {"disk": "ssd", "zone": "a"}
        assert pods[name]["tolerations"] == [{"operator": "Exists"}]
        assert pods[name]["priorityClassName"] == "high"
        assert pods[name]["automountServiceAccountToken"] is True
        assert pods[name]["containers"][0]["startupProbe"]["failureThreshold"] == 601


@pytest.mark.parametrize("program", ["helm", "helm4"])
def test_resources_of_pod_are_those_of_consumers_and_producer_and_a_limit_can_be_taken_away(program: str) -> None:
    def resources(*settings: str) -> dict[str, Any]:
        pods = pods_by_component(*settings, program=program)
        return {name: spec["containers"][0]["resources"] for name, spec in pods.items()}

    large = {"requests": {"cpu": "100m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}}
    small = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}
    names = {"consumer": large, "consumer-pay": large, "producer": large, "lag-exporter": small, "canary": small}
    assert resources() == names
    more = {**large, "limits": {"memory": "1Gi"}}
    assert resources('pod.resources.limits.memory="1Gi"') == {
        name: more if each is large else each for name, each in names.items()
    }
    unlimited = [f'{worker}.resources={{"limits":null}}' for worker in WORKERS]
    assert resources(*unlimited) == {name: {"requests": each["requests"]} for name, each in names.items()}


@pytest.mark.parametrize("program", ["helm", "helm4"])
def test_a_security_context_of_the_release_is_replaced_or_switched_off_by_a_worker(program: str) -> None:
    pods = pods_by_component(
        'consumer.podSecurityContext={"fsGroup":1}',
        'consumers.pay={"podSecurityContext":{"fsGroup":2,"runAsUser":null}}',
        program=program,
    )
    contexts = {name: spec["securityContext"] for name, spec in pods.items()}
    release = load((CHART / "values.yaml").read_text())["podSecurityContext"]
    assert contexts["producer"] == release
    assert contexts["consumer"] == {**release, "fsGroup": 1}
    assert contexts["consumer-pay"] == {name: each for name, each in release.items() if name != "runAsUser"} | {
        "fsGroup": 2
    }


def test_without_extension_points_nothing_is_empty() -> None:
    for each in render(JOB, "lagExporter.enabled=true"):
        if each["kind"] in ("Deployment", "Job"):
            pod = each["spec"]["template"]["spec"]
            assert not pod.keys() & {"initContainers", "runtimeClassName", "dnsConfig", "hostAliases"}
            assert pod["automountServiceAccountToken"] is False
            (worker,) = pod["containers"]
            assert not worker.keys() & {"envFrom", "lifecycle"}


def test_a_budget_takes_one_member_at_a_time_or_what_it_is_told() -> None:
    def budgets(*settings: str) -> dict[str, Any]:
        documents = by_name(render(*settings), "PodDisruptionBudget")
        return {name: each["spec"]["maxUnavailable"] for name, each in documents.items()}

    assert budgets() == {"consumer": 1}
    assert budgets(*SWITCHES["a share of the members at a time"]) == {"consumer": "25%", "consumer-pay": 2}


def test_old_replica_sets_are_kept_as_kubernetes_does_unless_told_otherwise() -> None:
    assert "revisionHistoryLimit" not in one(render(), "Deployment")["spec"]
    limited = by_name(render(*SWITCHES["few old ReplicaSets"]), "Deployment")
    assert {name: each["spec"]["revisionHistoryLimit"] for name, each in limited.items()} == {
        "consumer": 0,
        "lag-exporter": 0,
    }


def test_producers_are_spread_where_asked_for() -> None:
    job = one(render(*SWITCHES["producers on several nodes"]), "Job")["spec"]["template"]
    (constraint,) = job["spec"]["topologySpreadConstraints"]
    assert constraint["topologyKey"] == "topology.kubernetes.io/zone"
    assert constraint["labelSelector"]["matchLabels"].items() <= job["metadata"]["labels"].items()


def test_pods_that_an_update_replaces_do_not_count_for_the_spread_of_the_new_ones() -> None:
    def keys(*settings: str, kind: str = "Deployment") -> object:
        pod = one(render(*settings), kind)["spec"]["template"]["spec"]
        (constraint,) = pod["topologySpreadConstraints"]
        return constraint.get("matchLabelKeys")

    assert keys() == ["pod-template-hash"]
    # A Job's pods have no such label.
    assert keys(*SWITCHES["producers on several nodes"], "consumer.enabled=false", kind="Job") is None
    own = '{"maxSkew":1,"topologyKey":"zone","whenUnsatisfiable":"DoNotSchedule","matchLabelKeys":[]}'
    assert keys(f"consumer.topologySpreadConstraints=[{own}]") == []


def test_a_service_account_that_is_there_is_used_and_not_made() -> None:
    documents = render(*SWITCHES["a ServiceAccount that is there"])
    assert not by_name(documents, "ServiceAccount")
    assert one(documents, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "theirs"

    shared = render(*SWITCHES["one ServiceAccount for all"])
    assert not by_name(shared, "ServiceAccount")
    # Those of five workers, and of the test.
    assert [spec["serviceAccountName"] for spec in pod_specs(shared).values()] == ["theirs"] * 6


def test_keys_and_names_of_secrets_can_be_given() -> None:
    pod = one(render(*SWITCHES["mTLS as cert-manager writes it"]), "Deployment")["spec"]["template"]["spec"]
    items = {each["name"]: each["secret"].get("items") for each in pod["volumes"]}
    assert items["user"] == [{"key": "tls.crt", "path": "user.crt"}, {"key": "tls.key", "path": "user.key"}]
    assert items["ca"] == [{"key": "ca.crt", "path": "ca.crt"}]

    documents = render(*SWITCHES["user's name from a Secret"])
    (user,) = [each for each in container(one(documents, "Deployment"))["env"] if each["name"] == "KAFKA_SASL_USERNAME"]
    assert user["valueFrom"] == {"secretKeyRef": {"name": "mine", "key": "user"}}
    authentication = one(documents, "TriggerAuthentication")["spec"]
    assert "env" not in authentication
    assert {"parameter": "username", "name": "mine", "key": "user"} in authentication["secretTargetRef"]


def test_strimzi_in_another_namespace_has_topics_and_users_there_and_its_secrets_here() -> None:
    documents = render(*SWITCHES["Strimzi elsewhere"])
    there = {each["kind"] for each in documents if each["metadata"]["namespace"] == "kafka"}
    assert there == {"KafkaTopic", "KafkaUser"}
    consumer = by_name(documents, "Deployment")["consumer"]
    assert environment(consumer)["KAFKA_BOOTSTRAP_SERVERS"] == "events-kafka-bootstrap.kafka.svc:9093"
    secrets = {each["name"]: each["secret"] for each in consumer["spec"]["template"]["spec"]["volumes"]}
    assert (secrets["ca"]["secretName"], secrets["password"]["secretName"]) == ("ca", "mine")
    assert secrets["password"]["items"] == [{"key": "pass", "path": "password"}]
    # The password is another Secret's, the user is still the KafkaUser.
    assert environment(consumer)["KAFKA_SASL_USERNAME"] == "consumer"


def with_apis(*apis: str) -> subprocess.CompletedProcess[str]:
    options = [word for api in apis for word in ("--api-versions", api)]
    return helm(
        "template", "workers", str(CHART), "--kube-version", "1.34.0", "--set", "networkPolicy.enabled=true", *options
    )


def test_an_operator_without_the_api_is_named() -> None:
    assert (
        "upgrade it, with its custom resource definitions, to Strimzi 0.49.0"
        in with_apis("kafka.strimzi.io/v1beta2").stderr
    )
    assert with_apis("kafka.strimzi.io/v1beta2", "kafka.strimzi.io/v1").returncode == 0


def test_openshift_chooses_the_ids_and_has_its_dns_elsewhere() -> None:
    def seen(*apis: str) -> tuple[set[str], set[int]]:
        documents = load_all(with_apis(*apis).stdout)
        security = one(documents, "Deployment")["spec"]["template"]["spec"]["securityContext"]
        dns = one(documents, "NetworkPolicy")["spec"]["egress"][0]["ports"]
        return set(security) & {"runAsUser", "runAsGroup", "fsGroup"}, {each["port"] for each in dns}

    assert seen() == ({"runAsUser", "runAsGroup", "fsGroup"}, {53})
    assert seen("security.openshift.io/v1") == (set(), {53, 5353})
    forced = one(render(*SWITCHES["no fixed ids"]), "Job")["spec"]["template"]["spec"]["securityContext"]
    assert forced == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_dead_letters_are_never_compacted_and_have_numbers_of_their_own() -> None:
    def specs(switch: str) -> dict[str, Any]:
        return {
            each["spec"]["topicName"]: each["spec"]
            for each in render(*SWITCHES[switch])
            if each["kind"] == "KafkaTopic"
        }

    compacted = specs("compacted topics")
    assert compacted["teste"]["config"]["cleanup.policy"] == "compact"
    assert compacted["teste.dlq"]["config"] == {
        "cleanup.policy": "delete", "min.insync.replicas": 2, "retention.ms": 1209600000
    }  # fmt: skip
    year = specs("dead letters for a year")
    assert (year["teste"]["partitions"], year["teste.dlq"]["partitions"]) == (3, 1)
    assert year["teste.dlq"]["config"]["retention.ms"] == 31536000000


def test_replicas_of_null_leave_the_field_out_and_keep_the_alert() -> None:
    documents = render(*SWITCHES["replicas of an autoscaler of one's own"])
    deployment = one(documents, "Deployment")
    assert "replicas" not in deployment["spec"]
    assert "annotations" not in deployment["metadata"]
    rules = one(documents, "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert "KafkaNoConsumer" in {each["alert"] for each in rules}
