"""Sends dead letters back to where they came from: those that are there when it begins, and that no replay has sent.

At least once, as every consumer: a dead letter is committed, or recorded, when the brokers have acknowledged its
replay. A message that the handler rejects again while this runs is a dead letter for the next replay, so this one ends.

Whoever may write to the dead-letter topic may write any origin into a header. So dead letters go only to the topics
whose dead-letter topic it is: TOPIC for TOPIC.dlq, or those that the user names. A dead letter of another topic is not
sent, and neither are those behind it in its partition; none of them is committed. So nothing is lost, and the order
stays, whether the user then allows its topic or passes it over.

Without a selection dead letters are replayed in order, and the committed offset says how far. With one, some wait
before others that are sent: these are recorded one by one (`treated.py`), and the offset stays before the first that
waits. Dead letters that are passed over for good are recorded as discarded.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from workers.config import ClientConfig
from workers.deadletters.headers import ORIGINAL_TOPIC, SUFFIX
from workers.deadletters.reading import open_topic
from workers.deadletters.sender import Sender
from workers.deadletters.stored import EVERYTHING, Origin, Selection, StoredDeadLetter
from workers.deadletters.treated import Record, State, Treated, now, ranges_of, record_of
from workers.errors import ConfigError, WorkerError
from workers.lifecycle import Shutdown, call_until_stopped

log = logging.getLogger(__name__)
SKIPPED = "it came from {}, and replay ran with --skip-other-topics"


@dataclass(slots=True)
class Replayed:
    """Counts of the dead letters so far, by outcome."""

    sent: int = 0
    # Passed over: they do not say where they came from.
    without_origin: int = 0
    # Lines that `produce` could not send, which go on to wait.
    invalid_lines: int = 0
    # Passed over: they came from topics that are not allowed, and this was asked for.
    skipped: int = 0
    # The topic of the first dead letter, in each partition, that came from one that is not allowed.
    refused: dict[int, str] = field(default_factory=dict)
    # How many were sent to which topic.
    by_topic: Counter[str] = field(default_factory=Counter)

    @property
    def treated(self) -> int:
        return self.sent + self.without_origin + self.skipped


def allowed_topics(topic: str, to_topics: Sequence[str]) -> frozenset[str]:
    """The topics that dead letters of the dead-letter topic `topic` may be sent to: `to_topics`, or by its name.

    Raises ConfigError when there is neither, or when one of them is `topic` itself.
    """
    if topic in to_topics:
        raise ConfigError(
            f"--to-topic {topic}: this is the dead-letter topic itself; name the source topic of its dead letters"
        )
    if to_topics:
        return frozenset(to_topics)
    original = topic.removesuffix(SUFFIX)
    if original in ("", topic):
        raise ConfigError(
            f"--topic {topic}: the name is not that of a topic with {SUFFIX} behind it; name the topics that its "
            "dead letters may be sent back to with --to-topic"
        )
    return frozenset([original])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which dead letters are replayed, and to which topics. `group_id` and `by`, the client's name, are for records."""

    topic: str
    allowed: frozenset[str]
    group_id: str = ""
    by: str = ""
    selection: Selection = EVERYTHING
    # Pass over, for good, dead letters of topics that are not allowed.
    skip_others: bool = False
    limit: int | None = None
    # Also those that were replayed or discarded.
    again: bool = False
    # Only count.
    dry_run: bool = False


