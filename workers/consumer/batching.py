"""How many messages a batch has, so that a stop and a rebalance need not wait long for it."""

# A batch takes about so long at the most: a rebalance waits 10 s for it (REVOKE_WAIT_S), a stop 25 s.
MOST_S = 5.0
FIRST_MESSAGES = 128
# When half of a batch takes at least this share of the time of the whole, the number of messages does not set the time.
FIXED_COST = 0.75


class BatchSize:
    """`messages` follows the handler's pace: doubled while batches are quick, halved when one takes over MOST_S.

    Where half the messages take as long as all of them, each call has a fixed cost, and smaller batches would only be
    slower: then the size goes back and stays.
    """

    def __init__(self, most: int) -> None:
        self.messages = min(most, FIRST_MESSAGES)
        self._most = most
        self._halved: tuple[int, float] | None = None
        self._least = 1

    def took(self, messages: int, seconds: float) -> None:
        """Note how long a call with this number of messages took."""
        if self._halved is not None and messages <= self._halved[0] // 2:
            whole, whole_s = self._halved
            self._halved = None
            if seconds > FIXED_COST * whole_s:
                self._least = self.messages = whole
        if seconds > MOST_S and messages > self._least:
            self._halved = messages, seconds
            self.messages = max(self._least, messages // 2)
        elif messages >= self.messages and seconds < MOST_S / 4:
            self.messages = min(self._most, 2 * self.messages)
