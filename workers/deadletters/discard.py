"""Discards dead letters: writes into their topic that they are not to be replayed, by whom and why.

The dead letters stay in the topic for as long as it keeps them, and `replay --again` can still send them.
"""

from workers.config import ClientConfig
from workers.deadletters.reading import open_topic
from workers.deadletters.sender import Sender
from workers.deadletters.stored import Selection
from workers.deadletters.treated import Record, State, now, ranges_of
from workers.errors import WorkerError
from workers.lifecycle import Shutdown

WAITING = frozenset({State.WAITING})


def discard(
    config: ClientConfig,
    producer_config: ClientConfig,
    topic: str,
    group_id: str,
    shutdown: Shutdown,
    *,
    selection: Selection,
    reason: str,
    by: str,
    dry_run: bool,
    timeout_s: float,
) -> int:
    """Discard the dead letters that wait, for the group of `config`, and that `selection` matches; return how many.

    With `dry_run` only count them. Raises ConfigError for a topic of other messages, and for a named dead letter that
    is not there or was treated; WorkerError when the brokers do not take a record, and as `open_topic` and
    `read_to_end` do.
    """
    count = 0
    with open_topic(config, topic, group_id, shutdown, timeout_s) as dead_letters:
        starts = dead_letters.starts(selection, treated=False)
        survey = dead_letters.survey(starts, selection)
        survey.check()
        dead_letters.check_named(selection, survey, treated=False)
        sender = None if dry_run else Sender(producer_config, shutdown)
        try:
            for letters in dead_letters.letters(starts, selection, WAITING):
                offsets: dict[int, list[int]] = {}
                for letter, _ in letters:
                    offsets.setdefault(letter.place.partition, []).append(letter.place.offset)
                if sender is not None:
                    count += _record(
                        sender, topic, offsets, Record(State.DISCARDED, (), group_id, now(), by, reason), count
                    )
                else:
                    count += len(letters)
        finally:
            if sender is not None:
                sender.close()
    return count


def _record(sender: Sender, topic: str, offsets: dict[int, list[int]], record: Record, before: int) -> int:
    """Write `record` about these offsets of each partition; return how many. `before` were discarded earlier."""
    records = [(partition, record._replace(offsets=ranges_of(found))) for partition, found in offsets.items()]
    failed = sender.record(topic, records) if records else {}
    done = sum(len(found) for partition, found in offsets.items() if partition not in failed)
    if failed:
        sender.check()
        raise WorkerError(
            f"{before + done} dead letters were discarded, and the others still wait, as {topic} did not take the "
            f"record of it; may the user write to it? {next(iter(failed.values()))}"
        )
    return done