def replay(
    config: ClientConfig,
    producer_config: ClientConfig,
    rules: Rules,
    shutdown: Shutdown,
    *,
    timeout_s: float,
) -> Replayed:
    """Replay the dead letters that `rules` choose. Commit them to the group of `config`, or record them.

    Dead letters of topics that are not allowed, and not passed over, are in the result as refused. Raises ConfigError
    for a named dead letter that is not there or was treated, WorkerError when a dead letter cannot be sent, which then
    is the first of its partition in the next replay, and as `open_topic` and `read_to_end` do.
    """
    done = Replayed()
    sender = None if rules.dry_run else Sender(producer_config, shutdown)
    try:
        with open_topic(config, rules.topic, rules.group_id, shutdown, timeout_s) as dead_letters:
            starts = dead_letters.starts(rules.selection, treated=rules.again)
            survey = dead_letters.survey(starts, rules.selection)
            dead_letters.check_named(rules.selection, survey, treated=rules.again)
            if not dead_letters.treated.committed:
                log.info(
                    "group %s has committed no offset of %s, or the brokers have forgotten it "
                    "(offsets.retention.minutes): its dead letters count as not replayed unless a record says so",
                    rules.group_id,
                    rules.topic,
                )
            held = dead_letters.partitions_begun_later(starts)
            replayer = Replayer(dead_letters.client, sender, rules, dead_letters.treated, held, done, shutdown)
            for messages in dead_letters.read(starts):
                replayer.replay(messages)
                if rules.limit is not None and done.treated >= rules.limit:
                    break
    except BaseException:
        if sender is not None:
            log.info("%d dead letters of %s were replayed before that", done.sent, rules.topic)
        raise
    finally:
        if sender is not None:
            sender.close()
    return done


