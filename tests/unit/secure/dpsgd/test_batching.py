"""Physical batches and the order of the public pool."""

from __future__ import annotations

import pytest

from lada_secure.dpsgd.batching import physical_batches, single_units, unit_of_row
from lada_secure.models.examples import EncodedExample, EncodedUnit, PublicOrder, TokenRow, rows_of


def unit(name, *lengths, own=False):
    rows = [TokenRow(tokens=tuple(range(length)), target_start=1) for length in lengths]
    return EncodedUnit(
        unit_id=name,
        examples=tuple(
            EncodedExample(example_id=f"{name}{at}", path=row, rejected=row if own else None)
            for at, row in enumerate(rows)
        ),
    )


UNITS = (unit("a", 30), unit("b", 5, 6), unit("c", 9), unit("d", 7, 8, 2), unit("e", 31))


def test_units_stay_whole_and_every_one_comes_once():
    batches = physical_batches(UNITS, physical_batch_size=4)
    assert [len(batch) for batch in batches] == [1, 2, 2]
    seen = [one.example_id for batch in batches for unit in batch for one in unit]
    assert sorted(seen) == ["a0", "b0", "b1", "c0", "d0", "d1", "d2", "e0"]
    assert [unit_of_row(batch) for batch in batches] == [(0, 0), (0, 0, 0, 1), (0, 1)]


def test_rows_of_similar_length_share_a_batch():
    last = physical_batches(UNITS, physical_batch_size=4)[-1]
    assert {one.example_id for unit in last for one in unit} == {"a0", "e0"}


def test_own_paths_follow_the_paths_and_belong_to_the_same_units():
    (batch,) = physical_batches((unit("a", 4, 5, own=True), unit("b", 6)), physical_batch_size=4)
    examples = [one for unit in batch for one in unit]
    assert [len(row.tokens) for row in rows_of(examples)] == [4, 5, 6, 4, 5]
    assert unit_of_row(batch) == (0, 0, 1, 0, 0)


def test_no_units_make_no_batches_and_units_without_examples_no_rows():
    assert physical_batches((), physical_batch_size=4) == []
    assert physical_batches((unit("a"), unit("b")), physical_batch_size=4) == []


def test_a_unit_larger_than_a_batch_has_one_of_its_own():
    batches = physical_batches(UNITS, physical_batch_size=2)
    assert [len(batch) for batch in batches if sum(map(len, batch)) > 2] == [1]
    assert sum(len(batch) for batch in batches) == len(UNITS)


def test_a_unit_without_examples_is_nobodys_company():
    with_empty = physical_batches((unit("a", 4), unit("b"), unit("c", 5)), physical_batch_size=4)
    assert with_empty == physical_batches((unit("a", 4), unit("c", 5)), physical_batch_size=4)


def test_single_units_share_no_batch():
    batches = single_units((*UNITS, unit("f")))
    assert [len(batch) for batch in batches] == [1] * len(UNITS)
    assert [sum(map(len, batch)) for batch in batches] == [1, 2, 1, 3, 1]


def test_every_pool_sample_comes_once_per_epoch_and_a_step_can_be_found_again():
    order = PublicOrder(count=10, batch_size=4, seed=3)
    steps = [order.batch(step) for step in range(5)]
    flat = [one for step in steps for one in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert order.batch(3) == steps[3]


def test_a_batch_larger_than_the_pool_still_has_its_size():
    assert len(PublicOrder(count=3, batch_size=8, seed=0).batch(2)) == 8


@pytest.mark.parametrize(("count", "size"), [(0, 4), (4, 0)])
def test_no_pool_or_no_public_batch_gives_nothing(count, size):
    assert PublicOrder(count=count, batch_size=size, seed=0).batch(0) == ()
