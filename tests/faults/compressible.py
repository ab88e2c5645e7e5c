"""A source of JSON that compresses well, with a key each."""

import json
import random
from collections.abc import Iterator

from workers import Outgoing

# With zstd, in batches of 1 MB; about.
RATIO = 14
KEYS = 1000
RANDOM_BYTES = 66
ITEMS = [{"sku": f"ABC-{n}", "quantity": 1, "price": {"amount": "19.99", "currency": "EUR"}} for n in range(10)]


def messages() -> Iterator[Outgoing]:
    numbers = random.Random(0)
    rest = json.dumps({"customer": {"street": "Long Street 12", "city": "Springfield"}, "items": ITEMS})[1:]
    while True:
        order = numbers.randbytes(RANDOM_BYTES).hex()
        yield Outgoing(f'{{"order": "{order}", {rest}', key=f"key-{numbers.randrange(KEYS)}")
