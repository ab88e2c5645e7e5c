"""Checks of a handler in memory: each gives it the same messages in another way, and compares what it has done with the
first run.
"""

import copy
import gc
import random
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from typing import Any, TypeAlias

from confluent_kafka import Message

from workers.consumer.failures import ErrorPolicy
from workers.errors import WorkerError
from workers.handlers import Handler, Lifespan
from workers.loading import named
from workers.testing.blocking import LoopWatch
from workers.testing.calls import content_of
from workers.testing.handling import AT_ONCE, TIMEOUT_S, Trial, require_messages, require_seconds, topic_of

# pytest shows no frames of this module: a fault is the handler's, and stands in the error's message.
__tracebackhide__ = True

Outage: TypeAlias = Callable[[], AbstractContextManager[object]]
# The messages are cut into eight parts, and the member is killed between each two.
CRASHES = 8
# How long to wait for work that goes on after the handler has returned.
SETTLED_S = 0.3
# How many other orders of keys are tried.
SHUFFLES = 3
# Rounds of the check of memory: the first two fill caches. A handler that keeps its messages keeps more than this in
# each of the others, which have more messages than are tidied up together from time to time: sqlite3 keeps 200 cursors.
LEAK_ROUNDS = 6
LEAK_MESSAGES = 200
LEAST_MESSAGES = 60
ROUND_S = 1.0
LEAK_BYTES = 16
MEMORY_LOOKS = 10
MEMORY_LOOK_S = 0.003


@dataclass(frozen=True)
class Effects:
    """How to see what a handler has done: `read` returns it, and `clear` undoes it.

    The result of `read` is copied (copy.deepcopy) and compared by ==. Both are called in the thread of `check`, which
    raises their errors.
    """

    read: Callable[[], object]
    clear: Callable[[], object]

    def __post_init__(self) -> None:
        for name, function in (("read", self.read), ("clear", self.clear)):
            if not callable(function):
                raise TypeError(f"Effects: {name} is {function!r}; give a function without arguments")


