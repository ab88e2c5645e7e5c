"""Dead letters with exactly-once: they are outputs of the transaction. Called by the loop's thread."""

from collections.abc import Iterable

from confluent_kafka import Consumer, Message

from workers.consumer.transactions import Transaction
from workers.deadletters.headers import dead_letter_headers, dead_letter_topic
from workers.deadletters.writer import DeadLetter, missing_topics


class HeldDeadLetters:
    """Dead letters that are written in the transaction: they are as good as delivered when it holds them, and count
    when it is committed.
    """

    held = True

    def __init__(self, topic: str | None, group_id: str, transaction: Transaction) -> None:
        self.named = topic
        self._group_id = group_id
        self._transaction = transaction

    def missing(self, client: Consumer, topics: Iterable[str]) -> list[str]:
        return missing_topics(client, topics, self.named)

    def send(self, message: Message, error: BaseException, attempts: int) -> DeadLetter:
        headers = dead_letter_headers(message, self._group_id, error, attempts)
        topic = dead_letter_topic(message.topic() or "", self.named)
        self._transaction.hold_dead_letter(message, topic, headers)
        dead_letter = DeadLetter()
        dead_letter.delivered = True
        return dead_letter

    def poll(self, timeout_s: float) -> None: ...

    def close(self, timeout_s: float) -> None: ...
