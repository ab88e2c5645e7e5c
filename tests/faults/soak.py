"""Faults one after the other for as long as one likes: `make soak MINUTES=30`.

Every pass plays each fault once, in an order of its own, while the same workers live on. The measurements are written
to the record after each round; `python -m tests.faults.report` makes the table in docs/guarantees.md of it.
"""

import json
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import click

from tests.faults.faults import FAULTS
from tests.faults.field import SETUPS, Fault, Field, Round
from tests.faults.load import final_accounts

# In half a soak. The memory of messages under way varies by this much.
GROWTH_MIB = 1.0


@click.command()
@click.option("--minutes", type=float, default=30.0, show_default=True, help="How long to go on.")
@click.option("--record", type=Path, default=Path("soak.json"), show_default=True, help="What was seen, as JSON.")
@click.option(
    "--fault",
    "names",
    multiple=True,
    type=click.Choice([fault.name for fault in FAULTS]),
    help="Only this fault; can be repeated.  [default: all]",
)
@click.option("--seed", type=int, default=lambda: time.time_ns() % 10_000, help="Decides the order of the faults.")
def main(minutes: float, record: Path, names: tuple[str, ...], seed: int) -> None:
    """Exits 0 when every promise was kept in every round."""
    faults = [fault for fault in FAULTS if not names or fault.name in names]
    document: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": minutes,
        "seed": seed,
        "loads": {setup.name: setup.description for setup in SETUPS},
        "rate_per_load": SETUPS[0].rate,
        "rounds": [],
        "accounts": [],
        "breaches": [],
    }
    with tempfile.TemporaryDirectory(prefix="kafka-workers-soak-") as directory, Field(Path(directory), _say) as field:
        field.random.seed(seed)
        try:
            field.start()
            _play(field, faults, time.monotonic() + minutes * 60, document, record)
            document["breaches"] += _growing(document["rounds"])
            for account in final_accounts(field.loads):
                document["breaches"] += account.breaches()
                document["accounts"].append({**asdict(account), "producer": _without_streams(account.producer)})
        except AssertionError as error:
            document["breaches"].append(str(error))
        record.write_text(json.dumps(document, indent=1) + "\n")
    for breach in document["breaches"]:
        _say(f"BROKEN: {breach}")
    acknowledged = sum(account["producer"]["acknowledged"] for account in document["accounts"])
    _say(
        f"{len(document['rounds'])} rounds, {acknowledged:,} acknowledged, {len(document['breaches'])} broken promises"
    )
    sys.exit(bool(document["breaches"]))


def _play(field: Field, faults: list[Fault], until: float, document: dict[str, Any], record: Path) -> None:
    while time.monotonic() < until:
        for fault in field.random.sample(faults, len(faults)):
            if time.monotonic() >= until:
                return
            _say(f"{datetime.now(UTC):%H:%M:%S} {fault.name}")
            for each in field.play(fault):
                document["rounds"].append(asdict(each))
                document["breaches"] += each.breaches()
                _say(f"         {_as_line(each)}")
            record.write_text(json.dumps(document, indent=1) + "\n")


def _growing(rounds: list[dict[str, Any]]) -> list[str]:
    """Which consumers have more allocated in the last quarter of a soak than in the second."""
    breaches = []
    for load in {each["load"]: None for each in rounds}:
        sizes = [each["consumer_allocated_mib"] for each in rounds if each["load"] == load]
        quarter = len(sizes) // 4
        if quarter:
            second, last = median(sizes[quarter : 2 * quarter]), median(sizes[-quarter:])
            if last - second > GROWTH_MIB:
                breaches.append(f"{load}: the consumer's memory grows, {second:.1f} to {last:.1f} MiB allocated")
    return breaches


def _as_line(each: Round) -> str:
    return (
        f"{each.load:8} acknowledged {each.acknowledged:6}  missing {each.missing}  duplicated {each.duplicated}"
        f"  reordered {each.reordered}  redelivered {each.redelivered:4}  away {each.longest_unavailable_s:4.1f} s"
        f"  stalled {each.longest_stall_s:4.1f} s"
        f"  recovered {each.recovery_s:4.1f} s  {each.producer_rss_mib:.0f}/{each.consumer_rss_mib:.0f} MiB,"
        f" {each.consumer_allocated_mib:.1f} allocated"
    )


def _without_streams(account: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in account.items() if name != "streams"}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
