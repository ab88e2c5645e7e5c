"""Kafka workers that account for every message.

User code imports from here: `Outgoing` and `Delivery` for a message source; `Message`, `Retry`, `Reject`, `batch` and
`lifespan` for a handler; `Handler`, `is_async` and `is_batch` for a middleware.
"""

from workers.handlers import Handler, Message, Reject, Retry, batch, is_async, is_batch, lifespan
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
    "batch",
    "is_async",
    "is_batch",
    "lifespan",
]
