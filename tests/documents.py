"""YAML, read by libyaml: reading what Helm renders would take longer than rendering it. And the YAML in docs."""

import re
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).resolve().parents[1] / "docs" / "kubernetes.md"


def load(text: str) -> Any:
    """The only document of `text`."""
    return yaml.load(text, Loader=yaml.CSafeLoader)


def load_all(text: str) -> list[Any]:
    """The documents of `text`, without the empty ones."""
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


def adapter_rules() -> str:
    """The configuration that docs/kubernetes.md gives to prometheus-adapter."""
    (rules,) = re.findall(r"^```text\n(externalRules:.*?)^```", KUBERNETES.read_text(), re.DOTALL | re.MULTILINE)
    return str(rules)
