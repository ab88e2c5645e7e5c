"""Holds a manifest against the schema of its kind: nothing unknown, nothing of the wrong type."""

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

from tests.documents import load

with warnings.catch_warnings():
    # It looks for its schemas in a way that Python deprecates.
    warnings.simplefilter("ignore")
    import kubernetes_validate

KUBERNETES = "1.34"
KUBERNETES_SCHEMAS = (
    Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
)
SCHEMAS = Path(__file__).with_name("schemas")
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "namespace": {"type": "string"},
        "name": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def check(document: dict[str, Any]) -> None:
    """Fails with what is wrong and where."""
    schema = _definitions().get((document["apiVersion"], document["kind"]))
    if schema is None:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    else:
        _check(document, schema)


def check_skaffold(document: dict[str, Any]) -> None:
    _check(document, json.loads((SCHEMAS / "skaffold-v4beta14.json").read_text()))


def write_for_kubeconform(directory: Path) -> str:
    """Writes every schema into a directory, and returns where kubeconform finds them."""
    for path in KUBERNETES_SCHEMAS.glob("*.json"):
        # Their references are to a server; kubeconform looks beside them.
        schema = json.loads(path.read_text().replace("/api/_definitions.json", "_definitions.json"))
        schema.pop("$id", None)
        (directory / path.name).write_text(json.dumps(schema))
    for (api, kind), schema in _definitions().items():
        group, version = api.split("/")
        name = f"{kind.lower()}-{group.partition('.')[0]}-{version}.json"
        (directory / name).write_text(json.dumps(schema))
    return f"{directory}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"


def _check(document: dict[str, Any], schema: dict[str, Any]) -> None:
    errors = [f"{error.json_path}: {error.message}" for error in Draft7Validator(schema).iter_errors(document)]
    assert not errors, errors


@cache
def _definitions() -> dict[tuple[str, str], dict[str, Any]]:
    """The schemas of what is not Kubernetes' own, by apiVersion and kind."""
    found = {}
    for path in SCHEMAS.glob("*-Crd-*.yaml"):
        definition = load(path.read_text())["spec"]
        for version in definition["versions"]:
            name = f"{definition['group']}/{version['name']}", definition["names"]["kind"]
            found[name] = _closed(version["schema"]["openAPIV3Schema"])
            found[name]["properties"]["metadata"] = METADATA
    for each, spec in load((SCHEMAS / "others.yaml").read_text()).items():
        api, kind = each.rsplit("/", 1)
        properties = {"apiVersion": {"const": api}, "kind": {"const": kind}, "metadata": METADATA, "spec": spec}
        found[api, kind] = _closed({"type": "object", "required": ["metadata", "spec"], "properties": properties})
    return found


def _closed(schema: Any) -> Any:
    """The schema with unknown fields refused, where it does not say that it has them."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        closed["additionalProperties"] = False
    return closed
