"""Handlers that do nothing, so that what is measured is what is around them."""

from collections.abc import Sequence

from workers import Message, batch


@batch
def each_batch(messages: Sequence[Message]) -> None:
    """Counting is the worker's own business."""


def each(message: Message) -> None:
    """Counting is the worker's own business."""
