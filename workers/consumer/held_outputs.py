"""The outputs of messages that the low-water mark has not passed, with exactly-once. Called by the loop's thread."""

import heapq
from dataclasses import dataclass, field

from workers.consumer.answers import Output
from workers.consumer.assignment import Key, PartitionState


@dataclass(slots=True)
class _OfPartition:
    """The outputs by the offset of their message; `offsets` is a heap of those."""

    state: PartitionState
    offsets: list[int] = field(default_factory=list)
    outputs: dict[int, list[Output]] = field(default_factory=dict)


class HeldOutputs:
    """Outputs in any order of their messages, which are released in the order of offsets.

    `messages` and `bytes` are those of all that are held.
    """

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self._held: dict[Key, _OfPartition] = {}

    def hold(self, state: PartitionState, offset: int, outputs: list[Output]) -> None:
        """Take the outputs of one message. Outputs of an earlier state of its partition are dropped."""
        held = self._of(state)
        if held is None:
            self._drop(state.key)
            held = self._held[state.key] = _OfPartition(state)
        heapq.heappush(held.offsets, offset)
        held.outputs[offset] = outputs
        self.messages += len(outputs)
        self.bytes += sum(output.size for output in outputs)

    def release(self, state: PartitionState) -> list[tuple[int, Output]]:
        """Give out what is below the low-water mark, with the offsets of the messages, in their order."""
        held, mark = self._of(state), state.next_offset
        released: list[tuple[int, Output]] = []
        if held is None or mark is None:
            return released
        while held.offsets and held.offsets[0] < mark:
            offset = heapq.heappop(held.offsets)
            released += [(offset, output) for output in held.outputs.pop(offset)]
        self.messages -= len(released)
        self.bytes -= sum(output.size for _, output in released)
        return released

    def drop(self, state: PartitionState) -> None:
        """Forget what is held of a partition, unless that is of a later state of it."""
        if self._of(state) is not None:
            self._drop(state.key)

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()
        self.messages = self.bytes = 0

    def _of(self, state: PartitionState) -> _OfPartition | None:
        held = self._held.get(state.key)
        return held if held is not None and held.state is state else None

    def _drop(self, key: Key) -> None:
        held = self._held.pop(key, None)
        for outputs in () if held is None else held.outputs.values():
            self.messages -= len(outputs)
            self.bytes -= sum(output.size for output in outputs)
