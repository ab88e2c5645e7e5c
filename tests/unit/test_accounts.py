"""What is made of an account and of what was seen in a log."""

import pytest

from workers.accounting.accounts import StreamSent
from workers.accounting.stamps import Stamp, stream_of
from workers.accounting.verify import Observations

SPREAD = stream_of("run", 0, None)


@pytest.mark.parametrize(("accounted", "lost"), [(False, 0), (True, 1)])
def test_a_gap_in_a_stream_over_partitions_is_a_loss_only_by_its_account(accounted: bool, lost: int) -> None:
    """Ends of partitions are read one after the other, and meanwhile its producer may go on."""
    observations = Observations()
    for partition, sequence in ((0, 0), (1, 2)):
        observations.add(partition, Stamp(SPREAD, sequence, 1))
    [report] = observations.report({SPREAD: StreamSent(3)} if accounted else None)

    assert (report.missing, report.lost) == (1, lost)


def test_what_may_have_been_deleted_is_counted_apart() -> None:
    observations = Observations()
    for partition, sequence in ((0, 4), (1, 0), (0, 6)):
        observations.add(partition, Stamp(SPREAD, sequence, 1))
    observations.trimmed = {0}
    [report] = observations.report({SPREAD: StreamSent(7)})

    # Of 1 to 3 nobody knows; 5 is behind what is left of partition 0.
    assert (report.missing, report.deleted, report.lost) == (4, 3, 1)
