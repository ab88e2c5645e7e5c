"""The commit of one partition: how much of its progress is staged, and how much brokers have confirmed.

Used by the loop's thread.
"""

from confluent_kafka import TopicPartition


class CommitState:
    """Of a partition while this member owns it, which begins at the committed `offset`, None where it is not known.

    librdkafka commits by itself only what is above the offset committed before: nothing after a jump backwards, and
    nothing while the low-water mark stands and only the metadata changes. In both cases `rewound` is true, and the
    partition is committed explicitly until the brokers have taken it.
    """

    __slots__ = (
        "_explicit",
        "confirmed_offset",
        "deleted",
        "dirty",
        "restart_at",
        "rewound",
        "staged_offset",
        "uncommitted",
    )

    def __init__(self, offset: int | None) -> None:
        # The offset to commit, or its metadata, has changed since it was staged.
        self.dirty = False
        self.rewound = False
        self.staged_offset = offset
        self.confirmed_offset = offset
        # The offset and metadata that were last committed explicitly: only their answer ends `rewound`.
        self._explicit: tuple[int, str | None] | None = None
        # Where it begins again when a transaction is aborted before the group has committed anything for it.
        self.restart_at: TopicPartition | None = None
        # How many of its messages were handled and are in no transaction that was committed.
        self.uncommitted = 0
        # With exactly-once: how many that were deleted before they were handled no commit has passed yet.
        self.deleted = 0

    def make_explicit(self) -> None:
        """Have the offset and its metadata committed, also where the offset stays the same."""
        self.dirty = self.rewound = True
        self._explicit = None

    def note_explicit(self, place: TopicPartition) -> None:
        """`place` is being committed explicitly."""
        # A later store at this offset can differ only in its metadata, which only an explicit commit changes.
        self.staged_offset = place.offset
        self._explicit = place.offset, place.metadata

    def confirm(self, place: TopicPartition) -> None:
        """The brokers have taken a commit of `place`."""
        self.confirmed_offset = place.offset
        if self._explicit == (place.offset, place.metadata):
            self.rewound = False

    def confirm_transaction(self) -> None:
        """The brokers have committed the transaction that has all of it."""
        self.restart_at = None
        self.rewound = False

    @property
    def unconfirmed(self) -> bool:
        """Whether something was handled that the brokers have not confirmed as committed."""
        return self.dirty or self.rewound or self.staged_offset != self.confirmed_offset
