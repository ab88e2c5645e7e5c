"""Alerts and the dashboard: they say what they should, of metrics that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, REPOSITORY, one, render
from tests.documents import adapter_rules, load
from tests.programs import program
from workers.monitoring.metrics import CANARY, CLIENT, CONSUMER, LAG, PRODUCER

EVERYTHING = (
    "metrics.prometheusRule.enabled=true", "lagExporter.enabled=true", "producer.enabled=true", "canary.enabled=true",
)  # fmt: skip
# Suffixes of the series that Prometheus makes of a histogram and of a summary.
SUFFIXES = ("_bucket", "_count", "_sum")
# The labels that an aggregation keeps.
BY = r"\bby \(([^)]*)\)"


def rules() -> dict[str, Any]:
    spec: dict[str, Any] = one(render(*EVERYTHING), "PrometheusRule")["spec"]
    return spec


def queries_of_the_dashboard() -> list[str]:
    dashboard = json.loads((CHART / "dashboards" / "kafka-workers.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return panels + [each["definition"] for each in dashboard["templating"]["list"] if "definition" in each]


@pytest.fixture
def promtool() -> str:
    return program("promtool", "prometheus")


@pytest.mark.parametrize("command", ["check rules rules.yaml", "test rules rules_test.yaml"])
def test_promtool_finds_the_alerts_right(promtool: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules()))
    shutil.copy(Path(__file__).with_name("rules_test.yaml"), tmp_path)
    result = subprocess.run([promtool, *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def written(labels: dict[str, str]) -> str:
    return ",".join(f'{label}="{value}"' for label, value in labels.items())


def test_an_hpa_gets_the_lag_of_its_own_group_and_topic_once_while_one_exporter_replaces_another(
    promtool: str, tmp_path: Path
) -> None:
    (metric,) = one(render("consumer.hpa.enabled=true"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    name, selector = metric["external"]["metric"]["name"], metric["external"]["metric"]["selector"]
    (topics,) = selector["matchExpressions"]
    assert (topics["key"], topics["operator"]) == ("topic", "In")
    (rule,) = load(adapter_rules())["externalRules"]
    assert rule["seriesQuery"].startswith(name + "{")
    # As the adapter fills in its rule for a HorizontalPodAutoscaler in this namespace (pkg/naming/metrics_query.go).
    matched = {"namespace": "default", **selector["matchLabels"]}
    matchers = f'{written(matched)},topic=~"{"|".join(topics["values"])}"'
    query = rule["metricsQuery"].replace("<<.Series>>", name).replace("<<.LabelMatchers>>", matchers)

    def series(lag: int, pod: str = "old", **others: str) -> dict[str, str]:
        labels = written({**matched, "topic": topics["values"][0], "pod": pod, "partition": "0", **others})
        return {"series": f"{name}{{{labels}}}", "values": f"{lag}+0x4"}

    expected = {"expr": query, "eval_time": "1m", "exp_samples": [{"labels": "{}", "value": 30}]}
    lags = [series(20), series(10, partition="1"), series(20, "new"), series(10, "new", partition="1")]
    lags += [series(5, group="other"), series(5, topic="other"), series(5, namespace="other")]
    test = {"interval": "30s", "input_series": lags, "promql_expr_test": [expected]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"tests": [test]}))
    result = subprocess.run([promtool, "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_has_a_unit_test() -> None:
    tested = set(re.findall(r"alertname: (\w+)", Path(__file__).with_name("rules_test.yaml").read_text()))
    assert {rule["alert"] for group in rules()["groups"] for rule in group["rules"]} == tested


@pytest.mark.parametrize(
    ("settings", "raised"),
    [
        ((), True),
        (("consumer.replicas=0",), False),
        (("consumer.keda.enabled=true",), True),
        (("consumer.keda.enabled=true", "consumer.keda.minReplicas=0"), False),
        (("consumer.hpa.enabled=true", "consumer.replicas=0"), True),
    ],
)
def test_no_consumer_is_no_alert_where_none_is_wanted(settings: tuple[str, ...], raised: bool) -> None:
    rule = one(render("metrics.prometheusRule.enabled=true", *settings), "PrometheusRule")
    assert ("KafkaNoConsumer" in [each["alert"] for each in rule["spec"]["groups"][0]["rules"]]) == raised


def alerts(*settings: str) -> dict[str, dict[str, Any]]:
    """The alerts by name, of one consumer."""
    rule = one(render("metrics.prometheusRule.enabled=true", *settings), "PrometheusRule")
    return {each["alert"]: each for each in rule["spec"]["groups"][0]["rules"]}


def test_alerts_can_be_left_out_by_name() -> None:
    left = alerts('metrics.prometheusRule.disabled=["KafkaConsumerLagHigh","KafkaKeyBlocked","KafkaCanaryAbsent"]')
    assert alerts().keys() - left.keys() == {"KafkaConsumerLagHigh", "KafkaKeyBlocked"}

    # A rule without alerts is no object.
    every = f"metrics.prometheusRule.disabled={json.dumps([*alerts()])}"
    kinds = [each["kind"] for each in render("metrics.prometheusRule.enabled=true", every)]
    assert "Deployment" in kinds
    assert "PrometheusRule" not in kinds


def test_the_schema_knows_the_alerts_that_can_be_left_out_and_the_labels_that_they_have() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = schema["properties"]["metrics"]["properties"]["prometheusRule"]["properties"]
    every = [rule for group in rules()["groups"] for rule in group["rules"]]
    assert set(known["disabled"]["items"]["enum"]) == {rule["alert"] for rule in every}
    kept = {label for rule in every for labels in re.findall(BY, rule["expr"]) for label in labels.split(", ")}
    own = {label for rule in every for label in rule["labels"]}
    assert known["alertLabels"]["properties"].keys() == (kept | own | {"alertname"}) - {"le"}


def test_every_alert_has_the_labels_that_are_asked_for_beside_its_own() -> None:
    plain = alerts()
    assert len(plain) > 10
    for name, alert in alerts('metrics.prometheusRule.alertLabels={"team":"orders"}').items():
        assert alert["labels"] == {**plain[name]["labels"], "team": "orders"}


# Of two groups that are both more than 5,000 messages behind.
LAGS_OF_TWO_GROUPS = """
rule_files: [rules.yaml]
tests:
  - interval: 30s
    input_series:
      - series: kafka_consumer_lag_messages{namespace="default", group="kafka-workers", topic="teste", partition="0"}
        values: 6000+10x80
      - series: kafka_consumer_lag_messages{namespace="default", group="kafka-workers-pay", topic="pay", partition="0"}
        values: 6000+10x80
    alert_rule_test:
      - eval_time: 30m
        alertname: KafkaConsumerLagRising
        exp_alerts:
          - exp_labels: {severity: warning, namespace: default, group: kafka-workers-pay, topic: pay, partition: "0"}
            exp_annotations:
              summary: kafka-workers-pay is 6.6k messages behind in pay[0], and falls back further
              description: More members help up to one for each partition; else the handler has to be faster.
