"""Orders with the prices of an HTTP service, from one topic into another. The price of each order is written once.

kafka-workers consume --topic orders --handler enrichment:price --concurrency 64 --order key --exactly-once
"""

import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple
from urllib.parse import quote

import httpx2

from workers import Message, Outgoing, Reject, Retry, lifespan

PRICES_URL = os.environ.get("PRICES_URL", "http://localhost:8080")
PRICED_TOPIC = os.environ.get("PRICED_TOPIC", "orders-priced")
# For each step of a call: to connect, to send, and to wait for the next bytes.
TIMEOUT_S = float(os.environ.get("PRICES_TIMEOUT_S", "5"))
# One for each call at once, as --concurrency says; httpx keeps 20 open otherwise.
CONNECTIONS = int(os.environ.get("PRICES_CONNECTIONS", "64"))

# It logs each request.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class Order(NamedTuple):
    """A part of an order: how many of which article."""

    number: int
    article: str
    quantity: int


@lifespan
async def price() -> AsyncIterator[Callable[[Message], Awaitable[Outgoing]]]:
    """Opens the HTTP client once, gives back each order with its price, and closes the client when the worker ends."""
    limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    async with httpx2.AsyncClient(base_url=PRICES_URL, timeout=TIMEOUT_S, limits=limits) as prices:

        async def handle(message: Message) -> Outgoing:
            order = _order(message)
            cents = order.quantity * await _cents(prices, order.article)
            return Outgoing(json.dumps({**order._asdict(), "cents": cents}), key=message.key(), topic=PRICED_TOPIC)

        yield handle


def _order(message: Message) -> Order:
    """Return the order in a message; a message that is none goes to the dead-letter topic without another try."""
    try:
        order = json.loads(message.value() or b"")
        return Order(int(order["number"]), str(order["article"]), int(order["quantity"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Reject(f"not an order: {error!r}") from None


async def _cents(prices: httpx2.AsyncClient, article: str) -> int:
    """Ask for the price of an article.

    An unavailable service has the order tried again until it answers, and an article without a price has it rejected.
    Any other answer is a failed attempt, as of every error.
    """
    try:
        answer = await prices.get(f"/prices/{quote(article, safe='')}")
    except httpx2.TransportError as error:
        raise Retry(f"the price service does not answer: {type(error).__name__}: {error}") from None
    if answer.status_code == 404:
        raise Reject(f"article {article!r} has no price")
    if answer.status_code == 429 or answer.is_server_error:
        raise Retry(f"the price service cannot answer: HTTP {answer.status_code}")
    if answer.status_code != 200:
        raise RuntimeError(f"the price service does not take the request: HTTP {answer.status_code}")
    return int(answer.json()["cents"])