def check(
    handler: Handler | Lifespan | str,
    messages: Iterable[Message],
    effects: Effects | None = None,
    *,
    outage: Outage | None = None,
    output_key: Callable[[Message], Any] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Check a handler; raises AssertionError that names all that is wrong with it, ConfigError for what is no handler,
    and TypeError and ValueError that name a wrong argument. `timeout_s` is in seconds, for each wait.

    `effects`, `outage` and `output_key` are called in the caller's thread. A handler that only gives messages back
    needs no `effects`.

    - Each of `messages` is handled when its call returns: none becomes a dead letter, is tried for ever, or is written
      when the lifespan ends.
    - A message that comes again changes nothing.
    - After a SIGKILL at any message, all is done when the next member has handled the rest. Name the handler as
      MODULE:NAME, and each member imports its package anew, as a new process does.
    - Messages of other keys may come in any order. Only messages with keys are moved, and keep their offsets.
    - An `async` handler does not wait in its event loop for 10 ms or more, nor use 30 ms of the CPU there at once.
    - The memory that it keeps does not grow with the messages. A UserWarning says where it is too slow for that.
    - With `outage`, which returns a context in which a dependency of the handler is unavailable, once for each message:
      no message counts as handled that is not.
    - Each message has the same outputs however it is handled; they may come again.
    - With `output_key`, which returns the key that the outputs of a message must have: they have it.
    """
    given = require_messages("check", handler, messages)
    if not given:
        raise ValueError("check: there are no messages; give it some, of several keys where the handler uses keys")
    if effects is None:
        effects = Effects(lambda: None, lambda: None)
    elif not isinstance(effects, Effects):
        raise TypeError(f"check: effects is {effects!r}; give Effects(read=..., clear=...)")
    if isinstance(outage, AbstractContextManager):
        raise TypeError("check: outage is a context that was made already; give the function that makes it, uncalled")
    if outage is not None and not callable(outage):
        raise TypeError(f"check: outage is {outage!r}; give a function that returns a context")
    if output_key is not None and not callable(output_key):
        raise TypeError(f"check: output_key is {output_key!r}; give a function of a message that returns a key")
    require_seconds("check: timeout_s", timeout_s)
    checks = _Checks(handler, given, effects, outage, output_key, timeout_s)
    found = [each for each in checks.run() if each is not None]
    if found:
        count = "a fault" if len(found) == 1 else f"{len(found)} faults"
        raise AssertionError("\n".join([f"the handler has {count}:", *(f"- {each}" for each in found)]))


@dataclass
class _Checks:
    handler: Handler | Lifespan | str
    messages: Sequence[Message]
    effects: Effects
    outage: Outage | None
    output_key: Callable[[Message], Any] | None
    timeout_s: float

    def run(self) -> Iterator[str | None]:
        self._wanted: object = None
        # A call that is slow once, as for an import, is no fault.
        for _ in range(2):
            with LoopWatch() as self._watch:
                first = self._attempt(self._handles_all)
            if first is not None:
                # Nothing to compare with.
                yield first
                return
            if not self._watch.found:
                break
        yield from map(self._blocks, sorted(self._watch.found))
        yield self._attempt(self._redelivery)
        yield self._attempt(self._crash)
        if len({each.key() for each in self.messages if each.key() is not None}) > 1:
            yield self._attempt(self._order)
        if self.outage is not None:
            yield self._attempt(self._outage)
        yield self._attempt(self._memory)

    def _attempt(self, what: Callable[[], str | None]) -> str | None:
        self.effects.clear()
        try:
            return what()
        except (AssertionError, WorkerError) as error:
            # Anything else comes from the caller's own functions.
            return f"{(what.__doc__ or '').rstrip('.')}: {named(error)}"
        finally:
            self.effects.clear()

    def _handles_all(self) -> str | None:
        """Handling all messages once."""
        cleared = self._read()
        with self._trial() as trial:
            trial.calls.watch = self._watch
            trial.start(self.timeout_s)
            begun_at = time.monotonic()
            trial.deliver(self.messages)
            trial.wait_for(lambda: trial.done >= len(self.messages), self.timeout_s)
            self._pace_s = (time.monotonic() - begun_at) / len(self.messages)
            done = self._read()
            trial.finish(self.timeout_s)
            time.sleep(SETTLED_S)
            self._wanted = self._read()
            if done != self._wanted:
                return (
                    "it still works on a message after it has returned, so a SIGKILL would lose that; return only when "
                    f"the work is done\n  then:  {done!r}\n  later: {self._wanted!r}"
                )
        self._outputs = trial.calls.outputs()
        ended = self._read()
        if ended != self._wanted:
            return (
                "it writes when its lifespan ends, which a SIGKILL leaves out, so messages would be lost; write before "
                f"the handler returns\n  before: {self._wanted!r}\n  after:  {ended!r}"
            )
        handled = trial.handled
        if handled.dead_letters:
            letter = handled.dead_letters[0]
            return (
                f"{len(handled.dead_letters)} of {len(self.messages)} messages became dead letters; the first one, at "
                f"offset {letter.offset}, after {letter.attempts} attempts: {letter.error}"
            )
        if self.output_key is not None:
            wrong = self._wrong_keys(trial, self.output_key)
            if wrong:
                return (
                    f"{len(wrong)} outputs have another key than the one wanted, so that messages of one key would be "
                    f"in several partitions, without order; the first one\n  wanted: {' or '.join(wrong[0][0])}\n"
                    f"  found:  {wrong[0][1]!r}"
                )
        if self._wanted == cleared and not handled.outputs:
            return (
                f"nothing that check can see was done: after {len(self.messages)} messages there is no output, and "
                "Effects.read returns what it does when nothing was handled; give effects whose read returns what the "
                "handler writes, or give check as many messages as the handler collects before it writes"
            )
        return None

    def _wrong_keys(self, trial: Trial, output_key: Callable[[Message], Any]) -> list[tuple[list[str], Any]]:
        """The keys that an output of a call should have, one of them, and the other one that it has."""
        keys = {content_of(each): output_key(each) for each in self.messages}
        keys = {content: key.encode() if isinstance(key, str) else key for content, key in keys.items()}
        return [
            (sorted({repr(keys[each]) for each in call.messages}), output.record["key"])
            for call in trial.calls.made
            for output in call.outputs
            if output.record["key"] not in [keys[each] for each in call.messages]
        ]

    def _blocks(self, where: str) -> str:
        return (
            f"it blocks its event loop at {where}; no other message is handled meanwhile: await what waits, or call "
            "it, or what computes for long, with asyncio.to_thread"
        )

    def _redelivery(self) -> str | None:
        """Handling messages that come again."""
        for offset in sorted({0, len(self.messages) // 2}):
            self.effects.clear()
            with self._trial() as trial:
                trial.deliver(self.messages)
                trial.finish(self.timeout_s)
                trial.kill()
                trial.redeliver(offset)
                trial.start(self.timeout_s)
                trial.finish(self.timeout_s)
                fault = self._differs(
                    trial,
                    f"messages that came again from offset {offset} on have changed what was done; write under the "
                    "message's key, or note its offset with what is written",
                )
                if fault is not None:
                    return fault
        return None

    def _crash(self) -> str | None:
        """Handling the rest after a SIGKILL."""
        last = len(self.messages)
        for count in sorted({max(1, last * part // CRASHES) for part in range(1, CRASHES)}):
            self.effects.clear()
            with self._trial() as trial:
                trial.deliver(self.messages[:count])
                trial.finish(self.timeout_s)
                trial.kill()
                trial.deliver(self.messages[count:])
                trial.start(self.timeout_s)
                trial.finish(self.timeout_s)
                # Before the first member ends its lifespan, which a killed process does not.
                fault = self._differs(
                    trial,
                    f"after a SIGKILL behind offset {count - 1} something is missing or wrong that was handled before; "
                    "finish the work before the handler returns, and keep nothing in memory that later messages need",
                )
                if fault is not None:
                    return fault
        return None

    def _order(self) -> str | None:
        """Handling messages in another order of keys."""
        for number in range(SHUFFLES):
            self.effects.clear()
            order = _shuffled(self.messages, random.Random(number))  # noqa: S311  (not a secret)
            with self._trial(order=order) as trial:
                trial.deliver(self.messages[place] for place in order)
                trial.finish(self.timeout_s)
                fault = self._differs(
                    trial,
                    "what was done depends on the order of messages with different keys, which have none; let it "
                    "depend on the messages of one key only",
                )
                if fault is not None:
                    return fault
        return None

    def _outage(self) -> str | None:
        """Handling messages while a dependency is unavailable."""
        assert self.outage is not None
        swallowed = 0
        with self._trial(ErrorPolicy("retry", AT_ONCE.max_attempts, AT_ONCE.backoff_s, AT_ONCE.backoff_max_s)) as trial:
            trial.start(self.timeout_s)
            # One after the other, so that each is tried once during the outage.
            for offset, each in enumerate(self.messages):
                outage = self.outage()
                if not isinstance(outage, AbstractContextManager):
                    raise TypeError(
                        f"check: outage returned {outage!r}; let it return a context, as a function marked with "
                        "contextlib.contextmanager does"
                    )
                tried = trial.retried
                with outage:
                    trial.deliver([each])
                    trial.wait_for(lambda: trial.retried > tried or trial.committed > offset, self.timeout_s)  # noqa: B023
                    swallowed += trial.committed > offset
                trial.finish(self.timeout_s)
            if swallowed:
                fault = (
                    f"it swallows errors: {swallowed} of {len(self.messages)} messages counted as handled while what "
                    "it needs was away, and are lost; let the error pass, or raise Retry"
                )
            else:
                fault = (
                    "what it needs was away for a moment, and messages are lost or wrong though their calls raised; "
                    "note nothing as done before it is"
                )
            return self._differs(trial, fault)

    def _memory(self) -> str | None:
        """Handling many messages without keeping them."""
        if LEAST_MESSAGES * self._pace_s > self.timeout_s / 2:
            warnings.warn(
                f"check: whether it keeps memory was not judged: it takes {self._pace_s:.2g} s for a message, and "
                f"{LEAST_MESSAGES} are handled at once, within half of timeout_s={self.timeout_s:g}; raise timeout_s, "
                "or replace what it waits for",
                stacklevel=5,
            )
            return None
        count = max(LEAST_MESSAGES, min(LEAK_MESSAGES, int(ROUND_S / self._pace_s)))
        kept = []
        tracing = tracemalloc.is_tracing()
        with self._trial() as trial:
            tracemalloc.start()
            # Garbage is looked for among what the rounds have made: a session of many tests holds a million objects.
            gc.freeze()
            try:
                for _ in range(LEAK_ROUNDS):
                    # The last work is kept until there is another one, so that is one message.
                    for messages in (count, 1):
                        trial.deliver(_repeated(self.messages, messages))
                        trial.finish(self.timeout_s)
                    trial.forget()
                    # The test keeps the effects; the handler does not.
                    self.effects.clear()
                    gc.collect()
                    kept.append(_least_memory())
            finally:
                gc.unfreeze()
                if not tracing:
                    tracemalloc.stop()
        grown = min(after - before for before, after in pairwise(kept[1:]))
        if grown > count * LEAK_BYTES:
            return (
                f"it keeps about {grown // count} bytes of memory for each message; a worker runs for months: bound "
                "what is kept"
            )
        return None

    def _trial(self, policy: ErrorPolicy = AT_ONCE, order: Sequence[int] = ()) -> Trial:
        """A trial, to which the messages are delivered in `order`, or in their own."""
        trial = Trial(self.handler, policy=policy, topic=topic_of(self.messages), anew=True)
        keys = dict.fromkeys(each.key() for each in self.messages if each.key() is not None)
        partitions = {key: number for number, key in enumerate(keys, start=1)}

        def placed(message: Message) -> Message:
            # As if each key had a partition: there are no other offsets then, and they grow, in whatever order of keys.
            at = message.offset() or 0
            return Message(
                topic=message.topic(),
                partition=partitions.get(message.key(), 0),
                offset=order[at] if at < len(order) else at,
                key=message.key(),
                value=message.value(),
                headers=message.headers(),
                timestamp=message.timestamp(),
                leader_epoch=message.leader_epoch(),
            )

        trial.calls.placed = placed
        return trial

    def _read(self) -> object:
        """A copy of the handler's effects so far."""
        found = self.effects.read()
        try:
            return copy.deepcopy(found)
        except Exception as error:  # what cannot be copied says so in many ways
            raise TypeError(
                f"Effects.read returned a {type(found).__name__}, which cannot be copied: {named(error)}; return plain "
                "values, as lists and dictionaries of text and numbers"
            ) from error

    def _differs(self, trial: Trial, text: str) -> str | None:
        """The fault that `text` names, with what differs from the first run; None where nothing does."""
        found = self._read()
        if found != self._wanted:
            return f"{text}\n  wanted: {self._wanted!r}\n  found:  {found!r}"
        outputs = trial.calls.outputs()
        for content, wanted in self._outputs.items():
            given = outputs.get(content, set())
            if given != wanted:
                of = "" if content is None else f" of {content.value!r}, key {content.key!r}"
                return (
                    f"{text}\n  in the outputs{of}:\n  wanted: {sorted(map(repr, wanted - given))}\n"
                    f"  found:  {sorted(map(repr, given - wanted))}"
                )
        return None


def _shuffled(messages: Sequence[Message], rng: random.Random) -> list[int]:
    """The places of the messages in another order of keys, those of each key in their own; the keyless ones stay."""
    places = [place for place, each in enumerate(messages) if each.key() is not None]
    keys = [messages[place].key() for place in places]
    left = {key: iter([place for place in places if messages[place].key() == key]) for key in keys}
    rng.shuffle(keys)
    moved = dict(zip(places, (next(left[key]) for key in keys), strict=True))
    return [moved.get(place, place) for place in range(len(messages))]


def _least_memory() -> int:
    """How many bytes are in use, without what the member's threads need for a moment only."""
    looks = []
    for _ in range(MEMORY_LOOKS):
        time.sleep(MEMORY_LOOK_S)
        looks.append(tracemalloc.get_traced_memory()[0])
    return min(looks)


def _repeated(messages: Sequence[Message], count: int) -> Iterator[Message]:
    return islice(cycle(messages), count)
