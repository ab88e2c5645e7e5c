"""Each fault once, under load with both workers running, and the account at the end; `make soak` goes on for longer."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.faults.faults import FAULTS
from tests.faults.field import SETUPS, Fault, Field
from tests.faults.load import final_accounts

# Messages a second of each load: a soak has more, which costs two cores most of their time.
RATE = 60
# Faults with loads of their own come first: the standing loads take more of two cores than most faults.
ORDER = sorted(FAULTS, key=lambda fault: not fault.own_loads)


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    if "KAFKA_BOOTSTRAP_SERVERS" in os.environ:
        pytest.skip("needs brokers that it may kill, and KAFKA_BOOTSTRAP_SERVERS names others")
    with Field(tmp_path_factory.mktemp("faults")) as field:
        yield field


# The same loads for all faults: they share what the loads have seen.
@pytest.fixture(scope="module")
def field(brokers: Field) -> Field:
    brokers.start([replace(setup, rate=min(setup.rate, RATE)) for setup in SETUPS])
    return brokers


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", ORDER, ids=[fault.name.replace(" ", "-") for fault in ORDER])
def test_nothing_acknowledged_is_lost(brokers: Field, fault: Fault, request: pytest.FixtureRequest) -> None:
    field = brokers if fault.own_loads else request.getfixturevalue("field")
    rounds = field.play(fault)
    print(*rounds, sep="\n")

    assert [breach for each in rounds for breach in each.breaches()] == []


def test_the_account_of_all_rounds_is_whole(field: Field) -> None:
    accounts = final_accounts(field.loads)
    print(*accounts, sep="\n")

    assert [breach for account in accounts for breach in account.breaches()] == []
