"""The tiny preset's world and its records."""

from __future__ import annotations

import re

import pytest

from lada_lab.worlds.arithmetic import (
    COMMON,
    MODULUS,
    ArithmeticWorld,
    Operator,
    build_arithmetic,
    build_world,
)
from lada_lab.worlds.sites import FederationData
from lada_secure.data.records import PoolSample, Record
from lada_secure.errors import ParameterError


def walk(world: ArithmeticWorld, question: str) -> tuple[str, str]:
    """The obvious way to solve a question, one operator at a time."""
    digit = int(question[0])
    path = ""
    for symbol in question[1:]:
        operator = world.trade[symbol]
        digit = (operator.multiplier * digit + operator.offset) % MODULUS
        path += f"{symbol}{digit}"
    return path, str(digit)


def all_records(data: FederationData) -> list[Record | PoolSample]:
    private = [one for site in data.sites.values() for one in (*site.train, *site.held_out)]
    return [*private, *data.pool, *data.teacher]


@pytest.mark.parametrize("sites", [3, 5, 12])
def test_every_answer_and_rationale_is_right(sites: int) -> None:
    world = build_world(sites=sites, seed=3)
    for record in all_records(build_arithmetic(sites=sites, seed=3)):
        rationale, answer = walk(world, record.question)
        assert record.answer == answer
        if isinstance(record, Record):
            assert record.rationale == rationale


def test_operators_lose_no_digit() -> None:
    world = build_world(sites=12, seed=0)
    for operator in (*world.trade.values(), *world.folk.values()):
        assert len({operator.apply(digit) for digit in range(MODULUS)}) == MODULUS


def test_operators_of_a_domain_are_all_different_in_trade_and_folk() -> None:
    world = build_world(sites=12, seed=1)
    for domain in world.domains:
        meanings: set[Operator] = set()
        for symbol in domain.symbols:
            meanings |= {world.trade[symbol], world.folk[symbol]}
        assert len(meanings) == 2 * len(domain.symbols)


def test_common_operators_mean_the_same_to_everybody() -> None:
    world = build_world(sites=3, seed=0)
    assert all(world.trade[symbol] == world.folk[symbol] for symbol in COMMON)


def test_domains_share_no_operator() -> None:
    world = build_world(sites=12, seed=0)
    symbols = [symbol for domain in world.domains for symbol in domain.symbols]
    assert len(set(symbols)) == len(symbols) == 36


@pytest.mark.parametrize("sites", [3, 8])
def test_templates_of_a_site_stay_out_of_everything_public(sites: int) -> None:
    data = build_arithmetic(sites=sites, seed=5)
    public = {one.question[1:] for one in (*data.pool, *data.teacher)}
    for site in data.sites.values():
        train = {one.question[1:] for one in site.train}
        held_out = {one.question[1:] for one in site.held_out}
        assert not train & held_out
        assert not (train | held_out) & public


def test_pool_and_teacher_share_no_question() -> None:
    data = build_arithmetic(sites=3, seed=0)
    assert not {one.question for one in data.pool} & {one.question for one in data.teacher}


def test_difficulty_differs_between_sites() -> None:
    data = build_arithmetic(sites=3, seed=0)
    lengths = [{len(one.question) for one in site.train} for site in data.sites.values()]
    assert lengths == [{4}, {5}, {4}]


def test_units_have_one_to_four_records() -> None:
    data = build_arithmetic(sites=3, seed=0)
    for site in data.sites.values():
        sizes: dict[str, int] = {}
        for record in site.train:
            sizes[record.unit] = sizes.get(record.unit, 0) + 1
        assert set(sizes.values()) == {1, 2, 3, 4}
        assert all(re.fullmatch(r"unit-\d{4}", unit) for unit in sizes)


def test_the_same_seed_gives_the_same_data_and_another_seed_other_data() -> None:
    assert build_arithmetic(sites=3, seed=1) == build_arithmetic(sites=3, seed=1)
    assert build_arithmetic(sites=3, seed=1).pool != build_arithmetic(sites=3, seed=2).pool


@pytest.mark.parametrize("sites", [2, 13])
def test_a_number_of_sites_out_of_range_is_refused(sites: int) -> None:
    with pytest.raises(ParameterError, match="expected 3 to 12"):
        build_world(sites=sites, seed=0)
