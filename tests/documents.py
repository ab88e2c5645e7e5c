"""YAML, read by libyaml: reading what Helm renders would take longer than rendering it."""

from typing import Any

import yaml


def load(text: str) -> Any:
    """The only document of `text`."""
    return yaml.load(text, Loader=yaml.CSafeLoader)


def load_all(text: str) -> list[Any]:
    """The documents of `text`, without the empty ones."""
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]