class Choice(NamedTuple):
    """A message of the dead-letter topic, and what is to become of it: sent to its origin, or passed over."""

    letter: StoredDeadLetter
    # Whether a dead letter waits before it.
    held: bool
    origin: Origin | None = None
    # Why a dead letter is passed over that waits; empty for one that was treated, and for a record.
    reason: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is a dead letter that waits or is sent once more."""
        return self.origin is not None or bool(self.reason)


class Replayer:
    """Replays batch after batch of one topic.

    Dead letters before the first one of their partition that still waits are committed. Those behind it, or passed
    over, are recorded.
    """

    def __init__(
        self,
        reader: confluent_kafka.Consumer,
        sender: Sender | None,
        rules: Rules,
        treated: Treated,
        held: set[int],
        done: Replayed,
        shutdown: Shutdown,
    ) -> None:
        self._reader = reader
        self._sender = sender
        self._rules = rules
        self._treated = treated
        self._done = done
        self._shutdown = shutdown
        # Partitions in which a dead letter waits before what comes next.
        self._held = set(held)

    def replay(self, messages: Sequence[Message]) -> None:
        """Send the dead letters that the rules choose, then commit or record those that come before one of their
        partition that is refused or not acknowledged.

        Counts up to the limit. Raises WorkerError when a dead letter was not acknowledged, or a commit or a record
        failed.
        """
        chosen = self._choose(messages)
        if self._sender is None:
            self._count(chosen)
            return
        outcomes = self._sender.send([(choice.letter.message, choice.origin) for choice in chosen])
        unsent = set()
        over = []
        for choice, outcome in zip(chosen, outcomes, strict=True):
            partition = choice.letter.place.partition
            if outcome is not None:
                unsent.add(partition)
            elif partition not in unsent:
                over.append(choice)
        self._keep(self._sender, over)
        reasons = [outcome for outcome in outcomes if outcome is not None]
        if reasons:
            self._sender.check()
            sent = sum(choice.counts for choice in chosen)
            raise WorkerError(f"{len(reasons)} of {sent} dead letters were not acknowledged: {reasons[0]}")

    def _choose(self, messages: Sequence[Message]) -> list[Choice]:
        chosen: list[Choice] = []
        count = self._done.treated
        for message in messages:
            if self._rules.limit is not None and count >= self._rules.limit:
                break
            if (message.partition() or 0) in self._done.refused:
                continue
            choice = self._choice(message)
            if choice is not None:
                chosen.append(choice)
                count += choice.counts
        return chosen

    def _choice(self, message: Message) -> Choice | None:
        """The choice for one message; None for a dead letter that goes on to wait."""
        letter = StoredDeadLetter(message)
        partition = letter.place.partition
        choice = Choice(letter, partition in self._held)
        if record_of(message) is not None:
            return choice
        waits = self._treated.state_of(letter.place) is State.WAITING
        if not (waits or self._rules.again):
            return choice
        origin = letter.origin
        chosen = self._rules.selection.matches(letter)
        if chosen and waits and letter.is_invalid_line:
            # It is no message of any topic, and waits until somebody has mended it and sent it.
            self._done.invalid_lines += 1
            chosen = False
        if not chosen:
            if waits:
                self._held.add(partition)
            return None if waits else choice
        if origin is None:
            return choice._replace(reason=f"it has no header {ORIGINAL_TOPIC} with a topic") if waits else None
        if origin.topic in self._rules.allowed:
            return choice._replace(origin=origin)
        if self._rules.skip_others:
            return choice._replace(reason=SKIPPED.format(origin.topic)) if waits else None
        self._done.refused[partition] = origin.topic
        return None

    def _keep(self, sender: Sender, over: Sequence[Choice]) -> None:
        """Record or commit what was done, and count it."""
        records = self._records(over)
        failed = sender.record(self._rules.topic, records) if records else {}
        kept = [choice for choice in over if choice.letter.place.partition not in failed]
        committable = [
            letter.message
            for letter, held, *_ in kept
            if not held and letter.place.offset >= self._treated.first_waiting(letter.place.partition)
        ]
        if committable:
            commit(self._reader, committable, self._shutdown)
        self._count(kept)
        if failed:
            again = sum(choice.origin is not None for choice in over if choice.letter.place.partition in failed)
            what = (
                f"{again} dead letters were sent, and that could not be recorded in {self._rules.topic}; the next "
                "replay sends them again"
                if again
                else f"what is passed over could not be recorded in {self._rules.topic}, so it waits"
            )
            raise WorkerError(f"{what}. May the user write to it? {next(iter(failed.values()))}")

    def _records(self, over: Sequence[Choice]) -> list[tuple[int, Record]]:
        offsets: dict[tuple[int, State, str], list[int]] = {}
        for letter, held, origin, reason in over:
            place = letter.place
            state = State.DISCARDED if reason else State.REPLAYED
            # The record of a discard outweighs a committed offset.
            if reason or (origin is not None and (held or self._treated.state_of(place) is State.DISCARDED)):
                offsets.setdefault((place.partition, state, reason), []).append(place.offset)
        at = now()
        return [
            (partition, Record(state, ranges_of(numbers), self._rules.group_id, at, self._rules.by, reason))
            for (partition, state, reason), numbers in offsets.items()
        ]

    def _count(self, chosen: Sequence[Choice]) -> None:
        for choice in chosen:
            if choice.origin is not None:
                self._done.sent += 1
                self._done.by_topic[choice.origin.topic] += 1
            elif choice.letter.origin is not None:
                self._done.skipped += bool(choice.reason)
            else:
                self._done.without_origin += bool(choice.reason)


def commit(reader: confluent_kafka.Consumer, dead_letters: Sequence[Message], shutdown: Shutdown) -> None:
    """Commits dead letters of one topic that were sent; raises WorkerError when that fails in one or all, and when it
    is not known in the time to stop.
    """
    following = {dead_letter.partition() or 0: (dead_letter.offset() or 0) + 1 for dead_letter in dead_letters}
    topic = dead_letters[0].topic() or ""
    offsets = [TopicPartition(topic, number, offset) for number, offset in following.items()]
    errors: dict[int, KafkaError] = {}

    def ask() -> None:
        try:
            answers = reader.commit(offsets=offsets, asynchronous=False)
            errors.update({each.partition: each.error for each in answers if each.error is not None})
        except KafkaException as error:
            errors.update(dict.fromkeys(following, error.args[0]))

    if not call_until_stopped(ask, shutdown):
        raise WorkerError(
            f"{len(dead_letters)} dead letters were sent, and it is unknown whether they are committed, so the next "
            "replay may send them again: the brokers did not answer in the time to stop"
        )
    if errors:
        again = sum(dead_letter.partition() in errors for dead_letter in dead_letters)
        names = ", ".join(map(str, sorted(errors)))
        raise WorkerError(
            f"{again} dead letters were sent and could not be committed in partition {names}, the next replay sends "
            f"them again: {next(iter(errors.values())).str()}"
        )
