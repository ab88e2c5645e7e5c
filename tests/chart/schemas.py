"""Holds a manifest against the schema of its kind: nothing unknown, nothing of the wrong type."""

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator

with warnings.catch_warnings():
    # It looks for its schemas in a way that Python deprecates.
    warnings.simplefilter("ignore")
    import kubernetes_validate

KUBERNETES = "1.34"
KUBERNETES_SCHEMAS = (
    Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
)
SCHEMAS = Path(__file__).with_name("schemas")
# Whose schemas nobody publishes as a package; the tests look into them by themselves.
OTHERS = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}


def check(document: dict[str, Any]) -> None:
    """Fails with what is wrong and where."""
    if document["apiVersion"].startswith("kafka.strimzi.io/"):
        errors = [f"{error.json_path}: {error.message}" for error in _strimzi(document).iter_errors(document)]
        assert not errors, errors
    elif document["apiVersion"] not in OTHERS:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def check_skaffold(document: dict[str, Any]) -> None:
    schema = json.loads((SCHEMAS / "skaffold-v4beta14.json").read_text())
    errors = [f"{error.json_path}: {error.message}" for error in Draft7Validator(schema).iter_errors(document)]
    assert not errors, errors


def _strimzi(document: dict[str, Any]) -> Draft7Validator:
    known = _definitions()
    name = (document["apiVersion"], document["kind"])
    assert name in known, f"{name} is not one of {sorted(known)}"
    return Draft7Validator(known[name])


@cache
def _definitions() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for path in SCHEMAS.glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())["spec"]
        for version in definition["versions"]:
            name = f"{definition['group']}/{version['name']}", definition["names"]["kind"]
            schema = _closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[name] = schema
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
