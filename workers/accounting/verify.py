"""Compare the messages in a log with those that were sent."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from workers.accounting.accounts import StreamSent
from workers.accounting.ranges import Entry, Ranges
from workers.accounting.stamps import Stamp, StreamName, is_bound
from workers.columns import aligned


class StreamSeen:
    """Every message of one stream found in a log. One byte of memory for each, in pages made as they are needed."""

    _PAGE = 1 << 12

    def __init__(self) -> None:
        self.present = 0
        self.duplicated = 0
        self.reordered = 0
        self.highest = -1
        self._pages: dict[int, bytearray] = {}
        # The first and the last sequence in each partition.
        self.first: dict[int, int] = {}
        self._last: dict[int, int] = {}

    def add(self, partition: int, stamp: Stamp) -> None:
        """Accounts for one message; call it in the order of offsets within a partition."""
        self.first.setdefault(partition, stamp.sequence)
        number, at = divmod(stamp.sequence, self._PAGE)
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = bytearray(self._PAGE)
        if page[at]:
            self.duplicated += 1
        else:
            page[at] = 1
            self.present += 1
            if stamp.sequence < self._last.get(partition, -1):
                self.reordered += 1
            else:
                self._last[partition] = stamp.sequence
            self.highest = max(self.highest, stamp.sequence)

    def __contains__(self, sequence: int) -> bool:
        number, at = divmod(sequence, self._PAGE)
        page = self._pages.get(number)
        return page is not None and bool(page[at])

    def missing(self, sent: int) -> Ranges:
        """Which of the sequences 0 to `sent` - 1 are not there."""
        found = []
        at = 0
        for number in sorted(self._pages):
            start = number * self._PAGE
            if start >= sent:
                break
            end = min(start + self._PAGE, sent)
            found.append((at, start))
            found += [(start + a, start + b) for a, b in _zeros(self._pages[number], end - start)]
            at = end
        return Ranges([*found, (at, sent)])


def _zeros(page: bytearray, end: int) -> Iterator[tuple[int, int]]:
    at = page.find(0, 0, end)
    while at >= 0:
        stop = page.find(1, at, end)
        stop = end if stop < 0 else stop
        yield at, stop
        at = page.find(0, stop, end)


@dataclass(slots=True)
class RunReport:
    """The messages of one run in a log. `sent` is from the account, or else implied by the highest sequences seen.

    `undecided` messages are missing, and may be lost, failed or unknown: of their part of a stream the account says
    only how many have failed or are unknown. `lost` are lost for certain. `failed_present` and `unknown_present` are of
    those that the account lists.
    """

    run: str
    sent: int = 0
    present: int = 0
    missing: int = 0
    lost: int = 0
    failed: int = 0
    failed_present: int = 0
    unknown: int = 0
    unknown_present: int = 0
    duplicated: int = 0
    reordered: int = 0
    deleted: int = 0
    undecided: int = 0
    from_account: bool = False
    examples: list[str] = field(default_factory=list)


class Observations:
    """Stamped messages seen in a log or by consumers, by stream.

    `trimmed` are the partitions whose beginning is not there any more: retention has deleted it.
    """

    def __init__(self) -> None:
        self.streams: dict[bytes, StreamSeen] = {}
        self.unstamped = 0
        self.trimmed: set[int] = set()

    def add(self, partition: int, stamp: Stamp | None) -> None:
        """Accounts for one message, in the order of offsets within a partition."""
        if stamp is None:
            self.unstamped += 1
        else:
            self.streams.setdefault(stamp.stream, StreamSeen()).add(partition, stamp)

    def report(self, accounts: Mapping[bytes, StreamSent] | None, runs: Iterable[str] = ()) -> list[RunReport]:
        """A report for each run seen or accounted for, in the order of their names; only `runs` if any are given."""
        wanted = set(runs)
        reports: dict[str, RunReport] = {}
        for stream in sorted({*self.streams, *(accounts or {})}):
            run = StreamName.of(stream).run
            if not wanted or run in wanted:
                self._add_stream(reports.setdefault(run, RunReport(run)), stream, accounts)
        return list(reports.values())

    def _add_stream(self, report: RunReport, stream: bytes, accounts: Mapping[bytes, StreamSent] | None) -> None:
        seen = self.streams.get(stream) or StreamSeen()
        sent = accounts.get(stream) if accounts is not None else None
        report.from_account = report.from_account or sent is not None
        expected = sent if sent is not None else StreamSent(seen.highest + 1)
        missing = seen.missing(expected.sent)
        failed, unknown = expected.failed.exact, expected.unknown.exact
        unexcused = missing.without(failed).without(unknown)
        lost = unexcused.without(Ranges([(0, self._deleted_below(stream, seen, expected.sent))]))
        report.deleted += len(unexcused) - len(lost)
        if sent is None and not is_bound(stream):
            # Its partitions were read to ends of different moments, and its producer may have been at work.
            lost = Ranges()
        spans = [*expected.failed.spans, *expected.unknown.spans]
        if spans:
            lost = self._decide(report, stream, lost, spans)
        report.sent += expected.sent
        report.present += seen.present
        report.missing += len(missing)
        report.lost += len(lost)
        report.failed += len(expected.failed)
        report.failed_present += len(failed.without(missing))
        report.unknown += len(expected.unknown)
        report.unknown_present += len(unknown.without(missing))
        report.duplicated += seen.duplicated
        report.reordered += seen.reordered
        report.examples += [f"{stream.decode()} {start}-{end - 1}" for start, end in lost.merged()[:3]]

    @staticmethod
    def _decide(report: RunReport, stream: bytes, lost: Ranges, spans: list[Entry]) -> Ranges:
        """The lost messages outside of `spans`. Inside of one, only those beyond its count are lost for certain."""
        places = Ranges((start, end) for start, end, _ in spans)
        merged = places.merged()
        excused = [0] * len(merged)
        begins = [start for start, _ in merged]
        for start, _, count in spans:
            excused[bisect_right(begins, start) - 1] += count
        for (start, end), missing, count in zip(merged, lost.counts_in(places), excused, strict=True):
            report.undecided += min(missing, count)
            if missing > count:
                report.lost += missing - count
                report.examples.append(f"{stream.decode()} {missing - count} of {start}-{end - 1}")
        return lost.without(places)

    def _deleted_below(self, stream: bytes, seen: StreamSeen, sent: int) -> int:
        """The sequence below which retention may have deleted the missing messages."""
        bound = StreamName.of(stream).partition
        trimmed = self.trimmed if bound is None else self.trimmed & {bound}
        return max((seen.first.get(partition, sent) for partition in trimmed), default=0)


UNDECIDED = "the producer had more separate failures than its account lists, and counted the rest"


def as_table(reports: list[RunReport], observations: Observations, columns: int | None = None) -> str:
    """The reports as text, and which messages were lost: a line for each run, or where a terminal of `columns` would
    fold that, a line for each number of it.
    """
    titles = ("RUN", "SENT", "PRESENT", "MISSING", "LOST", "FAILED", "UNKNOWN", "DUPLICATED", "REORDERED", "ACCOUNT")
    rows: list[tuple[str, ...]] = [titles]
    for each in reports:
        account = "producer's" if each.from_account else "log only"
        numbers = map(str, (each.sent, each.present, each.missing, each.lost))
        failed = _with_present(each.failed, each.failed_present)
        unknown = _with_present(each.unknown, each.unknown_present)
        rows.append((each.run, *numbers, failed, unknown, str(each.duplicated), str(each.reordered), account))
    lines = aligned(rows).splitlines()
    if columns is not None and max(map(len, lines)) > columns:
        lines = "\n\n".join(aligned([*zip(titles, row, strict=True)]) for row in rows[1:]).splitlines()
    lines += [f"lost: stream and sequences {example}" for each in reports for example in each.examples]
    deleted = sum(each.deleted for each in reports)
    if deleted:
        trimmed = ", ".join(map(str, sorted(observations.trimmed)))
        lines.append(f"{deleted} of the missing may have been deleted with the beginning of partitions {trimmed}")
    undecided = sum(each.undecided for each in reports)
    if undecided:
        lines.append(f"{undecided} of the missing may be lost, failed or unknown: {UNDECIDED}")
    if observations.unstamped:
        lines.append(f"{observations.unstamped} messages carry no stamp")
    return "\n".join(lines)


def _with_present(count: int, present: int) -> str:
    return f"{count} ({present} present)" if count else "0"