"""


def test_a_consumer_can_have_bounds_of_its_own_for_its_lag(promtool: str, tmp_path: Path) -> None:
    pay = 'consumers={"pay":{"topics":["pay"],"alerts":{"lagMessages":5000,"lagSeconds":60}}}'
    own = alerts(pay)
    assert " > 60" in own["KafkaConsumerLagSecondsRising"]["expr"]
    assert " > 300" in own["KafkaConsumerLagSecondsRising"]["expr"]
    assert " > 60" not in alerts()["KafkaConsumerLagSecondsRising"]["expr"]
    # The entries of `consumers` have those of `consumer`.
    inherited = alerts("consumer.alerts.lagMessages=7", 'consumers={"pay":{"topics":["pay"]}}')
    assert inherited["KafkaConsumerLagHigh"]["expr"].startswith(
        'sum by (namespace, group, topic, partition) (kafka_consumer_lag_messages{namespace="default", '
        'group=~"kafka-workers|kafka-workers-pay"}) > 7\n'
    )

    spec = one(render("metrics.prometheusRule.enabled=true", pay), "PrometheusRule")["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "test.yaml").write_text(LAGS_OF_TWO_GROUPS)
    result = subprocess.run([promtool, "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_dead_letter_alert_names_the_topic_of_the_letters() -> None:
    def command(*settings: str) -> str:
        description: str = alerts(*settings)["KafkaDeadLetters"]["annotations"]["description"]
        return description.split("`")[1]

    assert command() == "kafka-workers dead-letters replay --topic {{ $labels.topic }}.dlq"
    assert command('consumer.options={"dead-letter-topic":"failed"}') == (
        "kafka-workers dead-letters replay --topic failed --to-topic {{ $labels.topic }}"
    )


def test_a_pod_that_has_finished_is_no_target_for_ever() -> None:
    (endpoint,) = one(render("metrics.podMonitor.enabled=true"), "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "metrics", "interval": "15s"}


def test_a_scrape_has_the_fields_that_are_asked_for() -> None:
    documents = render(
        "metrics.podMonitor.enabled=true",
        'metrics.podMonitor.endpoint={"scrapeTimeout":"10s","relabelings":[{"targetLabel":"a","replacement":"b"}]}',
        'metrics.podMonitor.podTargetLabels=["team"]',
        'metrics.podMonitor.annotations={"c":"d"}',
        "metrics.dashboard.enabled=true",
        'metrics.dashboard.annotations={"grafana_folder":"Kafka"}',
    )
    monitor = one(documents, "PodMonitor")
    assert monitor["spec"]["podMetricsEndpoints"] == [
        {
            "port": "metrics",
            "interval": "15s",
            "scrapeTimeout": "10s",
            "relabelings": [{"targetLabel": "a", "replacement": "b"}],
        }
    ]
    assert (monitor["spec"]["podTargetLabels"], monitor["metadata"]["annotations"]) == (["team"], {"c": "d"})
    assert one(documents, "ConfigMap")["metadata"]["annotations"] == {"grafana_folder": "Kafka"}
    plain = one(render("metrics.podMonitor.enabled=true"), "PodMonitor")
    assert "podTargetLabels" not in plain["spec"]
    assert "annotations" not in plain["metadata"]


def test_the_days_before_a_certificate_ends_can_be_chosen() -> None:
    rule = one(
        render("metrics.prometheusRule.enabled=true", "metrics.prometheusRule.certificateExpiryDays=3"),
        "PrometheusRule",
    )
    (expiring,) = [
        each for each in rule["spec"]["groups"][0]["rules"] if each.get("alert") == "KafkaCertificateExpiring"
    ]
    assert expiring["expr"].endswith("- time() < 3 * 86400")


def test_alerts_and_dashboard_ask_for_metrics_that_exist_by_labels_that_they_have() -> None:
    known = {definition.name: definition for definition in (*PRODUCER, *CONSUMER, *LAG, *CANARY, *CLIENT)}
    expressions = [rule["expr"] for group in rules()["groups"] for rule in group["rules"]]
    queries = [*expressions, *queries_of_the_dashboard()]
    for query in queries:
        names = re.findall(r"\bkafka_(?:producer|consumer|client|group|topic|lag_exporter|canary)_\w+", query)
        assert names, query
        for name in names:
            base = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
            assert name in known or base in known, f"{name} in {query}"
        for name, matchers in re.findall(r"\b(kafka_\w+)\{([^}]*)\}", query):
            base = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
            labels = set(re.findall(r"(\w+)\s*[=!]~?", matchers)) - {"namespace", "pod"}
            assert labels <= set(known[base].labels), f"{labels} in {query}"
        of_any = {
            label for name in names for each in known.values() if name.startswith(each.name) for label in each.labels
        }
        kept = {label for labels in re.findall(BY, query) for label in labels.split(", ")}
        assert kept <= of_any | {"namespace", "pod", "instance", "le"}, f"{kept} in {query}"


def test_promtool_can_read_the_queries_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    dashboard = json.loads((CHART / "dashboards" / "kafka-workers.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    # Grafana replaces these variables.
    times = [query.replace("$__range", "1h").replace("$__rate_interval", "1m") for query in queries]
    recorded = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(times)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    result = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_metric_of_a_worker_is_on_the_dashboard_or_told_why_not() -> None:
    shown = "\n".join(queries_of_the_dashboard())
    # Facts, moments, offsets, of which the lag is made, and what another panel says already.
    left_out = {
        "kafka_client_info", "kafka_consumer_stats_timestamp_seconds", "kafka_producer_last_success_timestamp_seconds",
        "kafka_producer_messages_enqueued_total", "kafka_group_info", "kafka_group_committed_offset",
        "kafka_topic_beginning_offset", "kafka_topic_end_offset", "kafka_lag_exporter_rounds_total",
        "kafka_canary_sent_total",
    }  # fmt: skip
    names = {definition.name for definition in (*PRODUCER, *CONSUMER, *LAG, *CANARY, *CLIENT)}
    assert {name for name in names if name not in shown} == left_out


def test_every_alert_has_its_part_in_the_docs_and_links_to_it_when_told_where_they_are() -> None:
    told = render(*EVERYTHING, 'metrics.prometheusRule.runbookUrl="https://docs.example.com/alerts.md"')
    links = {
        rule["alert"]: rule["annotations"]["runbook_url"]
        for rule in one(told, "PrometheusRule")["spec"]["groups"][0]["rules"]
    }
    headings = re.findall(r"^## (\w+)$", (REPOSITORY / "docs" / "alerts.md").read_text(), re.MULTILINE)
    assert links == {name: f"https://docs.example.com/alerts.md#{name.lower()}" for name in headings}
    assert not [rule for group in rules()["groups"] for rule in group["rules"] if "runbook_url" in rule["annotations"]]


def test_each_release_has_a_dashboard_of_its_own() -> None:
    def shown(*settings: str) -> tuple[str, str]:
        text = one(render("metrics.dashboard.enabled=true", *settings), "ConfigMap")["data"]["kafka-workers.json"]
        dashboard = json.loads(text)
        assert len(dashboard["uid"]) <= 40
        return dashboard["uid"], dashboard["title"]

    first, second = shown(), shown('fullnameOverride="a-name-of-twenty-seven-char"')
    assert first[0] != second[0]
    assert first[1] == "workers-kafka-workers in default"


def test_no_rule_is_twice_the_same_with_several_consumers() -> None:
    documents = render('consumers={"pay":{"topics":["pay"]}}', "metrics.prometheusRule.enabled=true")
    found = [
        (rule["alert"], str(sorted(rule["labels"].items())))
        for rule in one(documents, "PrometheusRule")["spec"]["groups"][0]["rules"]
    ]
    assert len(found) == len(set(found))
    assert ("KafkaDeadLetters", str([("group", "kafka-workers-pay"), ("severity", "warning")])) in found
