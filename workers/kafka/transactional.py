"""The producer of transactions: the brokers know it by its transactional id, and it is made anew when it cannot go on.

It cannot when the brokers have ended its transaction, because that lasted too long or because another process has begun
with its id; and when nobody knows what became of a call. `init_transactions` of the next one settles that: the brokers
then have either committed the transaction or aborted it.

Calls that wait for brokers run in a thread of their own, one after the other. That thread writes only what became of
the calls, and appends to the queue of reports; everything else is done by the thread that uses the producer, in part
from inside the consumer's `poll`.
"""

import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from workers.config import ClientConfig
from workers.errors import ExitCode, WorkerError
from workers.kafka.client import BESIDE_A_CONSUMER, ClientState, create_client
from workers.kafka.credentials import CredentialsWatch
from workers.lifecycle import TRANSACTION_THREAD, Shutdown, call_in_thread, call_with_timeout

log = logging.getLogger(__name__)
# Of the binding, when a producer is closed whose transaction the brokers have ended.
warnings.filterwarnings("ignore", message="Producer abort_transaction failed during close", category=RuntimeWarning)

# `init_transactions` is asked again after so long, so that changed credentials are used.
INIT_SLICE_S = 1.0
# The worker ends when this many replaced clients are still closing: each keeps its threads and its memory.
MAX_CLOSING = 5
# How much longer than librdkafka is told to a call is waited for.
GRACE_S = 1.0
# A stop that is asked for while a call is waited for is noticed after so long.
LOOK_S = 0.25
# A stop waits at least so long for a call, also when its time is up.
LEAST_S = 1.0
# A producer that was fenced so often within this time, in young transactions, has a rival with its transactional id.
FENCED_TIMES = 3
FENCED_WITHIN_S = 60.0
FENCED = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH})
REFUSED = frozenset({KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})
# Errors that another attempt does not mend.
NEVER = frozenset({KafkaError._UNSUPPORTED_FEATURE, KafkaError._INVALID_ARG, KafkaError._NOT_CONFIGURED})


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of the calls that were asked for: the error of the one that failed, or None."""

    error: KafkaError | None


@dataclass(slots=True)
class _Calls:
    """Calls in a thread of their own, each with `allowed_s`; only that thread writes here once it has begun.

    Invariant: `error` and every report that they cause are written before `ended` is set, and read after it.
    """

    calls: Sequence[Callable[[float], object]]
    allowed_s: float
    # When the call under way was begun (time.monotonic).
    begun_at: float = field(default_factory=time.monotonic)
    error: KafkaError | None = None
    ended: Event = field(default_factory=Event)

    def start(self) -> "_Calls":
        """Begin them in a thread that can be left behind."""
        Thread(target=self._run, name=TRANSACTION_THREAD, daemon=True).start()
        return self

    def _run(self) -> None:
        """Called by the thread of the calls."""
        try:
            for call in self.calls:
                self.begun_at = time.monotonic()
                call(self.allowed_s)
        except KafkaException as raised:
            self.error = raised.args[0]
        except Exception as raised:
            self.error = KafkaError(KafkaError._FAIL, f"{type(raised).__name__}: {raised}")
        self.ended.set()


class TransactionalProducer:
    """One transactional id, and the client in use for it. `client` is None before `start` and after `close`.

    `broken` is why the client cannot go on, None while it can; `replacing` says that another one is on its way.
    `asking` says that calls are under way: from `ask` until `answer` has told what became of them, the client is not
    polled, nothing is produced with it, and it is neither replaced nor closed.
    `pause_s` is how long to wait before another one is made. `properties` are the client's besides those of `config`.
    """

    def __init__(
        self,
        config: ClientConfig,
        transactional_id: str,
        client_state: ClientState,
        pause_s: Callable[[], float],
        properties: Mapping[str, Any],
        connect: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self.client: Any = None
        self.broken: KafkaError | None = None
        # When the transaction was begun (time.monotonic).
        self.begun_at = 0.0
        # How long a transaction may last, and with that a call.
        self.timeout_s = int(config.get("transaction.timeout.ms", "10000")) / 1000
        self._id = transactional_id
        self._client_state = client_state
        self._pause_s = pause_s
        self._properties = properties
        self._watch = CredentialsWatch(config, client_state)
        self._connect = connect or (
            lambda own: create_client(confluent_kafka.Producer, config, own, self._watch.credentials)
        )
        self._shutdown: Shutdown | None = None
        # Errors of clients that are given up are not of the one in use.
        self._number = self._made = 0
        # The client that is to take the place of `client`, until the brokers know it.
        self._fresh: Any = None
        # Its `init_transactions`, while that is under way.
        self._taking_up: _Calls | None = None
        # Threads that close clients which were replaced.
        self._closing: list[Thread] = []
        self._renewal_due = False
        self._replace_at = 0.0
        self._fenced_at: deque[float] = deque(maxlen=FENCED_TIMES)
        self._calls: _Calls | None = None
        # Reports of the clients, as functions with their arguments. Only this is changed by more than one thread.
        self._reports: deque[tuple[Any, ...]] = deque()

    @property
    def longest_s(self) -> float:
        """How long the calls that commit may take."""
        return 2 * (self.timeout_s + GRACE_S)

    @property
    def asking(self) -> bool:
        return self._calls is not None

    @property
    def replacing(self) -> bool:
        return self._fresh is not None

    def start(self, shutdown: Shutdown, timeout_s: float | None) -> None:
        """Have the brokers end what an earlier process with the same id has begun.

        Raises WorkerError when they refuse, or do not answer within `timeout_s` (None waits for ever); and as
        `replace`.
        """
        self._shutdown = shutdown
        self._fresh = self._make()
        started = time.monotonic()
        while not shutdown.requested and not self._take_up():
            if self._taking_up is not None:
                self._taking_up.ended.wait(LOOK_S)
            self._client_state.check()
            if timeout_s is not None and time.monotonic() - started >= timeout_s:
                raise WorkerError(
                    f"the brokers did not accept transactional id {self._id} within {timeout_s:g} s; check that "
                    "their transaction coordinator runs (topic __transaction_state)"
                )

    def begin(self) -> bool:
        """Begin a transaction; return whether the client could."""
        try:
            self.client.begin_transaction()
        except KafkaException as raised:
            self.give_up(raised.args[0])
            return False
        self.begun_at = time.monotonic()
        return True

    def ask(self, *calls: Callable[[float], object], timeout_s: float | None = None) -> None:
        """Begin to make calls of the transaction, one after the other; `answer` tells what became of them.

        In a thread that can be left behind: librdkafka (2.16) waits for ever for a coordinator that has left the
        cluster (its issues 5456 and 5511). Each call has `timeout_s`, or as long as a transaction may last: where
        librdkafka leaves a commit after a shorter time, nobody knows what became of it (rd_kafka_commit_transaction in
        rdkafka_txnmgr.c).
        """
        assert self._calls is None, "calls are under way"
        self._calls = _Calls(calls, self.timeout_s if timeout_s is None else timeout_s).start()

    def answer(self, wait: bool = False) -> Answer | None:
        """The outcome of the calls that were asked for, None while they are under way. With `wait` it waits for them:
        as long as each call may last, and after a stop was asked for until its deadline, one second at least.

        A client whose calls have not ended by then is left behind: another one takes its place.
        """
        calls = self._calls
        assert calls is not None
        while not calls.ended.is_set():
            left_s = self._patience_s(calls)
            if left_s <= 0:
                calls = _Calls((), 0.0, error=KafkaError(KafkaError._TIMED_OUT, "the brokers have not answered"))
                break
            if not wait:
                return None
            calls.ended.wait(min(LOOK_S, left_s))
        # All that they have reported is in the queue: an output that was refused is the reason of their error.
        self.hear()
        self._calls = None
        error = calls.error
        if error is not None:
            if error.code() in REFUSED:
                self._client_state.fatal = self._no_right(error)
            if not error.txn_requires_abort() or error.code() == KafkaError._TIMED_OUT:
                # The brokers say to the next client what became of the transaction.
                self.give_up(error)
        return Answer(error)

    def _patience_s(self, calls: _Calls) -> float:
        assert self._shutdown is not None
        lasted_s = time.monotonic() - calls.begun_at
        return min(calls.allowed_s + GRACE_S - lasted_s, max(LEAST_S - lasted_s, self._shutdown.remaining_s()))

    def note(self, *report: Any) -> None:
        """Queue a report: a function and its arguments. Called by any thread, from inside of the client's calls."""
        self._reports.append(report)

    def hear(self) -> None:
        """Call what was reported."""
        while self._reports:
            function, *arguments = self._reports.popleft()
            function(*arguments)

    def serve(self, timeout_s: float) -> None:
        """Serve delivery reports and errors, and wait for them up to `timeout_s`.

        While calls are under way, they serve the client, and this does not wait.
        """
        # Of one that is broken, calls that were left behind may be under way.
        if self.client is not None and self._calls is None and self.broken is None:
            try:
                self.client.poll(timeout_s)
            except KafkaException as error:
                # So the binding tells of a fatal error.
                self.give_up(error.args[0])
        self.hear()

    def give_up(self, error: KafkaError) -> None:
        """Note that the client cannot go on; `replace` has another one made."""
        if self.broken is not None:
            return
        now = time.monotonic()
        self.broken, self._replace_at = error, now + self._pause_s()
        if error.code() not in FENCED or now - self.begun_at > self.timeout_s:
            return
        self._fenced_at.append(now)
        if len(self._fenced_at) == FENCED_TIMES and now - self._fenced_at[0] < FENCED_WITHIN_S:
            self._client_state.fatal = WorkerError(
                f"another process has transactional id {self._id} too; give each process its own --transactional-id: "
                f"{error.str()}"
            )

    def renew(self, *, idle: bool) -> None:
        """Look for changed credentials; where they need another client, have one made as soon as the producer is
        `idle`: no transaction is begun.
        """
        self._renewal_due = self._watch.refresh(self.client) or self._renewal_due
        if self._renewal_due and idle:
            self._renewal_due = False
            self._fresh = self._watch.connect(self._make)

    def replace(self) -> bool:
        """Go on with the replacement of the client, where there is one; return whether none is under way any more.

        It does not wait for brokers. Raises WorkerError when they refuse the next client, and when too many clients are
        still closing. Not to be called while calls are under way.
        """
        assert self._calls is None, "calls are under way"
        if self.broken is not None and self._fresh is None:
            if time.monotonic() < self._replace_at:
                return False
            self._fresh = self._make()
        if self._fresh is None:
            return True
        return self._take_up()

    def close(self, timeout_s: float) -> None:
        """End the clients; what is not committed is aborted. Not to be called while calls are under way."""
        assert self._calls is None, "calls are under way"
        if self._taking_up is not None and not self._taking_up.ended.wait(INIT_SLICE_S + GRACE_S):
            # A client cannot be closed while a call of it is under way.
            self._fresh = None
        for client in (self.client, self._fresh):
            if client is not None:
                call_with_timeout(client.close, timeout_s)
        self.client = self._fresh = self._taking_up = None

    def _make(self) -> Any:
        """Raises WorkerError where too many clients that it would take the place of are still closing."""
        self._closing = [each for each in self._closing if each.is_alive()]
        if len(self._closing) >= MAX_CLOSING:
            raise WorkerError(
                f"{len(self._closing)} replaced producers of transactional id {self._id} have not closed: librdkafka "
                "waits for ever for a transaction coordinator that has gone; check the brokers that lead topic "
                "__transaction_state, and start the worker again"
            )
        self._made += 1
        own = {
            **self._client_state.callbacks(),
            **BESIDE_A_CONSUMER,
            **self._properties,
            "error_cb": partial(self.note, self._on_error, self._made),
            "stats_cb": partial(self.note, self._client_state.on_statistics),
            "transactional.id": self._id,
        }
        return self._connect(own)

    def _on_error(self, number: int, error: KafkaError) -> None:
        if number < self._number:
            return
        if error.fatal() and number == self._number:
            self.give_up(error)
        elif not error.fatal():
            # A fatal one of a client that is not in use yet is the answer to its `init_transactions` too.
            self._client_state.on_error(error)

    def _look_after_fresh(self) -> None:
        """Serve the errors of the fresh client, and make another one when its credentials have changed."""
        try:
            self._fresh.poll(0)
        except KafkaException as error:
            log.debug("the next producer: %s", error)
        self.hear()
        if self._watch.refresh(self._fresh):
            self._retire(self._fresh)
            self._fresh = self._make()

    def _take_up(self) -> bool:
        """Go on to have the brokers take up the transactional id for the fresh client; return whether they have, and it
        is in the place of the other.
        """
        calls = self._taking_up
        if calls is None:
            self._look_after_fresh()
            self._taking_up = _Calls((self._fresh.init_transactions,), INIT_SLICE_S).start()
            return False
        if not calls.ended.is_set():
            return False
        self._taking_up = None
        if calls.error is not None:
            self._note_refusal(calls.error)
            return False
        old, self.client, self._fresh = self.client, self._fresh, None
        self._number = self._made
        self.broken = None
        self._watch.renewed()
        if old is not None:
            self._retire(old)
        return True

    def _retire(self, client: Any) -> None:
        """Close a client that was replaced, for as long as that takes."""
        self._closing.append(call_in_thread(client.close))

    def _note_refusal(self, error: KafkaError) -> None:
        """Log why the transactional id is not taken up yet; raises WorkerError where another attempt does not help."""
        if error.code() in REFUSED:
            raise self._no_right(error)
        if error.fatal() or error.code() in NEVER:
            raise WorkerError(
                f"the brokers refuse transactions of id {self._id}; check that they have transactions, and that "
                f"transaction.timeout.ms is at most their transaction.max.timeout.ms: {error.str()}"
            )
        self._client_state.say("transaction", f"transactional id {self._id} is not accepted yet: {error.str()}")

    def _no_right(self, error: KafkaError) -> WorkerError:
        return WorkerError(
            f"the user has no right to transactional id {self._id}; grant Write and Describe on it, or on a prefix of "
            f"it: {error.str()}",
            ExitCode.USAGE,
        )
