"""Membership in the group: joining, rebalances, leaving. The callbacks run inside `poll` and `close`."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import RLock, Thread
from typing import Any

from confluent_kafka import OFFSET_END, OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from workers.config import ClientConfig
from workers.consumer.assignment import PartitionState, names
from workers.consumer.parts import Parts
from workers.consumer.scheduling import Work
from workers.consumer.seeking import seek
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.kafka.credentials import CredentialsWatch
from workers.kafka.statistics import Statistics
from workers.lifecycle import call_in_thread, call_until_stopped, call_with_timeout

log = logging.getLogger(__name__)

# How long a rebalance waits for the messages at hand; then they are redelivered to the next owner.
REVOKE_WAIT_S = 10.0
# How long a member that leaves waits until the brokers have taken its last commit; then its messages are redelivered.
CONFIRM_S = 5.0
# How often it looks for their answer, and commits again when they have refused.
CONFIRM_LOOK_S = 0.05
# How long leaving the group may take besides.
LEAVE_S = 5.0
# Exactly once: a partition that only a rebalance can begin anew waits so long for others to be so too, and so long for
# those of which it is known: retention overtakes many at a time, and brokers say so one after the other.
TOGETHER_S = 0.5
TOGETHER_KNOWN_S = 10.0
# The worker ends when more clients than these hang: each keeps its threads and its memory.
MAX_HUNG = 3
# How often it is tried to make a client in the place of one that hangs.
CONNECT_LOOK_S = 1.0
# Errors of brokers that no other try changes: the property that they refuse, and the remedy.
REFUSED_SETTINGS = {
    KafkaError.INVALID_SESSION_TIMEOUT: (
        "session.timeout.ms",
        "give one between the brokers' group.min.session.timeout.ms and group.max.session.timeout.ms",
    ),
    KafkaError.INVALID_GROUP_ID: ("group.id", "give the group another name"),
}


class Membership:
    """A member of its group. `account` accounts for a work that is waited for while its partition is revoked."""

    def __init__(
        self,
        parts: Parts,
        config: ClientConfig,
        topics: Sequence[str],
        credentials: CredentialsWatch,
        *,
        connect: Callable[[], Any],
        account: Callable[[Work, bool], None],
    ) -> None:
        self.joined = False
        self.rebalances = {"assign": 0, "revoke": 0, "lost": 0}
        # When something was assigned last.
        self.assigned_at = time.monotonic()
        self._parts = parts
        self._config = config
        self._topics = list(topics)
        self._credentials = credentials
        self._connect = connect
        self._account = account
        self._exactly_once = parts.outputs.transaction is not None
        # Partitions that go on with the next assignment, and since when there are any.
        self._not_sought: list[PartitionState] = []
        self._not_sought_since = 0.0
        # Threads that close clients which hang.
        self._hung: list[Thread] = []
        # Nothing is begun of what is assigned meanwhile.
        self._leaving = False
        # Held by a callback while it changes the parts: a client is given up before or after that. Closing calls back
        # in another thread, and the loop goes on beside one that hangs.
        self._handover = RLock()
        self._broker_assigns = config.get("group.protocol") == "consumer"
        # Strategies other than cooperative-sticky take everything away in a rebalance and give it back.
        strategy = config.get("partition.assignment.strategy", "cooperative-sticky")
        self._eager = not self._broker_assigns and strategy != "cooperative-sticky"

    def join(self) -> None:
        self._parts.client.subscribe(
            self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def note(self, statistics: Statistics) -> None:
        """See from the statistics whether the group is joined."""
        if statistics.coordinator_up and not self.joined:
            # A KIP-848 member that never owned a partition stays in the join state "init".
            self.joined = statistics.group_steady or self._broker_assigns

    def check_refusal(self, error: KafkaError) -> None:
        """Raises WorkerError, as for a wrong configuration, when brokers refuse a setting of a member that has never
        joined. One that has was taken with it: a coordinator with other bounds may move again.
        """
        if self.rebalances["assign"] or error.code() not in REFUSED_SETTINGS:
            return
        name, remedy = REFUSED_SETTINGS[error.code()]
        setting = self._config.settings.get(name)
        where = "" if setting is None else f"{setting.origin}: "
        value = self._config.get(name, "its default")
        raise WorkerError(f"{where}{name}={value}: the brokers refuse it: {error.str()}; {remedy}", ExitCode.USAGE)

    def rejoin(self) -> None:
        """Join again with the same client: the group does not know this member any more."""
        log.warning("group %s does not know this member any more, joining again", self._config.get("group.id"))
        self._join_again()

    def _join_again(self) -> None:
        self._parts.client.unsubscribe()
        self.join()

    @property
    def restarting(self) -> bool:
        """Whether the group is to be joined again, for partitions that go on only then."""
        return bool(self._not_sought)

    def restart_partitions(self) -> None:
        """Have partitions whose offset was not known, or is not in the log any more, begin where `Starts` says."""
        statistics = self._parts.client_state.statistics
        leaders = {} if statistics is None else statistics.leaders
        for start in self._parts.starts.decided(self._parts.client, leaders):
            state = start.state
            if start.anew:
                if state.paused:
                    # librdkafka would keep the pause.
                    self._parts.client.resume([state.topic_partition()])
                self._parts.scheduler.drop(state)
                if not start.rewound:
                    self._parts.outputs.forsake([state], lost=False)
                if start.committed is not None:
                    state = self._parts.assignment.adopt(start.committed)
                else:
                    state = self._parts.assignment.reset(state, start.offset)
            else:
                self._parts.assignment.skip_to(state, start.offset)
            known = start.committed
            # With its epoch, where the group has committed it: librdkafka tells then where the log was cut since.
            place = state.at_position() if known is None else self._fetched_from(known)
            if self._exactly_once:
                if not self._seek(state, place):
                    self._await_assignment(state)
            elif not (start.rewound and self._seek(state, place)):
                self._reassign(state, place)
            if start.commit:
                state.commit.make_explicit()
            self._parts.committer.stage([state], now=True)
        if self._not_sought:
            self._join_for_not_sought()

    def _await_assignment(self, state: PartitionState) -> None:
        if not self._not_sought:
            self._not_sought_since = time.monotonic()
        self._not_sought.append(state)

    def _join_for_not_sought(self) -> None:
        """Join again for all partitions that need it: where they begin is committed, and they are assigned there."""
        self._not_sought = [state for state in self._not_sought if state.owned]
        waited_s = time.monotonic() - self._not_sought_since
        if not self._not_sought or waited_s < (TOGETHER_KNOWN_S if self._parts.starts.undecided else TOGETHER_S):
            return
        places = [state.topic_partition() for state in self._not_sought]
        self._not_sought.clear()
        log.warning("%s: joining the group again to go on there", names(places))
        self._join_again()

    def rewind(self) -> None:
        """Begin all partitions again at what the group has committed: the transaction they were in is aborted."""
        for state in [*self._parts.assignment.partitions.values()]:
            if state.paused:
                self._parts.client.resume([state.topic_partition()])
            self._parts.scheduler.drop(state)
            self._parts.starts.forget(state)
            self._parts.starts.await_committed(self._parts.assignment.rewind(state), rewound=True)

    def _seek(self, state: PartitionState, place: TopicPartition) -> bool:
        """Fetch from another offset; return False where the client cannot.

        With exactly-once partitions are only assigned inside of a rebalance: between two librdkafka may take that for
        the answer to one that waits. Then partitions that others have already would be revoked, not lost, and committed
        by us.
        """
        try:
            seek(self._parts.client, place)
        except KafkaException as error:
            log.debug("%s: not sought, so assigned anew: %s", state, error)
            return False
        return True

    def _reassign(self, state: PartitionState, place: TopicPartition) -> None:
        """Begin to fetch anew: a partition without a valid offset cannot be sought. Not with exactly-once."""
        if self._eager:
            others = [each.at_position() for each in self._parts.assignment.partitions.values() if each is not state]
            self._parts.client.assign([place, *others])
            return
        self._parts.client.incremental_unassign([place])
        self._parts.client.incremental_assign([place])

    def renew(self) -> None:
        """Leave the group cleanly, make a new client and join again: for credentials that have changed, and for a fetch
        that hangs. Called by the loop's thread. It waits for the calls under way as at a rebalance.
        """
        fresh = self._credentials.connect(self._connect, self._topics[0])
        if fresh is None:
            return
        self._parts.executor.interrupt()
        self._leaving = True
        # Its callbacks wait for the messages at hand, and are to be over when the new client is in its place.
        longest_s = REVOKE_WAIT_S + CONFIRM_S + LEAVE_S + self._parts.committer.longest_s
        close = partial(self._finish_and_close, self._parts.client)
        left = call_until_stopped(close, self._parts.shutdown, longest_s)
        with self._handover:
            # One that is still closing is given up: its callbacks change nothing any more.
            self._parts.client = fresh
            # The coordinator refused the commits of the member that has left.
            self._parts.committer.forgotten_since = None
        self._leaving = False
        if not left:
            if self._exactly_once:
                raise WorkerError(
                    "the group was not left in time, so the outcome of the last transaction is unknown; start the "
                    "worker again: it continues from the committed offsets"
                )
            log.warning("the group was not left in time: its session with the old client has to time out")
        # Where brokers do not answer, closing has called back for nothing.
        gone = self._take_away([state.topic_partition() for state in self._parts.assignment.partitions.values()])
        self._parts.outputs.forsake(gone)
        self.joined = False
        self._renewed()
        self.join()

    def give_up_client(self, reason: str) -> None:
        """Join with a new client, as the one in use hangs: it is closed whenever it answers again, if it ever does. Its
        partitions are lost; the group gives them to others when its session times out.

        The new client has the credentials of now, which no broker may have accepted yet. Raises WorkerError when a stop
        is asked for before there is one, and when too many clients hang.
        """
        hung, self._parts.client = self._parts.client, None
        # To forget it would have this thread wait for it.
        self._hung = [each for each in self._hung if each.is_alive()] + [call_in_thread(hung.close)]
        states = [*self._parts.assignment.partitions.values()]
        with self._handover:
            self._parts.committer.forgotten_since = None
            self.rebalances["lost"] += bool(states)
            self._forsake_lost(self._forget([state.topic_partition() for state in states]))
        self.joined = False
        log.warning("%s; joining the group with a new client, and its partitions are lost: %s", reason,
                    ", ".join(map(str, states)) or "none")  # fmt: skip
        if len(self._hung) > MAX_HUNG:
            raise WorkerError(f"{reason}, as {MAX_HUNG} clients before it; start the worker again")
        if self._parts.shutdown.requested:
            return
        self._parts.client = self._connected_at_last(reason)
        self._parts.client_state.silent_s = 0.0
        self._renewed()
        self.join()

    def _connected_at_last(self, reason: str) -> Any:
        while True:
            try:
                return self._connect()
            except (ConfigError, WorkerError) as error:
                self._credentials.postpone(str(error))
            if self._parts.shutdown.requested:
                raise WorkerError(f"{reason}, and a stop was asked for before another one could be made")
            time.sleep(CONNECT_LOOK_S)

    def refreshed(self) -> Any:
        """The client to begin with: another one when its certificates have changed meanwhile."""
        if self._credentials.refresh(self._parts.client):
            try:
                fresh = self._connect()
            except (ConfigError, WorkerError) as error:
                self._credentials.postpone(str(error))
                return self._parts.client
            call_with_timeout(self._parts.client.close, 0.0)
            self._parts.client = fresh
            self._renewed()
        return self._parts.client

    def _renewed(self) -> None:
        self._credentials.renewed()
        self._parts.watermarks.reconnect()

    def _finish_and_close(self, client: Any) -> None:
        states = [*self._parts.assignment.partitions.values()]
        with self._handover:
            # A transaction may not last as long as the messages at hand are waited for.
            self._parts.committer.stage(states, now=True)
            self._await_works(states)
        self._close(client)

    def close_client(self) -> None:
        """Commit what was handled, leave the group and close the client. Nothing is handled any more."""
        self._leaving = True
        if self._parts.client is not None:
            self._close(self._parts.client)

    def _close(self, client: Any) -> None:
        self._confirm_commits(client)
        # With cooperative-sticky, close() of librdkafka 2.16 sends no LeaveGroup for a member without partitions:
        # the group would wait for it until its session times out.
        try:
            client.unsubscribe()
        finally:
            client.close()

    def _confirm_commits(self, client: Any) -> None:
        """Commit until the brokers have taken it, or the time is up.

        While other members join, the coordinator refuses commits (REBALANCE_IN_PROGRESS, ILLEGAL_GENERATION,
        STALE_MEMBER_EPOCH), and leaving has but one. A member that polls takes part in the rebalance: its next commit
        is taken.
        """
        committer, assignment = self._parts.committer, self._parts.assignment
        if self._exactly_once:
            # A transaction is committed when its partitions are revoked, or aborted.
            return
        until = time.monotonic() + CONFIRM_S
        refused: int | None = None
        while True:
            # A stop may be asked for meanwhile.
            until = min(until, time.monotonic() + self._parts.shutdown.remaining_s() / 2)
            with self._handover:
                if client is not self._parts.client:
                    return
                waiting = [
                    state
                    for state in assignment.partitions.values()
                    if state.next_offset is not None and state.commit.unconfirmed
                ]
                if not waiting or time.monotonic() >= until:
                    return
                if refused is None:
                    for state in waiting:
                        state.commit.make_explicit()
                committer.stage(waiting, now=committer.failures != refused)
                refused = committer.failures
            try:
                # Messages that come now are for the next owner.
                client.poll(CONFIRM_LOOK_S)
            except KafkaException:
                return

    def _on_assign(self, client: Any, partitions: list[TopicPartition]) -> None:
        if self._leaving or client is not self._parts.client:
            self._assign(client, partitions)
            return
        self.rebalances["assign"] += 1
        self.assigned_at = time.monotonic()
        self._parts.committer.forgotten_since = None
        assigned, begins = self._parts.starts.at_assignment(client, partitions) if partitions else ([], [])
        for state in self._parts.assignment.assign(assigned):
            if state.awaits_committed:
                state.seeks_end = self._exactly_once
                self._parts.starts.await_committed(state)
        self._assign(client, [*map(self._fetched_from, assigned)])
        for each in begins:
            # Until the brokers have taken it: the next owner would begin at a later end.
            state = self._parts.assignment.partitions[each.topic, each.partition]
            state.commit.make_explicit()
            state.commit.confirmed_offset = None
            state.commit.restart_at = each
        self._parts.committer.stage(self._parts.assignment.partitions.values(), now=True)
        self._parts.watermarks.wanted = tuple(self._parts.assignment.partitions)
        self._parts.watermarks.ask()
        log.info("assigned %s", names(partitions) or "nothing: idle")

    def _on_revoke(self, client: Any, partitions: list[TopicPartition]) -> None:
        """Store what is handled by now. Unassigning commits it, and librdkafka joins again only after that.

        A commit of our own would block this thread, and signals with it, for as long as the coordinator is unreachable
        (rd_kafka_assignment_serve_removals in librdkafka's rdkafka_assignment.c).
        """
        with self._handover:
            # One that was given up, and is still closing, has nothing here any more.
            if client is self._parts.client:
                self._give_back(partitions)
        self._unassign(client, partitions)

    def _give_back(self, partitions: list[TopicPartition]) -> None:
        self.rebalances["revoke"] += 1
        if self._parts.executor.in_flight:
            # A transaction may not last as long as the messages at hand are waited for.
            self._parts.committer.stage(self._parts.assignment.partitions.values(), now=True)
        revoked = self._take_away(partitions)
        if not self._leaving:
            # Who leaves has waited for them before.
            self._await_works(revoked)
        self._parts.committer.stage(revoked, now=True)
        self._parts.outputs.forsake(revoked)
        log.info("revoked %s", names(partitions))

    def _await_works(self, states: Sequence[PartitionState]) -> None:
        """Wait for the messages at hand of some partitions and for their outputs, bounded, and account for them; no
        other is begun.
        """
        outputs = self._parts.outputs
        until = time.monotonic() + REVOKE_WAIT_S

        def left_s() -> float:
            nonlocal until
            # A stop may be asked for meanwhile.
            until = min(until, time.monotonic() + max(0.5, self._parts.shutdown.remaining_s()))
            return until - time.monotonic()

        works = [work for work in self._parts.executor.in_flight if work.partition in states]
        late = []
        for work in works:
            # One that has not begun does not begin any more.
            while work.begun_at is not None and not work.finished and left_s() > 0:
                time.sleep(0.005)
            if work.begun_at is not None and not work.finished:
                late.append(work)
            elif work.answers:
                outputs.send(work)
        outputs.await_outcomes(left_s, states)
        for work in {*works, *outputs.works}:
            if work.partition in states:
                self._account(work, True)
        if late:
            self._parts.executor.forsake(late)

    def _on_lost(self, client: Any, partitions: list[TopicPartition]) -> None:
        """Others may own them already, so nothing is committed: what was handled since is redelivered there."""
        with self._handover:
            if client is self._parts.client:
                self._lose(partitions)
        self._unassign(client, partitions)

    def _lose(self, partitions: list[TopicPartition]) -> None:
        self.rebalances["lost"] += 1
        self._forsake_lost(self._take_away(partitions))
        log.warning("lost %s: this member did not answer its group in time", names(partitions))

    def _forsake_lost(self, gone: list[PartitionState]) -> None:
        self._parts.outputs.forsake(gone)
        self._parts.executor.forsake([work for work in self._parts.executor.in_flight if work.partition in gone])

    def _forget(self, partitions: list[TopicPartition]) -> list[PartitionState]:
        gone = self._parts.assignment.remove(partitions)
        for state in gone:
            self._parts.scheduler.drop(state)
            self._parts.starts.forget(state)
        return gone

    def _take_away(self, partitions: list[TopicPartition]) -> list[PartitionState]:
        gone = self._forget(partitions)
        paused = [state.topic_partition() for state in gone if state.paused]
        if paused:
            # librdkafka keeps the pause of a partition that leaves: if it came back, nothing would be fetched from it.
            self._parts.client.resume(paused)
        return gone

    def _assign(self, client: Any, partitions: list[TopicPartition]) -> None:
        if self._eager:
            client.assign(partitions)
        else:
            client.incremental_assign(partitions)

    def _unassign(self, client: Any, partitions: list[TopicPartition]) -> None:
        if self._eager:
            client.unassign()
        else:
            client.incremental_unassign(partitions)

    def _fetched_from(self, each: TopicPartition) -> TopicPartition:
        """The place for an assignment. With exactly-once one that is not known is the end: there a partition can be
        sought when it is, and what comes meanwhile is dropped.

        With metadata librdkafka 2.16 leaks that at every commit, as it puts the stored offset's in its place
        (rd_kafka_topic_partition_list_set_offsets in rdkafka_partition.c).
        """
        offset = OFFSET_END if self._exactly_once and each.offset == OFFSET_INVALID else each.offset
        epoch = -1 if each.leader_epoch is None else each.leader_epoch  # type: ignore[redundant-expr]  # it can be None
        return TopicPartition(each.topic, each.partition, offset, leader_epoch=epoch)
