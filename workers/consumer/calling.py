"""The calls of the user's handler that a work asks for. Called by the handler's threads, or in its event loop."""

import asyncio
import logging
import time
from typing import Any

from workers.consumer.answers import MAX_BYTES, MAX_MESSAGES, Answer, outputs_of
from workers.consumer.scheduling import Work
from workers.errors import ConfigError
from workers.handlers import gathered
from workers.loading import remember_traceback

log = logging.getLogger(__name__)


class Calls:
    """Makes the calls of a work, one after the other or as one batch, and notes in the work how far they are.

    `interrupted` lets the messages at hand be finished and no other begun; `stopping` says that a cancelled call is not
    the handler's own doing. The loop's thread writes both. The first handler's thread writes `batch`, before any call.
    """

    def __init__(self, concurrency: int) -> None:
        self.batch = False
        self.interrupted = False
        self.stopping = False
        # The outputs of a work after which it ends early: its share, with as much under way already.
        self._output_messages = max(1, MAX_MESSAGES // (2 * concurrency))
        self._output_bytes = MAX_BYTES // (2 * concurrency)

    def make(self, handler: Any, work: Work) -> None:
        """Have a plain function handle a work. Raises ConfigError when what it returns is no message."""
        partition = work.partition
        work.begun_at = work.progress_at = time.monotonic()
        try:
            if self.batch:
                if partition.owned and not self.interrupted:
                    # The list is the handler's, which may change it.
                    answer = handler([*work.received.messages])
                    if answer is not None:
                        self._note_answer(handler, work, 0, answer)
                    work.handled = len(work)
            else:
                for handled, message in enumerate(work.received.messages, start=1):
                    if not partition.owned or work.interrupted or self.interrupted:
                        break
                    answer = handler(message)
                    if answer is not None:
                        self._note_answer(handler, work, handled - 1, answer)
                    work.handled = handled
        except ConfigError:
            raise
        except Exception as error:
            _note_error(work, error)
        finally:
            work.finished = True

    async def make_async(self, handler: Any, work: Work) -> None:
        """Have an `async` function handle a work; raises as `make`, and CancelledError at a stop."""
        partition = work.partition
        work.begun_at = work.progress_at = time.monotonic()
        try:
            if self.batch:
                if partition.owned and not self.interrupted:
                    answer = await handler([*work.received.messages])
                    if answer is not None:
                        self._note_answer(handler, work, 0, await gathered(answer))
                    work.handled = len(work)
            else:
                for handled, message in enumerate(work.received.messages, start=1):
                    if not partition.owned or work.interrupted or self.interrupted:
                        break
                    answer = await handler(message)
                    if answer is not None:
                        self._note_answer(handler, work, handled - 1, await gathered(answer))
                    work.handled = handled
        except asyncio.CancelledError:
            if self.stopping:
                raise
            # The consumer forsakes works whose partition has gone; any other cancellation is the handler's own.
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            _note_error(work, RuntimeError("the call was cancelled"))
        except ConfigError:
            raise
        except Exception as error:
            _note_error(work, error)
        finally:
            work.finished = True

    def _note_answer(self, handler: Any, work: Work, place: int, answer: object) -> None:
        """Keep what a call gave back, for the loop's thread to send; end the work early where that is much."""
        outputs = outputs_of(handler, answer)
        if not outputs:
            return
        work.answers.append(Answer(place, outputs))
        work.output_messages += len(outputs)
        work.output_bytes += sum(output.size for output in outputs)
        if work.output_messages >= self._output_messages or work.output_bytes >= self._output_bytes:
            work.interrupted = True


def _note_error(work: Work, error: Exception) -> None:
    log.debug("the handler raised", exc_info=error)
    remember_traceback(error)
    _forget_frames(error, set())
    work.error = error


def _forget_frames(error: BaseException | None, seen: set[int]) -> None:
    """Take the tracebacks from an error and its causes: they hold frames, and so the work and its messages, in a circle
    that is seldom looked for.
    """
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    error.__traceback__ = None
    for each in (
        error.__cause__,
        error.__context__,
        *(error.exceptions if isinstance(error, BaseExceptionGroup) else ()),
    ):
        _forget_frames(each, seen)
