"""Kafka workers that account for every message.

User code imports from here: `Outgoing` and `Delivery` for a message source; `Message`, `Retry`, `Reject`, `batch` and
`lifespan` for a handler; `Handler`, `around`, `is_async` and `is_batch` for a middleware.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.handlers import Handler, Message, Reject, Retry, around, batch, is_async, is_batch, lifespan
    from workers.sources import Delivery, Outgoing

__version__ = "0.1.0"

__all__ = [
    "Delivery",
    "Handler",
    "Message",
    "Outgoing",
    "Reject",
    "Retry",
    "__version__",
    "around",
    "batch",
    "is_async",
    "is_batch",
    "lifespan",
]


def __getattr__(name: str) -> object:
    """Import what is asked for. The command handles Ctrl-C before it imports the client, which takes long."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "workers.sources" if name in ("Delivery", "Outgoing") else "workers.handlers"
    found = globals()[name] = getattr(importlib.import_module(module), name)
    return found
