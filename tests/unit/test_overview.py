"""Groups at a glance: rates, health, and what the table, the lines and JSON show of them."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from workers.cli.top import as_document, as_lines, as_table
from workers.kafka.groups import Group, Member, PartitionLag
from workers.monitoring.group_lag import Picture
from workers.monitoring.overview import GroupRow, Overview, Rates

NOW_S = 1_800_000_000.0


def group(
    name: str = "orders", committed: int | None = 10, end: int = 100, *, owners: int = 1, state: str = "stable"
) -> Group:
    """A group with two partitions; the first `owners` members own one each, a third owns none."""
    members = tuple(
        Member(f"id-{number}", f"{name}-{number}", "/10.0.0.1", (("t", number),) if number < 2 else ())
        for number in range(owners)
    )
    partitions = tuple(
        PartitionLag("t", number, committed, committed, 0, end, f"{name}-{number}" if number < owners else None)
        for number in range(2)
    )
    return Group(name, state, "classic", members, partitions)


def look(rates: Rates, at: float, *groups: Group, lag_s: float = 60.0, problem: str | None = None) -> Overview:
    ages = {
        (each.group_id, (partition.topic, partition.partition)): lag_s
        for each in groups
        for partition in each.partitions
    }
    return rates.look(Picture(groups=groups, lag_s=ages), problem, at, NOW_S)


def after(seconds: float, before: Group, then: Group, lag_s: float = 60.0) -> GroupRow:
    rates = Rates()
    look(rates, 0, before)
    (row,) = look(rates, seconds, then, lag_s=lag_s).rows
    return row


def test_rates_are_the_differences_of_ends_and_committed_offsets_by_group_and_by_member() -> None:
    row = after(4, group(committed=10, end=100, owners=2), group(committed=30, end=108, owners=2))
    assert (row.in_per_s, row.out_per_s) == (4, 10)
    assert [each.out_per_s for each in row.members] == [5, 5]
    assert [each.lag for each in row.members] == [78, 78]
    assert (row.group.total_lag, row.lag_s) == (156, 60)


def test_rates_are_not_known_before_two_rounds_and_of_a_group_that_has_committed_nothing() -> None:
    (row,) = look(Rates(), 0, group()).rows
    assert (row.in_per_s, row.out_per_s, row.members[0].out_per_s) == (None, None, None)
    assert after(2, group(committed=None), group(committed=None)).out_per_s is None
    # A reset to a lower offset is no negative rate.
    assert after(2, group(committed=50), group(committed=10)).out_per_s == 0


def test_rates_are_of_the_last_ten_seconds() -> None:
    rates = Rates()
    for second in range(0, 31, 2):
        committed = 10 if second < 20 else 10 + (second - 20) * 5
        (row,) = look(rates, second, group(committed=committed, end=1000)).rows
    assert row.out_per_s == 10
    assert len(rates._rounds) <= 7


@pytest.mark.parametrize(
    ("before", "then", "seconds", "lag_s", "health"),
    [
        (group(), group(committed=100), 2, 0, "ok"),
        (group(), group(committed=95), 2, 3, "ok"),
        (group(), group(committed=20, end=200), 2, 60, "falling behind"),
        (group(), group(committed=50), 2, 60, "catching up"),
        (group(), group(), 2, 60, "behind"),
        (group(), group(), 10, 60, "no progress"),
        (group(), group(owners=0, state="empty"), 10, 60, "no members"),
        (group(), group(committed=100, owners=0, state="empty"), 10, 0, "empty"),
        (group(), group(state="preparing_rebalancing"), 10, 60, "rebalancing"),
        (group(), group(committed=None), 10, 60, "nothing committed"),
    ],
)
def test_health_says_how_a_group_gets_on(before: Group, then: Group, seconds: float, lag_s: float, health: str) -> None:
    assert after(seconds, before, then, lag_s).health == health


def overview() -> Overview:
    rates = Rates(("orders", "nowhere"))
    groups = (group("billing", committed=100), group("orders", owners=3))
    look(rates, 0, *groups)
    return replace(
        look(rates, 2, *groups, problem="brokers have not answered everything for 3 s"), missing_brokers=(1,)
    )


def test_the_group_with_the_largest_lag_comes_first_and_missing_ones_are_said() -> None:
    shown = overview()
    assert [row.group.group_id for row in shown.rows] == ["orders", "billing"]
    assert shown.missing == ("nowhere",)
    document = json.loads(json.dumps(as_document(shown)))
    assert (document["missing"], document["missing_brokers"]) == (["nowhere"], [1])
    first = document["groups"][0]
    assert (first["group"], first["lag"], first["in_per_s"], first["out_per_s"]) == ("orders", 180, 0, 0)
    assert [(each["client_id"], each["partitions"], each["idle"]) for each in first["members"]] == [
        ("orders-0", 1, False),
        ("orders-1", 1, False),
        ("orders-2", 0, True),
    ]
    lines = [line.partition(" ")[2] for line in as_lines(shown).splitlines()]
    assert lines == [
        "orders: behind, 3 members (1 idle), 2 partitions, lag 180 (1m0s), in 0.0/s, out 0.0/s",
        "billing: ok, 1 member, 2 partitions, lag 0 (1m0s), in 0.0/s, out 0.0/s",
        "nowhere: not there",
        "the other brokers do not list 1",
        "brokers have not answered everything for 3 s",
    ]


def drawn(shown: Overview, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, force_terminal=False)
    with console.capture() as capture:
        console.print(as_table(shown, console))
    lines: list[str] = capture.get().splitlines()
    return lines


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_the_terminal(width: int) -> None:
    shown = overview()
    lines = drawn(shown, width, 24)
    assert max(map(len, lines)) <= width
    (orders,) = [line.split() for line in lines if line.startswith("orders")]
    assert orders == ["orders", "2", "180", "1m0s", "0.0", "0.0", "behind"]
    assert "idle" in next(line for line in lines if "orders-2 10.0.0.1" in line)
    assert lines[1].strip() == "the other brokers do not list 1"


def test_a_table_that_is_too_long_says_how_many_lines_it_leaves_out() -> None:
    lines = drawn(overview(), 80, 9)
    assert len(lines) <= 9
    assert lines[-1].startswith("3 more lines; choose groups")


def test_a_name_cannot_write_to_the_terminal() -> None:
    shown = look(Rates(), 0, group("bad\x1b[2J[red]name"))
    for text in (as_lines(shown), *drawn(shown, 120, 24)):
        assert "\x1b" not in text
    assert any("bad\\x1b[2J[red]name" in line for line in drawn(shown, 120, 24))
