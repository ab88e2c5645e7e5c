"""Each fault once, under load with both workers running, and the account at the end; `make soak` goes on for longer."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.faults.faults import FAULTS
from tests.faults.field import SETUPS, Fault, Field

# Messages a second of each load: a soak has more, which costs two cores most of their time.
RATE = 100


# One field for all: they share what the loads have seen.
@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    if "KAFKA_BOOTSTRAP_SERVERS" in os.environ:
        pytest.skip("needs brokers that it may kill, and KAFKA_BOOTSTRAP_SERVERS names others")
    setups = [replace(setup, rate=min(setup.rate, RATE)) for setup in SETUPS]
    with Field(tmp_path_factory.mktemp("faults"), setups=setups) as field:
        yield field


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_nothing_acknowledged_is_lost(field: Field, fault: Fault) -> None:
    rounds = field.play(fault)
    print(*rounds, sep="\n")

    assert [breach for each in rounds for breach in each.breaches()] == []


def test_the_account_of_all_rounds_is_whole(field: Field) -> None:
    for load in field.loads:
        account = load.finish()
        print(account)
        assert account.breaches() == []
