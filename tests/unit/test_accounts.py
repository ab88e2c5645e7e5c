"""Verification: an account, held against the messages in a log."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.accounting.accounts import StreamSent, read_accounts
from workers.accounting.ranges import CountedRanges
from workers.accounting.stamps import Stamp, stream_of
from workers.accounting.verify import Observations, as_table
from workers.errors import ConfigError

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


@pytest.mark.parametrize("columns", [80, 200, None])
def test_a_terminal_folds_no_line_of_the_report(columns: int | None) -> None:
    observations = Observations()
    for sequence in (0, 1, 3):
        observations.add(0, Stamp(SPREAD, sequence, 1))
    reports = observations.report({SPREAD: StreamSent(5)})

    lines = as_table(reports, observations, columns).splitlines()

    assert max(map(len, lines)) <= (columns or 200)
    titles = ["RUN", "SENT", "PRESENT", "MISSING", "LOST", "FAILED", "UNKNOWN", "DUPLICATED", "REORDERED", "ACCOUNT"]
    if columns == 80:
        assert [line.split()[0] for line in lines[:10]] == titles
        assert lines[4].split() == ["LOST", "2"]
    else:
        assert lines[0].split() == titles
        assert lines[1].split()[:5] == ["run", "5", "3", "2", "2"]


# Of every message: what the producer says of it, and whether it is in the log.
FATES = st.lists(
    st.sampled_from([("ok", True), ("ok", False), ("failed", False), ("unknown", True), ("unknown", False)]),
    min_size=1,
    max_size=60,
)


@given(FATES, st.integers(1, 8))
def test_an_account_beyond_its_bound_makes_no_loss_and_hides_none(fates: list[tuple[str, bool]], limit: int) -> None:
    sent = StreamSent(len(fates), CountedRanges(limit=limit), CountedRanges(limit=limit))
    observations = Observations()
    for sequence, (fate, present) in enumerate(fates):
        if fate != "ok":
            (sent.failed if fate == "failed" else sent.unknown).add(sequence)
        if present:
            observations.add(0, Stamp(SPREAD, sequence, 1))
    [report] = observations.report({SPREAD: sent})

    lost = fates.count(("ok", False))
    assert report.lost <= lost <= report.lost + report.undecided
    exact = all(end - start == count for each in (sent.failed, sent.unknown) for start, end, count in each.entries())
    assert report.undecided == 0 or not exact
    assert (report.failed, report.unknown) == (
        sum(f == "failed" for f, _ in fates),
        sum(f == "unknown" for f, _ in fates),
    )


def test_an_account_beyond_its_bound_is_read_as_it_was_written() -> None:
    failed = CountedRanges(limit=2)
    for number in (0, 2, 4, 6, 7):
        failed.add(number)
    entry = {"stream": SPREAD.decode(), "sent": 10, "failed": failed.document(), "unknown": []}
    accounts = read_accounts(json.dumps({"topic": "t", "run": "run", "streams": [entry]}), "file", "t")

    assert accounts[SPREAD].failed.entries() == failed.entries()
    assert len(accounts[SPREAD].failed) == 5


@pytest.mark.parametrize("entry", [[0, 5, 6], [0, 5, 0], [0, 5, -1], [3, 3, 1], [0, 5, 2, 2], [0]])
def test_an_account_of_impossible_counts_is_refused(entry: list[int]) -> None:
    stream = {"stream": SPREAD.decode(), "sent": 10, "failed": [entry], "unknown": []}
    with pytest.raises(ConfigError, match="not an account"):
        read_accounts(json.dumps({"topic": "t", "run": "run", "streams": [stream]}), "file", "t")


def test_an_account_whose_total_is_not_that_of_its_streams_is_refused() -> None:
    """It was edited, or is of two runs: what it says of losses is not to be believed."""
    streams = [
        {"stream": stream_of("run", 0, number).decode(), "sent": 10, "failed": [], "unknown": []} for number in range(3)
    ]
    account = {"topic": "t", "run": "run", "streams": streams}
    assert len(read_accounts(json.dumps({**account, "sent": 30}), "file", "t")) == 3
    with pytest.raises(ConfigError, match=r"file line 1: .* contradicts itself: 31 sent in all, and 30 in its streams"):
        read_accounts(json.dumps({**account, "sent": 31}), "file", "t")
