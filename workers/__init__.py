"""Kafka workers that account for every message.

What user code needs is importable from here: `Outgoing` and `Delivery` for a message source, and `Message`, `Retry`,
`Reject`, `batch` and `lifespan` for a handler.
"""

from workers.handlers import Message, Reject, Retry, batch, lifespan
from workers.sources import Delivery, Outgoing

__version__ = "0.1.0"

__all__ = ["Delivery", "Message", "Outgoing", "Reject", "Retry", "__version__", "batch", "lifespan"]
